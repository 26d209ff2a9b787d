"""What is told beside the scores: where the data stand, and what to expect of new subjects.

Both look at the features of a frozen candidate, which the cache holds, and are kept there themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from graft.backbones.activations import Activations, extracted
from graft.backbones.trunks import TrunkFile, trunk_of, untrained_trunk
from graft.images.pixels import open_pixels, pixels_key
from graft.store import content_key
from graft.studies.frame import Frame, Trial, criterion
from graft.studies.probe import samples_of
from graft.studies.standing import standing
from graft.studies.subjects import new_subjects


def trunk_of_trial(frame: Frame, trial: Trial) -> TrunkFile:
    """The trunk of a frozen trial; it was opened in this session, so the cache has it."""
    from graft.backbones.catalogue import find
    from graft.backbones.weights import shelf

    geometry = trial.recipe.geometry
    samples = samples_of(frame, geometry)
    if trial.recipe.strategy == "random":
        from graft.backbones.scratch import design

        made, _ = design(frame.dataset, development=len(frame.rows))
        return untrained_trunk(
            made,
            geometry,
            seed=frame.settings.seed,
            store=frame.store,
            samples=samples,
            compute=frame.compute,
        )
    return trunk_of(
        find(trial.recipe.backbone, shelf(frame.folder)),
        geometry,
        folder=frame.folder,
        reach=frame.reach,
        store=frame.store,
        samples=samples,
        compute=frame.compute,
        look=trial.recipe.look,
    )


def activations_of(frame: Frame, trial: Trial) -> tuple[TrunkFile, Activations]:
    """The trunk of a frozen trial and what it puts out: both are in the cache."""
    trunk = trunk_of_trial(frame, trial)
    pixels = open_pixels(frame.dataset, trunk.geometry, store=frame.store)
    return trunk, extracted(
        trunk,
        pixels,
        pixels_key(frame.dataset, trunk.geometry),
        store=frame.store,
        compute=frame.compute,
        folder=frame.folder,
        reach=frame.reach,
    )


def best_frozen(frame: Frame, trials: Sequence[Trial]) -> Trial | None:
    score = criterion(frame.settings.metric)
    frozen = [trial for trial in trials if trial.recipe.strategy == "frozen" and trial.complete]
    return max(frozen, key=lambda trial: score(trial.probabilities, frame.targets), default=None)


def _kept(
    frame: Frame, kind: str, trial: Trial, make: Callable[[], dict[str, Any] | None]
) -> dict[str, Any] | None:
    """A small result about a frozen trial, from the cache if it was made before."""
    parts = [
        trial.recipe.key,
        frame.dataset.fingerprint,
        frame.settings.metric,
        frame.settings.seed,
        frame.settings.folds,
    ]
    key = content_key(kind, parts)
    stored = frame.store.get(key) or frame.store.put(key, {"value": make()})
    return stored.facts["value"]


def where_the_data_stand(frame: Frame, trials: Sequence[Trial]) -> dict[str, Any] | None:
    """Where the data stand, seen through the best frozen candidate."""
    best = best_frozen(frame, trials)
    if best is None:
        return None
    same = [
        trial
        for trial in trials
        if trial.recipe.backbone == best.recipe.backbone
        and (trial.recipe.geometry, trial.recipe.look) == (best.recipe.geometry, best.recipe.look)
    ]
    return _kept(
        frame, "standing.v1", best, lambda: standing(frame, same, *activations_of(frame, best), best)
    )


def what_of_new_subjects(frame: Frame, trials: Sequence[Trial], chosen: Trial) -> dict[str, Any] | None:
    """What to expect of new subjects, of the choice if it is frozen, else of the best frozen candidate."""
    trial = chosen if chosen.recipe.strategy == "frozen" else best_frozen(frame, trials)
    if trial is None or frame.dataset.series is None:
        return None

    def make() -> dict[str, Any] | None:
        features = activations_of(frame, trial)[1].tap(trial.tap_index).astype(np.float32)
        return new_subjects(frame, features, name=trial.recipe.name)

    return _kept(frame, "subjects.v1", trial, make)
