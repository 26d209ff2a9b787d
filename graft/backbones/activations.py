"""What the frozen part of a network puts out: one pass over the pixels, every tap pooled, kept by content.

In: a `TrunkFile` and the pixels. Out: `Activations`, one float16 array `[n, d]` per tap (float32 where float16 would
overflow) and, where there is a classifier, its logits. On a CPU the pass runs on OpenVINO with asynchronous batches
(a MobileNetV2 at 224 px: about 720 images a second on two cores with AVX512-BF16), elsewhere on torch with
channels_last and autocast. A second pass over the same pixels is a look into the cache.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Float32, UInt8

from graft.backbones.graph import LOGITS, tap_output
from graft.backbones.trunks import Runner, TrunkFile, relative_error, reopened
from graft.backbones.weights import Reach, WeightsFolder
from graft.compute import Compute
from graft.store import Entry as Stored
from graft.store import Store, content_key, write_facts

BATCH = 16
AHEAD = 2
ROUNDED_ROWS = 1_000  # how many rows are looked at for what float16 makes of them
FLOAT16_ERROR = (
    1e-3  # float16 rounds by at most half of this, unless numbers are too large or too small for it
)


@dataclass(frozen=True, slots=True)
class Activations:
    """The pooled outputs of every tap for all images; `seconds` is what the pass took when it was made."""

    stored: Stored
    seconds: float

    def tap(self, index: int) -> Float[np.ndarray, "n d"]:
        """The rows of one tap, as a memory map."""
        return self.stored.array(tap_output(index))

    @property
    def logits(self) -> Float[np.ndarray, "n d"] | None:
        """The pre-trained classifier's logits, if it came with one."""
        return self.stored.array(LOGITS) if (self.stored.folder / f"{LOGITS}.npy").exists() else None


def extracting(
    trunk: TrunkFile,
    pixels: UInt8[np.ndarray, "n h w c"],
    pixels_key: str,
    *,
    store: Store,
    compute: Compute,
    folder: WeightsFolder | None,
    reach: Reach,
) -> Generator[tuple[int, int], None, Activations]:
    """Run the pass if it is not in the cache; yields (images done, images in all) and returns the activations."""
    key = content_key("activations.v1", trunk.key, trunk.runner, pixels_key)
    stored = store.get(key)
    if stored is None:
        with store.writing(key) as place:
            started = time.monotonic()
            arrays = [np.empty((len(pixels), 0), np.float32)] * len(trunk.outputs)
            for begin, rows in _batches(trunk, pixels, compute, folder, reach):
                if begin == 0 or arrays[0].shape[1] == 0:
                    arrays = [np.empty((len(pixels), part.shape[1]), np.float32) for part in rows]
                for array, part in zip(arrays, rows, strict=True):
                    array[begin : begin + len(part)] = part
                yield begin + len(rows[0]), len(pixels)
            for name, array in zip(trunk.outputs, arrays, strict=True):
                np.save(place / f"{name}.npy", compact(array))
            write_facts(place, {"seconds": time.monotonic() - started})
        stored = store.get(key)
        assert stored is not None
    return Activations(stored, float(stored.facts["seconds"]))


def extracted(
    trunk: TrunkFile,
    pixels: UInt8[np.ndarray, "n h w c"],
    pixels_key: str,
    *,
    store: Store,
    compute: Compute,
    folder: WeightsFolder | None,
    reach: Reach,
) -> Activations:
    """As `extracting`, for whoever has no use for the progress."""
    work = extracting(trunk, pixels, pixels_key, store=store, compute=compute, folder=folder, reach=reach)
    while True:
        try:
            next(work)
        except StopIteration as finished:
            return finished.value


