"""The section "Colour, grey, edges": what each input is worth, and what the filters see.

In: a `Run`. Out: a dictionary for the template, or None where the study measured no other input. The strips of examples
were written by the study; a strip that is gone, or larger than it can be, is not shown. Nothing is measured here.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graft.report.reading import Candidate, Interval, Run, interval, items, mapping, text
from graft.report.wording import INPUTS, number

LARGEST_STRIP = 60_000  # bytes
MOST_ROWS = 8
STRIPS = ("rgb", "gray", "edges", "thin")


@dataclass(frozen=True, slots=True)
class InputRow:
    """One input of the table; the difference is to the images as they are, positive where this input is better."""

    name: str
    tap: str | None
    value: float | None
    interval: Interval | None
    difference: float | None
    difference_interval: Interval | None
    latency_ms: float | None
    bytes: float | None


def of(record: Run) -> dict[str, Any] | None:
    """What the template names, or None."""
    told = mapping(record.study, "inputs")
    rows = [row for row in items(told, "rows") if isinstance(row, dict)][:MOST_ROWS]
    metric = text(told, "metric") or "macro_f1"
    left_out = text(told, "left_out")
    if len(rows) < 2 and not left_out:
        return None
    by_id = {candidate.id: candidate for candidate in record.candidates}
    return {
        "backbone": text(told, "backbone"),
        "metric": metric,
        "sentence": text(told, "sentence"),
        "left_out": left_out,
        "rows": [_row(row, metric, by_id.get(text(row, "id") or "")) for row in rows]
        if len(rows) > 1
        else [],
        "strips": _strips(record.folder) if len(rows) > 1 else [],
    }


def _row(row: dict[str, Any], metric: str, candidate: Candidate | None) -> InputRow:
    """The interval is that of the candidate, as in every other table, where it is among the candidates."""
    known = candidate.intervals.get(metric) if candidate is not None else None
    word = text(row, "input") or ""
    return InputRow(
        name=INPUTS.get(word, word),
        tap=text(row, "tap"),
        value=number(row.get(metric)),
        interval=known or interval(row, "interval"),
        difference=number(row.get("difference")),
        difference_interval=interval(row, "difference_interval"),
        latency_ms=candidate.latency_ms if candidate is not None else None,
        bytes=candidate.bytes if candidate is not None else None,
    )


def _strips(folder: Path) -> list[tuple[str, str]]:
    """The name of each input and its examples as a data URI."""
    found = []
    for word in STRIPS:
        try:
            content = (folder / "trials" / f"seen-{word}.jpg").read_bytes()
        except OSError:
            continue
        if len(content) <= LARGEST_STRIP and content.startswith(b"\xff\xd8"):
            found.append((INPUTS[word], "data:image/jpeg;base64," + base64.b64encode(content).decode()))
    return found
