"""The one candidate of `graft train` measured on the folds, as often as it has seeds.

In: a `Candidate`. Out: its `Trial` (that of the first seed), and how far the seeds differ.
A run is one training with a seed of its own; a candidate has `ensemble` of them for each of its `seeds`, and the mean of
their probabilities is its answer. Every finished (run, fold) is in the journal and every finished epoch in a checkpoint,
so a kill costs at most one epoch. A further seed is begun where the budget pays as many seconds as the first one took and
the last fit; it counts where the clock cut off none of its trainings that it let the first seed end.

Not covered: the last fit (`graft.studies.single.last_fit`); choosing, testing, packing (`graft.studies.ending`).
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from graft.judging.metrics import METRICS
from graft.store import content_key
from graft.studies.board import board
from graft.studies.branches import model_costs
from graft.studies.frame import Event, Frame, Trial, criterion
from graft.studies.journal import TRIALS
from graft.studies.probe import activating
from graft.studies.rungs import LAST_FIT, Progress, Working, tell
from graft.studies.scratching import of_fold
from graft.studies.single.candidate import (
    Candidate,
    augmentation_for,
    bench_for,
    bench_of_run,
    show_views,
)
from graft.studies.single.page import FIND
from graft.studies.tuning.bench import Bench, training

if TYPE_CHECKING:
    from graft.learning.finetune import Tuned
    from graft.learning.tune_settings import TuneSettings
else:
    Tuned = TuneSettings = Any

APART = 1_000_000  # between the seeds of two runs


@dataclass(slots=True)
class Workshop:
    """What is opened once and used by every run. `features` are those of a frozen network, `bench` of the others;
    `first`: the journal's records of the first seed, by its run and fold."""

    frame: Frame
    candidate: Candidate
    bench: Bench | None = None
    features: np.ndarray | None = None
    curves: dict[int, list[dict[str, Any]]] = field(default_factory=dict)  # by run
    first: dict[tuple[int, int], dict[str, Any]] = field(default_factory=dict)

    @property
    def first_seconds(self) -> float:
        """What the first seed took on all folds."""
        return float(sum(map(_seconds, self.first.values())))

    @property
    def last_fit_seconds(self) -> float:
        """What the last fit of all members of the first seed will take."""
        return LAST_FIT * self.first_seconds / self.frame.folds.count


def measuring(work: Workshop, done: Progress) -> Working:
    """Measure the candidate with its first seed, then with the others as far as the budget goes."""
    frame, candidate = work.frame, work.candidate
    page = candidate.page
    with closing(_first(work, done)) as first:
        for event in first:
            yield event
            if frame.halt.is_set() and event.kind != "result":
                break
    if not done.trials:  # stopped by hand: what the journal holds
        work.first.clear()
        work.curves.clear()
        yield from _first(work, done)
    if not done.trials[0].complete:
        return
    yield Event("board", "measured on every fold", board=board(frame, done.trials))
    if page.seeds == 1 or candidate.closed:
        return
    measured = [done.trials[0].probabilities]
    with closing(_further(work, measured)) as others:
        for event in others:
            yield event
            if frame.halt.is_set():
                break
    if len(measured) < page.seeds:
        yield from tell(done, _too_few(work, len(measured)))
    if len(measured) > 1:
        done.extras["seeds"] = spread(measured, frame, cut_off=any(map(_cut_off, work.first.values())))
        yield from tell(done, done.extras["seeds"]["sentence"])


def _first(work: Workshop, done: Progress) -> Working:
    frame, candidate = work.frame, work.candidate
    trial = yield from _trial(work)
    done.trials.append(trial)
    if frame.journal.find("first_answer", {}) is None:
        frame.journal.append("first_answer", {})
    shown = METRICS[frame.settings.metric]
    if trial.complete:
        value = shown.sign * criterion(shown.name)(trial.probabilities, frame.targets)
        yield Event("result", f"{candidate.recipe.name}: {shown.label} {shown.text(value)}")


