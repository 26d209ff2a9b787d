"""The study itself: check, probe, train from scratch, choose, refit, test once, pack.

A generator of events, so that whoever drives it shows progress as they like. Everything that is finished is in the
journal or in the cache at once: after SIGKILL at any moment the same call continues and gives the same result. The
order is that of growing cost, and after every backbone there is a leaderboard, so there is always an answer so far.
"""

from __future__ import annotations

import importlib
import json
import shutil
import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from graft.backbones.activations import Activations, extracting
from graft.backbones.catalogue import Entry
from graft.backbones.hub import Reach, reach_hub
from graft.backbones.trunks import TrunkFile, is_open, trunk_of, untrained_trunk
from graft.backbones.weights import WeightsFolder, folder_from
from graft.compute import Compute
from graft.compute import choose as choose_compute
from graft.deploy.bundle import Bundle
from graft.errors import BackboneError, BundleError, RunError
from graft.images.dataset import Dataset, Preprocess
from graft.images.folds import split
from graft.images.issues import write_check
from graft.images.pixels import open_pixels, pixels_key, preparing
from graft.images.scan import inspecting
from graft.judging.metrics import METRICS
from graft.store import Store, content_key, write_atomically
from graft.studies import results
from graft.studies.choice import Choice, Limits, choose
from graft.studies.finish import Fitted, fitting_frozen, fitting_scratch, packing, test_probabilities
from graft.studies.frame import Event, Frame, Trial
from graft.studies.journal import FILE, TRIALS, Journal
from graft.studies.plan import Plan, geometry_of, pilot, plan
from graft.studies.probe import check_rows, criterion, measuring_taps, probing
from graft.studies.scratching import scratching
from graft.studies.settings import Settings
from graft.studies.standing import standing
from graft.studies.subjects import about_series, kept_together, new_subjects

if TYPE_CHECKING:
    from graft.learning.training import TrainingSettings
else:
    TrainingSettings = Any

SCRATCH_SHARE = 0.4  # of the budget is kept for training from scratch, unless --only frozen
LEAST_TRAINING = 0.2e12  # multiply-adds of a fold, forward
TRAINING_SPEED = 27e9  # forward multiply-adds per second of training on two cores with bfloat16
OURS = (
    "run.json",
    "check.csv",
    FILE,
    "study.json",
    "predictions.parquet",
    "report.html",
    "model.graft",
    TRIALS,
    ".lock",
)


@dataclass(slots=True)
class _Progress:
    """What has been measured so far."""

    trials: list[Trial] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    reasons: dict[str, str] = field(default_factory=dict)
    trunks: dict[str, TrunkFile] = field(default_factory=dict)


Working = Generator[Event, None, None]


def studying(settings: Settings, *, command: str = "") -> Generator[Event, None, results.StudyResult]:
    """Run or continue the study in `settings.out`. Raises GraftError with a sentence for whatever is wrong."""
    started = time.monotonic()
    compute = choose_compute(settings.device)
    _refuse_place(settings)
    folder = folder_from(settings.weights)
    store = Store()
    yield Event("stage", f"Checking {settings.source}")
    looking = inspecting(settings.source, store=store, threads=compute.threads)
    next(looking)  # a source that is missing or has no classes is told before anything else is tried
    reach = Reach(False, False) if settings.only == "scratch" else reach_hub()
    planned = plan(settings, folder=folder, reach=reach)
    _import_early(planned, folder, store, compute)
    dataset = yield from _looked_at(looking, settings)
    dataset = kept_together(dataset, groups=settings.groups)
    folds = split(dataset, count=settings.folds, seed=settings.seed)
    _claim(settings, dataset, folder)
    with closing(Journal(settings.out, started=started)) as journal:
        _sweep(settings.out)
        frame = Frame(settings, dataset, folds, store, compute, folder, reach, journal)
        _write_run(frame, command)
        write_check(dataset, settings.out / "check.csv")
        if not journal.records:
            journal.append("begin", {})
        series = about_series(dataset)
        done = _Progress(notices=[*([series] if series else []), *folds.notices, *planned.notices])
        yield Event("notice", _about(frame))
        for notice in done.notices:
            yield Event("notice", notice)
        yield from _probe_rung(frame, planned, done)
        if settings.only != "frozen":
            yield from _scratch_rung(frame, done)
        result = yield from _finish(frame, done, command)
    store.tidy()
    return result


