"""One way to make a frozen network smaller, and what it is worth on the folds.

In: a frozen trial and a `Variant` of it: read at several depths up to some waist, inner channels taken out, 8-bit
weights. Out: a trial like any other, every (recipe, fold) in the journal. Nothing of it is trained but the closed-form
head. What is calibrated on images (thinning, 8 bits) is made for every fold anew from images that the fold learns from;
the head is then fitted on what the smaller network itself puts out, and the held-out images are answered by it.

Cost: float variants read the pooled maps of all waists from the cache, one pass for all of them; the others take about
10 s and a pass over all images per fold (one thread).
"""

from __future__ import annotations

import re
import time
from collections.abc import Generator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
import onnx
from jaxtyping import Float32, Int64
from onnx import ModelProto
from threadpoolctl import threadpool_limits

from graft.backbones.graph import tap_output
from graft.backbones.trunks import TrunkFile
from graft.compute import cpu_name
from graft.deploy.assemble import assembled
from graft.deploy.quantise import outputs_of, prepared, quantised, spread
from graft.deploy.reading import READING, depths, maps_of, read_at, read_together, waists, weights_of
from graft.deploy.thinning import thinned
from graft.images.pixels import open_pixels, pixels_key
from graft.judging.cost import latency_ms
from graft.learning import ridge
from graft.store import content_key
from graft.studies.beside import trunk_of_trial
from graft.studies.frame import Event, Frame, Trial, criterion
from graft.studies.probe import LATENCY_THREADS, samples_of
from graft.studies.recipe import Recipe

Precision = Literal["float32", "int8"]
Kind = Literal["smaller input", "several depths", "8 bits", "fewer channels, 8 bits"]
SMALLER = re.compile(r"@\d+px$")  # how the names of trials with smaller inputs end
CALIBRATED_ON = 64
THINNED_ON = 32
VERSION = 1


@dataclass(frozen=True, slots=True)
class Variant:
    """`deepest`: the number of the last waist that is read, together with some below; None: the tap, as it was.

    `share`: of the weights that stay; `precision` of what lies before the head.
    """

    deepest: int | None = None
    share: float = 1.0
    precision: Precision = "float32"

    @property
    def calibrated(self) -> bool:
        """Whether images decide how it comes out."""
        return self.share < 1 or self.precision == "int8"

    @property
    def suffix(self) -> str:
        """What its name says of it."""
        parts = [
            "" if self.deepest is None else f"+depths:{self.deepest}",
            "" if self.share == 1 else f"+thin:{round(100 * self.share)}",
            "" if self.precision == "float32" else f"+{self.precision}",
        ]
        return "".join(parts)


def shrunk_recipe(base: Trial, variant: Variant) -> Recipe:
    """The recipe of a variant of a frozen trial."""
    return replace(
        base.recipe,
        name=base.recipe.name + variant.suffix,
        strategy="shrunk",
        settings=content_key("shrunk", VERSION, base.recipe.settings, asdict(variant)),
    )


def variant_of(trial: Trial) -> Variant:
    """The variant of a shrunk trial; of a frozen one, the network as it is."""
    return Variant(**trial.about["shrunk"]["variant"]) if "shrunk" in trial.about else Variant()


def kind_of(trial: Trial) -> Kind | None:
    """Which step made it; None for what shrinking has not made."""
    if trial.recipe.strategy == "shrunk":
        variant = variant_of(trial)
        if variant.share < 1:
            return "fewer channels, 8 bits"
        return "8 bits" if variant.precision == "int8" else "several depths"
    return "smaller input" if SMALLER.search(trial.recipe.name) else None


def prepared_trunk(frame: Frame, trial: Trial) -> ModelProto:
    """The trunk of a frozen trial up to its last tap, or to the trial's own, folded; kept in the cache."""
    trunk = trunk_of_trial(frame, trial)
    assert trunk.graph is not None
    output = tap_output(trial.tap_index)
    key = content_key("prepared.v1", trunk.key, output)
    stored = frame.store.get(key)
    if stored is None:
        made = prepared(read_at(onnx.load(str(trunk.graph)), output), samples_of(frame, trunk.geometry))
        with frame.store.writing(key) as place:
            (place / "prepared.onnx").write_bytes(made.SerializeToString())
        stored = frame.store.get(key)
        assert stored is not None
    return onnx.load(str(stored.file("prepared.onnx")))


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
    if variant.precision == "int8":
        model = quantised(model, spread(images, CALIBRATED_ON), upto=outputs, reduce_range=reduce_range)
    return (model if variant.deepest is None else read_together(model)), weights


def with_head(model: ModelProto, head: ridge.RidgeHead) -> ModelProto:
    """The model of `small_graph` with its head."""
    return assembled(model, READING, weight=head.weight, bias=head.bias, unit_length=True)


