"""What the report says of shrinking: every step with its two gates, the curve, and one sentence.

In: all trials, those that shrinking made among them. Out: `extras["shrink"]`, a JSON-able record. The gates: is the score
within the tolerance of the best full-size candidate and not significantly lower (paired bootstrap), and is the model
really smaller or faster than what it was made from. Cost: a bootstrap per step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from graft.judging.metrics import METRICS
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
    steps = [dict(step) for step in _steps(frame, trials, reference, tolerance)]
    accepted = [step for step in steps if step["accepted"]]
    sign = METRICS[frame.settings.metric].sign
    by_name = {trial.recipe.name: trial for trial in trials}
    best = max([reference, *(by_name[step["id"]] for step in accepted)], key=lambda t: signed(frame, t))
    near = [step for step in accepted if sign * (score_of(frame, best) - step["score"]) <= tolerance]
    smallest = min(near, key=lambda step: step["bytes"], default=None)
    return {
        "metric": frame.settings.metric,
        "tolerance": tolerance,
        "reference": {
            "id": reference.recipe.name,
            "score": score_of(frame, reference),
            "bytes": reference.model_bytes,
            "latency_ms": reference.latency_ms,
        },
        "steps": steps,
        "smallest": None if smallest is None else smallest["id"],
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
        "sentence": _sentence(frame, best, smallest, len(steps), tolerance),
    }


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
        source = by_name.get(trial.about.get("shrunk", {}).get("from", ""), reference)
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


def _sentence(
    frame: Frame, reference: Trial, smallest: dict[str, Any] | None, steps: int, tolerance: float
) -> str:
    metric = METRICS[frame.settings.metric]
    full = f"{reference.recipe.name} ({megabytes(reference.model_bytes or 0)}, {metric.text(score_of(frame, reference))})"
    if smallest is None:
        return (
            f"None of {steps} smaller models comes within {metric.text(tolerance)} of {metric.label} of the best "
            f"full-size candidate, {full}, and is cheaper than what it was made from."
        )
    return (
        f"The smallest model within {metric.text(tolerance)} of {metric.label} of {full} is {smallest['id']}: "
        f"{megabytes(smallest['bytes'])}, {metric.text(smallest['score'])}."
    )


def score_of(frame: Frame, trial: Trial) -> float:
    """The study's metric of a trial."""
    return METRICS[frame.settings.metric].sign * signed(frame, trial)


def signed(frame: Frame, trial: Trial) -> float:
    """The score, higher is better."""
    return criterion(frame.settings.metric)(trial.probabilities, frame.targets)


def full_size(trial: Trial) -> bool:
    """Whether it is a candidate that shrinking has not made."""
    return (
        trial.recipe.strategy not in ("shrunk", "random") and trial.complete and trial.model_bytes is not None
    )
