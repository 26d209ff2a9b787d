"""What the report says of shrinking: every step with its two gates, the curve, and one sentence.

In: all trials, those that shrinking made among them. Out: `extras["shrink"]`, a JSON-able record. The gates: is the score
within the tolerance of the best full-size candidate and not significantly lower (paired bootstrap), and is the model
really smaller or faster than what it was made from. Cost: a bootstrap per step.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from graft.judging.metrics import METRICS, Metric
from graft.judging.uncertainty import draw_weights, paired
from graft.studies.choice import megabytes
from graft.studies.frame import Frame, Trial, criterion
from graft.studies.shrinking.variants import kind_of

LEAST_SMALLER, LEAST_FASTER = 0.97, 0.95  # of the bytes or of the latency of what a step was made from
DRAWS = 1_000


def told_of(frame: Frame, trials: Sequence[Trial], *, tolerance: float) -> dict[str, Any]:
    """`extras["shrink"]`: the steps with their gates, the curve, and one sentence."""
    reference = max(
        (t for t in trials if full_size(t)), key=lambda t: (signed(frame, t), -(t.model_bytes or 0))
    )
    told: dict[str, Any] = {
        "metric": frame.settings.metric,
        "tolerance": tolerance,
        "reference": {
            "id": reference.recipe.name,
            "score": score_of(frame, reference),
            "bytes": reference.model_bytes,
            "latency_ms": reference.latency_ms,
        },
        "steps": [dict(step) for step in _steps(frame, trials, reference, tolerance)],
        "curve": [
            {
                "id": trial.recipe.name,
                "score": score_of(frame, trial),
                "bytes": trial.model_bytes,
                "latency_ms": trial.latency_ms,
                "kind": kind_of(trial) or trial.recipe.strategy,
            }
            for trial in sorted(trials, key=lambda t: t.model_bytes or 0)
            if trial.complete and trial.model_bytes is not None and trial.recipe.strategy != "random"
        ],
    }
    smallest = smallest_of(told, within_tolerance(told))
    none = smallest["id"] == told["reference"]["id"]
    return {**told, "smallest": None if none else smallest["id"], "sentence": _sentence(told, smallest)}


def within_tolerance(told: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What may be handed over: points of the curve within the tolerance of the reference that passed their gates."""
    sign, floor = METRICS[told["metric"]].sign, told["reference"]["score"]
    refused = {step["id"] for step in told["steps"] if not step["accepted"]}
    return [
        point
        for point in told["curve"]
        if sign * (floor - point["score"]) <= told["tolerance"] and point["id"] not in refused
    ]


def smallest_of(told: Mapping[str, Any], points: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The smallest of `points`; where smaller models are better than the reference, the tolerance counts from the best of
    those that are no larger."""
    sign, most = METRICS[told["metric"]].sign, told["reference"]["bytes"]
    top = max(sign * point["score"] for point in within_tolerance(told) if point["bytes"] <= most)
    near = [point for point in points if top - sign * point["score"] <= told["tolerance"]]
    return min(near or points, key=lambda point: (point["bytes"], point["latency_ms"] or 0.0))


def _steps(
    frame: Frame, trials: Sequence[Trial], reference: Trial, tolerance: float
) -> Iterator[dict[str, Any]]:
    metric, by_name = METRICS[frame.settings.metric], {t.recipe.name: t for t in trials}
    draws = draw_weights(
        frame.targets, frame.dataset.groups[frame.rows], draws=DRAWS, seed=frame.settings.seed
    )
    for trial in trials:
        kind = kind_of(trial)
        if kind is None or not trial.complete:
            continue
        source = by_name.get(
            trial.about.get("shrunk", {}).get("from", ""), _enlarged(trial, trials) or reference
        )
        difference = paired(
            frame.settings.metric, trial.probabilities, reference.probabilities, frame.targets, draws
        )
        lost = -metric.sign * difference.estimate if metric.sign < 0 else -difference.estimate
        worse = difference.high < 0
        bytes_share = (trial.model_bytes or 0) / max(1, source.model_bytes or 1)
        time_share = (trial.latency_ms or 0.0) / max(1e-9, source.latency_ms or 1e-9)
        cheaper = bytes_share <= LEAST_SMALLER or time_share <= LEAST_FASTER
        reasons = []
        if lost > tolerance:
            reasons.append(f"it loses {metric.text(lost)} of {metric.label}, more than the tolerance")
        elif worse:
            reasons.append("it is significantly worse than the best full-size candidate")
        if not cheaper:
            reasons.append(
                f"it is neither smaller nor faster than {source.recipe.name} ({bytes_share:.0%} of the bytes, "
                f"{time_share:.0%} of the time)"
            )
        yield {
            "id": trial.recipe.name,
            "kind": kind,
            "from": source.recipe.name,
            "score": score_of(frame, trial),
            "difference": difference.estimate,
            "interval": [difference.low, difference.high],
            "bytes": trial.model_bytes,
            "bytes_share": round(bytes_share, 4),
            "latency_ms": trial.latency_ms,
            "latency_share": round(time_share, 4),
            "accepted": not reasons,
            "reason": " and ".join(reasons) or "within the tolerance, and cheaper",
        }


def _enlarged(trial: Trial, trials: Sequence[Trial]) -> Trial | None:
    """The same network read at the same tap, on pictures of full size."""
    return next(
        (
            other
            for other in trials
            if full_size(other)
            and other.recipe.strategy == trial.recipe.strategy
            and (other.recipe.backbone, other.recipe.tap, other.recipe.look)
            == (trial.recipe.backbone, trial.recipe.tap, trial.recipe.look)
            and replace(other.recipe.geometry, size=trial.recipe.geometry.size) == trial.recipe.geometry
        ),
        None,
    )


def _sentence(told: Mapping[str, Any], smallest: Mapping[str, Any]) -> str:
    metric = METRICS[told["metric"]]
    full, tolerance = told["reference"], metric.text(told["tolerance"])
    if smallest["id"] == full["id"]:
        if not told["steps"]:
            return "No smaller model was tried: there was no time for one."
        return (
            f"None of the smaller models that were tried comes within {tolerance} of {metric.label} of the best "
            f"full-size candidate, {_priced(metric, full)}, and is cheaper than what it was made from."
        )
    best = max(within_tolerance(told), key=lambda point: metric.sign * point["score"])
    if best["id"] == smallest["id"]:
        return f"{_priced(metric, best)} is better than the best full-size candidate, {_priced(metric, full)}, and smaller."
    return (
        f"The smallest model within {tolerance} of {metric.label} of {_priced(metric, best)} is "
        f"{_priced(metric, smallest)}."
    )


def _priced(metric: Metric, point: Mapping[str, Any]) -> str:
    return f"{point['id']} ({megabytes(point['bytes'] or 0)}, {metric.text(point['score'])})"


def score_of(frame: Frame, trial: Trial) -> float:
    """The study's metric of a trial."""
    return METRICS[frame.settings.metric].sign * signed(frame, trial)


def signed(frame: Frame, trial: Trial) -> float:
    """The score, higher is better."""
    return criterion(frame.settings.metric)(trial.probabilities, frame.targets)


def full_size(trial: Trial) -> bool:
    """Whether it is a candidate that shrinking has not made."""
    made = trial.recipe.strategy == "random" or kind_of(trial) is not None
    return not made and trial.complete and trial.model_bytes is not None
