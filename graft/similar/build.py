"""From a bundle and a folder of images to an index folder, and from an index to its next state.

In: the bundle, a folder of images (any layout), a CSV or Parquet file, and the folder for the index. Out: the index,
and an `Indexed` that counts what happened: images that are new or changed are embedded, those that vanished leave, a
renamed one keeps its embedding. What cannot be read is named, counted and left out.

Cost: every file is read and hashed, every new image decoded and passed through the network once; 2 bytes a number in
memory and on disk (256 MB for 100,000 images of width 1280). Once a minute the state goes to disk, so that a killed
indexing continues. Not covered: two images with the same bytes count as two.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from jaxtyping import Float16, Float32, Int64

from graft.compute import cpu_threads
from graft.deploy.answers import LeftOut, answers
from graft.deploy.bundle import Bundle
from graft.errors import BundleError, DatasetError
from graft.images.folders import IMAGE_SUFFIXES, looks_like_image, walk
from graft.images.readers import read
from graft.images.rows import Listing, Row, name_below
from graft.similar import folder as on_disk
from graft.similar import graph as graphs
from graft.similar.folder import MANIFEST, UNFINISHED, Contents
from graft.similar.search import unit_length

EXACT_MOST = 100_000
SAVE_SECONDS = 60.0
LOCK = ".lock"
# A graph with more removed images than this share of the living ones is built anew.
MOST_REMOVED = 0.25

Step = tuple[str, int, int]


@dataclass(frozen=True, slots=True)
class Indexed:
    """What an indexing did: `images` are in the index now, of them `added` and `changed` since the last time.

    `removed` have left it, `embedded` went through the network; `left_out` could not be read. `recall` is the graph's
    recall@10 against exact search, None where none was built; `exact`: the search goes without one, because the images
    are few or the graph's recall was too low.
    """

    folder: Path
    images: int
    added: int
    changed: int
    removed: int
    embedded: int
    left_out: tuple[LeftOut, ...]
    recall: float | None
    exact: bool


@dataclass(frozen=True, slots=True, eq=False)
class _Known:
    """What earlier work left: keys by (name, digest), embeddings by digest, the index itself if there is one."""

    index: Contents | None
    keys: dict[tuple[str, str], int]
    rows: dict[str, Float16[np.ndarray, " d"]]
    next_key: int


@dataclass(slots=True, eq=False)
class _Growing:
    """The rows found so far, in the order of the names."""

    embeddings: Float16[np.ndarray, "m d"]
    names: list[str] = field(default_factory=list)
    digests: list[str] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    embedded: int = 0

    def add(self, name: str, digest: str, row: Float16[np.ndarray, " d"]) -> None:
        self.embeddings[len(self.names)] = row
        self.names.append(name)
        self.digests.append(digest)


def indexing(
    bundle: Bundle,
    source: str | Path,
    *,
    out: str | Path,
    overwrite: bool = False,
    rebuild: bool = False,
    exact_most: int = EXACT_MOST,
) -> Generator[Step, None, Indexed]:
    """Bring the index in `out` to what `source` holds now; yields (what, done, total), returns an `Indexed`.

    `overwrite`: an index of another model or another source may be replaced. `rebuild`: embed everything anew. Beyond
    `exact_most` images a graph is built. Raises DatasetError without a readable image, BundleError where `out` is
    something else, belongs to another model or source, or is being written to.
    """
    place = Path(out)
    listing = pictures(Path(source))
    _refuse(place)
    place.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(place / LOCK, timeout=0):
            known = _known(place, bundle, listing.root, overwrite=overwrite, rebuild=rebuild)
            return (yield from _updated(bundle, listing, place, known, exact_most))
    except Timeout:
        raise BundleError(
            f"Another process is writing the index {place}; wait until it has finished."
        ) from None


def pictures(source: Path) -> Listing:
    """The images in `source`, with or without classes. Raises DatasetError where there are none."""
    if source.is_dir():
        try:
            tree = walk(source)
        except OSError as error:
            raise DatasetError(f"{source} cannot be opened: {error.strerror or error}.") from error
        files = [file for file in tree.all_files() if looks_like_image(file)]
        if files:
            files.sort(key=lambda file: name_below(source, file))
            rows = tuple(Row(file, None, None) for file in files)
            return Listing(source, rows, (), tuple(tree.all_issues()))
        if not any(file.suffix.lower() == ".parquet" for file in tree.all_files()):
            raise DatasetError(f"{source} holds no image files; name a folder with images.")
    elif source.suffix.lower() in IMAGE_SUFFIXES:
        raise DatasetError(f"{source} is a single image; name the folder that holds the images.")
    return read(source)


def _refuse(place: Path) -> None:
    """A folder with something else in it is never touched."""
    if place.exists() and not place.is_dir():
        raise BundleError(f"{place} is a file; choose another --out.")
    if place.is_dir() and not (place / MANIFEST).exists():
        ours = (LOCK, UNFINISHED)
        foreign = [
            f.name for f in place.iterdir() if f.name not in ours and not on_disk.OURS.fullmatch(f.name)
        ]
        if foreign:
            raise BundleError(f"{place} holds other files ({foreign[0]}) and no index; choose another --out.")


def _known(place: Path, bundle: Bundle, root: Path, *, overwrite: bool, rebuild: bool) -> _Known:
    """What of the folder's earlier states can be used again. Raises BundleError where it is not ours to replace."""
    states = []
    mark = on_disk.bundle_key(bundle)
    for manifest in (MANIFEST, UNFINISHED):
        if not (place / manifest).exists():
            continue
        try:
            contents = on_disk.read(place, manifest=manifest)
        except BundleError:
            if manifest == MANIFEST and not overwrite:
                raise
            continue
        same_bundle = contents.facts["bundle"].get("sha256") == mark
        same_root = contents.facts["root"] == str(root.resolve())
        if manifest == MANIFEST and not overwrite and not (same_bundle and same_root):
            what = "images of another place" if same_bundle else "embeddings of another model"
            where = contents.facts["root"] if same_bundle else contents.facts["bundle"].get("folder")
            raise BundleError(
                f"{place} holds {what} ({where}). Choose another --out, or --overwrite to replace it."
            )
        if same_bundle and not rebuild:
            states.append((manifest, contents))
    index = next((contents for manifest, contents in states if manifest == MANIFEST), None)
    keys, rows = {}, {}
    for manifest, contents in states:
        for name, digest, key, row in zip(
            contents.names, contents.digests, contents.keys, contents.embeddings, strict=True
        ):
            rows[digest] = row
            if manifest == MANIFEST:
                keys[name, digest] = int(key)
    return _Known(index, keys, rows, index.facts["next_key"] if index else 1)


