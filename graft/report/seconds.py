"""How far each strategy gets per second spent: the metric against the work that went into a candidate.

In: the candidates of a run and, for what was fine-tuned, the rows of its plan. Out: a sentence, a row per strategy, and a
plot as `Markup`: a mark per candidate with its interval, and per strategy a line through the best for so many seconds.

The seconds of a candidate are those of its features and of its training on all folds; for a fine-tuned one those of the
views behind its frozen prefix, too. Candidates that share a pass over the images each count it whole.

Not covered: candidates measured on some folds only, which saw other images, and what is done once for all candidates
(checking, decoding, packing).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from graft.report import plots, wording
from graft.report.reading import Candidate, Interval, Run, at, items, text
from graft.report.wording import number

NAMES = {
    "frozen": "frozen",
    "depths": "frozen, several depths",
    "partial": "upper stages fine-tuned",
    "full": "everything fine-tuned",
    "scratch": "from scratch",
    "shrunk": "made smaller",
    "ensemble": "several together",
    "random": "random weights, frozen",
}
LONGEST = 1e9  # seconds; beyond, it is no time
MARKS = 400  # more dots cannot be told apart
WHISKERS = 24  # more candidates, and only those on the lines keep their intervals


@dataclass(frozen=True, slots=True)
class Spent:
    """One candidate: its seconds, and the value and 95 % interval of the metric."""

    candidate: Candidate
    seconds: float
    value: float
    interval: Interval | None

    @property
    def strategy(self) -> str:
        return self.candidate.strategy


@dataclass(frozen=True, slots=True)
class Reach:
    """A strategy: how many candidates, the best of them, and a symbol for the legend."""

    name: str
    symbol: Markup
    count: int
    best: Spent


def section(record: Run, metric: str) -> dict[str, Any] | None:
    """What the template names, or None with fewer than two candidates that have both a score and a time."""
    spent = _spent(record, metric)
    if len(spent) < 2:
        return None
    strategies = [name for name in NAMES if any(one.strategy == name for one in spent)]
    strategies += sorted({one.strategy for one in spent} - set(NAMES))
    reach = [
        _reach(strategy, [one for one in spent if one.strategy == strategy], metric)
        for strategy in strategies
    ]
    return {
        "rows": reach,
        "sentence": _sentence(reach, metric),
        "svg": _plot(spent, reach, metric),
        "unfinished": sum(not candidate.complete for candidate in record.candidates),
    }


def work_of(record: Run) -> dict[str, float]:
    """The seconds that went into each candidate whose seconds are known."""
    planned = {
        text(row, "id"): seconds
        for row in items(record.study, "plan")
        if (seconds := number(at(row, "real_seconds"))) is not None
    }
    return {
        c.id: max(c.train_seconds or 0.0, planned.get(c.id, 0.0)) + (c.extract_seconds or 0.0)
        for c in record.candidates
        if c.train_seconds is not None or c.extract_seconds is not None
    }


def frontier(spent: Sequence[Spent], metric: str) -> list[Spent]:
    """Those that are better than all that took less time, the quickest first."""
    sign = -1.0 if metric in wording.LOWER_IS_BETTER else 1.0
    kept: list[Spent] = []
    for one in sorted(spent, key=lambda one: (one.seconds, -sign * one.value)):
        if not kept or sign * one.value > sign * kept[-1].value:
            kept.append(one)
    return kept


def _spent(record: Run, metric: str) -> list[Spent]:
    """The complete candidates with a score and a time above zero."""
    work = work_of(record)
    found = []
    for candidate in record.candidates:
        value, seconds = candidate.metrics.get(metric), work.get(candidate.id)
        if candidate.complete and value is not None and seconds is not None and 0 < seconds < LONGEST:
            found.append(Spent(candidate, seconds, value, candidate.intervals.get(metric)))
    return found


def _reach(strategy: str, spent: Sequence[Spent], metric: str) -> Reach:
    name = NAMES.get(strategy, strategy)
    return Reach(name, plots.symbol(_kind(strategy)), len(spent), frontier(spent, metric)[-1])


def _sentence(reach: Sequence[Reach], metric: str) -> str:
    """The best of each strategy and its seconds."""
    told = [
        f"{row.name} {wording.score(row.best.value)} after {wording.seconds(row.best.seconds)}"
        for row in reach
    ]
    if len(told) == 1:
        return f"Only one strategy was measured on every fold; best {wording.METRICS.get(metric, metric)}: {told[0]} of work."
    return (
        f"The best {wording.METRICS.get(metric, metric)} of each strategy and the work that went into it: "
        f"{'; '.join(told)}."
    )


def _plot(spent: Sequence[Spent], reach: Sequence[Reach], metric: str) -> Markup:
    """A mark per candidate, a line per strategy."""
    lower = metric in wording.LOWER_IS_BETTER
    ranked = sorted(spent, key=lambda one: one.value, reverse=not lower)[:MARKS]
    rows = {
        row.best.strategy: frontier([s for s in spent if s.strategy == row.best.strategy], metric)
        for row in reach
    }
    leading = {row.best.candidate.id: row.name for row in reach}
    cornering = {one.candidate.id for row in rows.values() for one in row}
    main = cornering if len(spent) > WHISKERS else {one.candidate.id for one in spent}
    y_range = _range(spent, reach)
    inside = [one.seconds for one in ranked if y_range[0] <= one.value <= y_range[1]]
    paths = [
        path
        for strategy, row in rows.items()
        if (path := _path(strategy, row, end=max(inside), y_range=y_range, metric=metric)) is not None
    ]
    order = sorted(ranked, key=lambda one: (one.candidate.id in leading, one.candidate.id in main))
    return plots.scatter(
        [
            _mark(
                one,
                leading.get(one.candidate.id, "") if len(reach) > 1 else "",
                faint=one.candidate.id not in main,
            )
            for one in order
        ],
        x_label="seconds of work on a candidate",
        y_label=wording.METRICS.get(metric, metric),
        show_x=wording.seconds,
        y_range=y_range,
        paths=paths,
    )


def _range(spent: Sequence[Spent], reach: Sequence[Reach]) -> tuple[float, float]:
    """From the weakest strategy's best, or the middle candidate, to the best; the rest is left out."""
    ends = [end for row in reach for end in (row.best.value, *(row.best.interval or ()))]
    values = sorted(one.value for one in spent)
    return plots.padded([*ends, values[len(values) // 2]])


def _path(
    strategy: str, row: Sequence[Spent], *, end: float, y_range: tuple[float, float], metric: str
) -> plots.Line | None:
    """Steps through those of the row that are drawn, on to the right edge."""
    seen = [one for one in row if y_range[0] <= one.value <= y_range[1]]
    if not seen:
        return None
    points = [(seen[0].seconds, seen[0].value)]
    for one in seen[1:]:
        points += [(one.seconds, points[-1][1]), (one.seconds, one.value)]
    points.append((max(end, seen[-1].seconds), points[-1][1]))
    told = "; ".join(f"{wording.seconds(one.seconds)} {wording.score(one.value)}" for one in seen)
    title = f"{NAMES.get(strategy, strategy)}, best {wording.METRICS.get(metric, metric)} so far: {told}"
    return plots.Line(tuple(points), title, kind=f"bare {_kind(strategy)}")


def _mark(one: Spent, label: str, *, faint: bool) -> plots.Mark:
    low, high = (None, None) if faint or one.interval is None else one.interval
    title = f"{one.candidate.id}: {wording.score(one.value)}, {wording.seconds(one.seconds)}"
    return plots.Mark(
        *(one.seconds, one.value, title),
        kind=_kind(one.strategy) + (" faint" if faint else ""),
        low=low,
        high=high,
        label=label,
    )


def _kind(strategy: str) -> str:
    return strategy if strategy in NAMES else "other"
