"""A shrunk candidate fitted on all images, and `graft shrink`: the smallest model of a finished study.

In: the run folder of a study. Out: its trials continued with smaller ones (`graft.studies.shrinking.rung`), the bundle
`model-small.graft` beside the study's own, which is never touched, and `study.json` with the part `shrink` and the new
candidates. After SIGKILL the same call goes on where it was.

Not covered: runs of `graft train`, whose single recipe is no study.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Generator, Sequence
from dataclasses import replace
from pathlib import Path
from threading import Event as Flag
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64

from graft.deploy.bundle import Bundle
from graft.deploy.pack import put_in_place
from graft.deploy.quantise import outputs_of
from graft.deploy.reading import READING
from graft.errors import BundleError, RunError
from graft.judging.metrics import METRICS
from graft.learning import ridge
from graft.studies import results
from graft.studies.balancing import balance_on_all
from graft.studies.beside import best_frozen
from graft.studies.choice import Limits, choose, megabytes
from graft.studies.finish import Fitted, packing
from graft.studies.frame import Event, Frame, Trial
from graft.studies.place import AnotherStudy
from graft.studies.rungs import Progress
from graft.studies.settings import Settings
from graft.studies.shrinking.measuring import calibrated, fitted_head, teacher_of
from graft.studies.shrinking.networks import (
    TUNED,
    Network,
    network_of,
    network_trained,
    network_tuned,
    with_head,
)
from graft.studies.shrinking.pooled import float_rows
from graft.studies.shrinking.rung import TOLERANCE, shrink_rung
from graft.studies.shrinking.students import student_geometry, taught_by
from graft.studies.shrinking.told import smallest_of, within_tolerance
from graft.studies.shrinking.variants import Variant, read_by, variant_of

SMALL_BUNDLE = "model-small.graft"
BUDGET_SECONDS = 600.0


def fitting_shrunk(frame: Frame, trial: Trial, trials: Sequence[Trial]) -> Generator[Event, None, Fitted]:
    """Trained, thinned, quantised and fitted once more, on all development images.

    What the packed model is held against is its own way out of the folds: the features that its graph puts out in ONNX
    Runtime, and the head in numpy.
    """
    yield Event(
        "progress", f"{trial.recipe.name}: fitting on all images", remaining_seconds=frame.remaining_seconds()
    )
    base = next(one for one in trials if one.recipe.name == trial.about["shrunk"]["base"])
    variant = variant_of(trial)
    network = yield from _network_of_all(frame, base, variant, trials)
    every = np.arange(len(frame.dataset))
    if variant.calibrated or variant.student:
        graph, head, _, features = calibrated(frame, network, variant, frame.rows, every)
    else:
        graph, features = read_by(network.model, variant), float_rows(frame, base, network.model, variant)
        head = fitted_head(frame, features, frame.rows)

    def own_probabilities(images: np.ndarray) -> Float32[np.ndarray, "m k"]:
        return head.probabilities(outputs_of(graph, images, READING))

    def embeddings(rows: Int64[np.ndarray, " m"]) -> Float32[np.ndarray, "m d"]:
        return ridge.unit(features[rows]) if head.unit_length else features[rows]

    return Fitted(
        with_head(graph, head).SerializeToString(),
        network.geometry,
        own_probabilities,
        embeddings,
    )


def _network_of_all(
    frame: Frame, base: Trial, variant: Variant, trials: Sequence[Trial]
) -> Generator[Event, None, Network]:
    """What the folds had each of their own, once more from all development images."""
    network = yield from _trained_on_all(frame, base, trials)
    if not variant.student:
        return network
    teacher = teacher_of(network, variant)
    trained, _ = yield from taught_by(
        frame, base, teacher, variant.student, rows=frame.rows, seed=999, text="the student, on all images"
    )
    return network_trained(frame, trained, student_geometry(base))


def _trained_on_all(frame: Frame, base: Trial, trials: Sequence[Trial]) -> Generator[Event, None, Network]:
    if base.recipe.strategy in TUNED:
        from graft.studies.tuning.last_fit import refitting_tuned

        _, tuned = yield from refitting_tuned(frame, base, trials)
        return network_tuned(frame, base, tuned)
    if base.recipe.strategy == "scratch":
        from graft.backbones.scratch import design
        from graft.studies.rungs import training_settings
        from graft.studies.scratching import refitting

        made, geometry = design(frame.dataset, development=len(frame.rows))
        balance = balance_on_all(frame, best_frozen(frame, trials))
        settings = replace(training_settings(frame), balance=balance)
        trained = yield from refitting(frame, base, made, settings)
        return network_trained(frame, trained, geometry)
    return network_of(frame, base, 0)


def shrinking(
    run: Path,
    *,
    tolerance: float = TOLERANCE,
    max_bytes: int | None = None,
    max_latency_ms: float | None = None,
    budget_seconds: float = BUDGET_SECONDS,
    weights: Path | None = None,
    halt: Flag | None = None,
) -> Generator[Event, None, results.StudyResult]:
    """Continue the finished study in `run` with smaller models, and pack the smallest that holds.

    `max_bytes`: of the whole bundle. `budget_seconds` are for measuring; packing comes after them. `weights`: the folder
    with the study's weights, where it is not where it was. Once `halt` is set, with those measured so far.

    Raises RunError if there is no finished study, or its images have changed; GraftError for whatever else is wrong.
    """
    from graft.studies.search import studying

    known = results.read(run).facts
    settings, command = settings_of(run, weights)

    def ending(frame: Frame, done: Progress, _: str) -> Generator[Event, None, results.StudyResult]:
        yield from shrink_rung(frame, done, tolerance=tolerance, seconds=budget_seconds)
        limits = Limits(max_bytes, max_latency_ms)
        yield from _packed(frame, done, known, limits)
        return results.read(run)

    try:
        return (yield from studying(settings, command=command, halt=halt, ending=ending))
    except AnotherStudy:
        raise RunError(
            f"The images of {settings.source}, or the weights of the backbones, are not those that the study in {run} was "
            "made from. Put them back, or run the study again."
        ) from None


def settings_of(run: Path, weights: Path | None = None) -> tuple[Settings, str]:
    """The settings of the study in a run folder, and the command that made it; `weights`: where its weights are now.

    Its budget stays what it was: how long the small CNN was trained follows from it, and what the study had no time for is
    not caught up with here.
    """
    try:
        written = json.loads((run / results.RUN).read_text(encoding="utf-8"))
        facts, asked = written["settings"], written["settings"]["asked"]
        limits, budget = facts["limits"], facts["budget_seconds"]
        recipe = written.get("recipe")
        settings = Settings(
            source=Path(asked["source"]),
            out=run,
            budget_seconds=math.inf if budget is None else float(budget),
            weights=weights or (Path(facts["weights"]) if facts["weights"] else None),
            backbones=tuple(facts["backbones"]),
            folds=asked["folds"],
            metric=facts["metric"],
            max_bytes=limits["max_bytes"],
            max_latency_ms=limits["max_latency_ms"],
            only=facts["only"],
            fit=facts["fit"],
            groups=asked["groups"],
            device=asked["device"],
            seed=facts["seed"],
        )
        command = str(written.get("command") or "")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(
            f"{run / results.RUN} does not say how this study was made ({error}): it is of an older Graft, or damaged. "
            "Run the study again."
        ) from error
    if recipe:
        raise RunError(
            f"{run} was made by graft train, from a single recipe; graft shrink goes on with a study. Run graft study on "
            "the same images first, or graft export the model to onnx-int8."
        )
    return settings, command


def _packed(
    frame: Frame, done: Progress, known: dict[str, Any], limits: Limits
) -> Generator[Event, None, None]:
    """Choose, pack beside the study's bundle, and write `study.json` with what is new."""
    told = done.extras["shrink"]
    choice = choose(
        done.trials,
        frame.targets,
        frame.dataset.groups[frame.rows],
        metric=frame.settings.metric,
        limits=Limits(),
        seed=frame.settings.seed,
    )
    rows = {row["id"]: row for row in results.candidate_rows(frame, done.trials, choice)}
    old = {row["id"] for row in known["candidates"]}
    facts = dict(known)
    facts["candidates"] = sorted(
        [*known["candidates"], *(row for name, row in rows.items() if name not in old)],
        key=lambda row: -METRICS[frame.settings.metric].sign * row["metrics"].get(frame.settings.metric, 0.0),
    )
    picked, missed = yield from _within(frame, done, known, rows, limits)
    told |= {
        "choice": picked.recipe.name,
        "limits": {"max_bytes": limits.max_bytes, "max_latency_ms": limits.max_latency_ms},
        "missed": missed or None,
        "bundle": None if missed else SMALL_BUNDLE,
    }
    yield Event("notice", missed or f"{picked.recipe.name} is {SMALL_BUNDLE}.")
    facts["shrink"] = told
    results.write_json(frame.settings.out / results.STUDY, facts)


