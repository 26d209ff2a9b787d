"""`preprocess.onnx` gives the pixels of the Pillow path, within one grey level on average, whatever the picture's size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from graft.deploy import preprocess_graph as module
from graft.deploy.preprocess_graph import IR_VERSION, OPSET, PICTURE, preprocess_graph
from graft.images import preprocess as pillow
from graft.images.dataset import Preprocess
from graft.images.decode import read
from graft.images.preprocess import load, prepare

SESSIONS: dict[Preprocess, Any] = {}


def by_graph(picture: np.ndarray, preprocess: Preprocess) -> np.ndarray:
    if preprocess not in SESSIONS:
        content = preprocess_graph(preprocess).SerializeToString()
        SESSIONS[preprocess] = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    (image,) = SESSIONS[preprocess].run(None, {PICTURE: picture})
    assert image.dtype == np.uint8
    return image[0]


def difference(picture: np.ndarray, preprocess: Preprocess) -> float:
    """The mean difference to Pillow in grey levels."""
    return float(
        np.abs(by_graph(picture, preprocess).astype(int) - load(picture, preprocess).astype(int)).mean()
    )


def made(high: int, wide: int, channels: int, seed: int = 0) -> np.ndarray:
    """Soft blobs with some noise, as a photo has."""
    generator = np.random.default_rng(seed)
    planes = []
    for _ in range(channels):
        small = generator.integers(0, 256, (max(2, high // 9), max(2, wide // 9)), dtype=np.uint8)
        planes.append(np.asarray(Image.fromarray(small).resize((wide, high), Image.Resampling.BICUBIC)))
    rough = generator.integers(-6, 7, (high, wide, channels), dtype=np.int16)
    return np.clip(np.stack(planes, axis=-1) + rough, 0, 255).astype(np.uint8)


GEOMETRIES = [
    Preprocess(size, fit=fit, crop_share=share, interpolation=interpolation, channels=channels)
    for fit in ("crop", "squash", "pad")
    for size, share, interpolation, channels in (
        (48, 0.875, "bicubic", 3),
        (32, 1.0, "bilinear", 1),
        (33, 0.95, "bilinear", 3),
        (31, 0.9, "bicubic", 1),
    )
]


@settings(max_examples=40, deadline=None)
@given(
    high=st.integers(4, 200),
    wide=st.integers(4, 200),
    channels=st.sampled_from([1, 3, 4]),
    which=st.integers(0, len(GEOMETRIES) - 1),
    seed=st.integers(0, 5),
)
def test_any_size(high: int, wide: int, channels: int, which: int, seed: int) -> None:
    assert difference(made(high, wide, channels, seed), GEOMETRIES[which]) < 1


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_grey_with_alpha_is_grey_on_white(geometry: Preprocess) -> None:
    picture = made(50, 70, 2)
    seen = load(Image.fromarray(picture, "LA"), geometry)
    assert np.abs(by_graph(picture, geometry).astype(int) - seen.astype(int)).mean() < 0.6


def test_more_than_four_channels_are_refused() -> None:
    for channels in (5, 6, 9):
        with pytest.raises(Exception, match="out of data bounds"):
            by_graph(made(20, 20, channels), GEOMETRIES[0])


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_odd_sizes(geometry: Preprocess) -> None:
    side = geometry.size
    shapes = ((4, 4), (4, 300), (300, 4), (side, side), (side + 1, side - 1), (601, 300))
    for high, wide in shapes:
        for channels in (1, 3, 4):
            assert difference(made(high, wide, channels), geometry) < 0.6, (high, wide, channels)


def test_the_pixels_of_the_right_size_stay_as_they_are() -> None:
    picture = made(48, 48, 3)
    assert (by_graph(picture, Preprocess(48, fit="squash")) == picture).all()


def test_a_large_picture_is_averaged_first_as_pillow_does() -> None:
    assert difference(made(1300, 1900, 3), Preprocess(48, crop_share=0.875)) < 0.1


def test_white_is_under_what_is_transparent() -> None:
    picture = np.zeros((40, 40, 4), np.uint8)
    assert (by_graph(picture, Preprocess(16)) == 255).all()
    picture[..., 3] = 255
    assert (by_graph(picture, Preprocess(16)) == 0).all()


def test_real_photos_read_as_graft_reads_them(shared_data: Path) -> None:
    """Also where a JPEG is decoded at a reduced scale for Graft, but in full for the graph."""
    photos = sorted((shared_data / "hymenoptera" / "val" / "bees").glob("*.jpg"))[:6]
    if not photos:
        pytest.skip("the given hymenoptera photos are not beside the checkout")
    decoded = []
    for geometry in (
        Preprocess(224, crop_share=0.875),
        Preprocess(96, fit="squash"),
        Preprocess(64, fit="pad"),
    ):
        for photo in photos:
            image = read(photo)
            given = by_graph(np.array(image.convert("RGB")), geometry).astype(int)
            assert np.abs(given - prepare(image, geometry)).mean() < 0.3, photo.name
            decoded.append(np.abs(given - load(photo, geometry)).mean())
    assert np.mean(decoded) < 1 and max(decoded) < 2


def test_it_asks_for_no_newer_runtime_than_it_says() -> None:
    model = preprocess_graph(Preprocess(224))
    assert model.ir_version == IR_VERSION and [each.version for each in model.opset_import] == [OPSET]
    onnx.checker.check_model(model, full_check=True)
    assert len(model.SerializeToString()) < 12_000
    assert module.GAP == pillow._REDUCING_GAP
