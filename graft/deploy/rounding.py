"""Rounding the weights of a graph so that what every layer puts out stays the same, not every weight.

In: a float32 graph in which constants are folded, and a few real images. Out: the same graph with weights that lie on
an integer grid, and biases that make up for what is left. Layer after layer, on what the layers before it, rounded
already, put out: columns of the weights are rounded one after the other, and the error of each is made up for by those
that are not rounded yet, by least squares (GPTQ: Frantar et al. 2023, arXiv 2210.17323); then the mean of every channel
is brought back to that of the float network (bias correction: Nagel et al. 2019, arXiv 1906.04721). Each output channel
ends where its outputs change least (of the largest weight's tenths, by the error of the nearest levels): with sixteen
levels, a few weights beyond the end cost less than wide steps for all the others. What lies beyond keeps its place at the
end of the grid, so that whoever quantises the graph afterwards finds the same scales and the same integers.

Cost: two passes over the images and, for d inputs of a layer, d^3 operations: about 3 s for a MobileNetV2. Needs no
torch. Not covered: layers whose weights are computed in the graph; they stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnx
import scipy.linalg
from jaxtyping import Float, Float32, Int, UInt8
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from graft.backbones.graph import INPUT

POSITIONS = 64  # of a feature map are looked at, in every image
DAMPING = 0.01  # of the mean diagonal, so that inputs that never vary do not matter
LEAST_ROWS = 16
ENDS = np.linspace(1.0, 0.5, 11)  # of a channel's largest weight: where its grid may end


def even(levels: int) -> Int[np.ndarray, " l"]:
    """The grid of all integers from `-levels` to `levels`."""
    return np.arange(-levels, levels + 1)


def rounded(
    model: ModelProto, images: UInt8[np.ndarray, "m h w c"], *, grids: Mapping[str, Int[np.ndarray, " l"]]
) -> ModelProto:
    """A copy of `model` with the weights of the convolutions that `grids` names on their grids.

    A grid: ascending integers from some `-top` to `top`. Weights of a channel are its largest one divided by `top`, times
    integers of the grid. Biases change; a convolution without one stays without.
    """
    made = ModelProto()
    made.CopyFrom(model)
    constants = {tensor.name: tensor for tensor in made.graph.initializer}
    chosen = [node for node in made.graph.node if node.name in grids and convolved(node, constants)]
    means = _channel_means(model, [node.output[0] for node in chosen], images)
    wanted = {node.name: means[node.output[0]] for node in chosen}
    for node, given in walk(made, images):
        if node.name in wanted:
            _round_layer(node, constants, given, wanted[node.name], grids[node.name])
    return made


def walk(
    model: ModelProto, images: UInt8[np.ndarray, "m h w c"]
) -> Iterator[tuple[NodeProto, Float32[np.ndarray, "m c y x"]]]:
    """Every convolution with its input, in order, before it runs: what is changed in it shows in what follows."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    alive: dict[str, Any] = {INPUT: np.ascontiguousarray(images)}
    last_use = {name: index for index, node in enumerate(model.graph.node) for name in node.input}
    for index, node in enumerate(model.graph.node):
        if convolved(node, constants):
            yield node, alive[node.input[0]]
        alive.update(run_alone(node, alive, constants, model))
        for name in set(node.input):
            if last_use.get(name) == index:
                alive.pop(name, None)


def convolved(node: NodeProto, constants: Mapping[str, TensorProto]) -> bool:
    """Whether this is a convolution of maps with weights that are constants."""
    return node.op_type == "Conv" and node.input[1] in constants and len(constants[node.input[1]].dims) == 4


