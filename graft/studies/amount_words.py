"""The answer to "how many images do I need" in words.

In: what was measured by number of images, for transfer and from scratch. Out: sentences. Cost: nothing.

Not covered: a curve fitted to the points; three points carry a slope, no more.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from graft.judging.metrics import METRICS

WORTH = 0.01  # below this gain, a doubling hardly pays
FARTHEST = 16  # times the images: nothing is said about more


@dataclass(frozen=True, slots=True)
class Point:
    """The metric after learning from so many images."""

    images: int
    value: float


def amounts_sentence(transfer: Sequence[Point], scratch: Sequence[Point], *, metric: str) -> str:
    """What the two curves (by rising number of images, either may be empty) say about the number of images."""
    curves = {"transfer": list(transfer), "training from scratch": list(scratch)}
    known = {name: points for name, points in curves.items() if points}
    parts = []
    if len(known) == 2:
        parts.append(_against(known["transfer"], known["training from scratch"], metric))
    parts.append(_doubling(known, metric))
    return " ".join(parts)


def _against(transfer: Sequence[Point], scratch: Sequence[Point], metric: str) -> str:
    """Which of the two needs fewer images for what the other reaches with all of them."""
    sign, shown = METRICS[metric].sign, METRICS[metric].text
    ahead = sign * transfer[-1].value >= sign * scratch[-1].value
    better, other = (transfer, scratch) if ahead else (scratch, transfer)
    names = ("Transfer", "training from scratch") if ahead else ("Training from scratch", "transfer")
    first = next(point for point in better if sign * point.value >= sign * other[-1].value)
    label = METRICS[metric].label
    if first == better[-1]:
        return (
            f"With half of the images {names[0].lower()} does not yet reach what {names[1]} reaches with all {other[-1].images:,} "
            f"({label} {shown(other[-1].value)}); with all of them it has {shown(first.value)}. "
            f"{_catching_up(other, better[-1], names[1], metric)}"
        )
    reached = (
        f"{names[0]} reaches with {first.images:,} images what {names[1]} reaches with {other[-1].images:,} "
        f"({label} {shown(first.value)} and {shown(other[-1].value)})"
    )
    if first == better[0]:
        reached += ", and fewer were not tried"
    return f"{reached}. {_catching_up(other, better[-1], names[1], metric)}"


def _catching_up(other: Sequence[Point], goal: Point, name: str, metric: str) -> str:
    """How many images the weaker one would need for what the stronger one reaches, if its gain went on."""
    sign = METRICS[metric].sign
    gain, missing = sign * gain_of_doubling(other), sign * (goal.value - other[-1].value)
    if missing <= 0:
        return "With all of them the two are level."
    needed = other[-1].images * 2 ** (missing / gain) if gain > missing / math.log2(FARTHEST) else math.inf
    if not math.isfinite(needed):
        return f"For what the other reaches, {name} would need more than {FARTHEST} times the images."
    return (
        f"If its gain went on, {name} would need about {_round(needed):,} images for "
        f"{METRICS[metric].text(goal.value)}."
    )


def _doubling(known: dict[str, list[Point]], metric: str) -> str:
    """What twice the images are worth to each."""
    gains = {name: METRICS[metric].sign * gain_of_doubling(points) for name, points in known.items()}
    show = METRICS[metric].difference_text
    told = " and ".join(f"{show(gain)} ({name})".replace("-", "−") for name, gain in gains.items())
    worth = max(gains.values()) >= WORTH
    advice = "more images still pay" if worth else "more images hardly pay"
    return f"Doubling the images was worth about {told}: {advice}."


def gain_of_doubling(points: Sequence[Point]) -> float:
    """The slope of the metric over the binary logarithm of the number of images, by least squares; 0 for one point."""
    across = [math.log2(point.images) for point in points]
    middle = sum(across) / len(across)
    mean = sum(point.value for point in points) / len(points)
    spread = sum((x - middle) ** 2 for x in across)
    if spread == 0:
        return 0.0
    return sum((x - middle) * (p.value - mean) for x, p in zip(across, points, strict=True)) / spread


def _round(images: float) -> int:
    """Two significant digits: what is extrapolated is not known better."""
    digits = 10 ** max(0, math.floor(math.log10(images)) - 1)
    return int(round(images / digits) * digits)
