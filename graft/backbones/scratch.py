"""A small residual network that starts from random weights: the rival that every transfer has to beat.

In: what the images are like (how many, how large, grey or colour, how many classes). Out: a frozen `ScratchDesign`
with the geometry that goes with it, and from that the network: a stem, four stages of one or two residual blocks,
average and maximum pooling, a linear head. It has 0.5 to 0.9 million parameters and uses only convolution, batch
normalisation, ReLU and pooling, so that it exports to ONNX and survives int8.

Cost: about 35 million multiply-adds for an image of 96 px. Dense 3x3 convolutions were chosen because on
processors with wide vector units they train 5 to 10 times faster than inverted residuals of the same accuracy; and a stem
that shrinks the image four times leaves room for twice the channels in the same time.

Not covered: training (`graft.learning.training`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from graft.images.dataset import Dataset, Preprocess
from graft.store import content_key

WIDTHS = (1, 2, 4, 6)
"""Channels of the four stages, in multiples of the design's width."""
WIDE, NARROW = 32, 24
CELL = 8
"""Side in pixels of the neighbourhood that local contrast is measured against."""
SHARPEN = 2.0
DARKEST = 0.02
"""A deviation (of 1) below which an image counts as flat."""


@dataclass(frozen=True, slots=True)
class ScratchDesign:
    """`width`: channels of the first stage; `channels` and `size` (pixels) of the square input; `classes`: outputs.

    `depth`: residual blocks of the two middle stages; the others have one.
    """

    width: int
    channels: Literal[1, 3]
    size: int
    classes: int
    depth: int = 1
    version: int = 2

    @property
    def key(self) -> str:
        """The content key of the network without its weights."""
        return content_key(
            "scratch", self.width, self.channels, self.size, self.classes, self.depth, self.version
        )

    @property
    def strides(self) -> tuple[int, ...]:
        """How much each convolution of the stem shrinks the image: to 24 to 48 pixels a side."""
        return (1,) if self.size <= 48 else (2,) if self.size <= 80 else (2, 2)

    @property
    def blocks(self) -> tuple[int, ...]:
        """The residual blocks of each stage."""
        return (1, self.depth, self.depth, 1)

    @property
    def multiply_adds(self) -> int:
        """Of the 3x3 convolutions for one image, forward."""
        before: int = self.channels
        side, total = self.size, 0
        for stride, width in zip(self.strides, self.stem_widths, strict=True):
            side = -(-side // stride)
            total += side**2 * 9 * before * width
            before = width
        for number, (factor, blocks) in enumerate(zip(WIDTHS, self.blocks, strict=True)):
            width = factor * self.width
            side = side if number == 0 else -(-side // 2)
            total += side**2 * 9 * width * (before + (2 * blocks - 1) * width)
            before = width
        return total

    @property
    def stem_widths(self) -> tuple[int, ...]:
        """The channels that each convolution of the stem puts out."""
        return (self.width // 2, self.width)[-len(self.strides) :]


def design(dataset: Dataset, *, development: int) -> tuple[ScratchDesign, Preprocess]:
    """The network and the geometry for `development` images like those of the dataset.

    Side: 32 px for images up to 40 px, 64 up to 80, otherwise 96. Everything is shown (`squash`). Width: 32, or 24 where
    the stem does not shrink the image four times, so that every size costs about 35 million multiply-adds: what a budget
    of minutes trains to the end. Depth: 1; a second block in the middle stages takes 45 % more time for a view. The
    number of images decides how long it is trained, not its width: twice the width was better with 340 as with 914.
    """
    channels: Literal[1, 3] = 1 if dataset.mostly_grey else 3
    side = float(np.median(np.sqrt(dataset.widths * dataset.heights)))
    size = 32 if side <= 40 else 64 if side <= 80 else 96
    width = WIDE if size > 80 else NARROW
    made = ScratchDesign(width, channels, size, len(dataset.classes))
    return made, Preprocess(size=size, fit="squash", channels=channels)


class Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut (He et al. 2016; the shortcut averages where the map shrinks)."""

    def __init__(self, before: int, width: int, *, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(before, width, 3, stride, 1, bias=False)
        self.first_norm = nn.BatchNorm2d(width)
        self.second = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.second_norm = nn.BatchNorm2d(width)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or before != width:
            shrink = nn.AvgPool2d(stride, ceil_mode=True) if stride > 1 else nn.Identity()
            self.shortcut = nn.Sequential(
                shrink, nn.Conv2d(before, width, 1, bias=False), nn.BatchNorm2d(width)
            )

    def forward(self, maps: Tensor) -> Tensor:
        inner = torch.relu(self.first_norm(self.first(maps)))
        return torch.relu(self.shortcut(maps) + self.second_norm(self.second(inner)))


class ScratchNet(nn.Module):
    """The network of a design. Input: float images in 0..1; the normalisation is part of the network.

    Every image is brought to mean 0 and deviation 1 and its local contrast is raised, so that a small spot counts for
    more than the exposure. On surfaces this decided whether anything was learned at all. What it takes
    away, the means of the channels and the contrast, goes straight to the head.

    The shapes stand in the docstrings, because annotations that are checked cannot be traced for ONNX.
    """

    def __init__(self, made: ScratchDesign) -> None:
        super().__init__()
        self.size = made.size
        widths = [factor * made.width for factor in WIDTHS]
        stem: list[nn.Module] = []
        before: int = made.channels
        for stride, width in zip(made.strides, made.stem_widths, strict=True):
            stem += [nn.Conv2d(before, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            before = width
        self.stem = nn.Sequential(*stem)
        self.stages = nn.ModuleList()
        for number, (width, blocks) in enumerate(zip(widths, made.blocks, strict=True)):
            first = Block(before, width, stride=1 if number == 0 else 2)
            self.stages.append(
                nn.Sequential(first, *(Block(width, width, stride=1) for _ in range(blocks - 1)))
            )
            before = width
        self.head = nn.Linear(2 * widths[-1] + made.channels + 1, made.classes)

    def normalise(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """`[n c h w]` to the sharpened images, of the same shape, and their levels, `[n c+1]`."""
        means = images.mean((2, 3))
        level = means.mean(1, keepdim=True)
        variance = images.square().mean((1, 2, 3))[:, None] - level.square()
        deviation = variance.clamp(min=0).sqrt() + DARKEST
        coarse = nn.functional.interpolate(
            nn.functional.avg_pool2d(images, CELL), (self.size, self.size), mode="bilinear"
        )
        # (1 + s) x - s c, less the level, over the deviation: in few passes, because they cost as much as a stage
        sharp = torch.add(images, coarse, alpha=-SHARPEN / (1 + SHARPEN))
        levels = torch.cat([(means - 0.5) * 4, deviation.log() + 1.5], dim=1)
        level, scale = (-level / deviation)[:, :, None, None], ((1 + SHARPEN) / deviation)[:, :, None, None]
        return torch.addcmul(level, sharp, scale), levels

    def forward_features(self, images: Tensor) -> Tensor:
        """`[n c h w]` to the maps after the last stage, `[n d y x]`."""
        return self._maps(self.normalise(images)[0])

    def embed(self, images: Tensor) -> Tensor:
        """`[n c h w]` to average and maximum of the last maps and the image's levels, `[n d]`."""
        sharp, levels = self.normalise(images)
        maps = self._maps(sharp)
        return torch.cat([maps.mean((2, 3)), maps.amax((2, 3)), levels], dim=1)

    def forward(self, images: Tensor) -> Tensor:
        """`[n c h w]` to the logits of the classes, `[n k]`."""
        return self.head(self.embed(images))

    def _maps(self, sharp: Tensor) -> Tensor:
        maps = self.stem(sharp)
        for stage in self.stages:
            maps = stage(maps)
        return maps


def build(made: ScratchDesign, *, seed: int) -> ScratchNet:
    """The network with random weights that are a function of the seed alone (He et al. 2015, fan out)."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        network = ScratchNet(made)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu", generator=generator)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.01, generator=generator)
            nn.init.zeros_(module.bias)
    return network.to(memory_format=torch.channels_last)