def _import_early(planned: Plan, folder: WeightsFolder | None, store: Store, compute: Compute) -> None:
    """Import torch and timm (3 s) beside the look at the images, if a backbone will have to be opened."""
    if all(
        is_open(e, e.input.size, folder=folder, store=store, compute=compute) for e, _ in planned.backbones
    ):
        return
    # Not a daemon: ending the process in the middle of loading torch's libraries may crash it.
    libraries = ("torch", "timm", "graft.backbones.export")
    threading.Thread(target=lambda: [importlib.import_module(name) for name in libraries]).start()


def _looked_at(
    work: Generator[tuple[int, int], None, Dataset], settings: Settings
) -> Generator[Event, None, Dataset]:
    while True:
        try:
            done, total = next(work)
        except StopIteration as finished:
            return finished.value
        yield Event("progress", "looking at the images", done, total, settings.budget_seconds)


def _about(frame: Frame) -> str:
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


def _probe_rung(frame: Frame, planned: Plan, done: _Progress) -> Working:
    if frame.settings.only == "scratch":
        return
    if not planned.backbones:
        yield from _untrained(frame, done)
        return
    yield Event("stage", f"Probing {len(planned.backbones)} backbones at every depth")
    done.reasons |= {entry.name: why for entry, why in planned.backbones}
    fit = yield from _pilot(frame, planned, done)
    yield from _prepare(frame, [geometry_of(entry, frame.dataset, fit) for entry, _ in planned.backbones])
    reserve = 0.0 if frame.settings.only == "frozen" else SCRATCH_SHARE * frame.settings.budget_seconds
    for entry, _ in planned.backbones:
        geometry = geometry_of(entry, frame.dataset, fit)
        if any(
            trial.recipe.backbone == entry.name and trial.recipe.geometry == geometry for trial in done.trials
        ):
            continue
        if done.trials and frame.remaining_seconds() < reserve and not _known(frame, entry):
            yield from _tell(done, f"{entry.name} was not probed: the budget is kept for what follows.")
            continue
        yield from _probed(frame, entry, geometry, done)
    if not done.trials:
        raise BackboneError("No backbone could be opened. " + " ".join(done.notices[-2:]))
    yield Event("board", "all backbones probed", board=_board(frame, done))


def _known(frame: Frame, entry: Entry) -> bool:
    """Whether an earlier session of this study had come to this backbone: its results cost nothing."""
    return any(str(record.get("name", "")).startswith(f"{entry.name}/") for record in frame.journal.records)


def _probed(
    frame: Frame, entry: Entry, geometry: Preprocess, done: _Progress, *, suffix: str = ""
) -> Working:
    try:
        trials = yield from probing(frame, entry, geometry, suffix=suffix)
    except BackboneError as error:
        yield from _tell(done, f"{entry.name} is left out: {error}")
        return
    first = not done.trials
    done.trials += trials
    odd = trials[0].about["notice"]
    if odd and odd not in done.notices:
        yield from _tell(done, odd)
    _first_answer(frame)
    if first:
        yield Event("board", "the first answer", board=_board(frame, done))
    else:
        best = _board(frame, _Progress(trials))[0]
        yield Event("result", f"{best['id']}: {METRICS[frame.settings.metric].label} {best['text']}")


def _first_answer(frame: Frame) -> None:
    if frame.journal.find("first_answer", {}) is None:
        frame.journal.append("first_answer", {})


