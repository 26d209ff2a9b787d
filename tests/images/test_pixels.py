"""Each image is decoded once for all geometries, the result equals the way of serving, and nothing half-made stays."""

from __future__ import annotations

import hashlib
import threading
import time
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from graft.errors import DatasetError, StoreError
from graft.images import pixels
from graft.images.dataset import Dataset, ImageReference, Preprocess
from graft.images.pixels import open_pixels, pixels_key, preparing
from graft.images.preprocess import load
from graft.store import Store

COLOUR = Preprocess(24)
SMALL = Preprocess(16, fit="squash")
GREY = Preprocess(20, fit="pad", channels=1)


def digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=20).hexdigest()


def dataset(root: Path, images: list[ImageReference]) -> Dataset:
    count = len(images)
    zeros = np.zeros(count, np.int64)
    return Dataset(
        root,
        tuple(images),
        ("one",),
        zeros,
        np.arange(count),
        ("train",) * count,
        zeros,
        zeros,
        zeros > 0,
        (),
    )


def encoded(seed: int, form: str) -> bytes:
    noise = np.random.default_rng(seed).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    buffer = BytesIO()
    Image.fromarray(noise).resize((240 + seed, 180), Image.Resampling.BICUBIC).save(buffer, form)
    return buffer.getvalue()


@pytest.fixture
def files(tmp_path: Path) -> Dataset:
    """Twelve files in four formats."""
    root = tmp_path / "photos"
    root.mkdir()
    references = []
    for number in range(12):
        form = ("JPEG", "PNG", "WEBP", "GIF")[number % 4]
        path = root / f"{number:02d}.{form.lower()}"
        path.write_bytes(encoded(number, form))
        references.append(ImageReference(path, path.name, digest(path.read_bytes())))
    return dataset(root, references)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "cache")


def prepared(data: Dataset, geometries: list[Preprocess], store: Store) -> list[tuple[int, int]]:
    return list(preparing(data, geometries, store=store, threads=2))


def test_the_pixels_are_those_of_serving(files: Dataset, store: Store) -> None:
    progress = prepared(files, [COLOUR, SMALL, GREY], store)
    assert progress[0] == (0, 12)
    assert progress[-1] == (12, 12)
    assert [done for done, _ in progress] == sorted({done for done, _ in progress})
    for geometry in (COLOUR, SMALL, GREY):
        array = open_pixels(files, geometry, store=store)
        assert array.shape == (12, geometry.size, geometry.size, geometry.channels)
        assert not array.flags.writeable
        for row, reference in enumerate(files.images):
            assert np.array_equal(array[row], load(reference.path, geometry)), reference.name


def test_pixels_do_not_depend_on_what_was_asked_for_beside_them(
    files: Dataset, store: Store, tmp_path: Path
) -> None:
    tiny, large = Preprocess(8), Preprocess(160)
    alone = Store(tmp_path / "another")
    prepared(files, [tiny], alone)
    prepared(files, [large, tiny], store)
    assert np.array_equal(open_pixels(files, tiny, store=alone), open_pixels(files, tiny, store=store))


def test_order_is_kept_over_many_chunks(
    files: Dataset, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pixels, "_CHUNK_IMAGES", 2)
    many = dataset(files.root, list(files.images) * 5)
    assert len(prepared(many, [SMALL], store)) == 31
    array = open_pixels(many, SMALL, store=store)
    assert np.array_equal(array[:12], array[48:])
    assert np.array_equal(array[7], load(files.images[7].path, SMALL))


def test_what_is_stored_is_not_decoded_again(files: Dataset, store: Store) -> None:
    prepared(files, [COLOUR], store)
    for reference in files.images:
        reference.path.unlink()
    assert prepared(files, [COLOUR, COLOUR], store) == [(12, 12)]
    with pytest.raises(DatasetError):
        prepared(files, [COLOUR, SMALL], store)