def _further(work: Workshop, measured: list[np.ndarray]) -> Working:
    """The seeds after the first, added to `measured` one by one, until one is not paid for or was not finished."""
    for seed in range(1, work.candidate.page.seeds):
        if not _begun(work, seed) and _seconds_left(work) < work.first_seconds:
            return
        probabilities, _ = yield from _of_seed(work, seed)
        if np.isnan(probabilities).any():
            return
        measured.append(probabilities)


def _begun(work: Workshop, seed: int) -> bool:
    """Whether a fold of this seed is in the journal: it was paid for when it was begun."""
    first_run = run_key(work.candidate, seed * work.candidate.page.ensemble)
    return work.frame.journal.find("fold", {"recipe": first_run}) is not None


def _seconds_left(work: Workshop) -> float:
    """What further seeds may use: the time of the last fit, which is packed, is kept."""
    return work.frame.remaining_seconds() - work.last_fit_seconds


def _seconds(record: dict[str, Any]) -> float:
    return float(record["seconds"])


def _cut_off(record: dict[str, Any]) -> bool:
    """Whether the clock ended this training before it would have ended by itself."""
    return bool(record["curve"]["stopped"] == "deadline")


def _too_few(work: Workshop, trained: int) -> str:
    """Why there are fewer seeds than were asked for, and how there will be more."""
    frame, seeds = work.frame, work.candidate.page.seeds
    if frame.halt.is_set():
        return f"{frame.ended} after {trained} of {seeds} seeds; the same command trains the rest."
    unknown = ", so it is not known how far seeds differ" if trained == 1 else ""
    return (
        f"The budget paid for {trained} of {seeds} seeds{unknown}. A further one takes about "
        f"{work.first_seconds:.0f} s, and {work.last_fit_seconds:.0f} s are kept for the last fit; "
        "the same command with a longer --budget trains the rest."
    )


def spread(measured: Sequence[np.ndarray], frame: Frame, *, cut_off: bool) -> dict[str, Any]:
    """How far the seeds differ on the leading metric. `cut_off`: whether the clock ended trainings of every seed."""
    metric = METRICS[frame.settings.metric]
    values = [metric.sign * criterion(metric.name)(rows, frame.targets) for rows in measured]
    mean, deviation = float(np.mean(values)), float(np.std(values, ddof=1))
    return {
        "metric": metric.name,
        "values": values,
        "mean": mean,
        "least": min(values),
        "most": max(values),
        "deviation": deviation,
        "sentence": (
            f"{metric.label} over {len(values)} seeds on the same folds: mean {metric.text(mean)}, from "
            f"{metric.text(min(values))} to {metric.text(max(values))}, standard deviation "
            f"{metric.difference_text(deviation).lstrip('+')}. The packed model is that of the first seed, "
            f"{metric.text(values[0])}."
            + (" The budget cut trainings of all of them off after the same time." if cut_off else "")
        ),
    }


def _trial(work: Workshop) -> Generator[Event, None, Trial]:
    frame, candidate = work.frame, work.candidate
    if candidate.closed:
        trunk = candidate.trunk
        assert trunk is not None
        from graft.images.pixels import open_pixels

        pixels = open_pixels(frame.dataset, candidate.geometry, store=frame.store)
        activations = yield from activating(frame, trunk, pixels)
        work.features = np.asarray(activations.tap(candidate.tap.index), np.float32)
    probabilities, seconds = yield from _of_seed(work, 0)
    cost = model_costs(frame, candidate)
    trunk = candidate.trunk
    return Trial(
        recipe=candidate.recipe,
        probabilities=probabilities,
        train_seconds=seconds,
        extract_seconds=float(sum(record.get("opening_seconds", 0.0) for record in work.first.values())),
        model_bytes=cost.bytes,
        parameters=cost.parameters,
        latency_ms=cost.latency_ms,
        tap_index=candidate.tap.index,
        taps=candidate.taps,
        about={
            "family": candidate.entry.family,
            "source": "random weights" if trunk is None else trunk.origin,
            "licence": "Apache-2.0" if trunk is None else candidate.entry.licence,
            "runner": "torch",
        },
        curves=tuple(
            {**curve, "run": run} if candidate.page.ensemble > 1 else curve
            for run in range(candidate.page.ensemble)
            for curve in work.curves.get(run, [])
        ),
    )


