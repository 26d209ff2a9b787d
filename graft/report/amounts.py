"""How many images are needed: the metric against the number of images, for transfer and from scratch.

In: `amounts` of a run's `study.json`, read tolerantly. Out: rows for the table, the sentence, and a plot as `Markup`.
Transfer is a solid line with dots, training from scratch a dashed one with squares: nothing is told by colour alone.

Not covered: runs made before this was measured; for them everything is empty.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from graft.report import plots, wording
from graft.report.reading import Run, interval, items, mapping, text
from graft.report.wording import number

STRATEGIES = {"transfer": "transfer, frozen", "scratch": "from scratch"}
LINES = {"transfer": "Solid: transfer, frozen.", "scratch": "Dashed: the small CNN from scratch."}


@dataclass(frozen=True, slots=True)
class Amount:
    """One point: `share` of the training images, from 0 to 1; `value` of the metric and its 95 % interval."""

    strategy: str
    images: float
    share: float | None
    value: float
    interval: tuple[float, float] | None
    folds: float | None

    @property
    def name(self) -> str:
        """The strategy in words."""
        return STRATEGIES.get(self.strategy, self.strategy)


def section(record: Run, metric: str) -> dict[str, Any]:
    """What the template names: `sentence` (None where nothing was measured), `rows`, `folds`, `svg` and its `legend`."""
    found = mapping(record.study, "amounts")
    rows = [row for one in items(found, "rows") if isinstance(one, dict) and (row := _amount(one))]
    measure = text(found, "measure") or metric
    folds = [row.folds for row in rows if row.folds is not None]
    return {
        "sentence": text(found, "sentence"),
        "rows": rows,
        "measure": measure,
        "folds": min(folds) if folds else None,
        "svg": drawn(rows, measure),
        "legend": " ".join(line for kind, line in LINES.items() if any(row.strategy == kind for row in rows)),
    }


def drawn(rows: Sequence[Amount], metric: str) -> Markup:
    """The plot; empty with fewer than two numbers of images."""
    counts = sorted({row.images for row in rows})
    if len(counts) < 2:
        return Markup("")
    ends = [end for row in rows for end in (row.value, *(row.interval or ()))]
    series = [
        _line([row for row in rows if row.strategy == strategy], metric)
        for strategy in dict.fromkeys(row.strategy for row in rows)
    ]
    label = wording.METRICS.get(metric, metric)
    return plots.lines(
        series,
        described=f"{label} by number of training images; the table holds the numbers",
        x_ticks=[(count, wording.count(count)) for count in counts],
        x_label="images to learn from",
        y_label=label,
        y_range=plots.padded(ends),
    )


def _amount(row: dict[str, Any]) -> Amount | None:
    images, value = number(row.get("images")), number(row.get("metric"))
    if images is None or value is None:
        return None
    return Amount(
        str(row.get("strategy")),
        images,
        number(row.get("share")),
        value,
        interval(row, "interval"),
        number(row.get("folds")),
    )


def _line(rows: Sequence[Amount], metric: str) -> plots.Line:
    told = "; ".join(f"{wording.count(row.images)} images {wording.score(row.value)}" for row in rows)
    points = tuple(sorted((row.images, row.value) for row in rows))
    kind = "choice" if rows[0].strategy == "transfer" else "quiet"
    return plots.Line(points, f"{rows[0].name}: {wording.METRICS.get(metric, metric)} {told}", kind=kind)
