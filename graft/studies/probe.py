"""Rung 1: every backbone frozen, every tap, every fold, from one pass over the images.

Cost per backbone: the feature pass, then a head per (tap, fold), which takes less. Every finished (tap,
fold) is in the journal before the next one begins.
"""

from __future__ import annotations

import math
import time
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from jaxtyping import UInt8
from threadpoolctl import threadpool_limits

from graft.backbones.activations import Activations, extracting
from graft.backbones.ahead import Ahead
from graft.backbones.catalogue import Entry
from graft.backbones.graph import parameters, tap_output
from graft.backbones.inputs import Look
from graft.backbones.trunks import CHECK_IMAGES, UNTRAINED, TapRow, TrunkFile, trunk_of
from graft.compute import cpu_name
from graft.deploy.assemble import assembled
from graft.errors import BackboneError
from graft.images.dataset import Preprocess
from graft.images.pixels import open_pixels, pixels_key
from graft.judging.cost import latency_ms
from graft.learning import frozen_head
from graft.learning.neighbours import neighbour_probabilities
from graft.learning.ridge import RidgeHead
from graft.store import content_key
from graft.studies.frame import Event, Frame, Trial, criterion
from graft.studies.recipe import Recipe

LATENCY_THREADS = 1
NEIGHBOUR_ROWS = 6_000  # beyond, the quadratic cost of the second opinion would exceed that of the first


@dataclass(frozen=True, slots=True, eq=False)
class Probed:
    """An opened trunk, what it puts out, and a trial per tap, of which neither size nor latency is known yet."""

    trunk: TrunkFile
    activations: Activations
    trials: tuple[Trial, ...]


def probing(
    frame: Frame,
    entry: Entry,
    geometry: Preprocess,
    *,
    ahead: Ahead,
    samples: UInt8[np.ndarray, "m h w c"],
    suffix: str = "",
    look: Look = "plain",
    patience: float = -math.inf,
) -> Generator[Event, None, Probed]:
    """Measure all taps of one backbone. The images must have been decoded for `geometry`; `samples`: see `trunk_of`.

    Raises BackboneError where it is not open, or its weights are still on their way, when only `patience` seconds of the
    budget are left.
    """
    pixels = open_pixels(frame.dataset, geometry, store=frame.store)
    opening = Event("progress", f"{entry.name}: opening", remaining_seconds=frame.remaining_seconds())
    yield opening
    if frame.compute.device == "cpu":
        import openvino  # noqa: F401 (0.2 s, while the second process still works)
    for _ in ahead.waiting(entry, geometry, look=look):
        if frame.remaining_seconds() < patience:
            raise BackboneError("it was not open in time, and the budget is kept for what follows.")
        yield replace(opening, remaining_seconds=frame.remaining_seconds())
    trunk = trunk_of(
        entry,
        geometry,
        folder=frame.folder,
        reach=frame.reach,
        store=frame.store,
        samples=samples,
        compute=frame.compute,
        look=look,
    )
    return (yield from heads_on_taps(frame, trunk, pixels, suffix=suffix))


def heads_on_taps(
    frame: Frame, trunk: TrunkFile, pixels: np.ndarray, *, suffix: str = ""
) -> Generator[Event, None, Probed]:
    """The taps of an opened trunk as trials."""
    activations = yield from activating(frame, trunk, pixels)
    trials = []
    for tap in trunk.taps:
        recipe = recipe_of(trunk, tap, suffix=suffix)
        probabilities, seconds = _out_of_fold(frame, recipe, activations, tap)
        trials.append(_trial(trunk, tap, recipe, probabilities, seconds, activations))
        yield Event(
            "progress",
            f"{trunk.entry.name}: heads",
            tap.index + 1,
            len(trunk.taps),
            remaining_seconds=frame.remaining_seconds(),
        )
    return Probed(trunk, activations, tuple(trials))


def priced(frame: Frame, probed: Probed) -> list[Trial]:
    """The trials with what they cost as packed models, and with the second opinion of their neighbours."""
    trials = []
    for tap, trial in zip(probed.trunk.taps, probed.trials, strict=True):
        weights, size, latency = costs(frame, probed.trunk, tap)
        knn = _second_opinion(frame, trial.recipe, probed.activations, tap)
        trials.append(replace(trial, parameters=weights, model_bytes=size, latency_ms=latency, knn=knn))
    return trials


def recipe_of(trunk: TrunkFile, tap: TapRow, *, suffix: str = "") -> Recipe:
    """The recipe of a frozen candidate."""
    untrained = trunk.entry.architecture == UNTRAINED
    return Recipe(
        name=f"{trunk.entry.name}/{tap.name}{suffix}",
        strategy="random" if untrained else "frozen",
        backbone=trunk.entry.name,
        weights=trunk.digest,
        geometry=trunk.geometry,
        tap=tap.name,
        cut=tap.name,
        settings=content_key("head.v3", trunk.runner, len(trunk.taps)),
        look=trunk.look,
    )


def activating(frame: Frame, trunk: TrunkFile, pixels: np.ndarray) -> Generator[Event, None, Activations]:
    """What the trunk puts out for all images at every tap, from the cache if it is there."""
    work = extracting(
        trunk,
        pixels,
        pixels_key(frame.dataset, trunk.geometry),
        store=frame.store,
        compute=frame.compute,
        folder=frame.folder,
        reach=frame.reach,
    )
    while True:
        try:
            done, total = next(work)
        except StopIteration as finished:
            return finished.value
        yield Event(
            "progress",
            f"{trunk.entry.name}: features",
            done,
            total,
            remaining_seconds=frame.remaining_seconds(),
        )


