"""Every kind of file becomes the exact picture expected, or says why not; no bytes can do anything else."""

from __future__ import annotations

import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from graft.images.decode import MAX_PIXELS, UnreadableImage, converted, read, read_each, read_with_size

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
FUZZ = settings(
    max_examples=300,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    buffer = BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def scene(width: int = 48, height: int = 32, *, seed: int = 0) -> Image.Image:
    """A smooth colour picture that is different in every corner."""
    noise = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def png(rows: np.ndarray, *, bits: int, colour: int, extra: bytes = b"") -> bytes:
    """A PNG file with samples `rows[y, x, band]`, written by hand for what Pillow cannot write."""
    lines = b"".join(b"\0" + row.astype(">u2" if bits == 16 else "u1").tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", rows.shape[1], rows.shape[0], bits, colour, 0, 0, 0)
    body = chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def exif(orientation: int) -> bytes:
    block = Image.Exif()
    block[274] = orientation
    return block.tobytes()


def over_white(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    mixed = colour.astype(float) * alpha + 255.0 * (255 - alpha)
    return np.floor(mixed / 255 + 0.5).astype(np.uint8)


def refusal(data: bytes | Path) -> UnreadableImage:
    with pytest.raises(UnreadableImage) as caught:
        read_with_size(data)
    assert caught.value.reason == str(caught.value)
    assert caught.value.reason.endswith((".", ")."))
    return caught.value


def square(values: list[int] | list[float], dtype: str) -> np.ndarray:
    """A 4 x 4 picture that repeats `values`."""
    return np.resize(np.array(values, dtype), (4, 4))


RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)
COLOURS = np.random.default_rng(1).integers(0, 256, (16, 16, 3), dtype=np.uint8)


# --- conversions ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["PNG", "BMP", "TIFF", "GIF"])
def test_grey_files_stay_grey(form: str) -> None:
    image = read(encoded(Image.fromarray(RAMP), form))
    assert image.mode == "L"
    assert np.array_equal(np.asarray(image), RAMP)


@pytest.mark.parametrize(
    ("form", "options"), [("PNG", {}), ("BMP", {}), ("TIFF", {}), ("WEBP", {"lossless": True})]
)
def test_colour_files_stay_as_they_are(form: str, options: dict) -> None:
    image = read(encoded(Image.fromarray(COLOURS), form, **options))
    assert image.mode == "RGB"
    assert np.array_equal(np.asarray(image), COLOURS)


def test_jpeg_equals_a_plain_decode() -> None:
    data = encoded(scene(), "JPEG")
    assert np.array_equal(np.asarray(read(data)), np.asarray(Image.open(BytesIO(data))))
    grey = read(encoded(scene().convert("L"), "JPEG"))
    assert grey.mode == "L"


@pytest.mark.parametrize("form", ["PNG", "BMP", "TIFF"])
def test_one_bit_is_black_and_white(form: str) -> None:
    bits = RAMP > 100
    image = read(encoded(Image.fromarray(bits), form))
    assert image.mode == "L"
    assert np.array_equal(np.asarray(image), bits * np.uint8(255))


def palette_image() -> tuple[Image.Image, np.ndarray]:
    colours = np.array([[255, 0, 0], [0, 255, 0], [10, 20, 30], [200, 100, 50]], np.uint8)
    index = np.resize(np.arange(4, dtype=np.uint8), (8, 8))
    image = Image.fromarray(index).convert("P")
    image.putpalette(colours.tobytes())
    image.putdata(index.ravel().tolist())
    return image, colours[index]


@pytest.mark.parametrize("form", ["PNG", "BMP", "TIFF", "GIF"])
def test_palette_becomes_colour(form: str) -> None:
    image, expected = palette_image()
    decoded = read(encoded(image, form))
    assert decoded.mode == "RGB"
    assert np.array_equal(np.asarray(decoded), expected)


def test_palette_with_alpha_lies_on_white() -> None:
    image, colours = palette_image()
    alphas = np.array([0, 128, 255, 77], np.uint8)
    decoded = read(encoded(image, "PNG", transparency=alphas.tobytes()))
    alpha = alphas[np.resize(np.arange(4), (8, 8))]
    assert np.array_equal(np.asarray(decoded), over_white(colours, alpha[..., None]))


@pytest.mark.parametrize("form", ["PNG", "GIF"])
def test_one_transparent_palette_entry_becomes_white(form: str) -> None:
    image, expected = palette_image()
    decoded = np.asarray(read(encoded(image, form, transparency=2)))
    clear = (expected == [10, 20, 30]).all(axis=-1)
    assert (decoded[clear] == 255).all()
    assert np.array_equal(decoded[~clear], expected[~clear])


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_grey_with_alpha_lies_on_white_and_stays_grey(form: str) -> None:
    alpha = RAMP.T.copy()
    image = Image.merge("LA", (Image.fromarray(RAMP), Image.fromarray(alpha)))
    decoded = read(encoded(image, form))
    assert decoded.mode == "L"
    assert np.array_equal(np.asarray(decoded), over_white(RAMP, alpha))


@pytest.mark.parametrize(
    ("form", "options"), [("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True, "exact": True})]
)
def test_colour_with_alpha_lies_on_white(form: str, options: dict) -> None:
    image = Image.fromarray(np.dstack([COLOURS, RAMP]))
    decoded = read(encoded(image, form, **options))
    assert decoded.mode == "RGB"
    assert np.array_equal(np.asarray(decoded), over_white(COLOURS, RAMP[..., None]))


def test_palette_image_with_an_alpha_band_lies_on_white() -> None:
    image, colours = palette_image()
    with_alpha = image.convert("PA")
    with_alpha.putalpha(Image.fromarray(np.full((8, 8), 51, np.uint8)))
    assert with_alpha.mode == "PA"
    assert np.array_equal(np.asarray(converted(with_alpha)), over_white(colours, np.full((8, 8, 1), 51)))


def test_a_transparent_colour_key_becomes_white() -> None:
    decoded = read(encoded(Image.fromarray(RAMP), "PNG", transparency=7))
    assert decoded.mode == "L"
    assert np.array_equal(np.asarray(decoded), np.where(RAMP == 7, 255, RAMP))
    key = tuple(int(value) for value in COLOURS[3, 4])
    colour = np.asarray(read(encoded(Image.fromarray(COLOURS), "PNG", transparency=key)))
    assert (colour[3, 4] == 255).all()
    assert np.array_equal(colour[5], COLOURS[5])


def test_cmyk_jpeg_is_not_inverted() -> None:
    data = encoded(Image.new("CMYK", (16, 16), (200, 127, 127, 51)), "JPEG", quality=100)
    decoded = np.asarray(read(data)).astype(int)
    assert np.abs(decoded - [55 * 0.8, 128 * 0.8, 128 * 0.8]).max() <= 1
    at = data.index(b"Adobe") + 11
    ycck = data[:at] + b"\2" + data[at + 1 :]  # the same numbers, now read as luma, chroma and black
    assert np.abs(np.asarray(read(ycck)).astype(int) - 200 * 0.8).max() <= 2


def test_cmyk_tiff() -> None:
    decoded = np.asarray(read(encoded(Image.new("CMYK", (8, 8), (255, 0, 51, 0)), "TIFF")))
    assert (decoded == [0, 255, 204]).all()


def test_ycbcr_tiff() -> None:
    image = scene().convert("YCbCr")
    assert np.array_equal(np.asarray(read(encoded(image, "TIFF"))), np.asarray(image.convert("RGB")))


def test_lab_tiff() -> None:
    decoded = np.asarray(read(encoded(Image.new("LAB", (8, 8), (128, 128, 128)), "TIFF"))).astype(int)
    assert np.abs(decoded - 119).max() <= 2  # L* = 50 without colour is sRGB 119


DEEP = [0, 128, 129, 257, 300, 32768, 65406, 65407, 65535]


@pytest.mark.parametrize("order", ["<u2", ">u2"])
@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
def test_sixteen_bit_grey_tiff_is_scaled_not_clipped(order: str, compression: str | None) -> None:
    values = square(DEEP, "u2").astype(order)
    image = Image.frombytes("I;16" if order == "<u2" else "I;16B", (4, 4), values.tobytes())
    decoded = read(encoded(image, "TIFF", compression=compression))
    assert decoded.mode == "L"
    assert np.array_equal(np.asarray(decoded), np.rint(values / 257))


def test_sixteen_bit_grey_png_is_scaled_not_clipped() -> None:
    values = square(DEEP, "u2")
    decoded = read(png(values[..., None], bits=16, colour=0))
    assert decoded.mode == "L"
    assert np.array_equal(np.asarray(decoded), np.rint(values / 257))
    dark = square([0, 200], "u2")  # the range of the format counts, not that of the picture
    assert np.array_equal(np.asarray(read(png(dark[..., None], bits=16, colour=0))), np.rint(dark / 257))


def test_sixteen_bit_grey_png_with_a_transparent_key() -> None:
    values = square(DEEP, "u2")
    decoded = read(png(values[..., None], bits=16, colour=0, extra=chunk(b"tRNS", struct.pack(">H", 300))))
    assert np.array_equal(np.asarray(decoded), np.where(values == 300, 255, np.rint(values / 257)))


def test_sixteen_bit_colour_and_alpha_png_keep_the_high_byte() -> None:
    values = np.random.default_rng(2).integers(0, 65536, (4, 4, 3), dtype=np.uint16)
    assert np.array_equal(np.asarray(read(png(values, bits=16, colour=2))), values >> 8)
    grey = np.stack([values[..., 0], np.full((4, 4), 65535, np.uint16)], axis=-1)
    decoded = read(png(grey, bits=16, colour=4))
    assert decoded.mode == "L"
    assert np.array_equal(np.asarray(decoded), values[..., 0] >> 8)


@pytest.mark.parametrize("dtype", ["int32", "float32"])
@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0, 1], [0, 255]),
        ([0, 1, 2, 255], [0, 1, 2, 255]),
        ([0, 257, 65535], [0, 1, 255]),
    ],
)
def test_deep_tiff_is_taken_by_its_range(dtype: str, values: list[int], expected: list[int]) -> None:
    decoded = read(encoded(Image.fromarray(square(values, dtype)), "TIFF"))
    assert decoded.mode == "L"
    assert np.array_equal(np.asarray(decoded), square(expected, "uint8"))


