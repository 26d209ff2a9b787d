"""What a network costs to train from any depth, without running it: sizes are counted on torch's `meta` device.

In: a catalogue row and the stages where it may be cut. Out: multiply-adds and output elements above each cut, and from
them the seconds an image takes. Elements count beside multiply-adds because a depthwise convolution moves much and
multiplies little. Deterministic, so that what a study plans with it does not hang on a clock. Cost: about half a second.

The three rates were fitted to measured trainings on two quiet cores with bfloat16, in images a second (the formula's in
parentheses): MobileNetV2 97 (87), its last two stages 291 (246), the last 654 (637); MobileNetV1 95 (84), at half width
and 160 px 392 (377), its last stage 3,890 (3,791); SqueezeNet 198 (167), ResNet-18 65 (50), ResNet-50 24 (20). The third is
a step's own cost: calls, and the optimiser, which a short tail spends most of its time with. Activations other than ReLU
count on top: EfficientNet-B0 41 (38; without 86), MobileNetV3 large 88 (91; 136), ConvNeXt atto 69 (57; 104).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from graft.backbones.catalogue import Entry
from graft.backbones.taps import CLASSIFIER_INPUT
from graft.backbones.weights import build
from graft.compute import Compute

SECONDS_PER_ELEMENT = 1.2e-9  # forward and backward, on two cores with bfloat16
SECONDS_PER_MULTIPLY_ADD = 9.0e-12
SECONDS_PER_IMAGE = 1.2e-4  # of a step, which costs about 10 ms whatever the network
FORWARD_SHARE = 1 / 3
WITHOUT_BF16 = 1.6
SECONDS_PER_VIEW = 1.2e-3  # to make a view of 224 x 224 on one core
SMOOTH = (
    "SiLU",
    "Swish",
    "Hardswish",
    "HardSwish",
    "HardSwishMe",
    "GELU",
    "GELUTanh",
    "LayerNorm",
    "LayerNorm2d",
)
SMOOTH_TIMES = 2.0  # what these cost beside an element that a convolution puts out; a ReLU is next to nothing
CARD = {"cuda": 1 / 60, "mps": 1 / 5}


@dataclass(frozen=True, slots=True)
class Effort:
    """One image, forward: `elements` that convolutions and linear layers put out, with those of smooth activations on top,
    and their `multiply_adds`."""

    elements: float
    multiply_adds: float

    def minus(self, other: Effort) -> Effort:
        """What is left of this without the other."""
        return Effort(self.elements - other.elements, self.multiply_adds - other.multiply_adds)

    def training_seconds(self, compute: Compute) -> float:
        """For one image forward and backward, its share of the step included."""
        return SECONDS_PER_IMAGE + self._seconds(compute)

    def forward_seconds(self, compute: Compute) -> float:
        """For one image forward."""
        return FORWARD_SHARE * self._seconds(compute)

    def _seconds(self, compute: Compute) -> float:
        seconds = self.elements * SECONDS_PER_ELEMENT + self.multiply_adds * SECONDS_PER_MULTIPLY_ADD
        if compute.device != "cpu":
            return seconds * CARD.get(compute.device, 1.0)
        return seconds * (2 / compute.threads) ** 0.8 * (1.0 if compute.bf16 else WITHOUT_BF16)


def efforts(entry: Entry, *, size: int, ends: Sequence[str]) -> dict[str, Effort]:
    """The effort from the input up to the end of each of the modules `ends` (`head` is the whole network).

    Raises BackboneError if the network is unknown.
    """
    with torch.device("meta"):
        network = build(entry).eval()
        images = torch.zeros(1, len(entry.input.mean), size, size)
    counted = _Counted()
    for name, module in network.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.register_forward_hook(counted.add)
        if type(module).__name__ in SMOOTH:
            module.register_forward_hook(counted.smooth)
        if name in ends:
            module.register_forward_hook(partial(counted.note, name))
    with torch.no_grad():
        network(images)
    return {name: counted.at.get(name, counted.total) for name in ends if name != CLASSIFIER_INPUT} | {
        CLASSIFIER_INPUT: counted.total
    }


def view_seconds(size: int, compute: Compute) -> float:
    """To make one random view of an image of this side."""
    return SECONDS_PER_VIEW * (size / 224) ** 2 / min(compute.threads, 2)


class _Counted:
    """Sums over the forward pass so far, noted where a stage ends."""

    def __init__(self) -> None:
        self.total = Effort(0.0, 0.0)
        self.at: dict[str, Effort] = {}

    def add(self, module: nn.Module, _inputs: Any, output: Tensor) -> None:
        weight = module.weight
        assert isinstance(weight, Tensor)
        elements = output.numel()
        self.total = Effort(
            self.total.elements + elements,
            self.total.multiply_adds + elements * weight[0].numel(),
        )

    def smooth(self, _module: nn.Module, _inputs: Any, output: Tensor) -> None:
        self.total = replace(self.total, elements=self.total.elements + SMOOTH_TIMES * output.numel())

    def note(self, name: str, _module: nn.Module, _inputs: Any, _output: Any) -> None:
        self.at[name] = self.total
