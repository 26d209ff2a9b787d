"""How many pixels a file declares: what decoding finds, for every format, and a sentence for what does not tell."""

from __future__ import annotations

import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from graft.images.decode import read_with_size
from graft.images.extent import declared_size
from graft.images.headers import UnreadableImage

FORMS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")


def encoded(wide: int, high: int, form: str, **options: object) -> bytes:
    written = io.BytesIO()
    Image.new("RGB", (wide, high), (200, 30, 90)).save(written, form, **options)
    return written.getvalue()


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(FORMS), st.integers(4, 300), st.integers(4, 300))
def test_it_is_what_decoding_finds(form: str, wide: int, high: int) -> None:
    data = encoded(wide, high, form)
    assert declared_size(data) == (wide, high) == read_with_size(data)[1]


@pytest.mark.parametrize(
    "data",
    [
        encoded(31, 17, "JPEG", progressive=True, exif=b"Exif\0\0" + bytes(3000), comment=b"\xff\xc0" * 99),
        encoded(31, 17, "WEBP", lossless=True),
        encoded(31, 17, "TIFF", compression="tiff_lzw"),
        b"\x89PNG\r\n\x1a\n" + encoded(31, 17, "PNG")[8:],
    ],
)
def test_further_kinds(data: bytes) -> None:
    assert declared_size(data) == (31, 17)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(FORMS), st.data())
def test_damage_is_a_sentence_or_a_size(form: str, data: st.DataObject) -> None:
    whole = bytearray(encoded(20, 30, form))
    for _ in range(data.draw(st.integers(0, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(whole[: data.draw(st.integers(0, len(whole)))])
    try:
        wide, high = declared_size(cut)
    except UnreadableImage as error:
        assert error.reason.endswith(".")
    else:
        assert wide >= 0 and high >= 0
