"""The study itself: check, probe, train from scratch, choose, refit, test once, pack.

A generator of events, so that whoever drives it shows progress as they like. Everything that is finished is in the
journal or in the cache at once: after SIGKILL at any moment the same call continues and gives the same result. The
order is that of growing cost, and after every backbone there is a leaderboard, so there is always an answer so far.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import replace
from functools import partial
from threading import Event as Flag
from typing import Any

import numpy as np

from graft.backbones.ahead import Ahead, opening_ahead
from graft.backbones.hub import Reach, reach_hub
from graft.backbones.trunks import is_open
from graft.backbones.weights import WeightsFolder, folder_from
from graft.compute import Compute
from graft.compute import choose as choose_compute
from graft.deploy.bundle import Bundle
from graft.deploy.pack import retell
from graft.errors import MEMORY_RAN_OUT, BundleError, GraftError, RunError, memory_ran_out
from graft.images.dataset import Dataset
from graft.images.folds import split
from graft.images.issues import write_check
from graft.images.scan import inspecting
from graft.judging.metrics import METRICS
from graft.store import Store, content_key, json_line
from graft.studies import results
from graft.studies.amounts import amounts_rung
from graft.studies.balancing import balance_on_all
from graft.studies.beside import best_frozen, trunk_of_trial, what_of_new_subjects, where_the_data_stand
from graft.studies.choice import Choice, Limits, choose
from graft.studies.depths import READ, best_read, depths_rung, features_of
from graft.studies.ensembles import ensembles_rung, fitting_ensemble, in_words
from graft.studies.finish import (
    Fitted,
    fitting_frozen,
    fitting_scratch,
    fitting_tuned,
    measured_as,
    packing,
    test_probabilities,
    tested_so_far,
    times_opened,
)
from graft.studies.frame import Event, Frame, Trial, budget_of
from graft.studies.inputs import inputs_rung
from graft.studies.journal import Journal
from graft.studies.knowing import reject_facts
from graft.studies.larger import larger_rung
from graft.studies.place import claim, refuse_place, sweep, write_run
from graft.studies.plan import Plan, plan
from graft.studies.retrieval import retrieval_facts
from graft.studies.rungs import (
    Progress,
    Working,
    kept_for_the_end,
    probe_rung,
    scratch_rung,
    tell,
    training_settings,
    tuning_rung,
)
from graft.studies.schedule import RUNG, spent, told
from graft.studies.seeds import seeds_rung
from graft.studies.settings import Settings
from graft.studies.shrinking.finish import fitting_shrunk
from graft.studies.shrinking.rung import shrink_rung
from graft.studies.subjects import about_series, kept_together

SELECTING = "selecting an ensemble"  # which takes a second or two, and minds the last fits itself

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
        late = not again and frame.remaining_seconds() <= kept
        return answered and (frame.halt.is_set() or late)

    try:
        with closing(rung):
            if not over():
                if alone and frame.journal.find(RUNG, begins) is None:
                    frame.journal.append(RUNG, begins)
                for event in rung:
                    yield event
                    if over():
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
    parts = [
        f"{len(dataset)} images in {len(dataset.classes)} classes ({counts.min()} to {counts.max()} each)",
        f"{dataset.excluded} files left out (check.csv)" if dataset.excluded else "",
        "grey: one channel is read" if dataset.mostly_grey else "",
        f"{len(frame.test_rows)} images are the locked test" if len(frame.test_rows) else "",
        f"{frame.folds.count} folds",
    ]
    return "; ".join(filter(None, parts)) + "."


def _choose(frame: Frame, done: Progress) -> Choice:
    return choose(
        done.trials,
        frame.targets,
        frame.dataset.groups[frame.rows],
        metric=frame.settings.metric,
        limits=Limits(frame.settings.max_bytes, frame.settings.max_latency_ms),
        seed=frame.settings.seed,
    )


def finishing(
    frame: Frame,
    done: Progress,
    command: str,
    *,
    fit: Callable[[Trial], Generator[Event, None, Fitted]] | None = None,
) -> Generator[Event, None, results.StudyResult]:
    """Choose, fit the choice on all images (by `fit`, or as its rung does), test once, pack, and write it all down.

    With `fit` the one trial need not be complete; the test stays locked until it is.
    """
    rungs = spent(frame)
    if rungs:
        yield Event("notice", told(rungs))
    usable = [trial for trial in done.trials if (trial.complete or fit) and trial.model_bytes is not None]
    if not usable:
        raise RunError(
            "The budget ended before any candidate was measured on every fold. Give a longer --budget; what is "
            f"finished is kept in {frame.settings.out}."
        )
    yield Event("stage", "Choosing, fitting on all images, packing")
    choice = _choose(frame, done)
    chosen = done.trials[choice.chosen]
    rows = results.candidate_rows(frame, done.trials, choice)
    opening = len(frame.test_rows) > 0 and (fit is None or chosen.complete)
    fitting = fitted_on_all(frame, done, chosen) if fit is None else fit(chosen)
    fitted = None if _packed(frame, chosen, tested=opening) else (yield from fitting)
    tested = tested_so_far(frame, chosen)
    if fitted is not None and opening:
        tested = test_probabilities(frame, chosen, fitted)
    yield Event("progress", "where the data stand", remaining_seconds=frame.remaining_seconds())
    facts: dict[str, Any] = {
        "format": results.FORMAT,
        "graft": results.VERSION,
        "dataset": results.dataset_facts(frame),
        "settings": results.settings_facts(frame, command),
        "candidates": rows,
        "choice": results.choice_facts(frame, done.trials, choice, tested),
        "scratch_versus_transfer": results.scratch_against_transfer(frame, done.trials, choice),
        "position": where_the_data_stand(frame, done.trials),
        "backbones": done.reasons,
        "plan": done.plan,
        "retrieval": retrieval_facts(frame, done),
        **done.extras,
        "stopped_by_hand": frame.halt.is_set(),
        "notices": done.notices,
        "environment": results.environment(),
    }
    if facts["choice"]["test"] is not None:
        facts["choice"]["test"]["opened"] = times_opened(frame)
    read = chosen if chosen.recipe.strategy in READ else best_read(frame, done.trials)
    subjects = what_of_new_subjects(frame, read, features_of)
    if subjects is not None:
        facts["choice"]["new_subjects"] = subjects
        facts["choice"]["reason"] += " " + subjects["sentence"]
        yield Event("notice", subjects["sentence"])
    yield from _packing(frame, chosen, fitted, about_bundle(facts, chosen), command)
    facts["choice"]["reject"] = reject_facts(frame.settings.out / results.BUNDLE)
    results.write_predictions(frame.settings.out, frame, done.trials, chosen=chosen, tested=tested)
    first = frame.journal.find("first_answer", {})
    facts["seconds"] = {
        "total": round(frame.journal.elapsed_seconds(), 2),
        "first_answer": None if first is None else round(float(first["at"]), 2),
        "rungs": rungs,
    }
    results.write_json(frame.settings.out / results.STUDY, facts)
    frame.journal.append("end", {})
    return results.read(frame.settings.out)


def _packing(
    frame: Frame, chosen: Trial, fitted: Fitted | None, about: dict[str, Any], command: str
) -> Generator[Event, None, None]:
    """The bundle, packed if the choice was `fitted`; else written again where what it tells is no longer so."""
    folder, told = frame.settings.out / results.BUNDLE, content_key("told.v1", json_line(about).decode())
    if fitted is not None:
        yield Event(
            "progress", "packing and checking against torch", remaining_seconds=frame.remaining_seconds()
        )
        packing(frame, folder, fitted, about, trial=chosen)
    elif _last_packed(frame).get("told") != told:
        yield Event(
            "progress", "writing down what the model tells", remaining_seconds=frame.remaining_seconds()
        )
        retell(folder, about)
    else:
        return
    record = {"recipe": chosen.recipe.key, "told": told, "measured": measured_as(chosen)}
    frame.journal.append("packed", {**record, "command": command})


def _packed(frame: Frame, chosen: Trial, *, tested: bool) -> bool:
    """Whether an earlier session had packed this very choice, measured as it is now, and `tested` it if it must be."""
    last = _last_packed(frame)
    if last.get("recipe") != chosen.recipe.key or (tested and tested_so_far(frame, chosen) is None):
        return False
    # An older journal tells only whether all folds were measured, or not even that.
    before = chosen.complete and last.get("complete", True)
    if not (last["measured"] == measured_as(chosen) if "measured" in last else before):
        return False
    try:
        bundle = Bundle(frame.settings.out / results.BUNDLE)
    except BundleError:
        return False
    return bundle.facts.get("recipe") == chosen.recipe.key


def _last_packed(frame: Frame) -> dict[str, Any]:
    return next((record for record in reversed(frame.journal.records) if record["kind"] == "packed"), {})


def fitted_on_all(frame: Frame, done: Progress, chosen: Trial) -> Generator[Event, None, Fitted]:
    """The chosen candidate fitted on all development images."""
    if chosen.recipe.strategy == "scratch":
        from graft.backbones.scratch import design

        made, _ = design(frame.dataset, development=len(frame.rows))
        balance = balance_on_all(frame, best_frozen(frame, done.trials))
        settings = replace(training_settings(frame), balance=balance)
        return (yield from fitting_scratch(frame, chosen, made, settings))
    if chosen.recipe.strategy in ("depths", "shrunk"):
        return (yield from fitting_shrunk(frame, chosen, done.trials))
    if chosen.recipe.strategy == "ensemble":
        refitted = partial(fitted_on_all, frame, done)
        return (yield from fitting_ensemble(chosen, [*done.trials, *done.seeds], fit=refitted))
    if chosen.recipe.strategy in ("partial", "full"):
        return (yield from fitting_tuned(frame, chosen, done.trials))
    return (yield from fitting_frozen(frame, chosen, trunk_of_trial(frame, chosen)))


def about_bundle(facts: dict[str, Any], chosen: Trial) -> dict[str, Any]:
    choice = facts["choice"]
    row = next(row for row in facts["candidates"] if row["id"] == choice["id"])
    headline, metric = choice["headline"], METRICS[choice["headline"]["metric"]]
    low, high = headline["interval"]
    opened = (choice["test"] or {}).get("opened", 1)
    often = f"{opened} times, for earlier choices of this study, too, so that the score is a little flattered"
    told = {
        "test": f"on the locked test images, opened {'once' if opened == 1 else often}",
        "bbc-cv": "cross-validated, corrected for selection",
    }
    return {
        "recipe": chosen.recipe.key,
        "strategy": chosen.recipe.strategy,
        "backbone": in_words(chosen),
        "tap": "several depths"
        if chosen.recipe.strategy == "depths"
        else chosen.recipe.tap or "several taps",
        "input": row["input"]["kind"],
        "weights": {
            "name": chosen.recipe.backbone,
            "digest": chosen.recipe.weights,
            "source": row["weights_origin"],
            "licence": row["licence"],
        },
        "headline": (
            f"{metric.label} {metric.text(headline[metric.name])} (95 % interval {metric.text(low)} to "
            f"{metric.text(high)}), {told[headline['kind']]}."
        ),
        "reason": choice["reason"],
        "metrics": row["metrics"],
        "intervals": row["interval"],
        "per_class": [
            {name: entry[name] for name in ("class", "precision", "recall", "f1", "support")}
            for entry in row["per_class"]
        ],
        "cost": row["cost"],
        "test": choice["test"],
        "data": {
            name: facts["dataset"][name]
            for name in ("name", "images", "development", "excluded", "fingerprint", "counts")
        },
    }
