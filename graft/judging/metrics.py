"""How good a table of probabilities is, as named numbers.

In: probabilities `[n, k]` (out of fold, so no image was seen in training) and the true classes `[n]`. Out: every
metric of the study (`scores`), the table by class (`per_class`) and the confusion matrix. `METRICS` holds those that
may lead a study. Everything equals scikit-learn's functions and is written here only because those want one call per
class: AUROC and average precision of 102 classes and 1,616 images take 43 ms together instead of 610 ms (2 busy
cores), and the first answer need not wait for scikit-learn's import.

A decision is the class of the highest probability; ties go to the lowest index. Averages over classes ("macro") run
over the classes that occur in the targets. Not covered: several labels per image, regression, thresholds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float64, Int, Int64

SUM_TOLERANCE = 1e-3
MOST_BINS = 15
LEAST_PER_BIN = 20
BLOCK_CELLS = 2**21

Counts = Float[np.ndarray, "b k"]


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric that may lead a study: `name` as in `--metric`, `label` for headings, `bounds` of its values.

    `from_decisions`: it looks only at the decided classes, not at the probabilities; it is then shown in percent.
    """

    name: str
    label: str
    higher_is_better: bool
    from_decisions: bool
    bounds: tuple[float, float]

    @property
    def sign(self) -> int:
        """1 where higher is better, else -1: `sign * value` is always to be maximised."""
        return 1 if self.higher_is_better else -1

    def text(self, value: float) -> str:
        """The value for a reader: `97.2 %`, or `0.113` for a loss."""
        return f"{100 * value:.1f} %" if self.from_decisions else f"{value:.3f}"

    def difference_text(self, difference: float) -> str:
        """A difference for a reader: `+1.2 points`, or `+0.012` for a loss."""
        shown = round(100 * difference, 1) if self.from_decisions else round(difference, 3)
        shown += 0.0  # of a negative zero a plain one
        return f"{shown:+.1f} points" if self.from_decisions else f"{shown:+.3f}"


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("macro_f1", "macro-F1", True, True, (0.0, 1.0)),
        Metric("accuracy", "accuracy", True, True, (0.0, 1.0)),
        Metric("balanced_accuracy", "balanced accuracy", True, True, (0.0, 1.0)),
        Metric("weighted_f1", "weighted F1", True, True, (0.0, 1.0)),
        Metric("log_loss", "log loss", False, False, (0.0, float("inf"))),
        Metric("brier", "Brier score", False, False, (0.0, 1.0)),
    )
}


def scores(probabilities: Float[np.ndarray, "n k"], targets: Int[np.ndarray, " n"]) -> dict[str, float]:
    """Every metric by name; a metric that is undefined (AUROC when all images are of one class) has no entry.

    Names: `log_loss`, `brier`, `accuracy`, `balanced_accuracy`, `macro_f1`, `weighted_f1`, `auroc`,
    `average_precision`, `calibration_error`. The last three are explained at `ranking` and `calibration_error`, the
    others at `row_losses` and `from_counts`. Raises ValueError for an empty table, a NaN, a negative number, a row
    that does not sum to 1 within 0.001, or a target outside `0..k-1`.
    """
    return dict(_scores(probabilities, targets))


def _scores(
    probabilities: Float[np.ndarray, "n k"], targets: Int[np.ndarray, " n"]
) -> Iterator[tuple[str, float]]:
    checked(probabilities, targets)
    for name in ("log_loss", "brier"):
        yield name, float(row_losses(name, probabilities, targets).mean())
    hits, predicted, support = (part[None].astype(np.float64) for part in _counts(probabilities, targets))
    for name in ("accuracy", "balanced_accuracy", "macro_f1", "weighted_f1"):
        yield name, float(from_counts(name, hits, predicted, support)[0])
    auroc, precision = ranking(probabilities, targets)
    if np.isfinite(auroc).any():
        yield "auroc", float(np.nanmean(auroc))
    yield "average_precision", float(np.nanmean(precision))
    yield "calibration_error", calibration_error(probabilities, targets)


def checked(probabilities: Float[np.ndarray, "n k"], targets: Int[np.ndarray, " n"]) -> None:
    """Raise ValueError unless each row is a distribution (sum within 0.001 of 1) and each target one of its classes."""
    rows, classes = probabilities.shape
    if len(targets) != rows or rows == 0 or classes == 0:
        raise ValueError(f"probabilities {probabilities.shape} do not belong to {len(targets)} targets")
    if not np.isfinite(probabilities).all() or probabilities.min() < 0:
        row = int(np.flatnonzero(~(probabilities >= 0).all(1) | ~np.isfinite(probabilities).all(1))[0])
        raise ValueError(
            f"row {row} of the probabilities holds a negative number or none: {probabilities[row]}"
        )
    sums = probabilities.sum(axis=1, dtype=np.float64)
    if np.abs(sums - 1).max() > SUM_TOLERANCE:
        row = int(np.abs(sums - 1).argmax())
        raise ValueError(f"row {row} of the probabilities sums to {sums[row]:.6f} instead of 1")
    if targets.min() < 0 or targets.max() >= classes:
        raise ValueError(
            f"targets run from {targets.min()} to {targets.max()}, but there are {classes} classes"
        )