def _of_seed(work: Workshop, seed: int) -> Generator[Event, None, tuple[np.ndarray, float]]:
    """The mean over the runs of one seed, for every development image, and the seconds of all of them."""
    frame, candidate, ensemble = work.frame, work.candidate, work.candidate.page.ensemble
    total = np.zeros((len(frame.dataset), frame.classes), np.float32)
    seconds = 0.0
    for run in range(seed * ensemble, (seed + 1) * ensemble):
        mine = np.full_like(total, np.nan)
        for fold in range(frame.folds.count):
            known = frame.journal.fold(run_key(candidate, run), fold)
            if known is None:
                if (_seconds_left(work) if seed else frame.remaining_seconds()) <= 0:
                    break
                known = yield from _fold(work, run, fold)
                if known is not None and not candidate.closed and run == ensemble - 1:
                    yield Event("result", of_fold(frame, candidate.recipe, fold, known[1]))
            if known is None:
                break
            if seed == 0:
                work.first[run, fold] = known[0]
            mine[frame.held_out(fold)] = known[1]
            seconds += _seconds(known[0])
            if "curve" in known[0]:
                work.curves.setdefault(run, []).append({"fold": fold, **known[0]["curve"]})
        total += mine / ensemble
    return total[frame.rows], seconds


def run_key(candidate: Candidate, run: int) -> str:
    """Under which the journal keeps what a run has finished; the first run stands for the candidate itself."""
    return candidate.recipe.key if run == 0 else content_key("run.v1", candidate.recipe.key, run)


def _fold(
    work: Workshop, run: int, fold: int
) -> Generator[Event, None, tuple[dict[str, Any], np.ndarray] | None]:
    """Train on the other folds, and answer for this one. None, and nothing in the journal, where the clock ended a
    further seed before it had the time of the first: with a longer budget it is trained again."""
    frame, candidate = work.frame, work.candidate
    begun, trained = frame.journal.elapsed_seconds(), 0.0
    learned, asked = frame.learned_from(fold), frame.held_out(fold)
    facts: dict[str, Any] = {"name": candidate.recipe.name, "run": run}
    if candidate.closed:
        rows = closed_head(work, learned).probabilities(features_of(work)[asked])
        yield Event("progress", f"{candidate.recipe.name}: heads", fold + 1, frame.folds.count)
    else:
        from graft.learning.finetune import checkpoints, predict

        bench = yield from opened_bench(work, run)
        facts["opening_seconds"] = round(frame.journal.elapsed_seconds() - begun, 3)
        begun = frame.journal.elapsed_seconds()  # no further seed opens anything
        settings = yield from _with_rate(work, bench, run, fold)
        further = run >= candidate.page.ensemble
        wanted = _as_the_first(work, run, fold) if further else _share(work, run, fold)
        deadline = min(wanted, _seconds_left(work)) if further else wanted
        kept_in = checkpoint_of(work, run, str(fold))
        tuned, curve = yield from training(
            frame,
            settings,
            bench,
            rows=learned,
            seed=APART * run + fold,
            deadline_seconds=deadline,
            kept_in=kept_in,
            text=f"{candidate.recipe.name}, fold {fold + 1} of {frame.folds.count}{of_runs(candidate, run)}",
        )
        if curve["stopped"] == "deadline" and deadline < wanted:
            return None
        rows = predict(
            bench.cutting, bench.source, tuned, asked, features=bench.features, compute=frame.compute
        )
        facts["curve"] = {**curve, "batch_norm": settings.batch_norm, **_rates(settings)}
        trained = sum(float(epoch["seconds"]) for epoch in curve["epochs"])  # also before a kill
    seconds = round(max(frame.journal.elapsed_seconds() - begun, trained), 3)
    record = frame.journal.add_fold(run_key(candidate, run), fold, rows, {**facts, "seconds": seconds})
    if not candidate.closed:
        for place in checkpoints(kept_in):
            place.unlink(missing_ok=True)
    return record, rows


