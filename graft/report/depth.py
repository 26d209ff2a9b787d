"""Accuracy by frozen depth: the frozen head, the last stage, the last two, everything, of each network that was tuned.

In: the candidates of a run and the rows of its plan. Out: per network the rows of a table, each with its policy of batch
normalisation, and a small plot as `Markup`. A candidate that was measured on some folds only is held against its frozen
head on those folds, never against a score on all images.

Not covered: an interval of the difference on single folds; how many folds agree is told instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from graft.report import plots, wording
from graft.report.reading import Candidate, Interval, Run, at, items, text
from graft.report.seconds import work_of
from graft.report.wording import number

TUNED = "+tuned:"
MOST = 12
HEAD = "head"
SHORT = {
    "frozen, new head": "frozen",
    "last stage": "last",
    "last two stages": "last two",
    "everything": "all",
}
BATCH_NORM = {
    "frozen": "statistics kept, scale and shift learn",
    "train": "statistics are learned, too",
    "reestimate": "statistics taken from these images first",
}


@dataclass(frozen=True, slots=True)
class Depth:
    """One depth of a network, or why it was not measured.

    `place` orders the depths, `seconds` are those of all work on it. `difference` to the frozen head (positive: better) is the mean over
    `folds`, of which `better` are ahead; `frozen_there` is the frozen head's own mean on them.
    """

    name: str
    place: float
    candidate: Candidate | None
    value: float | None
    interval: Interval | None
    seconds: float | None
    folds: tuple[int, ...]
    difference: float | None
    better: int | None
    frozen_there: float | None
    batch_norm: str
    why_not: str

    @property
    def some(self) -> bool:
        """Whether it was measured on some folds only."""
        return self.candidate is not None and not self.candidate.complete


@dataclass(frozen=True, slots=True)
class Network:
    """A network that was tuned: its depths from the frozen head downwards."""

    name: str
    tap: str | None
    rows: list[Depth]
    svg: Markup


def section(record: Run, metric: str) -> dict[str, Any] | None:
    """What the template names, or None if nothing was fine-tuned, or at a single depth with nothing to compare it to."""
    planned = [row for row in items(record.study, "plan") if isinstance(row, dict) and text(row, "id")]
    tuned = [c for c in record.candidates if c.strategy in ("partial", "full")]
    bases = list(dict.fromkeys(_base(c.id) for c in tuned))
    if not bases:
        return None
    folds = int(number(record.settings.get("folds")) or 0)
    policies = {text(row, "id"): text(row, "batch_norm_policy") or text(row, "batch_norm") for row in planned}
    fallback = text(record.study, "training", "settings", "batch_norm")
    found = {
        base: _depths(
            record,
            base,
            metric,
            tuned=[c for c in tuned if _base(c.id) == base],
            left=[row for row in planned if _base(str(row["id"])) == base],
            policies=policies,
            fallback=fallback,
        )
        for base in bases[:MOST]
    }
    if all(len(rows) < 2 for rows in found.values()):
        return None
    ends = [end for rows in found.values() for row in rows for end in _ends(row)]
    networks = [_network(record, base, rows, metric, ends) for base, rows in found.items()]
    return {
        "networks": networks,
        "more": len(bases) - len(networks),
        "folds": folds,
        "some": any(row.some for network in networks for row in network.rows),
        "policy": _one_policy(networks),
    }


def learned_stages(cut: str | None, tap: str | None, taps: Sequence[str]) -> tuple[float, str]:
    """How many stages learn below a tap when a network is cut, and that in words; `taps` from the first to the last."""
    if cut == "":
        return float("inf"), "everything"
    stages = [name for name in taps if name != HEAD]
    if tap is None or cut not in stages or tap not in taps:
        return 1_000.0, f"above {cut}"
    top = len(stages) if tap == HEAD else stages.index(tap) + 1
    count = top - stages.index(cut) - 1
    if count <= 0:
        return 0.5, f"above {cut}"
    return float(count), {1: "last stage", 2: "last two stages"}.get(count, f"last {count} stages")


def taps_of(candidates: Sequence[Candidate], backbone: str) -> list[str]:
    """The taps of a network in their order, as far as they were measured."""
    known = {
        c.tap: c.tap_index
        for c in candidates
        if c.backbone == backbone and c.strategy == "frozen" and c.tap and c.tap_index is not None
    }
    return [tap for tap in sorted(known, key=lambda tap: known[tap] or 0.0) if tap]


def _base(name: str) -> str:
    """The frozen candidate that a fine-tuned one started from."""
    return name.partition(TUNED)[0]


def _network(record: Run, base: str, rows: list[Depth], metric: str, ends: Sequence[float]) -> Network:
    """`ends`: what the plots of all networks have to show, so that they share one scale."""
    known = next(row.candidate for row in rows if row.candidate is not None)
    name = known.backbone + (f", {known.input_name}" if "@" in base and known.input else "")
    return Network(name, known.tap, rows, _plot(rows, metric, name, ends))


def _depths(
    record: Run,
    base: str,
    metric: str,
    *,
    tuned: Sequence[Candidate],
    left: Sequence[dict[str, Any]],
    policies: dict[str | None, str | None],
    fallback: str | None,
) -> list[Depth]:
    """What learns, from the frozen head to everything, measured or not."""
    frozen = _frozen_of(record, base, tuned[0], metric)
    known = frozen or tuned[0]
    taps, work = taps_of(record.candidates, known.backbone), work_of(record)
    rows = [_frozen(frozen, metric, work.get(frozen.id))] if frozen is not None else []
    for candidate in tuned:
        place, name = learned_stages(candidate.cut, candidate.tap, taps)
        told = next((found for fold in candidate.curves if (found := text(fold, "batch_norm"))), None)
        policy = policies.get(candidate.id) or told or fallback
        seconds = work.get(candidate.id)
        rows.append(_tuned(candidate, frozen, metric, place, name, policy, seconds))
    done = {candidate.id for candidate in tuned}
    for row in left:
        if text(row, "id") not in done:
            place, name = learned_stages(str(row.get("cut") or ""), known.tap, taps)
            rows.append(_left(place, name, row))
    return sorted(rows, key=lambda row: row.place)


def _frozen_of(record: Run, base: str, tuned: Candidate, metric: str) -> Candidate | None:
    """What a tuned candidate started from; where it reads several depths up to its tap and was not measured so frozen, the
    best that reads several depths of the same network."""
    own = next((c for c in record.candidates if c.id == base), None)
    if own is not None:
        return own
    sign = -1 if metric in wording.LOWER_IS_BETTER else 1
    alike = [
        c
        for c in record.candidates
        if c.strategy == "depths" and c.complete and (c.backbone, c.input) == (tuned.backbone, tuned.input)
    ]
    return max(alike, key=lambda c: sign * (c.metrics.get(metric) or 0.0), default=None)


def _frozen(frozen: Candidate, metric: str, seconds: float | None) -> Depth:
    return Depth(
        *("frozen, new head", 0.0, frozen, frozen.metrics.get(metric), frozen.intervals.get(metric)),
        *(seconds, (), None, None, None),
        *("as pre-trained", ""),
    )


def _tuned(
    candidate: Candidate,
    frozen: Candidate | None,
    metric: str,
    place: float,
    name: str,
    policy: str | None,
    seconds: float | None,
) -> Depth:
    folds = _folds(candidate)
    pairs = [
        (own, frozen.folds[fold])
        for own, fold in zip(candidate.folds, folds, strict=False)
        if frozen is not None and fold < len(frozen.folds)
    ]
    sign = -1 if metric in wording.LOWER_IS_BETTER else 1
    return Depth(
        name=name,
        place=place,
        candidate=candidate,
        value=candidate.metrics.get(metric),
        interval=candidate.intervals.get(metric),
        seconds=seconds,
        folds=folds,
        difference=sign * sum(own - other for own, other in pairs) / len(pairs) if pairs else None,
        better=sum(sign * own > sign * other for own, other in pairs) if pairs else None,
        frozen_there=sum(other for _, other in pairs) / len(pairs) if pairs else None,
        batch_norm=BATCH_NORM.get(policy or "", policy or wording.MISSING),
        why_not="",
    )


def _left(place: float, name: str, row: dict[str, Any]) -> Depth:
    decision = text(row, "decision") or ""
    return Depth(
        *(name, place, None, None, None, None, (), None, None, None, wording.MISSING),
        "planned, but not reached" if decision == "tried" else decision or "not tried",
    )


def _folds(candidate: Candidate) -> tuple[int, ...]:
    """The folds that a candidate was measured on, from 0."""
    known = sorted(
        {int(fold) for curve in candidate.curves if (fold := number(at(curve, "fold"))) is not None}
    )
    return tuple(known) if len(known) == len(candidate.folds) else tuple(range(len(candidate.folds)))


def _one_policy(networks: Sequence[Network]) -> str | None:
    """The policy of batch normalisation, where all that was tuned has the same."""
    found = {row.batch_norm for network in networks for row in network.rows if row.folds}
    return found.pop() if len(found) == 1 else None


def _ends(row: Depth) -> list[float]:
    """What a plot has to show of it."""
    return [end for end in (row.value, *(row.interval or ()), row.frozen_there) if end is not None]


def _plot(rows: Sequence[Depth], metric: str, label: str, ends: Sequence[float]) -> Markup:
    """Empty where only one depth was measured."""
    shown = [row for row in rows if row.value is not None]
    if len(shown) < 2:
        return Markup("")
    line = [
        (float(place), row.value) for place, row in enumerate(shown) if row.value is not None and not row.some
    ]
    told = "; ".join(f"{row.name} {wording.score(row.value)}" for row in shown)
    return plots.steps(
        [mark for place, row in enumerate(shown) for mark in _marks(float(place), row)],
        plots.Line(tuple(line), told, kind="bare quiet"),
        described=f"{wording.METRICS.get(metric, metric)} of {label} by what learns: {told}",
        names=[SHORT.get(row.name, wording.shortened(row.name, 12)) for row in shown],
        y_label="",
        y_range=plots.padded(ends),
        width=300.0,
        height=180.0,
    )


def _marks(place: float, row: Depth) -> list[plots.Mark]:
    """The mark of a depth; for one on some folds a small one of the frozen head there, too."""
    if row.value is None or row.candidate is None:
        return []
    folds = wording.plural(len(row.folds), "fold")
    kind = "partly" if row.some else "tied" if row.candidate.tied else ""
    low, high = row.interval or (None, None)
    own = plots.Mark(
        *(place, row.value, f"{row.name}: {wording.score(row.value)}"),
        kind=f"{row.candidate.strategy} {kind}".strip(),
        low=low,
        high=high,
        label=folds if row.some else "",
    )
    if not row.some or row.frozen_there is None:
        return [own]
    told = f"the frozen head, mean of the same {folds}: {wording.score(row.frozen_there)}"
    return [plots.Mark(place, row.frozen_there, told, kind="faint"), own]
