"""Rung 2: the small CNN from random weights, on the same folds.

Each fold trains until its patience or its plan ends. Only where the budget is tight does the clock stop it earlier;
that is recorded with the fold, told in the report, and the one thing that makes a study depend on the machine's speed. The
first fold, on which candidates are compared that were measured on no other, then gets half of its plan at least (1,535 drawings of 101 classes: macro-F1 0.30 with 13 epochs, 0.19 with 6).
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from jaxtyping import Float32, Int64

from graft.backbones.graph import parameters, tap_output
from graft.compute import cpu_name
from graft.deploy.assemble import assembled
from graft.images.dataset import Preprocess
from graft.images.pixels import open_pixels
from graft.judging.cost import latency_ms
from graft.judging.metrics import METRICS
from graft.store import content_key
from graft.studies.balancing import balance_of_best_head
from graft.studies.epochs import epoch_facts
from graft.studies.frame import Event, Frame, Trial, criterion
from graft.studies.probe import LATENCY_THREADS
from graft.studies.recipe import Recipe
from graft.studies.symmetry import ask_the_best, shown, suited_without_backbone
from graft.studies.tuning.kept_states import keep_trained

if TYPE_CHECKING:
    from graft.backbones.scratch import ScratchDesign
    from graft.learning.training import Trained, TrainingSettings

NAME = "small_cnn/scratch"
HALF = 0.5  # of the seconds that the first fold is planned to take, it gets at least
APART = 10_000_000  # between the random seeds of two trainings of one recipe


def scratch_recipe(
    frame: Frame, design: ScratchDesign, geometry: Preprocess, settings: TrainingSettings, *, again: int = 0
) -> Recipe:
    """The recipe of the network from random weights: nothing is frozen, and each fold has a balance of its own.

    `again`: 0 for the first training of a fold, more for others with a seed of their own.
    """
    return Recipe(
        name=f"{NAME}, seed {again + 1}" if again else NAME,
        strategy="scratch",
        backbone="small_cnn",
        weights=f"random:{frame.settings.seed + APART * again}",
        geometry=geometry,
        tap="head",
        cut="",
        settings=content_key(
            "scratch.v2", design.key, {name: repr(value) for name, value in asdict(settings).items()}
        ),
    )


def scratching(
    frame: Frame,
    design: ScratchDesign,
    geometry: Preprocess,
    settings: TrainingSettings,
    trials: Sequence[Trial],
    *,
    kept_seconds: float = 0.0,
    fold_seconds: float = 0.0,
    again: int = 0,
) -> Generator[Event, None, None]:
    """Train on every fold that the journal lacks, balanced as the best head of the fold among the `trials` so far.

    Of the budget, `kept_seconds` are for other work; a fold is planned to take `fold_seconds`. What was finished is `scratch_trial`, wherever
    this was left.
    """
    recipe = scratch_recipe(frame, design, geometry, settings, again=again)
    scratch_costs(frame, design)
    yield from ask_the_best(frame, trials)
    for fold in range(frame.folds.count):
        if frame.journal.fold(recipe.key, fold) is not None:
            continue
        if frame.remaining_seconds() <= kept_seconds and fold:
            yield Event("notice", f"{frame.ended} after {fold} of {frame.folds.count} folds from scratch.")
            return
        # One share more than folds is left for fitting on all images and packing.
        left = frame.remaining_seconds() - kept_seconds
        share = left / (frame.folds.count - fold + 1)
        if not fold:
            share = max(share, min(HALF * left, HALF * fold_seconds))
        _, said = yield from measured_fold(
            frame,
            recipe,
            design,
            replace(settings, balance=balance_of_best_head(frame, trials, fold)),
            fold=fold,
            rows=frame.learned_from(fold),
            key=recipe.key,
            seed=fold + APART * again,
            deadline_seconds=max(1.0, share),
            text=f"from scratch, fold {fold + 1} of {frame.folds.count}",
        )
        if not trials:
            yield Event("result", of_fold(frame, recipe, fold, said))


def of_fold(frame: Frame, recipe: Recipe, fold: int, said: Float32[np.ndarray, "m k"]) -> str:
    """A finished fold in words, where it is all the answer that there is so far."""
    metric = METRICS[frame.settings.metric]
    score = metric.sign * criterion(metric.name)(said, frame.dataset.targets[frame.held_out(fold)])
    return f"{recipe.name}, fold {fold + 1} of {frame.folds.count}: {metric.label} {metric.text(score)}"


def scratch_trial(
    frame: Frame, design: ScratchDesign, geometry: Preprocess, settings: TrainingSettings, *, again: int = 0
) -> Trial | None:
    """What the journal holds of this training, which may be some folds; None without any."""
    recipe = scratch_recipe(frame, design, geometry, settings, again=again)
    probabilities = np.full((len(frame.dataset), frame.classes), np.nan, np.float32)
    seconds, curves = 0.0, []
    for fold in range(frame.folds.count):
        known = frame.journal.fold(recipe.key, fold)
        if known is not None:
            probabilities[frame.held_out(fold)] = known[1]
            seconds += float(known[0]["seconds"])
            curves.append({"fold": fold, **known[0]["curve"]})
    if not curves:
        return None
    weights, size, latency = scratch_costs(frame, design)
    return Trial(
        recipe=recipe,
        probabilities=probabilities[frame.rows],
        train_seconds=seconds,
        extract_seconds=0.0,
        model_bytes=size,
        parameters=weights,
        latency_ms=latency,
        tap_index=0,
        taps=1,
        about={
            "family": "small_cnn",
            "source": "random weights",
            "licence": "Apache-2.0",
            "runner": "torch",
            "again": again,
        },
        curves=tuple(curves),
    )


def measured_fold(
    frame: Frame,
    recipe: Recipe,
    design: ScratchDesign,
    settings: TrainingSettings,
    *,
    fold: int,
    rows: Int64[np.ndarray, " r"],
    key: str,
    seed: int,
    deadline_seconds: float,
    text: str,
) -> Generator[Event, None, tuple[dict[str, Any], np.ndarray]]:
    """Train on `rows`, predict the held-out images of the fold, and keep both in the journal under `key`."""
    from graft.learning.training import predict

    begun = frame.journal.elapsed_seconds()
    if not fold:
        _shown(frame, recipe, rows)
    trained, curve = yield from _training(
        frame,
        recipe,
        design,
        settings,
        rows=rows,
        seed=seed,
        deadline_seconds=deadline_seconds,
        text=text,
    )
    pixels = open_pixels(frame.dataset, recipe.geometry, store=frame.store)
    probabilities = predict(trained, pixels, frame.held_out(fold), compute=frame.compute)
    facts = {
        "name": recipe.name,
        "seconds": round(frame.journal.elapsed_seconds() - begun, 3),
        "images": len(rows),
        "balance": settings.balance,
        "curve": curve,
    }
    if key == recipe.key:
        keep_trained(frame, key, fold, trained)
    return frame.journal.add_fold(key, fold, probabilities, facts), probabilities


def _shown(frame: Frame, recipe: Recipe, rows: Int64[np.ndarray, " r"]) -> None:
    pixels = open_pixels(frame.dataset, recipe.geometry, store=frame.store)
    shown(frame, pixels, suited_without_backbone(frame, pixels, rows), title=recipe.name)


def _training(
    frame: Frame,
    recipe: Recipe,
    design: ScratchDesign,
    settings: TrainingSettings,
    *,
    rows: np.ndarray,
    seed: int,
    deadline_seconds: float | None,
    text: str,
) -> Generator[Event, None, tuple[Trained, dict[str, Any]]]:
    from graft.learning.training import train

    epochs: list[dict[str, float | int | None]] = []
    pixels = open_pixels(frame.dataset, recipe.geometry, store=frame.store)
    work = train(
        pixels,
        frame.dataset.targets,
        rows,
        groups=frame.dataset.groups,
        design=design,
        settings=settings,
        compute=frame.compute,
        seed=1000 * frame.settings.seed + seed,
        deadline_seconds=deadline_seconds,
        augmentation=suited_without_backbone(frame, pixels, rows),
        criterion=criterion(frame.settings.metric),
    )
    while True:
        try:
            epoch = next(work)
        except StopIteration as finished:
            trained: Trained = finished.value
            facts = {
                "best_epoch": trained.best_epoch,
                "needed": trained.needed,
                "generation": trained.generation,
                "stopped": trained.stopped,
                "temperature": trained.temperature,
            }
            return trained, {"epochs": epochs, **facts}
        epochs.append(epoch_facts(epoch, frame.settings.metric))
        yield Event(
            "progress", text, epoch.number, epoch.planned, remaining_seconds=frame.remaining_seconds()
        )


def refitting(
    frame: Frame, trial: Trial, design: ScratchDesign, settings: TrainingSettings
) -> Generator[Event, None, Trained]:
    """Train on every development image for as many epochs and generations as were best on the folds (their medians)."""
    epochs, generations, temperature = (
        float(np.median([curve[name] for curve in trial.curves]))
        for name in ("needed", "generation", "temperature")
    )
    fixed = replace(
        settings,
        epochs=max(1, int(epochs)),
        generations=max(1, round(generations)),
        validation_share=0.0,
        temperature=temperature,
    )
    trained, _ = yield from _training(
        frame,
        trial.recipe,
        design,
        fixed,
        rows=frame.rows,
        seed=999 + APART * trial.about.get("again", 0),
        deadline_seconds=None,
        text="from scratch, on all images",
    )
    return trained


def scratch_graph(trained: Trained) -> tuple[onnx.ModelProto, str, np.ndarray, np.ndarray]:
    """The trained network as a graph, the output in front of its head, and the head's weight and bias."""
    from graft.backbones.export import export
    from graft.backbones.opening import open_scratch

    network = trained.network()
    opened = open_scratch(network, trained.design)
    graph = onnx.load_from_string(export(opened, size=trained.design.size))
    weight = network.head.weight.detach().numpy().T
    return graph, tap_output(opened.taps[-1].index), weight, network.head.bias.detach().numpy()


def scratch_costs(frame: Frame, design: ScratchDesign) -> tuple[int, int, float]:
    """Parameters, bytes and latency (ms) of the packed network; weights do not matter for them."""
    key = content_key("scratch-cost.v1", design.key, LATENCY_THREADS, cpu_name())
    stored = frame.store.get(key)
    if stored is None:
        from graft.backbones.export import export
        from graft.backbones.opening import open_scratch
        from graft.backbones.scratch import build

        opened = open_scratch(build(design, seed=0), design)
        graph = onnx.load_from_string(export(opened, size=design.size))
        last = opened.taps[-1]
        zeros = np.zeros((last.features, design.classes), np.float32)
        model = assembled(graph, tap_output(last.index), weight=zeros, bias=zeros[0], unit_length=False)
        content = model.SerializeToString()
        latency = latency_ms(content, threads=LATENCY_THREADS, seconds=0.06)
        stored = frame.store.put(
            key, {"parameters": parameters(model), "bytes": len(content), "latency_ms": latency}
        )
    return int(stored.facts["parameters"]), int(stored.facts["bytes"]), float(stored.facts["latency_ms"])
