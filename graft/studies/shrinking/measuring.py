"""What a variant of a network is worth on the folds.

In: a trial and a `Variant` of it. Out: a trial like any other, every (recipe, fold) in the journal. What is calibrated on
images (thinning, 8 bits, 4-bit weights) is made for every fold anew from images that the fold learns from, and the held-out
images are answered by it. The head of a frozen network is fitted on what the smaller one puts out; a trained network keeps
its own.

Cost: float variants read the cache (`graft.studies.shrinking.pooled`); the others take about 10 s and a pass over all
images per fold (one thread).
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64
from onnx import ModelProto
from threadpoolctl import threadpool_limits

from graft.deploy.quantise import outputs_of
from graft.deploy.reading import READING, waists
from graft.errors import BundleError
from graft.images.pixels import open_pixels
from graft.judging.cost import latency_ms
from graft.learning import frozen_head
from graft.learning.heads import Head
from graft.studies.frame import Event, Frame, Trial, criterion
from graft.studies.probe import LATENCY_THREADS
from graft.studies.recipe import Recipe
from graft.studies.shrinking.networks import Network, network_of, network_trained, prepared_trunk, with_head
from graft.studies.shrinking.pooled import float_costs, float_rows
from graft.studies.shrinking.students import student_fold
from graft.studies.shrinking.variants import CALIBRATED_ON, Variant, read_by, shrunk_recipe, small_graph
from graft.studies.tuning.kept_states import kept_trained


def measuring(
    frame: Frame, base: Trial, variant: Variant, *, from_name: str
) -> Generator[Event, None, Trial | None]:
    """The trial of a variant: what the journal lacks of it is measured. None where the network cannot be read so."""
    recipe = shrunk_recipe(base, variant)
    known = {fold: frame.journal.fold(recipe.key, fold) for fold in range(frame.folds.count)}
    missing = [fold for fold, found in known.items() if found is None]
    if (
        missing
        and variant.deepest is not None
        and variant.deepest >= len(waists(prepared_trunk(frame, base)))
    ):
        return None
    if missing and not variant.calibrated and not variant.student:
        yield Event("progress", recipe.name, remaining_seconds=frame.remaining_seconds())
        for fold, rows, facts in _float_folds(frame, base, variant, missing):
            known[fold] = frame.journal.add_fold(recipe.key, fold, rows, {"name": recipe.name, **facts}), rows
        missing = []
    for number, fold in enumerate(missing):
        yield Event(
            "progress", recipe.name, number, len(missing), remaining_seconds=frame.remaining_seconds()
        )
        begun = time.monotonic()
        if variant.calibrated:
            rows, facts = _calibrated_fold(frame, base, variant, fold)
        else:
            teacher = teacher_of(network_of(frame, base, fold), variant)
            rows, facts = yield from student_fold(frame, base, teacher, variant.student, recipe, fold)
        facts |= {"name": recipe.name, "seconds": round(time.monotonic() - begun, 3)}
        known[fold] = frame.journal.add_fold(recipe.key, fold, rows, facts), rows
    return _trial(frame, base, variant, recipe, known, from_name)


def _trial(
    frame: Frame, base: Trial, variant: Variant, recipe: Recipe, known: Mapping[int, Any], from_name: str
) -> Trial:
    probabilities = np.full((len(frame.dataset), frame.classes), np.nan, np.float32)
    for fold, found in known.items():
        probabilities[frame.held_out(fold)] = found[1]
    records = [found[0] for found in known.values()]
    priced = next((record for record in records if record["fold"] == 0), records[0])
    taken = {"family": "small_cnn"} if variant.student else {}
    about = {
        **base.about,
        **taken,
        "runner": base.about["runner"] if recipe.strategy == "depths" else "onnxruntime",
        "shrunk": {"variant": asdict(variant), "from": from_name, "base": base.recipe.name},
    }
    return replace(
        base,
        recipe=recipe,
        probabilities=probabilities[frame.rows],
        train_seconds=float(sum(record["seconds"] for record in records)),
        model_bytes=max(int(record["bytes"]) for record in records),
        parameters=int(priced["parameters"]),
        latency_ms=float(priced["latency_ms"]),
        knn=None,
        about=about,
        curves=tuple({"fold": r["fold"], **r["curve"]} for r in records if "curve" in r),
    )


def network_for(frame: Frame, base: Trial, variant: Variant, fold: int) -> Network:
    """What is calibrated: the network of the fold, or its student. Raises BundleError where it was not kept."""
    if not variant.student:
        return network_of(frame, base, fold)
    recipe = shrunk_recipe(base, replace(variant, precision="float32"))
    trained = kept_trained(frame, recipe.key, fold)
    if trained is None:
        raise BundleError(f"the student of fold {fold + 1} was not kept")
    return network_trained(frame, trained, recipe.geometry)


def teacher_of(network: Network, variant: Variant) -> Network:
    """What a student learns from: the network as it is, or read at several depths."""
    if variant.deepest is None:
        return network
    together = read_by(network.model, variant)
    return replace(network, model=together)


def _calibrated_fold(
    frame: Frame, base: Trial, variant: Variant, fold: int
) -> tuple[Float32[np.ndarray, "f k"], dict[str, Any]]:
    """Calibrate on what the fold learns from, and answer what is held out."""
    network = network_for(frame, base, variant, fold)
    learned, asked = frame.learned_from(fold), frame.held_out(fold)
    graph, head, weights, features = calibrated(frame, network, variant, learned, asked)
    packed = with_head(graph, head).SerializeToString()
    facts: dict[str, Any] = {"bytes": len(packed), "parameters": weights + head.weight.size + head.bias.size}
    if fold == 0:
        facts["latency_ms"] = latency_ms(packed, threads=LATENCY_THREADS, seconds=0.1)
    else:
        facts["latency_ms"] = 0.0  # told by the first fold: neighbours on the machine would make a difference
    return head.probabilities(features), facts


def calibrated(
    frame: Frame,
    network: Network,
    variant: Variant,
    learned: Int64[np.ndarray, " m"],
    asked: Int64[np.ndarray, " f"],
) -> tuple[ModelProto, Head, int, Float32[np.ndarray, "f d"]]:
    """The smaller graph made with images of `learned`, its head, its weights, and what it puts out for `asked`."""
    pixels = open_pixels(frame.dataset, network.geometry, store=frame.store)
    made = replace(variant, deepest=None) if variant.student else variant
    graph, weights = small_graph(network.model, made, some_images(pixels, learned))
    if network.head is not None:
        return graph, network.head, weights, _read(frame, graph, pixels, asked)
    features = outputs_of(graph, pixels, READING, threads=frame.compute.threads)
    return graph, fitted_head(frame, features, learned), weights, features[asked]


def _read(
    frame: Frame, graph: ModelProto, pixels: np.ndarray, rows: Int64[np.ndarray, " m"]
) -> Float32[np.ndarray, "m d"]:
    return outputs_of(graph, np.array(pixels[rows]), READING, threads=frame.compute.threads)


def _float_folds(
    frame: Frame, base: Trial, variant: Variant, missing: Sequence[int]
) -> Iterator[tuple[int, Float32[np.ndarray, "f k"], dict[str, Any]]]:
    """The folds of a float variant, several at a time, as the probe does it."""
    begun, model = time.monotonic(), prepared_trunk(frame, base)
    features = float_rows(frame, base, model, variant)
    facts = float_costs(frame, base, variant, model, features.shape[1])
    reading = (time.monotonic() - begun) / len(missing)

    def answered(fold: int) -> tuple[Float32[np.ndarray, "f k"], float]:
        begun = time.monotonic()
        head = fitted_head(frame, features, frame.learned_from(fold))
        return head.probabilities(features[frame.held_out(fold)]), reading + time.monotonic() - begun

    with threadpool_limits(1), ThreadPoolExecutor(frame.compute.threads) as pool:
        for fold, (rows, seconds) in zip(missing, pool.map(answered, missing), strict=True):
            yield fold, rows, {**facts, "seconds": round(seconds, 3)}


def fitted_head(frame: Frame, features: Float32[np.ndarray, "n d"], rows: Int64[np.ndarray, " m"]) -> Head:
    """The head of frozen features of these rows, as the probe fits it."""
    with threadpool_limits(1):
        found = frozen_head.fit(
            features[rows],
            frame.dataset.targets[rows],
            classes=frame.classes,
            criterion=criterion(frame.settings.metric),
        )
    return Head(found.weight, found.bias)


def some_images(pixels: np.ndarray, rows: Int64[np.ndarray, " m"]) -> np.ndarray:
    """Evenly spread images of these rows, to calibrate on."""
    chosen = rows[np.linspace(0, len(rows) - 1, min(CALIBRATED_ON, len(rows))).astype(np.int64)]
    return np.array(pixels[chosen])
