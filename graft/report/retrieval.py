"""The section "Finding similar images": how well the features find images of the same class.

In: a `Run`. Out: a dictionary for the template, or None where the study tells nothing of it. Nothing is measured here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from graft.report.reading import Candidate, Run, at, items, mapping, text
from graft.report.wording import number

MOST_COLUMNS = 4


@dataclass(frozen=True, slots=True)
class ClassRow:
    """Mean average precision of one class, by features."""

    name: str
    values: tuple[float | None, ...]


def section(record: Run, *, rows: int) -> dict[str, Any] | None:
    """What the template names: at most `rows` classes, the hardest first by the first features."""
    told = mapping(record.study, "retrieval")
    listed = [row for row in items(told, "rows") if isinstance(row, dict)][:MOST_COLUMNS]
    names = [name for name in items(told, "classes") if isinstance(name, str)]
    if not listed or not names:
        return None
    unchanged = {c.id for c in record.candidates if _kept_frozen(c)}
    columns = [items(row, "by_class") for row in listed]
    classes = [
        ClassRow(name, tuple(_value(column, place) for column in columns)) for place, name in enumerate(names)
    ]
    classes.sort(key=lambda row: (row.values[0] is None, row.values[0] or 0.0, row.name))
    return {
        "sentence": text(told, "sentence"),
        "queries": number(at(told, "queries")),
        "gallery": number(at(told, "gallery")),
        "unchanged": [name for row in listed if (name := text(row, "id")) in unchanged],
        "features": [(text(row, "id") or "", number(at(row, "mean"))) for row in listed],
        "classes": classes[:rows],
        "more": max(0, len(classes) - rows),
    }


def _kept_frozen(candidate: Candidate) -> bool:
    """Whether tuning on the first fold, whose images are the queries, kept the network that it began with."""
    first = next((curve for curve in candidate.curves if number(curve.get("fold")) == 0), {})
    return candidate.strategy in ("partial", "full") and number(first.get("best_epoch")) == 0


def _value(column: list[Any], place: int) -> float | None:
    return number(column[place]) if place < len(column) else None