def _pilot(
    frame: Frame, planned: Plan, done: _Progress
) -> Generator[Event, None, Literal["crop", "squash", "pad"]]:
    """Crop or squash? One backbone tries both; its lower out-of-fold log loss decides for all. Both stay candidates."""
    if frame.settings.fit != "auto":
        return frame.settings.fit
    entry = pilot(planned.backbones)
    fits: tuple[Literal["crop"], Literal["squash"]] = ("crop", "squash")
    geometries = {fit: geometry_of(entry, frame.dataset, fit) for fit in fits}
    yield from _prepare(frame, list(geometries.values()))
    losses: dict[Literal["crop", "squash", "pad"], float] = {}
    loss = criterion("log_loss")
    for fit in fits:
        before = len(done.trials)
        yield from _probed(frame, entry, geometries[fit], done, suffix=f"@{fit}")
        losses[fit] = min(
            (-loss(t.probabilities, frame.targets) for t in done.trials[before:]), default=np.inf
        )
    better: Literal["crop", "squash"] = "squash" if losses["squash"] < losses["crop"] else "crop"
    done.trials = [
        replace(trial, recipe=replace(trial.recipe, name=trial.recipe.name.removesuffix(f"@{better}")))
        for trial in done.trials
    ]
    if np.isfinite(losses[better]):
        yield from _tell(
            done,
            f"Images are {'squashed to a square' if better == 'squash' else 'cropped at the centre'}: on {entry.name} "
            f"this has the lower log loss ({losses[better]:.3f}; crop {losses['crop']:.3f}, squash {losses['squash']:.3f}).",
        )
    return better


def _untrained(frame: Frame, done: _Progress) -> Working:
    """Nothing to transfer from: the features of an untrained network show what learning is worth."""
    from graft.backbones.scratch import design

    yield Event("stage", "Measuring the features of an untrained network")
    if frame.journal.find("untrained", {}) is None:
        frame.journal.append("untrained", {})
    made, geometry = design(frame.dataset, development=len(frame.rows))
    yield from _prepare(frame, [geometry])
    pixels = open_pixels(frame.dataset, geometry, store=frame.store)
    trunk = untrained_trunk(
        made,
        geometry,
        seed=frame.settings.seed,
        store=frame.store,
        samples=np.array(pixels[check_rows(frame)]),
        compute=frame.compute,
    )
    done.trials += yield from measuring_taps(frame, trunk, pixels, suffix="@untrained")
    _first_answer(frame)
    yield Event("board", "untrained features", board=_board(frame, done))


def _scratch_rung(frame: Frame, done: _Progress) -> Working:
    from graft.backbones.scratch import design

    yield Event("stage", f"Training a small CNN from scratch on the same {frame.folds.count} folds")
    made, geometry = design(frame.dataset, development=len(frame.rows))
    yield from _prepare(frame, [geometry])
    trial = yield from scratching(frame, made, geometry, _training_settings(frame))
    if trial is not None:
        done.trials.append(trial)
        _first_answer(frame)
    yield Event("board", "trained from scratch", board=_board(frame, done))


def _training_settings(frame: Frame) -> TrainingSettings:
    """How long to train is a function of the budget, not of the clock: every fold and the last fit get the same."""
    from graft.learning.training import TrainingSettings

    alone = frame.settings.only == "scratch" or frame.journal.find("untrained", {}) is not None
    seconds = frame.settings.budget_seconds * (0.85 if alone else SCRATCH_SHARE) / (frame.folds.count + 1)
    return TrainingSettings(multiply_adds=max(LEAST_TRAINING, seconds * TRAINING_SPEED))


def _prepare(frame: Frame, geometries: Sequence[Preprocess]) -> Working:
    unique = list(dict.fromkeys(geometries))
    for done, total in preparing(frame.dataset, unique, store=frame.store, threads=frame.compute.threads):
        yield Event("progress", "decoding", done, total, frame.remaining_seconds())


def _choose(frame: Frame, done: _Progress) -> Choice:
    return choose(
        done.trials,
        frame.targets,
        frame.dataset.groups[frame.rows],
        metric=frame.settings.metric,
        limits=Limits(frame.settings.max_bytes, frame.settings.max_latency_ms),
        seed=frame.settings.seed,
    )


