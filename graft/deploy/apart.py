"""Are pictures of something else told apart? What a bundle's score of being unknown is worth.

In: the scores of images of the known classes, of pictures of something else, and the limit from which on a picture is
unknown. Out: an `Apart`. Cost: ranks, and 300 bootstrap draws. Not covered: how the scores are made (`graft.deploy.unknown`).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64
from scipy.stats import rankdata

from graft.judging.uncertainty import Estimate, interval

DRAWS = 300


@dataclass(frozen=True, slots=True)
class Apart:
    """`auroc`: how likely a picture of something else has the higher score than an image of a known class, 0 to 1,
    with its 95 % interval; and how many of the `known` and of the `others` the bundle calls unknown."""

    auroc: Estimate
    known: int
    known_called_unknown: int
    others: int
    others_called_unknown: int

    @property
    def facts(self) -> dict[str, Any]:
        """All of it, for JSON."""
        auroc = {"value": self.auroc.value, "interval": [self.auroc.low, self.auroc.high]}
        return {**asdict(self), "auroc": auroc}


def told_apart(known: Float64[np.ndarray, " n"], others: Float64[np.ndarray, " m"], *, limit: float) -> Apart:
    """Of at least one score each."""
    random = np.random.default_rng(0)
    draws = [
        _auroc(random.choice(known, len(known)), random.choice(others, len(others))) for _ in range(DRAWS)
    ]
    value, (low, high) = _auroc(known, others), interval(np.array(draws))
    return Apart(
        Estimate(value, min(low, value), max(high, value)),
        known=len(known),
        known_called_unknown=int((known > limit).sum()),
        others=len(others),
        others_called_unknown=int((others > limit).sum()),
    )


def _auroc(known: Float64[np.ndarray, " n"], others: Float64[np.ndarray, " m"]) -> float:
    """The share of pairs in which the other picture has the higher score, ties counting half (Mann-Whitney)."""
    ranks = rankdata(np.concatenate([known, others]))[len(known) :]
    return float((ranks.sum() - len(others) * (len(others) + 1) / 2) / (len(known) * len(others)))
