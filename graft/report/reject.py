"""When the model should not be believed: the accuracy of what is accepted against the share that is accepted.

In: `choice.reject` of a run's `study.json`, read tolerantly. Out: the sentence, rows and a plot as `Markup`.

Not covered: runs made before this was measured; for them everything is empty.
"""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from graft.report import plots
from graft.report.reading import Run, items, mapping, text
from graft.report.wording import number


def section(record: Run) -> dict[str, Any]:
    """What the template names: `sentence` (None where nothing was measured), `origin`, `rows` and `svg`."""
    found = mapping(record.study, "choice", "reject")
    rows = [
        (coverage, accuracy)
        for one in items(found, "curve")
        if isinstance(one, dict)
        and (coverage := number(one.get("coverage"))) is not None
        and (accuracy := number(one.get("accuracy"))) is not None
    ]
    return {
        "sentence": text(found, "sentence"),
        "origin": text(found, "origin"),
        "rows": rows,
        "svg": drawn(rows),
    }


def drawn(rows: list[tuple[float, float]]) -> Markup:
    """Accuracy over coverage; empty with fewer than two points."""
    if len(rows) < 2:
        return Markup("")
    points = sorted(rows)
    shares = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
    return plots.lines(
        [plots.Line(tuple(points), "accuracy of the accepted", kind="choice")],
        described="accuracy of the accepted images by the share that is accepted; the table holds the numbers",
        x_ticks=[
            (share, f"{100 * share:.0f} %") for share in shares if points[0][0] <= share <= points[-1][0]
        ],
        x_label="images accepted",
        y_label="accuracy",
        y_range=plots.padded([accuracy for _, accuracy in points]),
    )
