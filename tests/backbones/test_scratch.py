"""The network from scratch: size, stages, seeds, and the way out to ONNX."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from graft.backbones.scratch import ScratchDesign, build, design
from graft.images.dataset import Dataset, ImageReference


def dataset(*, side: int, grey: bool = False, images: int = 6, classes: int = 3) -> Dataset:
    return Dataset(
        root=Path(),
        images=tuple(ImageReference(Path(f"{i}.png"), f"{i}.png", f"{i:040x}") for i in range(images)),
        classes=tuple(f"class {i}" for i in range(classes)),
        targets=np.arange(images) % classes,
        groups=np.arange(images),
        splits=("train",) * images,
        widths=np.full(images, side),
        heights=np.full(images, side),
        grey=np.full(images, grey),
        issues=(),
    )


@pytest.mark.parametrize(
    ("side", "grey", "size"),
    [(1, True, 32), (28, True, 32), (64, False, 64), (300, False, 96), (300, True, 96), (4000, False, 96)],
)
def test_the_input_follows_the_images(side: int, grey: bool, size: int) -> None:
    made, geometry = design(dataset(side=side, grey=grey), development=500)
    assert (made.size, made.channels) == (size, 1 if grey else 3)
    assert (geometry.size, geometry.channels) == (made.size, made.channels)
    assert made.classes == 3


@pytest.mark.parametrize("classes", [2, 101])
@pytest.mark.parametrize("development", [20, 2_000, 50_000])
def test_it_is_small_whatever_the_data(classes: int, development: int) -> None:
    made, _ = design(dataset(side=300, classes=classes), development=development)
    parameters = sum(weight.numel() for weight in build(made, seed=0).parameters())
    assert 800_000 <= parameters <= 1_000_000


@pytest.mark.parametrize("size", [32, 64, 96, 132])
def test_every_stage_ends_where_the_map_shrinks(size: int) -> None:
    network = build(ScratchDesign(8, 3, size, 4), seed=0).eval()
    images = torch.rand(2, 3, size, size)
    maps = network.stem(images)
    sides = []
    for stage in network.stages:
        maps = stage(maps)
        sides.append(maps.shape[-1])
    assert sides == sorted(set(sides), reverse=True)
    assert network.forward_features(images).shape == maps.shape
    torch.testing.assert_close(network(images), network.head(network.embed(images)))


def test_exposure_goes_to_the_head_alone() -> None:
    network = build(ScratchDesign(8, 1, 32, 2), seed=0).eval()
    images = torch.rand(2, 1, 32, 32)
    maps = network.forward_features(images)
    torch.testing.assert_close(network.forward_features(images * 0.8 + 0.1), maps, atol=0.05, rtol=0.2)
    one, other = network.embed(images), network.embed(images + 0.1)
    torch.testing.assert_close(other[:, -2], one[:, -2] + 0.4)
    torch.testing.assert_close(other[:, :-2], one[:, :-2], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_a_flat_image_is_no_accident(value: float) -> None:
    network = build(ScratchDesign(8, 3, 32, 2), seed=0).eval()
    assert bool(network(torch.full((1, 3, 32, 32), value)).isfinite().all())


@pytest.mark.parametrize("size", [32, 64, 96])
@pytest.mark.parametrize("depth", [1, 2])
def test_multiply_adds_are_those_of_the_convolutions(size: int, depth: int) -> None:
    """Counted by what the convolutions outside the shortcuts really put out."""
    made = ScratchDesign(16, 3, size, 5, depth)
    network = build(made, seed=0).eval()
    counted = 0

    def count(module: torch.nn.Module, _: object, output: torch.Tensor) -> None:
        nonlocal counted
        assert isinstance(module, torch.nn.Conv2d)
        counted += module.weight.numel() * output.shape[2] * output.shape[3]

    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d) and module.kernel_size == (3, 3):
            module.register_forward_hook(count)
    network(torch.rand(1, 3, size, size))
    assert made.multiply_adds == counted


def test_weights_are_a_function_of_the_seed() -> None:
    made = ScratchDesign(8, 3, 32, 4)
    before = torch.get_rng_state()
    one, same, other = build(made, seed=1), build(made, seed=1), build(made, seed=2)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
    assert not torch.equal(one.stem[0].weight, other.stem[0].weight)


def test_row_i_does_not_depend_on_row_j() -> None:
    network = build(ScratchDesign(8, 3, 32, 4), seed=0).eval()
    images = torch.rand(3, 3, 32, 32)
    torch.testing.assert_close(network(images)[1:2], network(images[1:2]), rtol=1e-4, atol=1e-5)


def test_keys_differ_with_every_field() -> None:
    made = ScratchDesign(16, 3, 96, 4)
    others = [
        replace(made, width=20),
        replace(made, channels=1),
        replace(made, size=64),
        replace(made, classes=5),
        replace(made, depth=2),
    ]
    assert len({made.key, *(other.key for other in others)}) == 6


@pytest.mark.parametrize("size", [32, 96])
def test_onnx_says_the_same_for_any_batch(tmp_path: Path, size: int) -> None:
    import onnxruntime

    network = build(ScratchDesign(16, 3, size, 7), seed=0)
    network.train()(torch.rand(8, 3, size, size))  # statistics other than the initial ones
    network.eval()
    path = tmp_path / "scratch.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(
            network,
            (torch.rand(2, 3, size, size),),
            str(path),
            dynamo=False,
            opset_version=17,
            input_names=["images"],
            output_names=["logits"],
            dynamic_axes={"images": {0: "n"}, "logits": {0: "n"}},
        )
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for n in (1, 5):
        images = torch.rand(n, 3, size, size)
        (found,) = session.run(None, {"images": images.numpy()})
        with torch.inference_mode():
            expected = network(images).numpy()
        np.testing.assert_allclose(found, expected, atol=1e-4)
