"""Several assembled models as one: they share the input and whatever is equal in them, and answer with their mean.

In: ONNX models as `graft.deploy.assemble.assembled` makes them, all with the same input and the same classes. Out: one
model with the same input and outputs: `probabilities` is the (weighted) mean of theirs, `embedding` theirs side by side, divided by
the root of their number, so that rows of length one stay of length one. What several of them compute in the same way from
the same input, such as a frozen prefix, is there once. Cost: reading every weight once.

Not covered: other ways to combine answers than a mean.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, compose, helper, numpy_helper

from graft.backbones.graph import INPUT
from graft.deploy.bundle import EMBEDDING, PROBABILITIES


def averaged(models: Sequence[ModelProto], *, weights: Sequence[float] | None = None) -> ModelProto:
    """The mean of at least two models, weighted by `weights` (positive, of sum one; default: all the same).

    Raises onnx.checker.ValidationError if the result is no valid graph.
    """
    parts = [compose.add_prefix(model, f"branch{number}_") for number, model in enumerate(models)]
    graphs = [part.graph for part in parts]
    for graph, number in zip(graphs, range(len(graphs)), strict=True):
        _renamed_input(graph, f"branch{number}_{INPUT}")
    whole = GraphProto()
    whole.CopyFrom(graphs[0])
    for graph in graphs[1:]:
        whole.node.extend(graph.node)
        whole.initializer.extend(graph.initializer)
    outputs = [entry for graph in graphs for entry in graph.output]
    widths = {entry.name: entry.type.tensor_type.shape.dim[1].dim_value for entry in outputs}
    _mean(whole, [f"branch{number}_" for number in range(len(graphs))], weights, widths)
    _shared(whole)
    model = ModelProto()
    model.CopyFrom(models[0])
    model.graph.CopyFrom(whole)
    _newest_operators(model, models)
    onnx.checker.check_model(model)
    return model


def _renamed_input(graph: GraphProto, name: str) -> None:
    """Let the branch read the input of all."""
    for entry in graph.input:
        entry.name = INPUT if entry.name == name else entry.name
    for node in graph.node:
        for place, read in enumerate(node.input):
            node.input[place] = INPUT if read == name else read


def _newest_operators(model: ModelProto, models: Sequence[ModelProto]) -> None:
    """Every set of operators that a branch needs; of 13 to 17, which trunks have, the newest reads them all."""
    needed: dict[str, int] = {}
    for one in models:
        for known in one.opset_import:
            needed[known.domain] = max(needed.get(known.domain, 0), known.version)
    del model.opset_import[:]
    model.opset_import.extend(helper.make_opsetid(domain, version) for domain, version in needed.items())
    model.ir_version = max(one.ir_version for one in models)


def _mean(
    graph: GraphProto,
    prefixes: Sequence[str],
    weights: Sequence[float] | None,
    widths: Mapping[str, int],
) -> None:
    """The outputs of all branches together; `widths`: how many columns each output has."""
    classes = widths[prefixes[0] + PROBABILITIES]
    features = sum(widths[prefix + EMBEDDING] for prefix in prefixes)
    scale = np.array([math.sqrt(len(prefixes))], np.float32)
    graph.initializer.append(numpy_helper.from_array(scale, "graft_branches"))
    answers = [prefix + PROBABILITIES for prefix in prefixes]
    combine = "Mean"
    if weights is not None:
        combine, answers = "Sum", [_weighed(graph, answer, weights[i]) for i, answer in enumerate(answers)]
    graph.node.extend(
        [
            helper.make_node(combine, answers, [PROBABILITIES]),
            helper.make_node("Concat", [prefix + EMBEDDING for prefix in prefixes], ["graft_sides"], axis=1),
            helper.make_node("Div", ["graft_sides", "graft_branches"], [EMBEDDING]),
        ]
    )
    del graph.output[:]
    for name, width in ((PROBABILITIES, classes), (EMBEDDING, features)):
        graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", width]))


def _weighed(graph: GraphProto, answer: str, weight: float) -> str:
    """The name of an answer times its weight."""
    graph.initializer.append(numpy_helper.from_array(np.array(weight, np.float32), f"{answer}_weight"))
    graph.node.append(helper.make_node("Mul", [answer, f"{answer}_weight"], [f"{answer}_weighed"]))
    return f"{answer}_weighed"


def _shared(graph: GraphProto) -> None:
    """Keep one of what is equal: constants of the same content, and nodes that do the same with the same inputs."""
    stands_for: dict[str, str] = {}
    known: dict[object, str] = {}
    constants = []
    for tensor in graph.initializer:
        content = hashlib.sha256(numpy_helper.to_array(tensor).tobytes()).hexdigest()
        first = known.setdefault((tensor.data_type, tuple(tensor.dims), content), tensor.name)
        stands_for[tensor.name] = first
        constants += [tensor] if first == tensor.name else []
    outputs = {entry.name for entry in graph.output}
    nodes = []
    seen: dict[object, NodeProto] = {}
    for node in graph.node:
        node.input[:] = [stands_for.get(name, name) for name in node.input]
        attributes = sorted(one.SerializeToString(deterministic=True) for one in node.attribute)
        same = (node.op_type, node.domain, tuple(node.input), tuple(attributes), len(node.output))
        first_node = seen.setdefault(same, node)
        if first_node is node or outputs & set(node.output):
            nodes.append(node)
        else:
            stands_for |= dict(zip(node.output, first_node.output, strict=True))
    kept_nodes, kept_constants = [_copy(node) for node in nodes], [_copy_tensor(one) for one in constants]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(kept_nodes)
    graph.initializer.extend(kept_constants)


def _copy(node: NodeProto) -> NodeProto:
    copy = NodeProto()
    copy.CopyFrom(node)
    return copy


def _copy_tensor(tensor: TensorProto) -> TensorProto:
    copy = TensorProto()
    copy.CopyFrom(tensor)
    return copy
