"""Rung 2: the finalists fine-tuned, on the same folds.

In: the frozen trials and a share of the budget. Out: a trial per finalist and depth that was tried, and the rows of the
plan: what was predicted, what it took. Successive halving: all that the budget pays are tried on the first fold; those
that are not clearly worse go through the others, the best first. Every finished (recipe, fold) is in the journal, every
finished epoch in a checkpoint, so a kill costs at most one epoch.

What is tried is a function of the images, the networks and the budget; how long it takes is then predicted from a few
steps on this machine. Only where it is slower than such a plan assumes, the study depends on the clock, and says so: the last
of the plan are left out, so that the time is there for one that wins to be measured on all folds; and what is ahead on some
folds goes on to all of them, if there is time.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from graft.judging.uncertainty import draw_weights, paired
from graft.studies.balancing import balance_of_head
from graft.studies.beside import activations_of, trunk_of_trial
from graft.studies.frame import Event, Frame, Trial, budget_of, criterion
from graft.studies.journal import TRIALS
from graft.studies.retrieval import retrieval_of_tuned
from graft.studies.symmetry import ask_the_best
from graft.studies.tuning.bench import APART, Bench, bench_of, cut_for, training
from graft.studies.tuning.decided import known_folds, plan_of, rows_of
from graft.studies.tuning.finalists import DRAWS
from graft.studies.tuning.kept_states import keep_tuned
from graft.studies.tuning.norms import statistics_for, told
from graft.studies.tuning.options import Option
from graft.studies.tuning.plan import REFIT, TuningPlan
from graft.studies.tuning.timing import timed

SURVIVORS = "tuning_survivors.v2"
PAID = "tuning_paid"
SLACK = 0.85  # of what is left may be predicted: folds that are missing at the end are worth less than another try
TOO_SLOW = "this machine has no time for it in this budget"
SLOWER = 2.0  # times as long as predicted a fold may take, on a machine that became slower meanwhile
KEPT = 0.15  # of the budget is left to what follows, if it is for the folds that are missing
NEARLY_ALL = 0.8  # of its share is left when the rung begins, or the plan is made for what is left
AFTERWARDS = 0.5  # of what is kept for what comes after may then pay the last fit


@dataclass(slots=True)
class Tuning:
    """The rung at work: `trials` by recipe, `rows` of the plan, the keys that are `paid` by the clock, too, and the network
    that was used last."""

    frame: Frame
    plan: TuningPlan
    until: float
    rows: list[dict[str, Any]]
    trials: dict[str, Trial] = field(default_factory=dict)
    paid: list[str] = field(default_factory=list)
    bench: tuple[str, Bench] | None = None

    @property
    def seconds_left(self) -> float:
        """Of the rung's share of the budget."""
        frame = self.frame
        return min(self.until - frame.journal.elapsed_seconds(), frame.remaining_seconds())

    def fold_seconds(self, option: Option) -> float | None:
        """What a fold takes: the mean of those that are finished, else as predicted; None without a prediction."""
        records = [record for record in self.frame.journal.records if record["kind"] == "fold"]
        measured = [_seconds_of(record) for record in records if record["recipe"] == option.recipe.key]
        return float(np.mean(measured)) if measured else _row(self, option)["fold_seconds"]

    def pays(self, fold_seconds: float) -> bool:
        """Whether there is time for a fold and, where what is kept after the rung is less than that, for a last fit."""
        return self.seconds_left - self.last_fit_beyond(fold_seconds) >= fold_seconds / 2

    def worth_a_try(self, option: Option) -> bool:
        """The first fold of all, where by the count of layers there is time for it: the timing may have met a busy moment (beside
        a test suite 382 seconds were foretold for a fold of 30), and that fold tells."""
        frame = self.frame
        counted = option.fold_seconds(len(frame.learned_from(0)), len(frame.held_out(0)), option.cost)
        return option is self.plan.options[0] and not self.trials and self.pays(counted)

    def last_fit_beyond(self, fold_seconds: float) -> float:
        """The seconds of a last fit that are not kept after the rung."""
        return max(0.0, REFIT * fold_seconds - (self.frame.settings.budget_seconds - self.until))