def _finish(frame: Frame, done: _Progress, command: str) -> Generator[Event, None, results.StudyResult]:
    usable = [trial for trial in done.trials if trial.complete and trial.model_bytes is not None]
    if not usable:
        raise RunError(
            "The budget ended before any candidate was measured on every fold. Give a longer --budget; what is "
            f"finished is kept in {frame.settings.out}."
        )
    yield Event("stage", "Choosing, fitting on all images, packing")
    choice = _choose(frame, done)
    chosen = done.trials[choice.chosen]
    rows = results.candidate_rows(frame, done.trials, choice)
    fitted = None if _packed(frame, chosen) else (yield from _fitted(frame, chosen))
    tested = test_probabilities(frame, chosen, fitted) if fitted else _test_so_far(frame, chosen)
    yield Event("progress", "where the data stand", remaining_seconds=frame.remaining_seconds())
    facts: dict[str, Any] = {
        "format": results.FORMAT,
        "graft": results.VERSION,
        "dataset": results.dataset_facts(frame),
        "settings": results.settings_facts(frame, command),
        "candidates": rows,
        "choice": results.choice_facts(frame, done.trials, choice, tested),
        "scratch_versus_transfer": results.scratch_against_transfer(frame, done.trials, choice),
        "position": _standing(frame, done.trials),
        "backbones": done.reasons,
        "notices": done.notices,
        "environment": results.environment(),
    }
    subjects = _new_subjects(frame, done.trials, chosen)
    if subjects is not None:
        facts["choice"]["new_subjects"] = subjects
        facts["choice"]["reason"] += " " + subjects["sentence"]
        yield Event("notice", subjects["sentence"])
    if fitted is not None:
        yield Event(
            "progress", "packing and checking against torch", remaining_seconds=frame.remaining_seconds()
        )
        packing(frame, frame.settings.out / results.BUNDLE, fitted, _about_bundle(facts, chosen))
        frame.journal.append("packed", {"recipe": chosen.recipe.key, "command": command})
    results.write_predictions(frame.settings.out, frame, done.trials, chosen=chosen, tested=tested)
    first = frame.journal.find("first_answer", {})
    facts["seconds"] = {
        "total": round(frame.journal.elapsed_seconds(), 2),
        "first_answer": None if first is None else round(float(first["at"]), 2),
    }
    results.write_json(frame.settings.out / results.STUDY, facts)
    frame.journal.append("end", {})
    return results.read(frame.settings.out)


def _packed(frame: Frame, chosen: Trial) -> bool:
    """Whether an earlier session had already packed and tested this very choice."""
    if frame.journal.find("packed", {"recipe": chosen.recipe.key}) is None:
        return False
    last = [record for record in frame.journal.records if record["kind"] == "packed"][-1]
    if last["recipe"] != chosen.recipe.key or (len(frame.test_rows) and _test_so_far(frame, chosen) is None):
        return False
    try:
        bundle = Bundle(frame.settings.out / results.BUNDLE)
    except BundleError:
        return False
    return bundle.facts.get("recipe") == chosen.recipe.key


def _test_so_far(frame: Frame, chosen: Trial) -> np.ndarray | None:
    known = frame.journal.fold(chosen.recipe.key, -1)
    return None if known is None else known[1]


def _fitted(frame: Frame, chosen: Trial) -> Generator[Event, None, Fitted]:
    if chosen.recipe.strategy == "scratch":
        from graft.backbones.scratch import design

        made, _ = design(frame.dataset, development=len(frame.rows))
        return (yield from fitting_scratch(frame, chosen, made, _training_settings(frame)))
    return (yield from fitting_frozen(frame, chosen, _trunk(frame, chosen)))


