"""Where to draw the line between two classes: the probability from which on the rarer one is the answer.

In: out-of-fold probabilities of the choice. Out: a `Threshold` with the score of the study's metric by it and by the more
probable class (the usual 0.5). The threshold is the middle of the widest range in which the metric, as a step function
of the threshold, is highest; a range that holds 0.5 gives 0.5, and of several ranges the one nearest to 0.5 wins.

A threshold scored on the images it was found on looks better than it is. So the score is nested: the threshold of every
fold is found on the other folds. It is adopted only if the 95 % interval of the nested gain (paired bootstrap) lies above
zero as a whole: otherwise the bundle goes on giving the more probable class, which needs no explanation.

Cost: a sort per fold. Not covered: more than two classes, metrics that look at probabilities (a threshold changes none of
them), and fewer than 20 images of a class.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, Float64, Int, Int64

from graft.judging.metrics import METRICS, confusion, from_counts, per_class, scores
from graft.judging.uncertainty import Difference, Estimate, draw_weights, estimate, paired
from graft.studies.frame import Frame, Trial

LEAST_IMAGES = 20  # of each class
DRAWS = 2_000
EVEN = 0.5
BY_DECISION = ("macro_f1", "accuracy", "balanced_accuracy", "weighted_f1")


@dataclass(frozen=True, slots=True)
class Threshold:
    """Column `column` is the answer from the probability `value` on; `folds` were found without each fold.

    `usual` and `nested` are the scores by the more probable class and by the thresholds of the other folds.
    """

    metric: str
    column: int
    value: float
    folds: tuple[float, ...]
    usual: Estimate
    nested: Estimate
    gain: Difference

    @property
    def adopted(self) -> bool:
        """Whether it is better beyond doubt."""
        return self.gain.low > 0 and self.value != EVEN


def threshold_of(frame: Frame, trial: Trial) -> Threshold | None:
    """The threshold of a trial; None where there is none to look for (see above)."""
    if frame.classes != 2 or not trial.complete:
        return None
    return found(
        trial.probabilities,
        frame.targets,
        frame.folds.assignment[frame.rows],
        frame.dataset.groups[frame.rows],
        metric=frame.settings.metric,
        seed=frame.settings.seed,
    )


def found(
    probabilities: Float32[np.ndarray, "n 2"],
    targets: Int64[np.ndarray, " n"],
    folds: Int[np.ndarray, " n"],
    groups: Int64[np.ndarray, " n"],
    *,
    metric: str,
    seed: int,
) -> Threshold | None:
    """The threshold for these out-of-fold probabilities; None for metrics of probabilities and too few images."""
    counts = np.bincount(targets, minlength=2)
    if not METRICS[metric].from_decisions or counts.min() < LEAST_IMAGES:
        return None
    column = int(counts[1] <= counts[0])  # the rarer class; of equal ones the second
    rare, is_rare = probabilities[:, column], targets == column
    nested = np.empty_like(probabilities)
    values = []
    for fold in np.unique(folds):
        held = folds == fold
        values.append(best_threshold(rare[~held], is_rare[~held].astype(np.int64), metric=metric))
        nested[held] = decided(probabilities[held], column, values[-1])
    draws = draw_weights(targets, groups, draws=DRAWS, seed=seed)
    plain = decided(probabilities, 0, None)
    return Threshold(
        metric,
        column,
        best_threshold(rare, is_rare.astype(np.int64), metric=metric),
        tuple(values),
        estimate(metric, plain, targets, groups, draws),
        estimate(metric, nested, targets, groups, draws),
        paired(metric, nested, plain, targets, draws),
    )


def best_threshold(
    probabilities: Float[np.ndarray, " n"], targets: Int64[np.ndarray, " n"], *, metric: str
) -> float:
    """The middle of the best range of thresholds, 0..1; class 1 is decided from there on."""
    steps, at = np.unique(probabilities.astype(np.float64), return_inverse=True)
    edges = np.concatenate([[0.0], steps, [1.0]])  # thresholds in (edges[i], edges[i + 1]] decide alike
    values = _by_step(np.bincount(at, targets), np.bincount(at, 1 - targets), metric)
    if steps[-1] >= 1:
        values[-1] = -np.inf  # no threshold keeps a certain image out
    good = values >= values.max() - 1e-12
    begins = np.flatnonzero(good & ~np.concatenate([[False], good[:-1]]))
    ends = np.flatnonzero(good & ~np.concatenate([good[1:], [False]])) + 1
    ranges = [(float(edges[begin]), float(edges[end])) for begin, end in zip(begins, ends, strict=True)]
    if any(low < EVEN <= high for low, high in ranges):
        return EVEN
    return min(((low + high) / 2 for low, high in ranges), key=lambda middle: abs(middle - EVEN))


def _by_step(
    positives: Float64[np.ndarray, " s"], negatives: Float64[np.ndarray, " s"], metric: str
) -> Float64[np.ndarray, " t"]:
    """The metric with everything from step i on decided as class 1, for i from 0 (all) to s (none)."""
    below = [np.concatenate([[0.0], np.cumsum(part)]) for part in (negatives, positives)]
    negative, positive = (part[-1] for part in below)
    hits = np.stack([below[0], positive - below[1]], axis=1)
    predicted = np.stack([below[0] + below[1], positive + negative - below[0] - below[1]], axis=1)
    support = np.broadcast_to([negative, positive], hits.shape).astype(np.float64)
    return from_counts(metric, hits, predicted, support)


def decided(
    probabilities: Float32[np.ndarray, "n 2"], column: int, threshold: float | None
) -> Float32[np.ndarray, "n 2"]:
    """The decisions as certain probabilities: by the threshold, or for the more probable class where it is None."""
    if threshold is None:
        answers = probabilities.argmax(axis=1)
    else:
        answers = np.where(probabilities[:, column] >= threshold, column, 1 - column)
    return np.eye(2, dtype=np.float32)[answers]


def adopted_thresholds(frame: Frame, trial: Trial) -> dict[str, float] | None:
    """`thresholds` of the trial's bundle: `{label: probability from which on it is the answer}`, or None."""
    rule = threshold_of(frame, trial)
    if rule is None or not rule.adopted:
        return None
    return {frame.dataset.classes[rule.column]: rule.value}


