"""`graft train`: a study of exactly one recipe, made by hand.

The same check, folds, pixels, journal, run folder, last fit, locked test, packing and report as a study has; only what is
measured is one `Candidate`. A generator of events: after SIGKILL the same call continues and gives the same result.
"""

from __future__ import annotations

import json
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict
from threading import Event as Flag
from typing import Any

import numpy as np

from graft.backbones import catalogue
from graft.backbones.catalogue import Entry
from graft.backbones.hub import Reach, reach_hub
from graft.backbones.weights import WeightsFolder, folder_from, locate, shelf
from graft.compute import choose as choose_compute
from graft.errors import BackboneError, GraftError, RunError
from graft.images.folds import split
from graft.images.issues import write_check
from graft.images.scan import inspecting
from graft.store import Store
from graft.studies import results
from graft.studies.ending import finishing
from graft.studies.frame import Event, Frame
from graft.studies.journal import Journal
from graft.studies.place import claim, refuse_place, sweep, write_run
from graft.studies.predictions import measured
from graft.studies.rungs import Progress, Working, tell
from graft.studies.search import about_images, looked_at
from graft.studies.single.candidate import (
    Candidate,
    augmentation_for,
    candidate_of,
    refuse_depth,
    show_views,
)
from graft.studies.single.last_fit import fitting, sweep_checkpoints
from graft.studies.single.page import AUTO, SCRATCH, Page, option, text_of, write_page
from graft.studies.single.settings import TrainSettings
from graft.studies.single.training import Workshop, measuring
from graft.studies.subjects import about_series, kept_together

WITHOUT_STEPS = ("lr", "epochs", "patience", "batch_size", "batch_norm", "augment")
"""What a head on frozen features does not have."""


def training_by_hand(
    settings: TrainSettings, *, command: str = "", halt: Flag | None = None
) -> Generator[Event, None, results.StudyResult]:
    """Train, or go on training, in the run folder. Raises GraftError with a sentence for whatever is wrong."""
    started, page, study = time.monotonic(), settings.page, settings.study
    compute = choose_compute(study.device)
    refuse_place(study, besides=settings.save_recipe)
    folder = folder_from(study.weights)
    store = Store()
    reach = Reach(False, False) if page.random else reach_hub()
    entry, notice = _entry(page, folder, reach)
    if entry is not None:
        refuse_depth(page, entry)
    yield Event("stage", f"Checking {study.source}")
    dataset = yield from looked_at(inspecting(study.source, store=store, threads=compute.threads), study)
    dataset = kept_together(dataset, groups=study.groups)
    folds = split(dataset, count=study.folds, seed=study.seed)
    claim(study, dataset, folder, recipe=text_of(page))
    with closing(Journal(study.out, started=started)) as journal:
        sweep(study.out)
        halt = Flag() if halt is None else halt
        frame = Frame(study, dataset, folds, store, compute, folder, reach, journal, halt)
        write_run(frame, command, recipe=text_of(page))
        write_check(dataset, study.out / "check.csv")
        try:
            result = yield from _trained(frame, settings, entry, notice, command)
        except GraftError:
            if all(record["kind"] != "fold" for record in journal.records):
                # a mistyped option does not claim the folder
                (study.out / results.RUN).unlink(missing_ok=True)
                if settings.save_recipe is not None and settings.save_recipe.parent == study.out:
                    settings.save_recipe.unlink(missing_ok=True)
            raise
    store.tidy()
    return result


def _trained(
    frame: Frame, settings: TrainSettings, entry: Entry | None, notice: str | None, command: str
) -> Generator[Event, None, results.StudyResult]:
    """The candidate opened, measured, fitted on all images and packed."""
    if not frame.journal.records:
        frame.journal.append("begin", {})
    done = Progress()
    yield Event("notice", about_images(frame))
    for told in filter(None, (about_series(frame.dataset), *frame.folds.notices, notice)):
        yield from tell(done, told)
    candidate = yield from candidate_of(frame, settings.page, entry)
    if settings.save_recipe is not None:
        write_page(settings.page, settings.save_recipe)
    work = Workshop(frame, candidate)
    yield Event("stage", f"Training {candidate.recipe.name} on {frame.folds.count} folds")
    yield from _told_before(frame, candidate, done, preview=settings.preview)
    yield from measuring(work, done)
    yield from _as_far_as_the_budget_went(frame, done)
    curves = [curve for trial in done.trials for curve in trial.curves]
    yield from _what_training_came_to(done, curves, freezes=settings.page.freeze != "none")
    done.reasons[candidate.entry.name] = "named"
    done.extras |= {
        "recipe": json.loads(text_of(settings.page)),
        "training": _training_facts(candidate),
        "position": None,
        "scratch_versus_transfer": _no_comparison(),
    }
    result = yield from finishing(frame, done, command, fit=lambda _: fitting(work))
    sweep_checkpoints(work)
    return result


