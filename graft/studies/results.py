"""What a study leaves behind: `study.json`, `predictions.parquet`, and the same as an object in Python."""

from __future__ import annotations

import importlib.metadata
import io
import json
import platform
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from graft.compute import cpu_name
from graft.errors import RunError
from graft.images.dataset import Dataset
from graft.judging.metrics import METRICS, confusion, decisions, per_class, scores
from graft.judging.uncertainty import Difference, draw_weights, estimate, paired
from graft.store import write_atomically
from graft.studies.choice import Choice
from graft.studies.frame import Frame, Trial
from graft.studies.words import reason, runner_up_reason, scratch_sentence
from graft.version import VERSION

FORMAT = 1
STUDY = "study.json"
RUN = "run.json"
PREDICTIONS = "predictions.parquet"
BUNDLE = "model.graft"
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
        """Where the HTML report is; with a path, a copy of it there."""
        return _copy(self.run / "report.html", path)

    def bundle(self, path: str | Path | None = None) -> Path:
        """Where the bundle is; with a path, a copy of the folder there. Raises RunError rather than overwrite."""
        return _copy(self.run / BUNDLE, path)


def _copy(source: Path, path: str | Path | None) -> Path:
    if not source.exists():
        raise RunError(f"{source} is not there: the study has not ended. Run it again to continue it.")
    if path is None:
        return source
    target = Path(path)
    if source.is_dir():
        if target.exists():
            raise RunError(f"{target} exists already; name a place that is free.")
        shutil.copytree(source, target)
    else:
        write_atomically(target, source.read_bytes())
    return target


def read(run: str | Path) -> StudyResult:
    """The result in a run folder. Raises RunError if there is none."""
    folder = Path(run)
    try:
        return StudyResult(folder, json.loads((folder / STUDY).read_text(encoding="utf-8")))
    except (FileNotFoundError, NotADirectoryError):
        raise RunError(f"{folder} holds no finished study (no {STUDY}). Run `graft study` with --out {folder}.") from None
    except ValueError as error:
        raise RunError(f"{folder / STUDY} is damaged: {error}. Run the study again.") from None


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
    draws = draw_weights(frame.targets, groups, draws=1000, seed=frame.settings.seed)
    rows = [_candidate(frame, trial, choice, i, groups, draws) for i, trial in enumerate(trials)]

    def rank(row: dict[str, Any]) -> tuple[bool, float, str]:
        value = row["metrics"].get(metric.name)
        return (not row["complete"], -metric.sign * value if value is not None else 0.0, row["id"])

    return sorted(rows, key=rank)


def _candidate(
    frame: Frame, trial: Trial, choice: Choice, position: int, groups: np.ndarray, draws: np.ndarray
) -> dict[str, Any]:
    done = ~np.isnan(trial.probabilities).any(axis=1)
    probabilities, targets = trial.probabilities[done], frame.targets[done]
    lead = frame.settings.metric
    intervals = {}
    if trial.complete:
        known = choice.intervals[position]
        assert known is not None
        intervals = {
            name: _pair(known if name == lead else estimate(name, probabilities, targets, groups, draws))
            for name in dict.fromkeys([lead, *INTERVALS])
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
        "input": {"size": recipe.geometry.size, "channels": recipe.geometry.channels, "fit": recipe.geometry.fit},
        "metrics": scores(probabilities, targets),
        "interval": intervals,
        "folds": _per_fold(frame, trial, lead),
        "per_class": per_class(probabilities, targets, frame.dataset.classes),
        "knn": trial.knn,
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
        "tied": choice.is_tied(position) and choice.within[position],
        "within_limits": choice.within[position],
        "complete": trial.complete,
        "curves": list(trial.curves) or None,
    }


def _per_fold(frame: Frame, trial: Trial, metric: str) -> list[float]:
    """The leading metric on each finished fold."""
    folds = frame.folds.assignment[frame.rows]
    values = []
    for fold in range(frame.folds.count):
        rows = (folds == fold) & ~np.isnan(trial.probabilities).any(axis=1)
        if rows.any():
            values.append(scores(trial.probabilities[rows], frame.targets[rows])[metric])
    return values


def scratch_against_transfer(frame: Frame, trials: Sequence[Trial], choice: Choice) -> dict[str, Any]:
    """The comparison of the best transferred and the best from-scratch trial, on the images both predicted."""
    metric = METRICS[frame.settings.metric]
    scratch = next((trial for trial in trials if trial.recipe.strategy == "scratch"), None)
    transferred = [
        i for i, trial in enumerate(trials) if trial.recipe.strategy == "frozen" and choice.scores[i] is not None
    ]
    best = max(transferred, key=lambda i: (metric.sign * (choice.scores[i] or 0.0), -i), default=None)
    transfer = trials[best] if best is not None else None
    difference: Difference | None = None
    if scratch is not None and transfer is not None:
        rows = ~np.isnan(scratch.probabilities).any(axis=1)
        targets, groups = frame.targets[rows], frame.dataset.groups[frame.rows][rows]
        draws = draw_weights(targets, groups, draws=1000, seed=frame.settings.seed)
        difference = paired(metric.name, transfer.probabilities[rows], scratch.probabilities[rows], targets, draws)
    return {
        "difference": difference.estimate if difference else None,
        "interval": [difference.low, difference.high] if difference else None,
        "metric": metric.name,
        "sentence": scratch_sentence(transfer, scratch, difference, metric=metric.name, only=frame.settings.only),
        "scratch": scratch.recipe.name if scratch else None,
        "transfer": transfer.recipe.name if transfer else None,
    }


