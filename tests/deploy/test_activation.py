"""The activation map adds up to the logit it explains, for every kind of head and pooling that can have one."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from made_models import FEATURES, LABELS, TAP, head, noise, trunk
from onnx import TensorProto, helper, numpy_helper

from graft.backbones.export import export
from graft.backbones.opening import open_scratch
from graft.backbones.scratch import ScratchDesign, build
from graft.deploy.activation import (
    FINEST,
    NO_LINEAR_HEAD,
    NO_MAPS,
    spread_evenly,
    with_activation,
)
from graft.deploy.assemble import assembled
from graft.deploy.branches import averaged
from graft.deploy.lean import without_activation
from graft.deploy.quantise import prepared, quantised
from graft.deploy.reading import READING, maps_of, read_together
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


def deep(size: int, pool: int, *, quarters: bool = False) -> tuple[onnx.ModelProto, np.ndarray]:
    """The tiny network read at two depths, of which one has `pool` times fewer places a side, and the head's weight."""
    window = {"kernel_shape": [pool, pool], "strides": [pool, pool]}
    ways = [
        node("MaxPool", ["active"], "coarse", **window),
        node("ReduceMean", ["coarse"], TAP, axes=[2, 3], keepdims=0),
    ]
    maps = maps_of(pooled(trunk(size, 3), *ways), ["coarse", "active"])
    features = (8 if quarters else 4) * FEATURES
    weight = np.random.default_rng(4).normal(0, 4, (features, len(LABELS))).astype(np.float32)
    read = read_together(prepared(maps, noise(3, Preprocess(size))), quarters=[0] if quarters else [])
    return assembled(read, READING, weight=weight, bias=head()[1], unit_length=True), weight


@pytest.mark.parametrize(("size", "pool", "places"), [(12, 5, 10), (12, 3, 10), (40, 4, FINEST)])
def test_depths_of_several_sizes_add_up_to_the_logit(size: int, pool: int, places: int) -> None:
    whole, weight = deep(size, pool)
    model, reason = with_activation(whole)
    assert reason == ""
    _, embedding, activation = run(model, noise(5, Preprocess(size)))
    assert activation.shape == (5, len(LABELS), places, places)
    np.testing.assert_allclose(activation.mean(axis=(2, 3)), embedding @ weight, rtol=1e-4, atol=1e-4)
    assert activation.std(axis=(2, 3)).min() > 0


@pytest.mark.parametrize(("size", "pool"), [(12, 5), (12, 3), (40, 4), (23, 3)])
def test_quarters_add_up_to_the_logit_and_stay_in_their_quarter(size: int, pool: int) -> None:
    """Of an even side and of an odd one, whose middle lies in two quarters."""
    whole, weight = deep(size, pool, quarters=True)
    model, reason = with_activation(whole)
    assert reason == ""
    _, embedding, activation = run(model, noise(5, Preprocess(size)))
    np.testing.assert_allclose(activation.mean(axis=(2, 3)), embedding @ weight, rtol=1e-4, atol=1e-4)
    alone = weight.copy()
    alone[: 4 * FEATURES] = 0
    alone[4 * FEATURES :][np.arange(4 * FEATURES) % 4 != 3] = 0  # the last quarter: below, to the right
    one = next(tensor for tensor in model.graph.initializer if tensor.dims == list(weight.shape))
    one.CopyFrom(numpy_helper.from_array(alone, one.name))
    spoken = run(model, noise(5, Preprocess(size)))[2]
    assert np.abs(spoken[:, :, -1, -1]).max() > 0
    assert np.abs(spoken[:, :, [0, 0, -1], [0, -1, 0]]).max() == 0


def test_depths_in_8_bits_have_a_map_too() -> None:
    whole, weight = deep(40, 2)
    pixels = noise(8, Preprocess(40))
    small = quantised(prepared(whole, pixels), pixels, upto=["maps0", "maps1"])
    assert any(one.op_type == "QuantizeLinear" for one in small.graph.node)
    model, reason = with_activation(small)
    assert reason == ""
    _, embedding, activation = run(model, pixels)
    np.testing.assert_allclose(activation.mean(axis=(2, 3)), embedding @ weight, rtol=1e-4, atol=1e-4)


def test_averages_in_8_bits_have_a_map_up_to_their_rounding() -> None:
    weight, bias = head()
    whole = assembled(trunk(12, 3), TAP, weight=weight, bias=bias, unit_length=True)
    pixels = noise(8, Preprocess(12))
    small = quantised(prepared(whole, pixels), pixels, upto=[TAP])
    pooling = [one.input[0] for one in small.graph.node if one.op_type == "GlobalAveragePool"]
    assert any(one.op_type == "DequantizeLinear" and one.output[0] in pooling for one in small.graph.node)
    model, reason = with_activation(small)
    assert reason == ""
    _, embedding, activation = run(model, pixels)
    logits = embedding @ weight
    assert np.abs(activation.mean(axis=(2, 3)) - logits).max() < 0.02 * np.ptp(logits)


@pytest.mark.parametrize(("given", "wanted"), [(7, 28), (3, 10), (56, 28), (5, 4), (1, 6), (9, 9)])
def test_a_line_of_values_is_spread_without_loss(given: int, wanted: int) -> None:
    spread = spread_evenly(given, wanted)
    np.testing.assert_allclose(spread.sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(spread.mean(axis=0), 1 / given, rtol=1e-5)
    rising = spread @ np.arange(given)
    assert (np.diff(rising) >= 0).all()


def test_who_asks_for_answers_alone_does_not_compute_it() -> None:
    whole, _ = deep(12, 3)
    model, _ = with_activation(whole)
    lean = onnx.load_from_string(without_activation(model.SerializeToString()))
    assert list(lean.graph.node) == list(whole.graph.node)
    assert [output.name for output in lean.graph.output] == OUTPUTS[:2]
    for content in (b"", b"nothing", b"\x3a\xff", whole.SerializeToString()):
        assert without_activation(content) == content


@pytest.mark.parametrize("weights", [None, [0.75, 0.25]])
def test_several_networks_have_the_mean_of_their_maps(weights: list[float] | None) -> None:
    """A network of one depth and one of two, on maps of several sizes; each map adds up to its network's logit."""
    weight, bias = head()
    one = assembled(trunk(12, 3), TAP, weight=weight, bias=bias, unit_length=True)
    two, deep_weight = deep(12, 5)
    model, reason = with_activation(averaged([one, two], weights=weights))
    assert reason == ""
    _, embedding, activation = run(model, noise(5, Preprocess(12)))
    sides = embedding * np.sqrt(2)
    logits = sides[:, : len(weight)] @ weight, sides[:, len(weight) :] @ deep_weight
    first, second = weights or (0.5, 0.5)
    expected = first * logits[0] + second * logits[1]
    np.testing.assert_allclose(activation.mean(axis=(2, 3)), expected, rtol=1e-4, atol=1e-4)
    alone = run(with_activation(one)[0], noise(5, Preprocess(12)))[2]
    other = run(with_activation(two)[0], noise(5, Preprocess(12)))[2]
    np.testing.assert_allclose(activation, first * alone + second * other, rtol=1e-4, atol=1e-4)


def test_one_network_among_several_without_a_map() -> None:
    weight, bias = head()
    whole, _ = deep(12, 3)
    hidden = np.ones((FEATURES, 5), np.float32), np.zeros(5, np.float32)
    layered = assembled(trunk(12, 3), TAP, weight=weight[:5], bias=bias, unit_length=True, hidden=hidden)
    assert with_activation(averaged([whole, layered]))[1] == NO_LINEAR_HEAD


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
