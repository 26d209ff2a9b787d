"""Edges as torch modules, in front of the network and inside its graph, so that a bundle needs nothing else.

In: images `[n, c, y, x]` in 0..1, one channel or three. Out: edges `[n, 1, y, x]` in 0..1. `Sobel` is the magnitude of
the gradient of the luminance: 1 is a step from black to white, a flat image is 0 everywhere, and so is its border.
`ThinEdges` is Canny's way (1986) with soft decisions: Gaussian smoothing, Sobel, what is no maximum along its gradient
is suppressed, a double threshold, and weak edges stay where they touch a strong one. Every decision is a ramp and not a
jump, so that torch, ONNX Runtime and OpenVINO agree on it, in bfloat16 nearly so.

Why not kornia: its Sobel is the same two convolutions. Its Canny exports, but follows edges in a loop that runs until
nothing changes, which an export fixes at the number of rounds of the one image it was traced with; its thresholds are
jumps; and importing it takes 2 s, a quarter of a small study.

Not covered: edges of colour where the luminance is flat.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from graft.backbones.inputs import Look

LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow makes grey of colour
SIGMA = 1.0
RIDGE = 0.1  # by which share of itself a pixel must be stronger than its neighbour to count in full
FAINTEST = 0.02  # thresholds do not fall below this step of luminance: the noise of an empty image is no edge
WEAK, STRONG = 0.6, 1.6  # the double threshold, in multiples of the mean magnitude of the image
ROUNDS = 4  # how many pixels far a strong edge carries a weak one


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean and standard deviation of a filter's pixels over photos."""

    mean: float
    std: float


# Over 261 photos (hymenoptera, dogs_vs_cats, caltech101) at 224 px.
SPREAD: dict[str, Spread] = {"edges": Spread(0.07, 0.10), "thin": Spread(0.14, 0.31)}


class Sobel(nn.Module):
    """The magnitude of the gradient of the luminance: `[n, c, y, x]` in 0..1 to `[n, 1, y, x]` in 0..1."""

    luminance: Tensor
    kernels: Tensor

    def __init__(self) -> None:
        super().__init__()
        across = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]]) / 4
        self.register_buffer("luminance", torch.tensor(LUMINANCE)[None, :, None, None], persistent=False)
        self.register_buffer("kernels", torch.stack([across, across.T])[:, None], persistent=False)

    def forward(self, images: Float[Tensor, "n c y x"]) -> Float[Tensor, "n 1 y x"]:
        return self.magnitude(self.gradient(self.grey(images)))

    def grey(self, images: Float[Tensor, "n c y x"]) -> Float[Tensor, "n 1 y x"]:
        """The luminance; of one channel, itself."""
        return functional.conv2d(images, self.luminance) if images.shape[1] == 3 else images

    def gradient(self, grey: Float[Tensor, "n 1 y x"]) -> Float[Tensor, "n 2 y x"]:
        """Across and down, each from -1 to 1."""
        return functional.conv2d(_bordered(grey, 1), self.kernels)

    def magnitude(self, gradient: Float[Tensor, "n 2 y x"]) -> Float[Tensor, "n 1 y x"]:
        """Its length; a sharp corner, whose length is up to 1.06, counts as 1."""
        return gradient.square().sum(dim=1, keepdim=True).sqrt().clamp(max=1.0)