def finetuning(
    frame: Frame, trials: list[Trial], rows: list[dict[str, Any]], *, seconds: float, reserve: float
) -> Generator[Event, None, None]:
    """Add a trial to `trials` for everything that was tuned, and to `rows` the plan, predicted and real.

    `seconds`: what the plan may take by the count of layers; `reserve`: of the budget, for what comes after the rung.
    """
    until = frame.settings.budget_seconds - reserve
    left = until - frame.journal.elapsed_seconds()
    late = left <= NEARLY_ALL * seconds
    plan = plan_of(
        frame, trials, max(0.0, left) if late else seconds, kept=AFTERWARDS * reserve if late else 0.0
    )
    work = Tuning(frame, plan, until, rows)
    rows += rows_of(frame, plan)
    yield from _forecast(work)
    with ExitStack() as at_end:
        at_end.callback(lambda: trials.extend(work.trials.values()))
        if plan.options and not frame.halt.is_set():
            yield from ask_the_best(frame, [plan.options[0].trial])
        yield from _paid_by_the_clock(work)
        for option in plan.options:
            if option.recipe.key in work.paid or known_folds(frame, option):
                yield from _folds(work, option, range(1))
        for option in _survivors(work):
            yield from _folds(work, option, range(1, max(plan.folds, known_folds(frame, option))))
        yield from _further_folds(work, trials)
    for row in rows:
        if row["folds_done"]:
            yield Event(
                "notice",
                f"{row['id']}: {_count(row['folds_done'])} in {row['real_seconds']:.0f} s, predicted "
                f"{row['predicted_seconds']:.0f} s.",
            )


def _further_folds(work: Tuning, trials: Sequence[Trial]) -> Generator[Event, None, None]:
    """Where the plan was for some folds, or the rung's time was over, and there is time for all, go on with the best, if it is
    ahead of every other there."""
    leads = {key: _lead(work, tuned, trials) for key, tuned in work.trials.items()}
    best = max(leads, key=lambda key: leads[key], default=None)
    if best is None or work.trials[best].complete or leads[best] <= 0 or work.frame.halt.is_set():
        return
    option = next(one for one in work.plan.options if one.recipe.key == best)
    budget, left = work.frame.settings.budget_seconds, work.frame.remaining_seconds()
    done, seconds = known_folds(work.frame, option), work.fold_seconds(option)
    missing = work.frame.folds.count - done
    if seconds is None or left - KEPT * budget < (missing + REFIT) * seconds:
        return
    work.until = budget - KEPT * budget - REFIT * seconds
    yield Event("notice", f"{option.recipe.name} is ahead, and there is time to measure it on all folds.")
    yield from _folds(work, option, range(done, work.frame.folds.count))


def _lead(work: Tuning, tuned: Trial, others: Sequence[Trial]) -> float:
    """By how much it scores better than the best other candidate, on the images that it was measured on."""
    rows = ~np.isnan(tuned.probabilities).any(axis=1)
    score, targets = criterion(work.frame.settings.metric), work.frame.targets[rows]
    known = [score(other.probabilities[rows], targets) for other in others if other.complete]
    return score(tuned.probabilities[rows], targets) - max(known, default=0.0)


def _count(folds: int) -> str:
    return f"{folds} fold{'' if folds == 1 else 's'}"


def _forecast(work: Tuning) -> Generator[Event, None, None]:
    """The plan in words, with the seconds that a few steps on this machine predict."""
    frame = work.frame
    learned, held_out = len(frame.learned_from(0)), len(frame.held_out(0))
    for option in work.plan.options:
        row = _row(work, option)
        known = frame.journal.find("tuning_forecast", {"recipe": option.recipe.key})
        if known is None and (frame.halt.is_set() or work.seconds_left <= 0):
            continue  # it stays without a prediction, and is not begun
        if known is None:
            text = f"timing {option.recipe.name}"
            yield Event("progress", text, remaining_seconds=frame.remaining_seconds())
            trunk = activations_of(frame, option.trial)[0]
            cost = timed(frame, option, cut_for(frame, option, trunk))
            known = frame.journal.append(
                "tuning_forecast",
                {
                    "recipe": option.recipe.key,
                    "fold_seconds": round(option.fold_seconds(learned, held_out, cost), 2),
                    "cache_seconds": round(option.cache_seconds(len(frame.dataset), cost), 2),
                },
            )
        row["fold_seconds"], row["cache_seconds"] = known["fold_seconds"], known["cache_seconds"]
        views = f" over {option.settings.views} kept views of each image" if option.settings.views else ""
        yield Event(
            "notice",
            f"Plan: {option.recipe.name}, {option.settings.epochs} epochs{views}; predicted "
            f"{row['cache_seconds']:.0f} s and {row['fold_seconds']:.0f} s per fold.",
        )
    if not work.plan.folds:
        kept = "; what an earlier one has paid is kept" if work.plan.options else ""
        yield Event("notice", f"The budget pays no fine-tuning{kept}; a longer --budget does.")
    elif work.plan.folds < frame.folds.count:
        yield Event(
            "notice",
            f"The budget pays fine-tuning on {work.plan.folds} of {frame.folds.count} folds; it is chosen only where it "
            "is clearly better there.",
        )


