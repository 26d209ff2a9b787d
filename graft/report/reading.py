"""The run folder as records: everything the page shows, read tolerantly, because an older run must still open.

In: `study.json` and, where they are there, `run.json`, `check.csv` and `predictions.parquet`. Out: a `Run`. A field
that is missing, null or not a number is None; a file that is damaged is a RunError.

Cost: of `predictions.parquet` the row groups that hold the choice are decoded, in pieces of bounded memory.

Not covered: the photos themselves (see thumbnails) and `journal.jsonl`, which only says how far an unfinished study
has come.
"""

from __future__ import annotations

import csv
import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64

from graft.errors import RunError
from graft.report.wording import FITS, INPUTS, STRATEGIES, number

Interval = tuple[float, float]
ISSUE_ROWS = 50
READ_ROWS = 16_384


@dataclass(frozen=True, slots=True)
class Candidate:
    """One measured candidate; costs in bytes, milliseconds and seconds, None where they are not known.

    `size` of its images in pixels; `shown`: in words how they are fitted into it, where that is unusual.
    """

    id: str
    backbone: str
    strategy: str
    tap: str | None
    tap_index: float | None
    taps: int | None
    fit: str | None
    licence: str | None
    metrics: dict[str, float]
    intervals: dict[str, Interval]
    folds: tuple[float, ...]
    per_class: tuple[dict[str, Any], ...]
    knn: float | None
    parameters: float | None
    bytes: float | None
    latency_ms: float | None
    latency_threads: float | None
    train_seconds: float | None
    extract_seconds: float | None
    difference: float | None
    difference_interval: Interval | None
    tied: bool
    within_limits: bool
    complete: bool
    curves: tuple[dict[str, Any], ...]
    input: str | None = None
    cut: str | None = None
    size: float | None = None
    shown: tuple[str, ...] = ()

    @property
    def input_name(self) -> str:
        """What the network is shown, in words."""
        return INPUTS.get(self.input or "", self.input or "")

    @property
    def learns(self) -> str:
        """What was done to the network, in words: from which depth it was tuned, how it was made smaller."""
        words = STRATEGIES.get(self.strategy, self.strategy)
        if self.strategy in ("partial", "full"):
            tuned = f"fine-tuned above {self.cut}" if self.cut else words
            if "+quarters+tuned:" not in self.id:
                return tuned
            return f"{tuned} and read at all depths{' there' if self.cut else ''}"
        if self.strategy == "depths" and self.id.endswith("+quarters"):
            return f"{words} and by quarters"
        if self.strategy == "shrunk" and "+" in self.id:
            return f"{words}: {', '.join(self.id.split('+')[1:])}"
        return words

    @property
    def short(self) -> str:
        """A label for plots: the architecture without the name of its weights."""
        return "from scratch" if self.strategy == "scratch" else self.backbone.split(".")[0]


@dataclass(frozen=True, slots=True)
class Remark:
    """One row of `check.csv`."""

    file: str
    issue: str
    excluded: bool
    label: str
    detail: str


@dataclass(frozen=True, slots=True, eq=False)
class Predictions:
    """What the choice said about each image out of fold; labels and predictions are indices into `classes`."""

    classes: tuple[str, ...]
    files: tuple[str, ...]
    labels: Int64[np.ndarray, " n"]
    predicted: Int64[np.ndarray, " n"]
    probabilities: Float32[np.ndarray, "n k"]


@dataclass(frozen=True, slots=True)
class Run:
    """A run folder: `study` is the parsed study.json, `root` where the photos were."""

    folder: Path
    study: dict[str, Any]
    settings: dict[str, Any]
    environment: dict[str, Any]
    command: str | None
    root: Path | None
    candidates: tuple[Candidate, ...]
    remarks: tuple[Remark, ...]
    remark_counts: dict[tuple[str, bool], int]
    predictions: Predictions | None


def read(folder: Path) -> Run:
    """Read the run in `folder`; RunError if it holds no finished study or a damaged one."""
    study = _json(folder / "study.json")
    if study is None:
        raise RunError(_unfinished(folder))
    record = _json(folder / "run.json") or {}
    settings = {**mapping(record, "settings"), **mapping(study, "settings")}
    root = text(record, "root") or text(study, "dataset", "root")
    remarks, counts = _remarks(folder / "check.csv")
    chosen = text(study, "choice", "id")
    return Run(
        folder=folder,
        study=study,
        settings=settings,
        environment={**mapping(record, "environment"), **mapping(study, "environment")},
        command=text(settings, "command") or text(record, "command"),
        root=Path(root) if root else None,
        candidates=_told_apart(
            [_candidate(row) for row in items(study, "candidates") if isinstance(row, dict)]
        ),
        remarks=remarks,
        remark_counts=counts,
        predictions=_predictions(folder / "predictions.parquet", chosen, class_names(study)),
    )