def threshold_facts(
    frame: Frame, trial: Trial, tested: Float32[np.ndarray, "t k"] | None
) -> dict[str, Any] | None:
    """`choice.threshold` of `study.json`; `test`: the locked test by an adopted threshold."""
    rule = threshold_of(frame, trial)
    if rule is None:
        return None
    label = frame.dataset.classes[rule.column]
    return {
        "label": label,
        "threshold": rule.value,
        "adopted": rule.adopted,
        "metric": rule.metric,
        "folds": list(rule.folds),
        "usual": {"score": rule.usual.value, "interval": [rule.usual.low, rule.usual.high]},
        "nested": {"score": rule.nested.value, "interval": [rule.nested.low, rule.nested.high]},
        "difference": rule.gain.estimate,
        "difference_interval": [rule.gain.low, rule.gain.high],
        "test": _tested(frame, rule, tested) if tested is not None and rule.adopted else None,
        "sentence": sentence(rule, label),
    }


def _tested(frame: Frame, rule: Threshold, tested: Float32[np.ndarray, "t k"]) -> dict[str, Any]:
    targets, groups = frame.dataset.targets[frame.test_rows], frame.dataset.groups[frame.test_rows]
    draws = draw_weights(targets, groups, draws=DRAWS, seed=frame.settings.seed)
    answers = decided(tested, rule.column, rule.value)
    found_scores = scores(answers, targets)
    intervals = {name: estimate(name, answers, targets, groups, draws) for name in BY_DECISION}
    return {
        "images": len(targets),
        "metrics": {name: found_scores[name] for name in BY_DECISION if name in found_scores},
        "interval": {name: [one.low, one.high] for name, one in intervals.items()},
        "per_class": _without_ranking(per_class(answers, targets, frame.dataset.classes)),
        "confusion": confusion(answers, targets, 2).tolist(),
    }


def _without_ranking(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Decisions cannot be ranked."""
    return [{name: value for name, value in row.items() if name != "auroc"} for row in rows]


def sentence(rule: Threshold, label: str) -> str:
    """What the threshold is worth, for people."""
    shown = METRICS[rule.metric]
    span = f"{shown.difference_text(rule.gain.low)} to {shown.difference_text(rule.gain.high)}"
    worth = (
        f"{shown.label} {shown.text(rule.nested.value)} instead of {shown.text(rule.usual.value)} "
        f"({shown.difference_text(rule.gain.estimate)}, 95 % interval {span}; each fold by the threshold of the others)"
    )
    if rule.adopted:
        return (
            f"{label} is the answer from a probability of {rule.value:.2f} on, not only where it is the more probable "
            f"class: {worth}."
        )
    if rule.value == EVEN:
        return (
            f"The more probable class is the answer: no other threshold does better on all images ({worth})."
        )
    verdict = "does worse on the other folds" if rule.gain.high < 0 else "is not better beyond doubt"
    return f"The more probable class is the answer: the best threshold for {label}, {rule.value:.2f}, {verdict} ({worth})."
