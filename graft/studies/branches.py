"""What the packed model of a candidate costs, and one model of several fitted ones.

In: a candidate, or its fitted members. Out: parameters, bytes and latency of the graph that will be packed (with weights
that do not matter), and the one `Fitted` whose answer is the mean. Cost: an export, and 0.1 s of latency; kept by content.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from jaxtyping import Float32, Int64

from graft.backbones.graph import parameters, tap_output
from graft.compute import cpu_name
from graft.deploy.assemble import assembled
from graft.deploy.branches import averaged
from graft.judging.cost import latency_ms
from graft.store import content_key
from graft.studies.beside import trunk_of_trial
from graft.studies.finish import Fitted
from graft.studies.frame import Frame, Trial
from graft.studies.probe import LATENCY_THREADS
from graft.studies.single.candidate import Candidate


@dataclass(frozen=True, slots=True)
class ModelCosts:
    """Of the packed model."""

    parameters: int
    bytes: int
    latency_ms: float


def joined(fitted: Sequence[Fitted], *, weights: Sequence[float] | None = None) -> Fitted:
    """The one fitted run, or the mean of all as one model; with `weights` (of sum one), the weighted mean.

    The model has embeddings of rows in the cache only if all its members have.
    """
    if len(fitted) == 1:
        return fitted[0]
    model = averaged([onnx.load_from_string(one.model) for one in fitted], weights=weights)
    shares = np.full(len(fitted), 1 / len(fitted)) if weights is None else np.array(weights)

    def mean(answers: Sequence[np.ndarray]) -> Float32[np.ndarray, "m k"]:
        return np.tensordot(shares.astype(np.float32), np.stack(answers), axes=1).astype(np.float32)

    def torch_probabilities(images: np.ndarray) -> Float32[np.ndarray, "m k"]:
        return mean([one.torch_probabilities(images) for one in fitted])

    cached = [one.embeddings for one in fitted if one.embeddings is not None]

    def embeddings(rows: Int64[np.ndarray, " m"]) -> Float32[np.ndarray, "m d"]:
        sides = np.concatenate([one(rows) for one in cached], axis=1)
        return (sides / np.sqrt(len(cached))).astype(np.float32)

    return Fitted(
        model.SerializeToString(),
        fitted[0].geometry,
        torch_probabilities,
        embeddings if len(cached) == len(fitted) else None,
    )


def together_costs(frame: Frame, members: Sequence[Trial]) -> ModelCosts:
    """What trials cost that are packed as one model.

    Of frozen ones, what they have in common counts once; all others are added up, which is an upper bound.
    """
    frozen = [trial for trial in members if trial.recipe.strategy == "frozen"]
    summed = [trial for trial in members if trial.recipe.strategy != "frozen" or len(frozen) < 2]
    found = _frozen_costs(frame, frozen) if len(frozen) > 1 else ModelCosts(0, 0, 0.0)
    return ModelCosts(
        found.parameters + sum(trial.parameters for trial in summed),
        found.bytes + sum(trial.model_bytes or 0 for trial in summed),
        found.latency_ms + float(sum(trial.latency_ms or 0.0 for trial in summed)),
    )


def _frozen_costs(frame: Frame, members: Sequence[Trial]) -> ModelCosts:
    keys = [trial.recipe.key for trial in members]
    key = content_key("ensemble-cost.v1", keys, frame.classes, LATENCY_THREADS, cpu_name())
    stored = frame.store.get(key)
    if stored is None:
        models = []
        for number, trial in enumerate(members):
            trunk = trunk_of_trial(frame, trial)
            assert trunk.graph is not None
            shape = trunk.taps[trial.tap_index].features, frame.classes
            weight = np.random.default_rng(number).normal(size=shape).astype(np.float32)
            model = assembled(
                onnx.load(str(trunk.graph)),
                tap_output(trial.tap_index),
                weight=weight,
                bias=weight[0],
                unit_length=True,
            )
            models.append(model)
        shares = [(2.0 + number) / 100 for number in range(len(models))]  # all different, as they may be
        stored = frame.store.put(key, _measured(averaged(models, weights=shares)))
    return _of(stored.facts)


def _measured(model: onnx.ModelProto) -> dict[str, int | float]:
    content = model.SerializeToString()
    latency = latency_ms(content, threads=LATENCY_THREADS, seconds=0.06)
    return {"parameters": parameters(model), "bytes": len(content), "latency_ms": latency}


def _of(facts: Mapping[str, Any]) -> ModelCosts:
    return ModelCosts(int(facts["parameters"]), int(facts["bytes"]), float(facts["latency_ms"]))


def model_costs(frame: Frame, candidate: Candidate) -> ModelCosts:
    """What the packed model will cost."""
    key = content_key(
        "train-cost.v1",
        candidate.recipe.key,
        frame.classes,
        LATENCY_THREADS,
        cpu_name(),
        frame.compute.device,
    )
    stored = frame.store.get(key)
    if stored is None:
        models = [_dummy(frame, candidate, run) for run in range(candidate.page.ensemble)]
        model = averaged(models) if len(models) > 1 else models[0]
        stored = frame.store.put(key, _measured(model))
    return _of(stored.facts)


def _dummy(frame: Frame, candidate: Candidate, run: int) -> onnx.ModelProto:
    """The graph with a head of random weights; where something learns, every run has weights of its own."""
    import torch

    from graft.backbones.export import export
    from graft.learning.heads import HeadKind, fresh_head

    opened = candidate.as_read(frame, run)
    settings = candidate.settings
    if candidate.trunk is not None and run:
        with torch.no_grad():
            for name, weight in opened.trunk.network.named_parameters():
                if name not in candidate.frozen and settings.cut != candidate.top.name:
                    weight.mul_(1 + 0.001 * run)
    graph = onnx.load_from_string(export(opened, size=candidate.geometry.size))
    kind: HeadKind = "mlp" if settings.head == "mlp" else "linear"
    head = fresh_head(
        kind, candidate.tap.features, classes=frame.classes, unit_length=settings.unit_length, seed=run
    )
    return assembled(
        graph,
        tap_output(candidate.tap.index),
        weight=head.weight,
        bias=head.bias,
        unit_length=head.unit_length,
        hidden=head.hidden,
    )