def at(record: object, *path: str) -> Any:
    """The value below the nested keys `path`, or None where any of them is missing."""
    for key in path:
        if not isinstance(record, Mapping):
            return None
        record = record.get(key)
    return record


def text(record: object, *path: str) -> str | None:
    """The string below `path`, or None."""
    value = at(record, *path)
    return value if isinstance(value, str) and value else None


def mapping(record: object, *path: str) -> dict[str, Any]:
    """The dictionary below `path`, or an empty one."""
    value = at(record, *path)
    return value if isinstance(value, dict) else {}


def items(record: object, *path: str) -> list[Any]:
    """The list below `path`, or an empty one."""
    value = at(record, *path)
    return value if isinstance(value, list) else []


def interval(record: object, *path: str) -> Interval | None:
    """The pair of finite numbers below `path`, or None."""
    bounds = [number(bound) for bound in items(record, *path)]
    if len(bounds) != 2 or bounds[0] is None or bounds[1] is None:
        return None
    return bounds[0], bounds[1]


def class_names(study: dict[str, Any]) -> tuple[str, ...]:
    """The classes in their saved order."""
    return tuple(str(name) for name in items(study, "dataset", "class_names"))


def _candidate(row: dict[str, Any]) -> Candidate:
    taps = number(row.get("taps"))
    intervals = {name: interval(row, "interval", name) for name in mapping(row, "interval")}
    return Candidate(
        id=str(row.get("id")),
        backbone=text(row, "backbone") or text(row, "name") or str(row.get("id")),
        strategy=text(row, "strategy") or "",
        tap=text(row, "tap") if row.get("strategy") != "scratch" else None,
        tap_index=number(row.get("tap_index")),
        taps=int(taps) if taps is not None else None,
        fit=text(mapping(row, "input"), "fit"),
        licence=text(row, "licence"),
        metrics={
            name: value for name, raw in mapping(row, "metrics").items() if (value := number(raw)) is not None
        },
        intervals={name: bounds for name, bounds in intervals.items() if bounds is not None},
        folds=tuple(value for raw in items(row, "folds") if (value := number(raw)) is not None),
        per_class=tuple(entry for entry in items(row, "per_class") if isinstance(entry, dict)),
        knn=number(at(row, "knn", "accuracy")),
        parameters=number(at(row, "cost", "parameters")),
        bytes=number(at(row, "cost", "bytes")),
        latency_ms=number(at(row, "cost", "latency_ms")),
        latency_threads=number(at(row, "cost", "latency_threads")),
        train_seconds=number(at(row, "cost", "train_seconds")),
        extract_seconds=number(at(row, "cost", "extract_seconds")),
        difference=number(at(row, "difference", "to_best")),
        difference_interval=interval(row, "difference", "interval"),
        tied=row.get("tied") is True,
        within_limits=row.get("within_limits") is not False,
        complete=row.get("complete") is not False,
        curves=tuple(entry for entry in items(row, "curves") if isinstance(entry, dict)),
        input=text(mapping(row, "input"), "kind"),
        size=number(at(row, "input", "size")),
        cut=row["cut"] if isinstance(row.get("cut"), str) else None,
    )


def _told_apart(candidates: Sequence[Candidate]) -> tuple[Candidate, ...]:
    """The candidates; each says (`shown`) where its images are fitted other than most, or larger than its network's."""
    fits = Counter(c.fit for c in candidates if c.fit)
    sizes: dict[str, Counter[float]] = defaultdict(Counter)
    for c in candidates:
        if c.size is not None:
            sizes[c.backbone][c.size] += 1
    return tuple(replace(c, shown=_unusual(c, fits, sizes[c.backbone])) for c in candidates)


def _unusual(candidate: Candidate, fits: Counter[str], sizes: Counter[float]) -> tuple[str, ...]:
    words = []
    if candidate.fit and candidate.fit != fits.most_common(1)[0][0]:
        words.append(FITS.get(candidate.fit, candidate.fit))
    if candidate.size is not None and candidate.size != sizes.most_common(1)[0][0]:
        words.append(f"{candidate.size:.0f} px")
    return tuple(words)


