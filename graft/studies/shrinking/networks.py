"""The float32 network that a smaller one is made from: of a candidate, and of one fold where the fold has trained it.

In: a trial and a fold. Out: its graph with folded constants and the output `graft_reading`, the geometry it reads, and
its head. A frozen network is the same for all folds and has no head of its own: the head is fitted to
whatever the smaller network puts out. A fine-tuned one, and one from random weights, is that of the fold, with the head
that was trained with it (`graft.studies.tuning.kept_states`).

Cost: about 3 s for a trained network, which is opened, exported and folded; a frozen one comes from the cache.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import ModelProto

from graft.backbones.graph import tap_output
from graft.deploy.assemble import assembled
from graft.deploy.quantise import prepared
from graft.deploy.reading import READING, read_at
from graft.errors import BundleError
from graft.images.dataset import Preprocess
from graft.learning.heads import Head
from graft.store import content_key
from graft.studies.beside import opened_as_read, trunk_of_trial
from graft.studies.frame import Frame, Trial
from graft.studies.probe import samples_of
from graft.studies.tuning.kept_states import kept_trained, kept_tuned

if TYPE_CHECKING:
    from graft.learning.finetune import Tuned
    from graft.learning.trained import Trained
else:
    Trained = Tuned = Any

TUNED = ("partial", "full")


@dataclass(frozen=True, slots=True, eq=False)
class Network:
    """`model` has the output `graft_reading`; `head` is None where it must be fitted to what a variant puts out."""

    model: ModelProto
    geometry: Preprocess
    head: Head | None = None


def network_of(frame: Frame, base: Trial, fold: int) -> Network:
    """The network of a trial on a fold. Raises BundleError where the fold's weights were not kept."""
    if base.recipe.strategy == "frozen":
        return Network(prepared_trunk(frame, base), base.recipe.geometry)
    if base.recipe.strategy in TUNED:
        tuned = kept_tuned(frame, base.recipe.key, fold)
        if tuned is not None:
            return network_tuned(frame, base, tuned)
    else:
        trained = kept_trained(frame, base.recipe.key, fold)
        if trained is not None:
            return network_trained(frame, trained, base.recipe.geometry)
    raise BundleError(f"the weights of fold {fold + 1} were not kept")


def prepared_trunk(frame: Frame, trial: Trial) -> ModelProto:
    """The trunk of a frozen trial up to the trial's tap, folded; kept in the cache."""
    trunk = trunk_of_trial(frame, trial)
    assert trunk.graph is not None
    output = tap_output(trial.tap_index)
    key = content_key("prepared.v1", trunk.key, output)
    stored = frame.store.get(key)
    if stored is None:
        made = prepared(read_at(onnx.load(str(trunk.graph)), output), samples_of(frame, trunk.geometry))
        with frame.store.writing(key) as place:
            (place / "prepared.onnx").write_bytes(made.SerializeToString())
        stored = frame.store.get(key)
        assert stored is not None
    return onnx.load(str(stored.file("prepared.onnx")))


def network_tuned(frame: Frame, base: Trial, tuned: Tuned) -> Network:
    """A fine-tuned network with its new weights."""
    from graft.backbones.export import export

    opened = opened_as_read(frame, base, trunk_of_trial(frame, base))
    opened.trunk.network.load_state_dict(tuned.state, strict=False)
    geometry = base.recipe.geometry
    graph = onnx.load_from_string(export(opened, size=geometry.size))
    made = prepared(read_at(graph, tap_output(base.tap_index)), samples_of(frame, geometry))
    return Network(made, geometry, tuned.head)


def network_trained(frame: Frame, trained: Trained, geometry: Preprocess) -> Network:
    """The small CNN: from scratch, or a student."""
    from graft.studies.scratching import scratch_graph

    graph, output, weight, bias = scratch_graph(trained)
    made = prepared(read_at(graph, output), samples_of(frame, geometry))
    head = Head(np.ascontiguousarray(weight), bias, unit_length=False)
    return Network(made, geometry, head)


def with_head(model: ModelProto, head: Head) -> ModelProto:
    """A graph with the output `graft_reading`, and its head behind it."""
    return assembled(
        model,
        READING,
        weight=head.weight,
        bias=head.bias,
        unit_length=head.unit_length,
        hidden=head.hidden,
    )
