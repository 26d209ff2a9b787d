"""How the rows of a training fold are used inside it: what is kept back to stop by, and how much each class counts.

In: targets, groups and the rows of the fold. Out: two disjoint sets of rows; a weight per class. Nothing outside the
rows is read. Cost: milliseconds.

Not covered: the folds themselves, which are the same for every candidate and are made from the whole dataset.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from jaxtyping import Float32, Int64

Balance = Literal["none", "root"]


def kept_back(
    targets: Int64[np.ndarray, " n"],
    groups: Int64[np.ndarray, " n"],
    rows: Int64[np.ndarray, " m"],
    *,
    share: float,
    seed: int,
) -> tuple[Int64[np.ndarray, " a"], Int64[np.ndarray, " b"]]:
    """Divide `rows` into those to learn from and about `share` of every class to check on, both sorted.

    A group is never divided, a class never leaves the first part, and a class of several groups has one in the
    second. A group of several classes counts for that of its first row.
    """
    random = np.random.default_rng([seed, 15])
    names, first, member = np.unique(groups[rows], return_index=True, return_inverse=True)
    sizes = np.bincount(member, minlength=len(names))
    label = targets[rows][first]
    checked = np.zeros(len(names), dtype=bool)
    for one in np.unique(label) if share > 0 else ():
        own = random.permutation(np.flatnonzero(label == one))
        wanted = share * sizes[own].sum()
        before = np.cumsum(sizes[own]) - sizes[own]
        take = own[before + sizes[own] / 2 <= wanted] if len(own) > 1 else own[:0]
        checked[(take if len(take) else own[: len(own) > 1])[: len(own) - 1]] = True
    chosen = checked[member]
    return np.sort(rows[~chosen]), np.sort(rows[chosen])


def class_weights(
    labels: Int64[np.ndarray, " m"], classes: int, balance: Balance
) -> Float32[np.ndarray, " k"]:
    """The weight of each class in the loss, 1 on average over `labels`; a class without images gets the largest."""
    counts = np.bincount(labels, minlength=classes)
    weights = np.ones(classes) if balance == "none" else 1 / np.sqrt(np.maximum(counts, 1))
    return (weights * counts.sum() / (weights * counts).sum()).astype(np.float32)