def _updated(
    bundle: Bundle, listing: Listing, place: Path, known: _Known, exact_most: int
) -> Generator[Step, None, Indexed]:
    facts: dict[str, Any] = {
        "bundle": {"folder": str(bundle.folder.resolve()), "sha256": on_disk.bundle_key(bundle)},
        "root": str(listing.root.resolve()),
    }
    grown = yield from _embedding(bundle, listing, place, known, facts)
    if not grown.names:
        first = f" ({grown.left_out[0].name}: {grown.left_out[0].reason})" if grown.left_out else ""
        raise DatasetError(f"{listing.root} holds no image that can be read{first}.")
    keys, next_key = _keys(grown, known)
    rows = grown.embeddings[: len(grown.names)]
    graph, more = (yield from _graph(keys, rows, known)) if len(rows) > exact_most else (None, {})
    facts = {
        **facts,
        **more,
        "next_key": next_key,
        "left_out": [{"name": one.name, "reason": one.reason} for one in grown.left_out],
    }
    contents = Contents(tuple(grown.names), tuple(grown.digests), keys, rows, None, facts)
    save = None if graph is None else lambda path: graph.save(str(path))
    on_disk.write(place, contents, save_graph=save)
    (place / UNFINISHED).unlink(missing_ok=True)
    on_disk.tidy(place)
    return _counted(place, grown, known, recall=more.get("recall"), exact=graph is None)


