"""Trials with a wanted accuracy, size and speed, made without any network."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from graft.images.dataset import Preprocess
from graft.studies.choice import Choice, Limits, choose
from graft.studies.frame import Trial
from graft.studies.recipe import Recipe, Strategy

CLASSES = 3


def targets(count: int = 300) -> np.ndarray:
    """Class numbers, equally many of each."""
    return np.arange(count, dtype=np.int64) % CLASSES


def probabilities(accuracy: float, *, seed: int, count: int = 300, sharpness: float = 3.0) -> np.ndarray:
    """Rows of which the share `accuracy` is decided rightly."""
    generator = np.random.default_rng(seed)
    truth = targets(count)
    mistaken = generator.permutation(count)[: round(count * (1 - accuracy))]
    decided = truth.copy()
    decided[mistaken] = (decided[mistaken] + 1) % CLASSES
    logits = generator.normal(0, 0.3, (count, CLASSES))
    logits[np.arange(count), decided] += sharpness
    shares = np.exp(logits)
    return (shares / shares.sum(axis=1, keepdims=True)).astype(np.float32)


def trial(
    name: str,
    rows: np.ndarray,
    *,
    size: int | None = 1_000_000,
    latency: float | None = 1.0,
    strategy: Strategy = "frozen",
) -> Trial:
    """A trial called `name` with these out-of-fold probabilities."""
    recipe = Recipe(name, strategy, name.split("/")[0], "w" * 64, Preprocess(32), "stage", "stage", "s")
    return Trial(recipe, rows, 0.5, 1.5, size, 1_000, latency, 0, 1)


def incomplete(whole: Trial) -> Trial:
    """The same trial without its last fold."""
    rows = whole.probabilities.copy()
    rows[-20:] = np.nan
    return replace(whole, probabilities=rows)


def chosen_from(
    trials: list[Trial], *, metric: str = "macro_f1", limits: Limits | None = None, seed: int = 0
) -> Choice:
    """The choice, with every image a group of its own."""
    count = len(trials[0].probabilities)
    return choose(
        trials, targets(count), np.arange(count), metric=metric, limits=limits or Limits(), seed=seed
    )
