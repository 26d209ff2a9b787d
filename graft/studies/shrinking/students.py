"""Students: a small CNN that learns what the best network says, and takes its place.

In: the best trial (frozen, read at several depths, or fine-tuned), its network on a fold, the width of the student. Out: the student's answers for the held-out
images; its weights are kept (`graft.studies.tuning.kept_states`), so that it can be brought to 8 bits. The teacher is that of the
fold: it has seen no image that the student is asked about. Every image has `VIEWS` views beside itself, made in the
teacher's geometry and brought to the student's size, so that both see the same; they, and what a frozen teacher's
trunk puts out for them, are made once for all folds, and kept in the cache.

Cost: a pass of the teacher over all views (of a tuned one, in each fold), and `STUDENT_VIEWS` views of the student in each
fold. Where that would be more than `SPACE` bytes, or more than a student sees, fewer views are made.

Not covered: students that start from ImageNet; teachers that are several networks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Generator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float32, Int64, UInt8

from graft.deploy.quantise import outputs_of
from graft.deploy.reading import READING
from graft.images.dataset import Preprocess
from graft.images.pixels import open_pixels, pixels_key
from graft.learning.heads import Head, answering_head
from graft.store import content_key
from graft.studies.epochs import epoch_facts
from graft.studies.frame import Event, Frame, Trial, criterion
from graft.studies.recipe import Recipe
from graft.studies.rungs import prepare
from graft.studies.shrinking.networks import Network
from graft.studies.symmetry import suited_without_backbone
from graft.studies.tuning.kept_states import keep_trained

if TYPE_CHECKING:
    from graft.backbones.scratch import ScratchDesign
    from graft.images.augmentations import Augmentation
    from graft.learning.trained import Trained
else:
    Augmentation = ScratchDesign = Trained = Any

WIDTHS = (16, 8)  # 0.9 and 0.25 MB; a quarter of it in 8 bits
SIZE = 96
VIEWS = 8
STUDENT_VIEWS = 40_000
SPACE = 4 * 10**8
BLOCK = 16
STUDENT_VERSION = 1


def student_geometry(base: Trial) -> Preprocess:
    """What a student of this trial reads: the same cut of the picture, smaller."""
    geometry = base.recipe.geometry
    return replace(geometry, size=min(SIZE, geometry.size))


def student_design(frame: Frame, base: Trial, width: int) -> ScratchDesign:
    """The student's network."""
    from graft.backbones.scratch import ScratchDesign

    geometry = student_geometry(base)
    return ScratchDesign(width, geometry.channels, geometry.size, frame.classes)


def student_fold(
    frame: Frame, base: Trial, teacher: Network, width: int, recipe: Recipe, fold: int
) -> Generator[Event, None, tuple[Float32[np.ndarray, "f k"], dict[str, Any]]]:
    """Train the student of a fold, keep its weights, and answer the held-out images."""
    from graft.learning.trained import predict
    from graft.studies.scratching import scratch_costs

    text = f"{recipe.name}, fold {fold + 1} of {frame.folds.count}"
    trained, curve = yield from taught_by(
        frame, base, teacher, width, rows=frame.learned_from(fold), seed=fold, text=text
    )
    keep_trained(frame, recipe.key, fold, trained)
    pixels = open_pixels(frame.dataset, recipe.geometry, store=frame.store)
    rows = predict(trained, pixels, frame.held_out(fold), compute=frame.compute)
    weights, size, latency = scratch_costs(frame, trained.design)
    return rows, {"bytes": size, "parameters": weights, "latency_ms": latency, "curve": curve}