def compact(array: Float32[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
    """As float16, or as it is where float16 would overflow or round small numbers to nothing."""
    with np.errstate(over="ignore"):
        small = array.astype(np.float16)
    some = slice(None, None, max(1, len(array) // ROUNDED_ROWS))
    rounds_well = relative_error(small[some].astype(np.float32), array[some]) < FLOAT16_ERROR
    return small if rounds_well and np.isfinite(small).all() else array


Rows = list[Float32[np.ndarray, "b _"]]


def _batches(
    trunk: TrunkFile,
    pixels: UInt8[np.ndarray, "n h w c"],
    compute: Compute,
    folder: WeightsFolder | None,
    reach: Reach,
) -> Iterator[tuple[int, Rows]]:
    if trunk.runner == "torch" or trunk.graph is None:
        return _torch_batches(trunk, pixels, compute, folder, reach)
    return openvino_batches(trunk.graph, pixels, runner=trunk.runner, threads=compute.threads)


def openvino_rows(graph: Path, pixels: UInt8[np.ndarray, "n h w c"], *, runner: Runner, threads: int) -> Rows:
    """All outputs of the graph for a few images."""
    parts = [rows for _, rows in openvino_batches(graph, pixels, runner=runner, threads=threads)]
    return [np.concatenate(part) for part in zip(*parts, strict=True)]


def openvino_batches(
    graph: Path, pixels: UInt8[np.ndarray, "n h w c"], *, runner: Runner, threads: int
) -> Iterator[tuple[int, Rows]]:
    """Batches in order: (first row, outputs). Raises RuntimeError if OpenVINO cannot."""
    import openvino

    model = openvino.Core().read_model(graph)
    model.reshape({0: [BATCH, *pixels.shape[1:]]})  # a fixed batch runs about 10 % faster than a free one
    compiled = openvino.Core().compile_model(
        model,
        "CPU",
        {
            "PERFORMANCE_HINT": "THROUGHPUT",
            "INFERENCE_PRECISION_HINT": "bf16" if runner == "openvino-bf16" else "f32",
            "INFERENCE_NUM_THREADS": threads,
        },
    )
    # Requests in a ring, not AsyncInferQueue: its callback threads may drop the last reference to the queue, whose
    # destructor then joins its own thread and aborts the process (OpenVINO 2026.4).
    # Twice as many as run at once: while the rows of one are taken out, the next one is already queued.
    requests = AHEAD * compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")
    ring = deque((compiled.create_infer_request(), -1) for _ in range(requests))

    def collected(request: openvino.InferRequest, begin: int) -> tuple[int, Rows]:
        request.wait()
        kept = min(BATCH, len(pixels) - begin)
        outputs = [request.get_output_tensor(index).data for index in range(len(compiled.outputs))]
        return begin, [np.array(output[:kept], np.float32) for output in outputs]

    try:
        for begin in range(0, len(pixels), BATCH):
            request, busy_with = ring.popleft()
            if busy_with >= 0:
                yield collected(request, busy_with)
            batch = np.ascontiguousarray(pixels[begin : begin + BATCH])
            if len(batch) < BATCH:
                batch = np.concatenate([batch, np.zeros((BATCH - len(batch), *batch.shape[1:]), np.uint8)])
            request.start_async({0: batch})
            ring.append((request, begin))
        for request, busy_with in ring:
            if busy_with >= 0:
                yield collected(request, busy_with)
    finally:  # whoever stops in the middle leaves requests behind that still read their batch
        for request, busy_with in ring:
            if busy_with >= 0:
                request.wait()


def _torch_batches(
    trunk: TrunkFile,
    pixels: UInt8[np.ndarray, "n h w c"],
    compute: Compute,
    folder: WeightsFolder | None,
    reach: Reach,
) -> Iterator[tuple[int, Rows]]:
    import torch

    opened = reopened(trunk, folder=folder, reach=reach)
    device = torch.device(compute.device)
    module = opened.trunk.to(device).to(memory_format=torch.channels_last)
    batch = BATCH if compute.device == "cpu" else 16 * BATCH
    precision = torch.bfloat16 if compute.bf16 else torch.float16
    autocast = torch.autocast(compute.device, dtype=precision, enabled=compute.device != "cpu")
    with torch.inference_mode(), autocast:
        for begin in range(0, len(pixels), batch):
            images = torch.from_numpy(np.array(pixels[begin : begin + batch])).to(device)
            yield begin, [rows.float().cpu().numpy() for rows in module(images)]
