"""The one way from an upright picture to a network's input; training and serving both come through here.

In: a Pillow image in mode "L" or "RGB", and a `Preprocess`. Out: uint8 `[h, w, c]` with h = w = `size`, values 0 to
255. Normalisation is not done here: it lives inside the network's graph. Cost: one antialiased resize of only that
region which is kept. Not covered: random views for training.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from graft.errors import DatasetError
from graft.images.dataset import Preprocess
from graft.images.decode import UnreadableImage, converted, read

MID_GREY = 128
# A JPEG is decoded at a reduced scale only where this many times the final scale is left for the antialiased resize.
# Measured on photos of 600 pixels and more, mean difference to the full decode in grey levels: 1.15 times 1.0 to 1.4,
# 1.5 times 0.4 to 0.9, 2 times 0.3 to 0.5.
_MARGIN = 2.0
# Larger pictures are box-averaged by whole factors down to four times the target before the filter proper: 2 to 10
# times faster; measured on photos, the mean difference is 0.01 to 0.2 grey levels (three times: 0.02 to 0.3).
_REDUCING_GAP = 4.0

_FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


def prepare(image: Image.Image, preprocess: Preprocess) -> UInt8[np.ndarray, "h w c"]:
    """The network's input for an upright `image` in mode "L" or "RGB".

    `crop` and `squash` resize one rectangle of the image, given in fractions of pixels: cutting before resizing is
    the same picture as resizing before cutting, without the rounding and without the pixels that are thrown away.
    """
    size = preprocess.size
    wide, high = image.size
    if preprocess.channels == 1 and image.mode != "L":
        image = image.convert("L")
    if preprocess.fit == "pad":
        pixels = _padded(image, preprocess)
    else:
        side = min(wide, high) * preprocess.crop_share
        left, top = (wide - side) / 2, (high - side) / 2
        box = (left, top, left + side, top + side) if preprocess.fit == "crop" else None
        pixels = _resized(image, (size, size), box, preprocess)
    if preprocess.channels == 3 and pixels.mode == "L":
        pixels = pixels.convert("RGB")
    return np.asarray(pixels).reshape(size, size, preprocess.channels)


def hint_side(preprocess: Preprocess) -> int:
    """The short side in pixels that a decoder must leave so that `prepare` loses nothing."""
    share = preprocess.crop_share if preprocess.fit == "crop" else 1.0
    return math.ceil(_MARGIN * preprocess.size / share)


def load(
    source: Path | str | bytes | Image.Image | np.ndarray, preprocess: Preprocess
) -> UInt8[np.ndarray, "h w c"]:
    """The network's input for a file, its bytes, a Pillow image, or a uint8 array `[h, w]` or `[h, w, 1|3|4]`.

    Raises UnreadableImage (a DatasetError) for an image that cannot be read, and DatasetError for an array of
    another shape or dtype.
    """
    if isinstance(source, np.ndarray):
        return prepare(converted(_from_array(source)), preprocess)
    if isinstance(source, Image.Image):
        return prepare(converted(source), preprocess)
    if isinstance(source, bytes):
        return prepare(read(source, hint_side=hint_side(preprocess)), preprocess)
    try:
        return prepare(read(Path(source), hint_side=hint_side(preprocess)), preprocess)
    except UnreadableImage as error:
        raise UnreadableImage(error.kind, f"{source}: {error.reason}") from error


def _resized(
    image: Image.Image,
    size: tuple[int, int],
    box: tuple[float, float, float, float] | None,
    preprocess: Preprocess,
) -> Image.Image:
    return image.resize(size, _FILTERS[preprocess.interpolation], box=box, reducing_gap=_REDUCING_GAP)


def _padded(image: Image.Image, preprocess: Preprocess) -> Image.Image:
    size = preprocess.size
    scale = size / max(image.size)
    inner = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    canvas = Image.new(image.mode, (size, size), MID_GREY if image.mode == "L" else (MID_GREY,) * 3)
    place = (size - inner[0]) // 2, (size - inner[1]) // 2
    canvas.paste(_resized(image, inner, None, preprocess), place)
    return canvas


def _from_array(array: np.ndarray) -> Image.Image:
    grey = array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 1)
    if not grey and not (array.ndim == 3 and array.shape[2] in (3, 4)):
        raise DatasetError(
            f"An image given as an array has the shape [h, w], [h, w, 1], [h, w, 3] or [h, w, 4]; this one has "
            f"{list(array.shape)}. Move the channels to the end, and give the images of a batch one by one."
        )
    if array.dtype != np.uint8:
        scaled = "Multiply values from 0 to 1 by 255, round, and use .astype(numpy.uint8)"
        plain = "Scale the values to 0 to 255 and use .astype(numpy.uint8)"
        raise DatasetError(
            f"An image given as an array holds uint8 values from 0 to 255; this one, of shape {list(array.shape)}, "
            f"holds {array.dtype}. {scaled if array.dtype.kind == 'f' else plain}."
        )
    return Image.fromarray(np.ascontiguousarray(array.reshape(array.shape[:2]) if grey else array))
