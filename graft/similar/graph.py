"""An approximate index for many images: an HNSW graph (Malkov and Yashunin 2018, arXiv 1603.09320) by usearch.

In: embeddings of unit length and the keys that the graph shall know them by. Out: a graph that finds the keys of the
nearest ones, after it has been measured against exact search: `expansion` is the smallest search effort whose recall@10
on the index's own images reaches `WANTED_RECALL`.

Cost: the graph holds a copy of the embeddings in float16; building 100,000 of width 1280 takes minutes of processor
time, a search a millisecond. With several threads two buildings give slightly different graphs.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float16, Float32, Int64

from graft.errors import BundleError

CONNECTIVITY = 24
BUILD_EXPANSION = 128
EXPANSIONS = (64, 128, 256, 512, 1024)
WANTED_RECALL = 0.98
PROBES = 256
PROBED = 10
BLOCK = 4096


def empty(width: int) -> Any:
    """A graph without images for embeddings `[n, width]`."""
    from usearch.index import Index

    return Index(
        ndim=width,
        metric="ip",
        dtype="f16",
        connectivity=CONNECTIVITY,
        expansion_add=BUILD_EXPANSION,
        expansion_search=EXPANSIONS[0],
    )


def opened(place: Path, *, width: int, images: int, changing: bool = False) -> Any:
    """The graph in a file: memory-mapped, or in memory for `changing` it.

    Raises BundleError where it is not one of so many images of this width. The file's hash was compared before: usearch
    trusts what it reads.
    """
    from usearch.index import Index

    try:
        graph = Index.restore(str(place), view=not changing)
    except (RuntimeError, ValueError, OSError, MemoryError) as error:
        raise BundleError(f"usearch cannot open {place}: {error}. Make the index again.") from error
    if graph is None or graph.ndim != width or len(graph) != images:
        raise BundleError(f"{place} is not the graph of this index. Make the index again.")
    return graph


def add(
    graph: Any, keys: Int64[np.ndarray, " n"], embeddings: Float16[np.ndarray, "n d"], *, threads: int
) -> Iterator[int]:
    """Put rows into the graph, block by block; yields how many are in."""
    graph.expansion_add = BUILD_EXPANSION
    for start in range(0, len(keys), BLOCK):
        part = slice(start, start + BLOCK)
        graph.add(keys[part].astype(np.uint64), np.ascontiguousarray(embeddings[part]), threads=threads)
        yield min(start + BLOCK, len(keys))


def remove(graph: Any, keys: Int64[np.ndarray, " m"]) -> None:
    """Take rows out; their places are kept as way stations until the graph is built anew."""
    if len(keys):
        graph.remove(keys.astype(np.uint64))


def nearest(
    graph: Any, queries: Float32[np.ndarray, "q d"], count: int, *, expansion: int, threads: int = 1
) -> list[Int64[np.ndarray, " m"]]:
    """The keys of about the `count` nearest rows to each query, nearest first."""
    if graph.expansion_search != max(expansion, count):
        graph.expansion_search = max(expansion, count)
    found = graph.search(queries.astype(np.float16), count, threads=threads)
    if len(queries) == 1 and found.keys.ndim == 1:
        return [found.keys.astype(np.int64)]
    return [keys[:number].astype(np.int64) for keys, number in zip(found.keys, found.counts, strict=True)]


def measured(
    graph: Any,
    keys: Int64[np.ndarray, " n"],
    embeddings: Float16[np.ndarray, "n d"],
    *,
    threads: int,
    seed: int = 0,
) -> tuple[int, float]:
    """The search effort that reaches the wanted recall@10, and the recall; the highest effort where none does.

    Asked for are up to 256 of the index's own images, the image itself not counted.
    """
    random = np.random.default_rng(seed)
    probes = np.sort(random.choice(len(keys), min(PROBES, len(keys)), replace=False))
    queries = embeddings[probes].astype(np.float32)
    truth = _exact(embeddings, queries, probes)
    for expansion in EXPANSIONS:
        found = nearest(graph, queries, truth.shape[1] + 1, expansion=expansion, threads=threads)
        hits = sum(len(np.intersect1d(keys[rows], near)) for rows, near in zip(truth, found, strict=True))
        recall = hits / truth.size
        if recall >= WANTED_RECALL:
            break
    return expansion, recall


def _exact(
    embeddings: Float16[np.ndarray, "n d"],
    queries: Float32[np.ndarray, "q d"],
    own: Int64[np.ndarray, " q"],
) -> Int64[np.ndarray, "q m"]:
    """The rows of the ten nearest to each query but its own, block by block."""
    count = min(PROBED, len(embeddings) - 1)
    rows = np.empty((len(queries), 0), np.int64)
    best = np.empty((len(queries), 0), np.float32)
    for start in range(0, len(embeddings), BLOCK):
        part = queries @ embeddings[start : start + BLOCK].astype(np.float32).T
        inside = (own >= start) & (own < start + part.shape[1])
        part[inside, own[inside] - start] = -np.inf
        here = np.arange(start, start + part.shape[1])
        best = np.concatenate([best, part], axis=1)
        rows = np.concatenate([rows, np.broadcast_to(here, part.shape)], axis=1)
        order = np.argsort(-best, axis=1, kind="stable")[:, :count]
        best, rows = np.take_along_axis(best, order, 1), np.take_along_axis(rows, order, 1)
    return rows
