"""The source of a training: any number of images, decoded once to squares on disk.

In: a folder (with classes, nested or flat), a Parquet file or a folder of them, or a CSV. Out: a `Source` whose pixels
are a memory map uint8 `[n, s, s, 3]`, in the order of the names. s is what the training needs, 1.15 times its input, or
less where the images themselves are smaller. Splits are not looked at: whoever wants to keep a part away names the rest.

Cost: one decode of every image, in pieces of a few hundred on all threads; memory stays at these pieces and 200 bytes
an image, disk at n s s 3 bytes in the cache. Images that cannot be read are left out, counted and named. The key is
made of the files' names, sizes and times, so a file that changed and kept all three is not noticed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int64, UInt8

from graft.errors import DatasetError
from graft.images.dataset import Preprocess
from graft.images.decode import UnreadableImage, read_with_size
from graft.images.folders import IMAGE_SUFFIXES, walk
from graft.images.preprocess import hint_side, prepare
from graft.images.readers import read, read_bytes
from graft.images.rows import name_below
from graft.store import Entry as Stored
from graft.store import Store, content_key, write_facts

PIXELS = "pixels.raw"
MARGIN = 1.15
LEAST_SIDE = 64
PIECE = 64
LOOKED_AT = 64
NAMED = 20


@dataclass(frozen=True, slots=True)
class Listed:
    """One image before it is decoded: its file, its line in a Parquet file, its class or None."""

    path: Path
    row: int | None
    label: str | None


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """The decoded source. `pixels`: uint8 `[n, s, s, 3]` on disk. `labels[i]` is an index into `classes`, -1 without one; `left_out` counts what failed."""

    key: str
    pixels: np.memmap
    labels: Int64[np.ndarray, " n"]
    classes: tuple[str, ...]
    left_out: int
    failures: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.pixels)

    def images(self, rows: Int64[np.ndarray, " m"]) -> UInt8[np.ndarray, "m s s 3"]:
        """Some of the pixels, read from the file: pages of a memory map would count as memory of this process."""
        found = np.empty((len(rows), *self.pixels.shape[1:]), np.uint8)
        with Path(str(self.pixels.filename)).open("rb", buffering=0) as file:
            for place, row in enumerate(rows):
                file.seek(int(row) * found[0].nbytes)
                file.readinto(found[place].data)
        return found


def opening_source(
    place: Path, *, size: int, labelled: bool, store: Store, threads: int
) -> Generator[tuple[int, int], None, Source]:
    """List and decode; yields (images done, images in all) and returns the source. `size`: the side of the input.

    Raises DatasetError where there is no image, only one, or, if `labelled`, no two classes; StoreError on a full disk.
    """
    listed = _listed(place, labelled=labelled)
    if not listed:
        raise DatasetError(
            f"{place} holds no images. Give a folder of images or Parquet files with image bytes."
        )
    key = content_key("source.v1", size, labelled, _identities(place, listed))
    stored = store.get(key)
    if stored is None:
        side = _side(listed, size)
        with store.writing(key) as folder, closing(_written(folder, place, listed, side, threads)) as work:
            yield from work
        stored = store.get(key)
        assert stored is not None
    return _opened(stored)


def _opened(stored: Stored) -> Source:
    facts = stored.facts
    shape = (facts["images"], facts["side"], facts["side"], 3)
    return Source(
        key=stored.folder.name,
        pixels=np.memmap(stored.file(PIXELS), np.uint8, "r", shape=shape),
        labels=np.array(stored.array("labels")),
        classes=tuple(facts["classes"]),
        left_out=facts["left_out"],
        failures=tuple(facts["failures"]),
    )


def _listed(place: Path, *, labelled: bool) -> list[Listed]:
    if labelled or place.suffix.lower() in (".csv", ".tsv") or not place.exists():
        listing = read(place)
        kept = (row for row in listing.rows if row.label is not None or not labelled)
        return [Listed(row.path, row.row, row.label) for row in kept]
    if place.is_file():
        return _cells(place) if place.suffix.lower() == ".parquet" else _one_image(place)
    try:
        files = sorted(walk(place).all_files(), key=lambda file: name_below(place, file))
    except OSError as error:
        raise DatasetError(f"{place} cannot be opened: {error.strerror or error}.") from error
    images = [Listed(file, None, None) for file in files if file.suffix.lower() in IMAGE_SUFFIXES]
    return images or [cell for file in files if file.suffix.lower() == ".parquet" for cell in _cells(file)]


def _one_image(place: Path) -> list[Listed]:
    if place.suffix.lower() in IMAGE_SUFFIXES:
        return [Listed(place, None, None)]
    raise DatasetError(f"{place} is neither a folder nor a Parquet or CSV file. Give one of these.")


def _cells(path: Path) -> list[Listed]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            return [Listed(path, row, None) for row in range(file.metadata.num_rows)]
    except (pa.ArrowException, OSError) as error:
        raise DatasetError(f"{path} cannot be read as a Parquet file: {error}") from error


def _identities(place: Path, listed: Sequence[Listed]) -> list[object]:
    """Name, size and time of every file, and what is read of it: images, or lines with their labels."""
    files = dict.fromkeys(one.path for one in listed)
    known = []
    for path in files:
        try:
            status = path.stat()
            known.append([name_below(place, path), status.st_size, status.st_mtime_ns])
        except OSError:  # it is named among those that cannot be read
            known.append([name_below(place, path), -1, -1])
    return [known, len(listed), [one.label for one in listed]]


def _side(listed: Sequence[Listed], size: int) -> int:
    """The side of the squares: 1.15 times the input's, or the median short side of the images where that is less."""
    shorter = []
    for index in np.linspace(0, len(listed) - 1, min(LOOKED_AT, len(listed))).astype(int):
        try:
            shorter.append(min(read_with_size(_encoded(listed[index]), hint_side=8)[1]))
        except UnreadableImage:
            continue
    have = int(np.median(shorter)) if shorter else size
    return max(LEAST_SIDE, min(round(size * MARGIN), have))


