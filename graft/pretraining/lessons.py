"""What a student is told about a batch, and how far it is from it: by a teacher, or by labels.

In: the student's outputs (pooled rows of its taps, then logits) and a batch. Out: the loss, a scalar, and the share of
images for which student and lesson name the same class. A lesson is asked for a whole piece first, then batch by batch.

Distilled: KL divergence of the logits at temperature 1 (Hinton et al. 2015; the same views and MixUp for both, Beyer et
al. 2022, arXiv 2106.05237) + 2 (1 - cosine) of the embeddings, through a linear map where their widths differ + `hint`
times the relative squared error of the earlier taps that are equally wide. Labelled: cross-entropy with smoothed labels,
mixed as the views are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional

from graft.pretraining.rounds import Piece, Rounds
from graft.pretraining.targets import Rows, Teacher, held_targets, targets_of
from graft.store import Store

EMBEDDING_WEIGHT = 2.0

Outputs = Sequence[Float[Tensor, "b _"]]
Judged = tuple[Float[Tensor, ""], Float[Tensor, ""]]


@dataclass(frozen=True, slots=True, eq=False)
class FromTeacher:
    """The teacher's lesson for a student with `widths`; `bridge` maps the student's embedding to the teacher's."""

    teacher: Teacher
    rounds: Rounds
    store: Store
    bridge: nn.Module
    widths: tuple[int, ...]
    hint: float

    def about(self, number: int, index: int, piece: Piece) -> Answers:
        """What the teacher says about a piece."""
        return Answers(self, targets_of(self.teacher, self.rounds, number, index, piece, self.store))

    def about_held(self) -> Answers:
        """What it says about the held-out images."""
        return Answers(self, held_targets(self.teacher, self.rounds, self.store))

    @property
    def hinted(self) -> tuple[int, ...]:
        """The taps that both have, equally wide, but for the embeddings."""
        ends = (len(self.widths) - 1, len(self.teacher.widths) - 1)
        pairs = enumerate(zip(self.widths, self.teacher.widths, strict=False))
        return tuple(tap for tap, (own, other) in pairs if own == other and ends != (tap, tap))


@dataclass(frozen=True, slots=True, eq=False)
class Answers:
    """The teacher's outputs for some views, in order."""

    lesson: FromTeacher
    rows: Rows

    def judged(self, outputs: Outputs, rows: slice) -> Judged:
        """Loss of the student's `outputs` for those `rows`, and the share of them that it names as told."""
        lesson, taps = self.lesson, len(self.lesson.widths)
        targets = [torch.from_numpy(np.array(part[rows])).to(outputs[0].device).float() for part in self.rows]
        last = len(lesson.teacher.widths) - 1
        embedding = lesson.bridge(outputs[taps - 1].float())
        loss = EMBEDDING_WEIGHT * (1 - functional.cosine_similarity(embedding, targets[last]).mean())
        if lesson.hint and lesson.hinted:
            errors = [relative_square(outputs[tap].float(), targets[tap]) for tap in lesson.hinted]
            loss = loss + lesson.hint * torch.stack(errors).mean()
        if not lesson.teacher.has_logits:
            return loss, loss.detach() * math.nan
        logits = outputs[taps].float()
        divergence = functional.kl_div(
            functional.log_softmax(logits, 1),
            functional.log_softmax(targets[-1], 1),
            log_target=True,
            reduction="batchmean",
        )
        same = (logits.detach().argmax(1) == targets[-1].argmax(1)).float().mean()
        return loss + divergence, same


@dataclass(frozen=True, slots=True, eq=False)
class FromLabels:
    """The source's own labels."""

    rounds: Rounds
    smoothing: float
    device: str

    def about(self, number: int, index: int, piece: Piece) -> Labels:
        """The labels of a piece."""
        return Labels(piece.labels, piece.partners, piece.mix, self.smoothing)

    def about_held(self) -> Labels:
        """Those of the held-out images."""
        labels = self.rounds.held_labels().to(self.device)
        return Labels(labels, labels, torch.zeros(len(labels), device=self.device), 0.0)


@dataclass(frozen=True, slots=True, eq=False)
class Labels:
    """The labels of some views, of their partners, and the partners' shares."""

    labels: Int64[Tensor, " m"]
    partners: Int64[Tensor, " m"]
    mix: Float[Tensor, " m"]
    smoothing: float

    def judged(self, outputs: Outputs, rows: slice) -> Judged:
        """Loss of the student's `outputs` for those `rows`, and the share of them that it names as told."""
        logits, mix = outputs[-1].float(), self.mix[rows]
        own, other = (
            functional.cross_entropy(logits, labels[rows], reduction="none", label_smoothing=self.smoothing)
            for labels in (self.labels, self.partners)
        )
        same = (logits.detach().argmax(1) == self.labels[rows]).float().mean()
        return ((1 - mix) * own + mix * other).mean(), same


Lesson = FromTeacher | FromLabels
Asked = Answers | Labels


def relative_square(a: Float[Tensor, "b d"], b: Float[Tensor, "b d"]) -> Float[Tensor, ""]:
    """Mean of `(a - b)^2` over that of `b^2`."""
    return (a - b).square().mean() / b.square().mean().clamp(min=1e-6)
