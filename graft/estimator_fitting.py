"""From pictures and class numbers to a fitted model, by the same steps as a study: probe, head, tuning, graph.

In: the given, the targets and a `Wish`. Out: a `Model`: one ONNX graph, exactly what a bundle holds, with what is
needed to pack and verify it. Nothing but what is given is read: backbone, depth and fit are chosen by the log loss of
the closed-form head's exact leave-one-out predictions. What a backbone puts out is kept in the cache by content, so a
second fit on the same images (a grid search over taps) learns only the head.

Cost: the probe of one backbone on 1,000 photos at 224 px takes 2 to 4 s on two cores, tuning about the same per epoch
at 50 images a second.

Not covered: budgets, folds, intervals, the choice of the cheapest of what is tied: that is `graft.study`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from jaxtyping import Float32
from threadpoolctl import threadpool_limits

from graft.backbones.activations import extracted
from graft.backbones.catalogue import Entry, find, stratified
from graft.backbones.graph import tap_output
from graft.backbones.inputs import read_as
from graft.backbones.trunks import TapRow, TrunkFile, torch_rows, trunk_of
from graft.backbones.weights import WeightsFolder, embedded, folder_from, held, shelf
from graft.deploy.assemble import assembled
from graft.errors import BackboneError
from graft.estimator_input import ParameterError, pixels_of
from graft.estimator_records import Fit, Given, Model, Probe, Wish, fit_of, reach_of, some_of, weights_of
from graft.estimator_training import refuse_freeze, scratch_model, tuned_model
from graft.images.dataset import Preprocess
from graft.learning import frozen_head, ridge
from graft.store import Store, content_key

PROBED = 4  # backbones at most where none was named
WEIGHTINGS: dict[str, tuple[ridge.Weighting, ...]] = {
    "auto": ridge.BALANCES,
    "none": ("none",),
    "root": ("root",),
    "full": ("full",),
}
AS_TRAINED: dict[str, tuple[ridge.Weighting, ...]] = {
    "weights": ("none", "root", "full"),
    "sampler": ("full",),
    "logit": ("logit",),
}
"""The words of `graft train`, where a freeze leaves nothing but the head."""


def fitted(given: Given, wish: Wish) -> Model:
    """Learn. Raises SettingsError, BackboneError or DatasetError with a sentence."""
    with threadpool_limits(wish.compute.threads):
        if wish.strategy == "scratch":
            return scratch_model(given, wish)
        folder, store = folder_from(wish.weights), Store()
        chosen, tried = _probe(given, wish, folder, store)
        if wish.strategy == "finetuned":
            model = tuned_model(chosen, given, wish, folder, store)
            if model is not None:
                return replace(model, tried=tried)
        refuse_freeze(chosen, wish, folder)
        return replace(_frozen(chosen, given, wish), tried=tried)


def expected_of(model: Model, weights: str | Path | None) -> Float32[np.ndarray, "m k"]:
    """What torch in float32 says of the check images: kept, or asked of the network opened again."""
    if model.expected is not None:
        return model.expected
    assert model.frozen is not None
    trunk, tap, head = model.frozen
    folder = folder_from(weights)
    reach = reach_of(trunk.entry, folder)
    return head.probabilities(torch_rows(trunk, tap, model.check, store=Store(), folder=folder, reach=reach))


def _probe(
    given: Given, wish: Wish, folder: WeightsFolder | None, store: Store
) -> tuple[Probe, dict[tuple[str, str, str], float]]:
    """The best tap of the best backbone in the best fit, among those that the wish leaves open."""
    best: tuple[float, Probe] | None = None
    tried: dict[tuple[str, str, str], float] = {}
    fits: Sequence[Fit] = ("crop", "squash") if wish.fit == "auto" else (fit_of(wish.fit),)
    for entry in _candidates(wish, folder):
        found: dict[Fit, float] = {}
        for fit in fits:
            for probe in _taps(given, wish, entry, fit, folder, store):
                loss = _loss(probe, given)
                tried[entry.name, fit, probe.tap.name] = loss
                found[fit] = min(loss, found.get(fit, np.inf))
                if best is None or loss < best[0]:
                    best = loss, probe
        fits = (min(found, key=lambda fit: found[fit]),)  # the first backbone decides, as in a study
    assert best is not None
    return best[1], tried


def _candidates(wish: Wish, folder: WeightsFolder | None) -> list[Entry]:
    if wish.backbone != "auto":
        return [find(wish.backbone, shelf(folder))]
    own = embedded()
    within = list(own.entries) if own else []
    if folder is not None:
        chosen = [entry for entry, _ in stratified(list(held(folder)), most=PROBED)]
        return [*(entry for entry in chosen if entry not in within), *within]
    if not within:
        raise BackboneError(
            "This copy of Graft has no backbone of its own. Name one with backbone=, or a folder with weights=."
        )
    return within


def _taps(
    given: Given, wish: Wish, entry: Entry, fit: Fit, folder: WeightsFolder | None, store: Store
) -> list[Probe]:
    """What the backbone puts out at the taps that the wish leaves open."""
    plain = Preprocess(
        size=wish.size or entry.input.size,
        fit=fit,
        crop_share=entry.input.crop if fit == "crop" else 1.0,
        interpolation="bilinear" if entry.input.interpolation == "bilinear" else "bicubic",
        channels=3,
    )
    geometry, look = read_as(wish.input, plain)
    pixels = pixels_of(given.items, geometry, given.span, threads=wish.compute.threads)
    key = content_key("estimator-pixels", hashlib.sha256(pixels.data).hexdigest(), list(pixels.shape))
    reach = reach_of(entry, folder)
    trunk = trunk_of(
        entry,
        geometry,
        folder=folder,
        reach=reach,
        store=store,
        samples=some_of(pixels),
        compute=wish.compute,
        look=look,
    )
    if trunk.graph is None:
        raise BackboneError(f"{trunk.notice} An estimator needs its graph; choose another backbone.")
    work = extracted(trunk, pixels, key, store=store, compute=wish.compute, folder=folder, reach=reach)
    return [
        Probe(trunk, tap, pixels, key, np.asarray(work.tap(tap.index), np.float32))
        for tap in _open_taps(trunk, wish)
    ]


def _open_taps(trunk: TrunkFile, wish: Wish) -> Sequence[TapRow]:
    """The taps to choose from: where a part is frozen to be trained behind, those above it."""
    names, wanted = [tap.name for tap in trunk.taps], wish.tap
    if wanted == "auto":
        frozen = wish.freeze if wish.strategy == "finetuned" else "none"
        least = min(names.index(frozen) + 1, len(names) - 1) if frozen in names else 0
        least = -1 if frozen.isdigit() and int(frozen) else least
        return trunk.taps[least:]
    if isinstance(wanted, (int, np.integer)) and -len(names) <= wanted < len(names):
        return [trunk.taps[int(wanted)]]
    if wanted in names:
        return [trunk.taps[names.index(str(wanted))]]
    raise ParameterError(
        f"tap={wanted!r}: {trunk.entry.name} can be read at {', '.join(names)} (or by number, {-len(names)} to "
        f"{len(names) - 1}); 'auto' chooses."
    )


def _loss(probe: Probe, given: Given) -> float:
    answers = ridge.leave_one_out(probe.rows, given.targets, classes=given.classes)
    return ridge.log_loss(answers, given.targets)


def _frozen(probe: Probe, given: Given, wish: Wish) -> Model:
    balances = (WEIGHTINGS | AS_TRAINED)[wish.balance]
    head = frozen_head.fit(probe.rows, given.targets, classes=given.classes, balances=balances)
    graph = assembled(
        onnx.load(str(probe.trunk.graph)),
        tap_output(probe.tap.index),
        weight=head.weight,
        bias=head.bias,
        unit_length=True,
    )
    return Model(
        graph=graph.SerializeToString(),
        geometry=probe.trunk.geometry,
        backbone=probe.trunk.entry.name,
        tap=probe.tap.name,
        strategy="frozen",
        weights=weights_of(probe.trunk),
        features=probe.tap.features,
        tried={},
        check=some_of(probe.pixels),
        expected=None,
        frozen=(probe.trunk, probe.tap.index, head),
    )
