"""The study itself: check, probe, read, tune, train from scratch, shrink, and then its end (`graft.studies.ending`).

A generator of events, so that whoever drives it shows progress as they like. Everything that is finished is in the
journal or in the cache at once: after SIGKILL at any moment the same call continues and gives the same result. The
order is that of growing cost, and after every backbone there is a leaderboard, so there is always an answer so far.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from threading import Event as Flag

import numpy as np

from graft.backbones.ahead import Ahead, opening_ahead
from graft.backbones.hub import Reach, reach_hub
from graft.backbones.trunks import is_open
from graft.backbones.weights import WeightsFolder, folder_from
from graft.compute import Compute
from graft.compute import choose as choose_compute
from graft.errors import MEMORY_RAN_OUT, GraftError, memory_ran_out
from graft.images.dataset import Dataset
from graft.images.folds import split
from graft.images.issues import write_check
from graft.images.scan import inspecting
from graft.store import Store
from graft.studies import results
from graft.studies.amounts import amounts_rung
from graft.studies.depths import depths_rung
from graft.studies.ending import finishing
from graft.studies.ensembles import ensembles_rung
from graft.studies.frame import Event, Frame, budget_of
from graft.studies.frozen import probe_rung
from graft.studies.inputs import inputs_rung
from graft.studies.journal import Journal
from graft.studies.larger import larger_rung
from graft.studies.place import claim, refuse_place, sweep, write_run
from graft.studies.plan import Plan, plan
from graft.studies.rungs import (
    Progress,
    Working,
    kept_for_the_end,
    scratch_rung,
    tell,
    tuning_rung,
)
from graft.studies.schedule import RUNG
from graft.studies.seeds import seeds_rung
from graft.studies.settings import Settings
from graft.studies.shrinking.rung import shrink_rung
from graft.studies.subjects import about_series, kept_together

SELECTING = "selecting an ensemble"  # which takes a second or two, and minds the last fits itself
WORKING = ("stage", "progress")  # tell that a rung goes on; a board or a notice may be its last

Ending = Callable[[Frame, Progress, str], Generator[Event, None, results.StudyResult]]


def studying(
    settings: Settings, *, command: str = "", halt: Flag | None = None, ending: Ending | None = None
) -> Generator[Event, None, results.StudyResult]:
    """Run or continue the study in `settings.out`. Raises GraftError with a sentence for whatever is wrong.

    Once `halt` is set, it ends with the answer so far, as if the budget were over. `ending`: what is done with all
    trials at the end, instead of choosing, fitting and packing (`finishing`).
    """
    started = time.monotonic()
    compute = choose_compute(settings.device)
    refuse_place(settings)
    folder = folder_from(settings.weights)
    store = Store()
    yield Event("stage", f"Checking {settings.source}")
    looking = inspecting(settings.source, store=store, threads=compute.threads)
    next(looking)  # a source that is missing or has no classes is told before anything else is tried
    reach = Reach(False, False) if settings.only == "scratch" else reach_hub()
    planned = plan(settings, folder=folder, reach=reach)
    unopened = _anything_to_open(planned, folder, store, compute)
    with opening_ahead(wanted=unopened, folder=folder, reach=reach, store=store, compute=compute) as ahead:
        dataset = yield from looked_at(looking, settings)
        dataset = kept_together(dataset, groups=settings.groups)
        folds = split(dataset, count=settings.folds, seed=settings.seed)
        claim(settings, dataset, folder)
        with closing(Journal(settings.out, started=started)) as journal:
            sweep(settings.out)
            halt = Flag() if halt is None else halt
            frame = Frame(settings, dataset, folds, store, compute, folder, reach, journal, halt)
            write_run(frame, command)
            write_check(dataset, settings.out / "check.csv")
            result = yield from _climb(frame, planned, ahead, command, ending or finishing)
    store.tidy()
    return result


def _climb(
    frame: Frame, planned: Plan, ahead: Ahead, command: str, ending: Ending
) -> Generator[Event, None, results.StudyResult]:
    """Rung by rung, then the choice."""
    if not frame.journal.records:
        frame.journal.append("begin", {})
    series = about_series(frame.dataset)
    done = Progress(notices=[*([series] if series else []), *frame.folds.notices, *planned.notices])
    yield Event("notice", about_images(frame))
    for notice in done.notices:
        yield Event("notice", notice)
    alone = ending is finishing
    for name, rung in _rungs(frame, planned, done, ahead, alone=alone):
        yield from _in_time(frame, done, name, rung, alone=alone)
    if frame.halt.is_set():
        frame.journal.append("stopped", {})
        yield from tell(done, f"{frame.ended}: what was not measured by then is missing.")
    return (yield from ending(frame, done, command))


def _rungs(
    frame: Frame, planned: Plan, done: Progress, ahead: Ahead, *, alone: bool
) -> Iterator[tuple[str, Working]]:
    """What is measured, in order, each with its name. `alone`: nobody goes on from the candidates but the choice.

    `--only frozen` is the quick answer: every backbone at every tap, and nothing else.
    """
    only = frame.settings.only
    if only != "scratch":
        yield "probing", probe_rung(frame, planned, done, ahead)
    if only == "frozen":
        return
    if only != "scratch":
        yield "reading several depths", depths_rung(frame, done)
        yield "measuring other inputs", inputs_rung(frame, done, ahead)
        yield "showing larger pictures", larger_rung(frame, done, ahead)
        yield "fine-tuning", tuning_rung(frame, done)
    if only != "finetuned":
        yield "training from scratch", scratch_rung(frame, done)
    yield "measuring how many images are needed", amounts_rung(frame, done)
    if alone and only is None:
        yield "shrinking", shrink_rung(frame, done)
    if alone:
        yield "training with further seeds", seeds_rung(frame, done)
        yield SELECTING, ensembles_rung(frame, done)


def _in_time(frame: Frame, done: Progress, name: str, rung: Working, *, alone: bool) -> Working:
    """A rung, left once there is an answer and the user wants it, or the time is over, or the rung cannot go on.

    The rungs themselves plan with the budget; this is for a machine that is slower than they know. Where time is over
    before a rung begins, nothing of it is decided or journalled, so that a longer budget finds it untouched. One that
    an earlier session had begun (`again`) brings what that had measured, whatever the time. `alone`: as in `_rungs`.
    """
    again = not alone or frame.journal.find(RUNG, {"name": name}) is not None
    begins = {"name": name, "budget": budget_of(frame)}
    kept = 0.0 if name == SELECTING else kept_for_the_end(frame.targets, done.trials)

    def over() -> bool:
        answered = any(trial.complete and trial.model_bytes is not None for trial in done.trials)
        if frame.settings.only == "scratch":  # one candidate: a fold of it is an answer
            answered |= frame.halt.is_set() and any(
                record["kind"] == "fold" for record in frame.journal.records
            )
        late = not again and frame.remaining_seconds() <= kept
        return answered and (frame.halt.is_set() or late)

    try:
        with closing(rung):
            if not over():
                if alone and frame.journal.find(RUNG, begins) is None:
                    frame.journal.append(RUNG, begins)
                for event in rung:
                    yield event
                    if event.kind in WORKING and over():
                        break
                else:
                    return
    except (GraftError, MemoryError, RuntimeError) as error:
        known = isinstance(error, GraftError)
        if not any(trial.complete for trial in done.trials) or not (known or memory_ran_out(error)):
            raise
        told = str(error) if known else MEMORY_RAN_OUT
        yield from tell(done, f"{told} The study goes on without the rest of {name}.")
        return
    if not frame.halt.is_set():
        yield from tell(done, f"The budget was over, so {name} was not begun or not finished.")


def _anything_to_open(planned: Plan, folder: WeightsFolder | None, store: Store, compute: Compute) -> bool:
    return not all(
        is_open(e, e.input.size, folder=folder, store=store, compute=compute) for e, _ in planned.backbones
    )


def looked_at(
    work: Generator[tuple[int, int], None, Dataset], settings: Settings
) -> Generator[Event, None, Dataset]:
    """The checked dataset, with its progress on the way."""
    while True:
        try:
            done, total = next(work)
        except StopIteration as finished:
            return finished.value
        yield Event("progress", "looking at the images", done, total, settings.budget_seconds)


def about_images(frame: Frame) -> str:
    """The images in one sentence."""
    dataset = frame.dataset
    counts = np.bincount(dataset.targets, minlength=len(dataset.classes))
    twice = sum(issue.kind == "conflict" for issue in dataset.issues)
    parts = [
        f"{len(dataset)} images in {len(dataset.classes)} classes ({counts.min()} to {counts.max()} each)",
        f"{dataset.excluded} files left out (check.csv)" if dataset.excluded else "",
        f"{twice} of them show a picture that another class has, too (check.csv)" if twice else "",
        "grey: one channel is read" if dataset.mostly_grey else "",
        f"{len(frame.test_rows)} images are the locked test" if len(frame.test_rows) else "",
        f"{frame.folds.count} folds",
    ]
    return "; ".join(filter(None, parts)) + "."
