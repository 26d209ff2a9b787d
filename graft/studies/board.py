"""The leaderboard of a study so far."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from graft.judging.metrics import METRICS
from graft.studies.frame import Frame, Trial, criterion


def board(frame: Frame, trials: Sequence[Trial]) -> tuple[dict[str, Any], ...]:
    """The leaderboard so far: the best tap of each backbone, by the leading metric."""
    metric = METRICS[frame.settings.metric]
    score = criterion(metric.name)
    rows: dict[str, dict[str, Any]] = {}
    for trial in trials:
        if not trial.complete:
            continue
        value = score(trial.probabilities, frame.targets)
        key = trial.recipe.backbone + trial.recipe.strategy
        if key not in rows or value > rows[key]["rank"]:
            rows[key] = {
                "rank": value,
                "id": trial.recipe.name,
                "strategy": trial.recipe.strategy,
                "score": metric.sign * value,
                "text": metric.text(metric.sign * value),
                "accuracy": _accuracy(trial, frame),
                "bytes": trial.model_bytes,
                "latency_ms": trial.latency_ms,
                "train_seconds": trial.train_seconds,
            }
    return tuple(sorted(rows.values(), key=lambda row: -row["rank"]))


def _accuracy(trial: Trial, frame: Frame) -> float:
    """The share of right decisions."""
    return float((trial.probabilities.argmax(axis=1) == frame.targets).mean())
