"""Taking inner channels out of a graph: those that the next layer can do without, made up for by the others.

In: a float32 graph in which constants are folded, a few real images, and how many weights may stay. Out: a smaller,
faster graph with the same input and output. Between a convolution that makes channels and a 1x1 convolution that mixes
them, with nothing but one depthwise convolution and activations in between (every block of a MobileNet), a channel is
taken out together with what makes it, and the mixing weights of the others make up for it by least squares (optimal
brain surgeon: Hassibi & Stork 1993; for whole channels of layers: Frantar & Alistarh 2022, arXiv 2208.11580). Which
block loses how many is decided by one price for all: the relative error that a saved weight costs.

Cost: two passes over the images and d^3 operations for d inner channels: about 4 s for a MobileNetV2. Needs no torch.
Not covered: blocks that branch between the two convolutions (they stay), and training afterwards.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import scipy.linalg
from jaxtyping import Float, Int64, UInt8
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

from graft.deploy.rounding import DAMPING, attribute, convolved, patches, replaced, walk

ACTIVATIONS = ("Clip", "Relu", "LeakyRelu", "HardSwish")
LEAST_KEPT = 0.25  # of the channels of a block
ROUND_TO = 8  # channels are counted in these, as processors do


@dataclass(frozen=True, slots=True)
class Block:
    """Names of the nodes: `makes` the channels, `between` works on each alone (if there is one), `mixes` them."""

    makes: str
    between: str | None
    mixes: str


def thinned(model: ModelProto, images: UInt8[np.ndarray, "m h w c"], *, weights: int) -> ModelProto:
    """A copy of `model` with about `weights` weights in its convolutions, or as few as `LEAST_KEPT` allows.

    Nodes have names. Where there is nothing to take out, the copy is equal.
    """
    made = ModelProto()
    made.CopyFrom(model)
    blocks = blocks_of(made)
    constants = {tensor.name: tensor for tensor in made.graph.initializer}
    nodes = {node.name: node for node in made.graph.node}
    total = sum(_size(tensor) for tensor in constants.values())
    orders = _orders(made, blocks, images)
    kept = _kept_counts(blocks, nodes, constants, orders, saved=total - weights)
    for block in blocks:
        order, _ = orders[block.mixes]
        chosen = np.sort(order[len(order) - kept[block.mixes] :])
        _take(nodes[block.makes], constants, chosen, axis=0)
        if block.between:
            _take(nodes[block.between], constants, chosen, axis=0)
            replaced(nodes[block.between], "group", len(chosen))
    # The mixing weights make up for what is gone, on what the blocks before, thinned already, put out.
    whole = _inputs_of(model, [block.mixes for block in blocks], images)
    for node, given in walk(made, images):
        if node.name in whole:
            order = orders[node.name][0]
            _mix_again(
                node,
                constants,
                patches(node, given, (1, 1))[:, :, 0],
                whole[node.name],
                np.sort(order[len(order) - kept[node.name] :]),
            )
    return made


def blocks_of(model: ModelProto) -> list[Block]:
    """Every row of a convolution, activations, at most one depthwise convolution, and a 1x1 convolution."""
    graph = model.graph
    uses = Counter(name for node in graph.node for name in node.input)
    maker = {name: node for node in graph.node for name in node.output}
    constants = {tensor.name: tensor for tensor in graph.initializer}
    outputs = {value.name for value in graph.output}
    found = []
    for node in graph.node:
        if (
            not convolved(node, constants)
            or _kernel(node, constants) != (1, 1)
            or attribute(node, "group", 1) != 1
        ):
            continue
        between: str | None = None
        before: NodeProto | None = node
        while True:
            name = before.input[0] if before is not None else ""
            before = maker.get(name)
            if before is None or uses[name] != 1 or name in outputs:
                before = None
                break
            if before.op_type in ACTIVATIONS:
                continue
            if convolved(before, constants) and between is None and _depthwise(before, constants):
                between = before.name
                continue
            break
        if before is None or not convolved(before, constants) or attribute(before, "group", 1) != 1:
            continue
        found.append(Block(before.name, between, node.name))
    return found


def _orders(
    model: ModelProto, blocks: list[Block], images: UInt8[np.ndarray, "m h w c"]
) -> dict[str, tuple[Int64[np.ndarray, " d"], Float[np.ndarray, " d"]]]:
    """For each mixing convolution: its channels, the most dispensable first, and the relative error after each."""
    inputs = _inputs_of(model, [block.mixes for block in blocks], images)
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes = {node.name: node for node in model.graph.node}
    return {name: removal_order(_matrix(nodes[name], constants), rows) for name, rows in inputs.items()}


def removal_order(
    weights: Float[np.ndarray, "o d"], inputs: Float[np.ndarray, "n d"]
) -> tuple[Int64[np.ndarray, " d"], Float[np.ndarray, " d"]]:
    """The inputs of a linear layer, the one that costs least to leave out first, each after the others made up for it.

    The second array: the squared error of the output up to then, relative to the variance of the output.
    """
    rows = inputs.astype(np.float64)
    rows = rows - rows.mean(axis=0)  # a constant shift is made up for by the bias
    moments = rows.T @ rows / len(rows)
    energy = float(np.einsum("od,de,oe->", weights, moments, weights)) + 1e-12
    moments[np.diag_indices_from(moments)] += DAMPING * float(np.trace(moments)) / len(moments) + 1e-12
    inverse = scipy.linalg.inv(moments, check_finite=False)
    left = weights.astype(np.float64).copy()
    there = np.ones(len(inverse), bool)
    order, errors, error = [], [], 0.0
    for _ in range(len(inverse)):
        diagonal = np.maximum(np.diag(inverse), 1e-18)
        price = np.where(there, (left * left).sum(axis=0) / diagonal, np.inf)
        worst = int(price.argmin())
        error += float(price[worst])
        row = inverse[worst] / diagonal[worst]
        left -= left[:, worst : worst + 1] * row
        inverse = inverse - inverse[:, worst : worst + 1] * row
        there[worst] = False
        order.append(worst)
        errors.append(error / energy)
    return np.array(order, np.int64), np.array(errors)


def _kept_counts(
    blocks: list[Block],
    nodes: dict[str, NodeProto],
    constants: dict[str, TensorProto],
    orders: dict[str, tuple[Int64[np.ndarray, " d"], Float[np.ndarray, " d"]]],
    *,
    saved: int,
) -> dict[str, int]:
    """How many channels of each block stay so that `saved` weights are gone, the cheapest steps first."""
    kept = {block.mixes: len(orders[block.mixes][0]) for block in blocks}
    steps: list[tuple[float, str, int, int]] = []
    for block in blocks:
        order, errors = orders[block.mixes]
        names = [block.makes, block.mixes, *([block.between] if block.between else [])]
        per_channel = sum(_size(constants[nodes[name].input[1]]) for name in names) // len(order)
        least = max(ROUND_TO, int(LEAST_KEPT * len(order)))
        before, highest = 0.0, 0.0
        for gone in range(ROUND_TO, len(order) - least + 1, ROUND_TO):
            price = (float(errors[gone - 1]) - before) / (ROUND_TO * per_channel)
            highest = max(highest, price)  # a later step is never taken before an earlier one
            steps.append((highest, block.mixes, len(order) - gone, ROUND_TO * per_channel))
            before = float(errors[gone - 1])
    for _, name, count, freed in sorted(steps):
        if saved <= 0:
            break
        kept[name] = min(kept[name], count)
        saved -= freed
    return kept


def _mix_again(
    node: NodeProto,
    constants: dict[str, TensorProto],
    found: Float[np.ndarray, "n d"],
    wanted: Float[np.ndarray, "n e"],
    chosen: Int64[np.ndarray, " d"],
) -> None:
    """The mixing weights and bias that bring the thinned inputs nearest to what the whole ones gave."""
    weights = _matrix(node, constants).astype(np.float64)
    target = wanted.astype(np.float64) @ weights.T
    rows = found.astype(np.float64)
    mean, level = rows.mean(axis=0), target.mean(axis=0)
    centred = rows - mean
    moments = centred.T @ centred / len(rows)
    damping = DAMPING * float(np.trace(moments)) / len(moments) + 1e-12
    moments[np.diag_indices_from(moments)] += damping
    crossed = centred.T @ (target - level) / len(rows) + damping * weights[:, chosen].T
    fitted = scipy.linalg.solve(moments, crossed, assume_a="pos", check_finite=False).T
    tensor = constants[node.input[1]]
    tensor.CopyFrom(numpy_helper.from_array(fitted[:, :, None, None].astype(np.float32), tensor.name))
    if len(node.input) > 2 and node.input[2] in constants:
        bias = constants[node.input[2]]
        before = numpy_helper.to_array(bias)
        bias.CopyFrom(numpy_helper.from_array((before + level - fitted @ mean).astype(np.float32), bias.name))


def _inputs_of(
    model: ModelProto, names: list[str], images: UInt8[np.ndarray, "m h w c"]
) -> dict[str, Float[np.ndarray, "n d"]]:
    """What these 1x1 convolutions see at some positions; the same positions in every graph of the same layout."""
    wanted = set(names)
    return {
        node.name: patches(node, given, (1, 1))[:, :, 0]
        for node, given in walk(model, images)
        if node.name in wanted
    }


def _take(
    node: NodeProto, constants: dict[str, TensorProto], chosen: Int64[np.ndarray, " d"], *, axis: int
) -> None:
    """Keep only these output channels of a convolution."""
    for name in node.input[1:]:
        values = numpy_helper.to_array(constants[name]).take(chosen, axis=axis)
        constants[name].CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values), name))


def _matrix(node: NodeProto, constants: dict[str, TensorProto]) -> Float[np.ndarray, "o d"]:
    weights = numpy_helper.to_array(constants[node.input[1]])
    return weights.reshape(len(weights), -1)


def _kernel(node: NodeProto, constants: dict[str, TensorProto]) -> tuple[int, ...]:
    return tuple(constants[node.input[1]].dims[2:])


def _depthwise(node: NodeProto, constants: dict[str, TensorProto]) -> bool:
    dims = constants[node.input[1]].dims
    return attribute(node, "group", 1) == dims[0] and dims[1] == 1


def _size(tensor: TensorProto) -> int:
    return int(np.prod(tensor.dims))
