"""`preprocess.onnx`: from a decoded picture of any size to the network's input, for programs that are not Graft.

In: a `Preprocess`. Out: an ONNX graph from `picture` (uint8 `[h, w, c]`, upright, c = 1 to 4) to `image` (uint8
`[1, size, size, channels]`). It does what `graft.images.preprocess.prepare` does with Pillow: transparent parts show
white, grey has Pillow's weights, one rectangle is resized with an antialiased filter. The filter is written as two
matrix products whose weights the graph computes from the shape, because ONNX's own Resize knows antialiasing only from
opset 18 on and places its pixels otherwise. So opset 13 is enough, and every runtime computes the same.

Not covered: decoding, EXIF orientation, colour profiles, pictures of 16 bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, helper, numpy_helper

from graft.deploy.opening import INPUT
from graft.images.dataset import Preprocess
from graft.images.preprocess import MID_GREY

PICTURE = "picture"
OPSET = 13
IR_VERSION = 7
SUPPORT = {"bicubic": 2.0, "bilinear": 1.0}  # how far the filter reaches, in pixels of the smaller picture
GAP = 4.0  # larger pictures are averaged first, as in graft.images.preprocess
CUBIC = -0.5  # the free parameter of the bicubic kernel (Keys 1981), as in Pillow
LAST_COLOUR = [0, 0, 2, 2]  # of pictures with one to four channels; with more, looking it up fails
GREY = (19595, 38470, 7471)  # of 65536: ITU-R BT.601 as Pillow rounds it


def preprocess_graph(preprocess: Preprocess) -> ModelProto:
    """The graph for this geometry. Raises onnx.checker.ValidationError if it is no valid graph."""
    graph = _Graph()
    shape = graph("Shape", PICTURE)
    high, wide, channels = (graph("Gather", shape, place) for place in range(3))
    down, across = (_axis(graph, length, (high, wide), preprocess) for length in (high, wide))
    picture = _cut_out(graph, down, across)
    planes = _averaged(graph, _planes(graph, picture, channels, preprocess), down, across)
    # Pillow resizes along the rows first and rounds in between. From 13.0 on (its pull request 9549) it goes down the
    # columns first where the height shrinks much more: then, up to a quarter of the values differ by one.
    planes = _rounded(graph, graph("MatMul", planes, graph("Transpose", across.weights, perm=[1, 0])))
    planes = _rounded(graph, graph("MatMul", down.weights, planes))
    if preprocess.fit == "pad":
        inside = graph("And", graph("Unsqueeze", down.inside, [1]), graph("Unsqueeze", across.inside, [0]))
        planes = graph("Where", inside, planes, float(MID_GREY))
    pixels = graph("Transpose", graph("Cast", planes, to=TensorProto.UINT8), perm=[1, 2, 0])
    graph.nodes.append(helper.make_node("Unsqueeze", [pixels, graph.constant([0])], [INPUT]))
    return _model(graph, preprocess)


class _Graph:
    """Nodes written down one after the other. Called with a kind and inputs (names, or numbers that become constants:
    float is float32, int is int64), it gives the name of the result."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}

    def __call__(self, kind: str, *inputs: Any, **attributes: Any) -> str:
        names = [each if isinstance(each, str) else self.constant(each) for each in inputs]
        name = f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, names, [name], **attributes))
        return name

    def constant(self, value: Any) -> str:
        array = np.asarray(value)
        if type(value) is float:  # a NumPy double is one, too
            array = array.astype(np.float32)
        elif array.dtype.kind == "i":
            array = array.astype(np.int64)
        name = f"{array.dtype.name}{list(array.shape)}:{','.join(map(str, array.ravel()))}"
        self.constants[name] = numpy_helper.from_array(array, name)
        return name

    def exact(self, name: str) -> str:
        """As float64: a hundredth of a pixel must not depend on how far to the right it is."""
        return self("Cast", name, to=TensorProto.DOUBLE)

    def whole(self, name: str) -> str:
        """As int64, cut off towards zero."""
        return self("Cast", name, to=TensorProto.INT64)


