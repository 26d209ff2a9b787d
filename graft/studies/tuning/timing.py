"""How long a fine-tuning will take on this machine: a few steps, timed.

In: an `Option` and its cut network. Out: its `Cost` as measured. It predicts, and decides nothing: what is tried is
planned without a clock. Cost: up to five training steps, three batches of views and two of answers, of each at least one
and, beyond it, no more than a second's worth.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from graft.images.pixels import open_pixels
from graft.studies.frame import Frame
from graft.studies.tuning.options import STATISTICS_PASSES, Cost, Option

if TYPE_CHECKING:
    from graft.learning.cutting import Cut
else:
    Cut = Any

STEPS, BATCHES = 4, 2
ENOUGH_SECONDS = 1.0  # of steps, of views, of answers: no further one is timed after that


def timed(frame: Frame, option: Option, cutting: Cut) -> Cost:
    """The seconds of an image in each of its parts, as measured."""
    import torch

    from graft.images.views import suited
    from graft.learning.finetune import rates_of
    from graft.learning.loop import at_work
    from graft.learning.prefix import LiveViews, strengthened
    from graft.learning.ridge import RidgeHead
    from graft.learning.tuner import Tuner

    rows = frame.rows[: option.settings.batch_size]
    pixels = open_pixels(frame.dataset, option.trial.recipe.geometry, store=frame.store)
    augmentation = strengthened(suited(pixels, frame.dataset.targets, rows), "light")
    source = LiveViews(pixels, augmentation, cutting, frame.compute)
    labels = torch.from_numpy(frame.dataset.targets[rows]).to(frame.compute.device)
    with at_work(frame.compute):
        maps = source.training(rows, torch.Generator().manual_seed(0))
        features = cutting.tail.to(frame.compute.device)(maps.float()).shape[1]
        zeros = np.zeros((features, frame.classes), np.float32)
        head = RidgeHead(zeros, zeros[0].copy(), 0.0, "none", 1.0, 0.0)
        tuner = Tuner(cutting, head, rates_of(option.settings), frame.compute, statistics=False)

        def step() -> None:
            tuner.learn(torch.nn.functional.cross_entropy(tuner.logits(maps), labels), total=100)

        step()
        stepped = _mean_seconds(step, most=STEPS)
        viewed = _mean_seconds(lambda: source.training(rows, torch.Generator().manual_seed(1)), most=BATCHES)
        asked = _mean_seconds(lambda: float(tuner.answers(maps).sum()), most=BATCHES)
    per = 1 / len(rows)
    kept = cutting.prefix is not None and option.settings.views
    train, predict, view = (stepped, asked, viewed) if kept else (stepped + viewed, asked + viewed / 4, 0.0)
    statistics = STATISTICS_PASSES * predict if cutting.batch_norms() else 0.0
    return Cost(train * per, predict * per, view * per, statistics * per, option.cost.heads)


def _mean_seconds(work: Callable[[], object], *, most: int) -> float:
    """The mean seconds of up to so many calls."""
    begun, count = time.monotonic(), 0
    while count < most and (not count or time.monotonic() - begun < ENOUGH_SECONDS):
        work()
        count += 1
    return (time.monotonic() - begun) / count
