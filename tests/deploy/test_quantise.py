"""8 bits: near the float network, smaller, the same for any batch, and on the grid that is asked for."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_graphs import OUTPUT, images, mobile
from onnx import ModelProto, TensorProto, helper, numpy_helper

from graft.deploy import rounding
from graft.deploy.codebook import codebook
from graft.deploy.quantise import compacted, outputs_of, prepared, pruned, quantised, spread
from graft.deploy.rounding import even, on_grid, rounded
from graft.errors import BundleError


def error(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


@pytest.fixture(scope="module")
def ready() -> ModelProto:
    return prepared(mobile(), images(4))


@pytest.mark.parametrize(("reduce_range", "most"), [(True, 64), (False, 127)])
def test_near_the_float_network_smaller_and_within_the_bits(
    ready: ModelProto, reduce_range: bool, most: int
) -> None:
    made = quantised(ready, images(), upto=[OUTPUT], reduce_range=reduce_range)
    fresh = images(12, seed=9)
    assert error(outputs_of(made, fresh, OUTPUT), outputs_of(ready, fresh, OUTPUT)) < 0.05
    weights = [
        numpy_helper.to_array(t)
        for t in made.graph.initializer
        if t.data_type == TensorProto.INT8 and len(t.dims) == 4
    ]
    assert len(weights) == 5 and max(np.abs(w).max() for w in weights) == most
    assert sum(op.op_type == "QuantizeLinear" for op in made.graph.node) >= 5


def test_any_number_of_images_and_the_same_answers_twice(ready: ModelProto) -> None:
    made = quantised(ready, images(), upto=[OUTPUT])
    again = quantised(ready, images(), upto=[OUTPUT])
    assert made.SerializeToString() == again.SerializeToString()
    pixels = images(5, seed=4)
    together = outputs_of(made, pixels, OUTPUT)
    alone = np.concatenate([outputs_of(made, pixels[i : i + 1], OUTPUT) for i in range(5)])
    np.testing.assert_allclose(together, alone, rtol=1e-5)


def test_rounding_layer_by_layer_is_better_than_every_weight_alone(ready: ModelProto) -> None:
    pixels = images()
    layers = frozenset(node.name for node in ready.graph.node if node.op_type == "Conv")
    plain = ModelProto()
    plain.CopyFrom(ready)
    for tensor in plain.graph.initializer:
        if len(tensor.dims) == 4:
            weights = numpy_helper.to_array(tensor)
            step = np.abs(weights).max(axis=(1, 2, 3), keepdims=True) / 8
            tensor.CopyFrom(
                numpy_helper.from_array((np.round(weights / step) * step).astype(np.float32), tensor.name)
            )
    wanted = outputs_of(ready, pixels, OUTPUT)
    careful = rounded(ready, pixels, grids=dict.fromkeys(layers, even(8)))
    assert error(outputs_of(careful, pixels, OUTPUT), wanted) < 0.6 * error(
        outputs_of(plain, pixels, OUTPUT), wanted
    )


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 127), st.integers(1, 3), st.integers(1, 6))
def test_on_grid_is_on_the_grid_and_reaches_its_end(
    seed: int, levels: int, outputs: int, inputs: int
) -> None:
    random = np.random.default_rng(seed)
    weights = random.normal(0, 1, (2, outputs, inputs))
    found = on_grid(weights, random.normal(0, 1, (2, 40, inputs)), even(levels))
    largest, end = (np.abs(one).max(axis=2, keepdims=True) for one in (weights, found))
    steps = found / end * levels
    np.testing.assert_allclose(steps, np.round(steps), atol=1e-6)
    assert (end <= largest * (1 + 1e-9)).all() and (end >= largest * (0.5 - 1e-9)).all()


def test_a_grid_of_few_levels_ends_before_the_largest_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    weights, inputs = random.standard_t(4, (1, 8, 200)), random.normal(0, 1, (1, 500, 200))
    wanted = inputs[0] @ weights[0].T
    ending = on_grid(weights, inputs, codebook(64))
    monkeypatch.setattr(rounding, "ENDS", (1.0,))
    whole = on_grid(weights, inputs, codebook(64))
    assert (np.abs(ending).max(axis=2) < np.abs(weights).max(axis=2)).all()
    assert error(inputs[0] @ ending[0].T, wanted) < 0.95 * error(inputs[0] @ whole[0].T, wanted)


def test_scales_of_biases_are_multiplied_and_change_nothing(
    ready: ModelProto, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = quantised(ready, images(), upto=[OUTPUT])
    monkeypatch.setattr("graft.deploy.quantise.with_computed_bias_scales", lambda model: model)
    held = quantised(ready, images(), upto=[OUTPUT])
    assert sum(node.op_type == "Mul" for node in made.graph.node) == 5
    fresh = images(5, seed=9)
    np.testing.assert_array_equal(outputs_of(made, fresh, OUTPUT), outputs_of(held, fresh, OUTPUT))
    floats = [
        sum(int(np.prod(t.dims)) for t in model.graph.initializer if t.data_type == TensorProto.FLOAT)
        for model in (made, held)
    ]
    assert floats[1] - floats[0] == 16 + 32 + 32 + 16 + 24


def test_compacted_keeps_what_is_said_and_holds_equal_constants_once() -> None:
    ones = np.ones(3, np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Add", ["x", "a_long_name"], ["between_them"], name="a name"),
            helper.make_node("Add", ["between_them", "another_name"], ["y"]),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])],
        [numpy_helper.from_array(ones, name) for name in ("a_long_name", "another_name", "unused")],
    )
    made = compacted(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]))
    assert len(made.graph.initializer) == 1
    assert [value.name for value in (*made.graph.input, *made.graph.output)] == ["x", "y"]
    assert not any(node.name for node in made.graph.node)


def test_prepared_gives_every_convolution_constants_of_its_own() -> None:
    """Whoever corrects the bias of one means that one."""
    model = mobile()
    sizes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    first, *others = [node for node in model.graph.node if node.op_type == "Conv"]
    alike = [node for node in others if sizes[node.input[2]] == sizes[first.input[2]]]
    for node in alike:
        node.input[2] = first.input[2]
    assert alike
    ready = prepared(model, images(4))
    held = [name for node in ready.graph.node if node.op_type == "Conv" for name in node.input[1:]]
    assert len(held) == len(set(held))
    found, wanted = (outputs_of(one, images(4, seed=3), OUTPUT) for one in (ready, model))
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_pruned_leaves_only_what_an_output_needs() -> None:
    model = mobile()
    model.graph.output.append(
        helper.make_tensor_value_info("sum", TensorProto.FLOAT, ["n", None, None, None])
    )
    made = pruned(model, ["sum"])
    assert [value.name for value in made.graph.output] == ["sum"]
    assert "last" not in {node.name for node in made.graph.node}
    assert "last.w" not in {tensor.name for tensor in made.graph.initializer}


def test_a_graph_without_a_convolution_is_refused() -> None:
    graph = helper.make_graph(
        [helper.make_node("Cast", ["image"], ["y"], to=TensorProto.FLOAT)],
        "g",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["n", 4, 4, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4, 4, 3])],
    )
    with pytest.raises(BundleError, match="no convolution"):
        quantised(helper.make_model(graph), images(2), upto=["y"])


def test_spread_takes_the_first_and_the_last() -> None:
    pixels = images(10)
    chosen = spread(pixels, 3)
    assert (chosen[0] == pixels[0]).all() and (chosen[-1] == pixels[-1]).all() and len(chosen) == 3
