"""Near-duplicate groups in an index: images that the model sees as nearly the same.

In: an opened index, and a threshold of cosine similarity or none. Out: groups of at least two names, the closest group
first. Images are in one group when a chain of pairs above the threshold joins them; `least` tells how unlike its two
most unlike members are.

What a similarity means depends on the model: two different photos of one index reach 0.99, of another 0.8. So the usual
threshold is relative: a pair is close when `(1 - similarity) / (1 - mean similarity of all pairs)` is at most 0.15.
Measured on 200 photos each of hymenoptera and caltech101 with two backbones (mobilenetv2_100, mobilenetv1_025): of the
photos as they are, 0 to 2 % have such a neighbour; of copies that are mirrored, brightened or cropped by 5 %, 99 to
100 % are found, of those saved again as a JPEG of quality 50, 94 to 100 %, of those scaled to 60 %, 63 to 100 %. On 200
surface images of magnetic_tile these are 6 %, then 29 % (cropped) to 100 %, 25 % and 16 %: there the model looks at
what the copying changes.

Cost: all pairs where the search is exact, `n * n * d` multiply-adds (100,000 images of width 1280: minutes); beyond,
the graph's proposals of 32 neighbours for every image. Not covered: what the model does not see. A model that was
trained to tell two classes apart may find all images of a class nearly the same; then raise the threshold.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from graft.errors import SettingsError
from graft.similar.search import Index

USUAL_SHARE = 0.15
MOST_USUAL = 0.9999
BLOCK_CELLS = 2**24
NEIGHBOURS = 32

Pairs = Int64[np.ndarray, "m 2"]


@dataclass(frozen=True, slots=True)
class Group:
    """Images that are nearly the same, by name; `least` is the lowest cosine similarity between two of them."""

    names: tuple[str, ...]
    least: float


def usual_threshold(index: Index) -> float:
    """The cosine similarity that leaves a pair `USUAL_SHARE` of the usual distance; at most 0.9999.

    The mean similarity of all pairs of n unit vectors with the mean m is `(n |m|^2 - 1) / (n - 1)`.
    """
    count = len(index)
    total = np.zeros(index.width)
    size = max(1, BLOCK_CELLS // index.width)
    for start in range(0, count, size):
        total += index.vectors(start, min(start + size, count)).sum(axis=0, dtype=np.float64)
    usual = (float(total @ total) / count - 1) / max(count - 1, 1)
    return float(np.clip(1 - USUAL_SHARE * (1 - usual), 0.0, MOST_USUAL))


def groups(index: Index, *, threshold: float | None = None) -> list[Group]:
    """The near-duplicate groups at a cosine similarity of at least `threshold` (default: `usual_threshold`).

    Groups with the highest `least` come first, then the larger ones. Raises SettingsError for a threshold that is not
    above 0 and at most 1.
    """
    least = usual_threshold(index) if threshold is None else threshold
    if not 0 < least <= 1:
        raise SettingsError(f"The threshold {least:g} is no similarity; choose one above 0 and at most 1.")
    label = _components(index, least)
    order = np.argsort(label, kind="stable")
    starts = np.flatnonzero(np.diff(label[order], prepend=-1))
    found = [members for members in np.split(order, starts[1:]) if len(members) > 1]
    made = [Group(tuple(index.names[i] for i in members), _least(index, members)) for members in found]
    return sorted(made, key=lambda group: (-group.least, -len(group.names), group.names))


def _components(index: Index, threshold: float) -> Int64[np.ndarray, " n"]:
    """A number per image, the same for all that are joined; block by block, so that pairs never pile up."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    label = np.arange(len(index), dtype=np.int64)
    for pairs in _pairs(index, threshold):
        star = np.stack([np.arange(len(index)), label], axis=1)
        both = np.concatenate([star, pairs])
        ones = np.ones(len(both), np.int8)
        graph = coo_array((ones, (both[:, 0], both[:, 1])), shape=(len(index), len(index)))
        number = connected_components(graph, directed=False)[1]
        label = np.unique(number, return_index=True)[1][number].astype(np.int64)
    return label


def _pairs(index: Index, threshold: float) -> Iterator[Pairs]:
    """Pairs at or above the threshold; float32 rounding counts as equal."""
    least = threshold - 1e-6
    size = max(1, BLOCK_CELLS // len(index)) if index.exact else 1024
    for start in range(0, len(index), size):
        own = index.vectors(start, min(start + size, len(index)))
        if index.exact:
            close = np.argwhere(own @ index.vectors(start, len(index)).T >= least).astype(np.int64) + start
        else:
            close = _proposed(index, start, start + len(own), least)
        close = close[close[:, 0] != close[:, 1]]
        if len(close):
            yield close


def _proposed(index: Index, start: int, stop: int, least: float) -> Pairs:
    own = index.vectors(start, stop)
    found = []
    for offset, places in enumerate(index.proposals(start, stop, min(NEIGHBOURS, len(index)))):
        scores = index.picked(places) @ own[offset]
        near = places[scores >= least]
        found.append(np.stack([np.full(len(near), start + offset, np.int64), near], axis=1))
    return np.concatenate(found)


def _least(index: Index, members: Int64[np.ndarray, " m"]) -> float:
    rows = index.picked(members)
    size = max(1, BLOCK_CELLS // len(rows))
    lowest = min(float((rows[at : at + size] @ rows.T).min()) for at in range(0, len(rows), size))
    return min(1.0, max(-1.0, lowest))
