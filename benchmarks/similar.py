"""How long does a search for similar images take, exactly and by the graph, and how much does the graph miss?

    python benchmarks/similar.py [--images 100000] [--width 1280] [--queries 200]

Made embeddings: 1,000 clusters in 64 directions, mapped to the width and cut off at zero, as a network's pooled features
are. Both kinds of index are written to disk, opened, and asked for the ten nearest to pictures that they do not hold,
one query at a time. Opening includes the comparison of all hashes; a process of its own tells the memory.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from measuring import Target, beginning, keep, run, say, workplace

from graft.compute import cpu_threads
from graft.similar import folder as on_disk
from graft.similar import graph as graphs
from graft.similar.folder import Contents
from graft.similar.search import Index, open_index, unit_length

DIRECTIONS, CLUSTERS, SPREAD = 64, 1_000, 0.6
BLOCK = 10_000
TOPK = 10
OPENED = "import sys, numpy as np; from graft.similar.search import open_index; i = open_index(sys.argv[1]); "
SEARCHED = "i.search(np.ones((1, i.width), np.float32))"


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--images", type=int, default=100_000, help="(default: 100000)")
    options.add_argument("--width", type=int, default=1280, help="numbers per embedding (default: 1280)")
    options.add_argument("--queries", type=int, default=200, help="(default: 200)")
    given = options.parse_args()
    began = beginning()
    with workplace() as place:
        rows = made(given.images, given.width, seed=1)
        queries = made(given.queries, given.width, seed=2).astype(np.float32)
        facts = {
            "exact": measured(place / "exact", rows, queries, graph=False),
            "graph": measured(place / "graph", rows, queries, graph=True),
        }
        facts["graph"]["recall"] = recall(open_index(place / "exact"), open_index(place / "graph"), queries)
    say(f"recall@10 of the graph on new queries: {facts['graph']['recall']:.4f}")
    targets = [
        Target("milliseconds of an exact query", facts["exact"]["query_ms"], "at most", 50),
        Target("milliseconds of an indexed query", facts["graph"]["query_ms"], "at most", 2),
        Target("recall@10 of the index against exact", facts["graph"]["recall"], "at least", 0.98),
    ]
    facts["images"], facts["width"] = given.images, given.width
    keep("similar", facts, targets, began=began)


def made(count: int, width: int, *, seed: int) -> np.ndarray:
    """Embeddings of unit length in float16, block by block."""
    shape = np.random.default_rng(0)
    centres = shape.normal(size=(CLUSTERS, DIRECTIONS)).astype(np.float32)
    spread = shape.normal(size=(DIRECTIONS, width)).astype(np.float32)
    random = np.random.default_rng(seed)
    rows = np.empty((count, width), np.float16)
    for start in range(0, count, BLOCK):
        size = min(BLOCK, count - start)
        noise = random.standard_normal((size, DIRECTIONS), dtype=np.float32)
        points = centres[random.integers(0, CLUSTERS, size)] + SPREAD * noise
        rows[start : start + size] = unit_length(np.maximum(points @ spread, 0))
    return rows


def measured(place: Path, rows: np.ndarray, queries: np.ndarray, *, graph: bool) -> dict[str, Any]:
    """Write an index of `rows`, open it, search it."""
    started = time.perf_counter()
    write(place, rows, graph=graph)
    built = time.perf_counter()
    index = open_index(place)
    opened = time.perf_counter()
    seconds = []
    for query in queries:
        before = time.perf_counter()
        index.search(query[None], TOPK)
        seconds.append(time.perf_counter() - before)
    alone = run([sys.executable, "-c", OPENED + SEARCHED, place])
    found = {
        "build_seconds": round(built - started, 2),
        "open_seconds": round(opened - built, 3),
        "query_ms": 1000 * statistics.median(seconds),
        "query_ms_slowest_of_20": 1000 * float(np.quantile(seconds, 0.95)),
        "process": alone.summary,
        "disk_mb": round(sum(file.stat().st_size for file in place.iterdir()) / 1e6, 1),
    }
    if graph:
        found |= {"expansion": index.facts["expansion"], "recall_when_built": index.facts["recall"]}
    say(f"{'graph' if graph else 'exact'}: {found}")
    return found


def write(place: Path, rows: np.ndarray, *, graph: bool) -> None:
    """An index folder as `graft index` writes it."""
    keys = np.arange(1, len(rows) + 1)
    facts: dict[str, Any] = {"bundle": {"sha256": ""}, "root": "", "next_key": len(rows) + 1}
    saved = None
    if graph:
        built = graphs.empty(rows.shape[1])
        for done in graphs.add(built, keys, rows, threads=cpu_threads()):
            if done % (5 * graphs.BLOCK) == 0:
                say(f"  {done} of {len(rows)} in the graph")
        facts["expansion"], facts["recall"] = graphs.measured(built, keys, rows, threads=cpu_threads())

        def saved(path: Path) -> None:
            built.save(str(path))

    names = tuple(f"{number}.jpg" for number in keys)
    digests = tuple(f"{number:040x}" for number in keys)
    on_disk.write(place, Contents(names, digests, keys, rows, None, facts), save_graph=saved)


def recall(exact: Index, graph: Index, queries: np.ndarray) -> float:
    """The share of the ten nearest that the graph finds, too."""
    hits = 0
    for truth, found in zip(exact.search(queries, TOPK), graph.search(queries, TOPK), strict=True):
        hits += len({match.name for match in truth} & {match.name for match in found})
    return hits / (TOPK * len(queries))


if __name__ == "__main__":
    main()
