"""How much rare classes count in what is trained step by step: as much as in the head on frozen features of the same rows.

In: a fold, and frozen candidates measured on it. Out: the balance of the training. The head on frozen features tries every
weighting on its training rows and keeps the one that its leave-one-out predictions score best with, by the study's metric
(`graft.learning.frozen_head`); the journal holds what it took in each fold. What is tuned follows the head of the very network
it starts from, what is trained from scratch the best head of the fold. No held-out row has a say. Cost: nothing; for the last
fit one more head.

Not covered: trying each balance on the trained network itself, which would cost a training each.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32
from threadpoolctl import threadpool_limits

from graft.learning import frozen_head
from graft.learning.inner import Balance
from graft.learning.ridge import RidgeHead, Weighting
from graft.studies.beside import activations_of
from graft.studies.frame import Frame, Trial, criterion

# A linear head that weights classes fully and one that sees every class equally often are the same.
LIKE: dict[Weighting, Balance] = {"none": "none", "root": "root", "full": "sampler", "logit": "logit"}
UNASKED: Balance = "root"  # where no head was fitted


def balance_of_head(frame: Frame, frozen: Trial, fold: int) -> Balance:
    """What the head of this frozen candidate took in the fold."""
    known = frame.journal.find("fold", {"recipe": frozen.recipe.key, "fold": fold})
    return UNASKED if known is None else LIKE[known["balance"]]


def balance_of_best_head(frame: Frame, trials: Sequence[Trial], fold: int) -> Balance:
    """What the best head of the fold took: the best by leave-one-out on the training rows, not on those held out."""
    heads = [
        record
        for trial in trials
        if trial.recipe.strategy == "frozen"
        and (record := frame.journal.find("fold", {"recipe": trial.recipe.key, "fold": fold})) is not None
    ]
    best = max(heads, key=lambda record: float(record["inner_score"]), default=None)
    return UNASKED if best is None else LIKE[best["balance"]]


def balance_on_all(frame: Frame, frozen: Trial | None) -> Balance:
    """What a head of this frozen candidate takes on all development images: for the last fit."""
    if frozen is None:
        return UNASKED
    features = activations_of(frame, frozen)[1].tap(frozen.tap_index)[frame.rows].astype(np.float32)
    return LIKE[head_on_all(frame, features).balance]


def head_on_all(frame: Frame, features: Float32[np.ndarray, "m d"]) -> RidgeHead:
    """The head of all development images, whose features these are."""
    with threadpool_limits(1):
        return frozen_head.fit(
            features, frame.targets, classes=frame.classes, criterion=criterion(frame.settings.metric)
        )
