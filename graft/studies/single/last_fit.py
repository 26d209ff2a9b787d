"""The candidate of `graft train` once more on all development images: the model that is packed.

In: the workshop in which it was measured. Out: the `Fitted` model, of several runs as one. A killed last fit goes on from
its checkpoint, too. Costs about as much as a fold and a quarter for each member.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from graft.studies.branches import joined
from graft.studies.finish import Fitted, fitted_of
from graft.studies.frame import Event
from graft.studies.journal import TRIALS
from graft.studies.single.page import FIND
from graft.studies.single.training import (
    APART,
    Workshop,
    checkpoint_of,
    closed_head,
    of_runs,
    opened_bench,
)
from graft.studies.tuning.bench import Bench, training

if TYPE_CHECKING:
    from graft.learning.finetune import Tuned
else:
    Tuned = Any

REFIT = 999  # the "fold" of the last fit, for its seed


def fitting(work: Workshop) -> Generator[Event, None, Fitted]:
    """The candidate once more, on all development images: every run of its first seed, for the epochs of the folds."""
    frame, candidate = work.frame, work.candidate
    members: list[Fitted] = []
    for run in range(candidate.page.ensemble):
        if candidate.closed:
            yield Event("progress", f"{candidate.recipe.name}: fitting on all images")
            members.append(_closed_member(work))
            continue
        bench = yield from opened_bench(work, run)
        tuned = yield from _refitted(work, bench, run)
        opened = candidate.as_read(frame, run)
        members.append(fitted_of(opened, tuned, geometry=candidate.geometry, tap=candidate.tap.index))
    return joined(members)


def _closed_member(work: Workshop) -> Fitted:
    """The frozen network behind its head."""
    from graft.learning.finetune import Tuned as Found

    frame, candidate = work.frame, work.candidate
    head = closed_head(work, frame.rows)
    return fitted_of(
        candidate.network(frame, 0),
        Found({}, head, 1.0, 0, 0, "epochs"),
        geometry=candidate.geometry,
        tap=candidate.tap.index,
    )


def _refitted(work: Workshop, bench: Bench, run: int) -> Generator[Event, None, Tuned]:
    """Trained on all development rows for as many epochs of the plan, and generations, as were best on the folds (their
    medians)."""
    frame, candidate = work.frame, work.candidate
    curves = work.curves[run]
    settings = candidate.settings
    if candidate.page.lr == FIND:
        from graft.learning.range_test import with_rate

        rates = [curve["trunk_rate"] or curve["head_rate"] for curve in curves]
        settings = with_rate(settings, float(np.median(rates)), default=settings)
    fixed = replace(
        settings,
        validation_share=0.0,
        stop_epoch=int(np.median([int(curve.get("needed", curve["best_epoch"])) for curve in curves])),
        generations=round(float(np.median([int(curve.get("generation", 1)) for curve in curves]))),
        temperature=float(np.median([curve["temperature"] for curve in curves])),
    )
    tuned, _ = yield from training(
        frame,
        fixed,
        bench,
        rows=frame.rows,
        seed=APART * run + REFIT,
        deadline_seconds=None,
        kept_in=checkpoint_of(work, run, "all"),
        text=f"{candidate.recipe.name}, on all images{of_runs(candidate, run)}",
    )
    return tuned


def sweep_checkpoints(work: Workshop) -> None:
    """The model is packed: nothing of it will be trained again."""
    for place in (work.frame.settings.out / TRIALS).glob("*.tune.safetensors"):
        place.unlink(missing_ok=True)