def choice_facts(
    frame: Frame, trials: Sequence[Trial], choice: Choice, tested: Float32[np.ndarray, "t k"] | None
) -> dict[str, Any]:
    """The choice as `study.json` tells it."""
    metric, chosen = frame.settings.metric, trials[choice.chosen]
    test = _test(frame, tested)
    plain = scores(chosen.probabilities, frame.targets)
    headline: dict[str, Any] = {"macro_f1": plain["macro_f1"], metric: choice.headline.value}
    headline |= {"interval": _pair(choice.headline), "kind": "bbc-cv", "metric": metric, "optimism": choice.optimism}
    if test is not None:
        headline = {"macro_f1": test["metrics"]["macro_f1"], metric: test["metrics"][metric]}
        headline |= {"interval": test["interval"][metric], "kind": "test", "metric": metric}
        headline["corrected"] = {metric: choice.headline.value, "interval": _pair(choice.headline)}
    positions = {"most_accurate": choice.best, "smallest": choice.smallest, "fastest": choice.fastest}
    return {
        "id": chosen.recipe.name,
        "headline": headline,
        "reason": reason(trials, choice, metric=metric),
        "test": test,
        "runners_up": {
            kind: {
                "id": trials[position].recipe.name,
                "why": runner_up_reason(kind, trials, choice, position, metric=metric),
            }
            for kind, position in positions.items()
        },
        "confusion": confusion(chosen.probabilities, frame.targets, frame.classes).tolist(),
        "limits_met": not choice.missed,
        "missed": choice.missed or None,
    }


def _test(frame: Frame, probabilities: Float32[np.ndarray, "t k"] | None) -> dict[str, Any] | None:
    if probabilities is None:
        return None
    targets, groups = frame.dataset.targets[frame.test_rows], frame.dataset.groups[frame.test_rows]
    draws = draw_weights(targets, groups, draws=1000, seed=frame.settings.seed)
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
        "budget_seconds": settings.budget_seconds,
        "limits": {"max_bytes": settings.max_bytes, "max_latency_ms": settings.max_latency_ms},
        "backbones": list(settings.backbones),
        "weights": str(settings.weights) if settings.weights else None,
        "fit": settings.fit,
        "device": frame.compute.device,
        "bf16": frame.compute.bf16,
        "threads": frame.compute.threads,
        "only": settings.only,
        "command": command,
    }


def environment() -> dict[str, str]:
    """Versions and machine, found without importing anything heavy."""
    facts = {"graft": VERSION, "python": platform.python_version(), "platform": platform.platform(), "cpu": cpu_name()}
    for name in ("torch", "timm", "torchvision", "openvino", "onnxruntime", "onnx", "numpy", "pillow"):
        try:
            facts[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            facts[name] = "missing"
    return facts


def write_predictions(
    run: Path, frame: Frame, trials: Sequence[Trial], *, chosen: Trial, tested: Float32[np.ndarray, "t k"] | None
) -> None:
    """`predictions.parquet`: a row per candidate and development image, and the choice's rows of the locked test."""
    import pyarrow
    import pyarrow.parquet

    dataset, classes = frame.dataset, np.array(frame.dataset.classes, dtype=object)
    tables = []
    for trial in trials:
        done = ~np.isnan(trial.probabilities).any(axis=1)
        tables.append(_table(dataset, classes, trial.recipe.name, frame.rows[done], frame.folds.assignment, trial.probabilities[done]))
    if tested is not None:
        tables.append(_table(dataset, classes, chosen.recipe.name, frame.test_rows, frame.folds.assignment, tested, split="test"))
    table = pyarrow.concat_tables(tables)
    table = table.replace_schema_metadata({"classes": json.dumps(list(dataset.classes), ensure_ascii=False)})
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(table, buffer, compression="zstd")
    write_atomically(run / PREDICTIONS, buffer.getvalue())


def _table(
    dataset: Dataset,
    classes: np.ndarray,
    candidate: str,
    rows: np.ndarray,
    folds: np.ndarray,
    probabilities: np.ndarray,
    *,
    split: str = "development",
) -> Any:
    import pyarrow

    k = probabilities.shape[1]
    flat = pyarrow.array(np.ascontiguousarray(probabilities, np.float32).ravel())
    offsets = pyarrow.array(np.arange(0, (len(rows) + 1) * k, k, dtype=np.int32))
    return pyarrow.table(
        {
            "candidate": pyarrow.array([candidate] * len(rows)).dictionary_encode(),
            "file": [dataset.images[row].name for row in rows],
            "split": [split] * len(rows),
            "group": dataset.groups[rows],
            "fold": folds[rows],
            "label": classes[dataset.targets[rows]].tolist(),
            "predicted": classes[decisions(probabilities)].tolist(),
            "probabilities": pyarrow.ListArray.from_arrays(offsets, flat),
        }
    )


def write_json(path: Path, facts: Mapping[str, Any]) -> None:
    """Write JSON atomically; what JSON cannot say (NaN, infinity) becomes null."""
    write_atomically(path, json.dumps(_finite(facts), indent=1, ensure_ascii=False))


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _finite(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(part) for part in value]
    if isinstance(value, (float, np.floating)):
        return float(value) if np.isfinite(value) else None
    if isinstance(value, np.integer):
        return int(value)
    return value


def _pair(bounds: Any) -> list[float]:
    return [bounds.low, bounds.high]


