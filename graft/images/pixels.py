"""The pixels: a dataset decoded once, for all geometries that a study needs.

In: a `Dataset` and some `Preprocess`. Out: one store entry per geometry with uint8 `[n, h, w, c]`, opened as a
read-only memory map. Its key is made of the images' digests in their order and the geometry, not of names or labels,
so a renamed or relabelled set decodes nothing. Cost: every file is read once and decoded once (a JPEG that two
geometries want at two scales, twice); memory stays at a few chunks of images whatever the size of the dataset, because
rows are appended to the file in order. A memory map is not used for writing: on a full disk it would end the process
without a word, and written pages would count as its memory.

Not covered: several processes preparing one dataset do the work twice (the entries come out the same).
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import BinaryIO

import numpy as np
from jaxtyping import Int64, UInt8
from PIL import Image

from graft.compute import step_back
from graft.errors import DatasetError, StoreError
from graft.images.dataset import Dataset, ImageReference, Preprocess
from graft.images.decode import UnreadableImage, read_each
from graft.images.preprocess import hint_side, prepare
from graft.images.readers import open_bytes
from graft.store import Store, content_key, write_facts

VERSION = "pixels.v1"
_ARRAY = "pixels"
_CHUNK_IMAGES = 64
_CHUNK_BYTES = 8 * 1024**2

Rows = list[UInt8[np.ndarray, "rows h w c"]]


def preparing(
    dataset: Dataset, geometries: Sequence[Preprocess], *, store: Store, threads: int
) -> Iterator[tuple[int, int]]:
    """Decode `dataset` for all `geometries` that the store lacks, yielding (images done, images in all) on the way.

    The entries exist once the iterator is exhausted; when it is left early, none does. Raises DatasetError for an
    image that has changed or vanished since the scan, StoreError for a cache that cannot be written.
    """
    missing = list({g.key: g for g in geometries if store.get(pixels_key(dataset, g)) is None}.values())
    total = len(dataset)
    if not missing:
        yield total, total
        return
    with ExitStack() as entries:
        files = [entries.enter_context(_entry_file(dataset, g, store)) for g in missing]
        done = 0
        yield done, total
        for rows in _decoded(dataset.images, missing, threads):
            for file, block in zip(files, rows, strict=True):
                file.write(block.data)
            done += len(rows[0])
            yield done, total


def open_pixels(dataset: Dataset, geometry: Preprocess, *, store: Store) -> UInt8[np.ndarray, "n h w c"]:
    """The pixels of `dataset` in its order, as a read-only memory map. Raises StoreError if they are not prepared."""
    entry = store.get(pixels_key(dataset, geometry))
    if entry is None:
        raise StoreError(
            f"The pixels of {dataset.root} at {geometry.size} pixels are not in the cache {store.folder}: they were "
            "never prepared, or made room for others. Run the study again; GRAFT_CACHE_GB sets the room."
        )
    return entry.array(_ARRAY)


def decoded(
    dataset: Dataset, rows: Int64[np.ndarray, " m"], geometries: Sequence[Preprocess]
) -> list[UInt8[np.ndarray, "m h w c"]]:
    """A few images of `dataset`, the same pixels as those of `preparing`. Raises DatasetError as it does."""
    return _rows([dataset.images[row] for row in rows], geometries)


def pixels_key(dataset: Dataset, geometry: Preprocess) -> str:
    """The store's key of the pixels: the bytes of the images in their order, and the geometry."""
    return content_key(VERSION, [image.digest for image in dataset.images], geometry.key)


@contextmanager
def _entry_file(dataset: Dataset, geometry: Preprocess, store: Store) -> Iterator[BinaryIO]:
    """The open array file of a new entry, after its header, to append rows to."""
    shape = (len(dataset), geometry.size, geometry.size, geometry.channels)
    with store.writing(pixels_key(dataset, geometry)) as folder:
        with (folder / f"{_ARRAY}.npy").open("wb") as file:
            header = {"descr": "|u1", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            yield file
        write_facts(folder, {"images": len(dataset), "size": geometry.size, "channels": geometry.channels})


def _decoded(
    images: Sequence[ImageReference], geometries: Sequence[Preprocess], threads: int
) -> Iterator[Rows]:
    """The rows of all `images`, a chunk at a time and in order, made by `threads` with a bounded lead."""
    bytes_per_image = sum(g.size * g.size * g.channels for g in geometries)
    step = min(_CHUNK_IMAGES, max(1, _CHUNK_BYTES // bytes_per_image))
    ahead: deque[Future[Rows]] = deque()
    with ThreadPoolExecutor(threads, "graft-pixels", step_back) as pool:
        try:
            for start in range(0, len(images), step):
                ahead.append(pool.submit(_rows, images[start : start + step], geometries))
                if len(ahead) > threads + 1:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            for future in ahead:
                future.cancel()


def _rows(images: Sequence[ImageReference], geometries: Sequence[Preprocess]) -> Rows:
    """One block `[rows, h, w, c]` per geometry."""
    rows = [np.empty((len(images), g.size, g.size, g.channels), np.uint8) for g in geometries]
    hints = [hint_side(g) for g in geometries]
    for row, reference in enumerate(images):
        pictures = _pictures(reference, hints)
        for block, picture, geometry in zip(rows, pictures, geometries, strict=True):
            block[row] = prepare(picture, geometry)
    return rows


def _pictures(reference: ImageReference, hints: Sequence[int]) -> list[Image.Image]:
    try:
        data = open_bytes(reference)
    except OSError as error:
        raise _changed(reference, f"cannot be read any more ({error.strerror or error})") from error
    if hashlib.blake2b(data, digest_size=20).hexdigest() != reference.digest:
        raise _changed(reference, "has changed since the images were checked")
    try:
        return read_each(data, hint_sides=hints)
    except UnreadableImage as error:
        raise _changed(reference, f"cannot be decoded: {error.reason}") from error


def _changed(reference: ImageReference, what: str) -> DatasetError:
    return DatasetError(
        f"{reference.name} ({reference.path}) {what}. Run the study again to check the images anew."
    )
