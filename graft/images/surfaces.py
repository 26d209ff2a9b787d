"""Made grey photographs of surfaces, with or without a defect: what `graft.images.demo` writes to disk.

In: a generator, or a seed, a class and a number. Out: uint8 pictures of 160 to 240 px. Each one is a texture (brushed,
ground, cast, woven, blasted) with harmless marks (dust, tool marks, light stripes, uneven spots) under uneven light; a
defective one has one scratch, group of pits, crack or stain (on cloth: fray) more, often no stronger than the texture.

Cost: 8 ms a picture on one core. Not covered: colour, several defects in one picture, masks of the defects.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Float32, UInt8
from numpy.random import Generator
from scipy import fft, ndimage

SIDES_PX = (160, 176, 192, 208, 224)

Label = Literal["good", "defective"]
Shape = tuple[int, int]
Picture = Float32[np.ndarray, "h w"]
Floats = Float[np.ndarray, " n"]


@dataclass(frozen=True, slots=True)
class Surface:
    """A clean surface in even light, in grey levels with standard deviation `roughness`; `lay`: its direction, radians."""

    grey: Picture
    roughness: float
    lay: float
    cloth: bool

    @property
    def shape(self) -> Shape:
        """Height and width in pixels."""
        return self.grey.shape[0], self.grey.shape[1]


# ---- noise and strokes: what everything else is made of


def noise(random: Generator, gain: Float32[np.ndarray, "h k"], width: int) -> Picture:
    """White noise filtered by `gain` (over the half plane of `frequencies`), mean 0, standard deviation 1."""
    white = random.standard_normal((gain.shape[0], width), dtype=np.float32)
    spectrum = fft.rfft2(white) * gain
    spectrum[0, 0] = 0
    field = fft.irfft2(spectrum, s=white.shape)
    return field / field.std()


def frequencies(shape: Shape, angle: float) -> tuple[Float32[np.ndarray, "h k"], Float32[np.ndarray, "h k"]]:
    """Cycles per pixel along and across the direction `angle`, over the half plane of `rfft2`."""
    rows = np.fft.fftfreq(shape[0]).astype(np.float32)[:, None]
    columns = np.fft.rfftfreq(shape[1]).astype(np.float32)[None, :]
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return columns * cos + rows * sin, rows * cos - columns * sin


def blotches(random: Generator, shape: Shape, size_px: float) -> Picture:
    """Smooth noise whose spots are about `size_px` across."""
    along, across = frequencies(shape, 0.0)
    return noise(random, np.exp(-(along**2 + across**2) * np.float32(size_px**2 * 4)), shape[1])


def streaks(random: Generator, shape: Shape, angle: float, length_px: float, width_px: float) -> Picture:
    """Noise drawn out along `angle`."""
    along, across = frequencies(shape, angle)
    return noise(random, 1 / ((1 + (along * length_px) ** 2) * (1 + (across * width_px * 3) ** 2)), shape[1])


def walk(start: tuple[float, float], headings: Floats) -> Float[np.ndarray, "2 n"]:
    """The rows and columns of a path from `start` that goes half a pixel in each of the headings (radians)."""
    steps = np.stack([np.sin(headings), np.cos(headings)]) * 0.5
    return np.cumsum(steps, axis=1) + np.array(start)[:, None]


def stroke(
    shape: Shape, path: Float[np.ndarray, "2 n"], width_px: float, press: Floats | float = 1.0
) -> Picture:
    """A soft line of height 1 (times `press`) along a path with points every half pixel; outside parts are cut."""
    corner = np.floor(path).astype(np.int64)
    part = path - corner
    canvas = np.zeros(shape[0] * shape[1])
    for row, column in ((0, 0), (0, 1), (1, 0), (1, 1)):
        y, x = corner[0] + row, corner[1] + column
        share = np.abs(1 - row - part[0]) * np.abs(1 - column - part[1]) * press
        inside = (y >= 0) & (y < shape[0]) & (x >= 0) & (x < shape[1])
        canvas += np.bincount((y * shape[1] + x)[inside], share[inside], canvas.size)
    sigma = width_px / 2
    soft = ndimage.gaussian_filter(canvas.reshape(shape).astype(np.float32), sigma, truncate=3.0)
    return soft * np.float32(0.5 * sigma * np.sqrt(2 * np.pi))


def turned(shape: Shape, centre: tuple[float, float], angle: float) -> tuple[Picture, Picture]:
    """The pixels from `centre` along and across the direction `angle`."""
    rows = np.arange(shape[0], dtype=np.float32)[:, None] - np.float32(centre[0])
    columns = np.arange(shape[1], dtype=np.float32)[None, :] - np.float32(centre[1])
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return columns * cos + rows * sin, rows * cos - columns * sin


def squared_distance(
    shape: Shape, centre: tuple[float, float], radius_px: float, *, squeeze: float = 1.0, angle: float = 0.0
) -> Picture:
    """The squared distance from `centre` in units of `radius_px`; `squeeze` below 1 flattens it across `angle`."""
    along, across = turned(shape, centre, angle)
    return (along**2 + (across / np.float32(squeeze)) ** 2) / np.float32(radius_px**2)


def lit(height: Picture, angle: float) -> Picture:
    """The shading of a relief under a low lamp in the direction `angle`, mean about 0, standard deviation 1."""
    slope = np.cos(angle) * np.gradient(height, axis=1) + np.sin(angle) * np.gradient(height, axis=0)
    return (slope / slope.std()).astype(np.float32)


# ---- textures: mean 0, standard deviation about 1


def brushed(random: Generator, shape: Shape, lay: float) -> Picture:
    """Metal drawn along a brush: long fine grooves over broader bands."""
    fine = streaks(random, shape, lay, length_px=random.uniform(40, 160), width_px=random.uniform(0.4, 1.0))
    bands = streaks(random, shape, lay, length_px=300.0, width_px=random.uniform(3, 8))
    return fine * np.float32(0.9) + bands * np.float32(0.4)


def ground(random: Generator, shape: Shape, lay: float) -> Picture:
    """Metal off a grinding wheel: grooves on arcs around a far centre, along `lay` in the middle."""
    far_px = random.uniform(1.0, 3.0) * max(shape)
    rows = np.arange(shape[0])[:, None] - shape[0] / 2 + far_px * np.cos(lay)
    columns = np.arange(shape[1])[None, :] - shape[1] / 2 - far_px * np.sin(lay)
    arc_px = np.unwrap(np.unwrap(np.arctan2(rows, columns), axis=0), axis=1) * far_px
    grooves = streaks(random, (512, 512), 0.0, random.uniform(30, 120), random.uniform(0.5, 1.1))
    bent = ndimage.map_coordinates(grooves, [np.hypot(rows, columns), arc_px], order=1, mode="grid-wrap")
    return bent + np.float32(0.35) * blotches(random, shape, 2.0)


def cast(random: Generator, shape: Shape, lay: float) -> Picture:
    """Raw casting: fractal relief (amplitude ~ 1 / frequency ** 1.3 to 1.9) lit from the side `lay`."""
    along, across = frequencies(shape, lay)
    steep = random.uniform(1.3, 1.9)
    relief = (along**2 + across**2 + np.float32(0.01**2)) ** np.float32(-steep / 2)
    height = noise(random, relief * np.exp(-(along**2 + across**2) * 30), shape[1])
    return height * np.float32(0.5) + lit(height, lay) * np.float32(0.8)


def woven(random: Generator, shape: Shape, lay: float) -> Picture:
    """Cloth: threads over and under each other (plain or twill), each of its own brightness, slightly bent."""
    period_px = random.uniform(4.5, 9.0)
    over = random.choice([2, 4])
    rows, columns = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
    bend = blotches(random, shape, 30.0) * random.uniform(0.5, 2.5)
    warp = (columns * np.cos(lay) + rows * np.sin(lay) + bend) / period_px
    weft = (rows * np.cos(lay) - columns * np.sin(lay) + blotches(random, shape, 30.0)) / period_px
    level = random.standard_normal((2, 256)) * 0.35
    warp_number, weft_number = np.floor(warp).astype(int), np.floor(weft).astype(int)
    warp_shade = np.sin(np.pi * (warp - warp_number)) + level[0, warp_number % 256]
    weft_shade = np.sin(np.pi * (weft - weft_number)) * 0.8 + level[1, weft_number % 256]
    cloth = np.where((warp_number + weft_number) % over < over // 2, warp_shade, weft_shade)
    yarn = np.float32(0.3) * blotches(random, shape, 1.5)
    return ((cloth - cloth.mean()) / cloth.std()).astype(np.float32) + yarn


def blasted(random: Generator, shape: Shape, lay: float) -> Picture:
    """Metal under shot: dimples of one size, lit from the side `lay`."""
    size_px = random.uniform(1.5, 4.0)
    dimples = blotches(random, shape, size_px)
    return lit(dimples, lay) - np.float32(0.3) * np.abs(dimples)


# ---- harmless marks: changes in grey levels, on good and defective pieces alike


def dust(random: Generator, surface: Surface) -> Picture:
    """Single specks of about a pixel, brighter or darker than the surface."""
    specks = np.zeros(surface.shape, dtype=np.float32)
    count = int(random.integers(1, 16))
    rows, columns = random.integers(0, surface.shape[0], count), random.integers(0, surface.shape[1], count)
    specks[rows, columns] = random.uniform(0.5, 2.0, count) * random.choice([-1, 1], count, p=[0.4, 0.6])
    sigma_px = random.uniform(0.5, 0.9)
    return ndimage.gaussian_filter(specks, sigma_px) * np.float32(2 * np.pi * sigma_px**2 * 35)


def tool_marks(random: Generator, surface: Surface) -> Picture:
    """Lines along the lay from edge to edge: what the tool, the mould or a thick thread leaves."""
    change = np.zeros(surface.shape, dtype=np.float32)
    reach_px = 2 * sum(surface.shape)
    for _ in range(random.integers(1, 4)):
        angle = surface.lay + random.normal(0, 0.015)
        middle = random.uniform(0, 1, 2) * surface.shape
        start = (middle[0] - reach_px / 2 * np.sin(angle), middle[1] - reach_px / 2 * np.cos(angle))
        path = walk(start, np.full(2 * reach_px, angle))
        depth = random.uniform(0.5, 2.0) * (surface.roughness + 4) * random.choice([-1, 1], p=[0.7, 0.3])
        change += stroke(surface.shape, path, random.uniform(1.0, 2.0)) * np.float32(depth)
    return change


def light_stripe(random: Generator, surface: Surface) -> Picture:
    """A soft straight reflection of a lamp across the picture."""
    angle = random.uniform(0, np.pi)
    _, across = turned(surface.shape, tuple(random.uniform(0, 1, 2) * surface.shape), angle)
    return np.exp(-((across / np.float32(random.uniform(4, 25))) ** 2)) * np.float32(random.uniform(6, 30))


def uneven_spots(random: Generator, surface: Surface) -> Picture:
    """Places where the texture is stronger or weaker and a little darker or brighter."""
    spots = blotches(random, surface.shape, random.uniform(12, 30))
    stronger, brighter = np.float32(random.uniform(-0.4, 0.5)), np.float32(random.uniform(-5, 5))
    return np.clip(spots, 0, 2) * ((surface.grey - surface.grey.mean()) * stronger + brighter)


# ---- defects: changes in grey levels; `depth` is the strongest change


def place(random: Generator, shape: Shape) -> tuple[float, float]:
    """A spot in the middle half of the picture, so that a centre crop keeps it."""
    return shape[0] * random.uniform(0.25, 0.75), shape[1] * random.uniform(0.25, 0.75)


def scratch(random: Generator, surface: Surface, depth: float) -> Picture:
    """A thin bent groove of 40 to 140 px across the lay, dark with one bright flank, pressed unevenly."""
    points = int(2 * random.uniform(40, 140))
    angle = surface.lay + random.uniform(0.25, np.pi - 0.25)
    path = walk((0.0, 0.0), angle + np.linspace(-1, 1, points) * random.normal(0, 0.25))
    path += np.array(place(random, surface.shape))[:, None] - path[:, [points // 2]]
    press = np.sin(np.linspace(0.15, np.pi - 0.15, points)) ** 0.5
    width_px = random.uniform(1.2, 2.6)
    flank = path + width_px * np.array([[np.cos(angle)], [-np.sin(angle)]])
    groove = stroke(surface.shape, path, width_px, press)
    return (stroke(surface.shape, flank, width_px, press) * np.float32(0.6) - groove) * np.float32(depth)


def pits(random: Generator, surface: Surface, depth: float) -> Picture:
    """Two to seven blowholes of 2.5 to 8 px radius: dark, flattened, with a bright rim on the lit side."""
    change = np.zeros(surface.shape, dtype=np.float32)
    middle = np.array(place(random, surface.shape))
    light = random.uniform(0, 2 * np.pi)
    for _ in range(random.integers(2, 8)):
        centre = middle + random.normal(0, 18, 2)
        radius_px = random.uniform(2.5, 8.0)
        squeeze, angle = random.uniform(0.55, 1.0), random.uniform(0, np.pi)
        lit = centre + 0.35 * radius_px * np.array([np.sin(light), np.cos(light)])
        around = squared_distance(surface.shape, tuple(centre), radius_px, squeeze=squeeze, angle=angle)
        rim = squared_distance(surface.shape, tuple(lit), radius_px * 1.15, squeeze=squeeze, angle=angle)
        change += np.float32(0.7) * np.exp(-(rim**2)) - np.float32(1.5) * np.exp(-(around**2))
    return change * np.float32(depth)


def crack(random: Generator, surface: Surface, depth: float) -> Picture:
    """A dark jagged line of 50 to 140 px that turns every few pixels, with up to two branches."""
    headings = random.uniform(0, 2 * np.pi) + jagged(random, int(2 * random.uniform(50, 140)))
    trunk = walk((0.0, 0.0), headings)
    trunk += np.array(place(random, surface.shape))[:, None] - trunk.mean(axis=1, keepdims=True)
    width_px = random.uniform(1.2, 2.4)
    change = stroke(surface.shape, trunk, width_px, np.linspace(1, 0.4, headings.size))
    for _ in range(random.integers(0, 3)):
        fork = int(random.integers(headings.size // 5, headings.size))
        turns = headings[fork] + random.choice([-0.8, 0.8]) + jagged(random, headings.size // 3)
        branch = walk((trunk[0, fork], trunk[1, fork]), turns)
        thinner = stroke(surface.shape, branch, width_px * 0.8, np.linspace(0.8, 0.2, turns.size))
        change = np.maximum(change, thinner)
    return change * np.float32(-1.2 * depth)


def jagged(random: Generator, points: int) -> Floats:
    """Deviations (radians) of a crack's heading: a new one about every 4 px."""
    return np.repeat(random.normal(0, 0.6, points // 8 + 1), 8)[:points]


def stain(random: Generator, surface: Surface, depth: float) -> Picture:
    """A dried drop of 14 to 36 px radius: an irregular patch, slightly darker, with a darker edge."""
    radius_px = random.uniform(14, 36)
    centre, squeeze, angle = place(random, surface.shape), random.uniform(0.6, 1), random.uniform(0, 3)
    around = squared_distance(surface.shape, centre, radius_px, squeeze=squeeze, angle=angle)
    inside = 1 - around + np.float32(0.3) * blotches(random, surface.shape, radius_px / 3)
    patch = 1 / (1 + np.exp(-np.clip(inside * 8, -30, 30)))
    return -(patch * np.float32(0.35) + patch * (1 - patch) * 2) * np.float32(depth)


def fray(random: Generator, surface: Surface, depth: float) -> Picture:
    """On cloth: a tuft of five to twelve loose bright fibres that curl away from one spot."""
    change = np.zeros(surface.shape, dtype=np.float32)
    middle = np.array(place(random, surface.shape))
    for _ in range(random.integers(5, 13)):
        points = int(2 * random.uniform(15, 50))
        headings = random.uniform(0, 2 * np.pi) + np.linspace(0, 1, points) * random.normal(0, 1.5)
        start = middle + random.normal(0, 4, 2)
        fibre = stroke(surface.shape, walk((start[0], start[1]), headings), random.uniform(0.9, 1.4))
        change = np.maximum(change, fibre)
    return change * np.float32(depth)


# ---- light: factors around 1


def gradient(random: Generator, shape: Shape) -> Picture:
    """Light from one side: up to 30 % brighter at that edge, as much darker opposite."""
    along, _ = turned(shape, (shape[0] / 2, shape[1] / 2), random.uniform(0, 2 * np.pi))
    return 1 + along * np.float32(random.uniform(0, 0.3) / (max(shape) / 2))


def vignette(random: Generator, shape: Shape) -> Picture:
    """Corners darker by up to 40 %, around a centre that is a little off."""
    centre = (shape[0] * random.uniform(0.4, 0.6), shape[1] * random.uniform(0.4, 0.6))
    return 1 / (1 + squared_distance(shape, centre, max(shape) * 0.7) * np.float32(random.uniform(0, 0.6)))


def lamp(random: Generator, shape: Shape) -> Picture:
    """A broad highlight anywhere in the picture, up to 50 % brighter."""
    centre = (shape[0] * random.uniform(0, 1), shape[1] * random.uniform(0, 1))
    wide = squared_distance(shape, centre, max(shape) * random.uniform(0.2, 0.6))
    return 1 + np.exp(-wide) * np.float32(random.uniform(0, 0.5))


def exposed(random: Generator, grey: Picture) -> UInt8[np.ndarray, "h w"]:
    """What the camera makes of it: blur (0.4 to 0.9 px), exposure, noise (1 to 4 grey levels), 8 bits."""
    sharp = ndimage.gaussian_filter(grey, random.uniform(0.4, 0.9), truncate=3.0)
    sharp *= np.float32(random.uniform(0.75, 1.25))
    grain = random.standard_normal(grey.shape, dtype=np.float32) * np.float32(random.uniform(1, 4))
    return np.clip(np.rint(sharp + grain), 0, 255).astype(np.uint8)


TEXTURES = (brushed, ground, cast, woven, blasted)
CHANCE_OF_MARK = {dust: 0.6, tool_marks: 0.25, light_stripe: 0.35, uneven_spots: 0.5}
LIGHTS = (gradient, vignette, lamp)
FAINTEST, STRONGEST = 1.4, 7.0


def picture(random: Generator, label: Label, number: int) -> UInt8[np.ndarray, "h w"]:
    """One photograph; a defective one has the defect of kind `number % 4`, of 1.4 to 7 times the texture's depth."""
    side_px = int(random.choice(SIDES_PX))
    shape = (side_px, side_px + int(random.choice([0, 16])))
    texture = TEXTURES[random.integers(len(TEXTURES))]
    lay, roughness = random.uniform(0, np.pi), random.uniform(6, 18)
    grey = np.float32(random.uniform(80, 165)) + np.float32(roughness) * texture(random, shape, lay)
    surface = Surface(grey, roughness, lay, cloth=texture is woven)
    for mark, chance in CHANCE_OF_MARK.items():
        if random.random() < chance:
            grey = grey + mark(random, surface)
    if label == "defective":
        defect = (scratch, pits, crack, fray if surface.cloth else stain)[number % 4]
        strength = np.exp(random.uniform(np.log(FAINTEST), np.log(STRONGEST)))
        grey = grey + defect(random, surface, (roughness + 4) * strength)
    for light in LIGHTS:
        grey = grey * light(random, shape)
    return exposed(random, grey)
