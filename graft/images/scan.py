"""From a source of images to a checked Dataset: who is readable, who is whose twin, who belongs to which class.

In: a folder, CSV or Parquet file, or a folder of Parquet files. Out: a Dataset in the order of the names, whatever
order the file system has, with an Issue for everything that was remarked; nothing is left out without one.

Cost: every byte is read once (again where the images exceed 256 MB); every different image is decoded once, JPEGs at a
fraction of their size, and compared with the others. What was seen is kept in the store under the digests of the
images, so a second scan only reads and hashes: 400 photos of 45 MB take 1 s of processor time, then 0.1 s.
"""

from __future__ import annotations

import hashlib
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from jaxtyping import Bool, Float32, Int64, UInt8
from PIL import Image

from graft.compute import step_back
from graft.errors import DatasetError
from graft.images import duplicates
from graft.images.dataset import Dataset, ImageReference, Issue, IssueKind
from graft.images.decode import MAX_BYTES, UnreadableImage, read_with_size
from graft.images.readers import Listing, Row, read, read_bytes
from graft.images.remarks import class_issues, twin_issues
from graft.store import Store, content_key

_VERSION = 1
_HINT_SIDE = 64
_KEPT_BYTES = 256 * 1024**2
_ROWS_AT_ONCE = 16
# Grey levels by which the channels of a pixel may differ in an image without colour: JPEG rounding, and a few pixels.
_GREY_USUAL, _GREY_MOST = 4, 24

_In = TypeVar("_In")
_Out = TypeVar("_Out")
Failure = tuple[IssueKind, str]
_UNPLACED: Failure = ("unplaced", "The image belongs to no class: it has no label or class folder.")


def scan(source: Path | str, *, store: Store, threads: int) -> Dataset:
    """The checked dataset at `source`. Raises DatasetError where it makes no task, with what to do about it."""
    steps = inspecting(source, store=store, threads=threads)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


def inspecting(
    source: Path | str, *, store: Store, threads: int
) -> Generator[tuple[int, int], None, Dataset]:
    """`scan` step by step: yields how many images of how many are decoded, returns the Dataset."""
    listing = read(Path(source))
    total = len(listing.rows)
    yield 0, total
    with ThreadPoolExecutor(threads, "graft-scan", step_back) as pool:
        hashed = yield from _hashing(listing.rows, pool, threads)
        seen = yield from _seeing(listing.rows, hashed, store, pool, threads)
    yield total, total
    issues = list(listing.issues)
    places = _usable(listing, hashed, seen, issues)
    _check_classes(source, listing, places, issues)
    return _assembled(listing, places, hashed, seen, issues, store)


@dataclass(frozen=True, slots=True)
class _Hashed:
    """Per row: the digest, empty where the bytes cannot be had for the reason in `failures`; some bytes are kept."""

    digests: list[str]
    failures: dict[int, Failure]
    kept: dict[int, bytes]


@dataclass(frozen=True, slots=True)
class _Seen:
    """What the images look like, in the order of `digests` (sorted); `failures` has those that cannot be decoded."""

    digests: tuple[str, ...]
    widths: Int64[np.ndarray, " u"]
    heights: Int64[np.ndarray, " u"]
    grey: Bool[np.ndarray, " u"]
    thumbnails: UInt8[np.ndarray, "u 32 32"]
    tints: UInt8[np.ndarray, "u 4 4 3"]
    failures: dict[str, Failure]


@dataclass(frozen=True, slots=True)
class _Look:
    """One decoded image: its full size, whether it has no colour, and its sketch."""

    size: tuple[int, int]
    grey: bool
    thumbnail: UInt8[np.ndarray, "32 32"]
    tints: UInt8[np.ndarray, "4 4 3"]


def _hashing(
    rows: Sequence[Row], pool: ThreadPoolExecutor, threads: int
) -> Generator[tuple[int, int], None, _Hashed]:
    hashed, room = _Hashed([], {}, {}), _KEPT_BYTES
    for place, found in enumerate(_in_order(_fetched, rows, pool, threads)):
        if isinstance(found, bytes):
            hashed.digests.append(hashlib.blake2b(found, digest_size=20).hexdigest())
            if len(found) <= room:
                hashed.kept[place] = found
                room -= len(found)
        else:
            hashed.digests.append("")
            hashed.failures[place] = found
        if place % 500 == 0:
            yield 0, len(rows)
    return hashed


def _fetched(row: Row) -> bytes | Failure:
    try:
        if row.row is None and row.path.stat().st_size > MAX_BYTES:
            return "too_large", f"The file is larger than {MAX_BYTES:,} bytes."
        return read_bytes(row.path, row.row)
    except FileNotFoundError:
        return "unreadable", "The file does not exist."
    except OSError as error:
        return "unreadable", f"The file cannot be opened: {error.strerror or error}."


