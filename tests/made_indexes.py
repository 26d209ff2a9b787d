"""Index folders of made embeddings, without a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from graft.similar import folder as on_disk
from graft.similar import graph as graphs
from graft.similar.folder import Contents
from graft.similar.search import unit_length


def embeddings(count: int, width: int = 32, *, kinds: int = 12, seed: int = 0) -> np.ndarray:
    """Clusters in a space of few directions, as a network's features are; float32 `[n, d]`, not of unit length."""
    random = np.random.default_rng(seed)
    inner = min(width, 12)
    spread = np.random.default_rng(1).normal(size=(inner, width))
    centres = np.random.default_rng(2).normal(size=(kinds, inner))
    points = centres[random.integers(0, kinds, count)] + random.normal(0, 0.7, (count, inner))
    return np.maximum(points @ spread, 0).astype(np.float32) + np.float32(0.01)


def made_index(folder: Path, rows: np.ndarray, *, graph: bool = False, names: tuple[str, ...] = ()) -> Path:
    """An index folder of these rows; image i is called `i.jpg` and has the key 10 + 3 i."""
    keys = 10 + 3 * np.arange(len(rows))
    unit = unit_length(rows).astype(np.float16)
    facts: dict[str, Any] = {
        "bundle": {"folder": "gone/model.graft", "sha256": "b" * 64},
        "root": "photos",
        "next_key": int(keys[-1]) + 1,
    }
    save = None
    if graph:
        made = graphs.empty(rows.shape[1])
        for _ in graphs.add(made, keys, unit, threads=1):
            pass
        facts["expansion"], facts["recall"] = graphs.measured(made, keys, unit, threads=1)

        def save(place: Path) -> None:
            made.save(str(place))

    named = names or tuple(f"{i}.jpg" for i in range(len(rows)))
    contents = Contents(named, tuple(f"{i:040x}" for i in range(len(rows))), keys, unit, None, facts)
    on_disk.write(folder, contents, save_graph=save)
    return folder