def _paid_by_the_clock(work: Tuning) -> Generator[Event, None, None]:
    """Of the plan, in order, what there is time for as predicted on this machine: the one that takes longest on all folds
    of the plan, and fitted once more, the others on one. At least one of those that were timed, and the best by prior where
    there is time for one fold of it; journalled."""
    frame, plan = work.frame, work.plan
    decided = {"budget": budget_of(frame)}
    known = frame.journal.find(PAID, decided)
    if known is None:
        paid: list[str] = []
        caches = folds = longest = 0.0
        for option in plan.options:
            row = _row(work, option)
            if row["fold_seconds"] is None:
                break
            one, through = row["fold_seconds"], max(longest, row["fold_seconds"])
            tried = caches + row["cache_seconds"] + folds + one
            also = option.by_prior and len(paid) == 1
            spent = tried + (0.0 if also else through * (plan.folds - 1))
            if paid and spent + work.last_fit_beyond(through) > SLACK * work.seconds_left:
                break
            caches, folds, longest = caches + row["cache_seconds"], folds + one, through
            paid.append(option.recipe.key)
        known = {**decided, "recipes": paid}
        if not frame.halt.is_set():
            frame.journal.append(PAID, known)
    work.paid = list(known["recipes"])
    left = [option for option in plan.options if option.recipe.key not in work.paid]
    for option in left:
        _row(work, option)["decision"] = TOO_SLOW
    if left and not frame.halt.is_set():
        names = ", ".join(option.recipe.name for option in left)
        yield Event("notice", f"By these predictions this machine has no time for: {names}.")


def _seconds_of(record: Mapping[str, Any]) -> float:
    """Of a finished fold; one that was killed on the way is told with the seconds of its last session, its epochs with theirs."""
    return max(float(record["seconds"]), sum(float(epoch["seconds"]) for epoch in record["curve"]["epochs"]))


def _row(work: Tuning, option: Option) -> dict[str, Any]:
    return next(row for row in work.rows if row["id"] == option.recipe.name)


def _folds(work: Tuning, option: Option, folds: range) -> Generator[Event, None, None]:
    """Measure the folds that the journal lacks, as long as the clock allows, and put the trial together."""
    frame, key, row = work.frame, option.recipe.key, _row(work, option)
    for fold in folds:
        known = frame.journal.fold(key, fold)
        if known is None:
            seconds = work.fold_seconds(option)
            if seconds is None or not (work.pays(seconds) or work.worth_a_try(option)):
                why = frame.ended if frame.halt.is_set() else "the time was over"
                yield Event("notice", f"{option.recipe.name}: {why} after {_count(fold)}.")
                break
            if work.bench is None or work.bench[0] != key:
                begun = frame.journal.elapsed_seconds()
                work.bench = key, (yield from bench_of(frame, option))
                row["real_seconds"] += round(frame.journal.elapsed_seconds() - begun, 2)
                row["predicted_seconds"] += row["cache_seconds"]
            known = yield from _fold(work, option, work.bench[1], fold, seconds=seconds)
        row["folds_done"] += 1
        row["predicted_seconds"] = round(row["predicted_seconds"] + (row["fold_seconds"] or 0.0), 2)
        row["real_seconds"] = round(row["real_seconds"] + float(known[0]["seconds"]), 2)
        work.trials[key] = _trial(frame, option)
        row["batch_norm_policy"] = told(work.trials[key].curves)


def _fold(
    work: Tuning, option: Option, bench: Bench, fold: int, *, seconds: float
) -> Generator[Event, None, tuple[dict[str, Any], np.ndarray]]:
    """One fold, in the journal. `seconds`: what it should take; after `SLOWER` times as many it is stopped."""
    from graft.learning.finetune import predict

    frame, recipe = work.frame, option.recipe
    balance = balance_of_head(frame, option.trial, fold)
    begun = frame.journal.elapsed_seconds()
    norms = statistics_for(frame, bench, option.settings, frame.learned_from(fold))
    kept_in = frame.settings.out / TRIALS / f"{recipe.key[:16]}-{fold}.tune.safetensors"
    tuned, curve = yield from training(
        frame,
        replace(option.settings, balance=balance, batch_norm=norms["batch_norm"]),
        bench,
        rows=frame.learned_from(fold),
        seed=fold + APART * option.seed,
        deadline_seconds=max(1.0, min(work.seconds_left, SLOWER * seconds)),
        kept_in=kept_in,
        text=f"{recipe.name}, fold {fold + 1} of {frame.folds.count}",
    )
    rows = predict(
        bench.cutting,
        bench.source,
        tuned,
        frame.held_out(fold),
        features=bench.features,
        compute=frame.compute,
    )
    facts: dict[str, Any] = {
        "name": recipe.name,
        "seconds": round(frame.journal.elapsed_seconds() - begun, 3),
        "balance": balance,
        "curve": curve | norms,
        "features": tuned.head.features,
    }
    if fold == 0:
        facts["retrieval"] = retrieval_of_tuned(frame, bench, tuned)
    keep_tuned(frame, recipe.key, fold, tuned)
    record = frame.journal.add_fold(recipe.key, fold, rows, facts)
    kept_in.unlink(missing_ok=True)
    return record, rows


