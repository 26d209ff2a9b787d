"""The Open Inference Protocol, version 2, as KServe, Triton and others speak it; JSON only.

In: a tensor `image`, either UINT8 `[n, size, size, channels]` in the network's own geometry, or BYTES `[n]` with whole
image files in base64. Out: `probabilities` FP32 `[n, k]` and `label` BYTES `[n]`. Specification:
https://github.com/kserve/open-inference-protocol, "inference_rest". Not covered: the binary tensor extension. A
model has one version, "1".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8

from graft.deploy.bundle import INPUT, PROBABILITIES
from graft.serving.decoding import Upload
from graft.serving.hosting import Hosted
from graft.serving.refusals import Refusal
from graft.serving.settings import Limits
from graft.serving.uploads import FEW_VALUES, from_base64, too_many
from graft.version import VERSION

MODEL_VERSION = "1"
LABEL = "label"
_TYPES = {PROBABILITIES: "FP32", LABEL: "BYTES"}


def server_facts() -> dict[str, Any]:
    """What answers `GET /v2`."""
    return {"name": "graft", "version": VERSION, "extensions": []}


def model_facts(hosted: Hosted) -> dict[str, Any]:
    """What answers `GET /v2/models/{name}`."""
    return {
        "name": hosted.name,
        "versions": [MODEL_VERSION],
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": INPUT, "datatype": "UINT8", "shape": [-1, *hosted.pixel_shape]}],
        "outputs": [
            {"name": PROBABILITIES, "datatype": "FP32", "shape": [-1, len(hosted.bundle.labels)]},
            {"name": LABEL, "datatype": "BYTES", "shape": [-1]},
        ],
    }


def images_in(request: Any, hosted: Hosted, limits: Limits) -> list[Upload] | UInt8[np.ndarray, "n h w c"]:
    """The files or the pixels of an inference request. Raises Refusal for one that is not as described."""
    tensor = _only_tensor(request)
    shape, data, kind = tensor.get("shape"), tensor.get("data"), tensor.get("datatype")
    if not isinstance(shape, list) or not all(type(side) is int and side > 0 for side in shape):
        raise Refusal(400, "The input's shape is a list of whole numbers from 1 up.")
    if not isinstance(data, list):
        raise Refusal(400, "The input's data is a list.")
    if kind == "BYTES":
        if len(shape) != 1 or len(data) != shape[0] or not all(isinstance(text, str) for text in data):
            raise Refusal(400, "A BYTES input has the shape [n] and n strings, each an image file in base64.")
        return from_base64(data, limits)
    if kind != "UINT8":
        raise Refusal(400, "The input's datatype is UINT8 (pixels) or BYTES (image files in base64).")
    if tuple(shape[1:]) != hosted.pixel_shape:
        wanted = ", ".join(map(str, hosted.pixel_shape))
        raise Refusal(400, f"The shape must be [n, {wanted}] for the model {hosted.name}, not {shape[:8]}.")
    if shape[0] > limits.files:
        raise too_many(shape[0], limits)
    return _pixels(data, shape)


def most_values(hosted: Hosted, limits: Limits) -> int:
    """How many values and lists a request may hold: as many images as are taken, nested."""
    high, wide, channels = hosted.pixel_shape
    return FEW_VALUES + limits.files * (1 + high + high * wide * (1 + channels))


def outputs_wanted(request: Any) -> list[str]:
    """The names of the outputs that a request asks for; all where it does not say."""
    given = request.get("outputs")
    if given is None:
        return list(_TYPES)
    named = isinstance(given, list) and all(isinstance(item, dict) for item in given)
    names = [item.get("name") for item in given] if named else []
    # A list, because what it is asked for may be unhashable.
    if not names or any(name not in list(_TYPES) for name in names):
        raise Refusal(400, f"The outputs of this model are {' and '.join(_TYPES)}.")
    return names


def answer(
    request: Any, hosted: Hosted, rows: Float32[np.ndarray, "n k"], *, outputs: Sequence[str]
) -> dict[str, Any]:
    """The response to an inference request, with the `outputs` that it asks for."""
    labels = [hosted.bundle.labels[place] for place in hosted.bundle.decide(rows)]
    values = {PROBABILITIES: (rows.shape, rows.ravel().tolist()), LABEL: ((len(labels),), labels)}
    tensors = [
        {"name": name, "datatype": _TYPES[name], "shape": list(values[name][0]), "data": values[name][1]}
        for name in outputs
    ]
    identity = {"id": request["id"]} if isinstance(request.get("id"), str) else {}
    return {"model_name": hosted.name, "model_version": MODEL_VERSION, **identity, "outputs": tensors}


def _only_tensor(request: Any) -> dict[str, Any]:
    inputs = request.get("inputs") if isinstance(request, dict) else None
    if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
        raise Refusal(400, f'An inference request has one input, {{"inputs": [{{"name": "{INPUT}", ...}}]}}.')
    if inputs[0].get("name") != INPUT:
        raise Refusal(400, f"The input of this model is called {INPUT}.")
    return inputs[0]


def _pixels(data: list[Any], shape: list[int]) -> UInt8[np.ndarray, "n h w c"]:
    """Flat or nested values, each a whole number from 0 to 255."""
    try:
        values = np.asarray(data)
    except (ValueError, OverflowError, RecursionError):
        values = np.empty(0)
    if (
        values.dtype.kind not in "iu"
        or values.size != math.prod(shape)
        or values.shape
        not in (
            (values.size,),
            tuple(shape),
        )
        or _has_truth(data)
    ):
        raise Refusal(
            400, f"The data does not hold the {math.prod(shape)} whole numbers of the shape {shape}."
        )
    if values.min() < 0 or values.max() > 255:
        raise Refusal(400, "Pixels are whole numbers from 0 to 255.")
    return values.astype(np.uint8).reshape(shape)


def _has_truth(data: list[Any]) -> bool:
    """Whether there is a true or a false anywhere in nested lists, which NumPy would take for 1 or 0."""
    kinds = set(map(type, data))
    return bool in kinds or (list in kinds and any(map(_has_truth, data)))