@dataclass(frozen=True, slots=True)
class _Axis:
    """One axis of the picture, by the names of its values: pixels `first` to `last` are needed, `blocks` of `factor` each
    are averaged, and `weights` `[size, blocks]` makes of them the result, of which `inside` `[size]` shows picture."""

    first: str
    last: str
    factor: str
    blocks: str
    weights: str
    inside: str


def _axis(graph: _Graph, length: str, sides: tuple[str, str], preprocess: Preprocess) -> _Axis:
    """What of this axis goes where. As in Pillow, the `span` from `begin` becomes `outcome` pixels from `offset` on."""
    size = preprocess.size
    full = graph.exact(length)
    begin, span = graph.constant(np.float64(0)), full
    outcome, offset = graph.constant(size), graph.constant(0)
    if preprocess.fit == "crop":
        span = graph("Mul", graph.exact(graph("Min", *sides)), np.float64(preprocess.crop_share))
        begin = graph("Div", graph("Sub", full, span), np.float64(2))
    elif preprocess.fit == "pad":
        scale = graph("Div", np.float64(size), graph.exact(graph("Max", *sides)))
        outcome = graph("Max", graph.whole(graph("Round", graph("Mul", full, scale))), 1)
        offset = graph("Div", graph("Sub", size, outcome), 2)
    scale = graph("Div", span, graph.exact(outcome))
    factor = graph("Max", graph.whole(graph("Div", scale, np.float64(GAP))), 1)
    reach = _reach(graph, scale, factor, SUPPORT[preprocess.interpolation])
    first = graph("Max", graph.whole(graph("Sub", begin, reach)), 0)
    end = graph("Add", graph("Add", begin, span), reach)
    last = graph("Min", length, graph("Sub", length, graph.whole(graph("Sub", full, end))))
    blocks = graph("Div", graph("Add", graph("Sub", last, first), graph("Sub", factor, 1)), factor)
    shrink = graph.exact(factor)
    begin = graph("Div", graph("Sub", begin, graph.exact(first)), shrink)
    scale = graph("Div", scale, shrink)
    places = graph("Sub", graph("Range", 0, size, 1), offset)
    inside = graph(
        "And",
        graph("Not", graph("Less", places, 0)),
        graph("Less", places, outcome),
    )
    weights = _weights(graph, places, blocks, begin, scale, preprocess)
    return _Axis(first, last, factor, blocks, weights, inside)


def _reach(graph: _Graph, scale: str, factor: str, support: float) -> str:
    """How many pixels beyond the rectangle count: half a block less where blocks are averaged, as in Pillow."""
    plain = graph("Mul", graph("Max", scale, np.float64(1)), np.float64(support))
    averaged = graph("Mul", scale, np.float64(support - 0.5))
    return graph("Where", graph("Less", 1, factor), averaged, plain)


def _weights(graph: _Graph, places: str, blocks: str, begin: str, scale: str, preprocess: Preprocess) -> str:
    """`[size, blocks]`: how much of each block goes into each place, rows summing to one.

    The filter is as wide as `scale` where the picture shrinks (antialiasing), and one block wide where it grows.
    """
    half = np.float64(0.5)
    centres = graph("Add", graph("Mul", graph("Add", graph.exact(places), half), scale), begin)
    at = graph("Add", graph.exact(graph("Range", 0, blocks, 1)), half)
    apart = graph("Sub", graph("Unsqueeze", at, [0]), graph("Unsqueeze", centres, [1]))
    width = graph("Max", scale, np.float64(1))
    values = _filtered(graph, graph("Abs", graph("Div", apart, width)), preprocess.interpolation)
    total = graph("Max", graph("ReduceSum", values, [1], keepdims=1), np.float64(1e-3))
    return graph("Cast", graph("Div", values, total), to=TensorProto.FLOAT)


