"""What an estimator is given, as images: arrays, tables of flattened arrays, paths, encoded bytes, PIL images.

In: whatever stands for X in scikit-learn, and how the numbers in it are meant. Out: uint8 pixels in a network's
geometry, by the same code as everywhere else (`graft.images.preprocess`). Cost: about 700 photos of 500 x 375 px a
second on two cores; arrays are faster.

How numbers become grey levels: uint8 as it is; truth values black and white; other whole numbers must lie in 0..255,
floats in 0..1, both checked. With a range (`lowest`, `highest`), whatever the type, `lowest` becomes black, `highest`
white, and what lies beyond is clipped. An array with a side under 4 px is enlarged by repeating its pixels.

Not covered: images with more than 4 channels; two images of one stack at different sizes (give a list of arrays).
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import UInt8
from PIL.Image import Image

from graft.errors import DatasetError, SettingsError
from graft.images.dataset import Preprocess
from graft.images.decode import MIN_SIDE
from graft.images.preprocess import load

Picture: TypeAlias = Any  # str | Path | bytes | Image | np.ndarray
Pictures: TypeAlias = Sequence[Any] | np.ndarray
Span: TypeAlias = "tuple[float, float] | None"

COLOURS = (3, 4)  # channels of an image in colour
NO_IMAGES = "X holds no images (0 sample(s)); give at least one."
KINDS = (
    "an array [n, h, w] or [n, h, w, c], or a list or Series of paths, encoded bytes, PIL images or arrays; a table "
    "[n, h * w * c] needs image_shape=(h, w) or (h, w, c)"
)


class InputError(DatasetError, ValueError):
    """What was given as images or labels is none; a ValueError, too, as scikit-learn expects."""


class ParameterError(SettingsError, ValueError):
    """A parameter has a value that it cannot have; a ValueError, too, as scikit-learn expects."""


def is_table(given: Any) -> bool:
    """Whether it is a table of numbers, or nothing that could be images: for scikit-learn's own checks to judge.

    Raises InputError for a single image.
    """
    if isinstance(given, (str, Path, bytes, Image)):
        raise InputError(
            f"One {type(given).__name__} was given instead of many images. Give a list, even of one."
        )
    if _sparse(given) or not _countable(given):
        return True
    array = _as_array(given)
    if array.dtype.kind in "biufc":
        if array.ndim == 3 and array.shape[2] in COLOURS and array.shape[1] > max(COLOURS):
            shape = list(array.shape)
            raise InputError(
                f"X is an array of shape {shape}, which is one image in colour rather than many grey ones. Give "
                f"{[1, *shape]} for one, {[*shape, 1]} for many."
            )
        return array.ndim not in (3, 4)
    return not (len(array) and _is_picture(_flat(array)[0]))


def as_pictures(given: Any) -> Pictures:
    """The images one by one of what `is_table` says is none. Raises InputError where there are none."""
    array = _as_array(given)
    if not len(array):
        raise InputError(NO_IMAGES)
    return array if array.dtype.kind in "biuf" else _flat(array)


def from_table(table: np.ndarray, image_shape: Any) -> np.ndarray:
    """The rows of a table as images `[n, h, w]` or `[n, h, w, c]`. Raises InputError where they do not fit."""
    if image_shape is None:
        raise InputError(
            f"X is a table of shape {list(table.shape)}, which does not say how a row makes an image. Set image_shape to "
            f"(height, width) or (height, width, channels), or give {KINDS}."
        )
    shape = tuple(image_shape) if isinstance(image_shape, (tuple, list)) else ()
    whole = all(isinstance(side, (int, np.integer)) and (side > 0 or side == -1) for side in shape)
    if len(shape) not in (2, 3) or not whole or shape.count(-1) > 1:
        raise ParameterError(
            f"image_shape={image_shape!r}: give (height, width) or (height, width, channels) in pixels; one of them may "
            "be -1 for whatever is left."
        )
    try:
        return table.reshape(len(table), *shape)
    except ValueError:
        raise InputError(
            f"Rows of {table.shape[1]} numbers do not make images of the shape {shape}."
        ) from None


def span_of(pictures: Pictures, value_range: Any) -> Span:
    """The values that become black and white; None: those of the type, checked. `fit`: the least and the greatest."""
    if value_range is None:
        return None
    if isinstance(value_range, str) and value_range == "fit":
        arrays = [picture for picture in pictures if isinstance(picture, np.ndarray)]
        if not arrays:
            return None
        low, high = float(min(a.min() for a in arrays)), float(max(a.max() for a in arrays))
        return low, high if high > low else low + 1.0
    try:
        low, high = (float(edge) for edge in value_range)
    except (TypeError, ValueError):
        low, high = 0.0, 0.0
    if not (low < high and np.isfinite([low, high]).all()):
        raise ParameterError(
            f"value_range={value_range!r}: give None (uint8, or floats from 0 to 1), 'fit' (the least and greatest value "
            "of the training images), or (lowest, highest)."
        )
    return low, high


def pixels_of(
    pictures: Pictures, geometry: Preprocess, span: Span, *, threads: int
) -> UInt8[np.ndarray, "n h w c"]:
    """All images in a geometry. Raises DatasetError for one that cannot be read, with its place in X."""
    made = np.empty((len(pictures), geometry.size, geometry.size, geometry.channels), np.uint8)

    def fill(place: int) -> None:
        picture = pictures[place]
        if isinstance(picture, np.ndarray):
            picture = _grey_levels(picture, span, place)
        try:
            made[place] = load(_plain(picture, place), geometry)
        except DatasetError as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"Image {place} of X cannot be read: {error}") from error

    with ThreadPoolExecutor(threads, "graft-estimator") as pool:
        list(pool.map(fill, range(len(pictures))))
    return made


def sides_of(pictures: Pictures, span: Span) -> tuple[np.ndarray, np.ndarray]:
    """The widths and the heights of all images in pixels, read from their heads where that is enough."""
    sizes = []
    for place, picture in enumerate(pictures):
        if isinstance(picture, np.ndarray):
            sizes.append(_grey_levels(picture, span, place).shape[1::-1])
        elif isinstance(picture, Image):
            sizes.append(picture.size)
        else:
            from graft.images.decode import read_with_size

            source = picture if isinstance(picture, bytes) else Path(picture)
            sizes.append(read_with_size(source, hint_side=MIN_SIDE)[1])
    wide, high = np.array(sizes, np.int64).reshape(-1, 2).T
    return wide, high


def _grey_levels(array: np.ndarray, span: Span, place: int) -> np.ndarray:
    """An array of any numbers as uint8, no side under 4 px."""
    if array.dtype.kind not in "biuf" or array.ndim not in (2, 3) or 0 in array.shape:
        raise InputError(
            f"Image {place} of X is an array of {array.dtype} and shape {list(array.shape)}; an image is [h, w] or "
            "[h, w, 1, 3 or 4] of numbers."
        )
    if span is not None:
        low, high = span
        scaled = np.clip((array.astype(np.float64) - low) / (high - low), 0, 1)
        if not np.isfinite(scaled).all():
            raise InputError(f"Image {place} of X holds NaN. Replace or leave out what is not measured.")
        array = np.rint(255 * scaled).astype(np.uint8)
    elif array.dtype != np.uint8:
        array = _checked(array, place)
    for axis in (0, 1):
        if array.shape[axis] < MIN_SIDE:
            array = np.repeat(array, -(-MIN_SIDE // array.shape[axis]), axis=axis)
    return array


def _checked(array: np.ndarray, place: int) -> np.ndarray:
    low, high = array.min(), array.max()
    white = 255 if array.dtype.kind in "iu" else 1
    if not (low >= 0 and high <= white):
        raise InputError(
            f"Image {place} of X holds values from {low:g} to {high:g}. Whole numbers are read as 0 to 255, floats as "
            "0 to 1; for anything else set value_range=(lowest, highest) or value_range='fit'."
        )
    return (
        array.astype(np.uint8) if white == 255 else np.rint(255 * array.astype(np.float64)).astype(np.uint8)
    )


def _plain(picture: Picture, place: int) -> Picture:
    if isinstance(picture, (str, Path, bytes, Image, np.ndarray)):
        return str(picture) if isinstance(picture, str) else picture
    raise InputError(f"Item {place} of X is a {type(picture).__name__} and no image. Give {KINDS}.")


def _is_picture(item: Any) -> bool:
    return isinstance(item, (str, Path, bytes, Image)) or (isinstance(item, np.ndarray) and item.ndim >= 2)


def _countable(given: Any) -> bool:
    return hasattr(given, "__len__") and (hasattr(given, "__array__") or isinstance(given, (list, tuple)))


def _sparse(given: Any) -> bool:
    return hasattr(given, "toarray") and not isinstance(given, np.ndarray)


def _as_array(given: Any) -> np.ndarray:
    """As one array of numbers, or of one object per item where the items are pictures."""
    listed = isinstance(given, (list, tuple))
    if listed and len(given) and _is_picture(given[0]):
        array = np.empty(len(given), object)
        for place, item in enumerate(given):
            array[place] = item
        return array
    if listed:
        try:
            return np.asarray(given)
        except ValueError:
            return np.empty(0, object)
    return np.asarray(given)


def _flat(array: np.ndarray) -> np.ndarray:
    """A column of objects as the row that it is."""
    return array[:, 0] if array.ndim == 2 and array.shape[1] == 1 else array