def _trial(frame: Frame, option: Option) -> Trial:
    """What the journal holds of this option; its packed model is as fast as the frozen one, and as large but for the head."""
    probabilities = np.full((len(frame.dataset), frame.classes), np.nan, np.float32)
    seconds, curves, longer = 0.0, [], 0
    own = trunk_of_trial(frame, option.trial).taps[option.trial.tap_index].features
    for fold in range(frame.folds.count):
        known = frame.journal.fold(option.recipe.key, fold)
        if known is not None:
            probabilities[frame.held_out(fold)] = known[1]
            seconds += float(known[0]["seconds"])
            curves.append({"fold": fold, **known[0]["curve"]})
            longer = (known[0].get("features", own) - own) * frame.classes
    read = {"together": list(option.together)} if option.together else {}
    return replace(
        option.trial,
        recipe=option.recipe,
        tap_index=option.trial.taps if option.together else option.trial.tap_index,
        parameters=option.trial.parameters + longer,
        model_bytes=None if option.trial.model_bytes is None else option.trial.model_bytes + 4 * longer,
        probabilities=probabilities[frame.rows],
        train_seconds=seconds,
        knn=None,
        about={**option.trial.about, **read, "runner": "torch"},
        curves=tuple(curves),
    )


def _survivors(work: Tuning) -> list[Option]:
    """Those not clearly worse on the first fold than the best tuned one or their own frozen trial, best first."""
    frame = work.frame
    by_key = {o.recipe.key: o for o in work.plan.options if o.recipe.key in work.trials}
    decided = {"budget": budget_of(frame)}
    known = frame.journal.find(SURVIVORS, decided)
    if known is not None:
        return [by_key[key] for key in known["recipes"] if key in by_key]
    recipes = _not_worse(work, list(by_key.values()))
    if len(by_key) >= len(work.paid):  # else the time is over, and a longer one decides on all of them
        frame.journal.append(SURVIVORS, {**decided, "recipes": recipes})
    return [by_key[key] for key in recipes]


def _not_worse(work: Tuning, tried: Sequence[Option]) -> list[str]:
    frame = work.frame
    rows = np.flatnonzero(frame.folds.assignment[frame.rows] == 0)
    targets, groups = frame.targets[rows], frame.dataset.groups[frame.rows][rows]
    draws = draw_weights(targets, groups, draws=DRAWS, seed=frame.settings.seed)
    score, loss = criterion(frame.settings.metric), criterion("log_loss")
    said = {option.recipe.key: work.trials[option.recipe.key].probabilities[rows] for option in tried}

    def rank(option: Option) -> tuple[float, float]:
        own = said[option.recipe.key]
        return -score(own, targets), -loss(own, targets)

    def behind(one: np.ndarray, other: np.ndarray) -> bool:
        return paired(frame.settings.metric, one, other, targets, draws).high < 0

    ordered = sorted(tried, key=rank)
    return [
        option.recipe.key
        for option in ordered
        if not behind(said[option.recipe.key], option.trial.probabilities[rows])
        and not behind(said[option.recipe.key], said[ordered[0].recipe.key])
    ]


def tuning_again(
    frame: Frame, first: Trial, trials: Sequence[Trial], *, seed: int, reserve: float
) -> Generator[Event, None, Trial | None]:
    """A tuned trial measured once more with another seed, on as many folds as the clock allows; None without any.

    `reserve`: seconds of the budget that are kept for what comes after.
    """
    plan = plan_of(frame, trials, 0.0)
    option = next(one for one in plan.options if one.recipe.key == first.recipe.key)
    again = replace(option, seed=seed)
    row = {"id": again.recipe.name, "fold_seconds": first.train_seconds / len(first.curves)}
    row |= {"cache_seconds": 0.0, "predicted_seconds": 0.0, "real_seconds": 0.0, "folds_done": 0}
    work = Tuning(frame, plan, frame.settings.budget_seconds - reserve, [row])
    yield from _folds(work, again, range(frame.folds.count))
    return work.trials.get(again.recipe.key)