def _trunk(frame: Frame, trial: Trial) -> TrunkFile:
    """The trunk of a frozen trial; it was opened in this session, so the cache has it."""
    from graft.backbones.catalogue import find

    geometry = trial.recipe.geometry
    samples = np.array(open_pixels(frame.dataset, geometry, store=frame.store)[check_rows(frame)])
    if trial.recipe.strategy == "random":
        from graft.backbones.scratch import design

        made, _ = design(frame.dataset, development=len(frame.rows))
        return untrained_trunk(
            made,
            geometry,
            seed=frame.settings.seed,
            store=frame.store,
            samples=samples,
            compute=frame.compute,
        )
    return trunk_of(
        find(trial.recipe.backbone, frame.folder),
        geometry,
        folder=frame.folder,
        reach=frame.reach,
        store=frame.store,
        samples=samples,
        compute=frame.compute,
    )


def _activations(frame: Frame, trial: Trial) -> tuple[TrunkFile, Activations]:
    """The trunk of a frozen trial and what it puts out: both are in the cache."""
    trunk = _trunk(frame, trial)
    work = extracting(
        trunk,
        open_pixels(frame.dataset, trunk.geometry, store=frame.store),
        pixels_key(frame.dataset, trunk.geometry),
        store=frame.store,
        compute=frame.compute,
        folder=frame.folder,
        reach=frame.reach,
    )
    while True:
        try:
            next(work)
        except StopIteration as finished:
            return trunk, finished.value


def _best_frozen(frame: Frame, trials: Sequence[Trial]) -> Trial | None:
    score = criterion(frame.settings.metric)
    frozen = [trial for trial in trials if trial.recipe.strategy == "frozen" and trial.complete]
    return max(frozen, key=lambda trial: score(trial.probabilities, frame.targets), default=None)


def _kept(
    frame: Frame, kind: str, trial: Trial, make: Callable[[], dict[str, Any] | None]
) -> dict[str, Any] | None:
    """A small result about a frozen trial, from the cache if it was made before."""
    parts = [
        trial.recipe.key,
        frame.dataset.fingerprint,
        frame.settings.metric,
        frame.settings.seed,
        frame.settings.folds,
    ]
    key = content_key(kind, parts)
    stored = frame.store.get(key) or frame.store.put(key, {"value": make()})
    return stored.facts["value"]


def _standing(frame: Frame, trials: Sequence[Trial]) -> dict[str, Any] | None:
    """Where the data stand, seen through the best frozen candidate."""
    best = _best_frozen(frame, trials)
    if best is None:
        return None
    same = [
        trial
        for trial in trials
        if trial.recipe.backbone == best.recipe.backbone and trial.recipe.geometry == best.recipe.geometry
    ]
    return _kept(frame, "standing.v1", best, lambda: standing(frame, same, *_activations(frame, best), best))


def _new_subjects(frame: Frame, trials: Sequence[Trial], chosen: Trial) -> dict[str, Any] | None:
    """What to expect of new subjects, of the choice if it is frozen, else of the best frozen candidate."""
    trial = chosen if chosen.recipe.strategy == "frozen" else _best_frozen(frame, trials)
    if trial is None or frame.dataset.series is None:
        return None

    def make() -> dict[str, Any] | None:
        features = _activations(frame, trial)[1].tap(trial.tap_index).astype(np.float32)
        return new_subjects(frame, features, name=trial.recipe.name)

    return _kept(frame, "subjects.v1", trial, make)


def _board(frame: Frame, done: _Progress) -> tuple[dict[str, Any], ...]:
    """The leaderboard so far: the best tap of each backbone, by the leading metric."""
    metric = METRICS[frame.settings.metric]
    score = criterion(metric.name)
    rows: dict[str, dict[str, Any]] = {}
    for trial in done.trials:
        if not trial.complete:
            continue
        value = score(trial.probabilities, frame.targets)
        key = trial.recipe.backbone + trial.recipe.strategy
        if key not in rows or value > rows[key]["rank"]:
            rows[key] = {
                "rank": value,
                "id": trial.recipe.name,
                "strategy": trial.recipe.strategy,
                "score": metric.sign * value,
                "text": metric.text(metric.sign * value),
                "accuracy": score_of_accuracy(trial, frame),
                "bytes": trial.model_bytes,
                "latency_ms": trial.latency_ms,
                "train_seconds": trial.train_seconds,
            }
    return tuple(sorted(rows.values(), key=lambda row: -row["rank"]))