def _what_training_came_to(done: Progress, curves: Sequence[Mapping[str, Any]], *, freezes: bool) -> Working:
    """Whether the clock ended it, and whether anything was gained by it; `freezes`: whether less could be frozen."""
    cut_off = [curve for curve in curves if curve["stopped"] == "deadline"]
    if cut_off:
        ran = sorted(len(curve["epochs"]) for curve in cut_off)
        epochs = f"{ran[0]}" if ran[0] == ran[-1] else f"{ran[0]} to {ran[-1]}"
        yield from tell(
            done,
            f"The budget ended {len(cut_off)} of {len(curves)} trainings after {epochs} epochs, before they would have "
            "ended by themselves. Give a longer --budget and --overwrite, or freeze more.",
        )
    if curves and not any(curve["best_epoch"] for curve in curves):
        lower = ", or a lower --freeze" if freezes else ""
        more = "" if cut_off else f" Give more --epochs or --patience{lower}."
        yield from tell(
            done,
            f"No epoch of any fold was better than the head it began with, so this is the frozen network.{more}",
        )


def _as_far_as_the_budget_went(frame: Frame, done: Progress) -> Working:
    """The finished folds are an answer, told as one that is unfinished. Raises RunError where there is none."""
    (trial,) = done.trials
    finished = np.unique(frame.folds.assignment[frame.rows][measured(trial)])
    if not len(finished):
        raise RunError(
            f"{frame.ended} before the first fold was done. Give a longer --budget (what is finished is kept in "
            f"{frame.settings.out}), a smaller network, or more layers to --freeze."
        )
    if not trial.complete:
        yield from tell(
            done,
            f"{frame.ended} after {len(finished)} of {frame.folds.count} folds, so this answer is unfinished; the same "
            f"command{'' if frame.halt.is_set() else ' with a longer --budget'} goes on from here.",
        )


def _entry(page: Page, folder: WeightsFolder | None, reach: Reach) -> tuple[Entry | None, str | None]:
    """The row of the network that was named; None for the small CNN."""
    if page.backbone == SCRATCH:
        return None, None
    entry, notice = catalogue.resolve(page.backbone, shelf(folder))
    if not page.random and locate([entry], folder=folder, reach=reach)[entry.name] == "unreachable":
        raise BackboneError(
            f"The weights of {entry.name} are not here. {reach.reason} Name a folder that holds them with --weights DIR, "
            "or train the same network from random weights with --init random."
        )
    return entry, notice


def _told_before(frame: Frame, candidate: Candidate, done: Progress, *, preview: bool) -> Working:
    """What is frozen, what has no effect, and where the views can be seen."""
    yield Event("notice", f"{candidate.recipe.name}: {_in_words(candidate)}.")
    if candidate.closed:
        page = candidate.page
        idle = [option(name) for name in WITHOUT_STEPS if getattr(page, name) != AUTO]
        idle += ["--mixup"] if page.mixup else []
        idle += ["--cutmix"] if page.cutmix else []
        idle += ["--no-ema"] if not page.ema else []
        idle += ["--generations"] if page.generations > 1 else []
        idle += ["--seeds"] if page.seeds > 1 else []
        if idle:
            yield from tell(
                done,
                f"Nothing but the head learns, and it needs no epochs, so {', '.join(idle)} changed nothing. Use --head linear or mlp "
                "to train a head step by step.",
            )
    elif candidate.page.batch_norm != AUTO and not candidate.normalises:
        yield from tell(
            done,
            f"Nothing that learns here is a batch normalisation, so --batch-norm {candidate.page.batch_norm} changed "
            "nothing. Leave it at auto, or choose a network that has some (graft models NAME --layers) and freeze less.",
        )
    if preview:
        augmentation = yield from augmentation_for(frame, candidate)
        show_views(frame, candidate, augmentation)
        yield Event("notice", f"Images beside their views: {frame.settings.out / 'preview.jpg'}")


def _in_words(candidate: Candidate) -> str:
    settings = candidate.settings
    norms = {
        "frozen": "statistics of batch normalisation stay as they are",
        "train": "statistics of batch normalisation are learned",
        "reestimate": "statistics of batch normalisation are taken from the training images first",
    }[settings.batch_norm]
    head = {"ridge": "ridge head", "linear": "linear head", "mlp": "head with one hidden layer"}[
        settings.head
    ]
    if not candidate.normalises:
        return f"{candidate.layers}; {head}"
    return f"{candidate.layers}; {head}; {norms}"


def _training_facts(candidate: Candidate) -> dict[str, Any]:
    """What the page left to `auto`, settled; part of `study.json`."""
    settings = asdict(candidate.settings)
    settings["augment"] = candidate.page.augment if candidate.page.augment != AUTO else settings["augment"]
    return {
        "frozen": candidate.layers,
        "in_words": _in_words(candidate),
        "tap": candidate.tap.name,
        "closed_form": candidate.closed,
        "ensemble": candidate.page.ensemble,
        **({} if candidate.closed else {"settings": settings}),
    }


def _no_comparison() -> dict[str, Any]:
    return {
        "difference": None,
        "interval": None,
        "metric": None,
        "sentence": "One recipe was trained by hand; graft study compares transfer with training from scratch.",
        "scratch": None,
        "transfer": None,
    }
