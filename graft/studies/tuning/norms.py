"""Whether a network is tuned better with batch-normalisation statistics of the images at hand: measured, not assumed.

In: an opened bench and the rows of a training fold. Out: the policy for `TuneSettings.batch_norm`, and what it rests on.
The statistics above the cut are taken from the training images in one pass, a second one reads the features, and the
leave-one-out log loss of a closed-form head on them is held against that on the frozen features. Only where it is lower by
more than two standard errors the tuning begins with them. No held-out row is read.

Cost: two forward passes of the tail over at most `MOST_MEASURED` images, 4 % of a fold of 16 epochs, and two heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int64
from threadpoolctl import threadpool_limits

from graft.learning import ridge
from graft.learning.inner import for_statistics
from graft.studies.frame import Frame
from graft.studies.tuning.bench import Bench

if TYPE_CHECKING:
    from graft.learning.tune_settings import BatchNorm, TuneSettings
else:
    BatchNorm = TuneSettings = Any

SURELY = 2.0  # standard errors


def statistics_for(
    frame: Frame, bench: Bench, settings: TuneSettings, rows: Int64[np.ndarray, " m"]
) -> dict[str, Any]:
    """`batch_norm`, the policy for these rows; `statistics`, the two log losses in nats, where there was a choice."""
    if bench.features is None or not bench.cutting.batch_norms():
        return {"batch_norm": settings.batch_norm}
    some = for_statistics(rows)
    labels = frame.dataset.targets[some]
    with threadpool_limits(1):
        kept = losses(np.asarray(bench.features[some], np.float32), labels, classes=frame.classes)
        taken = losses(_reestimated(frame, bench, settings, some), labels, classes=frame.classes)
    policy: BatchNorm = "reestimate" if clearly_lower(taken, kept) else "frozen"
    found = {"frozen": round(float(kept.mean()), 4), "reestimated": round(float(taken.mean()), 4)}
    return {"batch_norm": policy, "statistics": found}


def losses(
    features: Float[np.ndarray, "m d"], labels: Int64[np.ndarray, " m"], *, classes: int
) -> Float[np.ndarray, " m"]:
    """The leave-one-out log loss of each row, in nats."""
    held_out = ridge.leave_one_out(features, labels, classes=classes)
    return -np.log(np.maximum(held_out[np.arange(len(labels)), labels], 1e-12))


def clearly_lower(one: Float[np.ndarray, " m"], other: Float[np.ndarray, " m"]) -> bool:
    """Whether the first losses are lower by more than chance."""
    gain = other - one
    return bool(gain.mean() > SURELY * gain.std() / np.sqrt(len(gain)))


def _reestimated(
    frame: Frame, bench: Bench, settings: TuneSettings, rows: Int64[np.ndarray, " m"]
) -> Float[np.ndarray, "m d"]:
    """The features of these rows behind statistics of the same rows. The next tuner starts from the frozen ones again."""
    import torch

    from graft.learning.finetune import blocks, rates_of
    from graft.learning.heads import Head
    from graft.learning.loop import at_work
    from graft.learning.tuner import Tuner

    assert bench.features is not None
    nothing = np.zeros((bench.features.shape[1], frame.classes), np.float32)
    tuner = Tuner(
        bench.cutting, Head(nothing, nothing[0].copy()), rates_of(settings), frame.compute, statistics=False
    )
    parts = blocks(rows)
    with at_work(frame.compute), torch.no_grad():
        tuner.reestimate((bench.source.plain(part) for part in parts), bench.cutting.batch_norms())
        return np.concatenate([tuner.features(bench.source.plain(part)).cpu().numpy() for part in parts])


def told(curves: Sequence[dict[str, Any]]) -> str:
    """The policy of a tuned candidate and why, for people; `curves` hold the folds that were finished."""
    measured = [curve for curve in curves if curve.get("statistics")]
    if not measured:
        return "frozen"
    taken = sum(curve["batch_norm"] == "reestimate" for curve in measured)
    frozen, again = (
        float(np.mean([curve["statistics"][kind] for curve in measured]))
        for kind in ("frozen", "reestimated")
    )
    numbers = f"log loss of a head on their features {again:.3f}, with those kept {frozen:.3f}"
    if not taken:
        return (
            "statistics kept, scale and shift learn; taking them from these images was measured and did not clearly help "
            f"({numbers})"
        )
    return (
        f"statistics taken from these images first in {taken} of {len(measured)} folds, where it was measured to help "
        f"({numbers}); kept in the others"
    )
