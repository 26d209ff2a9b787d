"""From the bytes of a file to an upright grey or RGB picture of 8 bits, or to the reason why not.

In: a path or encoded bytes. Out: a Pillow image in mode "L" (the file has no colour channels) or "RGB", turned as its
EXIF says. Cost: one decode; JPEGs decode at 1/2, 1/4 or 1/8 where a `hint_side` allows it (12 megapixels: 40 ms in
full, 32, 26 and 24 ms). Any number of threads may read at once: nothing global is set or relied upon.

How other kinds of pixels become 8-bit grey or RGB: transparent parts show white; a palette becomes RGB; CMYK and YCCK
by Pillow's plain formula (Adobe's inversion undone); 16-bit grey is divided by 257, never clipped; 32-bit integers and
floats are taken by the range of the picture at hand: [0, 1], [0, 255] or [0, 65535]; colour of 16 bits keeps its high
byte. Colour profiles are ignored: networks are trained on pixels read in the same way. Not covered: 16-bit grey that
uses only its lower bits (12-bit cameras) comes out dark; about a damaged TIFF, libtiff may write a line to stderr itself.

The formats are opened through their own Pillow classes instead of `Image.open`: that one identifies files by trying
some forty formats and guards against decompression bombs with a warning, which is an error in one program, silence in
another and cannot be filtered safely by a thread. The guard here is the size in the header, compared before any pixel
is decoded.
"""

from __future__ import annotations

import stat
import struct
import zlib
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from graft.images.headers import UPRIGHT, Essentials, UnreadableImage, essentials, exif_orientation, sniff

__all__ = ["MAX_PIXELS", "MIN_SIDE", "UnreadableImage", "converted", "read", "read_each", "read_with_size"]

# Just below the 89,478,485 pixels at which Pillow itself begins to warn from inside some decoders.
MAX_PIXELS = 89_000_000
MAX_BYTES = 1024**3
MIN_SIDE = 4

_OPENERS: dict[str, Callable[[BytesIO], ImageFile.ImageFile]] = {
    "JPEG": JpegImagePlugin.JpegImageFile,
    "PNG": PngImagePlugin.PngImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "WEBP": WebPImagePlugin.WebPImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
}
# What Pillow's parsers and decoders raise on damaged data.
_DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    LookupError,
    TypeError,
    ArithmeticError,
    AttributeError,
    AssertionError,
    EOFError,
    ImportError,
    MemoryError,
    NameError,
    RuntimeError,
    BufferError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read(source: bytes | Path, *, hint_side: int | None = None) -> Image.Image:
    """The upright image of `source` in mode "L" or "RGB"; see `read_with_size`."""
    return read_with_size(source, hint_side=hint_side)[0]


def read_with_size(
    source: bytes | Path, *, hint_side: int | None = None
) -> tuple[Image.Image, tuple[int, int]]:
    """The upright image of `source`, and the width and height in pixels that it has in full.

    With `hint_side`, a JPEG may come out smaller, but never with a short side under `hint_side` pixels (unless the
    full image is smaller). Raises UnreadableImage, and nothing else, whatever the bytes are.
    """
    data = _bytes(source)
    form = sniff(data)
    found = essentials(form, data)
    if found.size is not None:
        _check_size(found.size)
    try:
        image = _OPENERS[form](BytesIO(found.data))
        width, height = image.size
        _check_size(image.size)
        if form == "TIFF" and max(tile[1][3] for tile in image.tile if tile[1]) < height:
            raise UnreadableImage("truncated", "The TIFF file names no data for its last rows.")
        if hint_side is not None and form == "JPEG":
            image.draft(None, (hint_side, hint_side))
        image.load()
        upright = _turned(_eight_bits(image, grey=found.grey, bits=found.bits), found.orientation)
    except _DAMAGE as error:
        raise _damaged(form, found, error) from error
    return upright, (width, height) if found.orientation < 5 else (height, width)


def read_each(source: bytes | Path, *, hint_sides: Sequence[int]) -> list[Image.Image]:
    """`[read(source, hint_side=side) for side in hint_sides]`, pixel for pixel, decoded once per scale.

    What an image looks like thus never depends on which other sizes were asked for in the same call.
    """
    data = _bytes(source)
    largest = max(hint_sides)
    image, full = read_with_size(data, hint_side=largest)
    scalable = sniff(data) == "JPEG"
    by_scale = {_scale(full, largest): image}
    for side in hint_sides:
        scale = _scale(full, side)
        if scale not in by_scale:
            by_scale[scale] = read(data, hint_side=side) if scalable else image
    return [by_scale[_scale(full, side)] for side in hint_sides]


