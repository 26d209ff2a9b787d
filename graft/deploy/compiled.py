"""A bundle's graph compiled by OpenVINO instead of run by ONNX Runtime: the same answers, often sooner.

In: the content of a graph's file. Out: an object that is called as an ONNX Runtime session is. Arithmetic stays float32, so that
answers differ by rounding alone; what is in 8 bits in the file runs in 8 bits. Cost: 0.3 to 1 s to import and compile;
then, on one thread of a processor with VNNI, 1.9 instead of 2.6 ms for MobileNetV2 in 8 bits and 4.5 instead of 5.2 ms
in float32 (benchmarks/single_image.py). Any number of threads may ask at once; `abreast` of them are answered side by
side.

Not covered: bfloat16, which is faster still and changes probabilities by up to a hundredth; accelerators.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from graft.errors import BundleError

Runtime = Literal["onnxruntime", "openvino"]


class Compiled:
    """One graph on the processor. `threads`: of one run, 0 for all; `abreast`: runs side by side."""

    def __init__(self, path: Path, content: bytes, *, threads: int, abreast: int) -> None:
        """Raises BundleError where OpenVINO is missing or cannot compile the graph."""
        try:
            import openvino
        except ImportError:
            raise BundleError(
                "OpenVINO is not installed here: pip install openvino, or leave --runtime out."
            ) from None
        wanted: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32", "NUM_STREAMS": abreast}
        if threads:
            wanted["INFERENCE_NUM_THREADS"] = threads * abreast
        try:
            core = openvino.Core()
            self._compiled = core.compile_model(core.read_model(content), "CPU", wanted)
        except RuntimeError as error:
            reason = (str(error).splitlines() or [""])[-1]
            raise BundleError(f"OpenVINO cannot compile {path}: {reason} Leave --runtime out.") from error
        self._own = threading.local()

    def run(self, outputs: Sequence[str], given: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """These outputs, by name; all of the graph is computed."""
        if not hasattr(self._own, "request"):  # a request serves one thread at a time
            self._own.request = self._compiled.create_infer_request()
        request = self._own.request
        request.infer(dict(given), share_inputs=True)
        return [np.array(request.get_tensor(name).data) for name in outputs]
