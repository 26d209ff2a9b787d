"""Which photos the page shows: the worst mistakes and a few of every class.

In: the out-of-fold predictions of the choice. Out: names of images with what was said about them, always the same
ones for the same predictions.

Not covered: images that no fold judged (the locked test set, files left out).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from graft.report.reading import Predictions

MISTAKES = 24
SAMPLES = 120


@dataclass(frozen=True, slots=True)
class Mistake:
    """An image that was put into the wrong class with `confidence` (0 to 1)."""

    file: str
    label: str
    predicted: str
    confidence: float


def worst_mistakes(predictions: Predictions) -> list[Mistake]:
    """The most confident wrong predictions, at most 24."""
    rows = np.arange(len(predictions.labels))
    confidence = predictions.probabilities[rows, predictions.predicted]
    missed = np.flatnonzero(predictions.labels != predictions.predicted)
    worst = missed[np.argsort(-confidence[missed], kind="stable")][:MISTAKES]
    return [
        Mistake(
            file=predictions.files[row],
            label=predictions.classes[predictions.labels[row]],
            predicted=predictions.classes[predictions.predicted[row]],
            confidence=float(confidence[row]),
        )
        for row in worst
    ]


def wrong(predictions: Predictions) -> int:
    """How many images were put into a wrong class."""
    return int((predictions.labels != predictions.predicted).sum())


def samples(predictions: Predictions) -> dict[str, list[str]]:
    """Images of each class, evenly spaced by name: eight of up to four classes, four of more, one of very many.

    120 images at most, so of more than 120 classes only the first have one.
    """
    k = len(predictions.classes)
    each = 8 if k <= 4 else max(1, min(4, SAMPLES // k))
    chosen = {}
    for index, name in enumerate(predictions.classes[:SAMPLES]):
        files = sorted(predictions.files[row] for row in np.flatnonzero(predictions.labels == index))
        if files:
            places = np.linspace(0, len(files) - 1, min(each, len(files))).round().astype(int)
            chosen[name] = [files[place] for place in places]
    return chosen


def confusion(predictions: Predictions) -> list[list[int]]:
    """Counts of (label, predicted), rows the labels."""
    k = len(predictions.classes)
    cells = predictions.labels * k + predictions.predicted
    return np.bincount(cells, minlength=k * k).reshape(k, k).tolist()