def converted(image: Image.Image) -> Image.Image:
    """An image that was opened or made elsewhere, in mode "L" or "RGB".

    One that comes straight from `Image.open` is turned as its EXIF says, so that it equals the same file read here;
    one that was worked on is taken as it stands. Raises UnreadableImage.
    """
    fresh = isinstance(image, ImageFile.ImageFile)
    orientation = exif_orientation(image.info.get("exif") or b"") if fresh else UPRIGHT
    bits = 16 if image.mode.startswith("I;16") or image.format == "PNG" else 0
    _check_size(image.size)
    try:
        image.load()
        return _turned(_eight_bits(image, grey=False, bits=bits), orientation)
    except _DAMAGE as error:
        found = Essentials(b"", complete=True)
        raise _damaged(image.format or "given", found, error) from error


def _scale(full: tuple[int, int], hint_side: int) -> int:
    """By how much a JPEG decoder shrinks an image for `hint_side`: 1, 2, 4 or 8."""
    return next((scale for scale in (8, 4, 2) if min(full) // hint_side >= scale), 1)


def _bytes(source: bytes | Path) -> bytes:
    if isinstance(source, bytes):
        return source
    try:
        status = source.stat()
        if status.st_size > MAX_BYTES:
            raise UnreadableImage(
                "too_large", f"The file has {status.st_size:,} bytes; at most {MAX_BYTES:,} are read."
            )
        if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
            raise UnreadableImage("not_an_image", "This is a pipe or a device, not a file.")
        return source.read_bytes()
    except IsADirectoryError as error:
        raise UnreadableImage("unreadable", "It is a folder, and holds no image files.") from error
    except OSError as error:
        raise UnreadableImage(
            "unreadable", f"The file cannot be opened: {error.strerror or error}."
        ) from error


def _check_size(size: tuple[int, int]) -> None:
    width, height = size
    if width * height > MAX_PIXELS:
        reason = f"{width} x {height} = {width * height:,} pixels; at most {MAX_PIXELS:,} are read."
        raise UnreadableImage("too_large", reason)
    if min(width, height) < MIN_SIDE:
        reason = f"{width} x {height} pixels; each side needs at least {MIN_SIDE}."
        raise UnreadableImage("too_small", reason)


def _damaged(form: str, found: Essentials, error: BaseException) -> UnreadableImage:
    if isinstance(error, UnreadableImage):
        return error
    if not found.complete or "truncated" in str(error).lower():
        return UnreadableImage("truncated", f"The {form} file ends before its last pixel.")
    detail = str(error) or type(error).__name__
    return UnreadableImage("unreadable", f"The {form} file is damaged or of a rare kind ({detail}).")


def _turned(image: Image.Image, orientation: int) -> Image.Image:
    return image if orientation == UPRIGHT else image.transpose(_TURNS[orientation])


def _eight_bits(image: Image.Image, *, grey: bool, bits: int) -> Image.Image:
    """`image` in mode "L" or "RGB". `grey`, `bits` per sample: what the file says about itself."""
    mode = image.mode
    if mode in ("I", "F") or mode.startswith("I;"):
        return _from_deep(image, bits)
    if mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        return _on_white(image, grey=grey or mode in ("L", "1", "LA", "La"))
    if mode in ("L", "RGB"):
        return image
    return image.convert("L" if mode == "1" else "RGB")


def _on_white(image: Image.Image, *, grey: bool) -> Image.Image:
    clear = image.convert("LA" if grey and image.mode != "RGBA" else "RGBA")
    white = Image.new("L" if grey else "RGB", image.size, "white")
    white.paste(clear.getchannel(0) if grey else clear, mask=clear.getchannel("A"))
    return white


def _from_deep(image: Image.Image, bits: int) -> Image.Image:
    """16-bit grey by its full range; 32-bit integers and floats by the range of this picture."""
    values = np.asarray(image)
    if not np.isfinite(values).all():
        raise UnreadableImage(
            "unreadable", "The picture holds values that are not numbers (NaN or infinite)."
        )
    low, high = float(values.min()), float(values.max())
    if bits == 16 and low >= 0:
        scale = 1 / 257
    elif low >= 0 and high <= 65535:
        scale = 255.0 if high <= 1 else 1.0 if high <= 255 else 1 / 257
    else:
        reason = f"Its values reach from {low:g} to {high:g}; save it as 8-bit or 16-bit grey."
        raise UnreadableImage("unreadable", reason)
    scaled = values.astype(np.float32)
    scaled *= scale
    grey = Image.fromarray(np.rint(scaled, out=scaled).astype(np.uint8))
    key = image.info.get("transparency")
    if isinstance(key, int):
        grey.paste(255, mask=Image.fromarray((values == key).astype(np.uint8) * 255))
    return grey
