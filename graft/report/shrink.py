"""How small the model can be: the score against bytes and against latency, and every step with its gates.

In: `shrink` of a run's `study.json`, read tolerantly. Out: rows for the table, the sentence, and two plots as `Markup`.
Steps that were kept are filled, those that were refused hollow; what was trained from scratch is a square.

Not covered: runs made before this was measured; for them there is nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from graft.report import plots, wording
from graft.report.reading import Run, interval, items, mapping, text
from graft.report.wording import number

MOST_POINTS = 200


@dataclass(frozen=True, slots=True)
class Step:
    """One smaller model; `difference` to the best full-size candidate, and what was decided."""

    name: str
    kind: str
    score: float | None
    difference: float | None
    interval: tuple[float, float] | None
    bytes: float | None
    latency_ms: float | None
    accepted: bool
    reason: str


def of(record: Run) -> dict[str, Any] | None:
    """What the template names, or None if nothing was shrunk."""
    told = mapping(record.study, "shrink")
    steps = [_step(row) for row in items(told, "steps") if isinstance(row, dict)]
    if not told or not steps:
        return None
    metric = text(told, "metric") or "macro_f1"
    reference = mapping(told, "reference")
    kept = {step.name for step in steps if step.accepted}
    made = {step.name for step in steps}
    points = [row for row in items(told, "curve") if isinstance(row, dict)][:MOST_POINTS]

    def drawn(cost: str, label: str, show: Callable[[float | None], str]) -> Markup:
        return _plot(points, cost, metric, label, show, kept=kept, made=made)

    return {
        "metric": metric,
        "sentence": text(told, "missed") or text(told, "sentence"),
        "tolerance": number(told.get("tolerance")),
        "reference": text(reference, "id"),
        "steps": steps,
        "against_size": drawn("bytes", "size of the packed model", wording.size),
        "against_latency": drawn("latency_ms", "latency, one image", wording.milliseconds),
    }


def _step(row: dict[str, Any]) -> Step:
    return Step(
        str(row.get("id")),
        str(row.get("kind")),
        number(row.get("score")),
        number(row.get("difference")),
        interval(row, "interval"),
        number(row.get("bytes")),
        number(row.get("latency_ms")),
        row.get("accepted") is True,
        str(row.get("reason") or ""),
    )


def _plot(
    points: Sequence[dict[str, Any]],
    cost: str,
    metric: str,
    label: str,
    show: Callable[[float | None], str],
    *,
    kept: set[str],
    made: set[str],
) -> Markup:
    marks = []
    for row in points:
        x, y, name = number(row.get(cost)), number(row.get("score")), str(row.get("id"))
        if x is None or y is None or x <= 0:
            continue
        kind = "scratch" if row.get("kind") == "scratch" else "tied" if name in kept else ""
        origin = "kept" if name in kept else "refused" if name in made else "measured before"
        marks.append(plots.Mark(x, y, f"{name}: {wording.score(y)}, {show(x)}, {origin}", kind))
    if len(marks) < 2:
        return Markup("")
    heights = sorted(mark.y for mark in marks)
    bottom = heights[len(heights) // 10] if metric not in wording.LOWER_IS_BETTER else heights[0]
    top = heights[-1] if metric not in wording.LOWER_IS_BETTER else heights[-1 - len(heights) // 10]
    room = max(0.02, (top - bottom) * 0.06)
    return plots.scatter(
        sorted(marks, key=lambda mark: mark.kind),
        x_label=label,
        y_label=wording.METRICS.get(metric, metric),
        show_x=show,
        y_range=(bottom - room, top + room),
    )
