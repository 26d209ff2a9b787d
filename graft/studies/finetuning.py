"""Rung 3: the finalists fine-tuned, on the same folds.

In: the frozen trials and what is left of the budget. Out: a trial per finalist and depth that was tried, and the rows of
the plan: what was predicted, what it took. Successive halving: all that the budget pays are tried on the first fold;
those that are not clearly worse go through the others, the best first. Every finished (recipe, fold) is in the journal,
every finished epoch in a checkpoint, so a kill costs at most one epoch.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from graft.backbones.catalogue import find
from graft.backbones.weights import shelf
from graft.errors import BackboneError
from graft.images.pixels import open_pixels
from graft.judging.uncertainty import draw_weights, paired
from graft.studies.bench import Bench, bench_of, cut_for, training
from graft.studies.beside import activations_of
from graft.studies.finalists import (
    DRAWS,
    PLAN,
    REFIT,
    Forecast,
    Option,
    TuningPlan,
    affordable,
    calibrated,
    finalists,
    hopeless,
    options_of,
    told,
)
from graft.studies.frame import Event, Frame, Trial, criterion
from graft.studies.journal import TRIALS

if TYPE_CHECKING:
    from graft.learning.finetune import Tuned
else:
    Tuned = Any

SURVIVORS = "tuning_survivors"
RESERVE = 0.08  # of what is left, for choosing and packing
SLACK = 1.1  # how much longer than predicted is not yet too long


def finetuning(
    frame: Frame, trials: Sequence[Trial], rows: list[dict[str, Any]]
) -> Generator[Event, None, list[Trial]]:
    """The trials of everything that was tuned; `rows` is filled with the plan, predicted and real."""
    plan = yield from _planned(frame, trials)
    rows += plan.rows
    results: dict[str, Trial] = {}
    benches: dict[str, Bench] = {}
    for option in plan.options:
        yield from _folds(frame, option, benches, range(1), rows)
        results[option.recipe.key] = _trial(frame, option)
    for option in _survivors(frame, plan.options, results):
        yield from _folds(frame, option, benches, range(1, frame.folds.count), rows)
        results[option.recipe.key] = _trial(frame, option)
    for row in rows:
        if row["real_seconds"]:
            yield Event(
                "notice",
                f"{row['id']}: {row['folds_done']} folds in {row['real_seconds']:.0f} s, predicted "
                f"{row['folds_done'] * row['fold_seconds'] + row['cache_seconds']:.0f} s.",
            )
    return [trial for trial in results.values() if np.isfinite(trial.probabilities).any()]


def _planned(frame: Frame, trials: Sequence[Trial]) -> Generator[Event, None, TuningPlan]:
    """The journalled plan, or a new one."""
    from graft.learning.finetune import TuneSettings

    entries = {t.recipe.backbone: find(t.recipe.backbone, shelf(frame.folder)) for t in trials if _frozen(t)}
    chosen = finalists(frame, trials, entries)
    by_key = {trial.recipe.key: trial for trial in trials}
    known = frame.journal.find(PLAN, {})
    if known is not None:
        options = [
            Option(
                by_key[row["frozen"]],
                row["cut"],
                TuneSettings(**row["settings"]),
                Forecast(**row["forecast"]),
            )
            for row in known["tried"]
            if row["frozen"] in by_key
        ]
        return TuningPlan(options, [dict(row) for row in known["rows"]])
    seconds = (1 - RESERVE) * frame.remaining_seconds()
    found = [(trial, activations_of(frame, trial)) for trial in chosen]
    measured: list[Option] = []
    slow: set[int] = set()
    rows: list[dict[str, Any]] = []
    for option in options_of([(trial, trunk) for trial, (trunk, _) in found], TuneSettings()):
        entry = entries[option.trial.recipe.backbone]
        if id(option.trial) in slow or hopeless(frame, option, entry, seconds):
            rows.append(_row(frame, option, "too long for what is left of the budget"))
            continue
        yield Event("progress", f"timing {option.recipe.name}", remaining_seconds=frame.remaining_seconds())
        trunk, activations = next(pair for trial, pair in found if trial is option.trial)
        cutting = cut_for(frame, option, trunk)
        features = activations.tap(option.trial.tap_index).shape[1]
        pixels = open_pixels(frame.dataset, option.trial.recipe.geometry, store=frame.store)
        measured.append(replace(option, forecast=calibrated(frame, option, cutting, pixels, features)))
        if not affordable(frame, measured[-1:], (1 - RESERVE) * frame.remaining_seconds()):
            slow.add(id(option.trial))  # what is cut lower takes longer still
    tried = affordable(frame, measured, (1 - RESERVE) * frame.remaining_seconds())
    names = {option.recipe.name for option in tried}
    rows += [
        _row(frame, o, "too long for what is left of the budget")
        for o in measured
        if o.recipe.name not in names
    ]
    plan = TuningPlan(tried, [*(_row(frame, option, "tried") for option in tried), *rows])
    yield from told(frame, plan)
    for row in rows:
        yield Event("notice", f"{row['id']} is not tried: {row['decision']}.")
    facts = [
        {
            "frozen": option.trial.recipe.key,
            "cut": option.cut,
            "settings": asdict(option.settings),
            "forecast": asdict(option.forecast) if option.forecast else None,
            "recipe": option.recipe.key,
        }
        for option in tried
    ]
    frame.journal.append(PLAN, {"tried": facts, "rows": plan.rows})
    return plan


def _frozen(trial: Trial) -> bool:
    return trial.recipe.strategy == "frozen"


def _row(frame: Frame, option: Option, decision: str) -> dict[str, Any]:
    """One line of `plan` in `study.json`."""
    learned, held_out = len(frame.learned_from(0)), len(frame.held_out(0))
    timed = option.forecast is not None
    return {
        "id": option.recipe.name,
        "cut": option.cut,
        "decision": decision,
        "epochs": option.settings.epochs,
        "views": option.settings.views,
        "images_per_second": round(1 / option.forecast.training, 1) if option.forecast else None,
        "fold_seconds": round(option.fold_seconds(learned, held_out), 2) if timed else None,
        "cache_seconds": round(option.cache_seconds(len(frame.dataset)), 2) if timed else None,
        "folds_done": 0,
        "real_seconds": 0.0,
    }


def _spent(rows: list[dict[str, Any]], option: Option, seconds: float, *, folds: int) -> None:
    for row in rows:
        if row["id"] == option.recipe.name:
            row["real_seconds"] = round(row["real_seconds"] + seconds, 2)
            row["folds_done"] += folds


def _folds(
    frame: Frame, option: Option, benches: dict[str, Bench], folds: range, rows: list[dict[str, Any]]
) -> Generator[Event, None, None]:
    """Measure the folds that the journal lacks, as long as the budget pays them and a last fit."""
    learned, held_out = len(frame.learned_from(0)), len(frame.held_out(0))
    predicted = option.fold_seconds(learned, held_out)
    for fold in folds:
        known = frame.journal.fold(option.recipe.key, fold)
        if known is None:
            last = predicted * REFIT if fold else 0.0
            if frame.remaining_seconds() < (predicted + last) / SLACK:
                yield Event("notice", f"{option.recipe.name}: the budget ended after {fold} folds.")
                return
            if option.recipe.key not in benches:
                begun = frame.journal.elapsed_seconds()
                benches[option.recipe.key] = yield from bench_of(frame, option)
                _spent(rows, option, frame.journal.elapsed_seconds() - begun, folds=0)
            known = yield from _fold(frame, option, benches[option.recipe.key], fold, reserve=last)
        predicted = max(predicted, float(known[0]["seconds"])) if fold else predicted
        _spent(rows, option, float(known[0]["seconds"]), folds=1)


def _fold(
    frame: Frame, option: Option, bench: Bench, fold: int, *, reserve: float
) -> Generator[Event, None, tuple[dict[str, Any], np.ndarray]]:
    from graft.learning.finetune import predict

    begun = frame.journal.elapsed_seconds()
    recipe = option.recipe
    kept_in = frame.settings.out / TRIALS / f"{recipe.key[:16]}-{fold}.tune.safetensors"
    tuned, curve = yield from training(
        frame,
        option.settings,
        bench,
        rows=frame.learned_from(fold),
        seed=fold,
        deadline_seconds=max(1.0, frame.remaining_seconds() - reserve),
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
    seconds = round(frame.journal.elapsed_seconds() - begun, 3)
    record = frame.journal.add_fold(
        recipe.key, fold, rows, {"name": recipe.name, "seconds": seconds, "curve": curve}
    )
    kept_in.unlink(missing_ok=True)
    return record, rows


def _trial(frame: Frame, option: Option) -> Trial:
    """What the journal holds of this option; its packed model is as large and as fast as the frozen one."""
    probabilities = np.full((len(frame.dataset), frame.classes), np.nan, np.float32)
    seconds, curves = 0.0, []
    for fold in range(frame.folds.count):
        known = frame.journal.fold(option.recipe.key, fold)
        if known is not None:
            probabilities[frame.held_out(fold)] = known[1]
            seconds += float(known[0]["seconds"])
            curves.append({"fold": fold, **known[0]["curve"]})
    return replace(
        option.trial,
        recipe=option.recipe,
        probabilities=probabilities[frame.rows],
        train_seconds=seconds,
        knn=None,
        about={**option.trial.about, "runner": "torch"},
        curves=tuple(curves),
    )


def _survivors(frame: Frame, options: Sequence[Option], results: dict[str, Trial]) -> list[Option]:
    """Those not clearly worse on the first fold than the best tuned one or their own frozen trial, best first."""
    known = frame.journal.find(SURVIVORS, {})
    tried = [o for o in options if frame.journal.fold(o.recipe.key, 0) is not None]
    if known is None:
        rows = np.flatnonzero(frame.folds.assignment[frame.rows] == 0)
        targets, groups = frame.targets[rows], frame.dataset.groups[frame.rows][rows]
        score = criterion(frame.settings.metric)
        loss = criterion("log_loss")

        def rank(option: Option) -> tuple[float, float]:
            rest = results[option.recipe.key].probabilities[rows]
            return -score(rest, targets), -loss(rest, targets)

        ordered = sorted(tried, key=rank)
        draws = draw_weights(targets, groups, draws=DRAWS, seed=frame.settings.seed)

        def behind(one: np.ndarray, other: np.ndarray) -> bool:
            return paired(frame.settings.metric, one[rows], other[rows], targets, draws).high < 0

        kept = [
            option.recipe.key
            for option in ordered
            if not behind(results[option.recipe.key].probabilities, option.trial.probabilities)
            and not behind(
                results[option.recipe.key].probabilities, results[ordered[0].recipe.key].probabilities
            )
        ]
        known = frame.journal.append(SURVIVORS, {"recipes": kept})
    by_key = {option.recipe.key: option for option in tried}
    return [by_key[key] for key in known["recipes"] if key in by_key]


def refitting_tuned(
    frame: Frame, trial: Trial, trials: Sequence[Trial]
) -> Generator[Event, None, tuple[Bench, Tuned]]:
    """Tune on every development image, for as many epochs of the plan as were best on the folds (their median)."""
    plan = yield from _planned(frame, trials)
    option = next((one for one in plan.options if one.recipe.key == trial.recipe.key), None)
    if option is None:
        raise BackboneError(
            f"{trial.recipe.name} is not in the plan of this study. Run it again with --overwrite."
        )
    bench = yield from bench_of(frame, option)
    best = [int(curve["best_epoch"]) for curve in trial.curves]
    temperature = float(np.median([curve["temperature"] for curve in trial.curves]))
    settings = replace(
        option.settings, validation_share=0.0, stop_epoch=int(np.median(best)), temperature=temperature
    )
    tuned, _ = yield from training(
        frame,
        settings,
        bench,
        rows=frame.rows,
        seed=999,
        deadline_seconds=None,
        kept_in=frame.settings.out / TRIALS / f"{trial.recipe.key[:16]}-all.tune.safetensors",
        text=f"{trial.recipe.name}, on all images",
    )
    return bench, tuned
