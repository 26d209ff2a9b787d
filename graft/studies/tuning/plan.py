"""How thoroughly the finalists are fine-tuned, and what the budget can pay of it.

In: `Option`s, the most promising first, and the seconds that fine-tuning may take. Out: a plan: which of them are tried, for
how many epochs, and on how many folds the best of them is measured. It is journalled, so that a killed study goes on with
the same one (`graft.studies.tuning.decided`).

Cost: nothing is run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from graft.studies.tuning.options import Option

REFIT = 1.3  # of a fold: the last fit on all images
GAINED = 0.2  # of the errors of the best frozen candidate may go: MobileNetV2, two stages: drawings 0.19, 0.25, magnetic_tile 0.5
DIFFERENT = 0.6  # images that one of the two gets right and the other wrong, for each error of the frozen one
CLEAR = 2.8  # standard errors: four of five such gains are seen


# Of the images that a fold learns from, so many are kept back to find the best epoch: a seventh, and hardly more than this
# number. With 680 images of 51 classes (sketches), 5 % instead of 15 % brought accuracy from 0.52 to 0.55.
KEPT_BACK, LEAST_KEPT, MOST_KEPT = 80, 0.05, 0.15


def kept_share(images: int) -> float:
    """The share of `images` that is kept back from learning."""
    return round(min(MOST_KEPT, max(LEAST_KEPT, KEPT_BACK / max(images, 1))), 3)


@dataclass(frozen=True, slots=True)
class Level:
    """How thoroughly to tune: `epochs` over `views` kept views; the best option on `folds` folds (0: all of them)."""

    epochs: int
    views: int
    folds: int
    least: int  # so many options must be tried for the level to be worth it


# The first that the seconds pay. On magnetic_tile (mobilenetv1_025, last two stages, one fold) macro-F1 rose from 0.742
# frozen to 0.803 with 8 epochs and 0.846 with 16. Read together (`graft.backbones.together`), five epochs are nearly as good
# as ten: MobileNetV2, last two stages, drawings 0.730 and 0.739 with eight, magnetic_tile 0.951 and 0.955.
LEVELS = (
    Level(24, 4, 0, 3),
    Level(16, 4, 0, 2),
    Level(12, 3, 0, 2),
    Level(12, 3, 0, 1),
    Level(8, 2, 0, 1),
    Level(5, 2, 0, 1),
    Level(12, 3, 3, 1),
    Level(8, 2, 3, 1),
    Level(10, 2, 2, 1),
    Level(5, 2, 2, 1),
    Level(12, 3, 1, 1),
    Level(5, 2, 1, 1),
    Level(5, 1, 1, 1),
)


@dataclass(frozen=True, slots=True)
class TuningPlan:
    """What is tried on the first fold, in order; the best goes through `folds` folds."""

    options: tuple[Option, ...]
    folds: int
    left: tuple[Option, ...]


def planned(
    options: Sequence[Option], *, images: int, folds: int, seconds: float, errors: float, kept: float = 0.0
) -> TuningPlan:
    """The most thorough plan that the seconds pay: whichever option wins can be measured and fitted on all images, for which
    `kept` seconds more are there.

    First come plans with at least two stages of the best network by probe and of the best by prior on every fold. Then the
    same on some folds, if with the `errors` of the best frozen candidate (a share of the images) the gain to be expected
    would be clear on so few images. Then likewise two stages of a leading network alone: to tune what else is surely behind
    costs as much and gains less (drawings: a network 3.5 points behind gained 3, which made it the equal of the best frozen
    one). Then the last stages of both, or of a leading one, on every fold, two stages on some folds, the last stage on some, two
    stages of another, then whatever is paid.
    """
    levels = [level for level in LEVELS if level.folds <= folds]
    whole = [level for level in levels if not level.folds]
    some = [level for level in levels if level.folds]
    clear = [level for level in levels if level.folds and _shows(errors, images * level.folds / folds)]

    best = options[0].trial.recipe.backbone if options else ""
    wanted = {best, *(option.trial.recipe.backbone for option in options if option.by_prior)}

    def both(picked: Sequence[Option]) -> bool:
        return wanted <= {option.trial.recipe.backbone for option in picked}

    def both_deep(picked: Sequence[Option]) -> bool:
        return both([option for option in picked if not option.shallow])

    def leading(picked: Sequence[Option]) -> bool:
        return any(option.leading for option in picked)

    def leading_deep(picked: Sequence[Option]) -> bool:
        return any(option.leading and not option.shallow for option in picked)

    def deep(picked: Sequence[Option]) -> bool:
        return any(not option.shallow for option in picked)

    for allowed, worth in (
        (whole, both_deep),
        (clear, both_deep),
        (whole, leading_deep),
        (clear, leading_deep),
        (whole, both),
        (whole, leading),
        (some, leading_deep),
        (some, leading),
        (whole, deep),
        (levels, bool),
    ):
        for level in allowed:
            picked = _paid(options, level, images=images, folds=folds, seconds=seconds, kept=kept)
            if picked and len(picked) >= min(level.least, len(options)) and worth(picked):
                taken = {(id(option.trial), option.cut) for option in picked}
                left = tuple(option for option in options if (id(option.trial), option.cut) not in taken)
                return TuningPlan(tuple(picked), level.folds or folds, left)
    return TuningPlan((), 0, tuple(options))


def _shows(errors: float, held_out: float) -> bool:
    """Whether the gain to be expected of tuning two stages would be clear on so many images, answered by both."""
    return GAINED * errors > CLEAR * math.sqrt(DIFFERENT * errors / held_out)


def _paid(
    options: Sequence[Option], level: Level, *, images: int, folds: int, seconds: float, kept: float
) -> list[Option]:
    """Of the options, in order, those that the seconds pay together at this level."""
    picked: list[Option] = []
    for option in options:
        views = level.views if option.cut else 0
        one = replace(option, settings=replace(option.settings, epochs=level.epochs, views=views))
        through = level.folds or folds
        if plan_seconds([*picked, one], images=images, folds=folds, through=through, kept=kept) <= seconds:
            picked.append(one)
    return picked


def plan_seconds(
    options: Sequence[Option], *, images: int, folds: int, through: int, kept: float = 0.0
) -> float:
    """Every option on one fold, the dearest on `through` folds in all, and what a last fit takes beyond `kept` seconds."""
    held_out = images // folds
    fold = [option.fold_seconds(images - held_out, held_out) for option in options]
    caches = sum(option.cache_seconds(images) for option in options)
    longest = max(fold, default=0.0)
    return sum(fold) + caches + longest * (through - 1) + max(0.0, REFIT * longest - kept)
