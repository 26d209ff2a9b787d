"""Image sets unlike photographs, made of the photographs of caltech101: what ImageNet's networks have not learned to see.

In: the folder of caltech101, a name. Out: a folder of 50 classes with 20 images each, the same ones every time.
`drawings`: outlines, black on white. `embossed`: grey reliefs at half the size, with noise. `false_colours`: the same at a
third of the size, coloured wrongly and turned by quarter turns. Costs ten seconds.

Not covered: a domain of its own. These show shapes of things; no such set stands for microscopes or satellites.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter, ImageOps

SOURCE = "caltech101"
CLASSES, OF_EACH = 50, 20
OUTLINE = 22  # grey levels at which an edge becomes a line
NOISE = 12.0  # its standard deviation in grey levels


def make(name: str, data: Path, place: Path) -> Path:
    """The set of that name, below `place`."""
    random = np.random.default_rng(0)
    folders = sorted(one for one in (data / SOURCE).iterdir() if one.is_dir())
    for folder in folders[::2][:CLASSES]:
        (place / name / folder.name).mkdir(parents=True)
        for file in sorted(folder.iterdir())[:OF_EACH]:
            with Image.open(file) as photo:
                MADE[name](photo.convert("L"), random).save(place / name / folder.name / f"{file.stem}.png")
    return place / name


def drawing(photo: Image.Image, random: np.random.Generator) -> Image.Image:
    """Its outlines; nothing is drawn by chance."""
    edges = photo.filter(ImageFilter.GaussianBlur(1.2)).filter(ImageFilter.FIND_EDGES)
    return ImageOps.invert(edges.point(lambda level: 255 if level > OUTLINE else 0))


def embossed(photo: Image.Image, random: np.random.Generator) -> Image.Image:
    """A noisy relief at half the size."""
    return Image.fromarray(_levels(_relief(photo, 2, random)))


def false_colours(photo: Image.Image, random: np.random.Generator) -> Image.Image:
    """A noisy relief at a third of the size, red inverted, blue paler, turned by a quarter turn or more or not at all."""
    relief = _relief(photo, 3, random)
    colours = np.stack([255 - relief, relief, 128 + 0.5 * (relief - 128)], axis=-1)
    return Image.fromarray(_levels(colours)).rotate(90 * int(random.integers(4)), expand=True)


MADE: dict[str, Callable[[Image.Image, np.random.Generator], Image.Image]] = {
    "drawings": drawing,
    "embossed": embossed,
    "false_colours": false_colours,
}


def _relief(photo: Image.Image, smaller: int, random: np.random.Generator) -> np.ndarray:
    """Grey levels, not yet cut off."""
    size = (photo.width // smaller, photo.height // smaller)
    levels = np.asarray(photo.filter(ImageFilter.EMBOSS).resize(size, Image.Resampling.BOX), np.float64)
    return levels + random.normal(0, NOISE, levels.shape)


def _levels(values: np.ndarray) -> np.ndarray:
    return np.clip(values, 0, 255).astype(np.uint8)