def _round_layer(
    node: NodeProto,
    constants: Mapping[str, TensorProto],
    given: Float32[np.ndarray, "m c y x"],
    wanted: Float[np.ndarray, " o"],
    grid: Int[np.ndarray, " l"],
) -> None:
    """Replace the weights and the bias of one convolution."""
    weights = numpy_helper.to_array(constants[node.input[1]])
    groups = int(attribute(node, "group", 1))
    seen = patches(node, given, weights.shape[2:])
    inputs = _by_group(seen, groups)
    if inputs.shape[1] < LEAST_ROWS:
        return
    after = on_grid(weights.reshape(groups, len(weights) // groups, -1), inputs, grid)
    _set(constants[node.input[1]], after.reshape(weights.shape).astype(np.float32))
    if len(node.input) > 2 and node.input[2] in constants:
        bias = numpy_helper.to_array(constants[node.input[2]])
        found = run_alone(node, {node.input[0]: given}, constants, None)[node.output[0]].mean(axis=(0, 2, 3))
        _set(constants[node.input[2]], (bias + wanted - found).astype(np.float32))


def on_grid(
    weights: Float[np.ndarray, "g o d"], inputs: Float[np.ndarray, "g n d"], grid: Int[np.ndarray, " l"]
) -> Float[np.ndarray, "g o d"]:
    """Weights on their channels' grids such that `inputs @ weights.T` changes least: column by column (GPTQ)."""
    left = weights.astype(np.float64)
    step = _steps(left, (inputs.astype(np.float64) ** 2).mean(axis=1), grid)
    beyond = np.abs(left) >= step * grid[-1] * (1 - 1e-6)
    ends = np.sign(left) * step * grid[-1]
    result = np.zeros_like(left)
    factors = np.stack([_factor(one) for one in inputs])
    for column in range(left.shape[2]):
        now = left[:, :, column]
        near = nearest(now / step[:, :, 0], grid) * step[:, :, 0]
        near = np.where(beyond[:, :, column], ends[:, :, column], near)
        result[:, :, column] = near
        error = (now - near) / factors[:, column, column][:, None]
        left[:, :, column + 1 :] -= error[:, :, None] * factors[:, None, column, column + 1 :]
    return result


def nearest(values: Float[np.ndarray, ...], grid: Int[np.ndarray, " l"]) -> Int[np.ndarray, ...]:
    """The level next to each value; its end for what lies beyond."""
    return grid[np.searchsorted((grid[1:] + grid[:-1]) / 2, values)]


def _steps(
    weights: Float[np.ndarray, "g o d"], energy: Float[np.ndarray, "g d"], grid: Int[np.ndarray, " l"]
) -> Float[np.ndarray, "g o 1"]:
    """The weight that one step of each channel's grid stands for; `energy`: the mean square of every input."""
    largest = np.abs(weights).max(axis=2, keepdims=True)
    largest[largest == 0] = grid[-1]
    best, least = largest, np.full_like(largest, np.inf)
    for end in ENDS:
        step = end * largest / grid[-1]
        error = weights - nearest(weights / step, grid) * step
        lost = np.einsum("god,gd->go", error**2, energy)[:, :, None]
        best, least = np.where(lost < least, step, best), np.minimum(lost, least)
    return best


def _factor(inputs: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "d d"]:
    """The upper Cholesky factor of the inverse of the inputs' second moments."""
    rows = inputs.astype(np.float64)
    moments = rows.T @ rows / len(rows)
    damping = DAMPING * float(np.trace(moments)) / len(moments) + 1e-12
    moments[np.diag_indices_from(moments)] += damping
    inverse = scipy.linalg.inv(moments, check_finite=False)
    return scipy.linalg.cholesky((inverse + inverse.T) / 2, lower=False, check_finite=False)


def patches(
    node: NodeProto, given: Float32[np.ndarray, "m c y x"], kernel: tuple[int, ...]
) -> Float[np.ndarray, "n c k"]:
    """What a convolution sees at some positions of every image, the same ones for the same shapes."""
    random = np.random.default_rng(0)
    top, left, bottom, right = attribute(node, "pads", (0, 0, 0, 0))
    padded = np.pad(given, ((0, 0), (0, 0), (top, bottom), (left, right)))
    dilation = attribute(node, "dilations", (1, 1))
    spans = [(size - 1) * spread + 1 for size, spread in zip(kernel, dilation, strict=True)]
    windows = np.lib.stride_tricks.sliding_window_view(padded, spans, axis=(2, 3))
    down, across = attribute(node, "strides", (1, 1))
    windows = windows[:, :, ::down, ::across, :: dilation[0], :: dilation[1]]
    images, channels, high, wide = windows.shape[:4]
    count = min(POSITIONS, high * wide)
    rows = []
    for image in range(images):
        down, across = np.divmod(random.choice(high * wide, count, replace=False), wide)
        rows.append(windows[image][:, down, across])
    stacked = np.concatenate([row.transpose(1, 0, 2, 3) for row in rows])
    return stacked.reshape(len(stacked), channels, -1)


def _by_group(patches: Float[np.ndarray, "n c k"], groups: int) -> Float[np.ndarray, "g n d"]:
    rows, channels, size = patches.shape
    return patches.reshape(rows, groups, channels // groups * size).swapaxes(0, 1)


def _channel_means(
    model: ModelProto, outputs: list[str], images: UInt8[np.ndarray, "m h w c"]
) -> dict[str, Float[np.ndarray, " o"]]:
    """The mean of every channel of these maps over all images and positions."""
    extended = ModelProto()
    extended.CopyFrom(model)
    graph = extended.graph
    names = [f"graft_mean_{number}" for number in range(len(outputs))]
    graph.node.extend(
        helper.make_node("ReduceMean", [output], [name], axes=[0, 2, 3], keepdims=0)
        for output, name in zip(outputs, names, strict=True)
    )
    graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names)
    session = _session(extended)
    parts = [
        session.run(names, {INPUT: np.ascontiguousarray(images[begin : begin + 8])})
        for begin in range(0, len(images), 8)
    ]
    sizes = [len(images[begin : begin + 8]) for begin in range(0, len(images), 8)]
    return {
        output: np.average([part[number] for part in parts], axis=0, weights=sizes)
        for number, output in enumerate(outputs)
    }


def run_alone(
    node: NodeProto, alive: Mapping[str, Any], constants: Mapping[str, TensorProto], model: ModelProto | None
) -> dict[str, Any]:
    """One node alone, on the arrays that are there."""
    held = [constants[name] for name in dict.fromkeys(node.input) if name in constants]
    fed = [name for name in dict.fromkeys(node.input) if name and name not in constants]
    graph = helper.make_graph(
        [node],
        "one",
        [
            helper.make_tensor_value_info(
                name, helper.np_dtype_to_tensor_dtype(alive[name].dtype), alive[name].shape
            )
            for name in fed
        ],
        [onnx.ValueInfoProto(name=name) for name in node.output if name],
        held,
    )
    opsets = model.opset_import if model is not None else [helper.make_opsetid("", 17)]
    alone = helper.make_model(graph, opset_imports=opsets)
    alone.ir_version = 8
    session = _session(alone)
    names = [name for name in node.output if name]
    return dict(zip(names, session.run(names, {name: alive[name] for name in fed}), strict=True))


def _session(model: ModelProto) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def _set(tensor: TensorProto, values: Float32[np.ndarray, ...]) -> None:
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values), tensor.name))


def attribute(node: NodeProto, name: str, default: Any) -> Any:
    """An attribute of a node, or what holds where it is not given."""
    found = next((one for one in node.attribute if one.name == name), None)
    return default if found is None else onnx.helper.get_attribute_value(found)


def replaced(node: NodeProto, name: str, value: int) -> None:
    """Give an attribute of a node another value."""
    kept = [one for one in node.attribute if one.name != name]
    del node.attribute[:]
    node.attribute.extend([*kept, helper.make_attribute(name, value)])
