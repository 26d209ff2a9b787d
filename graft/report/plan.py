"""The plan of fine-tuning: what was predicted, what it took, what was not tried and why.

In: `plan` of a run's `study.json`, read tolerantly. Out: rows for the table, sentences, and the names of what was not
tried under the reason. What is compared is the work that was done: the predicted seconds are those of the folds that ran.

Not covered: runs made before fine-tuning was part of a study; for them there is nothing.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from graft.report import wording
from graft.report.depth import TUNED, learned_stages, taps_of
from graft.report.reading import Run, items, text
from graft.report.wording import number

MOST = 40


@dataclass(frozen=True, slots=True)
class Planned:
    """One line: seconds, and `ratio` of the real ones to the predicted, None where nothing ran."""

    name: str
    learns: str
    epochs: float | None
    views: float | None
    folds: int
    each: float | None
    cache: float | None
    predicted: float | None
    real: float | None

    @property
    def ratio(self) -> float | None:
        if not self.folds or not self.predicted or self.real is None:
            return None
        return self.real / self.predicted


def section(record: Run) -> dict[str, Any] | None:
    """What the template names, or None where there was no plan."""
    rows = [row for row in items(record.study, "plan") if isinstance(row, dict) and text(row, "id")][:MOST]
    if not rows:
        return None
    tried = [row for row in rows if row.get("decision") == "tried"]
    done = [_planned(record, row) for row in tried]
    left: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if row.get("decision") != "tried":
            one = _planned(record, row)
            left[text(row, "decision") or "it was left out"][one.name].append(one.learns)
    return {
        "rows": done,
        "sentence": _sentence(done),
        "left": [
            (reason, [(name, ", ".join(depths)) for name, depths in names.items()])
            for reason, names in left.items()
        ],
        "folds": number(record.settings.get("folds")),
    }


def _planned(record: Run, row: dict[str, Any]) -> Planned:
    name = str(row["id"])
    base, _, cut = name.partition(TUNED)
    frozen = next((c for c in record.candidates if c.id == base), None)
    taps = taps_of(record.candidates, frozen.backbone) if frozen is not None else []
    where = row["cut"] if isinstance(row.get("cut"), str) else cut
    return Planned(
        name=base,
        learns=learned_stages(where, frozen.tap if frozen is not None else None, taps)[1],
        epochs=number(row.get("epochs")),
        views=number(row.get("views")),
        folds=int(number(row.get("folds_done")) or 0),
        each=number(row.get("fold_seconds")),
        cache=number(row.get("cache_seconds")),
        predicted=number(row.get("predicted_seconds")),
        real=number(row.get("real_seconds")),
    )


def _sentence(rows: list[Planned]) -> str:
    """The sum of what was predicted for the folds that ran, against what they took."""
    ran = [row for row in rows if row.ratio is not None]
    if not ran:
        return "Nothing of the plan was run." if rows else "The budget paid no fine-tuning."
    predicted, real = sum(row.predicted or 0.0 for row in ran), sum(row.real or 0.0 for row in ran)
    return (
        f"Predicted from a few timed steps: {wording.seconds(predicted)}; it took {wording.seconds(real)}, "
        f"{real / predicted:.2f} times as long."
    )