def test_float_tiff_rounds() -> None:
    decoded = read(encoded(Image.fromarray(square([0.0, 0.25, 0.5, 0.999, 1.0], "float32")), "TIFF"))
    assert np.array_equal(np.asarray(decoded), square([0, 64, 128, 255, 255], "uint8"))


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ([0.0, np.nan], "not numbers"),
        ([0.0, np.inf], "not numbers"),
        ([-1.0, 5.0], "from -1 to 5"),
        ([0.0, 65536.0], "from 0 to 65536"),
    ],
)
def test_float_tiff_without_a_known_range_is_refused(values: list[float], reason: str) -> None:
    error = refusal(encoded(Image.fromarray(square(values, "float32")), "TIFF"))
    assert error.kind == "unreadable"
    assert reason in error.reason


def test_integer_tiff_without_a_known_range_is_refused() -> None:
    assert "-3 to 70000" in refusal(encoded(Image.fromarray(square([-3, 70000], "int32")), "TIFF")).reason


# --- orientation, frames, metadata ---------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_orientation_is_applied(form: str, orientation: int) -> None:
    options = {"lossless": True} if form == "WEBP" else {}
    data = encoded(scene(), form, exif=exif(orientation), **options)
    image, size = read_with_size(data)
    expected = ImageOps.exif_transpose(Image.open(BytesIO(data)))
    assert size == image.size == ((48, 32) if orientation < 5 else (32, 48))
    assert np.array_equal(np.asarray(image), np.asarray(expected))
    opened = converted(Image.open(BytesIO(data)))
    assert np.array_equal(np.asarray(opened), np.asarray(expected))


