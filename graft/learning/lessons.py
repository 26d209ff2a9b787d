"""What is learned from in an epoch: the rows and their order, mixed pairs, and the loss.

In: a source of batches, targets, the rows of a training fold, the settings. Out: a `Lesson`, and the loss of a batch.
Weighted cross-entropy, with the classes' shares on the logits where that was asked for (logit adjustment: Menon et al.
2021, arXiv 2007.07314); MixUp (Zhang et al. 2018) and CutMix (Yun et al. 2019) are torchvision's. Behind a frozen prefix
both mix its maps instead of images. Every draw comes from the generator that is given.

Not covered: CutMix of maps without height and width (`mixable` says so before anything is trained).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch import Tensor, nn

from graft.learning.inner import class_weights, drawn, kept_back, log_prior
from graft.learning.loop import TAUGHT, taught
from graft.learning.prefix import Source
from graft.learning.tune_settings import TuneSettings
from graft.learning.tuner import Tuner
from graft.learning.watching import Watch

CHECK_BATCH = 64


@dataclass(frozen=True, slots=True, eq=False)
class Lesson:
    """`learn`, `check`: the rows to learn from and those kept back. `weights`, `prior`: of each class in the loss. `teacher`:
    what was trained before, if this is to learn from it."""

    source: Source
    targets: Int64[np.ndarray, " n"]
    learn: Int64[np.ndarray, " l"]
    check: Int64[np.ndarray, " b"]
    weights: Float32[np.ndarray, " k"]
    prior: Float32[np.ndarray, " k"]
    teacher: Tuner | None = None


def lesson_of(
    source: Source,
    targets: Int64[np.ndarray, " n"],
    rows: Int64[np.ndarray, " m"],
    *,
    groups: Int64[np.ndarray, " n"],
    classes: int,
    settings: TuneSettings,
    seed: int,
) -> Lesson:
    """The lesson of these rows; no other row is read."""
    learn, check = kept_back(targets, groups, rows, share=settings.validation_share, seed=seed)
    labels = targets[learn]
    weights = class_weights(labels, classes, settings.balance)
    return Lesson(source, targets, learn, check, weights, log_prior(labels, classes, settings.balance))


def batches(
    lesson: Lesson, settings: TuneSettings, generator: torch.Generator
) -> Iterator[tuple[Tensor, Int64[Tensor, " b"]]]:
    """The maps and labels of one epoch, batch by batch."""
    random = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
    order = lesson.learn[drawn(lesson.targets[lesson.learn], settings.balance, random)]
    for rows in np.array_split(order, math.ceil(len(order) / settings.batch_size)):
        yield lesson.source.training(rows, generator), torch.from_numpy(lesson.targets[rows])


def blocks(rows: Int64[np.ndarray, " m"]) -> list[Int64[np.ndarray, " b"]]:
    """At most 64 rows each, about equally many: of a single image there are no statistics."""
    return np.array_split(rows, math.ceil(len(rows) / CHECK_BATCH)) if len(rows) else []


def loss_of(
    tuner: Tuner,
    maps: Tensor,
    labels: Int64[Tensor, " b"],
    lesson: Lesson,
    settings: TuneSettings,
    generator: torch.Generator,
    watch: Watch | None = None,
) -> Tensor:
    """The loss of one batch, with gradients; `watch` sees what was answered."""
    device = tuner.compute.device
    weights, prior = (torch.from_numpy(part).to(device) for part in (lesson.weights, lesson.prior))
    wanted = labels.to(device)
    if settings.mixup > 0 or settings.cutmix > 0:
        maps, wanted = _mixed(maps, wanted, len(weights), settings, generator)
    logits = tuner.logits(maps, generator)
    if watch is not None:
        watch.see(logits, wanted)
    smoothing = settings.label_smoothing
    if lesson.teacher is not None:
        wanted = taught(wanted, lesson.teacher.answers(maps) + prior)
        smoothing *= 1 - TAUGHT
    return nn.functional.cross_entropy(logits + prior, wanted, weights, label_smoothing=smoothing)


def mixable(maps: Tensor) -> bool:
    """Whether a rectangle of another image can be put into these: whether they have height and width."""
    return maps.ndim == 4 and min(maps.shape[2:]) > 1


def _mixed(
    maps: Tensor, labels: Tensor, classes: int, settings: TuneSettings, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Each image mixed with the one before it, and the shares of both classes; MixUp or CutMix, whichever is drawn."""
    from torchvision.transforms import v2

    kinds = [v2.MixUp(alpha=settings.mixup, num_classes=classes)] if settings.mixup > 0 else []
    kinds += [v2.CutMix(alpha=settings.cutmix, num_classes=classes)] if settings.cutmix > 0 else []
    seed, choice = torch.randint(2**62, (2,), generator=generator).tolist()
    flat = maps if maps.ndim == 4 else maps.reshape(len(maps), 1, 1, -1)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        mixed, shares = kinds[choice % len(kinds)](flat, labels)
    return mixed.reshape(maps.shape) if maps.ndim != 4 else mixed, shares
