"""How the rows of a training fold are used inside it: what is kept back to stop by, and how much each class counts.

In: targets, groups and the rows of the fold. Out: two disjoint sets of rows; a weight per class. Nothing outside the
rows is read. Cost: milliseconds.

Not covered: the folds themselves, which are the same for every candidate and are made from the whole dataset.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from jaxtyping import Float32, Float64, Int64

MOST_MEASURED = 2_000
Balance = Literal["none", "root", "sampler", "logit"]
"""`root`: the loss counts a class with the inverse square root of its frequency; `sampler`: every class is drawn equally
often, with replacement; `logit`: the logarithm of a class's share is added to its logit in the loss alone (logit
adjustment: Menon et al. 2021, arXiv 2007.07314)."""


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
    """The weight of each class in the loss, 1 on average over `labels`; a class without images gets the largest.

    Only `root` weights the loss: the others give 1 for every class.
    """
    counts = np.bincount(labels, minlength=classes)
    weights = 1 / np.sqrt(np.maximum(counts, 1)) if balance == "root" else np.ones(classes)
    return (weights * counts.sum() / (weights * counts).sum()).astype(np.float32)


def log_prior(labels: Int64[np.ndarray, " m"], classes: int, balance: Balance) -> Float32[np.ndarray, " k"]:
    """What `logit` adds to the logits in the loss: the logarithm of each class's share; zeros for the others."""
    if balance != "logit":
        return np.zeros(classes, np.float32)
    counts = np.maximum(np.bincount(labels, minlength=classes), 1)
    return np.log(counts / counts.sum()).astype(np.float32)


def even_weights(prior: Float32[np.ndarray, " k"]) -> Float64[np.ndarray, " k"] | None:
    """What an image of each class counts where answers are judged that are meant for even classes, as those of `logit` are;
    None: all the same. `prior` is that of `log_prior`."""
    return np.exp(-prior.astype(np.float64)) if prior.any() else None


def drawn(
    labels: Int64[np.ndarray, " m"], balance: Balance, random: np.random.Generator
) -> Int64[np.ndarray, " m"]:
    """The positions of an epoch in their order: each once, or with `sampler` every class alike, with replacement."""
    if balance != "sampler":
        return random.permutation(len(labels))
    counts = np.bincount(labels)
    chances = 1 / counts[labels]
    return random.choice(len(labels), size=len(labels), p=chances / chances.sum())


def for_statistics(rows: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " m"]:
    """Every k-th of the rows, at most 2,000: enough for the statistics of batch normalisations."""
    return rows[:: max(1, -(-len(rows) // MOST_MEASURED))]