def test_names_and_labels_do_not_matter_but_bytes_and_order_do(files: Dataset) -> None:
    renamed = [ImageReference(r.path, f"other/{r.name}", r.digest) for r in files.images]
    assert pixels_key(dataset(files.root, renamed), COLOUR) == pixels_key(files, COLOUR)
    turned = dataset(files.root, list(reversed(files.images)))
    assert pixels_key(turned, COLOUR) != pixels_key(files, COLOUR)
    assert pixels_key(files, GREY) != pixels_key(files, COLOUR)


def test_asking_before_preparing(files: Dataset, store: Store) -> None:
    with pytest.raises(StoreError, match="Run the study again"):
        open_pixels(files, COLOUR, store=store)


def test_a_parquet_file(tmp_path: Path, store: Store) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    cells = [encoded(number, ("PNG", "JPEG")[number % 2]) for number in range(30)]
    path = tmp_path / "cells.parquet"
    table = pa.table({"image": [{"bytes": cell} for cell in cells], "label": [0] * 30})
    pq.write_table(table, path, row_group_size=7)
    rows = [ImageReference(path, f"cells.parquet#{row}", digest(cell), row) for row, cell in enumerate(cells)]
    data = dataset(tmp_path, rows)
    prepared(data, [COLOUR, GREY], store)
    for geometry in (COLOUR, GREY):
        array = open_pixels(data, geometry, store=store)
        assert all(np.array_equal(array[row], load(cell, geometry)) for row, cell in enumerate(cells))


@pytest.mark.parametrize("damage", ["gone", "changed", "truncated"])
def test_a_file_that_is_not_what_it_was(files: Dataset, store: Store, damage: str) -> None:
    path = files.images[5].path
    images = list(files.images)
    if damage == "gone":
        path.unlink()
    elif damage == "changed":
        path.write_bytes(encoded(99, "PNG"))
    else:
        path.write_bytes(path.read_bytes()[:500])
        images[5] = ImageReference(path, path.name, digest(path.read_bytes()))
    data = dataset(files.root, images)
    with pytest.raises(DatasetError, match="Run the study again") as caught:
        prepared(data, [COLOUR, GREY], store)
    assert path.name in str(caught.value)
    assert store.get(pixels_key(data, COLOUR)) is None
    assert not list(store.folder.glob("tmp-*"))


def test_leaving_early_leaves_nothing(files: Dataset, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pixels, "_CHUNK_IMAGES", 1)
    steps = preparing(files, [COLOUR, GREY], store=store, threads=2)
    assert [next(steps) for _ in range(3)] == [(0, 12), (1, 12), (2, 12)]
    steps.close()
    assert store.get(pixels_key(files, COLOUR)) is None
    assert not list(store.folder.glob("tmp-*"))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("graft-pixels")]
    prepared(files, [COLOUR, GREY], store)
    assert len(open_pixels(files, GREY, store=store)) == 12


def test_the_lead_of_the_threads_is_bounded(
    files: Dataset, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pixels, "_CHUNK_IMAGES", 1)
    begun = []
    original = pixels._rows
    monkeypatch.setattr(
        pixels, "_rows", lambda images, geometries: begun.append(1) or original(images, geometries)
    )
    many = dataset(files.root, list(files.images) * 10)
    steps = preparing(many, [SMALL], store=store, threads=2)
    for _ in range(6):
        next(steps)
    time.sleep(0.5)  # a slow reader: the threads must wait for it
    assert len(begun) <= 5 + 2 + 2
    steps.close()


def test_real_sets_are_prepared_as_served(shared_data: Path, store: Store) -> None:
    paths = sorted((shared_data / "hymenoptera" / "val").rglob("*.jpg"))[:40]
    paths += sorted((shared_data / "magnetic_tile").rglob("*.jpg"))[:20]
    references = [ImageReference(path, path.name, digest(path.read_bytes())) for path in paths]
    data = dataset(shared_data, references)
    geometry = Preprocess(96)
    prepared(data, [geometry, Preprocess(64, channels=1)], store)
    array = open_pixels(data, geometry, store=store)
    assert all(np.array_equal(array[row], load(path, geometry)) for row, path in enumerate(paths))
