"""A tiny network with stages, images whose class it can learn, and what fine-tuning wants of both."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import timm
import torch
from torch import nn

from graft.backbones.catalogue import Entry, InputSpec
from graft.backbones.opening import Opened, tapped
from graft.compute import Compute
from graft.learning.cutting import Cut, cut_at

CPU = Compute("cpu", False, 1)
SIZE = 32


def entry(architecture: str) -> Entry:
    """A catalogue row for a network with random weights."""
    spec = InputSpec(SIZE, (0.5,) * 3, (0.5,) * 3, "bicubic", 1.0, 3)
    return Entry(
        name=f"{architecture}.made",
        library="timm",
        architecture=architecture,
        arguments=(),
        family="made",
        pretraining="none",
        source="made for a test",
        licence="Apache-2.0",
        parameters=None,
        bytes=None,
        gmacs=None,
        input=spec,
        top1=None,
        top5=None,
        published="",
        stages=(),
    )


def opened(architecture: str = "test_resnet", *, channels: int = 3) -> Opened:
    """The network with seeded random weights and the statistics of the stripes in its batch norms."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        network = timm.create_model(architecture, pretrained=False)
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 1.0
        with torch.no_grad():
            network.train()(images(stripes(24)[0], 24) * 2 - 1)
    return tapped(network.eval(), entry(architecture), channels=channels, size=SIZE)


def stripes(count: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Noisy pictures with lines across (class 0) or along (class 1), uint8 `[n, 32, 32, 3]`."""
    random = np.random.default_rng(0)
    pixels = random.integers(90, 130, (count, SIZE, SIZE, 3), dtype=np.uint8)
    targets = np.arange(count) % 2
    for line in range(2, SIZE, 6):
        pixels[targets == 0, line] += np.uint8(25)
        pixels[targets == 1, :, line] += np.uint8(25)
    return pixels, targets


def images(pixels: np.ndarray, count: int = 4) -> torch.Tensor:
    """The first pictures in 0..1, channels first."""
    return torch.from_numpy(pixels[:count]).permute(0, 3, 1, 2).float() / 255


@dataclass(frozen=True)
class Made:
    """A cut network with the pictures and the frozen features at its tap."""

    cutting: Cut
    pixels: np.ndarray
    targets: np.ndarray
    features: np.ndarray


def made(
    cut: str,
    *,
    architecture: str = "test_resnet",
    tap: str = "layer4",
    frozen: frozenset[str] = frozenset(),
) -> Made:
    """The network cut there; above that, the weights named by `frozen` do not learn."""
    pixels, targets = stripes()
    with torch.inference_mode():
        rows = opened(architecture).trunk(torch.from_numpy(pixels))
    place = [one.name for one in opened(architecture).taps].index(tap)
    cutting = cut_at(
        opened(architecture),
        architecture=architecture,
        tap=tap,
        cut=cut,
        images=images(pixels),
        frozen=frozen,
    )
    return Made(cutting, pixels, targets, rows[place].numpy())