def _within(
    frame: Frame, done: Progress, known: dict[str, Any], rows: dict[str, Any], limits: Limits
) -> Generator[Event, None, tuple[Trial, str]]:
    """What `pick` says, packed; where it meets the limits only without what lies beside it in the folder, the next one.

    Where nothing meets the limits nothing is packed, and a bundle of an earlier call stays.
    """
    told, by_name = done.extras["shrink"], {trial.recipe.name: trial for trial in done.trials}
    place = frame.settings.out / SMALL_BUNDLE
    beside = frame.settings.out / f".{SMALL_BUNDLE}.new"
    room = limits
    try:
        while True:
            picked, missed = pick(told, by_name, room)
            if missed:
                return picked, missed
            folder = place if _holds(place, picked) else beside
            if folder == beside:
                fitted = yield from _fitted_small(frame, done, picked)
                yield Event("progress", "packing and checking")
                row = rows[picked.recipe.name]
                packing(frame, folder, fitted, _about(frame, known, row, picked, told), trial=picked)
            taken = sum(path.stat().st_size for path in folder.iterdir())
            if limits.max_bytes is None or taken <= limits.max_bytes:
                if folder == beside:
                    put_in_place(beside, place)
                return picked, ""
            room = replace(limits, max_bytes=limits.max_bytes - taken + (picked.model_bytes or 0))
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _holds(folder: Path, trial: Trial) -> bool:
    """Whether the bundle there is this very candidate, and sound."""
    try:
        return bool(Bundle(folder, threads=1).facts.get("recipe") == trial.recipe.key)
    except BundleError:
        return False