def _json(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (ValueError, OSError) as error:
        raise RunError(f"{path} cannot be read: {error}. Run the study again with --overwrite.") from error
    if not isinstance(value, dict):
        raise RunError(f"{path} does not hold a record. Run the study again with --overwrite.")
    return value


def _unfinished(folder: Path) -> str:
    if not folder.is_dir():
        return f"There is no run folder {folder}. Give the folder that `graft study` wrote."
    journal = folder / "journal.jsonl"
    if not journal.is_file():
        return (
            f"{folder} is not a run folder: it holds no study.json. Give the folder that `graft study` wrote."
        )
    measured = journal.read_bytes().count(b"\n")
    return (
        f"The study in {folder} is not finished: study.json is not there yet, the journal holds {measured} lines. "
        "Run the same `graft study` command again to continue it."
    )


def _remarks(path: Path) -> tuple[tuple[Remark, ...], dict[tuple[str, bool], int]]:
    """The first rows of `check.csv` and how many there are of each (issue, excluded)."""
    first: list[Remark] = []
    counts: Counter[tuple[str, bool]] = Counter()
    if not path.is_file():
        return (), {}
    try:
        with path.open(encoding="utf-8", errors="replace", newline="") as file:
            for row in csv.DictReader(file):
                excluded = (row.get("excluded") or "").strip().lower() in ("true", "1", "yes")
                issue = row.get("issue") or ""
                counts[issue, excluded] += 1
                if len(first) < ISSUE_ROWS:
                    first.append(
                        Remark(
                            row.get("file") or "",
                            issue,
                            excluded,
                            row.get("class") or "",
                            row.get("detail") or "",
                        )
                    )
    except (csv.Error, OSError) as error:
        raise RunError(f"{path} cannot be read: {error}. Run the study again with --overwrite.") from error
    return tuple(first), dict(counts)


def _predictions(path: Path, chosen: str | None, classes: tuple[str, ...]) -> Predictions | None:
    """The rows of the candidate `chosen`, or None where there are none."""
    if chosen is None or not path.is_file():
        return None
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            stored = (file.schema_arrow.metadata or {}).get(b"classes")
            classes = tuple(json.loads(stored)) if stored else classes
            tables = []
            for group in range(file.num_row_groups):
                owners = file.read_row_group(group, columns=["candidate"])["candidate"]
                if chosen in owners.unique().to_pylist():
                    tables += _judged(file, group, chosen)
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise RunError(f"{path} cannot be read: {error}. Run the study again with --overwrite.") from error
    if not tables:
        return None
    return _as_predictions(pa.concat_tables(tables), classes)


def _judged(file: Any, group: int, chosen: str) -> list[Any]:
    """The out-of-fold rows of a candidate in one row group, read in pieces, because all candidates lie in it."""
    import pyarrow as pa

    wanted = ["candidate", "file", "label", "predicted", "probabilities", "split"]
    columns = [name for name in wanted if name in file.schema_arrow.names]
    tables = []
    for batch in file.iter_batches(READ_ROWS, row_groups=[group], columns=columns):
        keep = np.array(batch.column("candidate").to_pylist()) == chosen
        if "split" in columns:
            keep &= np.array(batch.column("split").to_pylist()) != "test"
        if keep.any():
            table = pa.Table.from_batches([batch]).take(pa.array(np.flatnonzero(keep)))
            tables.append(table.select(["file", "label", "predicted", "probabilities"]))
    return tables


def _as_predictions(table: Any, classes: tuple[str, ...]) -> Predictions | None:
    """The table as arrays; None if it does not fit the classes."""
    place = {name: index for index, name in enumerate(classes)}
    labels = np.array([place.get(name, -1) for name in table["label"].to_pylist()], dtype=np.int64)
    predicted = np.array([place.get(name, -1) for name in table["predicted"].to_pylist()], dtype=np.int64)
    column = table["probabilities"].combine_chunks()
    flat = column.flatten().to_numpy(zero_copy_only=False).astype(np.float32)
    if (labels < 0).any() or (predicted < 0).any() or flat.size != len(labels) * len(classes):
        return None
    return Predictions(
        classes=classes,
        files=tuple(table["file"].to_pylist()),
        labels=labels,
        predicted=predicted,
        probabilities=flat.reshape(len(labels), len(classes)),
    )
