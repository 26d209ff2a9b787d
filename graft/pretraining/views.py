"""Batches of random views, made for a whole batch at once on the device of the images.

In: uint8 images `[b, s, s, 3]`, how far views may differ, and a generator. Out: uint8 views `[b, v, v, 3]`, and for
every view the share `mix` of the mirrored batch that is in it (MixUp, Zhang et al. 2018, arXiv 1710.09412). A batch may
be one of mosaics: four half-size views in a square, which give a source of low resolution sharp detail. All is drawn
from the generator, so a batch is a function of the images and its seed.

Cost: about 5,000 views of 96 px a second and core. Crops are read with one bilinear lookup (`grid_sample`), without
antialiasing; sources come at hardly more than the views' own size, and mosaics are halved before.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float32, UInt8
from torch import Tensor
from torch.nn import functional

from graft.pretraining.procedural import made_images
from graft.store import content_key

SMALLEST_CROP = 0.35
ASPECT = 4 / 3
JITTER = 0.4
GREY = 0.15
MOST_MIX = 0.5


@dataclass(frozen=True, slots=True)
class ViewSettings:
    """`size` of the views in pixels; probabilities of a batch of mosaics and of MixUp; share of made images."""

    size: int
    mosaic: float = 0.3
    mix: float = 0.5
    made: float = 0.0
    version: int = 1


@dataclass(frozen=True, slots=True, eq=False)
class Views:
    """`pixels`, and `mix[i]`: how much of image b - 1 - i (of the order `order`) is in view i."""

    pixels: UInt8[Tensor, "b v v 3"]
    mix: Float32[Tensor, " b"]
    order: tuple[int, ...]


def generator_of(*numbers: int) -> torch.Generator:
    """A generator of its own for each tuple of numbers such as (seed, round, batch)."""
    return torch.Generator().manual_seed(int(content_key("views", list(numbers))[:15], 16))


def views_of(
    images: UInt8[Tensor, "b s s 3"], settings: ViewSettings, *, generator: torch.Generator
) -> Views:
    """Random views of all images, in a random order, mixed with each other."""
    order = torch.randperm(len(images), generator=generator)
    x = images[order.to(images.device)].permute(0, 3, 1, 2).float().div_(255)
    if _chance(settings.mosaic, generator):
        x = _mosaics(x, settings.size, generator)
    else:
        x = _coloured(_cropped(x, settings.size, generator), generator)
    count = round(settings.made * len(x))
    if count:
        x[:count] = made_images(x[len(x) - count :], generator=generator)
    mix = torch.rand(len(x), generator=generator).to(x.device) * MOST_MIX
    if _chance(settings.mix, generator):
        x = torch.lerp(x, x.flip(0), mix[:, None, None, None])
    else:
        mix = torch.zeros_like(mix)
    pixels = x.mul_(255).add_(0.5).to(torch.uint8).permute(0, 2, 3, 1).contiguous()
    return Views(pixels, mix, tuple(order.tolist()))


def whole(images: UInt8[Tensor, "b s s 3"], size: int) -> UInt8[Tensor, "b v v 3"]:
    """The images as they are, at the views' size: what the held-out part is judged on."""
    x = images.permute(0, 3, 1, 2).float()
    if images.shape[1] != size:
        x = functional.interpolate(x, (size, size), mode="bilinear", antialias=True, align_corners=False)
    return (x + 0.5).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def _mosaics(x: Float[Tensor, "b 3 s s"], size: int, generator: torch.Generator) -> Float[Tensor, "b 3 v v"]:
    half = size // 2
    if x.shape[2] >= 2 * half:
        x = functional.avg_pool2d(x, 2)
    first = _coloured(_cropped(x, half, generator), generator)
    others = [first[torch.randperm(len(first), generator=generator).to(x.device)] for _ in range(3)]
    upper, lower = torch.cat([first, others[0]], dim=3), torch.cat(others[1:], dim=3)
    return torch.cat([upper, lower], dim=2)


def _cropped(x: Float[Tensor, "b 3 s s"], size: int, generator: torch.Generator) -> Float[Tensor, "b 3 v v"]:
    """One crop of each image, half of them mirrored: its area, aspect and place are drawn evenly."""
    area = _between(SMALLEST_CROP, 1.0, len(x), generator)
    aspect = torch.exp(_between(-math.log(ASPECT), math.log(ASPECT), len(x), generator))
    wide, high = (area * aspect).sqrt().clamp(max=1), (area / aspect).sqrt().clamp(max=1)
    left, top = (_between(-1.0, 1.0, len(x), generator) for _ in range(2))
    mirror = torch.where(torch.rand(len(x), generator=generator) < 0.5, -1.0, 1.0)
    theta = torch.zeros(len(x), 2, 3)
    theta[:, 0, 0], theta[:, 0, 2] = wide * mirror, left * (1 - wide)
    theta[:, 1, 1], theta[:, 1, 2] = high, top * (1 - high)
    grid = functional.affine_grid(theta.to(x.device), [len(x), 3, size, size], align_corners=False)
    # What lies beyond the middle of the outermost pixel is that pixel: padding with the border, which Apple's cards do not have.
    last = 1 - 1 / x.shape[2]
    return functional.grid_sample(x, grid.clamp_(-last, last), mode="bilinear", align_corners=False)


def _coloured(x: Float[Tensor, "b 3 y x"], generator: torch.Generator) -> Float[Tensor, "b 3 y x"]:
    """Brightness, contrast and saturation by a factor from 0.6 to 1.4 each; some become grey."""
    brightness, contrast, saturation = (
        _between(1 - JITTER, 1 + JITTER, len(x), generator).to(x.device)[:, None, None, None]
        for _ in range(3)
    )
    grey = (torch.rand(len(x), generator=generator) < GREY).to(x.device)[:, None, None, None]
    # Brightness and contrast are one scaling and one shift of the whole image; in place, as memory is what it costs.
    middle = x.mean((1, 2, 3), keepdim=True)
    x = x.mul_(brightness * contrast).add_(middle * brightness * (1 - contrast))
    vivid = saturation.masked_fill(grey, 0.0)
    pale = x.mean(1, keepdim=True).mul_(1 - vivid)
    return x.mul_(vivid).add_(pale).clamp_(0, 1)


def _between(low: float, high: float, count: int, generator: torch.Generator) -> Float32[Tensor, " n"]:
    return low + (high - low) * torch.rand(count, generator=generator)


def _chance(probability: float, generator: torch.Generator) -> bool:
    return bool(torch.rand((), generator=generator) < probability)