def measuring(
    frame: Frame, base: Trial, variant: Variant, *, from_name: str
) -> Generator[Event, None, Trial | None]:
    """The trial of a variant: what the journal lacks of it is measured. None where the network cannot be read so."""
    recipe = shrunk_recipe(base, variant)
    known = {fold: frame.journal.fold(recipe.key, fold) for fold in range(frame.folds.count)}
    missing = [fold for fold, found in known.items() if found is None]
    if missing:
        model = prepared_trunk(frame, base)
        if variant.deepest is not None and not 0 <= variant.deepest < len(waists(model)):
            return None
        measured = _calibrated_fold if variant.calibrated else _float_fold
        for number, fold in enumerate(missing):
            yield Event(
                "progress", recipe.name, number, len(missing), remaining_seconds=frame.remaining_seconds()
            )
            begun = time.monotonic()
            rows, facts = measured(frame, base, variant, model, fold)
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
    about = {
        **base.about,
        "runner": "onnxruntime",
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
    )


def _calibrated_fold(
    frame: Frame, base: Trial, variant: Variant, model: ModelProto, fold: int
) -> tuple[Float32[np.ndarray, "f k"], dict[str, Any]]:
    """Calibrate on what the fold learns from, fit the head on what comes out, answer what is held out."""
    pixels = open_pixels(frame.dataset, base.recipe.geometry, store=frame.store)
    learned, asked = frame.learned_from(fold), frame.held_out(fold)
    graph, weights = small_graph(model, variant, some_images(pixels, learned))
    features = outputs_of(graph, pixels, READING, threads=frame.compute.threads)
    head = _head(frame, features, learned)
    packed = with_head(graph, head).SerializeToString()
    facts: dict[str, Any] = {"bytes": len(packed), "parameters": weights + head.weight.size + head.bias.size}
    if fold == 0:
        facts["latency_ms"] = latency_ms(packed, threads=LATENCY_THREADS, seconds=0.1)
    else:
        facts["latency_ms"] = 0.0  # told by the first fold: neighbours on the machine would make a difference
    return head.probabilities(features[asked]), facts


def _float_fold(
    frame: Frame, base: Trial, variant: Variant, model: ModelProto, fold: int
) -> tuple[Float32[np.ndarray, "f k"], dict[str, Any]]:
    features = _pooled(frame, base, model, variant)
    learned, asked = frame.learned_from(fold), frame.held_out(fold)
    head = _head(frame, features, learned)
    facts = float_costs(frame, base, variant, model, features.shape[1])
    return head.probabilities(features[asked]), dict(facts)


def _head(
    frame: Frame, features: Float32[np.ndarray, "n d"], rows: Int64[np.ndarray, " m"]
) -> ridge.RidgeHead:
    with threadpool_limits(1):
        return ridge.fit(
            features[rows],
            frame.dataset.targets[rows],
            classes=frame.classes,
            criterion=criterion(frame.settings.metric),
        )


def some_images(pixels: np.ndarray, rows: Int64[np.ndarray, " m"]) -> np.ndarray:
    """Evenly spread images of these rows, to calibrate on."""
    chosen = rows[np.linspace(0, len(rows) - 1, min(CALIBRATED_ON, len(rows))).astype(np.int64)]
    return np.array(pixels[chosen])


def _pooled(frame: Frame, base: Trial, model: ModelProto, variant: Variant) -> Float32[np.ndarray, "n d"]:
    """What a float variant reads of every image: one pass gives the pooled maps of all waists, kept in the cache."""
    assert variant.deepest is not None
    found = waists(model)
    trunk = trunk_of_trial(frame, base)
    key = content_key("waists.v1", trunk.key, base.tap_index, pixels_key(frame.dataset, trunk.geometry))
    stored = frame.store.get(key)
    if stored is None:
        pixels = open_pixels(frame.dataset, trunk.geometry, store=frame.store)
        together = read_together(maps_of(model, [waist.tensor for waist in found]))
        rows = outputs_of(together, pixels, READING, threads=frame.compute.threads)
        widths = np.array(widths_of(together, samples_of(frame, trunk.geometry)), np.int64)
        stored = frame.store.put(key, rows=rows, widths=widths)
    rows, ends = stored.array("rows"), np.cumsum(stored.array("widths"))
    begins = np.concatenate([[0], ends[:-1]])
    chosen = depths(len(found), variant.deepest)
    return np.concatenate(
        [
            rows[:, begins[2 * number + part] : ends[2 * number + part]]
            for number in chosen
            for part in (0, 1)
        ],
        axis=1,
    )


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
        packed = with_head(graph, ridge.RidgeHead(zeros, zeros[0].copy(), 0.0, 0.0, 1.0)).SerializeToString()
        facts = {
            "bytes": len(packed),
            "parameters": weights + zeros.size + frame.classes,
            "latency_ms": latency_ms(packed, threads=LATENCY_THREADS, seconds=0.06),
        }
        stored = frame.store.put(key, facts)
    return {name: stored.facts[name] for name in ("bytes", "parameters", "latency_ms")}
