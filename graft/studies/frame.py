"""What every rung of a study shares, and what a rung tells while it works."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from threading import Event as Flag
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Float32, Int, Int64

from graft.backbones.weights import Reach, WeightsFolder
from graft.compute import Compute
from graft.images.dataset import Dataset
from graft.images.folds import Folds
from graft.judging.metrics import METRICS
from graft.judging.uncertainty import bootstrap
from graft.learning.ridge import Criterion
from graft.store import Store
from graft.studies.journal import Journal
from graft.studies.recipe import Recipe
from graft.studies.settings import Settings


@dataclass(frozen=True, slots=True)
class Event:
    """A sign of life: a new `stage`, `progress` within it, a `notice` to keep, the `result` of one backbone, or a `board`."""

    kind: Literal["stage", "progress", "notice", "result", "board"]
    text: str = ""
    done: int = 0
    total: int = 0
    remaining_seconds: float = 0.0
    board: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """The same images, folds and budget for every trial. Once the user sets `halt`, no time is left."""

    settings: Settings
    dataset: Dataset
    folds: Folds
    store: Store
    compute: Compute
    folder: WeightsFolder | None
    reach: Reach
    journal: Journal
    halt: Flag = field(default_factory=Flag)

    @property
    def rows(self) -> Int64[np.ndarray, " m"]:
        """The rows of the development images: everything but the locked test split."""
        return np.flatnonzero(self.folds.assignment >= 0)

    @property
    def test_rows(self) -> Int64[np.ndarray, " t"]:
        """The rows of the locked test split."""
        return np.flatnonzero(self.folds.assignment == -1)

    @property
    def targets(self) -> Int64[np.ndarray, " m"]:
        """The classes of the development images."""
        return self.dataset.targets[self.rows]

    @property
    def classes(self) -> int:
        """How many classes there are."""
        return len(self.dataset.classes)

    def held_out(self, fold: int) -> Int64[np.ndarray, " f"]:
        """The rows of one fold."""
        return np.flatnonzero(self.folds.assignment == fold)

    def learned_from(self, fold: int) -> Int64[np.ndarray, " r"]:
        """The development rows of all other folds."""
        assignment = self.folds.assignment
        return np.flatnonzero((assignment >= 0) & (assignment != fold))

    @property
    def ended(self) -> str:
        """What ended the study before everything was measured: the beginning of a sentence."""
        return "The study was stopped by hand" if self.halt.is_set() else "The budget ended"

    def remaining_seconds(self) -> float:
        """What is left of the budget."""
        left = self.settings.budget_seconds - self.journal.elapsed_seconds()
        return min(left, 0.0) if self.halt.is_set() else left


def budget_of(frame: Frame) -> float | None:
    """The budget as a journal tells it, beside a decision that follows from it: a longer one decides anew."""
    seconds = frame.settings.budget_seconds
    return seconds if math.isfinite(seconds) else None


@dataclass(frozen=True, slots=True, eq=False)
class Trial:
    """One recipe measured on the folds.

    `probabilities` has a row per development image; rows of folds that were not finished are NaN. `model_bytes`,
    `parameters` and `latency_ms` are those of the packed model; None where the network cannot be exported.
    """

    recipe: Recipe
    probabilities: Float32[np.ndarray, "m k"]
    train_seconds: float
    extract_seconds: float
    model_bytes: int | None
    parameters: int
    latency_ms: float | None
    tap_index: int
    taps: int
    about: dict[str, Any] = field(default_factory=dict)
    knn: dict[str, float] | None = None
    curves: tuple[dict[str, Any], ...] = ()

    @property
    def complete(self) -> bool:
        """Whether every fold was finished."""
        return not bool(np.isnan(self.probabilities).any())


def criterion(metric: str) -> Criterion:
    """The study's metric as a score of probabilities where higher is better."""

    def score(probabilities: Float[np.ndarray, "n k"], targets: Int[np.ndarray, " n"]) -> float:
        whole = np.ones((1, len(targets)), np.float32)
        return METRICS[metric].sign * float(bootstrap(metric, probabilities, targets, whole)[0])

    return score
