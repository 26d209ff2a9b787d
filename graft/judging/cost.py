"""What a candidate costs: size, time per image, time to make.

In: an exported ONNX model. Out: `latency_ms`, the median time for one image through ONNX Runtime on the CPU, and the
record `Cost` that a trial carries. A measurement takes `seconds` plus loading the model. Not covered: decoding and
resizing the image, batches, accelerators, memory.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from graft.errors import BundleError

WARM_UP_RUNS = 3


@dataclass(frozen=True, slots=True)
class Cost:
    """`bytes` of the bundle's model; `latency_ms` for one image on `latency_threads` threads of this machine's CPU.

    `train_seconds` for the head or the network on all folds, `extract_seconds` for the frozen prefix on all images
    (shared by all candidates that read the same activations).
    """

    parameters: int
    bytes: int
    latency_ms: float
    latency_threads: int
    train_seconds: float
    extract_seconds: float


def latency_ms(
    model: bytes | Path, *, threads: int = 1, seconds: float = 0.2, least: int = 10, most: int = 200
) -> float:
    """The median milliseconds of one image through an ONNX model whose single input is uint8 `[n, h, w, c]`.

    Three runs warm up uncounted; then as many are timed as fit into `seconds`, at least `least` and at most `most`.
    The image is noise, always the same; `threads` work inside an operation. Raises BundleError for a file that ONNX
    Runtime cannot open or whose input is another.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    source = model if isinstance(model, bytes) else str(model)
    try:
        session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors share no other ancestor
        raise BundleError(
            f"ONNX Runtime cannot open {_name(model)}: {error}. Pack the model again."
        ) from error
    inputs = [(given.name, given.type, given.shape) for given in session.get_inputs()]
    shape = inputs[0][2] if len(inputs) == 1 else []
    if (
        len(shape) != 4
        or inputs[0][1] != "tensor(uint8)"
        or not all(isinstance(side, int) for side in shape[1:])
    ):
        raise BundleError(
            f"{_name(model)} takes {inputs}, but one uint8 input [n, h, w, c] with fixed h, w and c is timed. "
            "Export it with graft.deploy."
        )
    image = np.random.default_rng(0).integers(0, 256, (1, *shape[1:]), dtype=np.uint8)
    feed = {inputs[0][0]: image}
    for _ in range(WARM_UP_RUNS):
        session.run(None, feed)
    taken: list[float] = []
    end = time.perf_counter() + seconds
    while len(taken) < least or (len(taken) < most and time.perf_counter() < end):
        start = time.perf_counter()
        session.run(None, feed)
        taken.append(time.perf_counter() - start)
    return 1000 * float(np.median(taken))


def _name(model: bytes | Path) -> str:
    return f"the model of {len(model):,} bytes" if isinstance(model, bytes) else str(model)
