"""What an image file says about itself before a pixel is decoded.

In: the bytes of a file. Out: its format by magic number, its orientation, whether it was cut short, and the same file
reduced to what its pixels need (`Essentials`). Metadata is left behind because Pillow parses it eagerly and answers
nonsense in it with Python warnings, whose filters belong to the whole process and cannot be changed safely from a
thread; nonsense in a camera's notes must not make a photo unreadable either.

Cost: one walk over markers or chunks, and a copy of the bytes where something was left behind. Not covered: colour
profiles, orientation kept only in XMP.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from graft.errors import DatasetError
from graft.images.dataset import IssueKind

UPRIGHT = 1

_TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
# Bytes per value of each TIFF type.
_TIFF_TYPES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8}
_TIFF_INTEGERS = {1: "B", 3: "H", 4: "I", 16: "Q"}
# Size, layout, compression and colour of the pixels; among them those that have one value.
_TIFF_SCALARS = frozenset(
    {256, 257, 259, 262, 266, 277, 278, 284, 292, 293, 317, 322, 323, 332, 512, 513, 514, 531}
)
_TIFF_ESSENTIAL = _TIFF_SCALARS | {
    258,
    273,
    279,
    320,
    324,
    325,
    338,
    339,
    347,
    515,
    519,
    520,
    521,
    529,
    530,
    532,
}
_ORIENTATION = 274

_UNREAD_IMAGES = (
    (0, b"\0\0\0\x0cjP  ", "JPEG 2000"),
    (0, b"\xff\x4f\xff\x51", "JPEG 2000"),
    (0, b"\0\0\0\x0cJXL ", "JPEG XL"),
    (0, b"\xff\x0a", "JPEG XL"),
    (4, b"ftyphei", "HEIC"),
    (4, b"ftyphev", "HEIC"),
    (4, b"ftypmif1", "HEIC"),
    (4, b"ftypmsf1", "HEIC"),
    (4, b"ftypavi", "AVIF"),
    (0, b"8BPS", "Photoshop"),
    (0, b"\0\0\1\0", "icon (ICO)"),
    (0, b"v/1\1", "OpenEXR"),
    (0, b"<svg", "SVG"),
    (0, b"DDS ", "DDS"),
    (0, b"qoif", "QOI"),
    (0, b"SIMPLE  =", "FITS"),
    (128, b"DICM", "DICOM"),
    *(
        (0, b"P" + kind + blank, "PNM")
        for kind in (b"1", b"2", b"3", b"4", b"5", b"6")
        for blank in (b"\n", b" ")
    ),
)
_OTHER_FILES = (
    (0, b"%PDF", "a PDF document"),
    (0, b"PK\3\4", "a ZIP archive or office document"),
    (4, b"ftyp", "a video"),
    (0, b"<!DOCTYPE", "a web page"),
    (0, b"<!doctype", "a web page"),
    (0, b"<html", "a web page"),
    (0, b"<?xml", "an XML document"),
)


class UnreadableImage(DatasetError):
    """One image cannot be had from its bytes.

    `kind` is the word for `check.csv`, `reason` the sentence beside it (also `str(error)`); neither names the file,
    which the caller knows.
    """

    def __init__(self, kind: IssueKind, reason: str) -> None:
        super().__init__(reason)
        self.kind: IssueKind = kind
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Essentials:
    """A file reduced to its pixels.

    `orientation` is the EXIF number, 1 to 8. `complete`: whether the container has its end. `size`: width and height
    where Pillow would allocate before it lets anybody ask. `grey`: the file says that it has no colour channels.
    `bits`: per sample, or 0 where it does not matter.
    """

    data: bytes
    complete: bool
    orientation: int = UPRIGHT
    size: tuple[int, int] | None = None
    grey: bool = False
    bits: int = 0


def sniff(data: bytes) -> str:
    """The format's name: JPEG, PNG, WEBP, BMP, TIFF or GIF. Raises UnreadableImage for everything else."""
    if not data:
        raise UnreadableImage("empty", "The file is empty (0 bytes).")
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "WEBP"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    if data.startswith(_TIFF_MAGIC):
        return "TIFF"
    if data.startswith(b"BM"):
        return "BMP"
    raise _refusal(data)


def essentials(form: str, data: bytes) -> Essentials:
    """The part of a file of the format `form` (from `sniff`) that its pixels need.

    Raises UnreadableImage("truncated") where the file ends before its pixels are described.
    """
    try:
        return _WALKS[form](data)
    except (struct.error, IndexError):
        raise UnreadableImage("truncated", f"The {form} file ends inside its header.") from None


