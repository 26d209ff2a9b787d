"""The main job as plain functions: what `graft study` and `graft check` do, without a terminal."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from pathlib import Path
from threading import Event as Flag
from typing import TYPE_CHECKING, Any

from graft.images.dataset import Dataset
from graft.studies.frame import Event
from graft.studies.results import StudyResult
from graft.studies.settings import Settings, resolved

if TYPE_CHECKING:
    from graft.deploy.bundle import Bundle
    from graft.deploy.evaluate import Evaluation
    from graft.pretraining.publishing import Published
    from graft.similar.build import Indexed
    from graft.studies.single.settings import TrainSettings
else:  # neither torch nor ONNX Runtime is needed to name them
    Bundle = Evaluation = Indexed = Published = TrainSettings = Any


def study(
    source: str | Path,
    *,
    out: str | Path | None = None,
    budget: str | int | float = "10m",
    weights: str | Path | None = None,
    backbones: str | Sequence[str] = "auto",
    folds: int | str = 5,
    metric: str = "macro_f1",
    max_size: str | int | None = None,
    max_latency: str | int | float | None = None,
    only: str | None = None,
    fit: str = "auto",
    groups: str = "near",
    device: str = "auto",
    seed: int | str = 0,
    overwrite: bool = False,
) -> StudyResult:
    """Measure what to do with the labelled images in `source`, and pack the smallest of the best models.

    `source`: a folder `<class>/...` (or `train|val|test/<class>/...`), a CSV or Parquet file. `out`: the run folder
    (default `runs/<name of source>`); an unfinished study there is continued, another one only replaced with
    `overwrite`. `budget`: seconds, or `"5m"`. `weights`: a folder with `weights.json`. `backbones`: `"auto"`, or names
    as `graft models` lists them. `folds`: 2 to 20. `metric`: what decides (`macro_f1`, `accuracy`,
    `balanced_accuracy`, `weighted_f1`, `log_loss` or `brier`). `max_size`, `max_latency`: limits on the packed model,
    such as `"5MB"` (or bytes) and `"10ms"` (or milliseconds) for one image on one thread. `only`: `"frozen"`, `"finetuned"` or
    `"scratch"`. `fit`: how images become square, `"crop"`, `"squash"` or `"pad"` (`"auto"` measures it). `device`:
    `"auto"`, `"cpu"`, `"cuda"` or `"mps"`. Same seed, same data, same machine: same choice, same numbers.

    Raises GraftError with a sentence for whatever cannot be done.
    """
    settings = resolved(
        source,
        out=out,
        budget=budget,
        weights=weights,
        backbones=backbones,
        folds=folds,
        metric=metric,
        max_size=max_size,
        max_latency=max_latency,
        only=only,
        fit=fit,
        groups=groups,
        device=device,
        seed=seed,
        overwrite=overwrite,
    )
    work = running(settings, command=f"graft.study({str(source)!r}, ...)")
    while True:
        try:
            next(work)
        except StopIteration as finished:
            return finished.value


def running(
    settings: Settings, *, command: str, halt: Flag | None = None
) -> Generator[Event, None, StudyResult]:
    """The study and then its report, as a generator of events that returns the result; `halt` ends it early."""
    from graft.report.page import write
    from graft.studies.search import studying

    result = yield from studying(settings, command=command, halt=halt)
    yield Event("progress", "writing the report")
    write(result.run)
    return result


def train(
    source: str | Path,
    *,
    backbone: str | None = None,
    init: str | None = None,
    freeze: str | int | None = None,
    tap: str | None = None,
    head: str | None = None,
    input: str | None = None,
    size: int | str | None = None,
    fit: str | None = None,
    augment: str | Path | None = None,
    balance: str | None = None,
    lr: float | str | None = None,
    epochs: int | str | None = None,
    patience: int | str | None = None,
    batch_size: int | str | None = None,
    batch_norm: str | None = None,
    mixup: float | str | None = None,
    cutmix: float | str | None = None,
    ema: bool | None = None,
    generations: int | str | None = None,
    ensemble: int | str | None = None,
    seeds: int | str | None = None,
    folds: int | str | None = None,
    metric: str | None = None,
    groups: str | None = None,
    seed: int | str | None = None,
    recipe: str | Path | None = None,
    save_recipe: str | Path | None = None,
    out: str | Path | None = None,
    budget: str | int | float | None = None,
    weights: str | Path | None = None,
    device: str = "auto",
    preview: bool = False,
    overwrite: bool = False,
) -> StudyResult:
    """Train one recipe on the images in `source` and return its result; what each argument means: docs/train.md.

    The run folder is that of a study with one candidate: measured on folds, fitted on all images, tested once, packed. An
    argument that is None is what the file `recipe` says, or else its default. The same call continues a run that was
    interrupted.

    Raises GraftError with a sentence for whatever cannot be done.
    """
    from graft.studies.single.settings import resolved_training

    settings = resolved_training(
        source,
        backbone=backbone,
        init=init,
        freeze=freeze,
        tap=tap,
        head=head,
        input=input,
        size=size,
        fit=fit,
        augment=augment,
        balance=balance,
        lr=lr,
        epochs=epochs,
        patience=patience,
        batch_size=batch_size,
        batch_norm=batch_norm,
        mixup=mixup,
        cutmix=cutmix,
        ema=ema,
        generations=generations,
        ensemble=ensemble,
        seeds=seeds,
        folds=folds,
        metric=metric,
        groups=groups,
        seed=seed,
        recipe=recipe,
        save_recipe=save_recipe,
        out=out,
        budget=budget,
        weights=weights,
        device=device,
        preview=preview,
        overwrite=overwrite,
    )
    work = running_recipe(settings, command=f"graft.train({str(source)!r}, ...)")
    while True:
        try:
            next(work)
        except StopIteration as finished:
            return finished.value


def shrink(
    run: str | Path,
    *,
    max_size: str | int | None = None,
    max_latency: str | int | float | None = None,
    tolerance: float = 0.01,
    budget: str | int | float = "10m",
    weights: str | Path | None = None,
) -> StudyResult:
    """Continue the finished study in the run folder `run` with smaller models, and pack the smallest that holds.

    `max_size`, `max_latency`: limits on the bundle, such as `"1MB"` (or bytes; all its files count) and `"3ms"` (or
    milliseconds). `tolerance`: what it may lose of the metric against the best full-size candidate, 0 to 0.5. `budget`:
    seconds, or `"10m"`, for trying smaller models; fitting and packing the chosen one comes after it. `weights`: the
    folder of the study's weights, where it has moved. The study's own bundle stays; the small one is
    `model-small.graft` beside it, and `facts["shrink"]` tells every step. Where nothing meets the limits nothing is
    packed and `facts["shrink"]["missed"]` says what is nearest.

    Raises GraftError with a sentence for whatever cannot be done.
    """
    work = shrinking_run(
        run,
        max_size=max_size,
        max_latency=max_latency,
        tolerance=tolerance,
        budget=budget,
        weights=weights,
    )
    while True:
        try:
            next(work)
        except StopIteration as finished:
            return finished.value


def shrinking_run(
    run: str | Path,
    *,
    max_size: str | int | None,
    max_latency: str | int | float | None,
    tolerance: float,
    budget: str | int | float,
    weights: str | Path | None = None,
    halt: Flag | None = None,
) -> Generator[Event, None, StudyResult]:
    """`shrink`, and the report anew, as a generator of events that returns the result."""
    from graft.errors import SettingsError
    from graft.quantities import milliseconds, seconds, size_bytes
    from graft.report.page import write
    from graft.studies.shrinking.finish import shrinking

    if not 0 <= tolerance <= 0.5:
        raise SettingsError(
            f"--tolerance {tolerance:g}: give a number from 0 to 0.5, such as 0.01 for one point."
        )
    result = yield from shrinking(
        Path(run),
        tolerance=tolerance,
        max_bytes=None if max_size is None else size_bytes(max_size),
        max_latency_ms=None if max_latency is None else milliseconds(max_latency),
        budget_seconds=seconds(budget),
        weights=None if weights is None else Path(weights).expanduser(),
        halt=halt,
    )
    yield Event("progress", "writing the report")
    write(result.run)
    return result


def running_recipe(
    settings: TrainSettings, *, command: str, halt: Flag | None = None
) -> Generator[Event, None, StudyResult]:
    """One recipe and then its report, as `running` does it for a study."""
    from graft.report.page import write
    from graft.studies.single.train import training_by_hand

    result = yield from training_by_hand(settings, command=command, halt=halt)
    yield Event("progress", "writing the report")
    write(result.run)
    return result


def pretrain(
    source: str | Path,
    *,
    out: str | Path,
    name: str | None = None,
    student: str = "small",
    teacher: str | None = None,
    weights: str | Path | None = None,
    size: int = 96,
    input_size: int | None = None,
    epochs: int | None = None,
    batch_size: int = 128,
    budget: str | int | float | None = None,
    lr: float = 1e-3,
    init: str = "auto",
    made: float = 0.0,
    hint: float = 1.0,
    target_space: str | int = "8GB",
    device: str = "auto",
    seed: int = 0,
    resume: bool = False,
    overwrite: bool = False,
) -> Published:
    """Make a backbone of `source` for the weights folder `out`, and return where it is, with its metrics.

    `source`: a folder of images (classes, nested or flat), or Parquet files. With a `teacher` (a name as `graft models`
    lists them, its file in the folder `weights`, or from the hub) the student learns to see as it does; without one it
    learns from the labels. `student`: `"small"`, `"tiny"` or an architecture of timm. `size`: pixels a side while
    training, 64 to 384; `input_size`: those of the result (a third more). `epochs` and `budget` (seconds, or `"2h"`) are
    limits. `init`: `"teacher"` starts from the pruned teacher, `"random"` does not, `"auto"` does where the layouts
    allow it. `made`: share of images that Graft makes itself, 0 to 0.9. `hint`: weight of the teacher's earlier taps.
    `target_space`: disk for the teacher's answers. `resume` goes on from the last checkpoint and ends in the same
    weights as a training that was never interrupted (same seed, same machine).

    Raises GraftError with a sentence for whatever cannot be done.
    """
    from graft.pretraining.pretrain import pretraining
    from graft.pretraining.settings import resolved_pretraining

    settings = resolved_pretraining(
        source,
        out=out,
        name=name,
        student=student,
        teacher=teacher,
        weights=weights,
        size=size,
        input_size=input_size,
        epochs=epochs,
        batch_size=batch_size,
        budget=budget,
        lr=lr,
        init=init,
        made=made,
        hint=hint,
        target_space=target_space,
        device=device,
        seed=seed,
        resume=resume,
        overwrite=overwrite,
    )
    work = pretraining(settings)
    while True:
        try:
            next(work)
        except StopIteration as finished:
            return finished.value


def evaluate(
    bundle: str | Path | Bundle, source: str | Path, *, elsewhere: Sequence[str | Path] = ()
) -> Evaluation:
    """Answer the labelled images in `source` with a packed model, and say how good the answers are.

    `bundle`: a folder `model.graft`, or an opened one. `source`: a folder `<class>/...`, a CSV or Parquet file; classes
    are matched with the model's labels by name, and those that it does not know are counted apart. `elsewhere`: image
    files of something else entirely; how well they are told apart is `Evaluation.apart`.

    Raises GraftError with a sentence for whatever cannot be done.
    """
    from graft.deploy.evaluate import evaluating

    work = evaluating(_opened(bundle), source, elsewhere=[Path(file) for file in elsewhere])
    while True:
        try:
            next(work)
        except StopIteration as finished:
            return finished.value


def index(
    bundle: str | Path | Bundle,
    source: str | Path,
    *,
    out: str | Path,
    overwrite: bool = False,
    rebuild: bool = False,
) -> Indexed:
    """Make the images in `source` searchable with `open_index(out)`, and return counts of what was done.

    An index in `out` is brought up to date: only new and changed images go through the model, those that are gone leave.
    `overwrite`: it may be one of another model or source. `rebuild`: all images go through the model again.

    Raises GraftError with a sentence for whatever cannot be done.
    """
    from graft.similar.build import indexing

    work = indexing(_opened(bundle), source, out=out, overwrite=overwrite, rebuild=rebuild)
    while True:
        try:
            next(work)
        except StopIteration as finished:
            return finished.value


def _opened(bundle: str | Path | Bundle) -> Bundle:
    """The bundle; one that is opened here runs on one thread per image, because many images run at once."""
    from graft.deploy.bundle import load

    return load(bundle, threads=1) if isinstance(bundle, (str, Path)) else bundle


def check(source: str | Path) -> Dataset:
    """Only look at the images: the checked dataset with its issues. Raises DatasetError if it makes no task."""
    from graft.compute import cpu_threads
    from graft.images.scan import scan
    from graft.store import Store

    return scan(source, store=Store(), threads=cpu_threads())