def _filtered(graph: _Graph, x: str, interpolation: str) -> str:
    """The filter at distances `x`, which are not negative."""
    zero, one, two = (np.float64(value) for value in (0, 1, 2))
    if interpolation == "bilinear":
        return graph("Max", graph("Sub", one, x), zero)
    near = _polynomial(graph, x, (CUBIC + 2, -(CUBIC + 3), 0.0, 1.0))
    far = _polynomial(graph, x, (CUBIC, -5 * CUBIC, 8 * CUBIC, -4 * CUBIC))
    far = graph("Where", graph("Less", x, two), far, zero)
    return graph("Where", graph("Less", x, one), near, far)


def _polynomial(graph: _Graph, x: str, factors: tuple[float, float, float, float]) -> str:
    value = graph.constant(np.float64(factors[0]))
    for factor in factors[1:]:
        value = graph("Add", graph("Mul", value, x), np.float64(factor))
    return value


def _cut_out(graph: _Graph, down: _Axis, across: _Axis) -> str:
    """The rectangle that is needed, `[y, x, c]`."""
    starts, ends = (
        graph("Concat", graph("Unsqueeze", one, [0]), graph("Unsqueeze", other, [0]), axis=0)
        for one, other in ((down.first, across.first), (down.last, across.last))
    )
    return graph("Slice", PICTURE, starts, ends, [0, 1])


def _planes(graph: _Graph, picture: str, channels: str, preprocess: Preprocess) -> str:
    """`[y, x, c]` to float32 planes, `[3, y, x]` or `[1, y, x]` for grey, on white where there is an alpha."""
    last = graph("Sub", channels, 1)
    colour = graph("Gather", LAST_COLOUR, last)
    picture = graph("Transpose", picture, perm=[2, 0, 1])
    colours = graph("Cast", graph("Gather", picture, graph("Min", [0, 1, 2], colour)), to=TensorProto.FLOAT)
    if preprocess.channels == 1:
        colours = _grey(graph, colours)
    alpha = graph("Cast", graph("Gather", picture, last), to=TensorProto.FLOAT)
    share = graph("Where", graph("Less", colour, last), graph("Div", alpha, 255.0), 1.0)
    return graph("Add", graph("Mul", graph("Sub", colours, 255.0), share), 255.0)


def _grey(graph: _Graph, colours: str) -> str:
    weights = np.array(GREY, np.float32).reshape(3, 1, 1)
    total = graph("ReduceSum", graph("Mul", colours, weights), [0], keepdims=1)
    return graph("Floor", graph("Div", graph("Add", total, 32768.0), 65536.0))


def _averaged(graph: _Graph, planes: str, down: _Axis, across: _Axis) -> str:
    """Blocks of `factor` pixels averaged; the edge is repeated where the last block is not full."""
    lacking = [
        graph("Sub", graph("Mul", axis.blocks, axis.factor), graph("Sub", axis.last, axis.first))
        for axis in (down, across)
    ]
    after = graph("Concat", [0, 0, 0, 0], *(graph("Unsqueeze", each, [0]) for each in lacking), axis=0)
    planes = graph("Pad", planes, after, mode="edge")
    sizes = [graph("Unsqueeze", each, [0]) for axis in (down, across) for each in (axis.blocks, axis.factor)]
    blocks = graph("Reshape", planes, graph("Concat", [0], *sizes, axis=0))
    return graph("Floor", graph("Add", graph("ReduceMean", blocks, axes=[2, 4], keepdims=0), 0.5))


def _rounded(graph: _Graph, planes: str) -> str:
    return graph("Clip", graph("Floor", graph("Add", planes, 0.5)), 0.0, 255.0)


def _model(graph: _Graph, preprocess: Preprocess) -> ModelProto:
    side = preprocess.size
    made = helper.make_graph(
        graph.nodes,
        "preprocess",
        [helper.make_tensor_value_info(PICTURE, TensorProto.UINT8, ["h", "w", "c"])],
        [helper.make_tensor_value_info(INPUT, TensorProto.UINT8, [1, side, side, preprocess.channels])],
        list(graph.constants.values()),
    )
    model = helper.make_model(
        made, ir_version=IR_VERSION, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="graft"
    )
    onnx.checker.check_model(model)
    return model