def exif_orientation(exif: bytes) -> int:
    """The orientation, 1 to 8, in an EXIF block; 1 where there is none or the block is nonsense."""
    block = exif[6:] if exif.startswith(b"Exif\0\0") else exif
    if not block.startswith(_TIFF_MAGIC):
        return UPRIGHT
    try:
        return _orientation(block, list(_tiff_entries(block)))
    except (struct.error, IndexError):
        return UPRIGHT


def tiff_size(data: bytes) -> tuple[int, int]:
    """Width and height of the first picture of a TIFF. Raises struct.error or IndexError where it does not tell."""
    sides = {}
    for entry in _tiff_entries(data):
        if entry.tag in (256, 257) and entry.count == 1:
            sides[entry.tag] = (_tiff_integers(data, entry) or (0,))[0]
    if len(sides) < 2:
        raise IndexError
    return sides[256], sides[257]


def _refusal(data: bytes) -> UnreadableImage:
    for offset, magic, name in _UNREAD_IMAGES:
        if data.startswith(magic, offset):
            reason = f"{name} images are not read; convert it to PNG or JPEG."
            return UnreadableImage("unreadable", reason)
    for offset, magic, name in _OTHER_FILES:
        if data.startswith(magic, offset):
            return UnreadableImage("not_an_image", f"This is {name}, not an image.")
    reason = "The content is not that of a JPEG, PNG, WebP, BMP, TIFF or GIF image, whatever the name says."
    return UnreadableImage("not_an_image", reason)


def _jpeg(data: bytes) -> Essentials:
    """Keeps the tables, the frame, JFIF and Adobe (both decide the colours), and all from the first scan on."""
    kept, orientation, place, end = [data[:2]], UPRIGHT, 2, len(data)
    while place + 4 <= end:
        marker = data[place + 1]
        if data[place] != 0xFF or marker in (0x00, 0xFF):
            place += 1
            continue
        if marker == 0xDA:
            complete = data.find(b"\xff\xd9", place) >= 0
            return Essentials(b"".join([*kept, data[place:]]), complete, orientation)
        if marker == 0x01 or 0xD0 <= marker <= 0xD9:
            place += 2
            continue
        following = place + 2 + int.from_bytes(data[place + 2 : place + 4], "big")
        body = data[place + 4 : min(following, place + 4 + 6)]
        if marker == 0xE1 and body == b"Exif\0\0" and orientation == UPRIGHT:
            orientation = exif_orientation(data[place + 4 : following])
        tables = 0xC0 <= marker <= 0xCF or 0xDB <= marker <= 0xDF
        if tables or (marker == 0xE0 and body[:4] == b"JFIF") or (marker == 0xEE and body[:5] == b"Adobe"):
            kept.append(data[place:following])
        place = max(following, place + 2)
    raise UnreadableImage("truncated", "The JPEG file ends before its first pixel.")


def _png(data: bytes) -> Essentials:
    """Keeps the critical chunks and the transparency; an animated PNG becomes its default image."""
    width, height, bits, colour = struct.unpack_from(">IIBB", data, 16)
    kept, orientation, complete, place = [data[:8]], UPRIGHT, False, 8
    while place + 8 <= len(data) and not complete:
        length, kind = struct.unpack_from(">I4s", data, place)
        following = place + 12 + length
        if not kind[0] & 0x20 or kind == b"tRNS":
            kept.append(data[place:following])
        elif kind == b"eXIf":
            orientation = exif_orientation(data[place + 8 : following - 4])
        complete = kind == b"IEND" and following <= len(data)
        place = following
    return Essentials(b"".join(kept), complete, orientation, (width, height), colour in (0, 4), bits)


def _gif(data: bytes) -> Essentials:
    """Finds the extent of the first frame, which may reach beyond the screen."""
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    place = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    while data[place : place + 1] != b",":
        if data[place] == 0x21:  # an extension: its label, then blocks up to an empty one
            place += 2
            while data[place]:
                place += 1 + data[place]
        elif data[place] == 0x3B:
            raise UnreadableImage("unreadable", "The GIF file holds no picture.")
        place += 1
    left, top, wide, high = struct.unpack_from("<HHHH", data, place + 1)
    size = max(width, left + wide), max(height, top + high)
    return Essentials(data, data.rstrip(b"\0").endswith(b";"), size=size)


def _webp(data: bytes) -> Essentials:
    kind = data[12:16]
    orientation, place, end = UPRIGHT, 12, 8 + struct.unpack_from("<I", data, 4)[0]
    if kind == b"VP8X":
        size = tuple(1 + int.from_bytes(data[at : at + 3], "little") for at in (24, 27))
    elif kind == b"VP8L":
        packed = struct.unpack_from("<I", data, 21)[0]
        size = (packed & 0x3FFF) + 1, (packed >> 14 & 0x3FFF) + 1
    else:
        size = tuple(side & 0x3FFF for side in struct.unpack_from("<HH", data, 26))
    while place + 8 <= min(end, len(data)):
        chunk, length = struct.unpack_from("<4sI", data, place)
        if chunk == b"EXIF":
            orientation = exif_orientation(data[place + 8 : place + 8 + length])
            break
        place += 8 + length + (length & 1)
    return Essentials(data, end <= len(data), orientation, (size[0], size[1]))


