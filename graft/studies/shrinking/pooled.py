"""What a frozen network, read at several depths in float32, tells of every image, and what such a reading costs.

In: a trial, its prepared trunk, and a `Variant` that is not calibrated on images. Out: a row per image; bytes, parameters
and latency.

Cost: one pass, by the runner of the frozen network, for all waists at once; kept in the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import onnx
from jaxtyping import Float32
from onnx import ModelProto

from graft.backbones.activations import compact, openvino_rows
from graft.backbones.trunks import TrunkFile
from graft.compute import cpu_name
from graft.deploy.quantise import outputs_of
from graft.deploy.reading import READING, depths, maps_of, read_together, waists
from graft.images.pixels import open_pixels, pixels_key
from graft.judging.cost import latency_ms
from graft.learning.heads import Head
from graft.store import Entry as Stored
from graft.store import content_key
from graft.studies.beside import trunk_of_trial
from graft.studies.frame import Frame, Trial
from graft.studies.probe import LATENCY_THREADS, samples_of
from graft.studies.shrinking.networks import with_head
from graft.studies.shrinking.variants import Variant, read_by, small_graph

MOST_DEPTHS = 5
DEPTH_STEP = 0.75  # each next waist has at most this share of the weights of the one before


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
