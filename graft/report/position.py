"""Where the data stand: small or large, similar to the photos of ImageNet or different from them.

In: `position` of a run's `study.json`, read tolerantly. Out: its words and numbers, and the quadrant as `Markup`.

Not covered: runs in which nothing pre-trained was measured; for them there is nothing.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from graft.judging.position import FAMILIARITY_RANGE, OVERLAP_RANGE
from graft.report import sketches
from graft.report.reading import Run, at, text
from graft.report.wording import number


def section(record: Run) -> dict[str, Any] | None:
    """Where the data stand; the dot of the quadrant lies on the side that the verdict names."""
    position = at(record.study, "position")
    if not isinstance(position, dict):
        return None
    values = {name: number(position.get(name)) for name in ("slope", "depth", "familiarity", "overlap")}
    ends = {"depth": (0.0, 1.0), "familiarity": FAMILIARITY_RANGE, "overlap": OVERLAP_RANGE}
    grades = [
        float(np.interp(value, bounds, (0, 1)))
        for name, bounds in ends.items()
        if (value := values[name]) is not None
    ]
    similar = sum(grades) / len(grades) if grades else 0.5
    small = min(max((values["slope"] or 0.0) / 4.0, 0.0), 1.0) if values["slope"] is not None else 0.5
    words = {name: text(position, name) for name in ("size", "similarity", "sentence", "advice")}
    similar = _towards(similar, high=words["similarity"] == "similar", low=words["similarity"] == "different")
    small = _towards(small, high=words["size"] == "small", low=words["size"] == "large")
    return {**words, **values, "svg": sketches.quadrant(similar, small)}


def _towards(value: float, *, high: bool, low: bool) -> float:
    bottom, top = (0.58, 0.8) if high else (0.2, 0.42) if low else (0.46, 0.54)
    return min(max(value, bottom), top)