def _bmp(data: bytes) -> Essentials:
    return Essentials(data, struct.unpack_from("<I", data, 2)[0] <= len(data))


@dataclass(frozen=True, slots=True)
class _TiffEntry:
    """One tag: where its record starts, its type and count, where its `length` bytes of values are."""

    place: int
    tag: int
    kind: int
    count: int
    values: int
    length: int
    inline: bool


def _tiff_layout(data: bytes) -> tuple[str, bool, int, int]:
    """Byte order, whether it is a BigTIFF, number of entries and place of the first one."""
    order = "<" if data.startswith(b"II") else ">"
    big = data[2:4] in (b"+\0", b"\0+")
    directory = struct.unpack_from(order + ("Q" if big else "I"), data, 8 if big else 4)[0]
    if directory >= len(data):
        raise IndexError
    count = struct.unpack_from(order + ("Q" if big else "H"), data, directory)[0]
    return order, big, count, directory + (8 if big else 2)


def _tiff_entries(data: bytes) -> Iterator[_TiffEntry]:
    """The entries of the first directory. Raises struct.error or IndexError where the data end before it does."""
    order, big, count, place = _tiff_layout(data)
    record, room, step = (order + "HHQ", 8, 20) if big else (order + "HHI", 4, 12)
    if place + count * step > len(data):
        raise IndexError
    for number in range(count):
        start = place + number * step
        tag, kind, values = struct.unpack_from(record, data, start)
        inside = start + step - room
        length = values * _TIFF_TYPES.get(kind, 0)
        inline = length <= room
        at = inside if inline else struct.unpack_from(order + ("Q" if big else "I"), data, inside)[0]
        yield _TiffEntry(start, tag, kind, values, at, length, inline)


def _tiff_integers(data: bytes, entry: _TiffEntry) -> tuple[int, ...]:
    order = "<" if data.startswith(b"II") else ">"
    letter = _TIFF_INTEGERS.get(entry.kind)
    return struct.unpack_from(f"{order}{entry.count}{letter}", data, entry.values) if letter else ()


def _orientation(data: bytes, entries: list[_TiffEntry]) -> int:
    for entry in entries:
        if entry.tag == _ORIENTATION and entry.count == 1:
            value = _tiff_integers(data, entry)
            return value[0] if value and 1 <= value[0] <= 8 else UPRIGHT
    return UPRIGHT


def _tiff(data: bytes) -> Essentials:
    """Blanks every tag that the pixels do not need or whose values are not there, and the link to further pages.

    A tag is blanked in place by a type of 0, which readers skip, so no offset moves.
    """
    entries = list(_tiff_entries(data))
    _, big, count, place = _tiff_layout(data)
    patched = bytearray(data)
    kept: dict[int, _TiffEntry] = {}
    budget = len(data)
    for entry in entries:
        outside = 0 if entry.inline else entry.length
        whole = (
            entry.length > 0
            and (entry.inline or entry.values + entry.length <= len(data))
            and outside <= budget
        )
        single = entry.tag not in _TIFF_SCALARS or entry.count == 1
        if entry.tag in _TIFF_ESSENTIAL and entry.tag not in kept and whole and single:
            kept[entry.tag] = entry
            budget -= outside
        else:
            patched[entry.place + 2 : entry.place + 4] = b"\0\0"
    end = place + count * (20 if big else 12)
    patched[end : end + (8 if big else 4)] = bytes(8 if big else 4)  # no further page
    bits = _tiff_integers(data, kept[258]) if 258 in kept else (1,)
    complete = {256, 257} <= kept.keys() and _tiff_strips_inside(data, kept)
    return Essentials(bytes(patched), complete, _orientation(data, entries), bits=max(bits, default=0))


def _tiff_strips_inside(data: bytes, kept: dict[int, _TiffEntry]) -> bool:
    for offsets, lengths in ((273, 279), (324, 325)):
        if offsets in kept and lengths in kept:
            pairs = zip(
                _tiff_integers(data, kept[offsets]), _tiff_integers(data, kept[lengths]), strict=False
            )
            return all(offset + length <= len(data) for offset, length in pairs)
    return 273 in kept or 324 in kept


_WALKS = {"JPEG": _jpeg, "PNG": _png, "GIF": _gif, "WEBP": _webp, "BMP": _bmp, "TIFF": _tiff}
