"""Which of a study's numbers goes into which plot.

In: the candidates of a run and the leading metric. Out: `Markup` of the figures, each with what it says in words.
A candidate without the number in question is left out of that figure.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from graft.report import plots, sketches, wording
from graft.report.reading import Candidate

LABELLED = 14  # more labels than this hide the marks
DEPTHS = 48


@dataclass(frozen=True, slots=True)
class Figure:
    """A plot with a title and a caption of plain text."""

    svg: Markup
    title: str = ""
    caption: str = ""


def against_cost(
    candidates: Sequence[Candidate],
    shown: Sequence[Candidate],
    *,
    metric: str,
    chosen: str | None,
    cost: Callable[[Candidate], float | None],
    x_label: str,
    show_x: Callable[[float], str],
) -> Markup:
    """The leading metric against a cost; the candidates not in `shown` are faint dots without an interval.

    The range reaches from the best candidate to the weakest backbone at its best tap; what lies beyond is left out,
    and so is what was not measured on every fold.
    """
    main = {candidate.id for candidate in shown}
    leading = leaders([candidate for candidate in candidates if candidate.complete], metric)
    order = sorted(candidates, key=lambda c: (c.id in main, c.tied, c.strategy == "scratch", c.id == chosen))
    marks = []
    for candidate in order:
        x, y = cost(candidate), candidate.metrics.get(metric)
        if x is None or y is None or not candidate.complete:
            continue
        low, high = candidate.intervals.get(metric, (None, None)) if candidate.id in main else (None, None)
        marks.append(
            plots.Mark(
                *(
                    x,
                    y,
                    f"{_name(candidate)}: {wording.METRICS.get(metric, metric)} {wording.score(y)}, {show_x(x)}",
                ),
                kind=_kind(candidate, chosen=chosen, faint=candidate.id not in main),
                low=low,
                high=high,
                label=_label(candidate, leading) if candidate.id in main and len(main) <= LABELLED else "",
            )
        )
    ends = [
        end
        for c in leading
        for end in (c.metrics.get(metric), *c.intervals.get(metric, ()))
        if end is not None
    ]
    if not ends:
        return Markup("")
    name = wording.METRICS.get(metric, metric)
    return plots.scatter(marks, x_label=x_label, y_label=name, show_x=show_x, y_range=plots.padded(ends))


def leaders(candidates: Sequence[Candidate], metric: str) -> list[Candidate]:
    """The best tap of each backbone and strategy."""
    rows: dict[tuple[str, str], list[Candidate]] = defaultdict(list)
    for candidate in candidates:
        rows[candidate.backbone, candidate.strategy].append(candidate)
    return [best(row, metric) for row in rows.values()]


def by_depth(candidates: Sequence[Candidate], *, metric: str, chosen: str | None) -> list[Figure]:
    """One small plot per backbone (and fit, input and size of the images) that was measured at more than one tap, the best first."""
    rows: dict[tuple[object, ...], list[Candidate]] = defaultdict(list)
    for candidate in candidates:
        if (
            candidate.tap_index is not None
            and metric in candidate.metrics
            and candidate.strategy in ("frozen", "random")
        ):
            key = candidate.backbone, candidate.strategy, candidate.fit, candidate.input, candidate.size
            rows[key].append(candidate)
    several = [sorted(row, key=lambda c: c.tap_index or 0.0) for row in rows.values() if len(row) > 1]
    several.sort(
        key=lambda row: best(row, metric).metrics[metric], reverse=metric not in wording.LOWER_IS_BETTER
    )
    values = [candidate.metrics[metric] for row in several for candidate in row]
    if not values:
        return []
    room = max((max(values) - min(values)) * 0.06, 0.005)
    return [_depth(row, metric, chosen, (min(values) - room, max(values) + room)) for row in several[:DEPTHS]]


def best(candidates: Sequence[Candidate], metric: str) -> Candidate:
    """The candidate with the best value of `metric`; one without a value is the worst."""
    lower = metric in wording.LOWER_IS_BETTER
    worst = float("inf") if lower else float("-inf")
    pick = min if lower else max
    return pick(candidates, key=lambda candidate: candidate.metrics.get(metric, worst))


def class_counts(counts: Sequence[tuple[str, float]]) -> Markup:
    """Images per class: up to 30 classes."""
    rows = [(name, value, wording.count(value)) for name, value in counts]
    return sketches.bars(rows, described="images per class")


def _depth(row: list[Candidate], metric: str, chosen: str | None, y_range: tuple[float, float]) -> Figure:
    top = best(row, metric)
    points = tuple((float(index), candidate.metrics[metric]) for index, candidate in enumerate(row))
    place = row.index(top)
    picked = next((index for index, candidate in enumerate(row) if candidate.id == chosen), None)
    marked = place if picked is None else picked
    told = "; ".join(f"{c.tap} {wording.score(c.metrics[metric])}" for c in row)
    line = plots.Line(
        points, f"{top.short}: {told}", kind="" if picked is None else "choice", best=points[marked]
    )
    svg = plots.lines(
        [line],
        described=f"{wording.METRICS.get(metric, metric)} of {top.short} by tap: {told}",
        x_ticks=[(0.0, _tap(row[0])), (float(len(row) - 1), _tap(row[-1]))],
        y_range=y_range,
        width=300.0,
        height=170.0,
    )
    caption = f"best at {top.tap}: {wording.score(top.metrics[metric])}"
    if picked == place:
        caption = f"recommended and {caption}"
    elif picked is not None:
        caption += f"; recommended: {row[picked].tap}, {wording.score(row[picked].metrics[metric])}"
    title = top.backbone + (", random weights" if top.strategy == "random" else "")
    variant = top.id.rpartition("@")[2] if "@" in top.id and top.strategy == "frozen" else ""
    return Figure(svg, f"{title}, {variant}" if variant else title, caption)


def _kind(candidate: Candidate, *, chosen: str | None, faint: bool) -> str:
    kinds = ["tied"] if candidate.tied else []
    if candidate.strategy == "scratch":
        kinds.append("scratch")
    if candidate.id == chosen:
        kinds.append("choice")
    elif faint:
        kinds.append("faint")
    return " ".join(kinds)


def _label(candidate: Candidate, leading: Sequence[Candidate]) -> str:
    """The architecture; with its weights or its tap where that alone would not tell it apart."""
    alike = {other.backbone for other in leading if other.short == candidate.short}
    name = candidate.short if len(alike) < 2 else candidate.backbone
    return name if candidate in leading or not candidate.tap else f"{candidate.short} · {candidate.tap}"


def _name(candidate: Candidate) -> str:
    return f"{candidate.short} at {candidate.tap}" if candidate.tap else candidate.short


def _tap(candidate: Candidate) -> str:
    return wording.shortened(candidate.tap or "", 16)
