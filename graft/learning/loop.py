"""What every training loop here shares: the record of an epoch, the learning rate, averaging, and the temperature.

In: step numbers, networks' states, logits. Out: numbers and small records. Nothing here costs time.

Not covered: the loops themselves (`graft.learning.training`, `graft.learning.finetune`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from scipy.optimize import minimize_scalar
from torch import Tensor, nn

from graft.compute import Compute
from graft.learning.memory import keep_freed_memory

Stopped = Literal["patience", "epochs", "deadline"]
PRIOR_DEVIATION = 0.3  # of the logarithm of the temperature
TAUGHT = 0.5  # how much of what a second generation is to say comes from the first, the rest from the labels


@dataclass(frozen=True, slots=True)
class Epoch:
    """One pass, counted from 1. Losses are log losses in nats; the validation figures are NaN without that part.

    The training figures are those of the batches as they were learned from: views, mixed pairs by the larger share, each
    before its step. A score is that of the study's metric, higher is better; NaN where no metric was given.
    """

    number: int
    planned: int
    train_loss: float
    validation_loss: float
    validation_accuracy: float
    learning_rate: float
    seconds: float
    train_accuracy: float = math.nan
    train_score: float = math.nan
    validation_score: float = math.nan


def rate_share(step: int, total: int, *, longest_warm: int = 10**9) -> float:
    """The share of the learning rate at a step: a tenth of the steps (at most `longest_warm`) up, then down a cosine.

    Loshchilov & Hutter 2017.
    """
    warm = max(1, min(longest_warm, total // 10))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, total - warm)))


def kept_share(step: int, averaging: float) -> float:
    """How much of the averaged weights is kept at a step (from 1): `averaging`, and less at the beginning."""
    return min(averaging, (1 + step) / (10 + step))


@torch.no_grad()
def average(means: Iterable[Tensor], news: Iterable[Tensor], *, keep: float) -> None:
    """Move each averaged tensor by `1 - keep` towards the new one; whole numbers stay."""
    for mean, new in zip(means, news, strict=True):
        if mean.is_floating_point():
            mean.lerp_(new, 1 - keep)


@contextmanager
def at_work(compute: Compute) -> Iterator[None]:
    """torch's number of threads for the time of a block; on a processor it keeps what memory it frees."""
    before = torch.get_num_threads()
    torch.set_num_threads(compute.threads)
    if compute.device == "cpu":
        keep_freed_memory()
    try:
        yield
    finally:
        torch.set_num_threads(before)


def laid_out(images: Float[Tensor, "n c y x"], compute: Compute) -> Float[Tensor, "n c y x"]:
    """The images on the device, in the order in memory that it trains fastest with.

    On Apple silicon that is not channels last: there the backward pass of batch normalisation fails or is wrong with it
    before torch 2.14 (PyTorch's issue 175189).
    """
    order = torch.contiguous_format if compute.device == "mps" else torch.channels_last
    return images.to(compute.device, memory_format=order)


def taught(
    wanted: Int64[Tensor, " b"] | Float[Tensor, "b k"], said: Float[Tensor, "b k"]
) -> Float[Tensor, "b k"]:
    """The shares of the classes, half from the labels (or the shares of a mixed pair), half from a teacher's logits on the
    same views (born-again networks: Furlanello et al. 2018, arXiv 1805.04770)."""
    labels = wanted if wanted.ndim == 2 else nn.functional.one_hot(wanted, said.shape[1])
    return torch.lerp(labels.float(), torch.softmax(said, dim=1), TAUGHT)


def best_temperature(
    logits: Float[Tensor, "b k"],
    labels: Int64[Tensor, " b"],
    weights: Float64[np.ndarray, " k"] | None = None,
) -> float:
    """What the logits are divided by for the lowest log loss (Guo et al. 2017), 0.25 to 4; `weights`: of the classes in it.

    Few rows know little about it, so that its logarithm is drawn towards 0 as by a normal prior of deviation 0.3.
    """
    logits = logits.double()
    counts = None if weights is None else torch.from_numpy(weights)

    def loss(logarithm: float) -> float:
        fit = nn.functional.cross_entropy(logits / math.exp(logarithm), labels, counts)
        return float(fit) * len(labels) + 0.5 * (logarithm / PRIOR_DEVIATION) ** 2

    found = minimize_scalar(loss, bounds=(-math.log(4), math.log(4)), method="bounded")
    return math.exp(float(found.x))
