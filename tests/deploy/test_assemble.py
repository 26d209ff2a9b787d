"""The assembled graph computes exactly what NumPy says, and holds nothing that is not needed."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from made_models import FEATURES, LABELS, TAP, features_of, head, model, noise, probabilities_of, trunk

from graft.backbones import graph
from graft.deploy.assemble import EMBEDDING, PROBABILITIES, assembled
from graft.deploy.bundle import INPUT
from graft.images.dataset import Preprocess
from graft.learning.ridge import unit

GEOMETRY = Preprocess(12)


def run(content: bytes, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    probabilities, embedding = session.run([PROBABILITIES, EMBEDDING], {INPUT: pixels})
    return probabilities, embedding


@pytest.mark.parametrize("unit_length", [True, False])
@pytest.mark.parametrize("channels", [1, 3])
def test_it_computes_what_numpy_says(unit_length: bool, channels: int) -> None:
    geometry = Preprocess(12, channels=channels)
    pixels = noise(7, geometry)
    probabilities, embedding = run(model(geometry, unit_length=unit_length), pixels)
    rows = features_of(pixels)
    np.testing.assert_allclose(
        probabilities, probabilities_of(pixels, unit_length=unit_length), rtol=1e-4, atol=1e-6
    )
    np.testing.assert_allclose(embedding, unit(rows) if unit_length else rows, rtol=1e-4, atol=1e-6)


def test_features_of_zero_give_the_biases_alone() -> None:
    """Black pixels have no direction; dividing by their length must not make a NaN."""
    probabilities, embedding = run(model(GEOMETRY), np.zeros((1, 12, 12, 3), np.uint8))
    assert (embedding == 0).all()
    np.testing.assert_allclose(probabilities, probabilities_of(np.zeros((1, 12, 12, 3), np.uint8)), rtol=1e-5)


def test_what_the_output_does_not_need_is_cut_off() -> None:
    weight, bias = head()
    made = assembled(trunk(12, 3), TAP, weight=weight, bias=bias, unit_length=True)
    assert "Exp" not in [node.op_type for node in made.graph.node]
    assert [output.name for output in made.graph.output] == [PROBABILITIES, EMBEDDING]
    assert [[d.dim_value for d in o.type.tensor_type.shape.dim][1:] for o in made.graph.output] == [
        [len(LABELS)],
        [FEATURES],
    ]
    onnx.checker.check_model(made, full_check=True)


def test_the_trunk_is_left_as_it_was() -> None:
    whole = trunk(12, 3)
    before = whole.SerializeToString()
    weight, bias = head()
    assembled(whole, TAP, weight=weight, bias=bias, unit_length=True)
    assert whole.SerializeToString() == before


def test_bundles_and_trunks_call_the_input_by_the_same_name() -> None:
    assert graph.INPUT == INPUT