def of_runs(candidate: Candidate, run: int) -> str:
    """Which run it is, in words."""
    runs = candidate.page.ensemble * candidate.page.seeds
    return f", run {run + 1} of {runs}" if runs > 1 else ""


def _rates(settings: TuneSettings) -> dict[str, float]:
    return {"trunk_rate": settings.trunk_rate, "head_rate": settings.head_rate}


def checkpoint_of(work: Workshop, run: int, fold: str) -> Path:
    """Where a training that was interrupted goes on from."""
    key = run_key(work.candidate, run)[:16]
    return work.frame.settings.out / TRIALS / f"{key}-{fold}.tune.safetensors"


def _share(work: Workshop, run: int, fold: int) -> float:
    """The seconds that this fold of the first seed may take: an equal share of what is left, the last fits included."""
    frame, page = work.frame, work.candidate.page
    left = frame.folds.count - fold + frame.folds.count * (page.ensemble - 1 - run)
    return max(1.0, frame.remaining_seconds() / (left + LAST_FIT * page.ensemble))


def _as_the_first(work: Workshop, run: int, fold: int) -> float:
    """The seconds that this fold of a further seed needs to be like the first one: those after which the clock cut that
    one off, or as many as it takes."""
    record = work.first[run % work.candidate.page.ensemble, fold]
    return _seconds(record) if _cut_off(record) else math.inf


def opened_bench(work: Workshop, run: int) -> Generator[Event, None, Bench]:
    """The bench of a run; everything that runs share is opened once."""
    frame, candidate = work.frame, work.candidate
    if work.bench is None:
        augmentation = yield from augmentation_for(frame, candidate)
        show_views(frame, candidate, augmentation)
        work.bench = yield from bench_for(frame, candidate, augmentation)
    return bench_of_run(frame, candidate, work.bench, run)


def _with_rate(work: Workshop, bench: Bench, run: int, fold: int) -> Generator[Event, None, TuneSettings]:
    """The settings of this fold: with `--lr find` the rate that a range test on its training images finds."""
    from graft.learning.range_test import find_rate, with_rate

    frame, settings = work.frame, work.candidate.settings
    if work.candidate.page.lr != FIND:
        return settings
    name = {"recipe": run_key(work.candidate, run), "fold": fold}
    known = frame.journal.find("rate", name)
    if known is None:
        yield Event("progress", f"{work.candidate.recipe.name}: finding the learning rate")
        found = find_rate(
            bench.cutting,
            bench.source,
            frame.dataset.targets,
            frame.learned_from(fold),
            groups=frame.dataset.groups,
            features=bench.features,
            classes=frame.classes,
            settings=settings,
            compute=frame.compute,
            seed=1000 * frame.settings.seed + APART * run + fold,
            criterion=criterion(frame.settings.metric),
        )
        curve = {"rates": list(found.rates), "losses": list(found.losses)}
        known = frame.journal.append("rate", {**name, "rate": found.rate, **curve})
        yield Event("notice", f"Fold {fold + 1}: learning rate {found.rate:.2g}, found by a range test.")
    return with_rate(settings, float(known["rate"]), default=settings)


def features_of(work: Workshop) -> np.ndarray:
    """What the frozen network puts out for every image, where its head reads it."""
    assert work.features is not None
    return work.features


def closed_head(work: Workshop, rows: np.ndarray) -> Any:
    """The head of frozen features of these rows."""
    from graft.learning.heads import answering_head

    frame = work.frame
    return answering_head(
        features_of(work)[rows],
        frame.dataset.targets[rows],
        classes=frame.classes,
        balance=work.candidate.settings.balance,
        criterion=criterion(frame.settings.metric),
    )