def taught_by(
    frame: Frame,
    base: Trial,
    network: Network,
    width: int,
    *,
    rows: Int64[np.ndarray, " m"],
    seed: int,
    text: str,
) -> Generator[Event, None, tuple[Trained, dict[str, Any]]]:
    """A student that learned from `network` on these rows, and its curve."""
    from graft.learning.distil import DistilSettings, Taught, distil

    geometry = student_geometry(base)
    yield from prepare(frame, [geometry])
    pixels = open_pixels(frame.dataset, geometry, store=frame.store)
    augmentation = suited_without_backbone(frame, pixels, frame.rows)
    yield Event("progress", f"{text}: views", remaining_seconds=frame.remaining_seconds())
    views, features = _views(frame, base, network, augmentation, rows)
    head = network.head or answering_head(
        features[:, 0],
        frame.dataset.targets[rows],
        classes=frame.classes,
        balance="root",
        criterion=criterion(frame.settings.metric),
    )
    taught = Taught(views, _said(head, features), frame.dataset.targets[rows], augmentation.symmetries)
    work = distil(
        taught,
        design=student_design(frame, base, width),
        settings=DistilSettings(views=STUDENT_VIEWS),
        compute=frame.compute,
        seed=1000 * frame.settings.seed + seed,
        criterion=criterion(frame.settings.metric),
    )
    epochs: list[dict[str, float | int | None]] = []
    while True:
        try:
            epoch = next(work)
        except StopIteration as finished:
            return finished.value, {"epochs": epochs, "best_epoch": finished.value.best_epoch}
        epochs.append(epoch_facts(epoch, frame.settings.metric))
        yield Event("progress", text, epoch.number, epoch.planned, frame.remaining_seconds())


def _said(head: Head, features: Float32[np.ndarray, "m v d"]) -> Float32[np.ndarray, "m v k"]:
    flat = head.logits(features.reshape(-1, features.shape[-1]))
    return flat.reshape(*features.shape[:2], -1).astype(np.float32)


def _views(
    frame: Frame,
    base: Trial,
    network: Network,
    augmentation: Augmentation,
    rows: Int64[np.ndarray, " m"],
) -> tuple[UInt8[np.ndarray, "m v h w c"], Float32[np.ndarray, "m v d"]]:
    """The student's views of `rows`, and what the teacher puts out for the same ones, plain image first.

    A frozen teacher is asked about all development images at once, for all folds and all students.
    """
    asked = frame.rows if network.head is None else rows
    key = content_key(
        "student-views.v1",
        pixels_key(frame.dataset, base.recipe.geometry),
        student_geometry(base).key,
        augmentation.content(),
        view_count(len(asked), base),
        frame.settings.seed,
        asked.tolist(),
        hashlib.sha256(network.model.SerializeToString()).hexdigest(),
    )
    stored = frame.store.get(key)
    if stored is None:
        views, features = _made_views(frame, base, network, augmentation, asked)
        stored = frame.store.put(key, views=views, features=features)
    chosen = np.searchsorted(asked, rows)
    return np.asarray(stored.array("views")[chosen]), np.asarray(stored.array("features")[chosen])


def _made_views(
    frame: Frame,
    base: Trial,
    network: Network,
    augmentation: Augmentation,
    rows: Int64[np.ndarray, " m"],
) -> tuple[UInt8[np.ndarray, "m v h w c"], Float32[np.ndarray, "m v d"]]:
    import torch

    from graft.images.views import fixed_view

    geometry = student_geometry(base)
    large = open_pixels(frame.dataset, base.recipe.geometry, store=frame.store)
    small = open_pixels(frame.dataset, geometry, store=frame.store)
    count = view_count(len(rows), base)
    views = np.empty((len(rows), 1 + count, *small.shape[1:]), np.uint8)
    features = []
    for begin in range(0, len(rows), BLOCK):
        some = rows[begin : begin + BLOCK]
        seen = torch.cat(
            [
                fixed_view(large[row], augmentation, seed=frame.settings.seed, number=int(row), view=view)
                for row in some
                for view in range(1 + count)
            ]
        )
        pixels = _bytes(seen)
        features.append(outputs_of(network.model, pixels, READING, threads=frame.compute.threads))
        shrunk = torch.nn.functional.interpolate(
            seen, (geometry.size, geometry.size), mode="bilinear", antialias=True
        )
        views[begin : begin + len(some)] = _bytes(shrunk).reshape(len(some), 1 + count, *small.shape[1:])
    views[:, 0] = small[rows]
    return views, np.concatenate(features).reshape(len(rows), 1 + count, -1)


def _bytes(images: Any) -> UInt8[np.ndarray, "n h w c"]:
    found = (images * 255).round().clamp(0, 255).permute(0, 2, 3, 1).numpy()
    return np.ascontiguousarray(found.astype(np.uint8))


def view_count(images: int, base: Trial) -> int:
    """How many views are made of each of so many images, beside the image itself."""
    geometry = student_geometry(base)
    each = geometry.channels * geometry.size**2
    return max(1, min(VIEWS, STUDENT_VIEWS // max(1, images), SPACE // max(1, images * each) - 1))
