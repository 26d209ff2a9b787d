"""Several models as one: the mean of their answers, and what is equal in them once."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from learning.made_cuts import opened

from graft.backbones.export import export
from graft.backbones.graph import tap_output
from graft.deploy.assemble import assembled
from graft.deploy.branches import averaged
from graft.learning.heads import Head, fresh_head

SIZE = 32


def branch(seed: int, *, hidden: bool = False) -> tuple[onnx.ModelProto, Head]:
    network = opened()
    tap = network.taps[-1]
    head = fresh_head("mlp" if hidden else "linear", tap.features, classes=3, unit_length=True, seed=seed)
    head = Head(20 * head.weight, head.bias, head.hidden_weight, head.hidden_bias)
    model = assembled(
        onnx.load_from_string(export(network, size=SIZE)),
        tap_output(tap.index),
        weight=head.weight,
        bias=head.bias,
        unit_length=True,
        hidden=head.hidden,
    )
    return model, head


def answers(model: onnx.ModelProto, pixels: np.ndarray) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(model.SerializeToString())
    return session.run(["probabilities", "embedding"], {"image": pixels})


@pytest.mark.parametrize("hidden", [False, True])
def test_the_answer_is_the_mean_and_the_trunk_is_there_once(hidden: bool) -> None:
    parts = [branch(seed, hidden=hidden)[0] for seed in range(3)]
    whole = averaged(parts)
    pixels = np.random.default_rng(0).integers(0, 256, (4, SIZE, SIZE, 3), dtype=np.uint8)
    each = [answers(part, pixels) for part in parts]
    probabilities, embedding = answers(whole, pixels)
    np.testing.assert_allclose(probabilities, np.mean([one[0] for one in each], axis=0), atol=1e-6)
    np.testing.assert_allclose(embedding * np.sqrt(3), np.hstack([one[1] for one in each]), atol=1e-6)
    sizes = [part.ByteSize() for part in parts]
    heads = sizes[0] - parts_without_head(parts[0])
    assert whole.ByteSize() < sizes[0] + 3 * heads + 4_000
    assert [entry.name for entry in whole.graph.input] == ["image"]


def parts_without_head(model: onnx.ModelProto) -> int:
    heads = sum(tensor.ByteSize() for tensor in model.graph.initializer if "graft" in tensor.name)
    return model.ByteSize() - heads


def test_a_hidden_layer_answers_as_the_head_does() -> None:
    model, head = branch(0, hidden=True)
    pixels = np.random.default_rng(1).integers(0, 256, (2, SIZE, SIZE, 3), dtype=np.uint8)
    probabilities, embedding = answers(model, pixels)
    np.testing.assert_allclose(probabilities, head.probabilities(embedding), atol=1e-5)