def score_of_accuracy(trial: Trial, frame: Frame) -> float:
    """The share of right decisions."""
    return float((trial.probabilities.argmax(axis=1) == frame.targets).mean())


def _tell(done: _Progress, notice: str) -> Working:
    done.notices.append(notice)
    yield Event("notice", notice)


def _about_bundle(facts: dict[str, Any], chosen: Trial) -> dict[str, Any]:
    choice = facts["choice"]
    row = next(row for row in facts["candidates"] if row["id"] == choice["id"])
    headline, metric = choice["headline"], METRICS[choice["headline"]["metric"]]
    low, high = headline["interval"]
    told = {
        "test": "on the locked test images, opened once",
        "bbc-cv": "cross-validated, corrected for selection",
    }
    return {
        "recipe": chosen.recipe.key,
        "strategy": chosen.recipe.strategy,
        "backbone": chosen.recipe.backbone,
        "tap": chosen.recipe.tap,
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


def _write_run(frame: Frame, command: str) -> None:
    results.write_json(
        frame.settings.out / results.RUN,
        {
            "format": results.FORMAT,
            "graft": results.VERSION,
            "identity": _identity(frame.settings, frame.dataset, frame.folder),
            "root": str(frame.dataset.root.resolve()),
            "settings": results.settings_facts(frame, command),
            "environment": results.environment(),
            "command": command,
            "dataset": {"fingerprint": frame.dataset.fingerprint},
        },
    )


def _identity(settings: Settings, dataset: Dataset, folder: WeightsFolder | None) -> str:
    """What makes it the same study: everything but the budget and the place."""
    held = sorted(file.sha256 for file in folder.files) if folder else []
    return content_key(
        "study.v1",
        dataset.fingerprint,
        list(settings.backbones),
        held,
        [settings.folds, settings.metric, settings.max_bytes, settings.max_latency_ms],
        [settings.only, settings.fit, settings.groups, settings.device, settings.seed],
    )


def _refuse_place(settings: Settings) -> None:
    """A folder with something else in it is never touched, whatever was asked; nor is anything put among the images."""
    out, source = settings.out, settings.source
    if source.is_dir() and out.resolve().is_relative_to(source.resolve()):
        raise RunError(
            f"The run folder {out} would lie among the images of {source}, where the next scan would take it for a "
            "class. Choose another --out."
        )
    if out.exists() and not out.is_dir():
        raise RunError(f"{out} is a file; choose another --out.")
    if out.is_dir() and any(out.iterdir()) and not (out / results.RUN).exists():
        foreign = [path.name for path in out.iterdir() if path.name not in OURS]
        if foreign:
            raise RunError(f"{out} holds other files ({foreign[0]}) and no study; choose another --out.")


def _sweep(out: Path) -> None:
    """Remove what a killed session was writing beside its final place; the journal's lock is held."""
    for leftover in [found for name in OURS for found in out.glob(f".{name}.*")] + [
        *(out / TRIALS).glob(".*")
    ]:
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def _claim(settings: Settings, dataset: Dataset, folder: WeightsFolder | None) -> None:
    """Continue the same study, or begin a new one where nothing of another is lost."""
    try:
        written = json.loads((settings.out / results.RUN).read_text(encoding="utf-8"))
        same = written.get("identity") == _identity(settings, dataset, folder)
    except FileNotFoundError:
        return
    except ValueError:
        same = False
    if same and not settings.overwrite:
        return
    if not settings.overwrite:
        raise RunError(
            f"{settings.out} holds another study (other images or settings). Choose another --out, or --overwrite to "
            "replace it."
        )
    for name in OURS:
        path = settings.out / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    write_atomically(settings.out / results.RUN, "{}")
