"""Weights of 4 bits: every code comes back through ONNX Runtime, the answers stay, the bytes are really fewer."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from made_graphs import OUTPUT, images, mobile
from onnx import ModelProto, TensorProto, helper, numpy_helper

from graft.deploy import codebook as chapter
from graft.deploy.codebook import codebook, coded, largest_layers, packed
from graft.deploy.quantise import LEVELS, PORTABLE_LEVELS, outputs_of, prepared, quantised
from graft.errors import BundleError

EVEN_SHAPES = arrays.array_shapes(min_dims=2, max_dims=4, max_side=6).filter(
    lambda shape: np.prod(shape) % 2 == 0
)


@pytest.fixture(scope="module")
def ready() -> ModelProto:
    return prepared(mobile(hidden=128), images(4))


def dequantising(weights: np.ndarray) -> ModelProto:
    graph = helper.make_graph(
        [helper.make_node("DequantizeLinear", ["w", "scale"], ["y"])],
        "g",
        [],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, list(weights.shape))],
        [numpy_helper.from_array(weights, "w"), numpy_helper.from_array(np.float32(1), "scale")],
    )
    return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 13)])


def answered(model: ModelProto) -> np.ndarray:
    onnx.checker.check_model(model)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {})[0])


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([12, PORTABLE_LEVELS, LEVELS]),
    arrays.arrays(np.int64, EVEN_SHAPES, elements=st.integers(0, 15)),
)
def test_every_code_comes_back_through_the_graph(levels: int, places: np.ndarray) -> None:
    weights = codebook(levels)[places].astype(np.int8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chapter, "LEAST_WEIGHTS", 2)
        made = coded(dequantising(weights), codebook(levels))
    held = [t for t in made.graph.initializer if t.data_type == TensorProto.UINT8]
    assert [len(t.raw_data) for t in held] == [weights.size // 2]
    np.testing.assert_array_equal(answered(made), weights.astype(np.float32))


@pytest.mark.parametrize("levels", [12, PORTABLE_LEVELS, LEVELS])
def test_the_codebook_ascends_from_end_to_end_with_zero_for_dead_channels(levels: int) -> None:
    book = codebook(levels)
    assert len(book) == 16 and (np.diff(book) > 0).all() and 0 in book
    assert (book[0], book[-1]) == (-levels, levels)
    assert packed(book.astype(np.int8), book).tolist() == [0x10 * (n + 1) + n for n in range(0, 16, 2)]


def test_what_does_not_fit_stays_as_it_is() -> None:
    book = codebook(PORTABLE_LEVELS)
    fitting = np.resize(book, (64, 64)).astype(np.int8)
    other = fitting.copy()
    other[3, 5] = 1
    for weights in (fitting[:32], np.resize(fitting, (63, 67)), other):
        assert coded(dequantising(weights), book) == dequantising(weights)
    assert coded(dequantising(fitting), book) != dequantising(fitting)


@pytest.mark.parametrize("reduce_range", [True, False])
def test_the_answers_are_those_of_the_same_weights_in_8_bits(
    ready: ModelProto, reduce_range: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chapter, "LEAST_WEIGHTS", 1_000)
    small = quantised(ready, images(), upto=[OUTPUT], reduce_range=reduce_range, weight_bits=4)
    monkeypatch.setattr("graft.deploy.quantise.coded", lambda model, book: model)
    plain = quantised(ready, images(), upto=[OUTPUT], reduce_range=reduce_range, weight_bits=4)
    fresh = images(5, seed=9)
    np.testing.assert_array_equal(outputs_of(small, fresh, OUTPUT), outputs_of(plain, fresh, OUTPUT))
    saved = 2 * 128 * 16 / 2
    assert plain.ByteSize() - small.ByteSize() > saved - 1_000
    assert small.opset_import[0].version == plain.opset_import[0].version


def test_near_the_float_network(ready: ModelProto, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chapter, "LEAST_WEIGHTS", 1_000)
    made = quantised(ready, images(), upto=[OUTPUT], weight_bits=4)
    fresh = images(12, seed=9)
    found, wanted = outputs_of(made, fresh, OUTPUT), outputs_of(ready, fresh, OUTPUT)
    assert np.linalg.norm(found - wanted) < 0.15 * np.linalg.norm(wanted)


def test_the_largest_layers_hold_the_share_and_those_with_groups_stay(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = prepared(mobile(hidden=512), images(4))
    nodes = {node.name: node for node in model.graph.node}
    chosen = largest_layers(model, nodes)
    dims = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    assert [dims[nodes[name].input[1]] for name in chosen] == [(512, 16, 1, 1), (16, 512, 1, 1)]
    monkeypatch.setattr(chapter, "SHARE", 0.3)
    assert largest_layers(model, nodes) == chosen[:1]
    assert largest_layers(model, []) == []


def test_a_network_of_small_layers_is_refused() -> None:
    with pytest.raises(BundleError, match="No convolution is large enough"):
        quantised(prepared(mobile(), images(2)), images(2), upto=[OUTPUT], weight_bits=4)
