"""Nearest neighbours in feature space: a second opinion that needs no training.

Weighted k nearest neighbours on unit-length features (Wu et al. 2018, arXiv 1805.01978: cosine similarity, weights
`exp(similarity / 0.07)`). On 42,000 fine-tuning runs plain kNN accuracy predicted transfer better than 23 dedicated
scores (Sorkhei et al. 2025, arXiv 2503.18528), so it stands beside the head's score.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Float32, Int

from graft.learning.ridge import unit

NEIGHBOURS = 10
TEMPERATURE = 0.07
BLOCK = 1024


def neighbour_probabilities(
    known: Float[np.ndarray, "n d"],
    targets: Int[np.ndarray, " n"],
    asked: Float[np.ndarray, "m d"],
    *,
    classes: int,
) -> Float32[np.ndarray, "m k"]:
    """The weighted share of each class among the nearest `NEIGHBOURS` of every asked row."""
    known_rows, asked_rows = unit(known.astype(np.float32)), unit(asked.astype(np.float32))
    count = min(NEIGHBOURS, len(known_rows))
    shares = np.zeros((len(asked_rows), classes), np.float32)
    for begin in range(0, len(asked_rows), BLOCK):
        similarity = asked_rows[begin : begin + BLOCK] @ known_rows.T
        nearest = np.argpartition(-similarity, count - 1, axis=1)[:, :count]
        weights = np.exp((np.take_along_axis(similarity, nearest, axis=1) - 1) / TEMPERATURE)
        block = shares[begin : begin + BLOCK]
        np.add.at(block, (np.arange(len(block))[:, None], targets[nearest]), weights)
    total = shares.sum(axis=1, keepdims=True)
    return shares / np.maximum(total, 1e-30)
