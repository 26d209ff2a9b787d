"""What a study leaves behind: `study.json` piece by piece, and the finished run folder as an object in Python.

In: the frame, the trials and the choice. Out: plain dictionaries that are written once, at the end, and `StudyResult`,
which reads them again. Importing this costs neither torch nor timm.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from graft.backbones.inputs import input_word
from graft.compute import environment as environment
from graft.errors import RunError
from graft.judging.metrics import METRICS, confusion, per_class, scores
from graft.judging.uncertainty import Difference, Estimate, bootstrap, draw_weights, estimate, paired, too_few
from graft.store import write_atomically
from graft.store import write_json as write_json
from graft.studies.choice import Choice
from graft.studies.frame import Frame, Trial
from graft.studies.predictions import PREDICTIONS as PREDICTIONS
from graft.studies.predictions import measured
from graft.studies.predictions import write_predictions as write_predictions
from graft.studies.thresholds import threshold_facts
from graft.studies.words import RunnerUp, reason, runner_up_reason, scratch_sentence
from graft.version import VERSION as VERSION

FORMAT = 1
STUDY = "study.json"
RUN = "run.json"
REPORT = "report.html"
BUNDLE = "model.graft"
DRAWS = 1_000
INTERVALS = ("macro_f1", "accuracy", "balanced_accuracy")


@dataclass(frozen=True, slots=True)
class StudyResult:
    """A finished study. `choice` and `facts` are those of `study.json`; `run` is its folder."""

    run: Path
    facts: dict[str, Any]

    @property
    def choice(self) -> dict[str, Any]:
        """The recommended candidate: its id, headline, reason and runners-up."""
        return self.facts["choice"]

    @property
    def candidates(self) -> Any:
        """All candidates as a `pyarrow.Table`, best first (`.to_pandas()` where pandas is installed)."""
        import pyarrow

        return pyarrow.Table.from_pylist([board_row(row) for row in self.facts["candidates"]])

    def report(self, path: str | Path | None = None) -> Path:
        """Where the HTML report is; with a path, a copy of it there. Raises RunError if it cannot be written."""
        return _copy(self.run / REPORT, path)

    def bundle(self, path: str | Path | None = None) -> Path:
        """Where the bundle is; with a path, a copy of the folder there. Raises RunError rather than overwrite."""
        return _copy(self.run / BUNDLE, path)


def _copy(source: Path, path: str | Path | None) -> Path:
    if not source.exists():
        raise RunError(f"{source} is not there: the study has not ended. Run it again to continue it.")
    if path is None:
        return source
    target = Path(path)
    if target.exists() and (source.is_dir() or target.is_dir()):
        raise RunError(f"{target} exists already; name a place that is free.")
    try:
        if source.is_dir():
            shutil.copytree(source, target)
        else:
            write_atomically(target, source.read_bytes())
    except OSError as error:
        raise RunError(
            f"{target} cannot be written: {error.strerror or error}. Name another place."
        ) from error
    return target


def read(run: str | Path) -> StudyResult:
    """The result in a run folder. Raises RunError if there is none."""
    folder = Path(run)
    try:
        facts = json.loads((folder / STUDY).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise RunError(
            f"{folder} holds no finished study (no {STUDY}). Run `graft study` with --out {folder}."
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{folder / STUDY} is damaged: {error}. Run the study again.") from error
    if not isinstance(facts, dict) or not {"choice", "candidates"} <= set(facts):
        raise RunError(f"{folder / STUDY} is damaged: it names no choice. Run the study again.")
    return StudyResult(folder, facts)


def board_row(candidate: Mapping[str, Any]) -> dict[str, Any]:
    """One line of the leaderboard."""
    cost, metrics = candidate["cost"], candidate["metrics"]
    low, high = candidate["interval"].get("macro_f1", (None, None))
    return {
        "id": candidate["id"],
        "strategy": candidate["strategy"],
        "macro_f1": metrics.get("macro_f1"),
        "low": low,
        "high": high,
        "accuracy": metrics.get("accuracy"),
        "log_loss": metrics.get("log_loss"),
        "bytes": cost["bytes"],
        "latency_ms": cost["latency_ms"],
        "train_seconds": cost["train_seconds"],
        "tied": candidate["tied"],
        "within_limits": candidate["within_limits"],
    }


def candidate_rows(frame: Frame, trials: Sequence[Trial], choice: Choice) -> list[dict[str, Any]]:
    """Every trial as `study.json` tells it, best first, incomplete ones last."""
    metric = METRICS[frame.settings.metric]
    groups = frame.dataset.groups[frame.rows]
    draws = draw_weights(frame.targets, groups, draws=DRAWS, seed=frame.settings.seed)
    rows = [_candidate(frame, trial, choice, i, groups, draws) for i, trial in enumerate(trials)]

    def rank(row: dict[str, Any]) -> tuple[bool, float, str]:
        value = row["metrics"].get(metric.name)
        return (not row["complete"], -metric.sign * value if value is not None else 0.0, row["id"])

    return sorted(rows, key=rank)


def _candidate(
    frame: Frame, trial: Trial, choice: Choice, position: int, groups: np.ndarray, draws: np.ndarray
) -> dict[str, Any]:
    done = measured(trial)
    probabilities, targets = trial.probabilities[done], frame.targets[done]
    lead = frame.settings.metric
    names = dict.fromkeys([lead, *INTERVALS])
    known = choice.intervals[position] if choice.rows.all() else None
    if trial.complete:
        own, groups_own = draws, groups
    else:
        groups_own = groups[done]
        own = (
            draw_weights(targets, groups_own, draws=DRAWS, seed=frame.settings.seed) if done.any() else draws
        )
    intervals = {
        name: _pair(
            known
            if name == lead and known is not None
            else estimate(name, probabilities, targets, groups_own, own)
        )
        for name in names
        if done.any() and (trial.complete or not too_few(targets, groups_own))
    }
    difference = choice.differences[position]
    recipe = trial.recipe
    return {
        "id": recipe.name,
        "recipe": recipe.key,
        "backbone": recipe.backbone,
        "family": trial.about.get("family"),
        "weights_origin": trial.about.get("source"),
        "licence": trial.about.get("licence"),
        "runner": trial.about.get("runner"),
        "strategy": recipe.strategy,
        "tap": recipe.tap,
        "tap_index": trial.tap_index,
        "taps": trial.taps,
        "cut": recipe.cut,
        "input": {
            "size": recipe.geometry.size,
            "channels": recipe.geometry.channels,
            "fit": recipe.geometry.fit,
            "kind": input_word(recipe.geometry, recipe.look),
        },
        "metrics": scores(probabilities, targets),
        "interval": intervals,
        "folds": _per_fold(frame, trial, lead),
        "per_class": per_class(probabilities, targets, frame.dataset.classes),
        "knn": trial.knn,
        "balance": _balances(frame, recipe.key),
        "cost": {
            "parameters": trial.parameters,
            "bytes": trial.model_bytes,
            "latency_ms": trial.latency_ms,
            "latency_threads": 1,
            "train_seconds": round(trial.train_seconds, 3),
            "extract_seconds": round(trial.extract_seconds, 3),
        },
        "difference": None
        if difference is None
        else {"to_best": difference.estimate, "interval": [difference.low, difference.high]},
        "tied": choice.is_tied(position),
        "within_limits": choice.within[position],
        "complete": trial.complete,
        "curves": list(trial.curves) or None,
    }


def _per_fold(frame: Frame, trial: Trial, metric: str) -> list[float]:
    """The leading metric on each finished fold."""
    folds, done = frame.folds.assignment[frame.rows], measured(trial)
    values = []
    for fold in range(frame.folds.count):
        rows = (folds == fold) & done
        if rows.any():
            once = np.ones((1, int(rows.sum())), np.float32)
            values.append(float(bootstrap(metric, trial.probabilities[rows], frame.targets[rows], once)[0]))
    return values


def _balances(frame: Frame, recipe: str) -> list[str] | None:
    """How much rare classes counted on each finished fold, chosen inside it; None where nothing was learned from them."""
    folds = {
        record["fold"]: record
        for record in frame.journal.records
        if record["kind"] == "fold" and record.get("recipe") == recipe and record["fold"] >= 0
    }
    found = [folds[fold].get("balance") for fold in sorted(folds)]
    return [value for value in found if value is not None] or None


def scratch_against_transfer(frame: Frame, trials: Sequence[Trial], choice: Choice) -> dict[str, Any]:
    """The comparison of the best transferred and the best from-scratch trial, on the images both predicted."""
    metric = METRICS[frame.settings.metric]
    scratch = next((trial for trial in trials if trial.recipe.strategy == "scratch"), None)
    transferred = [
        i
        for i, trial in enumerate(trials)
        if trial.recipe.strategy in ("frozen", "depths", "partial", "full") and choice.scores[i] is not None
    ]
    best = max(transferred, key=lambda i: (metric.sign * (choice.scores[i] or 0.0), -i), default=None)
    transfer = trials[best] if best is not None else None
    difference: Difference | None = None
    few: int | None = None
    pair = [trial for trial in (scratch, transfer) if trial is not None]
    rows = np.all([measured(trial) for trial in pair], axis=0)
    if scratch is not None and transfer is not None and rows.any():
        targets, groups = frame.targets[rows], frame.dataset.groups[frame.rows][rows]
        draws = draw_weights(targets, groups, draws=DRAWS, seed=frame.settings.seed)
        difference = paired(
            metric.name, transfer.probabilities[rows], scratch.probabilities[rows], targets, draws
        )
        few = len(targets) if too_few(targets, groups) else None
    return {
        "difference": difference.estimate if difference else None,
        "interval": [difference.low, difference.high] if difference and few is None else None,
        "metric": metric.name,
        "sentence": scratch_sentence(
            transfer,
            scratch,
            difference,
            metric=metric.name,
            only=frame.settings.only,
            few=few,
            ended=frame.ended,
        ),
        "scratch": scratch.recipe.name if scratch else None,
        "transfer": transfer.recipe.name if transfer else None,
    }


def choice_facts(
    frame: Frame, trials: Sequence[Trial], choice: Choice, tested: Float32[np.ndarray, "t k"] | None
) -> dict[str, Any]:
    """The choice as `study.json` tells it."""
    metric, chosen = frame.settings.metric, trials[choice.chosen]
    test = _test(frame, tested)
    positions: dict[RunnerUp, int] = {
        "most_accurate": choice.best,
        "smallest": choice.smallest,
        "fastest": choice.fastest,
    }
    return {
        "id": chosen.recipe.name,
        "headline": _headline(frame, chosen, choice, test),
        "reason": reason(trials, choice, metric=metric),
        "test": test,
        "runners_up": {
            kind: {
                "id": trials[position].recipe.name,
                "why": runner_up_reason(kind, trials, choice, position, metric=metric),
            }
            for kind, position in positions.items()
        },
        "images": int(choice.rows.sum()),
        "confusion": confusion(
            chosen.probabilities[choice.rows], frame.targets[choice.rows], frame.classes
        ).tolist(),
        "threshold": threshold_facts(frame, chosen, tested),
        "limits_met": not choice.missed,
        "missed": choice.missed or None,
    }


def _headline(frame: Frame, chosen: Trial, choice: Choice, test: Mapping[str, Any] | None) -> dict[str, Any]:
    """The score to promise: on the locked test where there is one, else cross-validated and corrected for selection."""
    metric, interval = frame.settings.metric, _pair(choice.headline)
    if test is None:
        plain = scores(chosen.probabilities[choice.rows], frame.targets[choice.rows])["macro_f1"]
        told = {"interval": interval, "kind": "bbc-cv", "metric": metric, "optimism": choice.optimism}
        return {"macro_f1": plain, metric: choice.headline.value, **told}
    told = {"interval": test["interval"][metric], "kind": "test", "metric": metric}
    corrected = {metric: choice.headline.value, "interval": interval}
    return {
        "macro_f1": test["metrics"]["macro_f1"],
        metric: test["metrics"][metric],
        **told,
        "corrected": corrected,
    }


def _test(frame: Frame, probabilities: Float32[np.ndarray, "t k"] | None) -> dict[str, Any] | None:
    if probabilities is None:
        return None
    targets, groups = frame.dataset.targets[frame.test_rows], frame.dataset.groups[frame.test_rows]
    draws = draw_weights(targets, groups, draws=DRAWS, seed=frame.settings.seed)
    names = dict.fromkeys([frame.settings.metric, *INTERVALS])
    return {
        "images": len(targets),
        "metrics": scores(probabilities, targets),
        "interval": {name: _pair(estimate(name, probabilities, targets, groups, draws)) for name in names},
        "per_class": per_class(probabilities, targets, frame.dataset.classes),
        "confusion": confusion(probabilities, targets, frame.classes).tolist(),
    }


def dataset_facts(frame: Frame) -> dict[str, Any]:
    """The dataset as `study.json` tells it."""
    dataset = frame.dataset
    kinds = [issue.kind for issue in dataset.issues]
    counts = np.bincount(dataset.targets, minlength=len(dataset.classes))
    return {
        "name": dataset.root.resolve().name,
        "root": str(dataset.root),
        "images": len(dataset),
        "classes": len(dataset.classes),
        "class_names": list(dataset.classes),
        "excluded": dataset.excluded,
        "counts": {name: int(count) for name, count in zip(dataset.classes, counts, strict=True)},
        "grey": dataset.mostly_grey,
        "near_duplicates": kinds.count("near_duplicate"),
        "exact_duplicates": kinds.count("exact_duplicate"),
        "conflicts": kinds.count("conflict"),
        "development": len(frame.rows),
        "test": len(frame.test_rows),
        "test_origin": frame.folds.test,
        "fingerprint": dataset.fingerprint,
    }


def settings_facts(frame: Frame, command: str) -> dict[str, Any]:
    """The settings as `study.json` and `run.json` tell them."""
    settings = frame.settings
    return {
        "metric": settings.metric,
        "folds": frame.folds.count,
        "seed": settings.seed,
        "budget_seconds": settings.budget_seconds if math.isfinite(settings.budget_seconds) else None,
        "limits": {"max_bytes": settings.max_bytes, "max_latency_ms": settings.max_latency_ms},
        "backbones": list(settings.backbones),
        "weights": str(frame.folder.path.resolve()) if frame.folder else None,
        "fit": settings.fit,
        "device": frame.compute.device,
        "bf16": frame.compute.bf16,
        "threads": frame.compute.threads,
        "only": settings.only,
        "asked": {
            "source": str(settings.source.resolve()),
            "groups": settings.groups,
            "folds": settings.folds,
            "device": settings.device,
        },
        "command": command,
    }


def _pair(bounds: Estimate) -> list[float]:
    return [bounds.low, bounds.high]
