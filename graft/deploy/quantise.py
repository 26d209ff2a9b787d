"""An ONNX graph in 8 bits: a quarter of the bytes, and faster where the processor multiplies bytes.

In: a float32 graph that reads raw pixels, real images to see the range of every activation on, and the tensor up to
which bytes are used. Out: the same graph with int8 weights (one scale per channel) and uint8 activations in QDQ form,
which ONNX Runtime, OpenVINO and others run. What follows that tensor (the head) and what precedes the first
convolution (the normalisation) stays in float32. Weights use 7 of their 8 bits unless told otherwise: without the VNNI
instructions a sum of two byte products saturates 16 bits, and MobileNets lost 5 to 8 points of ImageNet accuracy there
(Intel Neural Compressor, ONNX Runtime on AMD without VNNI), while 7 bits are the same on every processor.

The weights of the largest convolutions may be held in 4 bits (`graft.deploy.codebook`), in a graph that computes in 8.

Cost: one float32 pass over the images on one thread, and about 2 s. Needs onnx and ONNX Runtime, no torch.

Not covered: quantisation-aware training; networks whose exporter left shapes open.
"""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from jaxtyping import Float32, UInt8
from onnx import ModelProto, numpy_helper

from graft.backbones.graph import INPUT
from graft.deploy.bias_scales import with_computed_bias_scales
from graft.deploy.codebook import codebook, coded, largest_layers
from graft.deploy.opening import EMBEDDING
from graft.deploy.rounding import even, rounded
from graft.errors import BundleError

CALIBRATION_IMAGES = 64
BATCH = 16
ROUNDING_IMAGES = {8: 24, 4: 64}  # by the bits of the weights
LEVELS, PORTABLE_LEVELS = 127, 64  # from zero to the largest weight of a channel
LEARNED = ("Conv", "MatMul", "Gemm", "ConvTranspose")
OWN = "graft_"  # how the names of tensors begin that belong to the head
BYTES = (
    *("Conv", "Add", "Clip", "Relu", "MaxPool", "Concat", "Mul", "MatMul", "Gemm"),
    *("AveragePool", "GlobalAveragePool", "Resize", "Transpose", "Reshape", "LeakyRelu", "HardSwish"),
)


def quantised(
    model: ModelProto,
    images: UInt8[np.ndarray, "m h w c"],
    *,
    upto: Sequence[str],
    reduce_range: bool = True,
    weight_bits: Literal[4, 8] = 8,
) -> ModelProto:
    """`model` with everything between its first convolution and the tensors `upto` in 8 bits, and short names inside.

    `model` comes from `prepared`. `images`: at least one, in the network's geometry; ranges are those between the least and the largest value seen.
    `reduce_range`: 7-bit weights, the same on every processor. `weight_bits` of the largest convolutions. Raises BundleError if
    ONNX Runtime cannot quantise it, or if no convolution is large enough for 4 bits.
    """
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    inside = _between(model, upto)
    if not inside:
        raise BundleError("The graph has no convolution, so there is nothing to quantise. Leave int8 out.")
    levels = PORTABLE_LEVELS if reduce_range else LEVELS
    book = codebook(levels)
    grids = dict.fromkeys(inside, even(levels))
    if weight_bits == 4:
        large = largest_layers(model, inside)
        if not large:
            raise BundleError("No convolution is large enough for 4-bit weights. Leave int4 out.")
        grids |= dict.fromkeys(large, book)
    made = rounded(model, spread(images, ROUNDING_IMAGES[weight_bits]), grids=grids)
    outside = [node.name for node in made.graph.node if node.name not in inside]
    with tempfile.TemporaryDirectory(prefix="graft-int8-") as folder, _quiet():
        place = Path(folder) / "int8.onnx"
        try:
            quantize_static(
                made,
                place,
                _Reader(spread(images, CALIBRATION_IMAGES)),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=list(BYTES),
                per_channel=True,
                reduce_range=reduce_range,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                nodes_to_exclude=outside,
                extra_options={"WeightSymmetric": True, "ActivationSymmetric": False},
            )
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise BundleError(
                f"ONNX Runtime cannot quantise this network: {reason}. Leave int8 out."
            ) from error
        small = with_computed_bias_scales(_named(onnx.load(place)))
    small.ir_version = model.ir_version
    return compacted(coded(small, book) if weight_bits == 4 else small)