def _embedding(
    bundle: Bundle, listing: Listing, place: Path, known: _Known, facts: dict[str, Any]
) -> Generator[Step, None, _Growing]:
    """Every image's embedding, known or new; the state goes to disk now and then."""

    def ask(data: bytes, digest: str) -> Float32[np.ndarray, " d"] | None:
        return None if digest in known.rows else bundle.embed(data)[0]

    rows: Sequence[Row] = listing.rows
    width = bundle.embed([]).shape[1]
    grown = _Growing(np.empty((len(rows), width), np.float16))
    grown.left_out += [LeftOut(issue.name, issue.detail) for issue in listing.issues if issue.excluded]
    saved, saved_embedded = time.monotonic(), 0
    yield "embedding", 0, len(rows)
    for done, (row, answer) in enumerate(
        zip(rows, answers(rows, ask, threads=cpu_threads()), strict=True), start=1
    ):
        if answer.reason:
            grown.left_out.append(LeftOut(listing.name(row), answer.reason))
        elif answer.values is None:
            grown.add(listing.name(row), answer.digest, known.rows[answer.digest])
        else:
            grown.embedded += 1
            unit = unit_length(answer.values[None])[0].astype(np.float16)
            grown.add(listing.name(row), answer.digest, unit)
        if time.monotonic() - saved > SAVE_SECONDS and grown.embedded > saved_embedded:
            _save_unfinished(place, grown, facts)
            saved, saved_embedded = time.monotonic(), grown.embedded
        yield "embedding", done, len(rows)
    return grown


def _save_unfinished(place: Path, grown: _Growing, facts: dict[str, Any]) -> None:
    count = len(grown.names)
    contents = Contents(
        tuple(grown.names),
        tuple(grown.digests),
        np.arange(1, count + 1),
        grown.embeddings[:count],
        None,
        {**facts, "next_key": count + 1},
    )
    on_disk.write(place, contents, manifest=UNFINISHED)
    on_disk.tidy(place)


def _keys(grown: _Growing, known: _Known) -> tuple[Int64[np.ndarray, " n"], int]:
    """Each row's key: the old one of the same name and bytes, or one that was never used."""
    keys, next_key = [], known.next_key
    for name, digest in zip(grown.names, grown.digests, strict=True):
        key = known.keys.get((name, digest))
        if key is None:
            key, next_key = next_key, next_key + 1
        keys.append(key)
    return np.array(keys, np.int64), next_key


def _graph(
    keys: Int64[np.ndarray, " n"], rows: Float16[np.ndarray, "n d"], known: _Known
) -> Generator[Step, None, tuple[Any, dict[str, Any]]]:
    """The graph brought up to date or built anew, and its measured recall; None where the recall is too low."""
    threads = cpu_threads()
    old = known.index
    graph, removed, fresh = None, 0, np.ones(len(keys), bool)
    if old is not None and old.graph is not None:
        gone = np.setdiff1d(old.keys, keys)
        removed = int(old.facts.get("removed", 0)) + len(gone)
        if removed <= MOST_REMOVED * len(keys):
            graph = graphs.opened(old.graph, width=rows.shape[1], images=len(old.keys), changing=True)
            graphs.remove(graph, gone)
            fresh = ~np.isin(keys, old.keys)
    if graph is None:
        graph, removed = graphs.empty(rows.shape[1]), 0
    total = int(fresh.sum())
    for done in graphs.add(graph, keys[fresh], rows[fresh], threads=threads):
        yield "building the graph", done, total
    expansion, recall = graphs.measured(graph, keys, rows, threads=threads)
    if recall < graphs.WANTED_RECALL:
        return None, {"recall": recall}
    return graph, {"recall": recall, "expansion": expansion, "removed": removed}


def _counted(place: Path, grown: _Growing, known: _Known, *, recall: float | None, exact: bool) -> Indexed:
    before = {name for name, _ in known.keys}
    now = set(grown.names)
    same = sum((name, mark) in known.keys for name, mark in zip(grown.names, grown.digests, strict=True))
    return Indexed(
        folder=place,
        images=len(grown.names),
        added=len(now - before),
        changed=len(now & before) - same,
        removed=len(before - now),
        embedded=grown.embedded,
        left_out=tuple(grown.left_out),
        recall=recall,
        exact=exact,
    )
