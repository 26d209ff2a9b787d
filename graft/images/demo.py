"""A made image set for trying Graft without any download: a folder of good and defective surfaces.

In: how many files of each class and a seed. Out: a folder `good/`, `defective/` of PNG and JPEG files drawn by
`graft.images.surfaces`, and the hidden `.graft-demo.json` that says what it holds. Because that is what folders of
photographs are like, some of the files counted are no images (truncated, empty, text) or copies of others (the same
bytes, compressed again, made smaller, put under the other class too).

Cost: about 7 s for 1,250 files on two cores, 23 MB. The bytes depend on the numbers and the seed, and on the versions
of numpy, scipy and Pillow; not on threads or time.
"""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from graft.errors import DatasetError, SettingsError
from graft.images.surfaces import Label, picture

MANIFEST = ".graft-demo.json"
VERSION = 1
THREADS = 2

Content = Literal["picture", "truncated", "empty", "text", "copy", "recompressed", "smaller", "other_class"]

TROUBLES: dict[Label, tuple[Content, ...]] = {
    "good": ("truncated", "empty", "text", "copy", "recompressed", "smaller", "copy", "other_class"),
    "defective": ("truncated", "copy", "recompressed"),
}
TEXT = b"This is a note, not a photograph: camera 2 was cleaned after this batch.\n"


@dataclass(frozen=True, slots=True)
class Item:
    """One file: number `number` of the class `label`; `source` is the picture that a copy is made from."""

    label: Label
    number: int
    content: Content = "picture"
    source: int = 0


def write(
    folder: Path, *, good: int = 1000, defective: int = 250, seed: int = 0
) -> Iterator[tuple[int, int]]:
    """Write the set to `folder`, yielding (files done, files in all) after each file.

    `good` and `defective` count files, the troubled ones among them (at most half of a class). The files appear in a
    hidden folder beside `folder`, which gets its name when all are there: a stopped run leaves nothing behind (a
    killed one the hidden folder). If `folder` holds the same set already, it is kept and one pair is yielded; an empty
    folder is filled.

    Raises, at the first step, SettingsError for a count below 1 or a negative seed, and DatasetError if `folder`
    holds anything else or cannot be written.
    """
    if min(good, defective) < 1 or seed < 0:
        raise SettingsError(
            f"A demo set of {good} good and {defective} defective files with seed {seed} cannot be made: "
            "give at least one file of each class and a seed of 0 or more."
        )
    facts = {"version": VERSION, "good": good, "defective": defective, "seed": seed}
    folder = folder.absolute()
    total = good + defective
    if _holds(folder, facts):
        yield total, total
        return
    items = [item for label in TROUBLES for item in plan(label, facts[label])]
    try:
        building = folder.parent / f".{folder.name}.{os.urandom(4).hex()}"
        building.mkdir(parents=True)
    except OSError as error:
        raise _unwritable(folder, error) from error
    try:
        for done, _ in enumerate(_files(building, items, seed), start=1):
            yield done, total
        (building / MANIFEST).write_text(json.dumps(facts), encoding="utf-8")
        if folder.exists():
            folder.rmdir()  # empty, as _holds has seen; refuses by itself if that is no longer so
        building.rename(folder)
    except OSError as error:
        raise _unwritable(folder, error) from error
    finally:
        shutil.rmtree(building, ignore_errors=True)


def plan(label: Label, count: int) -> list[Item]:
    """The `count` files of one class; the troubled ones are spread evenly, each right after its source."""
    troubles = TROUBLES[label][: count // 2]
    items = [Item(label, number) for number in range(count)]
    for turn, content in enumerate(troubles):
        source = turn * count // len(troubles)
        items[source + 1] = Item(label, source + 1, content, source)
    return items


def encoded(item: Item, seed: int) -> tuple[str, bytes]:
    """The suffix and the bytes of one file; the same for the same item and seed, whatever else is made."""
    if item.content == "picture":
        return _photograph(seed, item.label, item.number)
    if item.content == "copy":
        return _photograph(seed, item.label, item.source)
    if item.content == "other_class":
        return _photograph(seed, "defective", 0)
    if item.content == "empty":
        return ".png", b""
    if item.content == "text":
        return ".jpg", TEXT
    if item.content == "truncated":
        whole = _jpeg(_pixels(seed, item.label, item.number), quality=90)
        return ".jpg", whole[: len(whole) * 2 // 5]
    pixels = _pixels(seed, item.label, item.source)
    if item.content == "recompressed":
        return ".jpg", _jpeg(pixels, quality=60)
    image = Image.fromarray(pixels)
    return ".png", _png(np.asarray(image.resize((image.width * 4 // 5, image.height * 4 // 5))))


def _photograph(seed: int, label: Label, number: int) -> tuple[str, bytes]:
    """A picture as the camera stored it: PNG or JPEG by the toss of a coin that does not know the class."""
    pixels = _pixels(seed, label, number)
    random = _generator(seed, label, number, "format")
    if random.random() < 0.5:
        return ".png", _png(pixels)
    return ".jpg", _jpeg(pixels, quality=int(random.integers(85, 96)))


def _pixels(seed: int, label: Label, number: int) -> UInt8[np.ndarray, "h w"]:
    return picture(_generator(seed, label, number, "picture"), label, number)


def _generator(
    seed: int, label: Label, number: int, use: Literal["picture", "format"]
) -> np.random.Generator:
    return np.random.default_rng([seed, list(TROUBLES).index(label), number, int(use == "format")])


def _png(pixels: UInt8[np.ndarray, "h w"]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=3)
    return file.getvalue()


def _jpeg(pixels: UInt8[np.ndarray, "h w"], *, quality: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    return file.getvalue()


def _files(folder: Path, items: list[Item], seed: int) -> Iterator[Path]:
    """Write the items on two threads (numpy and Pillow let go of the interpreter) and yield each path when done."""
    for label in TROUBLES:
        (folder / label).mkdir()

    def one(item: Item) -> Path:
        suffix, content = encoded(item, seed)
        path = folder / item.label / f"part_{item.number:04d}{suffix}"
        path.write_bytes(content)
        return path

    pool = ThreadPoolExecutor(THREADS)
    try:
        for future in as_completed([pool.submit(one, item) for item in items]):
            yield future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _holds(folder: Path, facts: dict[str, int]) -> bool:
    """Whether the set is there already; False if nothing is. Raises DatasetError if something else is."""
    try:
        if not os.path.lexists(folder) or (folder.is_dir() and not any(folder.iterdir())):
            return False
        found = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise DatasetError(
            f"{folder} is there already and is not a demo set; it was left as it is. "
            "Name a folder that does not exist yet."
        ) from None
    if found != facts:
        raise DatasetError(
            f"{folder} holds another demo set ({json.dumps(found)[:200]}, wanted {json.dumps(facts)}); it was left as "
            "it is. Name another folder or delete this one."
        )
    for label in TROUBLES:
        count = sum(1 for _ in (folder / label).glob("part_*"))
        if count != facts[label]:
            raise DatasetError(
                f"The demo set in {folder} is damaged: {label} has {count} of {facts[label]} files. "
                "Delete the folder to have it made again."
            )
    return True


def _unwritable(folder: Path, error: OSError) -> DatasetError:
    return DatasetError(
        f"The demo set cannot be written to {folder}: {error.strerror or error}. Name another folder or free some space."
    )
