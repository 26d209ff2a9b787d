"""Drawings without axes, as inline SVG: bars, a difference against zero, the quadrant of size and similarity.

In: names and numbers. Out: `Markup`, in which every name is escaped; the same conventions as in plots.
"""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from graft.report.plots import WIDTH, compact, svg
from graft.report.wording import shortened, signed


def bars(rows: Sequence[tuple[str, float, str]], *, described: str) -> Markup:
    """Horizontal bars from zero: (name, value, what to write at its end)."""
    if not rows:
        return Markup("")
    top = max(max(value for _, value, _ in rows), 1e-9)
    step, start, room = 22.0, 130.0, 70.0
    drawn = []
    for index, (name, value, shown) in enumerate(rows):
        y = index * step + 4
        length = max(value, 0.0) / top * (WIDTH - start - room)
        drawn.append(
            Markup(
                '<g><title>{}: {}</title><text class="name" x="{}" y="{}" text-anchor="end">{}</text>'
                '<rect class="bar" x="{}" y="{}" width="{}" height="14" rx="2"/>'
                '<text class="value" x="{}" y="{}">{}</text></g>'
            ).format(
                *(name, shown, start - 8, compact(y + 11), shortened(name, 17)),
                *(
                    start,
                    compact(y),
                    compact(max(length, 1.0)),
                    compact(start + length + 6),
                    compact(y + 11),
                    shown,
                ),
            )
        )
    return svg(described, len(rows) * step + 6, drawn)


def against_zero(value: float, interval: tuple[float, float], *, left: str, right: str) -> Markup:
    """A difference with its interval on a line with a zero; the two sides say who is ahead there."""
    reach = max(abs(interval[0]), abs(interval[1]), abs(value), 0.01) * 1.15
    height, middle = 92.0, 40.0

    def place(x: float) -> str:
        return compact(WIDTH / 2 + x / reach * (WIDTH / 2 - 24))

    axis = Markup(
        '<line class="axis" x1="16" x2="{}" y1="{y}" y2="{y}"/><line class="zero" x1="{z}" x2="{z}" y1="16" y2="64"/>'
        '<text class="tick" x="{z}" y="84" text-anchor="middle">0</text>'
        '<text class="tick" x="16" y="84">← {}</text><text class="tick" x="{}" y="84" text-anchor="end">{} →</text>'
    ).format(WIDTH - 16, left, WIDTH - 16, right, y=middle, z=compact(WIDTH / 2))
    whisker = Markup(
        '<g class="mark tied"><title>{}, from {} to {}</title><line class="whisker wide" x1="{}" x2="{}" y1="{y}" '
        'y2="{y}"/><circle cx="{}" cy="{y}" r="6"/></g><text class="value" x="{}" y="22" text-anchor="middle">{}</text>'
    ).format(
        *(signed(value), signed(interval[0]), signed(interval[1])),
        *(place(interval[0]), place(interval[1]), place(value), place(value), signed(value)),
        y=middle,
    )
    return svg(
        f"difference {signed(value)}, {signed(interval[0])} to {signed(interval[1])}", height, [axis, whisker]
    )


def quadrant(similar: float, small: float) -> Markup:
    """Where the data stand: `similar` from 0 (different) to 1, `small` from 0 (large) to 1."""
    side, left, top = 250.0, 1.0, 8.0
    x, y = left + (1 - similar) * side, top + (1 - small) * side
    names = (
        ("small, similar", 0.25, 0.1),
        ("small, different", 0.75, 0.1),
        ("large, similar", 0.25, 0.94),
        ("large, different", 0.75, 0.94),
    )
    texts = [
        Markup('<text class="tick" x="{}" y="{}" text-anchor="middle">{}</text>').format(
            compact(left + across * side), compact(top + down * side), name
        )
        for name, across, down in names
    ]
    decided = abs(small - 0.5) > 0.05 and abs(similar - 0.5) > 0.05
    here = f"{'small' if small > 0.5 else 'large'}, {'similar' if similar > 0.5 else 'different'}"
    half = side / 2
    corner = Markup('<rect class="here" x="{}" y="{}" width="{}" height="{}"/>').format(
        *(left if similar > 0.5 else left + half, top if small > 0.5 else top + half, half, half)
    )
    picture = Markup(
        '<rect class="field" x="{}" y="{}" width="{}" height="{}" rx="6"/>{}<path class="axis" d="M{} {}v{}M{} {}h{}"/>'
        '{}<g class="mark choice tied"><title>this data set</title><circle class="ring" cx="{x}" cy="{y}" r="12"/>'
        '<circle cx="{x}" cy="{y}" r="6"/></g>'
    ).format(
        *(left, top, side, side, corner if decided else ""),
        *(left + half, top, side, left, top + half, side),
        *(Markup("").join(texts),),
        x=compact(x),
        y=compact(y),
    )
    told = f"quadrant of size and similarity; these data: {here if decided else 'in between'}"
    return svg(told, side + 16, [picture], width=side + 2)
