"""A contact sheet: images as they are beside views of them, to be looked at before anything is trained.

In: pixels, rows and an augmentation. Out: the bytes of a JPEG of at most 200 kB with one image per line: the original,
then five views of it. The same arguments give the same bytes. Cost: about 0.2 s.

Captions are drawn in Pillow's own font, which knows Latin letters; what it cannot draw becomes a question mark.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int64, UInt8
from PIL import Image, ImageDraw, ImageFont

from graft.images.augmentations import Augmentation
from graft.store import write_atomically

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
FILE = "preview.jpg"
LINES = 8
VIEWS = 5
SIDE = 112
GAP = 4
CAPTION = 16
MOST_BYTES = 200_000
QUALITIES = (85, 75, 60, 45, 30, 15)
_UNKNOWN = "\U0010ffff"  # a code point that no font has


def contact_sheet(
    pixels: UInt8[np.ndarray, "n h w c"],
    rows: Int64[np.ndarray, " m"],
    augmentation: Augmentation,
    *,
    names: Sequence[str],
    seed: int,
    title: str = "",
) -> bytes:
    """A JPEG of the first eight of `rows`, each with five views; `names[i]` is the caption of `rows[i]`."""
    font = _font()
    shown = list(zip(rows.tolist(), names, strict=True))[:LINES]
    wide = GAP + (1 + VIEWS) * (SIDE + GAP)
    high = CAPTION + GAP + len(shown) * (SIDE + CAPTION + GAP)
    sheet = Image.new("RGB", (wide, high), "white")
    pen = ImageDraw.Draw(sheet)
    pen.text((GAP, 1), _written(title or "As it is, and five views", font, wide - 2 * GAP), "black", font)
    for line, (row, name) in enumerate(shown):
        top = CAPTION + GAP + line * (SIDE + CAPTION + GAP)
        for column, picture in enumerate(_pictures(pixels, row, augmentation, seed)):
            sheet.paste(picture, (GAP + column * (SIDE + GAP), top))
        pen.text((GAP, top + SIDE), _written(name, font, wide - 2 * GAP), "black", font)
    return _small(sheet)


def preview_of(
    pixels: UInt8[np.ndarray, "n h w c"],
    targets: Int64[np.ndarray, " n"],
    rows: Int64[np.ndarray, " m"],
    augmentation: Augmentation,
    *,
    classes: Sequence[str],
    seed: int,
    folder: Path,
    title: str = "",
) -> Path:
    """Write `preview.jpg` into `folder` (whole or not at all): images of `rows`, of as many classes as fit.

    Raises OSError if the folder cannot be written. Returns the path.
    """
    chosen = spread(targets, rows)
    names = [classes[targets[row]] for row in chosen]
    sheet = contact_sheet(pixels, chosen, augmentation, names=names, seed=seed, title=title)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / FILE, sheet)
    return folder / FILE


def spread(targets: Int64[np.ndarray, " n"], rows: Int64[np.ndarray, " m"]) -> Int64[np.ndarray, " k"]:
    """At most eight of `rows`, in turns from every class, classes side by side."""
    turn = np.zeros(len(rows), np.int64)
    for label in np.unique(targets[rows]):
        own = np.flatnonzero(targets[rows] == label)
        turn[own] = np.arange(len(own))
    first = rows[np.lexsort((targets[rows], turn))[:LINES]]
    return first[np.lexsort((first, targets[first]))]


def _pictures(
    pixels: UInt8[np.ndarray, "n h w c"], row: int, augmentation: Augmentation, seed: int
) -> list[Image.Image]:
    """The image and its views, each at most `SIDE` pixels along its longer side."""
    from graft.images.views import fixed_view

    pictures = []
    for view in range(1 + VIEWS):
        made = fixed_view(pixels[row], augmentation, seed=seed, number=row, view=view)[0]
        levels = (made.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
        picture = Image.fromarray(levels if levels.shape[2] == 3 else levels[..., 0]).convert("RGB")
        longer = max(picture.size)
        size = [max(1, round(side * SIDE / longer)) for side in picture.size]
        pictures.append(picture.resize((size[0], size[1])))
    return pictures


def _font() -> Font:
    return ImageFont.load_default(CAPTION - 4)


def _written(text: str, font: Font, width: int) -> str:
    """`text` as the font can draw it in `width` pixels: unknown characters as `?`, too much of it left out."""
    known = {one: one if _drawable(one, font) else "?" for one in set(text)}
    drawn = "".join(known[one] for one in text[:200])
    if font.getlength(drawn) <= width and len(text) <= 200:
        return drawn
    while drawn and font.getlength(drawn + "...") > width:
        drawn = drawn[:-1]
    return drawn + "..."


def _drawable(one: str, font: Font) -> bool:
    if one == " ":
        return True
    if not one.isprintable():
        return False
    if not isinstance(font, ImageFont.FreeTypeFont):
        return one.isascii()
    return bytes(font.getmask(one)) != bytes(font.getmask(_UNKNOWN))


def _small(sheet: Image.Image) -> bytes:
    """The best quality that stays below the limit."""
    content = b""
    for quality in QUALITIES:
        stream = io.BytesIO()
        sheet.save(stream, "JPEG", quality=quality, optimize=True)
        content = stream.getvalue()
        if len(content) <= MOST_BYTES:
            break
    return content
