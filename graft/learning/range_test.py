"""The learning rate found by a range test (Smith 2017, arXiv 1506.01186), on the rows to learn from alone.

In: what a training would begin with. Out: the trunk's rate (the head's scales with it) and the curve it was read from.
The rate grows from step to step, a thousandth to a thousand times the default, until the smoothed loss is `WORSE` times
its lowest; a tenth of the rate at which it was lowest is taken, but no more than `FARTHEST` times the default or that
part of it: a few noisy steps must not choose a rate that no training survives. The weights tried are thrown away.

Cost: at most `STEPS` steps of training. Not covered: momentum.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from graft.compute import Compute
from graft.learning.cutting import Cut
from graft.learning.lessons import Lesson, batches, lesson_of, loss_of
from graft.learning.loop import at_work
from graft.learning.prefix import Source
from graft.learning.ridge import Criterion
from graft.learning.starting import start
from graft.learning.tune_settings import TuneSettings

STEPS = 60
SPAN = 1_000.0  # the first rate is the default divided by this, the last the default times this
SMOOTH = 0.8  # of the smoothed loss is kept at each step
WORSE = 3.0
FARTHEST = 20.0
SEED = 77


@dataclass(frozen=True, slots=True)
class Found:
    """`rate`: of the trunk, or of the head where nothing else learns; `rates`, `losses`: the curve, smoothed."""

    rate: float
    rates: tuple[float, ...]
    losses: tuple[float, ...]


def with_rate(settings: TuneSettings, rate: float, *, default: TuneSettings) -> TuneSettings:
    """The settings with the trunk's rate; the head's is as many times larger or smaller as by default.

    Where the whole network is frozen (`settings.cut` is the tap, so that `trunk_rate` is 0), `rate` is the head's.
    """
    if default.trunk_rate == 0:
        return replace(settings, head_rate=rate)
    return replace(settings, trunk_rate=rate, head_rate=default.head_rate * rate / default.trunk_rate)


def leading_rate(settings: TuneSettings) -> float:
    """The trunk's rate, or the head's where nothing else learns."""
    return settings.trunk_rate or settings.head_rate


def find_rate(
    cutting: Cut,
    source: Source,
    targets: Int64[np.ndarray, " n"],
    rows: Int64[np.ndarray, " m"],
    *,
    groups: Int64[np.ndarray, " n"],
    features: Float[np.ndarray, "n d"] | None,
    classes: int,
    settings: TuneSettings,
    compute: Compute,
    seed: int,
    criterion: Criterion | None,
) -> Found:
    """Test the rates around those of `settings`; only `rows` are read, and of them not the part that is kept back."""
    lesson = lesson_of(source, targets, rows, groups=groups, classes=classes, settings=settings, seed=seed)
    tuner = start(cutting, lesson, features, classes, settings, compute, criterion, seed=seed)
    generator = torch.Generator().manual_seed(seed * 1_000_003 + SEED)
    shares = np.geomspace(1 / SPAN, SPAN, STEPS)
    smooth, lowest = 0.0, math.inf
    tried: list[float] = []
    losses: list[float] = []
    with at_work(compute):
        for step, (share, (maps, labels)) in enumerate(
            zip(shares, _endless(lesson, settings, generator), strict=False), start=1
        ):
            loss = loss_of(tuner, maps, labels, lesson, settings, generator)
            value = float(loss.detach())
            if not math.isfinite(value):
                break
            smooth = SMOOTH * smooth + (1 - SMOOTH) * value
            tried.append(float(share) * leading_rate(settings))
            losses.append(smooth / (1 - SMOOTH**step))
            lowest = min(lowest, losses[-1])
            if losses[-1] > WORSE * lowest:
                break
            tuner.learn_at(loss, share=float(share))
    return Found(_chosen(tried, losses, leading_rate(settings)), tuple(tried), tuple(losses))


def _chosen(tried: list[float], losses: list[float], default: float) -> float:
    if not losses:
        return default / FARTHEST
    rate = tried[int(np.argmin(losses))] / 10
    return float(np.clip(rate, default / FARTHEST, default * FARTHEST))


def _endless(
    lesson: Lesson, settings: TuneSettings, generator: torch.Generator
) -> Iterator[tuple[Tensor, Int64[Tensor, " b"]]]:
    while True:
        yield from batches(lesson, settings, generator)
