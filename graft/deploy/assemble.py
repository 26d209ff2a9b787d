"""From a trunk's graph and a linear head to the one ONNX model that is measured, packed and served.

In: an ONNX graph, the output to read, and the head's arrays. Out: a graph with input `image` (uint8 `[n, h, w, c]`) and
outputs `probabilities` `[n, k]` and `embedding` `[n, d]` (before the head; of length one if the head wants it so).
"""

from __future__ import annotations

import numpy as np
import onnx
from jaxtyping import Float
from onnx import ModelProto, TensorProto, helper, numpy_helper

from graft.backbones.graph import cut
from graft.deploy.bundle import EMBEDDING, PROBABILITIES

LEAST_LENGTH = 1e-12  # as in graft.learning.ridge.unit


def assembled(
    trunk: ModelProto,
    output: str,
    *,
    weight: Float[np.ndarray, "w k"],
    bias: Float[np.ndarray, " k"],
    unit_length: bool,
    hidden: tuple[Float[np.ndarray, "d w"], Float[np.ndarray, " w"]] | None = None,
) -> ModelProto:
    """The trunk cut at `output` (`[n, d]`), then `softmax(x @ weight + bias)`.

    With `unit_length`, x is first divided by its length; a row of zeros stays. With a `hidden` layer (weight, bias), x is
    then `max(0, x @ weight + bias)`, of w instead of d features; the embedding stays what it was. `trunk` has the opset 13 to 17 (from 18
    on, ReduceL2 takes its axes in another way). Raises onnx.checker.ValidationError if the result is no valid graph.
    """
    model = cut(trunk, output)
    graph = model.graph
    if unit_length:
        graph.initializer.append(_constant(np.array([LEAST_LENGTH]), "graft_least_length"))
        graph.node.extend(
            [
                helper.make_node("ReduceL2", [output], ["graft_length"], axes=[1], keepdims=1),
                helper.make_node("Max", ["graft_length", "graft_least_length"], ["graft_divisor"]),
                helper.make_node("Div", [output, "graft_divisor"], [EMBEDDING]),
            ]
        )
    else:
        graph.node.append(helper.make_node("Identity", [output], [EMBEDDING]))
    read = EMBEDDING
    if hidden is not None:
        read = "graft_hidden"
        graph.initializer.extend(
            [_constant(hidden[0], "graft_hidden_weight"), _constant(hidden[1], "graft_hidden_bias")]
        )
        names = [EMBEDDING, "graft_hidden_weight", "graft_hidden_bias"]
        graph.node.append(helper.make_node("Gemm", names, ["graft_hidden_sum"]))
        graph.node.append(helper.make_node("Relu", ["graft_hidden_sum"], [read]))
    graph.initializer.extend([_constant(weight, "graft_head_weight"), _constant(bias, "graft_head_bias")])
    graph.node.extend(
        [
            helper.make_node("Gemm", [read, "graft_head_weight", "graft_head_bias"], ["graft_logits"]),
            helper.make_node("Softmax", ["graft_logits"], [PROBABILITIES], axis=-1),
        ]
    )
    del graph.output[:]
    features = (weight if hidden is None else hidden[0]).shape[0]
    classes = weight.shape[1]
    graph.output.extend(
        [
            helper.make_tensor_value_info(PROBABILITIES, TensorProto.FLOAT, ["n", classes]),
            helper.make_tensor_value_info(EMBEDDING, TensorProto.FLOAT, ["n", features]),
        ]
    )
    model.producer_name = "graft"
    onnx.checker.check_model(model)
    return model


def _constant(values: Float[np.ndarray, ...], name: str) -> TensorProto:
    return numpy_helper.from_array(np.ascontiguousarray(values, np.float32), name)
