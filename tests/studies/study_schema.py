"""What `study.json` promises to whoever reads it, as a checker: `problems(facts)` lists what is missing or wrong."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NUMBER = (int, float)
CHOICE = {"id": str, "headline": dict, "reason": str, "test": (dict, type(None)), "runners_up": dict}
CANDIDATE = {
    "id": str,
    "backbone": str,
    "strategy": str,
    "tap": str,
    "cut": str,
    "metrics": dict,
    "interval": dict,
    "cost": dict,
    "tied": bool,
    "complete": bool,
    "within_limits": bool,
}
COST = {
    "parameters": int,
    "bytes": (int, type(None)),
    "latency_ms": (*NUMBER, type(None)),
    "train_seconds": NUMBER,
}
EPOCH: dict[str, Any] = {
    "number": int,
    "train_loss": NUMBER,
    "train_accuracy": NUMBER,
    "train_metric": NUMBER,
    "validation_loss": (*NUMBER, type(None)),
    "validation_accuracy": (*NUMBER, type(None)),
    "validation_metric": (*NUMBER, type(None)),
}
STRATEGIES = ("frozen", "depths", "random", "scratch", "partial", "full", "shrunk", "ensemble")
METRICS = ("macro_f1", "accuracy", "log_loss", "balanced_accuracy")


def read_strictly(path: Path) -> dict[str, Any]:
    """The JSON of a file; NaN and infinity, which are no JSON, raise ValueError."""

    def refuse(name: str) -> None:
        raise ValueError(f"{path} holds {name}")

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


def problems(facts: dict[str, Any]) -> list[str]:
    """Everything that is not as promised; an empty list if all is well."""
    return list(_problems(facts))


def _problems(facts: dict[str, Any]) -> Iterator[str]:
    yield from _fields(facts.get("dataset"), {"images": int, "classes": int, "excluded": int}, "dataset")
    yield from _fields(facts.get("seconds"), {"total": NUMBER, "first_answer": NUMBER}, "seconds")
    candidates = facts.get("candidates")
    if not isinstance(candidates, list) or not candidates:
        yield "candidates: not a list, or empty"
        return
    for row in candidates:
        yield from _candidate(row)
    names = [row["id"] for row in candidates]
    if len(set(names)) < len(names):
        yield "candidates: an id occurs twice"
    yield from _choice(facts.get("choice"), {row["id"]: row for row in candidates})
    wanted = {
        "difference": (*NUMBER, type(None)),
        "interval": (list, type(None)),
        "sentence": str,
    }
    versus = facts.get("scratch_versus_transfer")
    yield from _fields(versus, wanted, "scratch_versus_transfer")
    if isinstance(versus, dict) and versus.get("interval") is not None:
        yield from _interval(versus["interval"], versus["difference"], "scratch_versus_transfer.interval")


def _candidate(row: dict[str, Any]) -> Iterator[str]:
    where = f"candidate {row.get('id')}"
    yield from _fields(row, CANDIDATE, where)
    yield from _fields(row.get("cost"), COST, f"{where}.cost")
    yield from _fields(row.get("metrics"), dict.fromkeys(METRICS, NUMBER), f"{where}.metrics")
    for epoch in (epoch for fold in row.get("curves") or () for epoch in fold["epochs"]):
        yield from _fields(epoch, EPOCH, f"{where}.curves")
    if row["strategy"] not in STRATEGIES:
        yield f"{where}: strategy {row['strategy']}"
    if row["complete"]:
        if "macro_f1" not in row["interval"]:
            yield f"{where}: no interval of macro_f1"
        for name, pair in row["interval"].items():
            yield from _interval(pair, row["metrics"][name], f"{where}.interval.{name}")
    elif row["tied"] and not row["interval"]:
        yield f"{where}: tied, but not measured"


def _choice(choice: Any, rows: dict[str, dict[str, Any]]) -> Iterator[str]:
    yield from _fields(choice, CHOICE, "choice")
    if not isinstance(choice, dict):
        return
    named = [choice["id"], *(one["id"] for one in choice["runners_up"].values())]
    yield from (f"choice: {name} is no candidate" for name in named if name not in rows)
    if set(choice["runners_up"]) != {"most_accurate", "smallest", "fastest"}:
        yield f"choice: runners-up {sorted(choice['runners_up'])}"
    if choice["id"] in rows and not rows[choice["id"]]["tied"]:
        yield "choice: it is not tied with the best"
    headline = choice["headline"]
    yield from _fields(
        headline, {"macro_f1": NUMBER, "interval": list, "kind": str, "metric": str}, "headline"
    )
    yield from _interval(headline["interval"], headline[headline["metric"]], "headline.interval")
    if (headline["kind"] == "test") != (choice["test"] is not None):
        yield f"headline: its kind is {headline['kind']}"
    opened = (choice["test"] or {}).get("opened", 1)  # runs of before it was counted do not tell
    if not isinstance(opened, int) or opened < 1:
        yield f"choice.test.opened: {opened!r}"


def _fields(record: Any, wanted: dict[str, Any], where: str) -> Iterator[str]:
    if not isinstance(record, dict):
        yield f"{where}: missing"
        return
    for name, kind in wanted.items():
        value = record.get(name, ...)
        truth = isinstance(value, bool) and kind is not bool
        if value is ... or truth or not isinstance(value, kind):
            yield f"{where}.{name}: {value!r}"
        elif isinstance(value, float) and not math.isfinite(value):
            yield f"{where}.{name}: not finite"


def _interval(pair: Any, value: float, where: str) -> Iterator[str]:
    if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(edge, NUMBER) for edge in pair):
        yield f"{where}: {pair!r}"
    elif not pair[0] <= value <= pair[1]:
        yield f"{where}: {value} is not within {pair}"
