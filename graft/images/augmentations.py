"""How far a view may be from its image: one frozen record, its strengths by name, and the page it is read from.

In: what suits the images (`graft.images.views.suited`), and a word or a JSON page. Out: an `Augmentation`. The page has
exactly the fields of `FIELDS`; whatever is wrong with it is told in a sentence that names what is right. Costs nothing:
torch is not needed here.

Not covered: MixUp and CutMix, which mix several images and belong to the training.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from graft.errors import SettingsError

Symmetry = Literal["mirror", "upside_down", "transpose"]
Strength = Literal["none", "light", "medium", "strong"]
SYMMETRIES: tuple[Symmetry, ...] = get_args(Symmetry)
STRENGTHS: tuple[Strength, ...] = get_args(Strength)
FORMAT = 1
MEASURED = "measured"
SUITED_STRETCH = 4 / 3
MANY_IMAGES = 500  # with more of them, strong views are varied by TrivialAugment, too
RANGES = {
    "smallest_crop": (0.05, 1.0),
    "stretch": (1.0, 4.0),
    "degrees": (0.0, 180.0),
    "jitter": (0.0, 0.9),
    "hue": (0.0, 0.5),
    "erase": (0.0, 1.0),
}
FIELDS = ("format", "symmetries", *RANGES, "trivial")


@dataclass(frozen=True, slots=True)
class Augmentation:
    """How far a view may be from its image. Raises SettingsError for a value out of its range (`RANGES`).

    `symmetries`: mirrorings, each applied to half of the views; `smallest_crop`: least share of the area; `jitter`:
    relative change of brightness and contrast, and half of it of the saturation; `erase`: probability that a small
    rectangle is replaced by grey; `stretch`: the most that a crop is stretched along one side; `degrees`: the most that
    a view is turned, either way; `hue`: the most that the hue is turned, as a share of the circle; `trivial`: one
    operation of TrivialAugment for every view (Mueller and Hutter 2021, arXiv 2103.10158).
    """

    symmetries: tuple[Symmetry, ...]
    smallest_crop: float
    jitter: float
    erase: float
    stretch: float = SUITED_STRETCH
    degrees: float = 0.0
    hue: float = 0.0
    trivial: bool = False

    def __post_init__(self) -> None:
        unknown = [name for name in self.symmetries if name not in SYMMETRIES]
        if unknown or len(set(self.symmetries)) < len(self.symmetries):
            raise SettingsError(
                f"The symmetries of an augmentation are {list(self.symmetries)}; each may be one of "
                f"{', '.join(SYMMETRIES)}, and be named once."
            )
        for name, (least, most) in RANGES.items():
            value = getattr(self, name)
            if not least <= value <= most:
                raise SettingsError(
                    f"{name} of an augmentation is {value:g}; it must be a number from {least:g} to {most:g}."
                )

    @property
    def still(self) -> bool:
        """Whether every view is the image as it is."""
        moved = self.smallest_crop < 1 or self.degrees or self.symmetries or self.trivial
        return not (moved or self.jitter or self.hue or self.erase)

    def content(self) -> dict[str, Any]:
        """What a cache of views follows from: what does nothing is left out, so it is the same in later versions."""
        first = ("symmetries", "smallest_crop", "jitter", "erase")
        later = {"stretch": SUITED_STRETCH, "degrees": 0.0, "hue": 0.0, "trivial": False}
        own = {name: getattr(self, name) for name in first}
        changed = {n: getattr(self, n) for n, usual in later.items() if getattr(self, n) != usual}
        return {**own, **changed}


STILL = Augmentation((), 1.0, 0.0, 0.0)


def strengthened(suited: Augmentation, strength: Strength, *, images: int | None = None) -> Augmentation:
    """The augmentation that suits the images (`medium`), weaker, stronger or none; symmetries stay those allowed.

    `images`: how many there are to learn from; strong views of more than 500 are varied by TrivialAugment, too.
    """
    if strength == "none":
        return STILL
    if strength == "medium":
        return suited
    if strength == "light":
        crop = (1 + suited.smallest_crop) / 2
        return replace(suited, smallest_crop=crop, jitter=suited.jitter / 2, erase=0.0, degrees=0.0)
    return replace(
        suited,
        smallest_crop=max(0.2, suited.smallest_crop - 0.2),
        jitter=min(0.6, 1.5 * suited.jitter),
        erase=max(0.25, suited.erase),
        trivial=images is not None and images > MANY_IMAGES,
    )


def named(text: str, *, suited: Augmentation, images: int | None = None) -> Augmentation:
    """The augmentation that `--augment` asks for: a strength, a file, or the JSON page itself.

    `images`: see `strengthened`. Raises SettingsError if `text` is none of them, or for a page with a mistake in it.
    """
    for strength in STRENGTHS:
        if text == strength:
            return strengthened(suited, strength, images=images)
    return _of_page(settled(text), suited=suited, where="The augmentation")


def settled(text: str) -> str:
    """`text` with a file replaced by the page in it, so that it means the same wherever and whenever it is read.

    Raises SettingsError as `named` does, before anything is known of the images.
    """
    if text in STRENGTHS:
        return text
    content, where = text, "The augmentation"
    if not text.lstrip().startswith("{"):
        content, where = _content(text), text
    fields = _fields(content, where=where)
    _checked(fields, suited=STILL, where=where)
    return json.dumps(fields, sort_keys=True)


def page_of(augmentation: Augmentation) -> str:
    """The page that `named` reads as this augmentation."""
    fields = {name: getattr(augmentation, name) for name in FIELDS[1:]}
    return json.dumps({"format": FORMAT, **fields}, indent=2) + "\n"


def _content(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except (FileNotFoundError, ValueError) as error:
        if isinstance(error, UnicodeDecodeError):
            raise SettingsError(f"{path} is not a JSON page: it is not text in UTF-8. {_help()}") from error
        raise SettingsError(
            f"{path!r} is neither a strength of augmentation ({', '.join(STRENGTHS)}) nor a file. {_help()}"
        ) from error
    except OSError as error:
        raise SettingsError(f"{path} cannot be read: {error.strerror or error}. {_help()}") from error


def _help() -> str:
    return f"Give {', '.join(STRENGTHS)}, or a JSON file with the fields {', '.join(FIELDS)}."


def _fields(content: str, *, where: str) -> dict[str, Any]:
    """The fields of the page, all there and none unknown."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise SettingsError(f"{where} gives {', '.join(twice)} twice; each field stands there once.")
        return dict(pairs)

    try:
        fields = json.loads(content, object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        raise SettingsError(f"{where} is not a JSON page: {error}. {_help()}") from error
    if not isinstance(fields, dict):
        raise SettingsError(f"{where} is not a JSON page with named fields. {_help()}")
    unknown = sorted(str(name) for name in fields.keys() - set(FIELDS))
    missing = [name for name in FIELDS if name not in fields]
    if unknown or missing:
        said = [f"does not know {', '.join(unknown)}"] if unknown else []
        said += [f"lacks {', '.join(missing)}"] if missing else []
        raise SettingsError(
            f"{where} {' and '.join(said)}: an augmentation has the fields {', '.join(FIELDS)}."
        )
    return fields


def _of_page(content: str, *, suited: Augmentation, where: str) -> Augmentation:
    return _checked(_fields(content, where=where), suited=suited, where=where)


def _checked(fields: dict[str, Any], *, suited: Augmentation, where: str) -> Augmentation:
    if type(fields["format"]) is not int or fields["format"] != FORMAT:
        raise SettingsError(f"{where} has the format {fields['format']!r}; this version reads {FORMAT}.")
    if type(fields["trivial"]) is not bool:
        raise SettingsError(f"{where}: trivial is {fields['trivial']!r}; it must be true or false.")
    numbers = {name: _number(name, fields[name], where) for name in RANGES}
    given = fields["symmetries"]
    if given == MEASURED:
        found = suited.symmetries
    elif isinstance(given, list) and all(one in SYMMETRIES for one in given) and _distinct(given):
        found = tuple(given)
    else:
        raise SettingsError(
            f'{where}: symmetries is {given!r}; it must be "{MEASURED}" (those that the images allow) or a list of '
            f"{', '.join(SYMMETRIES)}, each at most once."
        )
    return Augmentation(found, trivial=fields["trivial"], **numbers)


def _distinct(given: list[Any]) -> bool:
    return len(set(given)) == len(given)


def _number(name: str, value: Any, where: str) -> float:
    least, most = RANGES[name]
    sound = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not sound or not least <= value <= most or not math.isfinite(value):
        raise SettingsError(f"{where}: {name} is {value!r}; it must be a number from {least:g} to {most:g}.")
    return float(value)
