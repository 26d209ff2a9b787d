"""What one fine-tuning needs at hand: the cut network, its batches, the frozen features; and the training itself.

In: an `Option`. Out: a `Bench`, and from it a `Tuned` with its curve. Cost: opening the network (about 2 s), and its
prefix over the views of all images unless the cache holds them.

One augmentation serves all folds, because the cached views do: which mirrorings keep the class is asked of all
development images, once in a study (`graft.studies.symmetry`). It is the only thing about a held-out fold that a fold's training knows.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float32

from graft.backbones.trunks import TrunkFile, reopened
from graft.images.pixels import open_pixels, pixels_key
from graft.store import content_key
from graft.studies.beside import activations_of
from graft.studies.epochs import epoch_facts
from graft.studies.frame import Event, Frame, criterion
from graft.studies.probe import samples_of
from graft.studies.recipe import Recipe
from graft.studies.symmetry import augmentation_of, shown
from graft.studies.tuning.options import Option

if TYPE_CHECKING:
    from graft.images.augmentations import Augmentation
    from graft.learning.cutting import Cut
    from graft.learning.finetune import Tuned, TuneSettings
    from graft.learning.prefix import Source
else:
    Augmentation = Cut = Tuned = TuneSettings = Source = Any


APART = 10_000_000  # between the random seeds of two trainings of one recipe


@dataclass(frozen=True, slots=True, eq=False)
class Bench:
    """Everything opened for one option: the cut network, the batches, the frozen features.

    `trunk` and `features` are None where the network has random weights, so that nothing is frozen.
    """

    cutting: Cut
    source: Source
    trunk: TrunkFile | None
    features: np.ndarray | None


def cut_for(frame: Frame, option: Option, trunk: TrunkFile) -> Cut:
    import torch

    from graft.learning.cutting import cut_at

    opened = reopened(trunk, folder=frame.folder, reach=frame.reach)
    images = torch.from_numpy(samples_of(frame, option.trial.recipe.geometry)).permute(0, 3, 1, 2).float()
    return cut_at(
        opened,
        architecture=trunk.entry.architecture,
        tap=option.trial.recipe.tap,
        cut=option.cut,
        images=images / 255,
        together=option.together,
    )


def bench_of(frame: Frame, option: Option) -> Generator[Event, None, Bench]:
    """Open the network, and run its prefix over the views unless the cache holds them."""
    trunk, activations = activations_of(frame, option.trial)
    cutting = cut_for(frame, option, trunk)
    if cutting.notice:
        yield Event("notice", cutting.notice)
    geometry = option.trial.recipe.geometry
    pixels = open_pixels(frame.dataset, geometry, store=frame.store)
    features = activations.tap(option.trial.tap_index)
    augmentation = augmentation_of(frame, pixels, option.settings.augment)
    shown(frame, pixels, augmentation, title=option.recipe.name)
    key = content_key(pixels_key(frame.dataset, geometry), trunk.key, option.cut)
    source = yield from source_of(
        frame,
        option.recipe,
        cutting,
        pixels,
        key=key,
        augmentation=augmentation,
        wanted=option.settings.views,
    )
    if option.together:
        features = told_by(frame, cutting, source, key=content_key(key, list(option.together)))
    return Bench(cutting, source, trunk, features)


def told_by(frame: Frame, cutting: Cut, source: Source, *, key: str) -> Float32[np.ndarray, "n d"]:
    """What the tail, as it is before any training, tells of every image; kept in the cache by `key`, its content."""
    import torch

    from graft.learning.finetune import blocks
    from graft.learning.loop import at_work

    compute = frame.compute
    known = content_key("told.v1", key, source.kept > 0, compute.bf16, compute.device)
    stored = frame.store.get(known)
    if stored is None:
        tail = cutting.tail.to(compute.device).to(memory_format=torch.channels_last)
        precision = torch.autocast(compute.device, torch.bfloat16, enabled=compute.bf16)
        with at_work(compute), torch.no_grad(), precision:
            rows = np.arange(len(frame.dataset))
            parts = [tail(source.plain(block)).float().cpu().numpy() for block in blocks(rows)]
        stored = frame.store.put(known, rows=np.concatenate(parts))
    return np.asarray(stored.array("rows"), np.float32)


def source_of(
    frame: Frame,
    recipe: Recipe,
    cutting: Cut,
    pixels: np.ndarray,
    *,
    key: str,
    augmentation: Augmentation,
    wanted: int,
) -> Generator[Event, None, Source]:
    """Where the batches of a recipe come from. The disk has a say in it, so the journal holds what it said first: all
    folds of a study, in whatever session, learn from the same."""
    from graft.learning.prefix import caching

    known = frame.journal.find("views", {"recipe": recipe.key})
    work = caching(
        cutting,
        pixels,
        key=key,
        augmentation=augmentation,
        wanted=wanted,
        seed=frame.settings.seed,
        store=frame.store,
        compute=frame.compute,
        agreed=None if known is None else int(known["kept"]),
    )
    while True:
        try:
            done, total = next(work)
        except StopIteration as finished:
            source: Source = finished.value
            break
        yield Event("progress", f"{recipe.name}: views", done, total, frame.remaining_seconds())
    if source.notice:
        yield Event("notice", source.notice)
    if known is None and cutting.prefix is not None:
        frame.journal.append("views", {"recipe": recipe.key, "kept": source.kept})
    return source


def training(
    frame: Frame,
    settings: TuneSettings,
    bench: Bench,
    *,
    rows: np.ndarray,
    seed: int,
    deadline_seconds: float | None,
    kept_in: Path,
    text: str,
) -> Generator[Event, None, tuple[Tuned, dict[str, Any]]]:
    """Train on `rows`; returns what was learned and its curve."""
    from graft.learning.finetune import tune

    epochs: list[dict[str, float | int | None]] = []
    work = tune(
        bench.cutting,
        bench.source,
        frame.dataset.targets,
        rows,
        groups=frame.dataset.groups,
        features=bench.features,
        classes=frame.classes,
        settings=settings,
        compute=frame.compute,
        seed=1000 * frame.settings.seed + seed,
        criterion=criterion(frame.settings.metric),
        deadline_seconds=deadline_seconds,
        kept_in=kept_in,
    )
    while True:
        try:
            epoch = next(work)
        except StopIteration as finished:
            tuned: Tuned = finished.value
            facts = {
                "best_epoch": tuned.best_epoch,
                **(
                    {"needed": tuned.needed, "generation": tuned.generation}
                    if settings.generations > 1
                    else {}
                ),
                "stopped": tuned.stopped,
                "temperature": tuned.temperature,
            }
            return tuned, {"epochs": epochs, **facts}
        epochs.append(epoch_facts(epoch, frame.settings.metric))
        yield Event("progress", text, epoch.number, epoch.planned, frame.remaining_seconds())