def prepared(model: ModelProto, images: UInt8[np.ndarray, "m h w c"]) -> ModelProto:
    """`model` with constants folded and its nodes named, which thinning, rounding and quantising start from."""
    return _unshared(_named(_optimised(model, images)))


def outputs_of(
    model: ModelProto, images: UInt8[np.ndarray, "m h w c"], output: str, *, threads: int = 1
) -> Float32[np.ndarray, "m ..."]:
    """What ONNX Runtime puts out for all images, in small batches."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    parts = [
        session.run([output], {INPUT: np.ascontiguousarray(images[begin : begin + BATCH])})[0]
        for begin in range(0, len(images), BATCH)
    ]
    return np.concatenate(parts)


def pruned(model: ModelProto, outputs: Sequence[str]) -> ModelProto:
    """A copy with these of its outputs only, and nothing that they do not need."""
    made = ModelProto()
    made.CopyFrom(model)
    graph = made.graph
    left = [value for value in graph.output if value.name in outputs]
    needed, kept = set(outputs), []
    for node in reversed(graph.node):
        if needed & set(node.output):
            kept.append(node)
            needed |= set(node.input)
    nodes, held = list(reversed(kept)), [tensor for tensor in graph.initializer if tensor.name in needed]
    for part, content in ((graph.output, left), (graph.node, nodes), (graph.initializer, held)):
        del part[:]
        part.extend(content)
    return made


def spread(images: UInt8[np.ndarray, "m h w c"], count: int) -> UInt8[np.ndarray, "k h w c"]:
    """At most `count` of the images, evenly spread."""
    chosen = np.linspace(0, len(images) - 1, min(count, len(images))).astype(np.int64)
    return images[chosen]


def compacted(model: ModelProto) -> ModelProto:
    """The same graph with short names inside, equal constants kept once, and nothing but what it needs.

    Names of inputs and outputs stay. In a quantised network of 1 MB the names alone took 100 kB.
    """
    graph = model.graph
    kept = {value.name for value in (*graph.input, *graph.output)}
    renamed = _shared_constants(graph, kept)
    short: dict[str, str] = {}

    def name_of(name: str) -> str:
        name = renamed.get(name, name)
        if not name or name in kept or name.startswith(OWN):
            return name
        return short.setdefault(name, f"t{len(short):x}")

    for node in graph.node:
        node.name = node.doc_string = ""
        node.input[:] = [name_of(name) for name in node.input]
        node.output[:] = [name_of(name) for name in node.output]
    for tensor in graph.initializer:
        tensor.name = name_of(tensor.name)
        tensor.doc_string = ""
    del graph.value_info[:]
    del model.metadata_props[:]
    onnx.checker.check_model(model)
    return model


def _shared_constants(graph: Any, kept: set[str]) -> dict[str, str]:
    """Drop constants that are not used or equal another one; returns what to read instead of each dropped one."""
    used = {name for node in graph.node for name in node.input} | kept
    first: dict[bytes, str] = {}
    renamed: dict[str, str] = {}
    left = []
    for tensor in graph.initializer:
        if tensor.name not in used:
            continue
        values = numpy_helper.to_array(tensor)
        content = f"{tensor.data_type}{values.shape}".encode() + values.tobytes()
        other = first.setdefault(content, tensor.name)
        if other != tensor.name and tensor.name not in kept:
            renamed[tensor.name] = other
        else:
            left.append(tensor)
    del graph.initializer[:]
    graph.initializer.extend(left)
    return renamed


class _Reader:
    """The calibration images as ONNX Runtime wants them: one batch after the other, then None."""

    def __init__(self, images: UInt8[np.ndarray, "m h w c"]) -> None:
        self._batches: Iterator[dict[str, np.ndarray]] = iter(
            [
                {INPUT: np.ascontiguousarray(images[begin : begin + BATCH])}
                for begin in range(0, len(images), BATCH)
            ]
        )

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._batches, None)

    def __iter__(self) -> _Reader:
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        return next(self._batches)


def _optimised(model: ModelProto, images: UInt8[np.ndarray, "m h w c"]) -> ModelProto:
    """Constants and batch normalisations folded, shapes inferred, paddings part of their convolutions.

    How much a network pads "as TensorFlow does" is computed from the shape of its input, whose height and width are
    fixed: with the batch fixed, too, all of it is constant. Where the result then answers a batch differently, the
    shapes stay as they were.
    """
    for size in (1, None):
        made = _with_batch(_preprocessed(_with_batch(model, size)), None)
        if size is None or _agree(model, made, images):
            break
    return made


def _preprocessed(model: ModelProto) -> ModelProto:
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory(prefix="graft-int8-") as folder, _quiet():
        source, place = Path(folder) / "float.onnx", Path(folder) / "prepared.onnx"
        onnx.save(model, source)
        quant_pre_process(source, place, skip_symbolic_shape=True)
        return onnx.load(place)


def _with_batch(model: ModelProto, size: int | None) -> ModelProto:
    """A copy whose inputs and outputs have this many rows; None: any number."""
    copied = ModelProto()
    copied.CopyFrom(model)
    for value in (*copied.graph.input, *copied.graph.output):
        first = value.type.tensor_type.shape.dim[0]
        if size is None:
            first.dim_param = "n"
        else:
            first.dim_value = size
    del copied.graph.value_info[:]
    return copied


def _agree(one: ModelProto, other: ModelProto, images: UInt8[np.ndarray, "m h w c"]) -> bool:
    """Whether both graphs answer a batch of three images alike."""
    batch = np.resize(images, (3, *images.shape[1:]))
    output = one.graph.output[0].name
    refusals: tuple[type[Exception], ...] = (*_refusals(), RuntimeError, ValueError)
    try:
        wanted, found = outputs_of(one, batch, output), outputs_of(other, batch, output)
    except refusals:
        return False
    return found.shape == wanted.shape and bool(
        np.linalg.norm(found - wanted) <= 1e-4 * np.linalg.norm(wanted)
    )


def _named(model: ModelProto) -> ModelProto:
    """Every node gets a name; sets of operators that nothing uses go."""
    used = {node.domain for node in model.graph.node} | {""}
    kept = [opset for opset in model.opset_import if opset.domain in used]
    del model.opset_import[:]
    model.opset_import.extend(kept)
    for number, node in enumerate(model.graph.node):
        node.name = f"n{number}"
    return model


def _unshared(model: ModelProto) -> ModelProto:
    """Every node has constants of its own: whoever changes the biases of one convolution means that one."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    taken: set[str] = set()
    for node in model.graph.node:
        for place, name in enumerate(node.input):
            if name in constants and name in taken:
                copied = onnx.TensorProto()
                copied.CopyFrom(constants[name])
                copied.name = f"{name}.{node.name}.{place}"
                model.graph.initializer.append(copied)
                node.input[place] = copied.name
            taken.add(name)
    return model


def _between(model: ModelProto, upto: Sequence[str]) -> set[str]:
    """The names of the nodes from the first learned layers to `upto`."""
    before: set[str] = set()
    wanted = set(upto)
    for node in reversed(model.graph.node):
        if wanted & set(node.output):
            wanted |= set(node.input)
            if not any(name.startswith(OWN) or name == EMBEDDING for name in node.output):
                before.add(node.name)
    behind: set[str] = set()
    reached: set[str] = set()
    for node in model.graph.node:
        if node.op_type in LEARNED or reached & set(node.input):
            behind.add(node.name)
            reached |= set(node.output)
    return before & behind


def _refusals() -> tuple[type[Exception], ...]:
    """ONNX Runtime's errors, which share no ancestor but Exception."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    return (
        state.Fail,
        state.InvalidArgument,
        state.InvalidGraph,
        state.NotImplemented,
        state.RuntimeException,
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """ONNX Runtime's tools print and log advice that is followed here anyway."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(before)
