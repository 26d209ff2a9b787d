"""What an estimator trains step by step: a tail behind its frozen part, or the small CNN from random weights.

In: what is learned from, a `Wish`, and for fine-tuning the probed tap. Out: a `Model`. It is the training of a study
(`graft.learning.finetune`, `graft.learning.training`) on all images, of which 15 % are kept back to stop by.

Cost: about 50 photos of 224 px a second and epoch on two cores for all of a MobileNetV2; behind a frozen part several
times as many. Not covered: a second training on the images that were kept back.
"""

from __future__ import annotations

import hashlib
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import onnx
from jaxtyping import Int64, UInt8
from scipy.special import softmax

from graft.backbones.graph import tap_output
from graft.backbones.trunks import reopened
from graft.backbones.weights import WeightsFolder
from graft.deploy.assemble import assembled
from graft.errors import SettingsError
from graft.estimator_input import ParameterError, pixels_of, sides_of
from graft.estimator_records import Given, Model, Probe, Wish, fit_of, reach_of, some_of, weights_of
from graft.images.dataset import Dataset
from graft.learning.inner import Balance
from graft.learning.mirrored import asked, spread
from graft.store import Store, content_key

if TYPE_CHECKING:
    from graft.backbones.layers import Freeze
    from graft.backbones.opening import Opened
    from graft.images.augmentations import Augmentation

Returned = TypeVar("Returned")

PARTS = 5
LOSSES: dict[str, Balance] = {
    "auto": "root",
    "none": "none",
    "root": "root",
    "full": "sampler",
    "weights": "root",
    "sampler": "sampler",
    "logit": "logit",
}


def tuned_model(
    probe: Probe, given: Given, wish: Wish, folder: WeightsFolder | None, store: Store
) -> Model | None:
    """Tail and head trained together; None where the freeze leaves nothing but a ridge head, which needs no training."""
    import torch

    from graft.backbones.export import export
    from graft.learning.cutting import cut_at
    from graft.learning.finetune import TuneSettings, tune
    from graft.learning.prefix import caching, strengthened
    from graft.learning.range_test import with_rate

    reach = reach_of(probe.trunk.entry, folder)
    opened = reopened(probe.trunk, folder=folder, reach=reach)
    freeze = _freeze(opened, probe, wish)
    if freeze.everything and wish.head == "ridge":
        return None
    cut = probe.tap.name if freeze.everything else freeze.cut
    samples = torch.from_numpy(some_of(probe.pixels)).permute(0, 3, 1, 2).float() / 255
    cutting = cut_at(
        opened,
        architecture=probe.trunk.entry.architecture,
        tap=probe.tap.name,
        cut=cut,
        images=samples,
    )
    learning = {name: depth for name, depth in cutting.trained.items() if name not in freeze.parameters}
    cutting = replace(cutting, trained=learning)
    for name, weight in cutting.tail.network.named_parameters():
        weight.requires_grad_(name in learning)
    settings = TuneSettings(
        cut=cut,
        balance=LOSSES[wish.balance],
        head=wish.head,
        batch_norm=wish.batch_norm,
        augment=wish.augment,
        mixup=wish.mixup,
        **_given_numbers(wish),
    )
    if wish.lr is not None:
        settings = with_rate(settings, wish.lr, default=settings)
    rows = np.arange(len(given.targets))
    source = _last(
        caching(
            cutting,
            probe.pixels,
            key=content_key(probe.key, probe.trunk.key, cut),
            augmentation=strengthened(_suited(probe, given, wish, folder, store), settings.augment),
            wanted=settings.views,
            seed=wish.seed,
            store=store,
            compute=wish.compute,
        )
    )
    tuned = _last(
        tune(
            cutting,
            source,
            given.targets,
            rows,
            groups=_twins(probe.pixels),
            features=probe.rows,
            classes=given.classes,
            settings=settings,
            compute=wish.compute,
            seed=wish.seed,
        )
    )
    fresh = reopened(probe.trunk, folder=folder, reach=reach)
    fresh.trunk.network.load_state_dict(tuned.state, strict=False)
    graph = assembled(
        onnx.load_from_string(export(fresh, size=probe.trunk.geometry.size)),
        tap_output(probe.tap.index),
        weight=tuned.head.weight,
        bias=tuned.head.bias,
        unit_length=tuned.head.unit_length,
        hidden=tuned.head.hidden,
    )
    check = some_of(probe.pixels)
    with torch.inference_mode():
        read = fresh.trunk(torch.from_numpy(check))[probe.tap.index].numpy()
    return Model(
        graph=graph.SerializeToString(),
        geometry=probe.trunk.geometry,
        backbone=probe.trunk.entry.name,
        tap=probe.tap.name,
        strategy="frozen" if freeze.everything else "partial" if freeze.parameters else "full",
        weights=weights_of(probe.trunk),
        features=probe.tap.features,
        tried={},
        check=check,
        expected=tuned.head.probabilities(read),
        frozen=None,
    )


def _given_numbers(wish: Wish) -> dict[str, Any]:
    """Those that are not left to the default."""
    given = {"epochs": wish.epochs, "batch_size": wish.batch_size, "patience": wish.patience}
    return {name: value for name, value in given.items() if value is not None}


