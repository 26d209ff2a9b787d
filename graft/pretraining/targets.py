"""What the teacher says about the views, asked once and kept in the cache.

In: a teacher from the catalogue and pieces of rounds. Out: its pooled outputs at every tap and its logits, float16, as
memory maps. The teacher runs as every backbone does: on OpenVINO where that agrees with torch, otherwise on torch, with
autocast on a GPU. Entries are keyed by the teacher, the views and the piece, so whatever is trained later from the same
teacher on the same views asks nothing.

Cost: about 1,500 views of 96 px a second for MobileNetV2 on two cores with bfloat16; 5.5 kB a view on disk. Epochs
beyond the space return to the views of the first rounds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float16, UInt8
from torch import Tensor

from graft.backbones.activations import openvino_batches
from graft.backbones.catalogue import Entry
from graft.backbones.hub import Reach
from graft.backbones.taps import Trunk
from graft.backbones.trunks import TrunkFile, reopened, trunk_of
from graft.backbones.weights import WeightsFolder
from graft.compute import Compute
from graft.errors import BackboneError
from graft.images.dataset import Preprocess
from graft.pretraining.rounds import Piece, Rounds
from graft.store import Store, content_key

TORCH_BATCH = 256
SAMPLES = 8

Rows = list[Float16[np.ndarray, "m _"]]


@dataclass(frozen=True, slots=True, eq=False)
class Teacher:
    """An opened teacher; `module` runs it where OpenVINO does not."""

    trunk: TrunkFile
    module: Trunk | None
    compute: Compute

    @property
    def entry(self) -> Entry:
        """Its row of the catalogue."""
        return self.trunk.entry

    @property
    def widths(self) -> tuple[int, ...]:
        """Features of each tap, from the input to the embedding."""
        return tuple(tap.features for tap in self.trunk.taps)

    @property
    def has_logits(self) -> bool:
        """Whether its classifier's logits follow the taps."""
        return self.trunk.has_logits

    def answers(self, views: UInt8[Tensor, "m v v 3"]) -> Rows:
        """Its outputs for all views. Raises BackboneError where they are not finite in float16."""
        parts = list(self._torch(views) if self.module is not None else self._openvino(views))
        rows = [np.concatenate(part) for part in zip(*parts, strict=True)]
        if not all(np.isfinite(part).all() for part in rows):
            raise BackboneError(
                f"The teacher {self.entry.name} puts out numbers too large to keep; choose another one (graft models)."
            )
        return rows

    def _openvino(self, views: UInt8[Tensor, "m v v 3"]) -> Iterator[Rows]:
        graph, runner = self.trunk.graph, self.trunk.runner
        assert graph is not None
        for _, rows in openvino_batches(graph, views.numpy(), runner=runner, threads=self.compute.threads):
            yield [part.astype(np.float16) for part in rows]

    @torch.inference_mode()
    def _torch(self, views: UInt8[Tensor, "m v v 3"]) -> Iterator[Rows]:
        assert self.module is not None
        for batch in views.split(TORCH_BATCH):
            with torch.autocast(self.compute.device, torch.bfloat16, enabled=self.compute.bf16):
                rows = self.module(batch)
            yield [part.to(torch.float16).cpu().numpy() for part in rows]


def open_teacher(
    entry: Entry,
    samples: UInt8[np.ndarray, "m v v 3"],
    *,
    folder: WeightsFolder | None,
    reach: Reach,
    store: Store,
    compute: Compute,
) -> Teacher:
    """The teacher for views of the samples' size, on which its runner is checked. Raises BackboneError."""
    geometry = Preprocess(samples.shape[1], channels=3)
    trunk = trunk_of(
        entry, geometry, folder=folder, reach=reach, store=store, samples=samples[:SAMPLES], compute=compute
    )
    if compute.device == "cpu" and trunk.runner != "torch" and trunk.graph is not None:
        return Teacher(trunk, None, compute)
    module = reopened(trunk, folder=folder, reach=reach).trunk
    return Teacher(trunk, module.to(compute.device).to(memory_format=torch.channels_last), compute)


def targets_of(teacher: Teacher, rounds: Rounds, number: int, index: int, piece: Piece, store: Store) -> Rows:
    """The teacher's answers to a piece, as memory maps from the cache."""
    return _kept(teacher, piece.pixels, (rounds.key, number, index, rounds.per_piece), store)


def held_targets(teacher: Teacher, rounds: Rounds, store: Store) -> Rows:
    """The teacher's answers to the held-out images."""
    views = rounds.held_images().to(teacher.compute.device)
    return _kept(teacher, views, (rounds.key, "held"), store)


def affordable_rounds(teacher: Teacher, rounds: Rounds, space: int, logits: int) -> int:
    """How many rounds' answers fit into `space` bytes, at least one."""
    bytes_per_view = 2 * (sum(teacher.widths) + logits)
    return max(1, space // (bytes_per_view * rounds.steps * rounds.batch))


def _kept(teacher: Teacher, views: UInt8[Tensor, "m v v 3"], what: tuple[object, ...], store: Store) -> Rows:
    key = content_key("targets.v1", teacher.trunk.key, teacher.trunk.runner, what)
    names = [f"output{index}" for index in range(len(teacher.trunk.outputs))]
    stored = store.get(key)
    if stored is None:
        stored = store.put(key, None, **dict(zip(names, teacher.answers(views), strict=True)))
    return [stored.array(name) for name in names]