def test_an_image_that_was_worked_on_is_not_turned_again() -> None:
    turned = ImageOps.exif_transpose(Image.open(BytesIO(encoded(scene(), "JPEG", exif=exif(6)))))
    assert converted(turned).size == (32, 48)
    copied = Image.open(BytesIO(encoded(scene(), "JPEG", exif=exif(6)))).resize((48, 32))
    assert converted(copied).size == (48, 32)


@FUZZ
@given(
    block=st.binary(max_size=80),
    start=st.sampled_from([b"", b"Exif\0\0", b"Exif\0\0II*\0\x08\0\0\0", exif(6)]),
)
def test_a_corrupt_exif_block_leaves_the_image_readable(block: bytes, start: bytes) -> None:
    plain = encoded(scene(), "JPEG")
    body = start + block
    data = plain[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + plain[2:]
    image = read(data)
    assert sorted(image.size) == [32, 48]
    if not start.endswith(exif(6)):
        colours = png(COLOURS, bits=8, colour=2, extra=chunk(b"eXIf", body))
        assert sorted(read(colours).size) == [16, 16]


def test_metadata_that_pillow_warns_about_is_left_behind() -> None:
    none = chunk(b"acTL", struct.pack(">II", 0, 0))
    assert np.array_equal(np.asarray(read(png(COLOURS, bits=8, colour=2, extra=none))), COLOURS)
    bomb = chunk(b"zTXt", b"note\0\0" + zlib.compress(b"x" * 80_000_000))
    assert np.array_equal(np.asarray(read(png(COLOURS, bits=8, colour=2, extra=bomb))), COLOURS)
    data = bytearray(
        encoded(Image.fromarray(COLOURS), "TIFF", software="a name long enough to lie elsewhere")
    )
    at = data.index(struct.pack("<HH", 305, 2))
    data[at + 4 : at + 12] = struct.pack("<II", 2**31, 2**31)  # a text of two gigabytes, outside the file
    assert np.array_equal(np.asarray(read(bytes(data))), COLOURS)


def test_first_frame_of_an_animation() -> None:
    frames = [Image.new("L", (8, 8), value) for value in (10, 200)]
    for form in ("GIF", "PNG", "TIFF"):
        data = encoded(frames[0], form, save_all=True, append_images=frames[1:])
        assert (np.asarray(read(data)) == 10).all(), form
    lossless = encoded(
        frames[0].convert("RGB"), "WEBP", save_all=True, append_images=frames[1:], lossless=True
    )
    assert (np.asarray(read(lossless)) == 10).all()
    stereo = encoded(scene(seed=1), "MPO", save_all=True, append_images=[scene(seed=2)])
    alone = encoded(scene(seed=1), "JPEG")
    assert np.array_equal(np.asarray(read(stereo)), np.asarray(read(alone)))


def tiff(values: np.ndarray, order: str) -> bytes:
    """A grey TIFF file written by hand, its directory last."""
    tags = [
        (256, values.shape[1]),
        (257, values.shape[0]),
        (258, 8 * values.itemsize),
        (259, 1),
        (262, 1),
        (273, 8),
    ]
    tags += [(277, 1), (278, values.shape[0]), (279, values.nbytes)]
    parts = [
        {"<": b"II", ">": b"MM"}[order],
        struct.pack(order + "HI", 42, 8 + values.nbytes),
        values.tobytes(),
    ]
    parts += [
        struct.pack(order + "H", len(tags)),
        *(struct.pack(order + "HHII", tag, 4, 1, v) for tag, v in tags),
    ]
    return b"".join(parts)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("end", [b"", b"\0\0", b"\0\0\0\0", b"\xff\xff\xff\x7f"])
def test_what_follows_the_first_page_of_a_tiff_does_not_matter(order: str, end: bytes) -> None:
    assert np.array_equal(np.asarray(read(tiff(RAMP, order) + end)), RAMP)
    deep = square(DEEP, "u2").astype(order + "u2")
    assert np.array_equal(np.asarray(read(tiff(deep, order) + end)), np.rint(deep / 257))


def test_big_tiff() -> None:
    data = encoded(Image.fromarray(COLOURS), "TIFF", big_tiff=True)
    assert data[2] == 43
    assert np.array_equal(np.asarray(read(data)), COLOURS)


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"])
def test_compressed_tiff(compression: str) -> None:
    data = encoded(scene(), "TIFF", compression=compression)
    assert np.array_equal(np.asarray(read(data)), np.asarray(Image.open(BytesIO(data)).convert("RGB")))


# --- what cannot be read -------------------------------------------------------------------------------------------


def test_files_that_are_no_images(tmp_path: Path) -> None:
    assert refusal(b"").kind == "empty"
    assert refusal(b"hello").kind == "not_an_image"
    assert "PDF" in refusal(b"%PDF-1.7 ...").reason
    assert refusal(b"%PDF-1.7 ...").kind == "not_an_image"
    heic = refusal(b"\0\0\0\x18ftypheic\0\0\0\0")
    assert (heic.kind, "HEIC" in heic.reason, "convert" in heic.reason) == ("unreadable", True, True)
    assert "video" in refusal(b"\0\0\0\x18ftypisom\0\0\0\0").reason
    missing = refusal(tmp_path / "gone.png")
    assert missing.kind == "unreadable"
    assert refusal(tmp_path).kind == "unreadable"
    (tmp_path / "empty.jpg").write_bytes(b"")
    assert refusal(tmp_path / "empty.jpg").kind == "empty"


def test_a_path_and_its_bytes_are_the_same(tmp_path: Path) -> None:
    path = tmp_path / "a wrong name.txt"
    path.write_bytes(encoded(scene(), "PNG"))
    assert np.array_equal(np.asarray(read(path)), np.asarray(scene()))


@pytest.mark.parametrize("form", FORMATS)
def test_a_truncated_file_is_called_truncated(form: str) -> None:
    data = encoded(scene(200, 150), form)
    assert refusal(data[: len(data) // 2]).kind == "truncated"


def test_a_tiff_without_data_for_its_last_rows_is_not_filled_with_black() -> None:
    data = bytearray(encoded(Image.fromarray(COLOURS), "TIFF"))
    at = data.index(struct.pack("<HHI", 278, 4, 1)) if struct.pack("<HHI", 278, 4, 1) in data else -1
    at = at if at >= 0 else data.index(struct.pack("<HHI", 278, 3, 1))
    data[at + 2 : at + 12] = struct.pack("<HII", 4, 1, 12)  # one strip of 12 rows for 16 rows
    assert refusal(bytes(data)).kind == "truncated"


def enlarged(form: str, side: int) -> bytes:
    """A small file whose header claims `side` x `side` pixels."""
    data = bytearray(encoded(scene(), form))
    if form == "PNG":
        data[16:24] = struct.pack(">II", side, side)
        data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    elif form == "JPEG":
        at = data.index(b"\xff\xc0")
        data[at + 5 : at + 9] = struct.pack(">HH", side, side)
    elif form == "BMP":
        data[18:26] = struct.pack("<II", side, side)
    elif form == "GIF":
        data[6:10] = struct.pack("<HH", side, side)
    elif form == "WEBP":
        canvas = struct.pack("<I", side - 1)[:3] * 2
        vp8x = b"VP8X" + struct.pack("<I", 10) + bytes(4) + canvas
        data[12:12] = vp8x
        data[4:8] = struct.pack("<I", len(data) - 8)
    else:
        for tag in (256, 257):
            at = data.index(struct.pack("<HHI", tag, 3, 1)) if struct.pack("<HHI", tag, 3, 1) in data else -1
            at = at if at >= 0 else data.index(struct.pack("<HHI", tag, 4, 1))
            data[at + 2 : at + 12] = struct.pack("<HII", 4, 1, side)
    return bytes(data)


@pytest.mark.parametrize("side", [9_440, 9_500, 12_000, 60_000])
@pytest.mark.parametrize("form", FORMATS)
def test_a_decompression_bomb_is_refused_by_its_header(form: str, side: int) -> None:
    error = refusal(enlarged(form, side))
    assert error.kind == "too_large"
    assert f"{side} x {side}" in error.reason
    assert f"{MAX_PIXELS:,}" in error.reason


@pytest.mark.parametrize("size", [(1, 1), (3, 100), (100, 3)])
def test_tiny_images_are_refused(size: tuple[int, int]) -> None:
    error = refusal(encoded(Image.new("RGB", size), "PNG"))
    assert error.kind == "too_small"
    assert f"{size[0]} x {size[1]}" in error.reason
    assert read(encoded(Image.new("RGB", (4, 4)), "PNG")).size == (4, 4)


# --- smaller decoding ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_hint_makes_a_jpeg_smaller_but_never_too_small(mode: str) -> None:
    data = encoded(scene(401, 307).convert(mode), "JPEG", exif=exif(6))
    for hint in (1, 30, 38, 39, 76, 77, 102, 153, 154, 306, 307, 308, 1000):
        image, size = read_with_size(data, hint_side=hint)
        assert size == (307, 401)
        assert min(image.size) >= min(hint, 307)
        assert image.mode == ("L" if mode == "L" else "RGB")
    assert read(data, hint_side=76).size == (77, 101)


def test_a_hint_leaves_other_formats_alone() -> None:
    assert read(encoded(scene(400, 300), "PNG"), hint_side=10).size == (400, 300)


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_reading_for_several_sizes_is_reading_for_each(form: str) -> None:
    data = encoded(scene(401, 307), form, exif=exif(8))
    hints = [40, 300, 76, 150, 500, 77]
    for hint, image in zip(hints, read_each(data, hint_sides=hints), strict=True):
        assert np.array_equal(np.asarray(image), np.asarray(read(data, hint_side=hint)))


def test_threads_read_the_same() -> None:
    files = [encoded(scene(seed=seed), form) for seed in range(10) for form in FORMATS]
    alone = [np.asarray(read(file)) for file in files]
    with ThreadPoolExecutor(4) as pool:
        together = [np.asarray(image) for image in pool.map(read, files)]
    assert all(np.array_equal(one, other) for one, other in zip(alone, together, strict=True))


# --- any bytes at all ----------------------------------------------------------------------------------------------

SAMPLES = {
    "jpeg": encoded(scene(), "JPEG", exif=exif(6)),
    "progressive": encoded(scene(), "JPEG", progressive=True),
    "cmyk": encoded(scene().convert("CMYK"), "JPEG"),
    "mpo": encoded(scene(), "MPO", save_all=True, append_images=[scene(seed=2)]),
    "png": encoded(scene(), "PNG", exif=exif(3)),
    "png palette": encoded(palette_image()[0], "PNG", transparency=b"\0\x80"),
    "png deep": png(square(DEEP, "u2")[..., None], bits=16, colour=0),
    "apng": encoded(scene(), "PNG", save_all=True, append_images=[scene(seed=2)]),
    "webp": encoded(scene(), "WEBP", exif=exif(5)),
    "webp lossless": encoded(scene(), "WEBP", lossless=True),
    "bmp": encoded(scene(), "BMP"),
    "bmp palette": encoded(palette_image()[0], "BMP"),
    "tiff": encoded(scene(), "TIFF", exif=exif(7)),
    "tiff lzw": encoded(scene(), "TIFF", compression="tiff_lzw"),
    "tiff jpeg": encoded(scene(), "TIFF", compression="jpeg"),
    "tiff big": encoded(scene(), "TIFF", big_tiff=True),
    "tiff float": encoded(Image.fromarray(square([0.0, 0.5], "float32")), "TIFF"),
    "gif": encoded(palette_image()[0], "GIF", transparency=1),
    "gif moving": encoded(scene(), "GIF", save_all=True, append_images=[scene(seed=2)]),
}


def image_or_refusal(data: bytes) -> None:
    try:
        image, size = read_with_size(data, hint_side=8)
    except UnreadableImage as error:
        assert error.reason
    else:
        assert image.mode in ("L", "RGB")
        assert min(size) >= 4
        np.asarray(image)


@FUZZ
@given(data=st.binary(max_size=400))
def test_any_bytes_are_an_image_or_a_refusal(data: bytes) -> None:
    image_or_refusal(data)


@FUZZ
@given(
    magic=st.sampled_from(
        [b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"II*\0", b"MM\0*", b"II+\0", b"BM"]
    ),
    data=st.binary(max_size=400),
)
def test_any_bytes_after_a_magic_number_are_an_image_or_a_refusal(magic: bytes, data: bytes) -> None:
    image_or_refusal(magic + data)
    image_or_refusal(b"RIFF" + data[:4] + b"WEBPVP8" + data[4:])


@FUZZ
@given(sample=st.sampled_from(sorted(SAMPLES)), share=st.floats(0, 1))
def test_a_file_cut_anywhere_is_an_image_or_a_refusal(sample: str, share: float) -> None:
    data = SAMPLES[sample]
    image_or_refusal(data[: round(share * len(data))])


@FUZZ
@given(
    sample=st.sampled_from(sorted(SAMPLES)),
    changes=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=8),
    reach=st.sampled_from([32, 200, 10**6]),
    tail=st.booleans(),
)
def test_a_file_with_changed_bytes_is_an_image_or_a_refusal(
    sample: str, changes: list[tuple[float, int]], reach: int, tail: bool
) -> None:
    data = bytearray(SAMPLES[sample])
    room = min(reach, len(data))
    for share, value in changes:
        at = round(share * (room - 1))
        data[len(data) - 1 - at if tail else at] = value
    image_or_refusal(bytes(data))
