"""Any source of images: decoded once, in order, whatever is broken left out; and sentences for what is no source."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_sets import stripes
from PIL import Image

from graft.errors import DatasetError
from graft.pretraining.source import Source, opening_source
from graft.store import Store


def opened(place: Path, store: Path, *, size: int = 64, labelled: bool = False) -> tuple[Source, int]:
    """The source, and how many steps it took: 0 where it was in the cache."""
    work = opening_source(place, size=size, labelled=labelled, store=Store(store), threads=1)
    steps = 0
    while True:
        try:
            next(work)
        except StopIteration as finished:
            return finished.value, steps
        steps += 1


def plain(folder: Path, shades: list[int], *, side: int = 100) -> Path:
    folder.mkdir(parents=True)
    for index, shade in enumerate(shades):
        Image.new("RGB", (side + 20, side), (shade, shade, shade)).save(folder / f"{index}.png")
    return folder


def png(shade: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (80, 80), (shade, 0, 0)).save(file, "PNG")
    return file.getvalue()


def test_a_flat_folder_is_decoded_in_order_and_once(tmp_path: Path) -> None:
    place = plain(tmp_path / "flat", [10, 20, 30])
    source, steps = opened(place, tmp_path / "cache")
    assert source.pixels.shape == (3, 74, 74, 3) and steps > 0
    assert np.array_equal(source.images(np.array([2, 0])), source.pixels[[2, 0]])
    assert source.pixels[:, 0, 0, 0].tolist() == [10, 20, 30] and source.labels.tolist() == [-1, -1, -1]
    again, steps = opened(place, tmp_path / "cache")
    assert again.key == source.key and steps == 0
    Image.new("RGB", (100, 100), "white").save(place / "3.png")
    assert opened(place, tmp_path / "cache")[0].key != source.key


def test_small_images_are_not_blown_up_further_than_needed(tmp_path: Path) -> None:
    assert opened(plain(tmp_path / "a", [1, 2], side=80), tmp_path / "c", size=128)[0].pixels.shape[1] == 80
    assert opened(plain(tmp_path / "b", [1, 2], side=20), tmp_path / "c", size=128)[0].pixels.shape[1] == 64


def test_nested_folders_and_broken_files(tmp_path: Path) -> None:
    place = plain(tmp_path / "s" / "deep" / "deeper", [1, 2]).parents[1]
    (place / "broken.jpg").write_bytes(b"nothing")
    (place / "notes.txt").write_text("no image")
    source, _ = opened(place, tmp_path / "cache")
    assert len(source) == 2 and source.left_out == 1 and source.failures[0].startswith("broken.jpg: ")


def test_classes_become_labels(tmp_path: Path) -> None:
    source, _ = opened(stripes(tmp_path / "s", each=3), tmp_path / "cache", labelled=True)
    assert source.classes == ("left", "right") and source.labels.tolist() == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize("labelled", [False, True])
def test_parquet_with_and_without_labels(tmp_path: Path, labelled: bool) -> None:
    columns = {"image": [png(10), b"broken", png(30)], "label": ["a", "a", "b"]}
    if not labelled:
        del columns["label"]
    (tmp_path / "p").mkdir()
    pq.write_table(pa.table(columns), tmp_path / "p" / "part.parquet")
    for place in (tmp_path / "p", tmp_path / "p" / "part.parquet"):
        source, _ = opened(place, tmp_path / "cache", labelled=labelled)
        assert source.pixels[:, 0, 0, 0].tolist() == [10, 30]
        assert source.failures[0].startswith("part.parquet#1") or "#1: " in source.failures[0]
        assert source.labels.tolist() == ([0, 1] if labelled else [-1, -1])


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda p: None, "does not exist"),
        (lambda p: p.mkdir(), "holds no images"),
        (lambda p: plain(p, [1]), "one image that can be read.*at least 2"),
        (lambda p: p.write_text("hello"), "neither a folder nor"),
        (lambda p: (p.mkdir(), (p / "a.jpg").write_bytes(b"x")), "no image that can be read"),
    ],
)
def test_what_is_no_source_is_said(tmp_path: Path, make, sentence: str) -> None:
    make(tmp_path / "s")
    with pytest.raises(DatasetError, match=f"(?s){sentence}"):
        opened(tmp_path / "s", tmp_path / "cache")


def test_one_class_teaches_nothing(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="one class only"):
        opened(stripes(tmp_path / "s", classes=("a",), each=3), tmp_path / "cache", labelled=True)


def test_the_pixels_are_those_of_the_images(tmp_path: Path) -> None:
    place = stripes(tmp_path / "s", each=2)
    source, _ = opened(place, tmp_path / "cache", size=64)
    image = Image.open(place / "left" / "000.png").convert("RGB").resize((64, 64), Image.Resampling.BICUBIC)
    assert np.abs(source.pixels[0].astype(int) - np.asarray(image).astype(int)).max() <= 1
