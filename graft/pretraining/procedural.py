"""Images that nobody took: dead leaves of many shapes before a cloudy ground, made for a whole batch at once.

In: some photos, whose pixels fill a part of the leaves, and a generator. Out: as many images in 0..1 of their size.
Shapes that hide each other, with sizes of a power law, have the statistics of natural images (Lee, Mumford & Huang
2001; Baradad et al. 2021, arXiv 2106.05963) and, unlike photos of 64 px, sharp edges at every size. Cost: about a
millisecond per image of 96 px. Not covered: fractals.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Float32
from torch import Tensor
from torch.nn import functional

LEAVES = 14
OCTAVES = (2, 4, 8, 16, 32)
LARGEST_RADIUS = 0.8
SMALLEST_RADIUS = 0.06
EDGE = 0.02


def made_images(
    photos: Float[Tensor, "b 3 y x"], *, generator: torch.Generator
) -> Float32[Tensor, "b 3 y x"]:
    """As many images as there are photos, of the same size and on the same device."""
    count, _, height, width = photos.shape
    device = photos.device
    picture = _clouds(count, height, width, generator).to(device)
    fills = (_clouds(count, height, width, generator).to(device), photos, photos.flip(0, 3))
    y = torch.linspace(-1, 1, height, device=device)[:, None]
    x = torch.linspace(-1, 1, width, device=device)[None, :]
    # The largest lie at the bottom: radii fall evenly in their logarithm, each a little to either side.
    for leaf in range(LEAVES):
        ratio = (SMALLEST_RADIUS / LARGEST_RADIUS) ** (leaf / (LEAVES - 1))
        draws = torch.rand(count, 12, generator=generator).to(device)[:, :, None, None]
        mask = _shape(x, y, draws, LARGEST_RADIUS * ratio)
        tilt = (draws[:, 6:7] - 0.5) * x + (draws[:, 7:8] - 0.5) * y
        colour = draws[:, 8:11] + 0.5 * tilt
        fill = torch.lerp(colour, fills[leaf % len(fills)], 0.7 * (draws[:, 11:12] < 0.6).float())
        picture = torch.lerp(picture, fill, mask)
    return picture.clamp(0, 1)


def _shape(
    x: Float32[Tensor, "1 x"], y: Float32[Tensor, "y 1"], draws: Float32[Tensor, "b 12 1 1"], radius: float
) -> Float32[Tensor, "b 1 y x"]:
    """Where a turned superellipse is, from rhombus (power 1) over disc (2) to box (8): 1 inside, soft at the edge."""
    angle = draws[:, 2:3] * torch.pi
    dx, dy = x - (2.4 * draws[:, 0:1] - 1.2), y - (2.4 * draws[:, 1:2] - 1.2)
    across = (angle.cos() * dx + angle.sin() * dy).abs()
    along = (angle.cos() * dy - angle.sin() * dx).abs() * (1 + 2 * draws[:, 3:4])
    power = 2 ** (3 * draws[:, 4:5])
    size = radius * (0.6 + 0.8 * draws[:, 5:6])
    distance = (across**power + along**power).clamp(min=1e-12) ** (1 / power)
    return ((size - distance) / EDGE + 0.5).clamp(0, 1)


def _clouds(count: int, height: int, width: int, generator: torch.Generator) -> Float32[Tensor, "b 3 y x"]:
    """Coloured noise whose octaves are equally strong at a random steepness, around a random colour."""
    colour = torch.rand(count, 3, 1, 1, generator=generator)
    steep = torch.rand(count, 1, 1, 1, generator=generator)
    noise = torch.zeros(count, 3, height, width)
    for octave in OCTAVES:
        coarse = torch.randn(count, 3, octave, octave, generator=generator)
        smooth = functional.interpolate(coarse, (height, width), mode="bilinear", align_corners=False)
        noise += smooth * octave ** (-steep)
    return (colour + 0.25 * noise).clamp(0, 1)