def _suited(
    probe: Probe, given: Given, wish: Wish, folder: WeightsFolder | None, store: Store
) -> Augmentation:
    """What suits the images, mirrored only where the backbone was seen to keep the class under it."""
    from graft.images.views import natural, suited

    every = np.arange(len(given.targets))
    rows, parts = spread(every), _parts(given.targets, _twins(probe.pixels))
    natural_ones = natural(probe.pixels, given.targets, every) if parts[rows].any() else ()
    allowed = tuple(
        name
        for name in natural_ones
        if asked(
            probe.trunk,
            probe.pixels,
            probe.rows,
            given.targets,
            rows=rows,
            parts=parts[rows],
            tap=probe.tap.index,
            symmetry=name,
            key=probe.key,
            store=store,
            compute=wish.compute,
            folder=folder,
            reach=reach_of(probe.trunk.entry, folder),
        ).verdict
        == "kept"
    )
    return replace(suited(probe.pixels, given.targets, every), symmetries=allowed)


def _parts(targets: Int64[np.ndarray, " n"], groups: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
    """A number from 0 to 4 for every image: twins alike, and the images of a class dealt out one by one.

    All are 0 where no class has two images that differ, so that nothing can be asked.
    """
    firsts = np.unique(groups, return_index=True)[1]
    dealt = np.zeros(groups.max() + 1, np.int64)
    for label in np.unique(targets):
        own = firsts[targets[firsts] == label]
        dealt[groups[own]] = np.arange(len(own)) % PARTS
    return dealt[groups]


def refuse_freeze(probe: Probe, wish: Wish, folder: WeightsFolder | None) -> None:
    """Raise ParameterError for a `freeze` that the network does not know at any tap, although nothing is trained."""
    if wish.freeze not in ("all", "none"):
        opened = reopened(probe.trunk, folder=folder, reach=reach_of(probe.trunk.entry, folder))
        _freeze(opened, replace(probe, tap=probe.trunk.taps[-1]), wish)


def _freeze(opened: Opened, probe: Probe, wish: Wish) -> Freeze:
    from graft.backbones.layers import frozen_by, layers_of

    trunk, size = opened.trunk, probe.trunk.geometry.size
    stages = [tap.name for tap in opened.taps[: probe.tap.index + 1]]
    layers = layers_of(trunk.network, stages=stages, size=size, channels=len(trunk.mean))
    try:
        return frozen_by(wish.freeze, layers, stages, given=f"freeze={wish.freeze!r}")
    except SettingsError as error:
        raise ParameterError(str(error)) from None


def scratch_model(given: Given, wish: Wish) -> Model:
    import torch

    from graft.backbones.scratch import design
    from graft.learning.training import TrainingSettings, train
    from graft.studies.scratching import scratch_graph

    made, geometry = design(_described(given, wish), development=len(given.targets))
    if wish.size is not None:
        made, geometry = replace(made, size=wish.size), replace(geometry, size=wish.size)
    if wish.fit != "auto":
        geometry = replace(geometry, fit=fit_of(wish.fit))
    pixels = pixels_of(given.items, geometry, given.span, threads=wish.compute.threads)
    settings = TrainingSettings(balance=LOSSES[wish.balance], mixup=wish.mixup, **_given_numbers(wish))
    if wish.lr is not None:
        settings = replace(settings, learning_rate=wish.lr)
    trained = _last(
        train(
            pixels,
            given.targets,
            np.arange(len(given.targets)),
            groups=_twins(pixels),
            design=made,
            settings=settings,
            compute=wish.compute,
            seed=wish.seed,
        )
    )
    graph, output, weight, bias = scratch_graph(trained)
    check = some_of(pixels)
    with torch.inference_mode():
        logits = trained.network()(torch.from_numpy(check).permute(0, 3, 1, 2).float() / 255)
    return Model(
        graph=assembled(graph, output, weight=weight, bias=bias, unit_length=False).SerializeToString(),
        geometry=geometry,
        backbone="small_cnn",
        tap="head",
        strategy="scratch",
        weights={
            "name": "small_cnn",
            "source": "random weights",
            "licence": "Apache-2.0",
            "digest": f"random:{wish.seed}",
        },
        features=weight.shape[0],
        tried={},
        check=check,
        expected=softmax(logits.numpy(), axis=1),
        frozen=None,
    )


def _described(given: Given, wish: Wish) -> Dataset:
    """What the design of the small network wants to know of the images; no files stand behind it."""
    wide, high = sides_of(given.items, given.span)
    count = len(given.targets)
    return Dataset(
        root=Path(),
        images=(),
        classes=tuple(str(number) for number in range(given.classes)),
        targets=given.targets,
        groups=np.arange(count),
        splits=(),
        widths=wide,
        heights=high,
        grey=np.full(count, wish.input == "gray"),
        issues=(),
    )


def _twins(pixels: UInt8[np.ndarray, "n h w c"]) -> Int64[np.ndarray, " n"]:
    """A number per image, the same for equal pixels: twins are not divided between learning and stopping."""
    digests = [hashlib.sha256(np.ascontiguousarray(image).data).digest() for image in pixels]
    numbers = {digest: number for number, digest in enumerate(dict.fromkeys(digests))}
    return np.array([numbers[digest] for digest in digests], np.int64)


def _last(work: Generator[Any, None, Returned]) -> Returned:
    """What a generator returns in the end."""
    while True:
        try:
            next(work)
        except StopIteration as finished:
            return finished.value
