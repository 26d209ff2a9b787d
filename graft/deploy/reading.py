"""Reading a network at several depths: where its graph is narrowest, and what the head sees of the maps there.

In: an ONNX graph from raw pixels to maps. Out: its waists (the tensors that everything which follows depends on, and on
nothing else), and the same graph with one output row per image: average and maximum of the maps at the chosen waists,
each of length one, side by side; and, if wanted, the averages of the four quarters of the deepest maps, which say where in
the picture something is. A graph that is cut at a waist is a smaller network; one that is read at several gives
its head the fine texture of the lower layers, too, for the bytes of a longer head (Head2Toe: Evci et al. 2022,
arXiv 2201.03529).

Cost: milliseconds. Needs no torch. Not covered: networks whose maps are no `[n, c, y, x]` (transformers): no waists.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import onnx
from onnx import ModelProto, TensorProto, helper, numpy_helper

from graft.backbones.graph import INPUT, cut, shapes_of
from graft.deploy.quantise import pruned

READING = "graft_reading"
MOST = 4  # depths that are read together
AVERAGES = ("ReduceMean", "GlobalAveragePool", "AveragePool")
APART = 3  # a waist of every so many is read


@dataclass(frozen=True, slots=True)
class Waist:
    """A tensor that cuts the graph in two; `weights`: how many numbers lie before it."""

    tensor: str
    weights: int


def waists(model: ModelProto) -> list[Waist]:
    """All waists that follow a convolution and precede another one or the end of the maps, from the input on."""
    graph = model.graph
    sizes = {tensor.name: math.prod(tensor.dims) for tensor in graph.initializer}
    last_use = {name: index for index, node in enumerate(graph.node) for name in node.input}
    last_use |= {value.name: len(graph.node) for value in graph.output}
    alive, weights, learned = {INPUT}, 0, False
    found = []
    for index, node in enumerate(graph.node):
        weights += sum(sizes.pop(name, 0) for name in set(node.input))
        learned = learned or node.op_type == "Conv"
        alive = {name for name in alive | set(node.output) if last_use.get(name, -1) > index}
        tensor = node.output[0]
        if learned and alive == {tensor} and _ends_here(graph.node[index + 1 :], tensor):
            found.append(Waist(tensor, weights))
    return found


def _ends_here(following: Sequence[onnx.NodeProto], tensor: str) -> bool:
    """Whether what reads the tensor begins something new."""
    reader = next((node for node in following if tensor in node.input), None)
    if reader is None or reader.op_type not in ("Conv", "MaxPool", "ReduceMean", "GlobalAveragePool"):
        return False
    axes = next((list(attribute.ints) for attribute in reader.attribute if attribute.name == "axes"), [])
    return reader.op_type != "ReduceMean" or axes in (
        [2, 3],
        [-2, -1],
    )  # tokens and channels last are no maps here


def depths(count: int, deepest: int) -> list[int]:
    """Which waists of `count` are read together, the deepest first."""
    return list(range(min(deepest, count - 1), -1, -APART))[:MOST]


def maps_of(model: ModelProto, tensors: Sequence[str]) -> ModelProto:
    """The part of `model` that computes these maps, which become its outputs `maps0`, `maps1`, ..."""
    made = ModelProto()
    made.CopyFrom(model)
    names = [f"maps{number}" for number in range(len(tensors))]
    given = dict(zip(tensors, names, strict=True))
    for node in made.graph.node:
        node.input[:] = [given.get(name, name) for name in node.input]
        node.output[:] = [given.get(name, name) for name in node.output]
    del made.graph.value_info[:]
    shapes = ["n", None, None, None]
    made.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, shapes) for name in names)
    return pruned(made, names)


def read_together(maps: ModelProto, *, quarters: Sequence[int] = ()) -> ModelProto:
    """A graph of `maps_of` with the one output `graft_reading`: average and maximum of each, of length one; behind them,
    of the maps whose numbers are in `quarters`, the averages of their four quarters, together of length one, channel by
    channel.
    """
    made = ModelProto()
    made.CopyFrom(maps)
    graph = made.graph
    least = helper.make_tensor("graft_reading_least", TensorProto.FLOAT, [1], [1e-12])
    graph.initializer.append(least)
    parts = []

    def of_length_one(stem: str) -> None:
        graph.node.extend(
            [
                helper.make_node("ReduceL2", [stem], [f"{stem}_length"], axes=[1], keepdims=1),
                helper.make_node("Max", [f"{stem}_length", least.name], [f"{stem}_divisor"]),
                helper.make_node("Div", [stem, f"{stem}_divisor"], [f"{stem}_unit"]),
            ]
        )
        parts.append(f"{stem}_unit")

    for value in maps.graph.output:
        for pooling in ("ReduceMean", "ReduceMax"):
            stem = f"graft_{value.name}_{pooling}"
            graph.node.append(helper.make_node(pooling, [value.name], [stem], axes=[2, 3], keepdims=0))
            of_length_one(stem)
    shapes = shapes_of(maps) if quarters else {}
    for name in (maps.graph.output[number].name for number in quarters):
        sides = shapes[name][2:]
        stem = f"graft_{name}_quarters"
        # Windows of half a side, rounded up, half a side apart, rounded down: two by two, whatever the side.
        window = {
            "kernel_shape": [-(-side // 2) for side in sides],
            "strides": [max(1, side // 2) for side in sides],
        }
        graph.node.append(helper.make_node("AveragePool", [name], [f"{stem}_maps"], **window))
        graph.node.append(helper.make_node("Flatten", [f"{stem}_maps"], [stem], axis=1))
        of_length_one(stem)
    graph.node.append(helper.make_node("Concat", parts, [READING], axis=1))
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info(READING, TensorProto.FLOAT, ["n", None]))
    return made


def read_at(trunk: ModelProto, output: str) -> ModelProto:
    """The trunk cut at a tap's output, with that output called `graft_reading`."""
    made = cut(trunk, output)
    made.graph.node.append(helper.make_node("Identity", [output], [READING]))
    del made.graph.output[:]
    made.graph.output.append(helper.make_tensor_value_info(READING, TensorProto.FLOAT, ["n", None]))
    return made


def maps_read(model: ModelProto, output: str) -> list[str]:
    """The maps whose averages `output` holds side by side, where it holds several; else `output` itself."""
    made = {name: node for node in model.graph.node for name in node.output}
    joined = made.get(output)
    while joined is not None and joined.op_type == "Identity":
        joined = made.get(joined.input[0])
    if joined is None or joined.op_type != "Concat":
        return [output]
    found = []
    for name in joined.input:
        node = made.get(name)
        while node is not None and node.op_type in ("Div", "Flatten", "Identity"):
            node = made.get(node.input[0])
        if node is None or node.op_type not in AVERAGES:
            return [output]
        found.append(node.input[0])
    return list(dict.fromkeys(found))


def weights_of(model: ModelProto) -> int:
    """How many numbers the constants hold."""
    return sum(numpy_helper.to_array(tensor).size for tensor in model.graph.initializer)