def decisions(probabilities: Float[np.ndarray, "n k"]) -> Int64[np.ndarray, " n"]:
    """The class of the highest probability per row; of equal ones the lowest index."""
    return probabilities.argmax(axis=1).astype(np.int64)


def confusion(
    probabilities: Float[np.ndarray, "n k"], targets: Int[np.ndarray, " n"], k: int
) -> Int64[np.ndarray, "k k"]:
    """How often class `row` was decided to be class `column` (rows: truth). Raises ValueError as `scores` does."""
    checked(probabilities, targets)
    if probabilities.shape[1] != k:
        raise ValueError(f"the probabilities have {probabilities.shape[1]} columns, not {k}")
    cells = targets.astype(np.int64) * k + decisions(probabilities)
    return np.bincount(cells, minlength=k * k).reshape(k, k).astype(np.int64)


def per_class(
    probabilities: Float[np.ndarray, "n k"], targets: Int[np.ndarray, " n"], classes: Sequence[str]
) -> list[dict[str, Any]]:
    """A row per class: `class`, `precision`, `recall`, `f1`, `support`, `auroc`.

    A ratio without a denominator is 0, as in scikit-learn with `zero_division=0`; `auroc` (this class against all
    others) is None where all or none of the images are of the class. Raises ValueError as `scores` does.
    """
    checked(probabilities, targets)
    if len(classes) != probabilities.shape[1]:
        raise ValueError(f"{len(classes)} class names for {probabilities.shape[1]} columns of probabilities")
    hits, predicted, support = _counts(probabilities, targets)
    auroc, _ = ranking(probabilities, targets)
    return [
        {
            "class": name,
            "precision": float(hits[c] / max(predicted[c], 1)),
            "recall": float(hits[c] / max(support[c], 1)),
            "f1": float(2 * hits[c] / max(predicted[c] + support[c], 1)),
            "support": int(support[c]),
            "auroc": None if np.isnan(auroc[c]) else float(auroc[c]),
        }
        for c, name in enumerate(classes)
    ]