def _seeing(
    rows: Sequence[Row], hashed: _Hashed, store: Store, pool: ThreadPoolExecutor, threads: int
) -> Generator[tuple[int, int], None, _Seen]:
    """Every different image, from the store or decoded now."""
    first: dict[str, int] = {}
    for place, digest in enumerate(hashed.digests):
        if digest:
            first.setdefault(digest, place)
    digests = tuple(sorted(first))
    key = content_key("inspection", _VERSION, digests)
    entry = store.get(key)
    if entry is None:
        in_order = sorted(first.items(), key=lambda item: item[1])
        looks = yield from _decoding(rows, in_order, hashed, pool, threads)
        failures = {digest: found for digest, found in looks.items() if not isinstance(found, _Look)}
        entry = store.put(key, {"failures": failures}, **_arrays(digests, looks))
    hashed.kept.clear()
    arrays = {
        name: np.array(entry.array(name)) for name in ("widths", "heights", "grey", "thumbnails", "tints")
    }
    failed = {digest: (kind, reason) for digest, (kind, reason) in entry.facts["failures"].items()}
    return _Seen(digests, **arrays, failures=failed)


def _decoding(
    rows: Sequence[Row],
    wanted: list[tuple[str, int]],
    hashed: _Hashed,
    pool: ThreadPoolExecutor,
    threads: int,
) -> Generator[tuple[int, int], None, dict[str, _Look | Failure]]:
    """What the images at `wanted` (digest and place) look like; their kept bytes are let go."""

    def look(item: tuple[str, int]) -> _Look | Failure:
        place = item[1]
        data = hashed.kept.pop(place, None)
        return _look(read_bytes(rows[place].path, rows[place].row) if data is None else data)

    looks: dict[str, _Look | Failure] = {}
    for (digest, place), found in zip(wanted, _in_order(look, wanted, pool, threads), strict=True):
        looks[digest] = found
        yield place, len(rows)
    return looks


def _look(data: bytes) -> _Look | Failure:
    try:
        image, size = read_with_size(data, hint_side=_HINT_SIDE)
    except UnreadableImage as error:
        return error.kind, error.reason
    return _Look(size, _is_grey(image), *duplicates.sketch(image))


def _is_grey(image: Image.Image) -> bool:
    """Whether hardly a spot of the image has a colour."""
    if image.mode == "L":
        return True
    factor = min(image.size) // (2 * _HINT_SIDE)
    pixels = np.asarray(image.reduce(factor) if factor > 1 else image)
    gap = pixels.max(axis=2) - pixels.min(axis=2)
    return bool(gap.max() < _GREY_MOST and np.percentile(gap, 99) < _GREY_USUAL)


def _arrays(digests: Sequence[str], looks: dict[str, _Look | Failure]) -> dict[str, np.ndarray]:
    """The columns of `_Seen`; zero where an image could not be decoded."""
    none = _Look((0, 0), False, np.zeros((32, 32), np.uint8), np.zeros((4, 4, 3), np.uint8))
    rows = [look if isinstance(look := looks[digest], _Look) else none for digest in digests]
    return {
        "widths": np.array([row.size[0] for row in rows], np.int64),
        "heights": np.array([row.size[1] for row in rows], np.int64),
        "grey": np.array([row.grey for row in rows], bool),
        "thumbnails": np.array([row.thumbnail for row in rows], np.uint8).reshape(-1, 32, 32),
        "tints": np.array([row.tints for row in rows], np.uint8).reshape(-1, 4, 4, 3),
    }


def _in_order(
    function: Callable[[_In], _Out], items: Sequence[_In], pool: ThreadPoolExecutor, threads: int
) -> Iterator[_Out]:
    """`map` on a pool in blocks, with a bounded lead."""
    ahead: deque[Future[list[_Out]]] = deque()
    try:
        for start in range(0, len(items), _ROWS_AT_ONCE):
            block = items[start : start + _ROWS_AT_ONCE]
            ahead.append(pool.submit(lambda block: [function(item) for item in block], block))
            if len(ahead) > 2 * threads:
                yield from ahead.popleft().result()
        while ahead:
            yield from ahead.popleft().result()
    finally:
        for future in ahead:
            future.cancel()


def _usable(listing: Listing, hashed: _Hashed, seen: _Seen, issues: list[Issue]) -> list[int]:
    """The places of the rows that take part; the others get their issue."""
    places = []
    for place, row in enumerate(listing.rows):
        failure = hashed.failures.get(place) or seen.failures.get(hashed.digests[place])
        if failure is None and row.label is not None:
            places.append(place)
            continue
        kind, reason = failure or (
            "unplaced",
            "The image belongs to no class: it has no label or class folder.",
        )
        issues.append(Issue(listing.name(row), kind, reason, True, row.label or ""))
    return places


