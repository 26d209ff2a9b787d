"""Everything the template names, worked out of a run: complete, with None or an empty list for what is not known.

In: a `Run`, the mistakes and the samples. Out: a dictionary for the template. Nothing is measured here; names are
passed on as they are, because the template escapes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from markupsafe import Markup

from graft.report import (
    amounts,
    curves,
    depth,
    examples,
    figures,
    heatmap,
    inputs,
    plan,
    position,
    preview,
    reading,
    reject,
    retrieval,
    seconds,
    shrink,
    sketches,
    wording,
)
from graft.report.examples import Mistake
from graft.report.reading import Candidate, Run, at, items, mapping, text
from graft.report.wording import number
from graft.version import VERSION

PAIRS = 12
DRAWN_COUNTS = 30
COUNTS = (
    *("images", "classes", "excluded", "development", "test"),
    *("near_duplicates", "exact_duplicates", "conflicts"),
)
ROLES = (("most_accurate", "most accurate"), ("smallest", "smallest"), ("fastest", "fastest"))


@dataclass(frozen=True, slots=True)
class Headline:
    """The number that stands at the top, and what kind of number it is.

    `opened`: for how many candidates the test images were opened; None where the run does not tell.
    """

    metric: str
    value: float | None
    interval: tuple[float, float] | None
    kind: str
    opened: float | None = None


@dataclass(frozen=True, slots=True)
class Pair:
    """Two classes that were confused: `count` images, `share` of those labelled `label`."""

    label: str
    predicted: str
    count: int
    share: float


def of(
    record: Run, mistakes: Sequence[Mistake], samples: dict[str, list[str]], *, rows: int
) -> dict[str, Any]:
    """Everything the template names; tables and plots have at most `rows` candidates or classes."""
    leading = text(record.settings, "metric") or text(record.study, "choice", "headline", "metric")
    metric = leading or "macro_f1"
    by_id = {candidate.id: candidate for candidate in record.candidates}
    choice = by_id.get(text(record.study, "choice", "id") or "")
    return {
        "words": wording,
        "version": text(record.study, "graft") or VERSION,
        "metric": metric,
        "choice": choice,
        **_data(record),
        **_answer(record, metric, by_id),
        **_candidates(record, metric, choice, rows=rows),
        "versus": _versus(record, by_id),
        "amounts": amounts.section(record, metric),
        "inputs": inputs.of(record),
        "shrink": shrink.of(record),
        "retrieval": retrieval.section(record, rows=rows),
        "ensemble": _ensemble(record),
        "threshold": _threshold(record),
        **_confusion(record),
        "per_class": _per_class(choice)[:rows],
        "preview": preview.preview(record.folder),
        "curves": curves.section(record.candidates, metric, chosen=choice.id if choice else None, rows=rows),
        "work": seconds.section(record, metric),
        "frozen_depth": depth.section(record, metric),
        "plan": plan.section(record),
        "mistakes": mistakes,
        "samples": samples,
        "wrong": examples.wrong(record.predictions) if record.predictions is not None else None,
        "position": position.section(record),
        "reject": reject.section(record),
        **_making(record),
    }


def _data(record: Run) -> dict[str, Any]:
    """What the data set is and what was wrong with it."""
    given = mapping(record.study, "dataset")
    counts = [
        (str(name), value)
        for name, raw in mapping(given, "counts").items()
        if (value := number(raw)) is not None
    ]
    return {
        "name": text(given, "name") or record.folder.resolve().name,
        "dataset": {name: number(given.get(name)) for name in COUNTS},
        "grey": given.get("grey") is True,
        "test_origin": text(given, "test_origin"),
        "class_counts": figures.class_counts(counts) if len(counts) <= DRAWN_COUNTS else Markup(""),
        "class_range": sorted(value for _, value in counts) if len(counts) > DRAWN_COUNTS else [],
        "remarks": record.remarks,
        "remark_counts": sorted(record.remark_counts.items(), key=lambda entry: -entry[1]),
    }


def _answer(record: Run, metric: str, by_id: dict[str, Candidate]) -> dict[str, Any]:
    """The recommendation and what speaks for the others."""
    reason = text(record.study, "choice", "reason") or ""
    missed = text(record.study, "choice", "missed")
    return {
        "headline": _headline(record, metric),
        "reason": reason,
        "missed": missed if missed and missed not in reason else None,
        "runners_up": _runners_up(record, by_id),
        "test": _test(record),
        "notices": [str(notice) for notice in items(record.study, "notices")],
        "seconds": {name: number(at(record.study, "seconds", name)) for name in ("total", "first_answer")},
    }


def _candidates(record: Run, metric: str, choice: Candidate | None, *, rows: int) -> dict[str, Any]:
    """The tables of candidates and the plots made of them."""
    marks = _marks(record)
    ranked = _ranked(record.candidates, metric)
    chosen = choice.id if choice else None
    shown = _shown(ranked, metric, keep={*marks, chosen or ""})[:rows]
    listed = ranked[:rows]
    against = partial(figures.against_cost, listed, shown, metric=metric, chosen=chosen)
    return {
        "marks": marks,
        "shown": shown,
        "ranked": listed,
        "unranked": len(ranked) - len(listed),
        "tied": sum(candidate.tied for candidate in ranked),
        "bar": partial(_bar, scale=_scale(shown, metric)),
        "against_size": against(
            cost=lambda candidate: candidate.bytes, x_label="size of the packed model", show_x=wording.size
        ),
        "against_latency": against(
            cost=lambda candidate: candidate.latency_ms,
            x_label="latency, one image",
            show_x=wording.milliseconds,
        ),
        "picked": [
            (name, why) for name, why in mapping(record.study, "backbones").items() if isinstance(why, str)
        ],
        "second_opinions": any(candidate.knn is not None for candidate in ranked),
        "depths": figures.by_depth(ranked, metric=metric, chosen=chosen),
    }


def _making(record: Run) -> dict[str, Any]:
    """How the numbers were made, and how to make them again."""
    return {
        "folds": number(record.settings.get("folds")),
        "seed": number(record.settings.get("seed")),
        "settings": _table({name: value for name, value in record.settings.items() if name != "command"}),
        "recipe": _table(mapping(record.study, "recipe")),
        "trained": text(record.study, "training", "in_words"),
        "environment": _table(record.environment),
        "command": record.command,
    }


def _marks(record: Run) -> dict[str, list[str]]:
    """The roles of the runners-up by candidate."""
    marks: dict[str, list[str]] = {}
    for role, words in ROLES:
        found = text(record.study, "choice", "runners_up", role, "id")
        if found:
            marks.setdefault(found, []).append(words)
    return marks


def _runners_up(record: Run, by_id: dict[str, Candidate]) -> list[tuple[str, Candidate, str]]:
    found = []
    for role, words in ROLES:
        runner = mapping(record.study, "choice", "runners_up", role)
        candidate = by_id.get(text(runner, "id") or "")
        if candidate is not None:
            found.append((words, candidate, text(runner, "why") or ""))
    return found


def _ranked(candidates: Sequence[Candidate], metric: str) -> list[Candidate]:
    """Best first; those without the metric last."""
    sign = 1 if metric in wording.LOWER_IS_BETTER else -1
    return sorted(candidates, key=lambda c: (metric not in c.metrics, sign * c.metrics.get(metric, 0.0)))


def _shown(ranked: Sequence[Candidate], metric: str, *, keep: set[str]) -> list[Candidate]:
    """The best tap of each backbone, and whatever has a role."""
    wanted = {candidate.id for candidate in figures.leaders(ranked, metric)} | keep
    return [candidate for candidate in ranked if candidate.id in wanted]


def _scale(shown: Sequence[Candidate], metric: str) -> tuple[float, float]:
    """The range of the interval bars in the table: that of the better half, so that the bars can be told apart."""
    ends = [end for candidate in shown[: len(shown) // 2 + 1] for end in candidate.intervals.get(metric, ())]
    return (min(ends), max(ends)) if ends and max(ends) > min(ends) else (0.0, 1.0)


def _bar(bounds: tuple[float, float], scale: tuple[float, float]) -> str:
    """The CSS of an interval bar inside a track that stands for `scale`."""
    left, right = (100 * min(max((end - scale[0]) / (scale[1] - scale[0]), 0.0), 1.0) for end in bounds)
    return f"left:{min(left, 97):.1f}%;width:{right - left:.1f}%"


def _headline(record: Run, metric: str) -> Headline:
    headline = mapping(record.study, "choice", "headline")
    leading = text(headline, "metric") or metric
    name = leading if leading in headline else "macro_f1"
    return Headline(
        name,
        number(headline.get(name)),
        reading.interval(headline, "interval"),
        text(headline, "kind") or "",
        number(at(record.study, "choice", "test", "opened")),
    )


def _test(record: Run) -> dict[str, Any] | None:
    test = at(record.study, "choice", "test")
    if not isinstance(test, dict):
        return None
    metrics = {
        name: value for name, raw in mapping(test, "metrics").items() if (value := number(raw)) is not None
    }
    intervals = {name: reading.interval(test, "interval", name) for name in metrics}
    return {"images": number(test.get("images")), "metrics": metrics, "intervals": intervals}


def _versus(record: Run, by_id: dict[str, Candidate]) -> dict[str, Any]:
    """From scratch against transfer; the difference is transfer minus scratch."""
    versus = mapping(record.study, "scratch_versus_transfer")
    difference, bounds = number(versus.get("difference")), reading.interval(versus, "interval")
    drawn = Markup("")
    if difference is not None and bounds is not None:
        drawn = sketches.against_zero(difference, bounds, left="from scratch ahead", right="transfer ahead")
    pair = [by_id.get(text(versus, name) or "") for name in ("transfer", "scratch")]
    return {
        "sentence": text(versus, "sentence"),
        "difference": difference,
        "interval": bounds,
        "svg": drawn,
        "pair": [candidate for candidate in pair if candidate is not None],
    }


def _ensemble(record: Run) -> dict[str, Any]:
    """What the mean of several candidates is worth, and of how much each it would be made."""
    members = [one for one in items(record.study, "ensembles", "members") if isinstance(one, dict)]
    shares = [(text(one, "id") or "", number(one.get("weight"))) for one in members]
    return {
        "sentence": text(record.study, "ensembles", "sentence"),
        "members": [(name, share) for name, share in shares if name and share is not None],
    }


def _threshold(record: Run) -> dict[str, Any]:
    """Where the line between two classes is drawn, and the locked test by it."""
    tested = mapping(record.study, "choice", "threshold", "test", "metrics")
    return {
        "sentence": text(record.study, "choice", "threshold", "sentence"),
        "test": [(name, value) for name, raw in tested.items() if (value := number(raw)) is not None],
    }


def _confusion(record: Run) -> dict[str, Any]:
    """The heat-map and the pairs of classes that were confused most."""
    names = reading.class_names(record.study)
    rows = items(record.study, "choice", "confusion")
    if record.predictions is not None and len(rows) != len(record.predictions.classes):
        names, rows = record.predictions.classes, examples.confusion(record.predictions)
    if (
        not names
        or len(rows) != len(names)
        or any(not isinstance(r, list) or len(r) != len(names) for r in rows)
    ):
        return {"confusion": Markup(""), "pairs": [], "drawn": False}
    counts = np.array([[number(value) or 0.0 for value in row] for row in rows])
    described = (
        f"confusion matrix of {len(names)} classes, {np.trace(counts):.0f} of {counts.sum():.0f} right"
    )
    totals = counts.sum(axis=1)
    wrong = counts - np.diag(np.diag(counts))
    worst = np.argsort(-wrong, axis=None, kind="stable")[:PAIRS]
    pairs = [(int(cell) // len(names), int(cell) % len(names)) for cell in worst]
    return {
        "confusion": heatmap.heat_map(counts, names, described=described),
        "drawn": len(names) <= heatmap.DRAWN_CLASSES,
        "pairs": [
            Pair(names[row], names[column], int(wrong[row, column]), float(wrong[row, column] / totals[row]))
            for row, column in pairs
            if wrong[row, column] > 0
        ],
    }


def _per_class(choice: Candidate | None) -> list[dict[str, Any]]:
    """The per-class numbers of the choice, the weakest class first."""
    rows = [
        {
            "class": str(row.get("class")),
            **{name: number(row.get(name)) for name in ("precision", "recall", "f1", "support")},
        }
        for row in (choice.per_class if choice else ())
    ]
    return sorted(rows, key=lambda row: 2.0 if row["f1"] is None else row["f1"])


def _table(facts: dict[str, Any]) -> list[tuple[str, str]]:
    """Names and values as text, those that are not set left out."""
    shown = [(name.replace("_", " "), _value(value)) for name, value in facts.items()]
    return [(name, value) for name, value in shown if value]


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name}: {_value(inner)}" for name, inner in value.items() if inner is not None)
    if isinstance(value, list):
        return ", ".join(map(_value, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
