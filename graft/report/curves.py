"""Training and validation curves of every candidate that was trained epoch by epoch, as small multiples.

In: the candidates of a run. Out: per candidate its losses and the study's metric as `Markup`, a thin line per fold and a
thick one for their mean, the epoch that was kept marked on each fold, and in words why training ended. Where an older run
knows no metric of an epoch, and where the metric is the loss itself, it is the accuracy.

The mean is that of the folds that came so far, as long as they are at least half of them. Of all candidates but the first
`TRAINED` the mean alone is drawn, which keeps the page small; beyond `rows` they are named.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from markupsafe import Markup

from graft.report import plots, wording
from graft.report.depth import learned_stages, taps_of
from graft.report.reading import Candidate, at, items, text
from graft.report.wording import number

TRAINED = 12
FOLD_LINES = 10  # of a panel, thin
LARGEST = 1e6  # beyond, it is no epoch, and no loss that a plot could show
FOLD_POINTS, MEAN_POINTS = 48, 120
WIDTH, HEIGHT = 300.0, 170.0
Points = list[tuple[float, float]]
Runs = Sequence[tuple[dict[str, Any], list[dict[str, Any]]]]


@dataclass(frozen=True, slots=True)
class Trained:
    """The curves of one candidate: `panels` from top to bottom; `chosen` if it is recommended."""

    title: str
    detail: str
    panels: list[Markup]
    caption: str
    chosen: bool


def section(candidates: Sequence[Candidate], metric: str, *, chosen: str | None, rows: int) -> dict[str, Any]:
    """What the template names: `trained`, the recommended one first, `more` to fold away, `others` by name alone."""
    with_curves = sorted((c for c in candidates if _epochs(c)), key=lambda c: c.id != chosen)
    drawn = [
        _trained(c, candidates, metric, chosen=c.id == chosen, folds=FOLD_LINES if place < TRAINED else 0)
        for place, c in enumerate(with_curves[:rows])
    ]
    others = [c.id for c in with_curves[rows:]]
    return {"trained": drawn[:TRAINED], "more": drawn[TRAINED:], "others": others}


def _epochs(candidate: Candidate) -> Runs:
    """Every training of a candidate (a fold, or a fold and a member of an ensemble) that has epochs."""
    found = [(fold, [e for e in items(fold, "epochs") if isinstance(e, dict)]) for fold in candidate.curves]
    return [(fold, epochs) for fold, epochs in found if epochs]


def _trained(
    candidate: Candidate, candidates: Sequence[Candidate], metric: str, *, chosen: bool, folds: int
) -> Trained:
    """`folds`: of how many folds there is a line of its own."""
    runs = _epochs(candidate)
    title, detail = _name(candidate, candidates)
    field, name = _measure(runs, metric)
    losses, scores = _both(runs, "loss", folds), _both(runs, field, folds)
    panels = [
        _drawn(lines, f"{shown} of {title} over the epochs", shown, bottom=bottom)
        for lines, shown, bottom in ((losses, "log loss", not scores), (scores, name, True))
        if lines
    ]
    return Trained(title, detail, panels, _caption(runs), chosen)


def _measure(runs: Runs, metric: str) -> tuple[str, str]:
    """What is drawn beside the loss, as it is called in an epoch and for people."""
    known = any(number(epoch.get("train_metric")) is not None for _, epochs in runs for epoch in epochs)
    if known and metric != "log_loss":
        return "metric", wording.METRICS.get(metric, metric)
    return "accuracy", wording.METRICS["accuracy"]


def _both(runs: Runs, field: str, folds: int) -> list[plots.Line]:
    """The lines of training, and above them those of validation."""
    return [
        *_panel(runs, f"train_{field}", "quiet", folds),
        *_panel(runs, f"validation_{field}", "choice", folds),
    ]


def _name(candidate: Candidate, candidates: Sequence[Candidate]) -> tuple[str, str]:
    """The network, and what of it learned."""
    if candidate.strategy == "scratch":
        return "From scratch", candidate.backbone if candidate.backbone != "scratch" else ""
    if candidate.strategy in ("partial", "full"):
        words = learned_stages(candidate.cut, candidate.tap, taps_of(candidates, candidate.backbone))[1]
        return candidate.backbone, f"{words}, read at {candidate.tap}" if candidate.tap else words
    return candidate.backbone, candidate.id.rpartition("+")[2] if "+" in candidate.id else ""


def _panel(runs: Runs, field: str, kind: str, folds: int) -> list[plots.Line]:
    """Thin lines of `folds` folds beneath the thick one of their mean; only those of validation have marks."""
    rows = [(fold, _points(epochs, field)) for fold, epochs in runs]
    rows = [(fold, points) for fold, points in rows if points]
    if not rows:
        return []
    told = field.replace("_", " ")
    thin = []
    for fold, points in rows[:folds] if len(rows) > 1 else ():
        name = f"fold {fold.get('fold')}, {told}"
        thin.append(
            plots.Line(
                _thinned(points, FOLD_POINTS), name, kind=f"bare thin {kind}", best=_best(fold, points, kind)
            )
        )
    mean = _mean([points for _, points in rows])
    name = f"mean of {len(rows)} folds, {told}" if len(rows) > 1 else f"fold {rows[0][0].get('fold')}, {told}"
    only = _best(*rows[0], kind) if len(rows) == 1 else None
    most = MEAN_POINTS if folds else FOLD_POINTS
    return [*thin, plots.Line(_thinned(mean, most), name, kind=f"bare mean {kind}", best=only)]


def _points(epochs: Sequence[dict[str, Any]], field: str) -> Points:
    pairs = [(number(epoch.get("number")), number(epoch.get(field))) for epoch in epochs]
    return [
        (x, y) for x, y in pairs if x is not None and y is not None and 1 <= x < LARGEST and abs(y) < LARGEST
    ]


def _best(fold: dict[str, Any], points: Points, kind: str) -> tuple[float, float] | None:
    kept = number(fold.get("best_epoch"))
    return next((point for point in points if point[0] == kept), None) if kind == "choice" else None


def _mean(rows: Sequence[Points]) -> Points:
    """The mean over the folds at every epoch that at least half of them reached."""
    values: dict[float, list[float]] = defaultdict(list)
    for points in rows:
        for x, y in points:
            values[x].append(y)
    return [(x, fmean(ys)) for x, ys in sorted(values.items()) if 2 * len(ys) >= len(rows)]


def _thinned(points: Points, most: int) -> tuple[tuple[float, float], ...]:
    """Every n-th point, and the last."""
    step = -(-len(points) // most)
    return tuple(points[::step]) + ((points[-1],) if (len(points) - 1) % step else ())


def _drawn(lines: Sequence[plots.Line], described: str, name: str, *, bottom: bool) -> Markup:
    xs = [x for line in lines for x, _ in line.points]
    first, last = min(xs), max(xs)
    marked = [tick for tick in plots.ticks(0.0, last, about=4) if tick == int(tick) and tick >= first]
    return plots.lines(
        lines,
        described=described,
        x_ticks=[(tick, f"{tick:.0f}") for tick in (marked if last > first else [first])],
        x_label="epoch" if bottom else "",
        y_label=name,
        width=WIDTH,
        height=HEIGHT + (20.0 if bottom else 0.0),
    )


def _caption(runs: Runs) -> str:
    """Which epochs were kept, of how many, and what ended the training."""
    parts = []
    kept = [int(best) for fold, _ in runs if (best := number(fold.get("best_epoch"))) is not None]
    planned = [number(epochs[0].get("planned")) for _, epochs in runs]
    most = max((number_ for number_ in planned if number_ is not None), default=None)
    if kept:
        of = f" of {most:.0f} planned" if most is not None else ""
        shown = ", ".join(map(str, kept[:FOLD_LINES])) + (" …" if len(kept) > FOLD_LINES else "")
        parts.append(f"Kept: epoch {shown}{of}{' (0: the head it started from)' if 0 in kept else ''}.")
    reasons = Counter(text(fold, "stopped") for fold, _ in runs if at(fold, "stopped"))
    if reasons:
        told = [
            wording.STOPS.get(str(reason), str(reason))
            + (f" ({count} of {len(runs)})" if len(reasons) > 1 else "")
            for reason, count in reasons.most_common()
        ]
        parts.append(f"Ended by {', '.join(told)}.")
    return " ".join(parts)
