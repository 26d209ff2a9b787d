"""Numbers and names as a reader wants them: sensible digits, a unit, and words for what the files abbreviate.

In: numbers as the run folder holds them, None and not-a-number included. Out: short strings; what is missing is an
en dash. The digits follow the quantity: scores have three decimals, sizes and times about two significant digits.

Not covered: languages other than English.
"""

from __future__ import annotations

import math

MISSING = "–"
SPACE = "\N{NO-BREAK SPACE}"
Real = float | int

METRICS = {
    "macro_f1": "macro-F1",
    "weighted_f1": "weighted F1",
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "log_loss": "log loss",
    "auroc": "AUROC",
    "average_precision": "average precision",
    "calibration_error": "calibration error",
    "brier": "Brier score",
}
LOWER_IS_BETTER = frozenset({"log_loss", "calibration_error", "brier"})

STRATEGIES = {
    "frozen": "frozen, with a new head",
    "depths": "frozen, read at several depths",
    "scratch": "from scratch",
    "partial": "fine-tuned in its upper stages",
    "full": "fine-tuned in all stages",
    "random": "with random weights, frozen",
    "ensemble": "the mean of several",
    "shrunk": "made smaller",
}

FITS = {"crop": "cropped", "squash": "squashed"}

INPUTS = {
    "rgb": "colour",
    "gray": "grey",
    "edges": "edges alone",
    "thin": "thin edges alone",
    "rgb+edges": "colour and edges",
    "gray+edges": "grey and edges",
    "rgb+thin": "colour and thin edges",
    "gray+thin": "grey and thin edges",
}

HEADLINES = {
    "bbc-cv": "cross-validated and corrected for having picked the winner",
    "cv": "cross-validated, not corrected for having picked the winner",
    "test": "on the test images, which were opened once, for this candidate only",
}

STOPS = {
    "patience": "no gain for many epochs",
    "epochs": "the last epoch",
    "deadline": "the end of the budget",
}

ISSUES = {
    "unreadable": "could not be read",
    "truncated": "is cut short",
    "empty": "is an empty file",
    "not_an_image": "is not an image",
    "too_large": "is too large to decode safely",
    "too_small": "is too small",
    "unplaced": "lies outside every class folder",
    "hidden": "is a hidden file",
    "exact_duplicate": "is the same picture as another one",
    "near_duplicate": "is nearly the same picture as another one",
    "conflict": "is one picture under two classes",
    "few_images": "is a class with very few images",
    "empty_class": "is a class without images",
}


def headline(kind: str, opened: Real | None = None) -> str:
    """What kind of number the headline is, or nothing of a kind that is not known.

    `opened`: how often the test images were opened; None where a run does not tell.
    """
    if kind == "test" and opened is not None and opened > 1:
        return (
            f"on the test images, which were opened {opened:.0f} times, for earlier choices of this study, too, so that "
            "it is a little flattered"
        )
    return HEADLINES.get(kind, "")


def number(value: object) -> float | None:
    """A finite number as a float; anything else, not-a-number included, as None."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        result = float(value)
    except OverflowError:  # JSON holds integers of any length
        return None
    return result if math.isfinite(result) else None


def score(value: Real | None) -> str:
    """0.953; three decimals."""
    return MISSING if value is None else f"{value:.3f}".replace("-", "−")


def signed(value: Real | None) -> str:
    """−0.010 or +0.010, with a real minus sign."""
    if value is None:
        return MISSING
    rounded = round(value, 3)
    return "0.000" if rounded == 0 else f"{rounded:+.3f}".replace("-", "−")


def points(value: Real | None) -> str:
    """−0.2 points, with one decimal."""
    return MISSING if value is None else f"{value:.1f}{SPACE}points".replace("-", "−")


def span(interval: tuple[Real, Real] | None, *, sign: bool = False) -> str:
    """0.941 to 0.963."""
    if interval is None:
        return MISSING
    show = signed if sign else score
    return f"{show(interval[0])} to {show(interval[1])}"


def count(value: Real | None) -> str:
    """1,344."""
    return MISSING if value is None else f"{value:,.0f}"


def size(value: Real | None) -> str:
    """Bytes as 640 kB, 8.9 MB, 548 MB (decimal units)."""
    return _scaled(value, ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "bytes")))


def quantity(value: Real | None) -> str:
    """A count of parameters as 310 k or 2.2 M."""
    return _scaled(value, ((1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, "")))


def milliseconds(value: Real | None) -> str:
    """0.42 ms, 4.1 ms, 123 ms."""
    return MISSING if value is None else f"{_digits(value)}{SPACE}ms"


def seconds(value: Real | None) -> str:
    """0.42 s, 12 s, 3 min 20 s, 2 h 5 min."""
    if value is None:
        return MISSING
    if value < 120:
        return f"{_digits(value)}{SPACE}s"
    minutes, rest = divmod(round(value), 60)
    if minutes < 120:
        return f"{minutes}{SPACE}min" + (f" {rest}{SPACE}s" if rest else "")
    hours, minutes = divmod(minutes, 60)
    return f"{hours}{SPACE}h" + (f" {minutes}{SPACE}min" if minutes else "")


def shortened(name: str, length: int) -> str:
    """At most `length` characters, the middle left out: the ends of file and class names tell them apart."""
    if len(name) <= length:
        return name
    head = (length - 1) // 2
    return f"{name[:head]}…{name[len(name) - (length - 1 - head) :]}"


def plural(value: Real, one: str, many: str | None = None) -> str:
    """`1 image`, `1,344 images`."""
    return f"{value:,.0f}{SPACE}{one if value == 1 else many or one + 's'}"


def _scaled(value: Real | None, units: tuple[tuple[float, str], ...]) -> str:
    if value is None:
        return MISSING
    for factor, unit in units:
        if abs(value) >= factor * 0.9995:
            shown = _digits(value / factor) if factor > 1 else f"{value:.0f}"
            return f"{shown}{SPACE}{unit}".rstrip()
    return f"{value:.0f}{SPACE}{units[-1][1]}".rstrip()


def _digits(value: Real) -> str:
    """Two significant digits below 10, whole numbers from there on; 9.96 is 10, not 10.0."""
    for bound, decimals in ((0.0995, 3), (0.995, 2), (9.95, 1)):
        if abs(value) < bound:
            return f"{value:.{decimals}f}"
    return f"{value:,.0f}"
