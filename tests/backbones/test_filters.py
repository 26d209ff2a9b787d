"""Edges are where the luminance changes, in 0..1, one pixel wide where they are thin, alike in every runtime."""

from __future__ import annotations

import io
import warnings
from typing import Literal

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from graft.backbones import filters
from graft.backbones.filters import Looking, Sobel, ThinEdges
from graft.backbones.inputs import INPUTS, Look, input_word, read_as, seen_channels
from graft.errors import SettingsError
from graft.images.dataset import Preprocess

LOOKS: tuple[Look, ...] = ("edges", "thin", "plain+edges", "plain+thin")


def step(*, down: bool = False, dark: float = 0.2, bright: float = 0.8) -> torch.Tensor:
    """A grey image `[1, 1, 32, 32]` that is dark up to its middle and bright from there."""
    image = torch.full((1, 1, 32, 32), dark)
    image[..., 16:] = bright
    return image.mT.contiguous() if down else image


def disc(size: int = 64) -> torch.Tensor:
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    soft = np.clip(20.5 - np.hypot(y, x), 0, 1)
    return torch.from_numpy(soft[None, None].astype(np.float32))


@pytest.mark.parametrize("network", [Sobel(), ThinEdges()])
@pytest.mark.parametrize("channels", [1, 3])
def test_flat_images_have_no_edges(network: torch.nn.Module, channels: int) -> None:
    for level in (0.0, 0.37, 1.0):
        edges = network(torch.full((2, channels, 16, 16), level))
        assert edges.shape == (2, 1, 16, 16)
        assert float(edges.abs().max()) < 1e-4


def test_the_magnitude_is_the_height_of_a_step() -> None:
    edges = Sobel()(step(dark=0.0, bright=1.0))[0, 0]
    assert torch.equal(edges[:, 15:17], torch.ones(32, 2))
    assert float(edges[:, :15].max()) == float(edges[:, 17:].max()) == 0.0
    assert Sobel()(step())[0, 0, 5, 15] == pytest.approx(0.6, abs=1e-6)


def test_colour_counts_by_its_luminance() -> None:
    red_to_green = torch.zeros(1, 3, 8, 8)
    red_to_green[:, 0, :, :4] = 1.0
    red_to_green[:, 1, :, 4:] = 1.0
    assert Sobel()(red_to_green)[0, 0, 4, 4] == pytest.approx(0.587 - 0.299, abs=1e-6)


@pytest.mark.parametrize("down", [False, True])
@pytest.mark.parametrize("levels", [(0.2, 0.8), (0.8, 0.2), (0.45, 0.55)])
def test_a_step_is_one_line_of_one_pixel(levels: tuple[float, float], down: bool) -> None:
    edges = ThinEdges()(step(down=down, dark=levels[0], bright=levels[1]))[0, 0]
    across = edges.T if down else edges
    assert torch.allclose(across.sum(dim=1), torch.ones(32), atol=1e-3)
    assert torch.allclose(across[:, 15], torch.ones(32), atol=1e-3)


def test_a_disc_is_a_closed_line_about_one_pixel_wide() -> None:
    edges = ThinEdges()(disc())[0, 0].numpy()
    y, x = np.mgrid[:64, :64] - 31.5
    radius = np.hypot(y, x)
    assert edges[np.abs(radius - 20) > 1.6].max() < 1e-3
    angles = np.floor((np.arctan2(y, x) + np.pi) / (2 * np.pi) * 48).astype(int) % 48
    strongest = [edges[(angles == part) & (np.abs(radius - 20) <= 1.6)].max() for part in range(48)]
    assert min(strongest) > 0.5
    assert edges.sum() == pytest.approx(2 * np.pi * 20, rel=0.2)


def test_weak_edges_stay_where_they_touch_a_strong_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step that fades away: the strong part of its line carries the weak one a few pixels further."""
    image = torch.zeros(1, 1, 48, 48)
    image[..., 16:, :] = torch.linspace(0.9, 0.0, 48)
    carried = ThinEdges()(image)[0, 0].sum(dim=0)
    monkeypatch.setattr(filters, "ROUNDS", 0)
    alone = ThinEdges()(image)[0, 0].sum(dim=0)
    full = [int((line > 0.95).sum()) for line in (alone, carried)]
    assert 0 < full[0] < full[1] < 48
    assert float(carried[-2:].max()) < 0.5


@given(
    arrays.arrays(
        np.float32,
        st.tuples(st.just(1), st.sampled_from([1, 3]), st.integers(4, 12), st.integers(4, 12)),
        elements=st.floats(0, 1, width=32),
    )
)
@settings(max_examples=60, deadline=None)
def test_edges_are_in_0_to_1(image: np.ndarray) -> None:
    for network in (Sobel(), ThinEdges()):
        edges = network(torch.from_numpy(image))
        assert edges.shape == (1, 1, *image.shape[2:])
        assert bool(torch.isfinite(edges).all())
        assert float(edges.min()) >= 0.0
        assert float(edges.max()) <= 1.0


def exported(look: Look, channels: int) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Looking(look),
            (torch.zeros(2, channels, 40, 40),),
            buffer,  # type: ignore[arg-type]
            dynamo=False,
            opset_version=17,
            input_names=["x"],
            output_names=["seen"],
            dynamic_axes={"x": {0: "n"}, "seen": {0: "n"}},
        )
    return buffer.getvalue()


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("channels", [1, 3])
def test_torch_onnx_runtime_and_openvino_see_the_same(look: Look, channels: Literal[1, 3]) -> None:
    import openvino

    draw = torch.Generator().manual_seed(1)
    coarse = torch.rand(3, channels, 10, 10, generator=draw)
    images = torch.nn.functional.interpolate(coarse, size=40, mode="bilinear")
    images[2] = step()[0, :, :1, :1].expand(channels, 40, 40)  # a flat one
    images[1, ..., 20:] = 1.0
    content = exported(look, channels)
    expected = Looking(look)(images).numpy()
    assert expected.shape[1] == seen_channels(channels, look)
    assert onnx.load_from_string(content).opset_import[0].version <= 17
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(None, {"x": images.numpy()})[0], expected, atol=1e-4)
    model = openvino.Core().read_model(io.BytesIO(content))
    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    np.testing.assert_allclose(compiled(images.numpy())[0], expected, atol=1e-4)


@pytest.mark.parametrize("word", [*INPUTS, "gray+edges", "gray+thin"])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_word_leads_to_what_it_says(word: str, channels: Literal[1, 3]) -> None:
    plain = Preprocess(size=64, fit="squash", channels=channels)
    geometry, look = read_as(word, plain)
    assert (geometry.size, geometry.fit) == (64, "squash")
    told = input_word(geometry, look)
    assert told == (word if channels == 3 else word.replace("rgb", "gray"))
    assert read_as(told, geometry) == (geometry, look)


def test_another_word_is_refused_with_those_there_are() -> None:
    with pytest.raises(SettingsError, match=r"rgb, gray, edges, rgb\+edges, thin, rgb\+thin"):
        read_as("depth", Preprocess(size=64))
