"""What spoke for an answer, drawn over the picture.

In: an upright picture, the map that `Bundle.explain` gives, and the geometry it belongs to. Out: the picture with warm
colours where it spoke for the class, cold ones where it spoke against it, and a veil over what the network does not
see. Written as PNG whole or not at all; a file that is not an earlier output of this module is never replaced.

Cost: about 20 ms a picture. Not covered: how much a place matters beyond the last maps' resolution, which is coarse
(4 x 4 to 14 x 14); the colours are smoothed.
"""

from __future__ import annotations

import io
from collections.abc import Collection
from pathlib import Path

import numpy as np
from jaxtyping import Float
from PIL import Image, PngImagePlugin

from graft.errors import GraftError
from graft.images import decode
from graft.images.dataset import Preprocess
from graft.store import write_atomically

SIDE = 640  # of the longer side of the drawing, in pixels
WARM, COLD, VEIL = (230, 60, 0), (0, 90, 220), (128, 128, 128)
STRONGEST = 0.65  # how far the strongest place is covered by its colour
VEILED = 0.45
SUFFIX = ".explained.png"
MARK = "graft predict --explain"


def overlay(
    picture: Image.Image, activation: Float[np.ndarray, "y x"], preprocess: Preprocess
) -> Image.Image:
    """The upright `picture`, at most 640 pixels long, with the map over the part that the network sees."""
    shown = picture.convert("RGB")
    shown.thumbnail((SIDE, SIDE), Image.Resampling.BILINEAR)
    wide, high = shown.size
    left, top, right, bottom = _seen(wide, high, preprocess)
    strength = max(float(np.abs(activation).max()), 1e-12)
    small = Image.fromarray((activation / strength).astype(np.float32))
    smooth = small.resize((right - left, bottom - top), Image.Resampling.BICUBIC)
    values = np.zeros((high, wide), np.float32)
    inside = (slice(max(top, 0), min(bottom, high)), slice(max(left, 0), min(right, wide)))
    values[inside] = np.asarray(smooth)[
        max(-top, 0) : max(-top, 0) + inside[0].stop - inside[0].start,
        max(-left, 0) : max(-left, 0) + inside[1].stop - inside[1].start,
    ]
    values = np.clip(values, -1, 1)[:, :, None]
    colour = np.where(values >= 0, WARM, COLD).astype(np.float32)
    share = STRONGEST * np.abs(values)
    veiled = np.ones((high, wide, 1), bool)
    veiled[inside] = False
    colour = np.where(veiled, np.array(VEIL, np.float32), colour)
    share = np.where(veiled, np.float32(VEILED), share)
    mixed = np.asarray(shown, np.float32) * (1 - share) + colour * share
    return Image.fromarray(np.clip(mixed + 0.5, 0, 255).astype(np.uint8))


def write_overlay(
    source: Path,
    activation: Float[np.ndarray, "y x"],
    preprocess: Preprocess,
    *,
    folder: Path,
    taken: Collection[Path] = (),
) -> Path:
    """Draw over the image at `source` and write `NAME.explained.png` into `folder`; returns where it is.

    A name in `taken` (of this run) gets a number. Raises GraftError rather than replace a file of another origin, and
    DatasetError for what cannot be read.
    """
    drawn = overlay(decode.read(source, hint_side=SIDE), activation, preprocess)
    target = folder / f"{source.stem}{SUFFIX}"
    number = 2
    while target in taken:
        target = folder / f"{source.stem}-{number}{SUFFIX}"
        number += 1
    if target.exists() and not _ours(target, source):
        raise GraftError(
            f"{target} is there and was not made by --explain, so it is not replaced. Name another folder with --out."
        )
    told = PngImagePlugin.PngInfo()
    told.add_text("Software", MARK)
    buffer = io.BytesIO()
    drawn.save(buffer, "PNG", pnginfo=told)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(target, buffer.getvalue())
    except OSError as error:
        raise GraftError(
            f"{target} cannot be written: {error.strerror or error}. Name another folder with --out."
        ) from error
    return target


def _seen(wide: int, high: int, preprocess: Preprocess) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of what the network sees; with `pad` that is more than the picture."""
    if preprocess.fit == "squash":
        return 0, 0, wide, high
    side = min(wide, high) * preprocess.crop_share if preprocess.fit == "crop" else max(wide, high)
    left, top = round((wide - side) / 2), round((high - side) / 2)
    return left, top, left + max(1, round(side)), top + max(1, round(side))


def _ours(path: Path, source: Path) -> bool:
    """Whether this module wrote the file, and it is not what is to be explained now."""
    return path.resolve() != source.resolve() and drawn_here(path)


def drawn_here(path: Path) -> bool:
    """Whether the file is an earlier output of this module."""
    if not path.name.endswith(SUFFIX):
        return False
    try:
        with PngImagePlugin.PngImageFile(path) as image:
            return image.info.get("Software") == MARK
    except (OSError, SyntaxError, ValueError):
        return False
