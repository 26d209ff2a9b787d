"""A network that was trained from random weights: its weights, and what it says about images.

In: pixels and rows. Out: logits, or calibrated probabilities. Cost: a third of training on as many images.

Not covered: the training (`graft.learning.training`); the packed model, which needs no torch (`graft.deploy`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32, Int64, UInt8
from torch import Tensor

from graft.backbones.scratch import ScratchDesign, ScratchNet, build
from graft.compute import Compute
from graft.learning.loop import Stopped, at_work


@dataclass(frozen=True, slots=True, eq=False)
class Trained:
    """The best weights; `network` opens them. The temperature is already part of the head's weights.

    `best_epoch` and `epochs_run` count through all generations, `needed` are the epochs of the one that was kept.
    """

    design: ScratchDesign
    state: dict[str, Tensor]
    temperature: float
    best_epoch: int
    epochs_run: int
    stopped: Stopped
    needed: int
    generation: int = 1

    def network(self) -> ScratchNet:
        """The trained network in eval mode; the softmax of its output is calibrated."""
        network = build(self.design, seed=0)
        network.load_state_dict(self.state)
        return network.eval()


def predict(
    trained: Trained,
    pixels: UInt8[np.ndarray, "n h w c"],
    rows: Int64[np.ndarray, " m"],
    *,
    compute: Compute,
) -> Float32[np.ndarray, "m k"]:
    """Calibrated probabilities of the classes for `rows`, in float32."""
    network = trained.network().to(compute.device)
    return torch.softmax(logits_of(network, pixels, rows, compute), dim=1).numpy()


def logits_of(
    network: ScratchNet,
    pixels: UInt8[np.ndarray, "n h w c"],
    rows: Int64[np.ndarray, " m"],
    compute: Compute,
    *,
    bf16: bool = False,
) -> Float32[Tensor, "m k"]:
    """What the network says about `rows` in eval mode and float32, or bfloat16, which is enough to watch it."""
    parts = [torch.empty(0, network.head.out_features)]
    autocast = torch.autocast(compute.device, torch.bfloat16, enabled=bf16)
    with torch.inference_mode(), at_work(compute), autocast:
        for some in np.array_split(rows, max(1, math.ceil(len(rows) / 64))):
            images = torch.from_numpy(pixels[some]).permute(0, 3, 1, 2).to(compute.device)
            parts.append(network(images.float() / 255).float().cpu())
    return torch.cat(parts)


def calibrated(network: ScratchNet, temperature: float) -> dict[str, Tensor]:
    """The weights on the CPU, with the temperature divided out of the head."""
    state = {name: value.detach().cpu().clone() for name, value in network.state_dict().items()}
    state["head.weight"] /= temperature
    state["head.bias"] /= temperature
    return state
