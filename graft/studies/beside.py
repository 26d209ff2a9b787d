"""What is told beside the scores: where the data stand, and what to expect of new subjects.

Both look at the features of a frozen candidate, which the cache holds, and are kept there themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int64

from graft.backbones.activations import Activations, extracted
from graft.backbones.trunks import TrunkFile, reopened, trunk_of, untrained_trunk
from graft.images.pixels import open_pixels, pixels_key
from graft.store import content_key
from graft.studies.frame import Frame, Trial, criterion
from graft.studies.probe import samples_of
from graft.studies.standing import standing
from graft.studies.subjects import new_subjects

if TYPE_CHECKING:
    from graft.backbones.opening import Opened
else:
    Opened = Any


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


def opened_as_read(frame: Frame, trial: Trial, trunk: TrunkFile) -> Opened:
    """The network of a trial whose head was tuned with it, opened again; the tap number `trial.tap_index` feeds the head."""
    opened = reopened(trunk, folder=frame.folder, reach=frame.reach)
    if "together" not in trial.about:
        return opened
    from graft.backbones.opening import read_together

    return read_together(opened, trial.about["together"], size=trunk.geometry.size)


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


def of_the_better_framing(targets: Int64[np.ndarray, " m"], trials: Sequence[Trial]) -> list[Trial]:
    """Without the frozen trials of a network that was shown the same pictures framed in a better way.

    Better is the lower log loss, as it is for the pilot: of few images it says more than their decisions. Over 20 splits of
    hymenoptera it chose the crop each time, with an accuracy of 0.934 held out, 0.923 squashed.
    """
    loss = criterion("log_loss")
    best: dict[tuple[object, ...], tuple[float, str]] = {}
    for trial in trials:
        if trial.recipe.strategy == "frozen" and trial.complete:
            found = loss(trial.probabilities, targets), trial.recipe.geometry.fit
            best[_shown(trial)] = max(best.get(_shown(trial), found), found)
    return [
        trial
        for trial in trials
        if trial.recipe.strategy != "frozen"
        or best.get(_shown(trial), (0.0, trial.recipe.geometry.fit))[1] == trial.recipe.geometry.fit
    ]


def _shown(trial: Trial) -> tuple[object, ...]:
    """The network and its pictures, however these are framed."""
    geometry = trial.recipe.geometry
    return trial.recipe.backbone, trial.recipe.look, geometry.size, geometry.channels


def reads_as_usual(frame: Frame, one: Trial) -> bool:
    """Whether a trial sees the images as they are: in their colours, without filters."""
    channels = 1 if frame.dataset.mostly_grey else 3
    return one.recipe.look == "plain" and one.recipe.geometry.channels == channels


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
        if trial.recipe.strategy == best.recipe.strategy
        and trial.recipe.backbone == best.recipe.backbone
        and (trial.recipe.geometry, trial.recipe.look) == (best.recipe.geometry, best.recipe.look)
    ]
    return _kept(
        frame, "standing.v2", best, lambda: standing(frame, same, *activations_of(frame, best), best)
    )


def what_of_new_subjects(
    frame: Frame, trial: Trial | None, features_of: Callable[[Frame, Trial], np.ndarray]
) -> dict[str, Any] | None:
    """What to expect of new subjects, of a trial whose network learns nothing; None where none is known to be new."""
    if trial is None or frame.dataset.series is None:
        return None
    return _kept(
        frame,
        "subjects.v2",
        trial,
        lambda: new_subjects(frame, features_of(frame, trial), name=trial.recipe.name),
    )
