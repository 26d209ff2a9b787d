"""`predictions.parquet`: what every candidate said about every image, for whoever wants to look closer.

A row per candidate and development image, and the choice's rows of the locked test: `candidate`, `file`, `split`
(`development` or `test`), `group` of near-duplicates, `fold` (-1: test), `label`, `predicted`, and `probabilities` in the
order of the classes, which stand in the schema's metadata under `classes`.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Int64

from graft.judging.metrics import decisions
from graft.store import write_atomically
from graft.studies.frame import Frame, Trial

PREDICTIONS = "predictions.parquet"


def write_predictions(
    run: Path,
    frame: Frame,
    trials: Sequence[Trial],
    *,
    chosen: Trial,
    tested: Float32[np.ndarray, "t k"] | None,
) -> None:
    """Write `predictions.parquet`; `tested` are the probabilities of `chosen` on the locked test, if there is one."""
    import pyarrow
    import pyarrow.parquet

    tables = []
    for trial in trials:
        done = measured(trial)
        tables.append(_table(frame, trial.recipe.name, frame.rows[done], trial.probabilities[done]))
    if tested is not None:
        tables.append(_table(frame, chosen.recipe.name, frame.test_rows, tested, split="test"))
    table = pyarrow.concat_tables(tables)
    table = table.replace_schema_metadata({"classes": json.dumps(_class_names(frame), ensure_ascii=False)})
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(table, buffer, compression="zstd")
    write_atomically(run / PREDICTIONS, buffer.getvalue())


def measured(trial: Trial) -> Bool[np.ndarray, " m"]:
    """Which development images this trial has predicted: all but those of unfinished folds."""
    return ~np.isnan(trial.probabilities).any(axis=1)


def _table(
    frame: Frame,
    candidate: str,
    rows: Int64[np.ndarray, " r"],
    probabilities: Float32[np.ndarray, "r k"],
    *,
    split: str = "development",
) -> Any:
    import pyarrow

    dataset, classes = frame.dataset, np.array(_class_names(frame), dtype=object)
    count, k = probabilities.shape
    flat = pyarrow.array(np.ascontiguousarray(probabilities).ravel())
    offsets = pyarrow.array(np.arange(0, (count + 1) * k, k, dtype=np.int32))
    return pyarrow.table(
        {
            "candidate": pyarrow.array([candidate] * count).dictionary_encode(),
            "file": [_text(dataset.images[row].name) for row in rows],
            "split": [split] * count,
            "group": dataset.groups[rows],
            "fold": frame.folds.assignment[rows],
            "label": classes[dataset.targets[rows]].tolist(),
            "predicted": classes[decisions(probabilities)].tolist(),
            "probabilities": pyarrow.ListArray.from_arrays(offsets, flat),
        }
    )


def _class_names(frame: Frame) -> list[str]:
    return [_text(name) for name in frame.dataset.classes]


def _text(name: str) -> str:
    """Parquet holds UTF-8 only; the name of a file may be other bytes."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")
