"""Heads: of features that stay as they are, those that training starts from, and what is left of one in the packed model.

In: features of the frozen network, or only their number. Out: a `Head`: one linear layer, or two with a ReLU between.
`ridge` starts as a ridge head (LP-FT: Kumar et al. 2022, arXiv 2202.10054), `linear` near zero, `mlp`
with one hidden layer of `HIDDEN` units (He et al. 2015). Costs milliseconds, for `ridge` a second.

Not covered: training them (`graft.learning.tuner`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from jaxtyping import Float, Float32, Int64
from scipy.special import softmax
from threadpoolctl import threadpool_limits

from graft.learning import frozen_head, ridge
from graft.learning.inner import Balance, log_prior
from graft.learning.ridge import Criterion, Weighting, unit

HeadKind = Literal["ridge", "linear", "mlp"]

HIDDEN = 256
SMALL = 0.01  # the deviation of the first weights in front of the classes

# What the head of frozen features makes of a balance: the weightings it may choose from.
_WEIGHTINGS: dict[Balance, tuple[Weighting, ...]] = {
    "none": ("none",),
    "root": ridge.WEIGHTS,
    "sampler": ("full",),
    "logit": ("none",),
}


@dataclass(frozen=True, slots=True, eq=False)
class Head:
    """`logits = f(x) @ weight + bias`. f(x): x, of length one with `unit_length`; then, where there is a hidden layer,
    `max(0, f(x) @ hidden_weight + hidden_bias)`."""

    weight: Float32[np.ndarray, "w k"]
    bias: Float32[np.ndarray, " k"]
    hidden_weight: Float32[np.ndarray, "d w"] | None = None
    hidden_bias: Float32[np.ndarray, " w"] | None = None
    unit_length: bool = True

    @property
    def features(self) -> int:
        """d: how many features it reads."""
        return (self.weight if self.hidden_weight is None else self.hidden_weight).shape[0]

    @property
    def hidden(self) -> tuple[Float32[np.ndarray, "d w"], Float32[np.ndarray, " w"]] | None:
        """Weight and bias of the hidden layer."""
        if self.hidden_weight is None or self.hidden_bias is None:
            return None
        return self.hidden_weight, self.hidden_bias

    def logits(self, features: Float[np.ndarray, "n d"]) -> Float32[np.ndarray, "n k"]:
        """Of new rows."""
        rows = features.astype(np.float32)
        rows = unit(rows) if self.unit_length else rows
        if self.hidden is not None:
            weight, bias = self.hidden
            rows = np.maximum(rows @ weight + bias, 0)
        return rows @ self.weight + self.bias

    def probabilities(self, features: Float[np.ndarray, "n d"]) -> Float32[np.ndarray, "n k"]:
        """Class probabilities of new rows."""
        return softmax(self.logits(features), axis=1).astype(np.float32)

    def softened(self, temperature: float) -> Head:
        """The head whose logits are divided by `temperature`."""
        by = np.float32(temperature)
        return replace(self, weight=self.weight / by, bias=self.bias / by)


def answering_head(
    features: Float[np.ndarray, "n d"],
    targets: Int64[np.ndarray, " n"],
    *,
    classes: int,
    balance: Balance,
    criterion: Criterion | None,
) -> Head:
    """The head of features that stay as they are (`graft.learning.frozen_head`).

    `none` weights no class, `sampler` weights each with the inverse of its frequency, `root` lets leave-one-out choose;
    `logit` subtracts the logarithm of the classes' shares from the logits (Menon et al. 2021, arXiv 2007.07314).
    """
    with threadpool_limits(1):
        found = frozen_head.fit(
            np.asarray(features, np.float32),
            targets,
            classes=classes,
            criterion=criterion,
            balances=_WEIGHTINGS[balance],
        )
    return Head(found.weight, found.bias - log_prior(targets, classes, balance))


def first_head(
    features: Float[np.ndarray, "n d"],
    targets: Int64[np.ndarray, " n"],
    *,
    classes: int,
    balance: Balance,
    criterion: Criterion | None,
    least_penalty: float = 0.0,
    temperature: float = 1.0,
) -> Head:
    """The ridge head that a training of these rows starts from, balanced as the training will be (see `answering_head`).

    Its logits are divided by `temperature`, after those of `logit` were adjusted: the other way round all answers of a rare
    class would begin, and of few images end, too large by what the division took from the classes' shares.
    """
    with threadpool_limits(1):
        found = ridge.fit(
            np.asarray(features, np.float32),
            targets,
            classes=classes,
            criterion=criterion,
            balances=_WEIGHTINGS[balance],
            least_penalty=least_penalty,
        )
    return Head(found.weight, found.bias - log_prior(targets, classes, balance)).softened(temperature)


def fresh_head(kind: HeadKind, features: int, *, classes: int, unit_length: bool, seed: int) -> Head:
    """A `linear` or `mlp` head with random weights, a function of the seed."""
    random = np.random.default_rng([seed, 29])
    bias = np.zeros(classes, np.float32)
    if kind != "mlp":
        return Head(_normal(random, SMALL, (features, classes)), bias, unit_length=unit_length)
    width = math.sqrt(2.0 if unit_length else 2.0 / features)
    return Head(
        weight=_normal(random, SMALL, (HIDDEN, classes)),
        bias=bias,
        hidden_weight=_normal(random, width, (features, HIDDEN)),
        hidden_bias=np.zeros(HIDDEN, np.float32),
        unit_length=unit_length,
    )


def _normal(
    random: np.random.Generator, deviation: float, shape: tuple[int, int]
) -> Float32[np.ndarray, "a b"]:
    return (deviation * random.standard_normal(shape)).astype(np.float32)