def _check_classes(source: Path | str, listing: Listing, places: list[int], issues: list[Issue]) -> None:
    """Raises DatasetError unless there are two classes to learn, and every split knows only classes of train."""
    found: dict[str, set[str]] = {}
    for place in places:
        row = listing.rows[place]
        found.setdefault(row.split, set()).add(row.label or "")
    if not found:
        raise DatasetError(_nothing(source, listing, issues))
    if "train" not in found:
        raise DatasetError(
            f"{source} has images for {' and '.join(sorted(found))}, but none for train. Add a folder or split called "
            "train, or remove the split names if they were meant as classes."
        )
    for split in ("val", "test"):
        if strangers := sorted(found.get(split, set()) - found["train"]):
            raise DatasetError(_strangers(source, split, strangers, found["train"]))
    if len(found["train"]) == 1:
        name = next(iter(found["train"]))
        others = [other for other in listing.classes if other != name]
        empty = f" {', '.join(map(repr, others))} have no readable image." if others else ""
        tables = sorted(listing.root.glob("*.csv")) if Path(source).is_dir() else []
        hint = f" If the labels are in {tables[0].name}, give that file instead." if tables else ""
        raise DatasetError(
            f"All {len(places)} images of {source} are of one class, {name!r}.{empty} Telling classes apart needs "
            f"images of at least two.{hint}"
        )


def _strangers(source: Path | str, split: str, strangers: list[str], known: set[str]) -> str:
    import difflib

    guesses = [
        f"{name!r} looks like {close[0]!r}"
        for name in strangers
        if (close := difflib.get_close_matches(name, sorted(known), 1))
    ]
    hint = f" ({'; '.join(guesses)}: a spelling?)" if guesses else ""
    return (
        f"In {source}, the {split} split has classes that train lacks: {', '.join(map(repr, strangers))}{hint}. "
        "Rename them, give train images of them, or remove them."
    )


def _nothing(source: Path | str, listing: Listing, issues: list[Issue]) -> str:
    if not listing.rows:
        return f"{source} holds no images. Give a folder with one sub-folder of images per class."
    kinds = Counter(issue.kind for issue in issues if issue.excluded)
    counted = ", ".join(f"{count} {kind.replace('_', ' ')}" for kind, count in kinds.most_common())
    example = next((issue for issue in issues if issue.excluded), None)
    shown = f" For example, {example.name}: {example.detail}" if example else ""
    return f"None of the {len(listing.rows)} files of {source} is a readable image of a class ({counted}).{shown}"


def _assembled(
    listing: Listing, places: list[int], hashed: _Hashed, seen: _Seen, issues: list[Issue], store: Store
) -> Dataset:
    rows = [listing.rows[place] for place in places]
    digests = [hashed.digests[place] for place in places]
    where = {digest: k for k, digest in enumerate(seen.digests)}
    look = np.array([where[digest] for digest in digests], np.int64)
    labels = [row.label or "" for row in rows]
    present = set(labels)
    classes = tuple(name for name in listing.classes if name in present)
    number = {name: k for k, name in enumerate(classes)}
    images = tuple(
        ImageReference(row.path, listing.name(row), digest, row.row)
        for row, digest in zip(rows, digests, strict=True)
    )
    near, scores, mirrored = _near_pairs(seen, look, digests, store)
    given = duplicates.equal_pairs([row.group for row in rows])
    same = duplicates.equal_pairs(digests)
    alike = duplicates.grouped(len(rows), near, same, given)
    series = alike if duplicates.in_series(alike) else None
    closest = near if series is None else near[scores >= duplicates.CLOSEST]
    groups = duplicates.grouped(len(rows), closest, same, given)
    issues += twin_issues(images, labels, near, scores, mirrored)
    issues += class_issues(listing.classes, labels, groups)
    return Dataset(
        root=listing.root,
        images=images,
        classes=classes,
        targets=np.array([number[label] for label in labels], np.int64),
        groups=groups,
        splits=tuple(row.split for row in rows),
        widths=seen.widths[look],
        heights=seen.heights[look],
        grey=seen.grey[look],
        issues=tuple(sorted(issues, key=lambda issue: (issue.name, issue.kind, issue.detail))),
        series=series,
    )


def _near_pairs(
    seen: _Seen, look: Int64[np.ndarray, " n"], digests: list[str], store: Store
) -> tuple[Int64[np.ndarray, "m 2"], Float32[np.ndarray, " m"], UInt8[np.ndarray, " m"]]:
    """Near-duplicates among the images that take part, each digest standing for its first image."""
    used, first = np.unique(look, return_index=True)
    key = content_key("near-pairs", _VERSION, duplicates.VERSION, sorted(set(digests)))
    entry = store.get(key)
    if entry is None:
        pairs, scores, mirrored = duplicates.near_pairs(seen.thumbnails[used], seen.tints[used])
        entry = store.put(key, pairs=pairs, scores=scores, mirrored=mirrored)
    links = np.sort(first[np.array(entry.array("pairs"))].reshape(-1, 2), axis=1)
    return links, np.array(entry.array("scores")), np.array(entry.array("mirrored"))