def _out_of_fold(
    frame: Frame, recipe: Recipe, activations: Activations, tap: TapRow
) -> tuple[np.ndarray, float]:
    """Held-out probabilities of every development image, and the seconds all heads took."""
    known = {fold: frame.journal.fold(recipe.key, fold) for fold in range(frame.folds.count)}
    missing = [fold for fold, found in known.items() if found is None]
    if missing:
        features = activations.tap(tap.index).astype(np.float32)

        def measured(fold: int) -> tuple[RidgeHead, np.ndarray, float]:
            begun = time.monotonic()
            learned = frame.learned_from(fold)
            head = frozen_head.fit(
                features[learned],
                frame.dataset.targets[learned],
                classes=frame.classes,
                criterion=criterion(frame.settings.metric),
            )
            return head, head.probabilities(features[frame.held_out(fold)]), time.monotonic() - begun

        # One BLAS thread per fold: the same rounding on any number of cores, and no spinning against each other.
        with threadpool_limits(1), ThreadPoolExecutor(frame.compute.threads) as pool:
            for fold, (head, rows, seconds) in zip(missing, pool.map(measured, missing), strict=True):
                facts = {"penalty": head.penalty, "balance": head.balance, "inner_score": head.score}
                known[fold] = _recorded(frame, recipe, fold, rows, seconds=seconds, facts=facts)
    probabilities = np.full((len(frame.dataset), frame.classes), np.nan, np.float32)
    total = 0.0
    for fold, found in known.items():
        assert found is not None
        probabilities[frame.held_out(fold)] = found[1]
        total += float(found[0]["seconds"])
    return probabilities[frame.rows], total


def _recorded(
    frame: Frame, recipe: Recipe, fold: int, rows: np.ndarray, *, seconds: float, facts: dict[str, Any]
) -> tuple[dict[str, Any], np.ndarray]:
    record = {"name": recipe.name, "seconds": round(seconds, 4), **facts}
    return frame.journal.add_fold(recipe.key, fold, rows, record), rows


def _trial(
    trunk: TrunkFile,
    tap: TapRow,
    recipe: Recipe,
    probabilities: np.ndarray,
    seconds: float,
    activations: Activations,
) -> Trial:
    return Trial(
        recipe=recipe,
        probabilities=probabilities,
        train_seconds=seconds,
        extract_seconds=activations.seconds,
        model_bytes=None,
        parameters=trunk.entry.parameters or 0,
        latency_ms=None,
        tap_index=tap.index,
        taps=len(trunk.taps),
        about={
            "family": trunk.entry.family,
            "source": trunk.origin,
            "licence": trunk.entry.licence,
            "runner": trunk.runner,
            "notice": trunk.notice,
        },
    )


def costs(frame: Frame, trunk: TrunkFile, tap: TapRow) -> tuple[int, int | None, float | None]:
    """Parameters, bytes of the packed model and its single-image latency in ms; kept per processor.

    Where the network cannot be exported, the bytes and the latency are None.
    """
    if trunk.graph is None:
        return trunk.entry.parameters or 0, None, None
    key = content_key("cost.v1", trunk.key, tap.index, frame.classes, LATENCY_THREADS, cpu_name())
    stored = frame.store.get(key)
    if stored is None:
        zeros = np.zeros((tap.features, frame.classes), np.float32)
        model = assembled(
            _loaded(str(trunk.graph)),
            tap_output(tap.index),
            weight=zeros,
            bias=zeros[0],
            unit_length=True,
        )
        content = model.SerializeToString()
        latency = latency_ms(content, threads=LATENCY_THREADS, seconds=0.06)
        facts = {"parameters": parameters(model), "bytes": len(content), "latency_ms": latency}
        stored = frame.store.put(key, facts)
    return int(stored.facts["parameters"]), int(stored.facts["bytes"]), float(stored.facts["latency_ms"])


def _loaded(path: str) -> onnx.ModelProto:
    return onnx.load(path)


def _second_opinion(
    frame: Frame, recipe: Recipe, activations: Activations, tap: TapRow
) -> dict[str, float] | None:
    if len(frame.rows) > NEIGHBOUR_ROWS:
        return None
    key = content_key(
        "knn.v1",
        recipe.key,
        activations.stored.folder.name,
        frame.dataset.fingerprint,
        frame.settings.folds,
        frame.settings.seed,
    )
    stored = frame.store.get(key)
    if stored is None:
        features = activations.tap(tap.index).astype(np.float32)
        answers = np.zeros((len(frame.dataset), frame.classes), np.float32)
        with threadpool_limits(1):
            for fold in range(frame.folds.count):
                learned, asked = frame.learned_from(fold), frame.held_out(fold)
                answers[asked] = neighbour_probabilities(
                    features[learned], frame.dataset.targets[learned], features[asked], classes=frame.classes
                )
        facts = {
            name: criterion(name)(answers[frame.rows], frame.targets) for name in ("accuracy", "macro_f1")
        }
        stored = frame.store.put(key, facts)
    return {name: float(value) for name, value in stored.facts.items()}


def samples_of(frame: Frame, geometry: Preprocess) -> UInt8[np.ndarray, "m h w c"]:
    """The images on which runtimes are compared, decoded before for `geometry`."""
    return np.array(open_pixels(frame.dataset, geometry, store=frame.store)[check_rows(frame)])


def check_rows(frame: Frame) -> np.ndarray:
    """The development images on which runtimes are compared, evenly spread."""
    last = len(frame.rows) - 1
    return frame.rows[np.linspace(0, last, min(CHECK_IMAGES, last + 1)).astype(np.int64)]
