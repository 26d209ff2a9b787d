"""How well features find images of the same class: mean average precision.

In: rows of features and classes of a gallery and of queries that are not in it. Out: the mean over the queries of each
class, and over the classes. Neighbours are ranked by cosine similarity; a query's average precision is the mean, over
the gallery images of its class, of the precision at their ranks (Manning, Raghavan, Schütze 2008, section 8.4).
Cost: one matrix product and a sort of each query's row.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int64

BLOCK = 256  # queries at a time


def mean_average_precision(
    gallery: Float[np.ndarray, "g d"],
    gallery_targets: Int64[np.ndarray, " g"],
    queries: Float[np.ndarray, "q d"],
    query_targets: Int64[np.ndarray, " q"],
    *,
    classes: int,
) -> list[float | None]:
    """Per class, 0 to 1; None for a class without a query or without an image in the gallery."""
    unit_gallery, unit_queries = _unit(gallery), _unit(queries)
    found: list[list[float]] = [[] for _ in range(classes)]
    for begin in range(0, len(queries), BLOCK):
        targets = query_targets[begin : begin + BLOCK]
        near = unit_queries[begin : begin + BLOCK] @ unit_gallery.T
        ranked = gallery_targets[np.argsort(-near, axis=1, kind="stable")]
        right = ranked == targets[:, None]
        precision = np.cumsum(right, axis=1) / np.arange(1, len(gallery) + 1)
        wanted = right.sum(axis=1)
        for row, target in enumerate(targets):
            if wanted[row]:
                found[target].append(float((precision[row] * right[row]).sum() / wanted[row]))
    return [float(np.mean(values)) if values else None for values in found]


def _unit(rows: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
    rows = rows.astype(np.float32)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
