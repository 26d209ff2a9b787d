"""What to expect of subjects never seen before, where many images show the same one.

A set made of series (several exposures or views of each part, patient or scene) has two honest scores. With only
near-duplicates kept together, other views of a held-out subject may be learned from: the score for subjects like these
that come back. With whole series kept together: the score for new ones, often far lower. The study leads with the
first (or with `--groups series` with the second) and always tells the second for its choice.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from graft.errors import DatasetError
from graft.images.dataset import Dataset
from graft.images.folds import split
from graft.judging.metrics import METRICS
from graft.judging.uncertainty import draw_weights, estimate
from graft.learning import frozen_head
from graft.studies.frame import Frame, criterion


def kept_together(dataset: Dataset, *, groups: str) -> Dataset:
    """The dataset with whole series as groups, if that was asked for and there are any."""
    if groups == "series" and dataset.series is not None:
        return replace(dataset, groups=dataset.series)
    return dataset


def about_series(dataset: Dataset) -> str | None:
    """A sentence on the series of a dataset, or None if there are none."""
    if dataset.series is None:
        return None
    sizes = np.bincount(dataset.series)
    shown = int(sizes[sizes >= 3].sum())
    return (
        f"{shown} of {len(dataset)} images come in {int((sizes >= 3).sum())} series that show the same subject (such as "
        "several exposures). A model may know a held-out image from other views of it; --groups series keeps whole "
        "series on one side."
    )


def new_subjects(frame: Frame, features: np.ndarray, *, name: str) -> dict[str, Any] | None:
    """The leading metric of a head on these features (a row per image) with whole series held out together."""
    dataset = frame.dataset
    if dataset.series is None or frame.settings.groups == "series":
        return None
    rows = frame.rows
    apart = _development(dataset, rows)
    try:
        folds = split(apart, count=frame.folds.count, seed=frame.settings.seed)
    except DatasetError:
        return None
    probabilities = np.zeros((len(rows), frame.classes), np.float32)
    metric = METRICS[frame.settings.metric]
    with threadpool_limits(1):
        for fold in np.unique(folds.assignment):
            learned = folds.assignment != fold
            head = frozen_head.fit(
                features[rows[learned]],
                apart.targets[learned],
                classes=frame.classes,
                criterion=criterion(metric.name),
            )
            probabilities[~learned] = head.probabilities(features[rows[~learned]])
    draws = draw_weights(apart.targets, apart.groups, draws=1000, seed=frame.settings.seed)
    found = estimate(metric.name, probabilities, apart.targets, apart.groups, draws)
    return {
        "id": name,
        metric.name: found.value,
        "interval": [found.low, found.high],
        "series": len(np.unique(apart.groups)),
        "sentence": (
            f"For subjects never photographed before expect {metric.text(found.value)} {metric.label} (95 % interval "
            f"{metric.text(found.low)} to {metric.text(found.high)}, {name}, whole series held out); the other figures "
            "hold for new images of subjects like those at hand."
        ),
    }


def _development(dataset: Dataset, rows: np.ndarray) -> Dataset:
    """The development images alone, whole series as groups, as if they were all there is."""
    assert dataset.series is not None
    return replace(
        dataset,
        images=tuple(dataset.images[row] for row in rows),
        targets=dataset.targets[rows],
        groups=dataset.series[rows],
        splits=tuple("train" for _ in rows),
        widths=dataset.widths[rows],
        heights=dataset.heights[rows],
        grey=dataset.grey[rows],
        series=None,
    )
