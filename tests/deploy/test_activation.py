"""The activation map adds up to the logit it explains, for every kind of head and pooling that can have one."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from made_models import FEATURES, LABELS, TAP, head, noise, trunk
from onnx import TensorProto, helper

from graft.backbones.export import export
from graft.backbones.opening import open_scratch
from graft.backbones.scratch import ScratchDesign, build
from graft.deploy.activation import NO_LINEAR_HEAD, NO_MAPS, with_activation
from graft.deploy.assemble import assembled
from graft.images.dataset import Preprocess

OUTPUTS = ["probabilities", "embedding", "activation"]


def run(model: onnx.ModelProto, pixels: np.ndarray) -> list[np.ndarray]:
    content = model.SerializeToString()
    return onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"]).run(
        OUTPUTS, {"image": pixels}
    )


def pooled(trunk: onnx.ModelProto, *nodes: onnx.NodeProto) -> onnx.ModelProto:
    """The tiny trunk with another way from its maps, `active`, to the tap."""
    graph = trunk.graph
    kept = [node for node in graph.node if node.output[0] not in ("pooled", TAP, "logits")]
    del graph.node[:]
    graph.node.extend([*kept, *nodes])
    del graph.output[1:]
    return trunk


def node(kind: str, inputs: list[str], output: str, **attributes: object) -> onnx.NodeProto:
    return helper.make_node(kind, inputs, [output], **attributes)


WAYS = {
    "global average": None,
    "mean": [node("ReduceMean", ["active"], TAP, axes=[2, 3], keepdims=0)],
    "mean of the last axes": [node("ReduceMean", ["active"], TAP, axes=[-2, -1], keepdims=0)],
    "channels last": [
        node("Transpose", ["active"], "last", perm=[0, 2, 3, 1]),
        node("ReduceMean", ["last"], TAP, axes=[1, 2], keepdims=0),
    ],
}


@pytest.mark.parametrize("unit_length", [True, False])
@pytest.mark.parametrize("way", WAYS, ids=str)
def test_its_mean_and_the_bias_are_the_logit(way: str, unit_length: bool) -> None:
    weight, bias = head()
    given = trunk(12, 3) if WAYS[way] is None else pooled(trunk(12, 3), *WAYS[way])
    model, reason = with_activation(assembled(given, TAP, weight=weight, bias=bias, unit_length=unit_length))
    assert reason == ""
    probabilities, embedding, activation = run(model, noise(5, Preprocess(12)))
    assert activation.shape == (5, len(LABELS), 10, 10)
    logits = embedding @ weight + bias
    np.testing.assert_allclose(activation.mean(axis=(2, 3)) + bias, logits, rtol=1e-4, atol=1e-4)
    assert activation.std(axis=(2, 3)).min() > 0
    assert (probabilities.argmax(axis=1) == logits.argmax(axis=1)).all()


def test_the_small_cnn_has_averages_maxima_and_levels() -> None:
    design = ScratchDesign(8, 3, 32, 3)
    network = build(design, seed=1)
    opened = open_scratch(network, design)
    features = opened.taps[-1].features
    generator = np.random.default_rng(0)
    weight, bias = generator.normal(size=(features, 3)).astype(np.float32), np.zeros(3)
    graph = onnx.load_from_string(export(opened, size=32))
    whole = assembled(graph, f"tap{opened.taps[-1].index}", weight=weight, bias=bias, unit_length=False)
    model, reason = with_activation(whole)
    assert reason == ""
    _, embedding, activation = run(model, noise(4, Preprocess(32)))
    placed = features - 4  # the levels of the image have no place in it
    expected = embedding[:, :placed] @ weight[:placed]
    np.testing.assert_allclose(activation.mean(axis=(2, 3)), expected, rtol=1e-3, atol=1e-3)


def test_what_can_have_none_says_why_and_stays_as_it_is() -> None:
    weight, bias = head()
    generator = np.random.default_rng(1)
    hidden = generator.normal(size=(FEATURES, 5)).astype(np.float32), np.zeros(5, np.float32)
    layered = assembled(trunk(12, 3), TAP, weight=weight[:5], bias=bias, unit_length=True, hidden=hidden)
    same, reason = with_activation(layered)
    assert reason == NO_LINEAR_HEAD and same is layered
    curved = pooled(
        trunk(12, 3),
        node("ReduceMean", ["active"], "mean", axes=[2, 3], keepdims=0),
        node("Tanh", ["mean"], TAP),
    )
    assert with_activation(assembled(curved, TAP, weight=weight, bias=bias, unit_length=True))[1] == NO_MAPS
    largest = pooled(trunk(12, 3), node("ReduceMax", ["active"], TAP, axes=[2, 3], keepdims=0))
    assert with_activation(assembled(largest, TAP, weight=weight, bias=bias, unit_length=True))[1] == NO_MAPS


def test_the_answers_do_not_change() -> None:
    weight, bias = head()
    plain = assembled(trunk(12, 3), TAP, weight=weight, bias=bias, unit_length=True)
    before = plain.SerializeToString()
    model, _ = with_activation(plain)
    assert plain.SerializeToString() == before
    pixels = noise(6, Preprocess(12))
    session = onnxruntime.InferenceSession(before, providers=["CPUExecutionProvider"])
    assert (run(model, pixels)[0] == session.run(["probabilities"], {"image": pixels})[0]).all()
    assert model.graph.output[-1].type.tensor_type.elem_type == TensorProto.FLOAT