def from_counts(name: str, hits: Counts, predicted: Counts, support: Counts) -> Float64[np.ndarray, " b"]:
    """A metric of decisions from three (possibly weighted) counts per class, one row per draw: right, decided, true.

    With recall `r = hits / support` and `F1 = 2 hits / (predicted + support)`: `accuracy` is the share of right
    decisions, `balanced_accuracy` the mean of r, `macro_f1` the mean of F1, `weighted_f1` the mean of F1 weighted by
    support; the means run over the classes with support, as scikit-learn's do with `labels=unique(targets)`.
    NaN where there is no support at all.
    """
    hits, predicted, support = (part.astype(np.float64, copy=False) for part in (hits, predicted, support))
    present = support > 0
    everything = support.sum(axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        if name == "accuracy":
            return hits.sum(axis=-1) / everything
        if name == "balanced_accuracy":
            return np.where(present, hits / support, 0.0).sum(axis=-1) / present.sum(axis=-1)
        f1 = np.where(present, 2 * hits / (predicted + support), 0.0)
        if name == "macro_f1":
            return f1.sum(axis=-1) / present.sum(axis=-1)
        if name == "weighted_f1":
            return (f1 * support).sum(axis=-1) / everything
    raise ValueError(f"{name} is not a metric of decisions")


def row_losses(
    name: str, probabilities: Float[np.ndarray, "n k"], targets: Int[np.ndarray, " n"]
) -> Float64[np.ndarray, " n"]:
    """The loss of each row, whose mean is the metric.

    `log_loss`: minus the natural logarithm of the true class's probability, which counts as at least 2.2e-16 (as in
    scikit-learn). `brier`: half the squared distance to the one-hot truth, within 0..1 (Brier 1950; halved, so that
    two classes give the squared error of one probability).
    """
    table = probabilities.astype(np.float64)
    rows = np.arange(len(targets))
    if name == "log_loss":
        return -np.log(np.clip(table[rows, targets], np.finfo(np.float64).eps, 1.0))
    if name == "brier":
        table[rows, targets] -= 1
        return (table**2).sum(axis=1) / 2
    raise ValueError(f"{name} is not a mean of losses")


def influence(
    name: str, probabilities: Float[np.ndarray, "n k"], targets: Int[np.ndarray, " n"]
) -> Float64[np.ndarray, " n"]:
    """The derivative of a leading metric by each image's weight, but for a factor that all images share."""
    if not METRICS[name].from_decisions:
        losses = row_losses(name, probabilities, targets)
        return losses - losses.mean()
    decided = decisions(probabilities)
    right = (decided == targets).astype(np.float64)
    support = np.bincount(targets, minlength=probabilities.shape[1]).astype(np.float64)
    present = np.maximum(support, 1)
    hits = np.bincount(targets, weights=right, minlength=len(support))
    if name == "accuracy":
        return right - right.mean()
    if name == "balanced_accuracy":
        return (right - (hits / present)[targets]) / present[targets]
    both = np.maximum(support + np.bincount(decided, minlength=len(support)), 1)
    f1 = 2 * hits / both
    share = support / len(targets) if name == "weighted_f1" else (support > 0) / (support > 0).sum()
    slope = share / both
    own = 2 * right * slope[targets] - (f1 * slope)[targets] - (f1 * slope)[decided]
    return own + (f1[targets] - (f1 * share).sum()) / len(targets) * (name == "weighted_f1")


def calibration_error(probabilities: Float[np.ndarray, "n k"], targets: Int[np.ndarray, " n"]) -> float:
    """Mean gap between confidence and accuracy over bins that hold equally many images, 0..1.

    Top-label expected calibration error (Guo et al. 2017) with equal-mass bins (Nguyen and O'Connor 2015), which are
    less biased than equal-width ones (Roelofs et al. 2022): up to 15 bins of at least 20 images; equal confidences
    share a bin.
    """
    confidence = probabilities.max(axis=1).astype(np.float64)
    right = decisions(probabilities) == targets
    rows = len(targets)
    bins = int(np.clip(rows // LEAST_PER_BIN, 1, MOST_BINS))
    rank = np.searchsorted(np.sort(confidence), confidence, side="left")
    gap = np.bincount(rank * bins // rows, weights=confidence - right, minlength=bins)
    return float(np.abs(gap).sum() / rows)


def ranking(
    probabilities: Float[np.ndarray, "n k"], targets: Int[np.ndarray, " n"]
) -> tuple[Float64[np.ndarray, " k"], Float64[np.ndarray, " k"]]:
    """AUROC and average precision of each class against all others, by its own column of probabilities.

    AUROC is the chance that an image of the class ranks above one of another class, ties counting half (Hanley and
    McNeil 1982); average precision is the sum of precision times the step in recall, without interpolation, as in
    scikit-learn. NaN for a class that no image has, and for the AUROC of one that all images have; macro averages
    leave these out.
    """
    classes = probabilities.shape[1]
    width = max(1, BLOCK_CELLS // len(targets))
    blocks = [
        _rank_columns(probabilities[:, start : start + width], targets, start)
        for start in range(0, classes, width)
    ]
    return np.concatenate([block[0] for block in blocks]), np.concatenate([block[1] for block in blocks])


def _rank_columns(
    columns: Float[np.ndarray, "n c"], targets: Int[np.ndarray, " n"], start: int
) -> tuple[Float64[np.ndarray, " c"], Float64[np.ndarray, " c"]]:
    """AUROC and average precision of the classes `start, start + 1, ...`, one per column."""
    order = np.argsort(-columns, axis=0, kind="stable")
    ordered = np.take_along_axis(columns, order, axis=0)
    positive = targets[order] == start + np.arange(columns.shape[1])
    first, last = _tie_blocks(ordered)
    found = np.cumsum(positive, axis=0)
    found_after = np.take_along_axis(found, last, axis=0)
    found_before = np.take_along_axis(found - positive, first, axis=0)
    positives = found[-1].astype(np.float64)
    negatives = len(targets) - positives
    not_beaten = ((last + 1 - found_after) + (first - found_before)) / 2
    with np.errstate(invalid="ignore", divide="ignore"):
        auroc = (positive * (negatives - not_beaten)).sum(axis=0) / (positives * negatives)
        precision = (positive * (found_after / (last + 1))).sum(axis=0) / positives
    return auroc, precision


def _tie_blocks(
    ordered: Float[np.ndarray, "n c"],
) -> tuple[Int64[np.ndarray, "n c"], Int64[np.ndarray, "n c"]]:
    """For each row of each sorted column, the first and the last row with the same value."""
    rows = len(ordered)
    index = np.arange(rows, dtype=np.int64)[:, None]
    changes: Bool[np.ndarray, "m c"] = ordered[1:] != ordered[:-1]
    edge = np.ones((1, ordered.shape[1]), dtype=bool)
    first = np.maximum.accumulate(np.where(np.concatenate([edge, changes]), index, 0), axis=0)
    last = np.minimum.accumulate(np.where(np.concatenate([changes, edge]), index, rows)[::-1], axis=0)[::-1]
    return first, last


def _counts(
    probabilities: Float[np.ndarray, "n k"], targets: Int[np.ndarray, " n"]
) -> tuple[Int64[np.ndarray, " k"], Int64[np.ndarray, " k"], Int64[np.ndarray, " k"]]:
    """Right, decided and true images per class."""
    classes = probabilities.shape[1]
    decided = decisions(probabilities)
    hits = np.bincount(targets[decided == targets], minlength=classes)
    predicted, support = np.bincount(decided, minlength=classes), np.bincount(targets, minlength=classes)
    return hits.astype(np.int64), predicted.astype(np.int64), support.astype(np.int64)
