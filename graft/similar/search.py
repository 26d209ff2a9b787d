"""An opened index: which images look like this one.

In: the folder that `graft index` made, and embeddings of the same bundle. Out: for each query its most similar images
with their cosine similarity, -1 to 1. Up to 100,000 images the search is exact (a matrix product); beyond, an HNSW
graph proposes and the embeddings decide, so that the similarities are exact there, too.

Cost: exact search holds the embeddings as float32 (512 MB for 100,000 images of width 1280) and takes 16 ms for a query
of these on one core; the graph is memory-mapped and takes about a millisecond. Any number of threads may search at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Float16, Float32, Int64

from graft.deploy.bundle import Bundle
from graft.errors import BundleError, SettingsError
from graft.similar import folder as on_disk
from graft.similar import graph as graphs

BLOCK_CELLS = 2**24
SPARE = 10  # how many more images than asked for a graph proposes


@dataclass(frozen=True, slots=True)
class Match:
    """One similar image: its name in the index and its cosine similarity to the query."""

    name: str
    similarity: float


class Index:
    """An opened index folder. `names` are relative to `root`, `digests` are the hashes of their bytes; `facts` is the
    whole of `index.json`."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        contents = on_disk.read(self.folder)
        self.facts = contents.facts
        self.names = contents.names
        self.digests = contents.digests
        self.width = int(contents.embeddings.shape[1])
        self._keys = contents.keys
        self._by_key = np.argsort(contents.keys)
        self._graph: Any = None
        self._rows: Float16[np.ndarray, "n d"] | Float32[np.ndarray, "n d"] = contents.embeddings
        if contents.graph is None:
            self._rows = unit_length(contents.embeddings)
        else:
            self._graph = graphs.opened(contents.graph, width=self.width, images=len(self.names))

    def __len__(self) -> int:
        return len(self.names)

    @property
    def root(self) -> Path:
        """The folder that the names are relative to, as it was when the index was made."""
        return Path(self.facts["root"])

    @property
    def exact(self) -> bool:
        """Whether a search compares the query with every image."""
        return self._graph is None

    def belongs_to(self, bundle: Bundle) -> bool:
        """Whether `bundle` is the model that the index was made with: only its embeddings can be searched for."""
        return self.facts["bundle"].get("sha256") == on_disk.bundle_key(bundle)

    def search(self, embeddings: Float32[np.ndarray, "q d"], topk: int = 10) -> list[list[Match]]:
        """The `topk` most similar images for each row of `embeddings` (`Bundle.embed`), most similar first.

        Fewer where the index holds fewer; of equally similar ones the earlier name comes first. The rows need not be of
        unit length. Raises SettingsError for another width, a number that is none, or a `topk` below 1.
        """
        if topk < 1:
            raise SettingsError(f"{topk} similar images cannot be listed; choose a number from 1 up.")
        if embeddings.shape[1] != self.width:
            raise SettingsError(
                f"The index {self.folder} holds embeddings of {self.width} numbers, the query has "
                f"{embeddings.shape[1]}: it comes from another model. Use the one that made the index."
            )
        if not np.isfinite(embeddings).all():
            raise SettingsError(
                "The query's embedding holds something that is not a number; it cannot be compared."
            )
        queries, count = unit_length(embeddings), min(topk, len(self))
        found = self._exact(queries, count) if self.exact else self._approximate(queries, count)
        return [[Match(self.names[row], float(score)) for row, score in one] for one in found]

    def vectors(self, start: int, stop: int) -> Float32[np.ndarray, "m d"]:
        """The embeddings of the images from place `start` to before `stop`, of unit length."""
        return unit_length(self._rows[start:stop])

    def picked(self, places: Int64[np.ndarray, " m"]) -> Float32[np.ndarray, "m d"]:
        """The embeddings of the images at these places, of unit length."""
        return unit_length(self._rows[places])

    def proposals(self, start: int, stop: int, count: int) -> list[Int64[np.ndarray, " m"]]:
        """The places of about the `count` nearest images to each of those from `start` to before `stop`.

        Only where the index is not `exact`.
        """
        keys = graphs.nearest(self._graph, self.vectors(start, stop), count, expansion=self._expansion)
        return [self._places(part) for part in keys]

    @property
    def _expansion(self) -> int:
        return int(self.facts.get("expansion", graphs.EXPANSIONS[-1]))

    def _exact(self, queries: Float32[np.ndarray, "q d"], count: int) -> list[list[tuple[int, float]]]:
        found = []
        size = max(1, BLOCK_CELLS // len(self))
        for start in range(0, len(queries), size):
            part = queries[start : start + size]
            table = (self._rows @ part[0])[None] if len(part) == 1 else part @ self._rows.T
            found += [_best(scores, np.arange(len(self)), count) for scores in table]
        return found

    def _approximate(self, queries: Float32[np.ndarray, "q d"], count: int) -> list[list[tuple[int, float]]]:
        near = graphs.nearest(self._graph, queries, count + SPARE, expansion=self._expansion)
        found = []
        for query, keys in zip(queries, near, strict=True):
            places = np.sort(self._places(keys))
            found.append(_best(self.picked(places) @ query, places, count))
        return found

    def _places(self, keys: Int64[np.ndarray, " m"]) -> Int64[np.ndarray, " m"]:
        """Where the images with these keys stand; a key that the index does not have is left out."""
        at = np.searchsorted(self._keys, keys, sorter=self._by_key)
        places = self._by_key[np.minimum(at, len(self) - 1)]
        return places[self._keys[places] == keys]


def open_index(folder: str | Path) -> Index:
    """Open an index folder for searching.

    Raises BundleError if it is missing, incomplete, altered, or of a newer format.
    """
    return Index(folder)


def matching_bundle(index: Index, bundle: Bundle | None = None) -> Bundle:
    """`bundle`, or the one at the place where it lay when the index was made; it must be the very same model.

    Raises BundleError where it is not, or cannot be opened.
    """
    given = bundle
    if given is None:
        place = Path(str(index.facts["bundle"].get("folder")))
        if not place.is_dir():
            raise BundleError(
                f"The model that made the index {index.folder} is not at {place} any more. Name it with --model."
            )
        given = Bundle(place)
    if not index.belongs_to(given):
        raise BundleError(
            f"The index {index.folder} was made with another model than {given.folder}; their embeddings cannot be "
            "compared. Make the index again with this model, or name the right one with --model."
        )
    return given


def unit_length(rows: Float[np.ndarray, "n d"]) -> Float32[np.ndarray, "n d"]:
    """The rows as float32 of length 1; a row of zeros stays as it is."""
    scaled = np.empty(rows.shape, np.float32)
    size = max(1, BLOCK_CELLS // max(rows.shape[1], 1))
    for start in range(0, len(rows), size):
        part = rows[start : start + size].astype(np.float32)
        most = np.abs(part).max(axis=1, keepdims=True, initial=0.0)
        part /= np.where(most > 0, most, 1)  # squares of very large or small numbers stay within float32
        length = np.linalg.norm(part, axis=1, keepdims=True)
        scaled[start : start + size] = part / np.where(length > 0, length, 1)
    return scaled


def _best(
    scores: Float32[np.ndarray, " m"], places: Int64[np.ndarray, " m"], count: int
) -> list[tuple[int, float]]:
    """The `count` highest scores with their places; of equal ones the lower place."""
    count = min(count, len(scores))
    if count == 0:
        return []
    least = np.partition(scores, len(scores) - count)[len(scores) - count]
    kept = np.flatnonzero(scores >= least)
    order = kept[np.lexsort((places[kept], -scores[kept]))][:count]
    return [(int(places[i]), min(1.0, max(-1.0, float(scores[i])))) for i in order]
