"""The class-activation map: which places of the picture spoke for a class, as a further output of the packed model.

In: a model as `assembled` makes it. Out: the same with the output `activation` `[n, k, y, x]`, or the reason why there
is none. For a linear head on averaged maps the map is exact (Zhou et al. 2016, arXiv 1512.04150): the mean over all
places of class k's map, plus what has no place (the head's bias and features that are no maps), is the logit of class
k, temperature included. Where a feature is the largest value of its map, its whole share lies where that value is; where
it is the average of a quarter of its map, within that quarter. Maps
of several sizes (a network read at several depths) are brought to the finest of them, but at most `FINEST`, in a way
that keeps each one's mean.

Where several networks answer with the mean of their probabilities, the map is the mean of theirs, as each one counts: exact
for each, and for all of them together what spoke in their logits before these became probabilities.

Cost: a 1x1 convolution of the maps that are read. Not covered: heads that are not linear, features behind further
layers (VGG's), class tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from jaxtyping import Float32
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from graft.backbones.graph import shapes_of
from graft.deploy.opening import ACTIVATION, PROBABILITIES

THROUGH = (
    "Identity",
    "Flatten",
    "Squeeze",
    "Reshape",
    "Dropout",
    "QuantizeLinear",  # in 8 bits the averages are rounded, which the map leaves out
    "DequantizeLinear",
)  # between pooling and features: nothing is mixed
FINEST = 28  # places on a side, where maps of several sizes are added up
QUARTERS = "AveragePool"  # to two by two places
NO_LINEAR_HEAD = "the head is not one linear layer"
NO_MAPS = "the features are no averages of maps"


@dataclass(frozen=True, slots=True)
class _Pooled:
    """Features `begin` to `end` are the `kind` of value, over all places, of `maps`, whose axes are `layout` and of which
    there are `side` places down and across; each was then divided by all of `divisors`, a number per picture."""

    kind: str
    maps: str
    layout: str
    side: tuple[int, int]
    divisors: tuple[str, ...]
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class _Head:
    """A linear head: its weight `[d, k]`, what the features were divided by (or nothing), the features, and how much its
    answer counts among those of several networks."""

    weight: str
    divisor: str
    features: str
    share: float


def with_activation(model: ModelProto) -> tuple[ModelProto, str]:
    """The model with the output `activation` and an empty reason, or the model as it is and why it has none."""
    made = {output: node for node in model.graph.node for output in node.output}
    heads = [_head(made, answer, share) for answer, share in _answers(model, made)]
    shapes = shapes_of(model)
    placed = [(head, _placed(made, shapes, head)) for head in heads if head is not None]
    if len(placed) < len(heads):
        return model, NO_LINEAR_HEAD
    side = _common_side({part.side for _, parts in placed for part in parts})
    if side is None or not all(parts for _, parts in placed):
        return model, NO_MAPS
    high, wide = side
    whole = ModelProto()
    whole.CopyFrom(model)
    _append(whole, placed, side=side)
    shape = ["n", shapes[PROBABILITIES][1], high or "y", wide or "x"]
    whole.graph.output.append(helper.make_tensor_value_info(ACTIVATION, TensorProto.FLOAT, shape))
    onnx.checker.check_model(whole)
    return whole, ""


def _answers(model: ModelProto, made: dict[str, NodeProto]) -> list[tuple[str, float]]:
    """What the probabilities are the mean of, each with its share (`graft.deploy.branches`); or themselves."""
    last = made.get(PROBABILITIES)
    if last is None or last.op_type not in ("Mean", "Sum"):
        return [(PROBABILITIES, 1.0)]
    if last.op_type == "Mean":
        return [(name, 1 / len(last.input)) for name in last.input]
    values = {tensor.name: tensor for tensor in model.graph.initializer}
    weighed = [made[name] for name in last.input]
    return [(node.input[0], float(numpy_helper.to_array(values[node.input[1]]))) for node in weighed]


def _head(made: dict[str, NodeProto], answer: str, share: float) -> _Head | None:
    """The linear layer in front of the softmax that gives `answer`, and what it reads."""
    last = made.get(answer)
    layer = made.get(last.input[0]) if last is not None and last.op_type == "Softmax" else None
    before = made.get(layer.input[0]) if layer is not None and layer.op_type == "Gemm" else None
    if layer is None or before is None or before.op_type not in ("Div", "Identity"):
        return None
    divisor = before.input[1] if before.op_type == "Div" else ""
    return _Head(layer.input[1], divisor, before.input[0], share)


def _placed(made: dict[str, NodeProto], shapes: dict[str, list[int]], head: _Head) -> list[_Pooled]:
    """The features that have a place in the picture; none where no average is among them."""
    pooled = [part for part in _parts(made, shapes, head.features) if part is not None]
    return pooled if any(part.kind == "ReduceMean" for part in pooled) else []


def _parts(made: dict[str, NodeProto], shapes: dict[str, list[int]], features: str) -> list[_Pooled | None]:
    """The features in the order in which they stand; None for those that have no place in the picture."""
    node = made.get(features)
    while node is not None and node.op_type == "Identity":
        node = made.get(node.input[0])
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
    divisors: tuple[str, ...] = ()
    while node is not None and (node.op_type in THROUGH or _by_picture(node, shapes)):
        divisors += tuple(node.input[1:]) if node.op_type == "Div" else ()
        node = made.get(node.input[0])
    if node is None:
        return None
    shape = shapes.get(node.input[0], [])
    if node.op_type in ("GlobalAveragePool", "GlobalMaxPool"):
        kind, layout = ("ReduceMean" if "Average" in node.op_type else "ReduceMax"), "nchw"
    elif node.op_type in ("ReduceMean", "ReduceMax") and len(node.input) == 1:
        kind, layout = node.op_type, _layout(node, shape)
    elif node.op_type == "AveragePool" and _to_quarters(node, shape):
        kind, layout = QUARTERS, "nchw"
    else:
        return None
    # Where padding is computed from the shape, the exporter leaves the sides open; only a maximum must know them.
    side = _side(shape, layout)
    known = len(shape) == len(layout) > 0 and (kind == "ReduceMean" or all(side))
    channels = (end - begin) // (4 if kind == QUARTERS else 1)
    sound = known and shape[layout.index("c")] == channels
    return _Pooled(kind, node.input[0], layout, side, divisors, begin, end) if sound else None


def _to_quarters(node: NodeProto, shape: list[int]) -> bool:
    """Whether it averages the four quarters of maps `[n, c, y, x]`."""
    sides = shape[2:]
    said = {attribute.name: list(attribute.ints) for attribute in node.attribute}
    halves = [-(-side // 2) for side in sides], [side // 2 for side in sides]
    windows = said.get("kernel_shape"), said.get("strides")
    return len(sides) == 2 and min(sides) > 1 and windows == halves and not any(said.get("pads", []))


def _by_picture(node: NodeProto, shapes: dict[str, list[int]]) -> bool:
    """Whether it divides the features of each picture by one number."""
    return node.op_type == "Div" and shapes.get(node.input[1]) == [1, 1]


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


def _common_side(sides: set[tuple[int, int]]) -> tuple[int, int] | None:
    """How many places down and across the map has: those of all maps, or the finest; None where they are not known."""
    if len(sides) == 1:
        return next(iter(sides))
    if not sides or not all(high and wide for high, wide in sides):
        return None
    return min(FINEST, max(high for high, _ in sides)), min(FINEST, max(wide for _, wide in sides))


def spread_evenly(given: int, wanted: int) -> Float32[np.ndarray, "w g"]:
    """What brings `given` values on a line to `wanted`: the mean, over each new cell, of the line drawn through the old
    centres and level outside of them. Each old value has the same share in all new ones together, so means stay."""
    if given == wanted:
        return np.eye(given, dtype=np.float32)
    # Within one step of this grid the line has no corner and no cell ends.
    steps = 2 * given * wanted
    at = (np.arange(steps) + 0.5) / steps * given - 0.5
    line = np.stack([np.interp(at, np.arange(given), one) for one in np.eye(given)], axis=1)
    return line.reshape(wanted, 2 * given, given).mean(axis=1).astype(np.float32)


def _append(
    model: ModelProto, placed: Sequence[tuple[_Head, list[_Pooled]]], *, side: tuple[int, int]
) -> None:
    """The nodes from the maps to `activation`."""
    nodes, constants = model.graph.node, model.graph.initializer

    def add(kind: str, *inputs: str | list[int] | np.ndarray, **attributes: Any) -> str:
        name = f"graft_activation_{len(nodes)}"
        for place, value in enumerate(inputs):
            if not isinstance(value, str):
                array = np.array(value, np.int64 if isinstance(value, list) else np.float32)
                constants.append(numpy_helper.from_array(array, f"{name}_{place}"))
        names = [each if isinstance(each, str) else f"{name}_{i}" for i, each in enumerate(inputs)]
        nodes.append(helper.make_node(kind, names, [name], name=name, **attributes))
        return name

    total = ""
    for head, parts in placed:
        own = _of_one_head(add, head, parts, side)
        if head.share != 1:
            own = add("Mul", own, np.array([head.share]))
        total = add("Add", total, own) if total else own
    nodes.append(helper.make_node("Identity", [total], [ACTIVATION]))


def _of_one_head(add: Callable[..., str], head: _Head, parts: list[_Pooled], side: tuple[int, int]) -> str:
    """The map of one linear head."""
    total = ""
    for part in parts:
        spoken = _SPOKEN[part.kind](add, part, head.weight)
        for per_picture in part.divisors:
            spoken = add("Div", spoken, add("Unsqueeze", per_picture, [2, 3]))
        if part.side != side:
            down, across = (spread_evenly(*pair) for pair in zip(part.side, side, strict=True))
            spoken = add("MatMul", add("MatMul", down, spoken), across.T)
        total = add("Add", total, spoken) if total else spoken
    return add("Div", total, add("Unsqueeze", head.divisor, [2, 3])) if head.divisor else total


def _rows(add: Callable[..., str], part: _Pooled, weight: str, *, first: int = 0, every: int = 1) -> str:
    """The weights `[k, c]` of a part of the features, or of every so many of them."""
    chosen = add("Slice", weight, [part.begin + first], [part.end], [0], [every])
    return add("Transpose", chosen, perm=[1, 0])


def _averaged(add: Callable[..., str], part: _Pooled, weight: str) -> str:
    """What each place has by averaged maps."""
    kernel = add("Unsqueeze", _rows(add, part, weight), [2, 3])
    return add("Conv", _in_planes(add, part), kernel, kernel_shape=[1, 1])


def _by_quarters(add: Callable[..., str], part: _Pooled, weight: str) -> str:
    """What each place has by the averages of the quarters it lies in; in the middle of an odd side that is several."""
    high, wide = part.side
    total = ""
    for number in range(4):
        inside = np.zeros((high, wide), np.float32)
        down, across = divmod(number, 2)
        inside[quarter(high, down), quarter(wide, across)] = 1
        kernel = add("Unsqueeze", _rows(add, part, weight, first=number, every=4), [2, 3])
        spoken = add("Conv", part.maps, kernel, kernel_shape=[1, 1])
        own = add("Mul", spoken, inside / inside.mean())
        total = add("Add", total, own) if total else own
    return total


def quarter(side: int, number: int) -> slice:
    """The first or the second half of a side; both have the middle of an odd one."""
    return slice(0, -(-side // 2)) if number == 0 else slice(side // 2, side)


def _largest(add: Callable[..., str], part: _Pooled, weight: str) -> str:
    """What each place has by the largest values of maps; places that are alike share it."""
    rows = _rows(add, part, weight)
    maps = add("Reshape", _in_planes(add, part), [0, 0, -1])
    largest = add("ReduceMax", maps, axes=[2], keepdims=1)
    there = add("Cast", add("Equal", maps, largest), to=TensorProto.FLOAT)
    each = add("Div", largest, add("ReduceMean", there, axes=[2], keepdims=1))
    weights = add("Mul", add("Unsqueeze", rows, [0]), add("Transpose", each, perm=[0, 2, 1]))
    return add("Reshape", add("MatMul", weights, there), [0, 0, *part.side])


_SPOKEN = {"ReduceMean": _averaged, "ReduceMax": _largest, QUARTERS: _by_quarters}


def _in_planes(add: Callable[..., str], part: _Pooled) -> str:
    """The maps as `[n, c, y, x]`."""
    if part.layout == "nhwc":
        return add("Transpose", part.maps, perm=[0, 3, 1, 2])
    if part.layout == "ntc":
        return add("Reshape", add("Transpose", part.maps, perm=[0, 2, 1]), [0, 0, *part.side])
    return part.maps
