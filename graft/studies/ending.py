"""The end of a study: choose, fit the choice on all images, test it once, pack it, and write everything down.

In: all trials. Out: the bundle, `study.json` and the predictions in the run folder. What an earlier session had packed already
is packed again only where it is no longer so.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import replace
from functools import partial
from typing import Any

from graft.deploy.bundle import Bundle
from graft.deploy.pack import retell
from graft.errors import BundleError, RunError
from graft.judging.metrics import METRICS
from graft.store import content_key, json_line
from graft.studies import results
from graft.studies.balancing import balance_on_all
from graft.studies.beside import best_frozen, trunk_of_trial, what_of_new_subjects, where_the_data_stand
from graft.studies.choice import Choice, Limits, choose
from graft.studies.depths import READ, best_read, features_of
from graft.studies.ensembles import fitting_ensemble, in_words
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
from graft.studies.frame import Event, Frame, Trial
from graft.studies.knowing import reject_facts
from graft.studies.retrieval import retrieval_facts
from graft.studies.rungs import Progress, training_settings
from graft.studies.schedule import spent, told
from graft.studies.shrinking.finish import fitting_shrunk


def finishing(
    frame: Frame,
    done: Progress,
    command: str,
    *,
    fit: Callable[[Trial], Generator[Event, None, Fitted]] | None = None,
) -> Generator[Event, None, results.StudyResult]:
    """Choose, fit the choice on all images (by `fit`, or as its rung does), test once, pack, and write it all down.

    Where no trial is complete, one that finished some folds is the answer; the test stays locked until it has finished all.
    """
    rungs = spent(frame)
    if rungs:
        yield Event("notice", told(rungs))
    usable = [
        trial for trial in done.trials if results.measured(trial).any() and trial.model_bytes is not None
    ]
    if not usable:
        raise RunError(
            f"{frame.ended} before any candidate was measured. Give a longer --budget; what is finished is kept in "
            f"{frame.settings.out}."
        )
    yield Event("stage", "Choosing, fitting on all images, packing")
    choice = _choose(frame, done)
    chosen = done.trials[choice.chosen]
    rows = results.candidate_rows(frame, done.trials, choice)
    alone = fit is not None or not any(trial.complete for trial in usable)
    opening = len(frame.test_rows) > 0 and (chosen.complete or not alone)
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


def _choose(frame: Frame, done: Progress) -> Choice:
    return choose(
        done.trials,
        frame.targets,
        frame.dataset.groups[frame.rows],
        metric=frame.settings.metric,
        limits=Limits(frame.settings.max_bytes, frame.settings.max_latency_ms),
        seed=frame.settings.seed,
    )


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
