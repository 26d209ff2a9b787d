"""A rung of the study: what the mean over several random seeds of one recipe is worth, as a candidate of its own.

In: the trials so far, and what is left of the budget. Out: at most one trial more (`strategy` "ensemble"): the best of
what was trained step by step, trained again with a second and a third seed on the same folds. The mean of a fold is that
of models none of which saw the fold, and nothing is selected, so the score needs no correction. The further seeds are no
candidates themselves: the luckiest of three is no better than its fellows.

How many seeds the budget pays is counted once, from the seconds that the folds of the first one took, and journalled;
every finished (recipe, fold) is in the journal. Cost: a further seed takes as long as the first.

Not covered: the mean of the models of a recipe's folds. All of them but one saw any given image, so that it has no
out-of-fold score, and the locked test, which could give it one, is opened for the choice alone.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Float32

from graft.judging.metrics import METRICS
from graft.judging.uncertainty import Difference, draw_weights, estimate, paired
from graft.studies.branches import together_costs
from graft.studies.ensembles import DRAWS, TRAINED, Ensemble, trial_of
from graft.studies.frame import Event, Frame, Trial, criterion
from graft.studies.rungs import (
    Progress,
    Working,
    kept_for_the_end,
    last_fit_seconds,
    tell,
    training_settings,
)
from graft.studies.scratching import scratch_trial, scratching
from graft.studies.tuning.options import MOST_SEEDS

PLAN = "seeds_plan.v1"


def seeds_rung(frame: Frame, done: Progress) -> Working:
    """Train the best recipe again with further seeds, and add the mean of all."""
    score = criterion(frame.settings.metric)
    single = [
        t for t in done.trials if t.complete and t.model_bytes is not None and t.recipe.strategy != "random"
    ]
    single.sort(key=lambda trial: score(trial.probabilities, frame.targets), reverse=True)
    first = next((trial for trial in single if trial.recipe.strategy in TRAINED), None)
    if first is None:
        return
    draws = draw_weights(
        frame.targets, frame.dataset.groups[frame.rows], draws=DRAWS, seed=frame.settings.seed
    )
    behind = paired(frame.settings.metric, first.probabilities, single[0].probabilities, frame.targets, draws)
    if behind.high < 0:
        yield from tell(
            done,
            f"No further seed of {first.recipe.name} is trained: it is behind {single[0].recipe.name} for sure.",
        )
        return
    count = _planned(frame, done, first)
    if count < 2:
        yield from tell(
            done,
            f"No second seed of {first.recipe.name} is paid: it would take {first.train_seconds:.0f} s and twice the last "
            "fit, and both together are twice the bytes.",
        )
        return
    yield Event("stage", f"Training {first.recipe.name} with {count} seeds on the same folds")
    members = [first]
    for seed in range(1, count):
        again = yield from _again(frame, done, first, seed)
        if again is None or not again.complete:
            break
        members.append(again)
    if len(members) > 1:
        done.seeds += members[1:]
        yield from _added(frame, done, members, single[0], draws)


def paid(first: Trial, *, left: float, kept: float, max_bytes: int | None = None) -> int:
    """How many seeds in all the seconds `left` pay, the last fit of each included; `kept` are for the end in any case.

    Their mean is as large as all of them together, and has to be within `max_bytes`.
    """
    count = 1
    while count < MOST_SEEDS:
        if max_bytes is not None and (count + 1) * (first.model_bytes or 0) > max_bytes:
            break
        last_fits = (count + 1) * last_fit_seconds(first)
        if count * first.train_seconds + max(kept, last_fits) > left:
            break
        count += 1
    return count


def mean_of(members: Sequence[Trial]) -> Float32[np.ndarray, "m k"]:
    """What they say together of every development image."""
    return np.stack([member.probabilities for member in members]).mean(axis=0).astype(np.float32)


def _planned(frame: Frame, done: Progress, first: Trial) -> int:
    """The journalled number of seeds, or a new one."""
    asked = {"recipe": first.recipe.key, "budget": f"{frame.settings.budget_seconds:g}"}
    known = frame.journal.find(PLAN, asked)
    if known is None:
        kept = kept_for_the_end(frame.targets, done.trials)
        count = paid(first, left=frame.remaining_seconds(), kept=kept, max_bytes=frame.settings.max_bytes)
        known = frame.journal.append(PLAN, {**asked, "seeds": count})
    return int(known["seeds"])


def _again(frame: Frame, done: Progress, first: Trial, seed: int) -> Generator[Event, None, Trial | None]:
    """The same recipe with another seed, as far as the clock allows."""
    kept = kept_for_the_end(frame.targets, done.trials)
    if first.recipe.strategy == "scratch":
        from graft.backbones.scratch import design

        made, geometry = design(frame.dataset, development=len(frame.rows))
        settings = training_settings(frame)
        yield from scratching(frame, made, geometry, settings, done.trials, kept_seconds=kept, again=seed)
        return scratch_trial(frame, made, geometry, settings, again=seed)
    from graft.studies.tuning.rung import tuning_again

    return (yield from tuning_again(frame, first, done.trials, seed=seed, reserve=kept))


def _added(
    frame: Frame, done: Progress, members: Sequence[Trial], single: Trial, draws: np.ndarray
) -> Working:
    """The mean as a candidate, and what is told of it. `single`: the best candidate that is no mean."""
    together = Ensemble(dict.fromkeys(range(len(members)), 1), (), mean_of(members))
    joint = trial_of(members, together, together_costs(frame, members))
    name = f"mean of {len(members)} seeds of {members[0].recipe.name}"
    joint = replace(joint, recipe=replace(joint.recipe, name=name))
    metric, targets = frame.settings.metric, frame.targets
    found = estimate(metric, joint.probabilities, targets, frame.dataset.groups[frame.rows], draws)
    alone = paired(metric, joint.probabilities, members[0].probabilities, targets, draws)
    ahead = paired(metric, joint.probabilities, single.probabilities, targets, draws)
    done.trials.append(joint)
    done.extras["seeds"] = {
        "id": name,
        "metric": metric,
        "members": [member.recipe.name for member in members],
        "scores": [
            estimate(metric, m.probabilities, targets, frame.dataset.groups[frame.rows], draws[:1]).value
            for m in members
        ],
        "score": found.value,
        "interval": [found.low, found.high],
        "difference": alone.estimate,
        "difference_interval": [alone.low, alone.high],
        "single": {"id": single.recipe.name, "difference": [ahead.estimate, ahead.low, ahead.high]},
        "sentence": sentence(metric, len(members), members[0], alone),
    }
    yield from tell(done, done.extras["seeds"]["sentence"])


def sentence(metric: str, seeds: int, first: Trial, ahead: Difference) -> str:
    """What the mean over seeds is worth, for people. `ahead`: how much better it is than the first seed alone."""
    shown = METRICS[metric]
    verb = "gains" if ahead.estimate >= 0 else "loses"
    span = f"{shown.difference_text(ahead.low)} to {shown.difference_text(ahead.high)}"
    doubt = ", which may be nothing" if ahead.touches_zero else ""
    return (
        f"The mean over {seeds} seeds of {first.recipe.name} {verb} {shown.difference_text(abs(ahead.estimate)).lstrip('+')} "
        f"of {shown.label} against one of them (95 % interval of the difference: {span}){doubt}, for {seeds} times the bytes."
    )