def _written(
    folder: Path, place: Path, listed: Sequence[Listed], side: int, threads: int
) -> Generator[tuple[int, int], None, None]:
    """Decode into `folder`, in order; yields (done, total) and writes the facts at last."""
    classes = tuple(sorted({one.label for one in listed if one.label is not None}))
    index = {name: number for number, name in enumerate(classes)}
    kept: list[int] = []
    failures: list[str] = []
    done = 0
    yield done, len(listed)
    with (folder / PIXELS).open("wb") as file:
        for piece, rows in _decoded(listed, side, threads):
            for one, picture in zip(piece, rows, strict=True):
                if isinstance(picture, str):
                    failures.append(f"{_named(place, one)}: {picture}")
                else:
                    file.write(picture.data)
                    kept.append(-1 if one.label is None else index[one.label])
            done += len(piece)
            yield done, len(listed)
    labels = np.array(kept, np.int64)
    _refuse_few(place, labels, classes, failures)
    np.save(folder / "labels.npy", labels)
    facts = {"images": len(labels), "side": side, "classes": list(classes), "left_out": len(failures)}
    write_facts(folder, {**facts, "failures": failures[:NAMED]})


def _refuse_few(
    place: Path, labels: Int64[np.ndarray, " n"], classes: Sequence[str], failures: Sequence[str]
) -> None:
    if len(labels) < 2:
        one = "one image that can be read; a training needs at least 2, and thousands to be of use"
        none = f"no image that can be read ({failures[0]})" if failures else "no image that can be read"
        raise DatasetError(f"{place} holds {one if len(labels) else none}. Give a larger source.")
    if classes and len(set(labels.tolist())) < 2:
        raise DatasetError(
            f"{place} holds images of one class only, which teaches nothing. Give more classes, or a --teacher."
        )


def _named(place: Path, one: Listed) -> str:
    return name_below(place, one.path) + ("" if one.row is None else f"#{one.row}")


Pictures = list[UInt8[np.ndarray, "s s 3"] | str]


def _decoded(
    listed: Sequence[Listed], side: int, threads: int
) -> Iterator[tuple[Sequence[Listed], Pictures]]:
    """The pictures of all images, a piece at a time and in order, made by `threads` with a bounded lead."""
    ahead: deque[tuple[Sequence[Listed], Future[Pictures]]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="graft-source") as pool:
        try:
            for start in range(0, len(listed), PIECE):
                piece = listed[start : start + PIECE]
                ahead.append((piece, pool.submit(_pictures, piece, side)))
                if len(ahead) > threads + 1:
                    ready, future = ahead.popleft()
                    yield ready, future.result()
            while ahead:
                ready, future = ahead.popleft()
                yield ready, future.result()
        finally:
            for _, future in ahead:
                future.cancel()


def _pictures(piece: Sequence[Listed], side: int) -> Pictures:
    geometry = Preprocess(side, crop_share=1.0)
    pictures: Pictures = []
    for one in piece:
        try:
            image, _ = read_with_size(_encoded(one), hint_side=hint_side(geometry))
            pictures.append(prepare(image, geometry))
        except UnreadableImage as error:
            pictures.append(error.reason)
    return pictures


def _encoded(one: Listed) -> bytes:
    try:
        return read_bytes(one.path, one.row)
    except OSError as error:
        raise UnreadableImage(
            "unreadable", f"The file cannot be opened: {error.strerror or error}."
        ) from error
