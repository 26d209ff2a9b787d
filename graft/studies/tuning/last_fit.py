"""The tuned candidate that was chosen, once more on all development images: the model that is packed.

In: its trial and those that its plan was made of. Out: the bench and what was tuned. Costs about a fold and a third; a killed
last fit goes on from its checkpoint.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from graft.errors import BackboneError
from graft.studies.balancing import balance_on_all
from graft.studies.frame import Event, Frame, Trial
from graft.studies.journal import TRIALS
from graft.studies.tuning.bench import APART, Bench, bench_of, training
from graft.studies.tuning.decided import plan_of
from graft.studies.tuning.norms import statistics_for
from graft.studies.tuning.options import MOST_SEEDS

if TYPE_CHECKING:
    from graft.learning.finetune import Tuned
else:
    Tuned = Any


def refitting_tuned(
    frame: Frame, trial: Trial, trials: Sequence[Trial]
) -> Generator[Event, None, tuple[Bench, Tuned]]:
    """Tune on every development image, for as many epochs of the plan as were best on the folds (their median)."""
    plan = plan_of(frame, trials, 0.0)
    every = (replace(option, seed=seed) for option in plan.options for seed in range(MOST_SEEDS))
    option = next((one for one in every if one.recipe.key == trial.recipe.key), None)
    if option is None:
        raise BackboneError(
            f"{trial.recipe.name} is not in the plan of this study. Run it again with --overwrite."
        )
    bench = yield from bench_of(frame, option)
    best = [int(curve["best_epoch"]) for curve in trial.curves]
    temperature = float(np.median([curve["temperature"] for curve in trial.curves]))
    settings = replace(
        option.settings,
        balance=balance_on_all(frame, option.trial),
        batch_norm=statistics_for(frame, bench, option.settings, frame.rows)["batch_norm"],
        validation_share=0.0,
        stop_epoch=int(np.median(best)),
        temperature=temperature,
    )
    tuned, _ = yield from training(
        frame,
        settings,
        bench,
        rows=frame.rows,
        seed=999 + APART * option.seed,
        deadline_seconds=None,
        kept_in=frame.settings.out / TRIALS / f"{trial.recipe.key[:16]}-all.tune.safetensors",
        text=f"{trial.recipe.name}, on all images",
    )
    return bench, tuned
