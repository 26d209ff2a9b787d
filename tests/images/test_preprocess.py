"""The geometry does what the record promises, for every kind of source alike, and costs no quality."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from graft.errors import DatasetError
from graft.images.dataset import Preprocess
from graft.images.decode import UnreadableImage, read, read_with_size
from graft.images.preprocess import hint_side, load, prepare


def ramp(width: int, height: int) -> Image.Image:
    """Red grows to the right, green downwards."""
    across, down = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.dstack([across, down, np.full_like(down, 90)]).round().astype(np.uint8))


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (height // 4, width // 4, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("fit", ["crop", "squash", "pad"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_shape_and_type(fit: str, channels: int, mode: str) -> None:
    pixels = prepare(photo(90, 50).convert(mode), Preprocess(32, fit=fit, channels=channels))
    assert pixels.shape == (32, 32, channels)
    assert pixels.dtype == np.uint8


def test_crop_without_scaling_is_the_exact_centre() -> None:
    image = photo(100, 40)
    pixels = prepare(image, Preprocess(20, crop_share=0.5))
    assert np.array_equal(pixels, np.asarray(image)[10:30, 40:60])


@pytest.mark.parametrize(("width", "height"), [(192, 128), (128, 192), (320, 256), (48, 32), (576, 384)])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_crop_equals_resizing_first_and_cutting_then(width: int, height: int, interpolation: str) -> None:
    image = photo(width, height)
    short, size = 64, 56  # 56 / 0.875 = 64, and these shapes leave no fractions of pixels
    resample = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}[interpolation]
    whole = image.resize(
        (width * short // min(width, height), height * short // min(width, height)), resample
    )
    left, top = (whole.width - size) // 2, (whole.height - size) // 2
    expected = np.asarray(whole)[top : top + size, left : left + size].astype(int)
    pixels = prepare(image, Preprocess(size, interpolation=interpolation))
    difference = np.abs(pixels.astype(int) - expected)
    assert difference.max() <= 1
    assert difference.mean() < 0.1


def test_crop_keeps_the_centre_and_the_proportions() -> None:
    pixels = prepare(ramp(400, 200), Preprocess(64)).astype(float)
    assert abs(pixels[..., 0].mean() - 127.5) < 1
    assert abs(pixels[..., 1].mean() - 127.5) < 1
    assert abs(np.ptp(pixels[32, :, 0]) - 255 * 0.875 * 200 / 400) < 4
    assert abs(np.ptp(pixels[:, 32, 1]) - 255 * 0.875) < 4


def test_crop_of_one_cuts_the_largest_square() -> None:
    pixels = prepare(ramp(400, 200), Preprocess(64, crop_share=1.0)).astype(float)
    assert pixels[0, 32, 1] < 3
    assert pixels[-1, 32, 1] > 252


def test_squash_shows_everything() -> None:
    pixels = prepare(ramp(400, 200), Preprocess(64, fit="squash")).astype(float)
    assert pixels[0, 0, 0] < 3 and pixels[0, -1, 0] > 252
    assert pixels[0, 0, 1] < 3 and pixels[-1, 0, 1] > 252


@pytest.mark.parametrize(("width", "height"), [(400, 200), (200, 400)])
def test_pad_shows_everything_undistorted_on_mid_grey(width: int, height: int) -> None:
    pixels = prepare(ramp(width, height), Preprocess(64, fit="pad"))
    along = pixels if width > height else pixels.transpose(1, 0, 2)
    assert (along[:16] == 128).all() and (along[48:] == 128).all()
    inner = along[16:48]
    assert (inner[..., 2] == 90).all()
    edge = 0 if width > height else 1
    assert inner[0, 0, edge] < 4 and inner[0, -1, edge] > 251


def test_pad_of_an_extreme_shape_keeps_a_line() -> None:
    pixels = prepare(Image.new("L", (2000, 4), 255), Preprocess(32, fit="pad", channels=1))
    assert (pixels == 255).any(axis=(1, 2)).sum() == 1


def test_grey_three_times_is_grey_once() -> None:
    image = photo(90, 70).convert("L")
    one = prepare(image, Preprocess(32, channels=1))
    three = prepare(image, Preprocess(32, channels=3))
    again = prepare(image.convert("RGB"), Preprocess(32, channels=1))
    assert np.array_equal(np.repeat(one, 3, axis=2), three)
    assert np.array_equal(one, again)


def test_shrinking_is_antialiased() -> None:
    fine = Image.fromarray(np.indices((512, 512)).sum(axis=0).astype(np.uint8) % 2 * 255)
    for fit in ("crop", "squash", "pad"):
        pixels = prepare(fine, Preprocess(32, fit=fit, channels=1)).astype(int)
        assert np.abs(pixels - 127).max() <= 2


def test_the_short_cut_for_large_pictures_is_accurate() -> None:
    image = photo(1600, 1200)
    for fit, box in (("squash", None), ("crop", (275, 75, 1325, 1125))):
        plain = image.resize((64, 64), Image.Resampling.BICUBIC, box=box)
        pixels = prepare(image, Preprocess(64, fit=fit))
        assert np.abs(pixels.astype(int) - np.asarray(plain)).mean() < 1


@settings(max_examples=60, deadline=None, database=None)
@given(
    width=st.integers(4, 300),
    height=st.integers(4, 300),
    size=st.integers(1, 96),
    fit=st.sampled_from(["crop", "squash", "pad"]),
    share=st.floats(0.3, 1.0),
)
def test_any_shape_fits(width: int, height: int, size: int, fit: str, share: float) -> None:
    preprocess = Preprocess(size, fit=fit, crop_share=share)
    pixels = prepare(Image.new("RGB", (width, height), (10, 20, 30)), preprocess)
    assert pixels.shape == (size, size, 3)
    filled = (pixels == [10, 20, 30]).all(axis=-1)
    assert filled.all() or (fit == "pad" and (pixels[~filled] == 128).all() and filled.any())


def test_hint_leaves_room_above_the_target() -> None:
    assert hint_side(Preprocess(224)) >= 1.15 * 224 / 0.875
    assert hint_side(Preprocess(224, crop_share=0.5)) >= 1.15 * 448
    assert hint_side(Preprocess(224, fit="squash")) >= 1.15 * 224
    assert hint_side(Preprocess(224, fit="squash")) == hint_side(
        Preprocess(224, fit="squash", crop_share=0.5)
    )


def test_decoding_smaller_costs_no_quality_on_real_photos(shared_data: Path) -> None:
    photos = sorted((shared_data / "hymenoptera" / "train").rglob("*.jpg"))[::6]
    preprocess = Preprocess(96)
    differences = []
    for path in photos:
        full, size = read_with_size(path)
        drafted = read(path, hint_side=hint_side(preprocess))
        if drafted.size != size:
            exact = prepare(full, preprocess).astype(int)
            differences.append(np.abs(prepare(drafted, preprocess) - exact).mean())
    assert len(differences) >= 3
    assert np.mean(differences) < 1.2


# --- load ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fit", ["crop", "squash", "pad"])
def test_a_path_its_bytes_an_image_and_an_array_are_the_same(tmp_path: Path, fit: str) -> None:
    preprocess = Preprocess(48, fit=fit)
    exif = Image.Exif()
    exif[274] = 6
    path = tmp_path / "a.png"
    photo(120, 90).save(path, exif=exif)
    expected = load(path, preprocess)
    assert np.array_equal(load(str(path), preprocess), expected)
    assert np.array_equal(load(path.read_bytes(), preprocess), expected)
    with Image.open(path) as opened:
        assert np.array_equal(load(opened, preprocess), expected)
    assert np.array_equal(load(np.asarray(read(path)), preprocess), expected)


def test_arrays_of_every_accepted_shape() -> None:
    preprocess = Preprocess(16, fit="squash")
    colour = np.asarray(photo(40, 32))
    grey = colour[..., 0]
    expected = load(colour, preprocess)
    assert np.array_equal(load(colour[:, ::-1], preprocess), load(colour[:, ::-1].copy(), preprocess))
    assert np.array_equal(load(grey, preprocess), load(grey[..., None], preprocess))
    opaque = np.dstack([colour, np.full(grey.shape, 255, np.uint8)])
    assert np.array_equal(load(opaque, preprocess), expected)
    clear = np.dstack([colour, np.zeros(grey.shape, np.uint8)])
    assert (load(clear, preprocess) == 255).all()


@pytest.mark.parametrize("shape", [(8,), (8, 8, 2), (8, 8, 5), (3, 8, 8), (1, 8, 8, 3), ()])
def test_arrays_of_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(DatasetError, match=r"\[h, w, 3\]") as caught:
        load(np.zeros(shape, np.uint8), Preprocess(16))
    assert str(list(shape)) in str(caught.value)


@pytest.mark.parametrize("dtype", ["float32", "float64", "int64", "uint16", "bool"])
def test_arrays_of_other_types_are_refused_with_what_to_do(dtype: str) -> None:
    with pytest.raises(DatasetError, match=r"astype\(numpy.uint8\)") as caught:
        load(np.zeros((8, 8, 3), dtype), Preprocess(16))
    assert dtype in str(caught.value)
    assert "[8, 8, 3]" in str(caught.value)
    assert ("255, round" in str(caught.value)) == dtype.startswith("float")


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / "broken.jpg"
    path.write_bytes(b"no image")
    with pytest.raises(UnreadableImage, match=r"broken\.jpg: ") as caught:
        load(path, Preprocess(16))
    assert caught.value.kind == "not_an_image"
    with pytest.raises(UnreadableImage, match=r"gone\.jpg: "):
        load(tmp_path / "gone.jpg", Preprocess(16))
    with pytest.raises(UnreadableImage):
        load(b"", Preprocess(16))
    with pytest.raises(UnreadableImage, match="1 x 1"):
        load(np.zeros((1, 1), np.uint8), Preprocess(16))
    buffer = BytesIO()
    photo(200, 200).save(buffer, "JPEG")
    cut = Image.open(BytesIO(buffer.getvalue()[:3000]))
    with pytest.raises(UnreadableImage):
        load(cut, Preprocess(16))
