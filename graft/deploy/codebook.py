"""Weights of 4 bits in a graph of 8: two codes in a byte, and the codebook that the graph reads them from.

In: a quantised graph (`graft.deploy.quantise`) in which some convolutions have weights of only sixteen different integers.
Out: the same graph, which computes with the same integers but holds these weights in half the bytes. Cast, Gather and
Reshape, which every runtime has known for years, turn the codes into int8 weights; ONNX's own 4-bit type needs opset 21.
A runtime folds them when it opens the file, so that nothing is slower afterwards.

The sixteen levels lie close where weights are frequent (Lloyd 1982; weights that share a codebook: Han et al. 2016, arXiv
1510.00149). They are those of NF4 (Dettmers et al. 2023, arXiv 2305.14314), quantiles of a normal distribution with
zero among them: dead channels, whose weights are all zero, stay zero. On MobileNetV2 they spoilt the features as little
as levels fitted to each layer, and a quarter less than evenly spaced ones.

Cost: milliseconds. Needs no torch. Not covered: linear layers outside convolutions, and weights of an odd number; they
stay as they are.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from jaxtyping import Int, Int8, UInt8
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from graft.deploy.rounding import attribute, convolved

NF4 = (
    *(-1.0, -0.6962, -0.5251, -0.3949, -0.2844, -0.1848, -0.0911, 0.0),
    *(0.0796, 0.1609, 0.2461, 0.3379, 0.4407, 0.5626, 0.7230, 1.0),
)
SHARE = 0.92  # of the weights; the small layers suffer most and save least
LEAST_WEIGHTS = 4_096  # of a layer: the nodes that read its codes take about 200 bytes


def codebook(levels: int) -> Int[np.ndarray, " 16"]:
    """Sixteen ascending integers from `-levels` to `levels` (at least 12, so that all differ), zero among them."""
    return np.round(levels * np.array(NF4)).astype(np.int64)


def largest_layers(model: ModelProto, names: Collection[str]) -> list[str]:
    """Of the convolutions called `names`, the largest, until `SHARE` of all their weights is reached; none with groups."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    sizes = {
        node.name: int(np.prod(constants[node.input[1]].dims))
        for node in model.graph.node
        if node.name in names and convolved(node, constants)
    }
    whole = [node.name for node in model.graph.node if attribute(node, "group", 1) == 1]
    left, chosen = SHARE * sum(sizes.values()), []
    for name in sorted(sizes.keys() & whole, key=lambda name: (-sizes[name], name)):
        if left <= 0 or sizes[name] < LEAST_WEIGHTS:
            break
        chosen.append(name)
        left -= sizes[name]
    return chosen


def coded(model: ModelProto, book: Int[np.ndarray, " 16"]) -> ModelProto:
    """A copy that holds in 4 bits what its DequantizeLinear nodes read, where these int8 weights are all in `book`.

    `book`: ascending, within int8. Tensors of fewer than `LEAST_WEIGHTS` numbers or an odd number stay as they are. The answers are
    the same to the bit.
    """
    made = ModelProto()
    made.CopyFrom(model)
    graph = made.graph
    read = {node.input[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    decoding: list[NodeProto] = []
    for tensor in list(graph.initializer):
        if tensor.name in read and _fits(tensor, book):
            decoding += _decoding(tensor.name)
            shape = np.array(tensor.dims, np.int64)
            graph.initializer.append(numpy_helper.from_array(shape, f"{tensor.name}.shape"))
            codes = packed(numpy_helper.to_array(tensor), book)
            tensor.CopyFrom(numpy_helper.from_array(codes, f"{tensor.name}.codes"))
    if decoding:
        graph.initializer.append(numpy_helper.from_array(_pairs(book), "codebook"))
    following = list(graph.node)
    del graph.node[:]
    graph.node.extend([*decoding, *following])
    return made


def packed(weights: Int8[np.ndarray, ...], book: Int[np.ndarray, " 16"]) -> UInt8[np.ndarray, " half"]:
    """The places of the weights, an even number of them, in the codebook; the first of two in the low bits."""
    places = np.searchsorted(book, weights.ravel()).astype(np.uint8)
    return places[::2] | places[1::2] << 4


def _pairs(book: Int[np.ndarray, " 16"]) -> Int8[np.ndarray, "256 2"]:
    """The two weights that each byte stands for."""
    byte = np.arange(256)
    return np.stack([book[byte & 15], book[byte >> 4]], axis=1).astype(np.int8)


def _decoding(weights: str) -> list[NodeProto]:
    codes, places, pairs = (f"{weights}.{part}" for part in ("codes", "places", "pairs"))
    return [
        helper.make_node("Cast", [codes], [places], to=TensorProto.INT32),
        helper.make_node("Gather", ["codebook", places], [pairs], axis=0),
        helper.make_node("Reshape", [pairs, f"{weights}.shape"], [weights]),
    ]


def _fits(tensor: TensorProto, book: Int[np.ndarray, " 16"]) -> bool:
    size = int(np.prod(tensor.dims))
    if tensor.data_type != TensorProto.INT8 or size < LEAST_WEIGHTS or size % 2:
        return False
    return bool(np.isin(numpy_helper.to_array(tensor), book).all())
