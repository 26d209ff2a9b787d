"""What a step of shrinking is predicted to cost, and the seconds that there are for it.

Predicted by the size of networks and not by the clock, so that two studies with one seed try the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from time import monotonic

from graft.backbones.catalogue import find
from graft.backbones.weights import shelf
from graft.studies.frame import Frame, Trial
from graft.studies.shrinking.pooled import MOST_DEPTHS
from graft.studies.shrinking.students import STUDENT_VIEWS, student_design, view_count
from graft.studies.shrinking.worth import is_float, is_frozen, is_trained

SMALL_CNN, SMALL_CNN_GMACS = "small_cnn", 0.035
# Seconds to plan with, on one thread of any machine: 10^9 multiply-adds (and of a training's forward passes), quantising,
# opening a trained network, a head on 1,000 images, a view.
SECONDS_PER_GMAC, TRAINING_PER_GMAC, QUANTISING, OPENING, HEAD, VIEW = 0.015, 0.1, 7.0, 3.0, 0.5, 0.003
CODING = 5.0  # more than quantising: 4 bits are rounded on more images


@dataclass(slots=True)
class Purse:
    """Seconds to spend, as far as steps are predicted to cost; `until` is the clock's word, on a machine that is slow.
    `refused`: how many steps were not paid."""

    seconds: float
    until: float = math.inf
    refused: int = 0

    @property
    def empty(self) -> bool:
        """Whether the time is over, whatever was planned."""
        return monotonic() > self.until

    def pays(self, cost: float) -> bool:
        """Whether the step is affordable; if so, it is paid."""
        if cost > self.seconds or self.empty:
            self.refused += 1
            return False
        self.seconds -= cost
        return True


def calibrated_cost(frame: Frame, trial: Trial) -> float:
    """A trial in 8 bits, or thinner, in all folds."""
    opening = 0.0 if is_frozen(trial) or is_float(trial) else OPENING
    per_fold = QUANTISING + opening + HEAD + len(frame.dataset) * gmacs_of(frame, trial) * SECONDS_PER_GMAC
    return frame.folds.count * per_fold


def student_cost(frame: Frame, teacher: Trial, width: int) -> float:
    """A tuned teacher is asked in every fold, a frozen one once."""
    asked = frame.folds.count if is_trained(teacher) else 1
    views = (
        len(frame.rows)
        * (1 + view_count(len(frame.rows), teacher))
        * (VIEW + gmacs_of(frame, teacher) * SECONDS_PER_GMAC)
    )
    gmacs = student_design(frame, teacher, width).multiply_adds / 1e9
    return asked * views + frame.folds.count * STUDENT_VIEWS * gmacs * TRAINING_PER_GMAC


def coded_cost(frame: Frame, trial: Trial) -> float:
    """As `calibrated_cost`, with 4-bit weights."""
    return calibrated_cost(frame, trial) + frame.folds.count * CODING


def smaller_input_cost(frame: Frame, trial: Trial, size: int) -> float:
    """A network frozen at all its taps, on pictures of `size` pixels."""
    gmacs = gmacs_of(frame, trial) * (size / trial.recipe.geometry.size) ** 2
    heads = trial.taps * frame.folds.count * HEAD / 4
    return 5.0 + len(frame.dataset) * gmacs * SECONDS_PER_GMAC / 4 + heads


def depths_cost(frame: Frame, trial: Trial) -> float:
    """A network cut at some waists and read at several depths."""
    heads = 2 * MOST_DEPTHS * frame.folds.count * HEAD * (len(frame.rows) / 1_000) ** 2
    return OPENING + len(frame.dataset) * gmacs_of(frame, trial) * SECONDS_PER_GMAC + heads


def gmacs_of(frame: Frame, trial: Trial) -> float:
    """10^9 multiply-adds of the whole network at the trial's input size."""
    if trial.recipe.backbone == SMALL_CNN:
        return SMALL_CNN_GMACS
    entry = find(trial.recipe.backbone, shelf(frame.folder))
    return (entry.gmacs or 0.5) * (trial.recipe.geometry.size / entry.input.size) ** 2