class ThinEdges(nn.Module):
    """Lines of one pixel where the luminance changes most: `[n, c, y, x]` in 0..1 to `[n, 1, y, x]` in 0..1."""

    gaussian: Tensor
    shifts: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.sobel = Sobel()
        places = torch.arange(-2, 3, dtype=torch.float32)
        bell = torch.exp(-places.square() / (2 * SIGMA**2))
        bell = bell / bell.sum()
        self.register_buffer("gaussian", (bell[:, None] * bell)[None, None], persistent=False)
        self.register_buffer("shifts", _shifts(), persistent=False)

    def forward(self, images: Float[Tensor, "n c y x"]) -> Float[Tensor, "n 1 y x"]:
        smooth = functional.conv2d(_bordered(self.sobel.grey(images), 2), self.gaussian)
        gradient = self.sobel.gradient(smooth)
        strength = self.sobel.magnitude(gradient)
        level = strength.mean(dim=(2, 3), keepdim=True).clamp(min=FAINTEST)
        thin = self._ridges(gradient, strength)
        weak = thin * _ramp(strength, WEAK / 2 * level, WEAK * level)
        strong = thin * _ramp(strength, WEAK * level, STRONG * level)
        for _ in range(ROUNDS):
            near = functional.max_pool2d(strong, 3, stride=1, padding=1)
            strong = torch.maximum(strong, torch.minimum(weak, near))
        return strong.clamp(0.0, 1.0)

    def _ridges(
        self, gradient: Float[Tensor, "n 2 y x"], strength: Float[Tensor, "n 1 y x"]
    ) -> Float[Tensor, "n 1 y x"]:
        """1 where no neighbour along the gradient is stronger, 0 where one is; of two alike, the one up or left stays.

        The neighbours lie between pixels, so the two nearest are mixed.
        """
        around = functional.conv2d(_bordered(strength, 1), self.shifts)
        west, east, north, south, northwest, southeast, southwest, northeast = around.split(1, dim=1)
        wide, high = gradient.abs().split(1, dim=1)
        falling = (gradient[:, :1] * gradient[:, 1:] >= 0).to(strength.dtype)  # from north-west to south-east
        flat = (wide >= high).to(strength.dtype)
        slant = torch.minimum(wide, high) / torch.maximum(wide, high).clamp(min=1e-6)
        rising = 1 - falling
        before = flat * west + (1 - flat) * north
        after = flat * east + (1 - flat) * south
        up = falling * northwest + rising * (flat * southwest + (1 - flat) * northeast)
        down = falling * southeast + rising * (flat * northeast + (1 - flat) * southwest)
        before = (1 - slant) * before + slant * up
        after = (1 - slant) * after + slant * down
        needed = (RIDGE * strength).clamp(min=1e-6)
        above = ((strength - before) / needed).clamp(0.0, 1.0)
        return above * ((strength - after) / needed + 1).clamp(0.0, 1.0)


class Looking(nn.Module):
    """What the network sees of the decoded image: `[n, c, y, x]` in 0..1 to `[n, k, y, x]`, k = `seen_channels`."""

    def __init__(self, look: Look = "plain") -> None:
        super().__init__()
        self.look = look
        self.filter = None if look == "plain" else ThinEdges() if look.endswith("thin") else Sobel()

    def forward(self, images: Float[Tensor, "n c y x"]) -> Float[Tensor, "n k y x"]:
        if self.filter is None:
            return images
        edges = self.filter(images)
        return torch.cat([images, edges], dim=1) if self.look.startswith("plain") else edges


def spread_of(look: Look) -> Spread:
    """By what mean and deviation the edges of this look are normalised."""
    return SPREAD[look.removeprefix("plain+")]


def _ramp(values: Tensor, low: Tensor, high: Tensor) -> Tensor:
    return ((values - low) / (high - low)).clamp(0.0, 1.0)


def _bordered(images: Tensor, width: int) -> Tensor:
    """The border repeated outwards, so that it is no edge."""
    return functional.pad(images, (width, width, width, width), mode="replicate")


def _shifts() -> Tensor:
    """Kernels `[8, 1, 3, 3]` that read the neighbours: W, E, N, S, NW, SE, SW, NE."""
    places = ((1, 0), (1, 2), (0, 1), (2, 1), (0, 0), (2, 2), (2, 0), (0, 2))
    kernels = torch.zeros(8, 1, 3, 3)
    for index, (row, column) in enumerate(places):
        kernels[index, 0, row, column] = 1.0
    return kernels
