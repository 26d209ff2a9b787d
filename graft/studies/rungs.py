"""What the rungs of a study share: what was measured so far, what is kept for the end, how long to train; and the rungs that
fine-tune and train from scratch."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Int64

from graft.backbones.trunks import TrunkFile
from graft.compute import Compute
from graft.images.dataset import Preprocess
from graft.images.pixels import preparing
from graft.studies.board import board
from graft.studies.frame import Event, Frame, Trial
from graft.studies.knowing import MOST_EMBEDDED
from graft.studies.scratching import scratch_trial, scratching

if TYPE_CHECKING:
    from graft.backbones.scratch import ScratchDesign
    from graft.learning.training import TrainingSettings
else:
    ScratchDesign = TrainingSettings = Any

TUNING_SHARE = 0.5  # of the budget is planned for fine-tuning and the last fit of what is tuned
SCRATCH_SHARE = 0.2  # for training from scratch
AFTER_TUNING_SHARE = 0.35  # is kept for all that follows fine-tuning
ALONE_SHARE = 0.6  # of the budget for training from scratch where nothing else takes time; the rest is slack
ALONE_TUNING_SHARE = 0.75  # for fine-tuning with --only finetuned
NEAR = 0.05  # of accuracy: what is further behind the best will not be chosen
LAST_FIT = 1.3  # times the seconds of a fold: fitting on all images
AMOUNTS_COST = 0.75  # of a fold: training on a quarter and a half of its images
LEAST_TRAINING = 0.2e12  # multiply-adds of a fold, forward
TRAINING_SPEED = 27e9  # forward multiply-adds per second of training on two cores with bfloat16
WITHOUT_BF16 = 0.4  # of that; bfloat16 trains 2.3 times as fast where the processor multiplies it

Working = Generator[Event, None, None]


@dataclass(slots=True)
class Progress:
    """What has been measured so far."""

    trials: list[Trial] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    reasons: dict[str, str] = field(default_factory=dict)
    trunks: dict[str, TrunkFile] = field(default_factory=dict)
    plan: list[dict[str, Any]] = field(default_factory=list)
    extras: dict[str, Any] = field(default_factory=dict)  # by its name in study.json
    seeds: list[Trial] = field(
        default_factory=list
    )  # members of a mean over seeds, no candidates of their own


def kept_for_the_end(targets: Int64[np.ndarray, " m"], trials: Sequence[Trial]) -> float:
    """Seconds that the last fit of what may still be chosen takes: of what was trained and is not far behind the best.

    Of what was measured on some folds only it must be ahead of the best there: else it will not be chosen.
    """
    complete = [trial for trial in trials if trial.complete]
    everywhere = np.ones(len(targets), bool)
    best = max(complete, key=lambda trial: _accuracy(targets, trial, everywhere), default=None)

    def may_be_chosen(trial: Trial) -> bool:
        known = ~np.isnan(trial.probabilities).any(axis=1)
        if best is None or not known.any():
            return best is None
        ahead = _accuracy(targets, trial, known) - _accuracy(targets, best, known)
        return ahead >= -NEAR if trial.complete else ahead > 0

    return max((last_fit_seconds(trial) for trial in trials if may_be_chosen(trial)), default=0.0)


def _accuracy(targets: Int64[np.ndarray, " m"], trial: Trial, rows: Bool[np.ndarray, " m"]) -> float:
    return float((trial.probabilities[rows].argmax(axis=1) == targets[rows]).mean())


def last_fit_seconds(trial: Trial) -> float:
    """As long as one of its folds, and a third more, and what the packed model has to say of some images (`knowing`); what
    is not trained step by step takes next to nothing."""
    if not trial.curves:
        return 0.0
    embedded = min(len(trial.probabilities), MOST_EMBEDDED) * (trial.latency_ms or 0.0) / 1_000
    return LAST_FIT * trial.train_seconds / len(trial.curves) + embedded


def first_answer(frame: Frame, trials: Sequence[Trial]) -> Working:
    """The first leaderboard; sizes and latencies, which take another second, come later."""
    rows = board(frame, trials)
    if not rows:
        return
    if frame.journal.find("first_answer", {}) is None:
        frame.journal.append("first_answer", {})
    yield Event("board", "the first answer", board=rows)


def scratch_rung(frame: Frame, done: Progress) -> Working:
    from graft.backbones.scratch import design
    from graft.learning.scratch_settings import planned_multiply_adds

    yield Event("stage", f"Training a small CNN from scratch on the same {frame.folds.count} folds")
    made, geometry = design(frame.dataset, development=len(frame.rows))
    yield from prepare(frame, [geometry])
    settings, kept = training_settings(frame), kept_for_the_end(frame.targets, done.trials)
    work = planned_multiply_adds(made, len(frame.learned_from(0)), settings)
    first = not done.trials
    with ExitStack() as at_end:
        at_end.callback(
            lambda: done.trials.extend(filter(None, [scratch_trial(frame, made, geometry, settings)]))
        )
        yield from scratching(
            frame,
            made,
            geometry,
            settings,
            done.trials,
            kept_seconds=kept,
            fold_seconds=work / training_speed(frame.compute),
        )
    if first and done.trials:
        yield from first_answer(frame, done.trials)
        return
    yield Event("board", "trained from scratch", board=board(frame, done.trials))


def tuning_rung(frame: Frame, done: Progress) -> Working:
    """Fine-tuning, where there is something frozen to start from and time for it."""
    from graft.studies.tuning.rung import finetuning

    if not any(trial.recipe.strategy == "frozen" and trial.complete for trial in done.trials):
        return
    yield Event("stage", f"Fine-tuning the finalists on the same {frame.folds.count} folds")
    budget = frame.settings.budget_seconds
    share, after = (ALONE_TUNING_SHARE, 0.05) if frame.settings.only else (TUNING_SHARE, AFTER_TUNING_SHARE)
    yield from finetuning(frame, done.trials, done.plan, seconds=share * budget, reserve=after * budget)
    yield Event("board", "fine-tuned", board=board(frame, done.trials))


def training_settings(frame: Frame) -> TrainingSettings:
    """How long to train is a function of the budget, not of the clock: every fold and the last fit get the same.

    Where the steps of one network leave the budget over, a second one learns from it (`generations`).
    """
    from graft.backbones.scratch import design
    from graft.learning.scratch_settings import settled

    alone = frame.settings.only == "scratch" or frame.journal.find("untrained", {}) is not None
    seconds = frame.settings.budget_seconds * (ALONE_SHARE if alone else SCRATCH_SHARE)
    fits = frame.folds.count + 1 + AMOUNTS_COST
    made, _ = design(frame.dataset, development=len(frame.rows))
    return settled(
        made,
        len(frame.learned_from(0)),
        multiply_adds=max(LEAST_TRAINING, seconds / fits * training_speed(frame.compute)),
    )


def amount_folds(
    frame: Frame, made: ScratchDesign, settings: TrainingSettings, *, fold_seconds: float
) -> int:
    """On how many folds training from scratch on fewer images is measured: one, or more where the plan leaves room.

    Where the plan pays no more than the shortest training, the clock says whether there is time for one; `fold_seconds`
    is what a fold took.
    """
    from graft.learning.scratch_settings import planned_multiply_adds

    planned = planned_multiply_adds(made, len(frame.learned_from(0)), settings)
    if settings.multiply_adds <= LEAST_TRAINING:
        return int(frame.remaining_seconds() > fold_seconds * 2 * AMOUNTS_COST)
    spare = settings.multiply_adds / planned - 1
    return max(1, min(frame.folds.count, 1 + int(spare * (frame.folds.count + 1) / AMOUNTS_COST)))


def training_speed(compute: Compute) -> float:
    """Forward multiply-adds per second to plan with: a function of the kind of machine, never of a clock."""
    if compute.device != "cpu":
        return 10 * TRAINING_SPEED
    return TRAINING_SPEED * (compute.threads / 2) ** 0.7 * (1.0 if compute.bf16 else WITHOUT_BF16)


def prepare(frame: Frame, geometries: Sequence[Preprocess]) -> Working:
    unique = list(dict.fromkeys(geometries))
    for done, total in preparing(frame.dataset, unique, store=frame.store, threads=frame.compute.threads):
        yield Event("progress", "decoding", done, total, frame.remaining_seconds())


def tell(done: Progress, notice: str) -> Working:
    done.notices.append(notice)
    yield Event("notice", notice)