def _fitted_small(frame: Frame, done: Progress, trial: Trial) -> Generator[Event, None, Fitted]:
    from graft.studies.ending import fitted_on_all

    return (yield from fitted_on_all(frame, done, trial))


def pick(told: dict[str, Any], by_name: dict[str, Trial], limits: Limits) -> tuple[Trial, str]:
    """The smallest candidate within the tolerance and the limits, and a sentence where nothing is.

    Where smaller models are better than the reference, the tolerance counts from the best of them, if the limits allow.
    Then it is the one nearest to the limits among those within the tolerance or, without limits, the reference itself.
    """
    good = within_tolerance(told)
    within = [point for point in good if limits.excess(by_name[point["id"]]) <= 1]
    if within:
        return by_name[smallest_of(told, within)["id"]], ""
    nearest = min((by_name[point["id"]] for point in good), key=limits.excess)
    size, latency = megabytes(nearest.model_bytes or 0), nearest.latency_ms or 0.0
    return nearest, (
        f"Nothing within the tolerance meets the limits, with what lies beside a model in its bundle; the nearest is "
        f"{nearest.recipe.name} ({size}, {latency:.2g} ms). Give a larger --max-size, --max-latency or --tolerance"
        + (f", or a longer --budget: {told['unpaid']} steps were not paid." if told.get("unpaid") else ".")
    )


def _about(
    frame: Frame, known: dict[str, Any], row: dict[str, Any], trial: Trial, told: dict[str, Any]
) -> dict[str, Any]:
    """What the small bundle tells of itself."""
    from graft.studies.ending import about_bundle

    metric = METRICS[frame.settings.metric]
    low, high = row["interval"][metric.name]
    facts = {
        **known,
        "candidates": [row],
        "choice": {
            **known["choice"],
            "id": trial.recipe.name,
            "headline": {
                metric.name: row["metrics"][metric.name],
                "interval": [low, high],
                "kind": "bbc-cv",
                "metric": metric.name,
            },
            "reason": told["sentence"],
            "test": None,
        },
    }
    about = about_bundle(facts, trial)
    about["headline"] = (
        f"{metric.label} {metric.text(row['metrics'][metric.name])} (95 % interval {metric.text(low)} to "
        f"{metric.text(high)}), cross-validated, not corrected for having been picked."
    )
    return {**about, "precision": variant_of(trial).precision}
