"""The class-activation map: which places of the picture spoke for a class, as a further output of the packed model.

In: a model as `assembled` makes it. Out: the same with the output `activation` `[n, k, y, x]`, or the reason why there
is none. For a linear head on averaged maps the map is exact (Zhou et al. 2016, arXiv 1512.04150): the mean over all
places of class k's map, plus what has no place (the head's bias and features that are no maps), is the logit of class
k, temperature included. Where a feature is the largest value of its map, its whole share lies where that value is.

Cost: a 1x1 convolution of the last maps, which is only computed where it is asked for. Not covered: heads that are not
linear, features behind further layers (VGG's), class tokens, averages of several networks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from graft.deploy.opening import ACTIVATION, EMBEDDING, PROBABILITIES

THROUGH = (
    "Identity",
    "Flatten",
    "Squeeze",
    "Reshape",
    "Dropout",
)  # between pooling and features: nothing is mixed
NO_LINEAR_HEAD = "the head is not one linear layer"
NO_MAPS = "the features are no averages of maps"


@dataclass(frozen=True, slots=True)
class _Pooled:
    """Features `begin` to `end` are the `kind` of value, over all places, of `maps`, whose axes are `layout`."""

    kind: str
    maps: str
    layout: str
    begin: int
    end: int


def with_activation(model: ModelProto) -> tuple[ModelProto, str]:
    """The model with the output `activation` and an empty reason, or the model as it is and why it has none."""
    made = {output: node for node in model.graph.node for output in node.output}
    head, divisor, features = _head(made)
    if head is None:
        return model, NO_LINEAR_HEAD
    shapes = _shapes(model)
    pooled = [part for part in _parts(made, shapes, features) if part is not None]
    if not any(part.kind == "ReduceMean" for part in pooled):
        return model, NO_MAPS
    sides = {_side(shapes[part.maps], part.layout) for part in pooled}
    if len(sides) != 1:  # nothing could be added up
        return model, NO_MAPS
    high, wide = sides.pop()
    whole = ModelProto()
    whole.CopyFrom(model)
    classes = shapes[PROBABILITIES][1]
    _append(whole, pooled, weight=head.input[1], divisor=divisor, places=high * wide)
    shape = ["n", classes, high or "y", wide or "x"]
    whole.graph.output.append(helper.make_tensor_value_info(ACTIVATION, TensorProto.FLOAT, shape))
    onnx.checker.check_model(whole)
    return whole, ""


def _head(made: dict[str, NodeProto]) -> tuple[NodeProto | None, str, str]:
    """The linear layer between embedding and softmax, what the features were divided by, and the features."""
    last = made.get(PROBABILITIES)
    head = made.get(last.input[0]) if last is not None and last.op_type == "Softmax" else None
    before = made.get(EMBEDDING)
    plain = head is not None and head.op_type == "Gemm" and head.input[0] == EMBEDDING
    if not plain or before is None or before.op_type not in ("Div", "Identity"):
        return None, "", ""
    return head, before.input[1] if before.op_type == "Div" else "", before.input[0]


def _shapes(model: ModelProto) -> dict[str, list[int]]:
    """The shape of every value for one image; 0 where it is not known."""
    single = ModelProto()
    single.CopyFrom(model)
    single.graph.input[0].type.tensor_type.shape.dim[
        0
    ].dim_value = 1  # padding may be computed from the shape
    del single.graph.value_info[:]
    inferred = onnx.shape_inference.infer_shapes(single, data_prop=True).graph
    infos = [*inferred.value_info, *inferred.input, *inferred.output]
    return {info.name: [side.dim_value for side in info.type.tensor_type.shape.dim] for info in infos}


def _parts(made: dict[str, NodeProto], shapes: dict[str, list[int]], features: str) -> list[_Pooled | None]:
    """The features in the order in which they stand; None for those that have no place in the picture."""
    node = made.get(features)
    joined = node is not None and node.op_type == "Concat"
    names = list(node.input) if node is not None and joined else [features]
    begin, parts = 0, []
    for name in names:
        end = begin + (shapes.get(name) or [0])[-1]
        parts.append(_pooled(made, shapes, name, begin, end))
        begin = end
    return parts


def _pooled(
    made: dict[str, NodeProto], shapes: dict[str, list[int]], name: str, begin: int, end: int
) -> _Pooled | None:
    node = made.get(name)
    while node is not None and node.op_type in THROUGH:
        node = made.get(node.input[0])
    if node is None:
        return None
    shape = shapes.get(node.input[0], [])
    if node.op_type in ("GlobalAveragePool", "GlobalMaxPool"):
        kind, layout = ("ReduceMean" if "Average" in node.op_type else "ReduceMax"), "nchw"
    elif node.op_type in ("ReduceMean", "ReduceMax") and len(node.input) == 1:
        kind, layout = node.op_type, _layout(node, shape)
    else:
        return None
    # Where padding is computed from the shape, the exporter leaves the sides open; only a maximum must know them.
    known = len(shape) == len(layout) > 0 and (kind == "ReduceMean" or all(_side(shape, layout)))
    sound = known and shape[layout.index("c")] == end - begin
    return _Pooled(kind, node.input[0], layout, begin, end) if sound else None


def _layout(node: NodeProto, shape: list[int]) -> str:
    """Which axes of `[n, c, y, x]`, `[n, y, x, c]` or tokens `[n, t, c]` are reduced; empty for any other way."""
    axes = next((list(attribute.ints) for attribute in node.attribute if attribute.name == "axes"), [])
    places = sorted(axis % len(shape) for axis in axes) if shape else []
    layout = {(4, (2, 3)): "nchw", (4, (1, 2)): "nhwc", (3, (1,)): "ntc"}.get((len(shape), tuple(places)), "")
    square = layout != "ntc" or math.isqrt(shape[1]) ** 2 == shape[1] > 0
    return layout if square else ""


def _side(shape: list[int], layout: str) -> tuple[int, int]:
    if layout == "ntc":
        return math.isqrt(shape[1]), math.isqrt(shape[1])
    return (shape[layout.index("h")], shape[layout.index("w")]) if layout else (0, 0)


def _append(model: ModelProto, pooled: list[_Pooled], *, weight: str, divisor: str, places: int) -> None:
    """The nodes from the maps to `activation`."""
    nodes, constants = model.graph.node, model.graph.initializer

    def add(kind: str, *inputs: str | list[int] | float, **attributes: Any) -> str:
        name = f"graft_activation_{len(nodes)}"
        for place, value in enumerate(inputs):
            if not isinstance(value, str):
                array = np.array(value, np.float32 if isinstance(value, float) else np.int64)
                constants.append(numpy_helper.from_array(array, f"{name}_{place}"))
        names = [each if isinstance(each, str) else f"{name}_{i}" for i, each in enumerate(inputs)]
        nodes.append(helper.make_node(kind, names, [name], name=name, **attributes))
        return name

    total = ""
    for part in pooled:
        maps = part.maps
        if part.layout == "nhwc":
            maps = add("Transpose", maps, perm=[0, 3, 1, 2])
        elif part.layout == "ntc":
            side = math.isqrt(places)
            maps = add("Reshape", add("Transpose", maps, perm=[0, 2, 1]), [0, 0, side, side])
        if part.kind == "ReduceMax":
            largest = add("ReduceMax", maps, axes=[2, 3], keepdims=1)
            there = add("Cast", add("Equal", maps, largest), to=TensorProto.FLOAT)
            count = add("ReduceSum", there, [2, 3], keepdims=1)
            maps = add("Mul", add("Mul", maps, add("Div", there, count)), float(places))
        rows = add("Slice", weight, [part.begin], [part.end], [0])
        kernel = add("Unsqueeze", add("Transpose", rows, perm=[1, 0]), [2, 3])
        spoken = add("Conv", maps, kernel, kernel_shape=[1, 1])
        total = add("Add", total, spoken) if total else spoken
    if divisor:
        total = add("Div", total, add("Unsqueeze", divisor, [2, 3]))
    nodes.append(helper.make_node("Identity", [total], [ACTIVATION]))
