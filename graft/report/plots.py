"""Plots with axes as inline SVG, without a library: scatter and lines.

In: small records of numbers and names. Out: `Markup`, in which every name is escaped. The colours are the page's CSS
variables, so a plot follows light, dark and print; nothing is told by colour alone: what is chosen is ringed, what is
tied is filled, what was trained from scratch is a square, what was fine-tuned a triangle or, from the first stage on, a
diamond. A mark's `<title>` is its tooltip.

The view boxes are 420 units wide, so that text of 12 units stays readable on a phone of 375 px.

Not covered: more series than the eye can hold; the caller splits them into small multiples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from graft.report.wording import SPACE, shortened

WIDTH, HEIGHT = 420.0, 300.0
LEFT, RIGHT, TOP, BOTTOM = 50.0, 14.0, 12.0, 46.0
CHARACTER = 7.5  # width of an average character in view box units, on a phone
SHAPES = {
    "depths": "M-6 0L-3 -5.2H3L6 0L3 5.2H-3z",
    "partial": "M0 -6L5.5 4.5H-5.5z",
    "full": "M0 -6.5L6 0L0 6.5L-6 0z",
    "shrunk": "M0 6L-5.5 -4.5H5.5z",
    "ensemble": "M-6 -2H-2V-6H2V-2H6V2H2V6H-2V2H-6z",
}


@dataclass(frozen=True, slots=True)
class Mark:
    """A point with an optional interval; `kind` is a space-separated list of CSS classes, `label` is drawn."""

    x: float
    y: float
    title: str
    kind: str = ""
    low: float | None = None
    high: float | None = None
    label: str = ""


@dataclass(frozen=True, slots=True)
class Line:
    """A row of points joined by a line, with `best` marked by a dot."""

    points: tuple[tuple[float, float], ...]
    title: str
    kind: str = ""
    best: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class Frame:
    """The drawing area, in units of the view box: data ranges and, for x, whether it is logarithmic."""

    x: tuple[float, float]
    y: tuple[float, float]
    log: bool = False
    width: float = WIDTH
    height: float = HEIGHT
    bottom: float = BOTTOM

    @property
    def right(self) -> float:
        """The right edge."""
        return self.width - RIGHT

    @property
    def base(self) -> float:
        """The lower edge."""
        return self.height - self.bottom

    def across(self, value: float) -> float:
        """The horizontal place of a data value."""
        low, high = self.x
        if self.log:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return LEFT + (value - low) / (high - low) * (self.right - LEFT)

    def up(self, value: float) -> float:
        """The vertical place of a data value, kept inside the frame."""
        low, high = self.y
        share = min(max((value - low) / (high - low), 0.0), 1.0)
        return self.base - share * (self.base - TOP)


def scatter(
    marks: Sequence[Mark],
    *,
    x_label: str,
    y_label: str,
    show_x: Callable[[float], str],
    y_range: tuple[float, float],
    paths: Sequence[Line] = (),
) -> Markup:
    """Marks over a logarithmic x, later ones on top; those not above zero or out of `y_range` are left out.

    `paths` lie beneath the marks and reach over no other x than they do.
    """
    marks = [mark for mark in marks if mark.x > 0 and y_range[0] <= mark.y <= y_range[1]]
    if not marks:
        return Markup("")
    xs = [mark.x for mark in marks]
    frame = Frame((min(xs) / 1.25, max(xs) * 1.25), y_range, log=True)
    axes = _x_axis(
        frame, [(tick, show_x(tick).replace(".0" + SPACE, SPACE)) for tick in log_ticks(*frame.x)], x_label
    )
    drawn = [*(_line(frame, path) for path in paths), *(_mark(frame, mark) for mark in marks)]
    described = f"{y_label} against {x_label}, {len(marks)} candidates; the table holds the numbers"
    return svg(described, frame.height, [_y_axis(frame, y_label), axes, *drawn, *_labels(frame, marks)])


def steps(
    marks: Sequence[Mark],
    path: Line,
    *,
    described: str,
    names: Sequence[str],
    y_label: str,
    y_range: tuple[float, float],
    width: float = WIDTH,
    height: float = HEIGHT,
) -> Markup:
    """Marks over named steps: x is the position in `names`, and `path` joins what can be compared."""
    frame = Frame((-0.5, len(names) - 0.5), y_range, width=width, height=height, bottom=26.0)
    axes = [_y_axis(frame, y_label), _x_axis(frame, [(float(i), name) for i, name in enumerate(names)], "")]
    parts = [_line(frame, path)] if path.points else []
    drawn = [*parts, *(_mark(frame, mark) for mark in marks), *_labels(frame, marks)]
    return svg(described, height, [*axes, *drawn], width=width)


def symbol(kind: str) -> Markup:
    """A mark of this kind for a legend, hidden from screen readers with the legend."""
    return Markup('<svg viewBox="0 0 24 24"><g class="mark {}">{}</g></svg>').format(
        kind, _shape(kind.split(), 12.0, 12.0)
    )


def lines(
    series: Sequence[Line],
    *,
    described: str,
    x_ticks: Sequence[tuple[float, str]],
    x_label: str = "",
    y_label: str = "",
    y_range: tuple[float, float] | None = None,
    width: float = WIDTH,
    height: float = HEIGHT,
) -> Markup:
    """Lines over a linear x; `y_range` makes several plots comparable."""
    points = [point for line in series for point in line.points]
    if not points:
        return Markup("")
    xs = [x for x, _ in points]
    low, high = (min(xs), max(xs)) if max(xs) > min(xs) else (min(xs) - 0.5, max(xs) + 0.5)
    y_range = y_range or padded([y for _, y in points])
    frame = Frame((low, high), y_range, width=width, height=height, bottom=BOTTOM if x_label else 26.0)
    drawn = [
        _y_axis(frame, y_label),
        _x_axis(frame, x_ticks, x_label),
        *[_line(frame, line) for line in series],
    ]
    return svg(described, height, drawn, width=width)


def ticks(low: float, high: float, *, about: int = 5) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) inside `low` to `high`."""
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    wide = next(place for place, factor in enumerate((1, 2, 5, 10)) if factor * power >= raw * 0.999)
    for factor in (
        (1, 2, 5, 10)[wide],
        (0.5, 1, 2, 5)[wide],
    ):  # the next finer step where no tick lies inside
        step = factor * power
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if first <= last:
            break
    return [index * step for index in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten inside `low` to `high`, with 2 and 5 between them where the range is short; else round numbers."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    every = [10.0**power for power in decades if low <= 10.0**power <= high]
    fine = [f * 10.0**power for power in decades for f in (1, 2, 5) if low <= f * 10.0**power <= high]
    if len(fine) < 2:
        even = [tick for tick in ticks(low, high, about=3) if low <= tick <= high]
        return even if len(even) > 1 else [low, high]
    return fine if len(fine) <= 6 or len(every) < 3 else every


def padded(values: Sequence[float]) -> tuple[float, float]:
    """The range of the values with a little room at both ends."""
    low, high = min(values), max(values)
    room = max((high - low) * 0.06, 1e-3)
    return low - room, high + room


def compact(value: float) -> str:
    """A coordinate with as few digits as the eye can use."""
    return f"{value:.1f}" if abs(value) >= 1 else f"{value:.2f}"


def svg(described: str, height: float, parts: Sequence[Markup], *, width: float = WIDTH) -> Markup:
    """The whole picture; `described` is what a screen reader says."""
    return Markup('<svg viewBox="0 0 {} {}" style="--w:{}" role="img" aria-label="{}">{}</svg>').format(
        compact(width), compact(height), compact(width), described, Markup("").join(parts)
    )


def _y_axis(frame: Frame, label: str) -> Markup:
    places = ticks(*frame.y, about=6 if frame.height > 200 else 4)
    step = places[1] - places[0] if len(places) > 1 else 0.1
    decimals = max(0, math.ceil(-math.log10(step) - 1e-9))
    drawn = [
        Markup(
            '<line class="grid" x1="{}" x2="{}" y1="{y}" y2="{y}"/><text class="tick" x="{}" y="{}" text-anchor="end">{}</text>'
        ).format(
            LEFT,
            frame.right,
            LEFT - 6,
            compact(frame.up(tick) + 4),
            f"{tick:.{decimals}f}",
            y=compact(frame.up(tick)),
        )
        for tick in places
    ]
    middle = compact((TOP + frame.base) / 2)
    name = Markup(
        '<text class="axis-label" transform="translate(11 {}) rotate(-90)" text-anchor="middle">{}</text>'
    ).format(middle, label)
    return Markup("").join([*drawn, name if label else Markup("")])


def _x_axis(frame: Frame, marked: Sequence[tuple[float, str]], label: str) -> Markup:
    base = frame.base
    drawn = [
        Markup('<line class="axis" x1="{}" x2="{}" y1="{y}" y2="{y}"/>').format(
            LEFT, frame.right, y=compact(base)
        )
    ]
    for value, shown in marked:
        x = frame.across(value)
        half = len(shown) * CHARACTER / 2
        anchor = "end" if x + half > frame.width else "start" if x - half < LEFT - 30 else "middle"
        drawn.append(
            Markup(
                '<path class="axis" d="M{} {}v4"/><text class="tick" x="{}" y="{}" text-anchor="{}">{}</text>'
            ).format(compact(x), compact(base), compact(x), compact(base + 18), anchor, shown)
        )
    drawn.append(
        Markup('<text class="axis-label" x="{}" y="{}" text-anchor="middle">{}</text>').format(
            compact((LEFT + frame.right) / 2), compact(frame.height - 6), label
        )
    )
    return Markup("").join(drawn)


def _mark(frame: Frame, mark: Mark) -> Markup:
    x, y = frame.across(mark.x), frame.up(mark.y)
    kinds = mark.kind.split()
    parts = []
    if mark.low is not None and mark.high is not None:
        parts.append(
            Markup('<line class="whisker" x1="{x}" x2="{x}" y1="{}" y2="{}"/>').format(
                compact(frame.up(mark.low)), compact(frame.up(mark.high)), x=compact(x)
            )
        )
    if "choice" in kinds:
        parts.append(Markup('<circle class="ring" cx="{}" cy="{}" r="10"/>').format(compact(x), compact(y)))
    parts.append(_shape(kinds, x, y))
    return Markup('<g class="mark {}"><title>{}</title>{}</g>').format(
        mark.kind, mark.title, Markup("").join(parts)
    )


def _shape(kinds: Sequence[str], x: float, y: float) -> Markup:
    """A circle, or what stands for the strategy; small if the mark is faint."""
    if "faint" in kinds:
        return Markup('<circle cx="{}" cy="{}" r="2.5"/>').format(compact(x), compact(y))
    if "scratch" in kinds:
        return Markup('<rect x="{}" y="{}" width="9" height="9"/>').format(compact(x - 4.5), compact(y - 4.5))
    drawn = next((SHAPES[kind] for kind in kinds if kind in SHAPES), None)
    if drawn is None:
        return Markup('<circle cx="{}" cy="{}" r="5"/>').format(compact(x), compact(y))
    return Markup('<path transform="translate({} {})" d="{}"/>').format(compact(x), compact(y), drawn)


def _line(frame: Frame, line: Line) -> Markup:
    places = [(compact(frame.across(x)), compact(frame.up(y))) for x, y in line.points]
    path = "M" + "L".join(f"{x} {y}" for x, y in places)
    dots = [
        Markup('<circle cx="{}" cy="{}" r="2.5"/>').format(x, y)
        for x, y in places
        if len(places) <= 24 and "bare" not in line.kind
    ]
    if line.best is not None:
        x, y = compact(frame.across(line.best[0])), compact(frame.up(line.best[1]))
        dots.append(Markup('<circle class="best" cx="{}" cy="{}" r="5"/>').format(x, y))
    return Markup('<g class="line {}"><title>{}</title><path d="{}"/>{}</g>').format(
        line.kind, line.title, path, Markup("").join(dots)
    )


def _labels(frame: Frame, marks: Sequence[Mark]) -> list[Markup]:
    """Each label on the first of six places around its mark that is free of marks, labels and edges."""
    taken = [
        (frame.across(m.x) - 6, frame.up(m.y) - 6, frame.across(m.x) + 6, frame.up(m.y) + 6)
        for m in marks
        if "faint" not in m.kind
    ]
    drawn = []
    for mark in reversed(marks):
        if not mark.label:
            continue
        x, y = frame.across(mark.x), frame.up(mark.y)
        shown = shortened(mark.label, 28)
        wide = len(shown) * CHARACTER
        for dx, dy in (
            (13, 4),
            (-13 - wide, 4),
            (-wide / 2, -14),
            (-wide / 2, 24),
            (8, -10),
            (-8 - wide, 20),
        ):
            box = (x + dx, y + dy - 11, x + dx + wide, y + dy + 3)
            inside = box[0] > LEFT and box[2] < frame.width - 2 and box[1] > 0 and box[3] < frame.base
            if inside and not any(_overlap(box, other) for other in taken):
                taken.append(box)
                anchor = "start" if dx > 0 else "end" if dx < -wide else "middle"
                place = x + dx + {"start": 0.0, "middle": wide / 2, "end": wide}[anchor]
                drawn.append(
                    Markup('<text class="label {}" x="{}" y="{}" text-anchor="{}">{}</text>').format(
                        mark.kind, compact(place), compact(y + dy), anchor, shown
                    )
                )
                break
    return drawn


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
