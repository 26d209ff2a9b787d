"""Which candidates are worth a step of shrinking: a function of their scores and sizes.

In: the trials of a study. Out: those to bring to 8 bits, to make thinner, and what was trained; and what kind a trial is of.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from graft.studies.frame import Frame, Trial
from graft.studies.shrinking.networks import TUNED
from graft.studies.shrinking.told import full_size, signed
from graft.studies.shrinking.variants import variant_of

TRAINED = (*TUNED, "scratch")
MOST_TRAINED = 3  # of the candidates that were trained are brought to 8 bits


def worth_quantising(
    frame: Frame, trials: Sequence[Trial], tolerance: float
) -> tuple[list[Trial], list[Trial]]:
    """What is likely to be the smallest within the tolerance, and the best; and, for later, those on the curve below.

    8 bits cost something, too: first comes the smallest that has half of the tolerance left.
    """
    usable = [t for t in trials if is_frozen(t) or is_float(t)]
    front = front_of(usable, lambda trial: signed(frame, trial))
    reference = max(signed(frame, t) for t in trials if full_size(t))
    within = [t for t in front if signed(frame, t) >= reference - tolerance]
    below = sorted((t for t in front if t not in within), key=lambda t: -signed(frame, t))
    best = max(usable, key=lambda t: signed(frame, t))
    safe = [t for t in within if signed(frame, t) >= reference - tolerance / 2]
    first = {trial.recipe.key: trial for trial in [*safe[:1], *within[:2], *below[:1], best]}
    return list(first.values()), [trial for trial in below if trial.recipe.key not in first]


def worth_thinning(frame: Frame, trials: Sequence[Trial], before: set[int]) -> list[Trial]:
    """The best frozen tap, and the best network read at several depths."""
    frozen = [t for t in trials if id(t) in before and is_frozen(t) and t.model_bytes is not None]
    read = [t for t in trials if is_float(t)]
    found = [max(kind, key=lambda t: signed(frame, t)) for kind in (frozen, read) if kind]
    lower = [t for t in frozen if same_network(t, found[0]) and t.tap_index == found[0].tap_index - 1]
    return [*found[:1], *lower, *found[1:]]


def trained_candidates(frame: Frame, trials: Sequence[Trial]) -> list[Trial]:
    """What was fine-tuned or trained from scratch: the best, and those that nothing smaller is better than."""
    trained = [trial for trial in trials if is_trained(trial)]
    front = front_of(trained, lambda trial: signed(frame, trial))
    ordered = sorted(trained, key=lambda trial: -signed(frame, trial))
    return list({trial.recipe.key: trial for trial in [*ordered[:1], *reversed(front)]}.values())[
        :MOST_TRAINED
    ]


def front_of(trials: Sequence[Trial], score: Callable[[Trial], float]) -> list[Trial]:
    """Those that nothing smaller is better than, the smallest first."""
    front: list[Trial] = []
    for trial in sorted(trials, key=lambda t: (t.model_bytes or 0, -score(t))):
        if not front or score(trial) > score(front[-1]):
            front.append(trial)
    return front


def is_frozen(trial: Trial) -> bool:
    return trial.recipe.strategy == "frozen" and trial.complete and trial.model_bytes is not None


def is_trained(trial: Trial) -> bool:
    return trial.recipe.strategy in TRAINED and trial.complete and trial.model_bytes is not None


def is_float(trial: Trial) -> bool:
    """Whether it is a frozen network read at several depths."""
    return (
        trial.recipe.strategy in ("depths", "shrunk")
        and trial.complete
        and variant_of(trial).deepest is not None
        and not variant_of(trial).student
        and not variant_of(trial).calibrated
    )


def is_eight(trial: Trial) -> bool:
    """Whether it is in 8 bits and no student, whose layers are small."""
    if trial.recipe.strategy != "shrunk" or not trial.complete:
        return False
    return variant_of(trial).precision == "int8" and not variant_of(trial).student


def same_network(one: Trial, other: Trial) -> bool:
    return one.recipe.backbone == other.recipe.backbone and one.recipe.look == other.recipe.look
