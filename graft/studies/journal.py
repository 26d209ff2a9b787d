"""What a study has finished, appended the moment it is finished.

`journal.jsonl` holds one JSON record per line; the predictions of a (recipe, fold) lie in `trials/` beside it and are
written before their line, so a line never promises what is not there. After SIGKILL the last line may be torn: it is
cut off on opening, nothing else is touched. Only the driver of a study writes here, under a lock.
"""

from __future__ import annotations

import io
import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from jaxtyping import Float32

from graft.errors import RunError
from graft.store import json_line, write_atomically

FILE = "journal.jsonl"
TRIALS = "trials"
LOCK = ".lock"


class Journal:
    """The journal of the run folder `run`, opened for writing until `close`.

    `records` are all there are, in order. Raises RunError if another process has it open, if a line before the last
    one is damaged, or if the folder cannot be written. `started`: when this session began to work, on the clock of
    `time.monotonic` (default: now).
    """

    def __init__(self, run: Path, *, started: float | None = None) -> None:
        self.run = run
        self._lock = _locked(run)
        try:
            self.records = read(run)
            _cut_torn_tail(run / FILE)
            self._file = (run / FILE).open("ab")
        except BaseException:
            self._lock.release()
            raise
        self._folds = {_fold_key(record): record for record in self.records if record["kind"] == "fold"}
        self._before = max((float(record["at"]) for record in self.records), default=0.0)
        self._opened = time.monotonic() if started is None else started

    def elapsed_seconds(self) -> float:
        """How long this study has worked, earlier sessions of it included."""
        return self._before + time.monotonic() - self._opened

    def append(self, kind: str, facts: Mapping[str, Any]) -> dict[str, Any]:
        """Add a record; it is on the disk when this returns."""
        record = {"kind": kind, "at": round(self.elapsed_seconds(), 3), **facts}
        self._file.write(json_line(record) + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self.records.append(record)
        if kind == "fold":
            self._folds[_fold_key(record)] = record
        return record

    def find(self, kind: str, facts: Mapping[str, Any]) -> dict[str, Any] | None:
        """The first record of this kind with these facts, looked for from the beginning; None if there is none."""
        for record in self.records:
            if record["kind"] == kind and all(record.get(name) == value for name, value in facts.items()):
                return record
        return None

    def add_fold(
        self, recipe: str, fold: int, probabilities: Float32[np.ndarray, "m k"], facts: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Record one finished (recipe, fold) with its held-out probabilities."""
        buffer = io.BytesIO()
        np.save(buffer, probabilities, allow_pickle=False)
        write_atomically(self._place(recipe, fold), buffer.getvalue())
        return self.append("fold", {"recipe": recipe, "fold": fold, **facts})

    def fold(self, recipe: str, fold: int) -> tuple[dict[str, Any], Float32[np.ndarray, "m k"]] | None:
        """The record and the probabilities of a finished (recipe, fold); None if it must be measured (again)."""
        record = self._folds.get((recipe, fold))
        if record is None:
            return None
        try:
            return record, np.load(self._place(recipe, fold), allow_pickle=False)
        except (OSError, ValueError, EOFError):  # the array was removed or damaged by somebody else
            return None

    def close(self) -> None:
        """Let others write."""
        self._file.close()
        self._lock.release()

    def _place(self, recipe: str, fold: int) -> Path:
        return self.run / TRIALS / f"{recipe[:16]}-{fold}.npy"


def _locked(run: Path) -> FileLock:
    lock = FileLock(run / LOCK)
    try:
        run.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        raise RunError(
            f"Another study is writing to {run} now. Wait for it, or choose another --out."
        ) from None
    except OSError as error:
        raise RunError(
            f"{run} cannot be written: {error.strerror or error}. Choose another --out."
        ) from error
    return lock


def _fold_key(record: Mapping[str, Any]) -> tuple[Any, Any]:
    return record.get("recipe"), record.get("fold")


def read(run: Path) -> list[dict[str, Any]]:
    """All whole records of a run's journal; a torn last line is left out.

    Raises RunError if a line before the last one is not a record.
    """
    try:
        content = (run / FILE).read_bytes()
    except FileNotFoundError:
        return []
    records = []
    for number, line in enumerate(content.split(b"\n")[:-1], start=1):
        record = _record(line)
        if record is None:
            raise RunError(
                f"{run / FILE}, line {number}, is damaged. Choose another --out, or --overwrite to begin again."
            )
        records.append(record)
    return records


def _record(line: bytes) -> dict[str, Any] | None:
    """The record on a line, or None if it is not one: it has a kind, and the seconds it was written at."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    sound = isinstance(record, dict) and isinstance(record.get("kind"), str)
    at = record.get("at") if sound else None
    return record if isinstance(at, (int, float)) and math.isfinite(at) else None


def _cut_torn_tail(path: Path) -> None:
    """A line that SIGKILL cut short has no newline: it never happened."""
    if not path.exists():
        return
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        with path.open("r+b") as file:
            file.truncate(whole)
