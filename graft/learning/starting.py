"""What a training begins with: the head of the frozen features or a fresh one, and the statistics of the normalisations.

In: a `Cut`, a `Lesson`, the frozen features of every image where the head starts from them, the settings. Out: a `Tuner`
before its first step. Only rows to learn from are read. Cost: a closed-form head; with statistics taken anew two passes of
the tail over some images.

Not covered: steps (`graft.learning.finetune`).
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from graft.compute import Compute
from graft.learning.cutting import Cut
from graft.learning.heads import Head, answering_head, first_head, fresh_head
from graft.learning.inner import for_statistics
from graft.learning.lessons import Lesson, blocks
from graft.learning.loop import at_work
from graft.learning.ridge import Criterion
from graft.learning.tune_settings import TuneSettings, rates_of
from graft.learning.tuner import Tuner

Features = Float[np.ndarray, "n d"]


def start(
    cutting: Cut,
    lesson: Lesson,
    features: Features | None,
    classes: int,
    settings: TuneSettings,
    compute: Compute,
    criterion: Criterion | None,
    *,
    seed: int,
) -> Tuner:
    """The tuner before its first step: with a ridge head of the rows to learn from, or a fresh one."""
    rates, statistics = rates_of(settings), settings.batch_norm == "train"
    if settings.head == "ridge":
        head = _first(features, lesson.targets, lesson.learn, classes, settings, criterion)
    else:
        width = _width(cutting, lesson.source.plain(lesson.learn[:2]), compute)
        unit, decay = settings.unit_length, settings.weight_decay
        head = fresh_head(settings.head, width, classes=classes, unit_length=unit, seed=seed)
        rates = replace(rates, first_layer=math.sqrt(width) if unit else 1.0, head_decay=decay)
    tuner = Tuner(cutting, head, rates, compute, statistics=statistics, dropout=settings.dropout)
    if settings.batch_norm == "reestimate":
        with at_work(compute):
            plain = lesson.source.plain
            measured = blocks(for_statistics(lesson.learn))
            tuner.reestimate((plain(rows) for rows in measured), cutting.batch_norms())
            read = np.concatenate(
                [tuner.features(plain(rows)).cpu().numpy() for rows in blocks(lesson.learn)]
            )
        if settings.head == "ridge":
            labels, every = lesson.targets[lesson.learn], np.arange(len(lesson.learn))
            tuner.begin_with(_first(read, labels, every, classes, settings, criterion))
    return tuner


def answering(
    features: Features | None,
    targets: Int64[np.ndarray, " n"],
    rows: Int64[np.ndarray, " m"],
    classes: int,
    settings: TuneSettings,
    criterion: Criterion | None,
) -> Head:
    """The head of the frozen network, where nothing that was tuned is better."""
    assert features is not None, "this head needs the features of the frozen network"
    return answering_head(
        features[rows], targets[rows], classes=classes, balance=settings.balance, criterion=criterion
    )


def _first(
    features: Features | None,
    targets: Int64[np.ndarray, " n"],
    rows: Int64[np.ndarray, " m"],
    classes: int,
    settings: TuneSettings,
    criterion: Criterion | None,
) -> Head:
    """The head that a training starts from: less bold than one that answers."""
    assert features is not None, "a ridge head needs the features of the frozen network"
    return first_head(
        features[rows],
        targets[rows],
        classes=classes,
        balance=settings.balance,
        criterion=criterion,
        least_penalty=settings.start_penalty,
        temperature=settings.start_temperature,
    )


@torch.no_grad()
def _width(cutting: Cut, maps: Tensor, compute: Compute) -> int:
    """How many features the tail puts out."""
    tail = cutting.tail.to(compute.device).eval()
    with torch.autocast(compute.device, torch.bfloat16, enabled=compute.bf16):
        return int(tail(maps).shape[1])
