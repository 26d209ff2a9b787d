"""The exported graph computes what torch computes, in one file, for any number of images, and is cut cleanly."""

from __future__ import annotations

import functools
import math

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from made_networks import SIZES, noise, opened
from onnx import ModelProto, TensorProto

from graft.backbones.export import export
from graft.backbones.graph import INPUT, LOGITS, cut, parameters, tap_output

ARCHITECTURES = (
    "mobilenetv3_small_050",
    "resnet18",
    "squeezenet1_1",
    "swin_tiny_patch4_window7_224",
    "vit_tiny_patch16_224",
)


@pytest.fixture(params=ARCHITECTURES)
def architecture(request: pytest.FixtureRequest) -> str:
    return request.param


@functools.cache
def exported(architecture: str) -> bytes:
    return export(opened(architecture), size=SIZES[architecture])


def model_of(architecture: str) -> ModelProto:
    return onnx.load_from_string(exported(architecture))


def answers(content: bytes, images: np.ndarray) -> dict[str, np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, {INPUT: images}), strict=True))


def assert_close(got: np.ndarray, expected: np.ndarray) -> None:
    assert got.shape == expected.shape
    assert np.linalg.norm(got - expected) <= 1e-4 * np.linalg.norm(expected)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_onnx_runtime_gives_what_torch_gives_for_any_number_of_images(architecture: str, count: int) -> None:
    images = noise(count, SIZES[architecture])
    with torch.no_grad():
        expected = opened(architecture).trunk(torch.from_numpy(images))
    got = answers(exported(architecture), images)
    assert list(got) == [tap_output(tap.index) for tap in opened(architecture).taps] + [LOGITS]
    for rows, wanted in zip(got.values(), expected, strict=True):
        assert_close(rows, wanted.numpy())


def test_a_cut_computes_its_tap_and_nothing_above_it(architecture: str) -> None:
    whole = model_of(architecture)
    images = noise(2, SIZES[architecture])
    everything = answers(exported(architecture), images)
    nodes, weights, sizes = [], [], []
    for name, expected in everything.items():
        part = cut(whole, name)
        onnx.checker.check_model(part, full_check=True)
        content = part.SerializeToString()
        assert [output.name for output in part.graph.output] == [name]
        np.testing.assert_allclose(answers(content, images)[name], expected, rtol=1e-4, atol=1e-5)
        used = {name for node in part.graph.node for name in node.input}
        assert {tensor.name for tensor in part.graph.initializer} <= used
        nodes.append(len(part.graph.node))
        weights.append(parameters(part))
        sizes.append(len(content))
    for sequence in (weights, sizes):
        assert sequence == sorted(sequence) and len(set(sequence)) == len(sequence), (
            "each cut is larger than the last"
        )
    assert nodes[0] < nodes[-1] < len(whole.graph.node)
    assert len(model_of(architecture).graph.node) == len(whole.graph.node), "the whole graph stays as it is"


def test_the_weights_lie_inside_the_one_file(architecture: str) -> None:
    model = model_of(architecture)
    assert all(tensor.data_location == TensorProto.DEFAULT for tensor in model.graph.initializer)
    assert len(exported(architecture)) > 4 * parameters(model)
    (image,) = model.graph.input
    size = SIZES[architecture]
    dimensions = image.type.tensor_type.shape.dim
    assert (dimensions[0].dim_param, *(d.dim_value for d in dimensions[1:])) == ("n", size, size, 3)
    assert image.type.tensor_type.elem_type == TensorProto.UINT8


def without_batch_norm(network: torch.nn.Module) -> int:
    """The weights once every batch norm is folded into the convolution before it, which thereby gets a bias."""
    total = sum(parameter.numel() for parameter in network.parameters())
    folded = [m for m in network.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    return total - sum(norm.num_features for norm in folded)


@pytest.mark.parametrize("architecture", ["resnet18", "squeezenet1_1", "mobilenetv3_small_050"])
def test_parameters_are_those_of_torch_with_batch_norm_folded(architecture: str) -> None:
    network = opened(architecture).trunk.network
    normalisation = 2 * 3  # mean and std of the three channels
    assert parameters(model_of(architecture)) == without_batch_norm(network) + normalisation


@pytest.mark.parametrize("architecture", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"])
def test_parameters_of_transformers_are_those_of_torch_but_for_constants(architecture: str) -> None:
    """Swin's tables of position biases are written out per pair of positions."""
    expected = sum(parameter.numel() for parameter in opened(architecture).trunk.network.parameters())
    assert parameters(model_of(architecture)) == pytest.approx(
        expected, rel=0.001 if "vit" in architecture else 0.5
    )


def test_only_floating_point_tensors_of_several_elements_are_counted() -> None:
    def tensor(name: str, kind: int, *dims: int) -> TensorProto:
        return onnx.helper.make_tensor(name, kind, dims, [0] * math.prod(dims))

    tensors = [
        tensor("weight", TensorProto.FLOAT, 3, 4),
        tensor("half", TensorProto.FLOAT16, 5),
        tensor("shape", TensorProto.INT64, 2),
        tensor("epsilon", TensorProto.FLOAT),
        tensor("factor", TensorProto.FLOAT, 1),
    ]
    graph = onnx.helper.make_graph([], "weights", [], [], tensors)
    assert parameters(onnx.helper.make_model(graph)) == 12 + 5
