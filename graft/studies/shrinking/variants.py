"""One way to make a network smaller, and what it is worth on the folds.

In: a trial and a `Variant` of it: read at several depths up to some waist (where that is the last one, nothing is made
smaller: `graft.studies.depths`), inner channels taken out, 8 bits, 4-bit weights, or a student of it. Out: a trial like any other, every (recipe, fold) in the journal. What is calibrated on images
(thinning, 8 bits, 4-bit weights) is made for every fold anew from images that the fold learns from, and the held-out images are answered by it.
The head of a frozen network is fitted on what the smaller one puts out; a trained network keeps its own.

Cost: float variants read the pooled maps of all waists from the cache, one pass for all of them; the others take about
10 s and a pass over all images per fold (one thread).
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
import onnx
from jaxtyping import Float32, Int64
from onnx import ModelProto
from threadpoolctl import threadpool_limits

from graft.backbones.activations import compact, openvino_rows
from graft.backbones.trunks import TrunkFile
from graft.compute import cpu_name
from graft.deploy.quantise import outputs_of, quantised, spread
from graft.deploy.reading import READING, depths, maps_of, read_together, waists, weights_of
from graft.deploy.thinning import thinned
from graft.errors import BundleError
from graft.images.pixels import open_pixels, pixels_key
from graft.judging.cost import latency_ms
from graft.learning import frozen_head
from graft.learning.heads import Head
from graft.store import Entry as Stored
from graft.store import content_key
from graft.studies.beside import trunk_of_trial
from graft.studies.frame import Event, Frame, Trial, criterion
from graft.studies.probe import LATENCY_THREADS, samples_of
from graft.studies.recipe import Recipe
from graft.studies.shrinking.networks import Network, network_of, network_trained, prepared_trunk, with_head
from graft.studies.shrinking.students import STUDENT_VERSION, student_fold, student_geometry
from graft.studies.tuning.kept_states import kept_trained

Precision = Literal["float32", "int8", "int4"]
Kind = Literal[
    "smaller input",
    "several depths",
    "8 bits",
    "4-bit weights",
    "fewer channels, 8 bits",
    "fewer channels, 4-bit weights",
    "student",
    "student, 8 bits",
]
SMALLER = re.compile(r"@\d+px$")  # how the names of trials with smaller inputs end
CALIBRATED_ON = 64
THINNED_ON = 32
MOST_DEPTHS = 5
DEPTH_STEP = 0.75  # each next waist has at most this share of the weights of the one before
VERSION = 3


@dataclass(frozen=True, slots=True)
class Variant:
    """`deepest`: the number of the last waist that is read, together with some below (by a student: by its teacher); None:
    the tap, as it was. `whole`: that waist is the last one, and the input as large as it was. `quarters`: the deepest maps
    are read by quarters of the picture, too.

    `share`: of the weights that stay; `precision` of what lies before the head, where int4 holds the largest weights in 4
    bits and computes in 8. `student`: the width of a small CNN that
    learns from the network and takes its place; 0 for none.
    """

    deepest: int | None = None
    share: float = 1.0
    precision: Precision = "float32"
    student: int = 0
    whole: bool = False
    quarters: bool = False

    @property
    def calibrated(self) -> bool:
        """Whether images decide how it comes out."""
        return self.share < 1 or self.precision != "float32"

    @property
    def suffix(self) -> str:
        """What its name says of it."""
        parts = [
            "" if self.deepest is None else "+depths" if self.whole else f"+depths:{self.deepest}",
            "+quarters" if self.quarters else "",
            f"+student:{self.student}" if self.student else "",
            "" if self.share == 1 else f"+thin:{round(100 * self.share)}",
            "" if self.precision == "float32" else f"+{self.precision}",
        ]
        return "".join(parts)


def shrunk_recipe(base: Trial, variant: Variant) -> Recipe:
    """The recipe of a variant of a trial that is frozen or was trained."""
    made = replace(
        base.recipe,
        name=base.recipe.name + variant.suffix,
        strategy="depths" if variant.whole and not variant.calibrated and not variant.student else "shrunk",
        settings=content_key("shrunk", VERSION, base.recipe.strategy, base.recipe.settings, asdict(variant)),
    )
    if not variant.student:
        return made
    geometry = student_geometry(base)
    settings = content_key(made.settings, base.recipe.key, STUDENT_VERSION)
    return replace(
        made, backbone="small_cnn", geometry=geometry, tap="head", cut="", look="plain", settings=settings
    )


def variant_of(trial: Trial) -> Variant:
    """The variant of a shrunk trial; of any other, the network as it is."""
    return Variant(**trial.about["shrunk"]["variant"]) if "shrunk" in trial.about else Variant()


def kind_of(trial: Trial) -> Kind | None:
    """Which step made it; None for what shrinking has not made."""
    if trial.recipe.strategy == "shrunk":
        variant = variant_of(trial)
        if variant.student:
            return "student, 8 bits" if variant.precision == "int8" else "student"
        if variant.precision == "int4":
            return "4-bit weights" if variant.share == 1 else "fewer channels, 4-bit weights"
        if variant.share < 1:
            return "fewer channels, 8 bits"
        return "8 bits" if variant.precision == "int8" else "several depths"
    smaller = SMALLER.search(trial.recipe.name) is not None and "enlarged" not in trial.about
    return "smaller input" if smaller else None


def small_graph(
    model: ModelProto, variant: Variant, images: np.ndarray, *, reduce_range: bool = True
) -> tuple[ModelProto, int]:
    """The variant of a prepared trunk with the output `graft_reading`, and how many weights it has."""
    if variant.deepest is not None:
        found = waists(model)
        chosen = depths(len(found), variant.deepest)
        model = maps_of(model, [found[number].tensor for number in chosen])
    outputs = [value.name for value in model.graph.output]
    if variant.share < 1:
        wanted = int(variant.share * weights_of(model))
        model = thinned(model, spread(images, THINNED_ON), weights=wanted)
    weights = weights_of(model)
    if variant.precision != "float32":
        model = quantised(
            model,
            spread(images, CALIBRATED_ON),
            upto=outputs,
            reduce_range=reduce_range,
            weight_bits=4 if variant.precision == "int4" else 8,
        )
    if variant.deepest is not None:
        model = read_together(model, quarters=[0] if variant.quarters else [])
    return model, weights


def read_by(model: ModelProto, variant: Variant) -> ModelProto:
    """A prepared trunk read at the depths of a variant and otherwise as it is."""
    reading = Variant(deepest=variant.deepest, quarters=variant.quarters)
    return small_graph(model, reading, np.zeros((0, 1, 1, 1), np.uint8))[0]


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


def float_rows(frame: Frame, base: Trial, model: ModelProto, variant: Variant) -> Float32[np.ndarray, "n d"]:
    """What a float variant of a frozen network, whose prepared trunk is `model`, reads of every image."""
    return _whole(frame, base, model, variant) if variant.whole else _pooled(frame, base, model, variant)


def _whole(frame: Frame, base: Trial, model: ModelProto, variant: Variant) -> Float32[np.ndarray, "n d"]:
    """One pass, which reads the quarters, too; they come last."""
    trunk = trunk_of_trial(frame, base)
    stored = _kept(
        frame, trunk, ["whole", variant.deepest], lambda: read_by(model, replace(variant, quarters=True))
    )
    widths = stored.array("widths") if variant.quarters else stored.array("widths")[:-1]
    return stored.array("rows")[:, : int(widths.sum())].astype(np.float32)


def _pooled(frame: Frame, base: Trial, model: ModelProto, variant: Variant) -> Float32[np.ndarray, "n d"]:
    """One pass gives the pooled maps of all waists, and the quarters of those that are tried."""
    assert variant.deepest is not None
    found = waists(model)
    trunk = trunk_of_trial(frame, base)
    tried = depths_to_try([waist.weights for waist in found])
    every = [waist.tensor for waist in found]
    stored = _kept(
        frame,
        trunk,
        ["waists", base.tap_index, tried],
        lambda: read_together(maps_of(model, every), quarters=tried),
    )
    rows, ends = stored.array("rows"), np.cumsum(stored.array("widths"))
    begins = np.concatenate([[0], ends[:-1]])
    parts = [2 * number + part for number in depths(len(found), variant.deepest) for part in (0, 1)]
    parts += [2 * len(found) + tried.index(variant.deepest)] if variant.quarters else []
    return np.concatenate([rows[:, begins[part] : ends[part]] for part in parts], axis=1).astype(np.float32)


def depths_to_try(weights: Sequence[int]) -> list[int]:
    """Which waists to cut at, the last one first, each next one with clearly fewer weights."""
    chosen: list[int] = []
    for number in range(len(weights) - 1, -1, -1):
        if not chosen or weights[number] <= DEPTH_STEP * weights[chosen[-1]]:
            chosen.append(number)
    return chosen[:MOST_DEPTHS]


def _kept(frame: Frame, trunk: TrunkFile, what: list[Any], make: Callable[[], ModelProto]) -> Stored:
    """What the graph that `make` gives reads of every image, `rows`, and how many columns each part has, `widths`; by the
    runner of the frozen network, and kept in the cache."""
    key = content_key("read.v1", trunk.key, trunk.runner, what, pixels_key(frame.dataset, trunk.geometry))
    stored = frame.store.get(key)
    if stored is None:
        graph, pixels = make(), open_pixels(frame.dataset, trunk.geometry, store=frame.store)
        with frame.store.writing(key) as place:
            if trunk.runner == "torch":
                rows = outputs_of(graph, pixels, READING, threads=frame.compute.threads)
            else:
                file = place / "reading.onnx"
                file.write_bytes(graph.SerializeToString())
                (rows,) = openvino_rows(file, pixels, runner=trunk.runner, threads=frame.compute.threads)
                file.unlink()  # the weights are in the trunk's own entry
            np.save(place / "rows.npy", compact(rows))
            np.save(
                place / "widths.npy", np.array(widths_of(graph, samples_of(frame, trunk.geometry)), np.int64)
            )
        stored = frame.store.get(key)
        assert stored is not None
    return stored


def widths_of(together: ModelProto, images: np.ndarray) -> list[int]:
    """How many columns of the reading each part has, in order."""
    parts = list(together.graph.node[-1].input)
    return [outputs_of(_showing(together, part), images[:1], part).shape[1] for part in parts]


def _showing(model: ModelProto, output: str) -> ModelProto:
    made = ModelProto()
    made.CopyFrom(model)
    del made.graph.output[:]
    made.graph.output.append(onnx.ValueInfoProto(name=output))
    return made


def float_costs(
    frame: Frame, base: Trial, variant: Variant, model: ModelProto, features: int
) -> dict[str, Any]:
    """Bytes, parameters and latency of a float variant; kept per processor."""
    trunk: TrunkFile = trunk_of_trial(frame, base)
    key = content_key(
        "shrunk-cost.v1",
        trunk.key,
        base.tap_index,
        asdict(variant),
        frame.classes,
        LATENCY_THREADS,
        cpu_name(),
    )
    stored = frame.store.get(key)
    if stored is None:
        graph, weights = small_graph(model, variant, np.zeros((0, 1, 1, 1), np.uint8))
        zeros = np.zeros((features, frame.classes), np.float32)
        packed = with_head(graph, Head(zeros, zeros[0].copy())).SerializeToString()
        facts = {
            "bytes": len(packed),
            "parameters": weights + zeros.size + frame.classes,
            "latency_ms": latency_ms(packed, threads=LATENCY_THREADS, seconds=0.06),
        }
        stored = frame.store.put(key, facts)
    return {name: stored.facts[name] for name in ("bytes", "parameters", "latency_ms")}
