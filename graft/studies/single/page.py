"""One recipe on one page: everything that `graft train` is told about the training, checked, written and read again.

In: options of the command line, arguments of `graft.train`, or a JSON file (`"format": 1`, a field for each option, named
as in Python: `batch_size` is `--batch-size`). Out: a `Page`, in which every field has a valid value; `auto` is decided
later, when network and images are known, and told in `study.json`. Whatever is wrong is told in a sentence that names
what is right. Costs nothing: neither torch nor timm is loaded.

Not covered: where images and weights are and what the run may cost; that is no part of a recipe.
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from graft.backbones.inputs import INPUTS
from graft.errors import SettingsError
from graft.images.augmentations import STRENGTHS, settled
from graft.judging.metrics import METRICS
from graft.store import write_atomically
from graft.studies.settings import LARGEST_SEED, MOST_FOLDS

FORMAT = 1
AUTO = "auto"
SCRATCH = "scratch"
FIND = "find"
FREEZE = (
    "give all, none, how many of the first layers stay as they are (a whole number from 0), or a stage "
    "(graft models NAME --layers lists both)"
)
Counted = int | str
"""A whole number, or `auto`."""


@dataclass(frozen=True, slots=True)
class Page:
    """The recipe. What each field means, its default and why stands in docs/train.md."""

    backbone: str
    init: str = AUTO
    freeze: str = "none"
    tap: str = AUTO
    head: str = AUTO
    input: str = AUTO
    size: Counted = AUTO
    fit: str = AUTO
    augment: str = AUTO
    balance: str = "weights"
    lr: float | str = AUTO
    epochs: Counted = AUTO
    patience: Counted = AUTO
    batch_size: Counted = AUTO
    batch_norm: str = AUTO
    mixup: float = 0.0
    cutmix: float = 0.0
    ema: bool = True
    generations: int = 1
    ensemble: int = 1
    seeds: int = 1
    folds: int = 5
    metric: str = "macro_f1"
    groups: str = "near"
    seed: int = 0

    @property
    def random(self) -> bool:
        """Whether the network starts from random weights."""
        return self.backbone == SCRATCH or self.init == "random"


class _Wrong(ValueError):
    """Says what would be right."""


Check = Callable[[Any], Any]


def _word(valid: Sequence[str]) -> Check:
    def check(value: Any) -> str:
        if not isinstance(value, str) or value not in valid:
            raise _Wrong(f"choose one of {', '.join(valid)}")
        return value

    return check


def _text(meaning: str) -> Check:
    def check(value: Any) -> str:
        whole = isinstance(value, int) and not isinstance(value, bool)
        if not (isinstance(value, str) or whole) or not str(value).strip():
            raise _Wrong(meaning)
        return str(value).strip()

    return check


def _whole(least: int, most: int, *, auto: bool = False) -> Check:
    def check(value: Any) -> int | str:
        if auto and value == AUTO:
            return AUTO
        number = _number(value)
        if number is None or number != int(number) or not least <= number <= most:
            start = "give auto or" if auto else "give"
            raise _Wrong(f"{start} a whole number from {least} to {most}")
        return int(number)

    return check


def _real(least: float, most: float, *, words: Sequence[str] = ()) -> Check:
    def check(value: Any) -> float | str:
        if isinstance(value, str) and value in words:
            return value
        number = _number(value)
        if number is None or not least <= number <= most:
            start = f"give {', '.join(words)} or" if words else "give"
            raise _Wrong(f"{start} a number from {least:g} to {most:g}")
        return number

    return check


def _truth(value: Any) -> bool:
    if not isinstance(value, bool):
        raise _Wrong("give true or false")
    return value


def _freeze(value: Any) -> str:
    """A word or a whole number; whether the network has so many layers, or such a stage, is told once it is known."""
    text = _text(FREEZE)(value)
    number = _number(text)
    if number is not None and not (number >= 0 and text.isascii() and text.isdigit()):
        raise _Wrong(FREEZE)
    return "none" if number == 0 else text


def _augment(value: Any) -> str:
    if value == AUTO:
        return AUTO
    if not isinstance(value, str):
        raise _Wrong(f"choose one of auto, {', '.join(STRENGTHS)}, or name a JSON file")
    return settled(value)


def _number(value: Any) -> float | None:
    """A finite number, also where it was typed."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


CHECKS: dict[str, Check] = {
    "backbone": _text("name a network (graft models lists them), or scratch for the small CNN"),
    "init": _word((AUTO, "pretrained", "random")),
    "freeze": _freeze,
    "tap": _text("name a stage of the network (graft models NAME --layers lists them), depths, or auto"),
    "head": _word((AUTO, "ridge", "linear", "mlp")),
    "input": _word((AUTO, *INPUTS)),
    "size": _whole(16, 1024, auto=True),
    "fit": _word((AUTO, "crop", "squash", "pad")),
    "augment": _augment,
    "balance": _word(("none", "weights", "sampler", "logit")),
    "lr": _real(1e-8, 1.0, words=(AUTO, FIND)),
    "epochs": _whole(1, 100_000, auto=True),
    "patience": _whole(1, 100_000, auto=True),
    "batch_size": _whole(2, 4096, auto=True),
    "batch_norm": _word((AUTO, "frozen", "train", "reestimate")),
    "mixup": _real(0.0, 10.0),
    "cutmix": _real(0.0, 10.0),
    "ema": _truth,
    "generations": _whole(1, 5),
    "ensemble": _whole(1, 20),
    "seeds": _whole(1, 50),
    "folds": _whole(2, MOST_FOLDS),
    "metric": _word(tuple(METRICS)),
    "groups": _word(("near", "series")),
    "seed": _whole(0, LARGEST_SEED),
}


def page_from(given: Mapping[str, Any], *, kept: Page | None = None, where: str = "") -> Page:
    """The page with these fields, on top of those of `kept`.

    `where`: the file they stand in, or empty for options. Raises SettingsError for a field that is unknown or has a value
    that it cannot have, and for fields that contradict each other.
    """
    unknown = [name for name in given if name not in CHECKS]
    if unknown:
        close = difflib.get_close_matches(unknown[0], list(CHECKS), n=1)
        meant = f" Is {close[0]} meant?" if close else ""
        raise SettingsError(
            f"{where or 'A recipe'} has the unknown field {unknown[0]!r}.{meant} The fields are {', '.join(CHECKS)}."
        )
    found: dict[str, Any] = {} if kept is None else asdict(kept)
    for name, value in given.items():
        try:
            found[name] = CHECKS[name](value)
        except _Wrong as wrong:
            told = f"{where}: {name} is {value!r}" if where else f"{option(name)} {value}"
            raise SettingsError(f"{told}: {wrong}.") from None
        except SettingsError as error:
            raise SettingsError(f"{where}: {error}" if where else str(error)) from None
    if "backbone" not in found:
        raise SettingsError(
            f"{where or '--backbone is missing'}: name a network (graft models lists them), or scratch for the small CNN "
            f"of Graft{'' if where else ', or give a --recipe that names one'}."
        )
    page = Page(**found)
    try:
        _consistent(page)
    except SettingsError as error:
        raise SettingsError(f"{where}: {error}" if where else str(error)) from None
    return page


def option(name: str) -> str:
    """The field as it is typed."""
    return "--" + name.replace("_", "-")


def text_of(page: Page) -> str:
    """The page as JSON; an augmentation of its own stands in it as an object."""
    facts: dict[str, Any] = {"format": FORMAT, **asdict(page)}
    if page.augment.startswith("{"):
        facts["augment"] = json.loads(page.augment)
    return json.dumps(facts, indent=2, ensure_ascii=False) + "\n"


def write_page(page: Page, place: Path) -> None:
    """Write the page. Raises SettingsError where it cannot be written."""
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(place, text_of(page))
    except OSError as error:
        raise SettingsError(
            f"--save-recipe {place} cannot be written: {error.strerror or error}. Name another place."
        ) from error


def read_page(place: Path) -> Page:
    """The page in a file. Raises SettingsError for whatever is wrong with it."""
    try:
        content = place.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise SettingsError(f"--recipe {place} is no recipe: it is not text in UTF-8.") from error
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise SettingsError(
            f"--recipe {place} cannot be read: {why}. Write one with --save-recipe."
        ) from error
    return page_of(content, where=str(place))


def page_of(content: str, *, where: str = "The recipe") -> Page:
    """The page that `content` is. Raises SettingsError for whatever is wrong with it."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        for name in names:
            if names.count(name) > 1:
                raise SettingsError(f"{where} gives {name} twice; each field stands there once.")
        return dict(pairs)

    try:
        facts = json.loads(content, object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        raise SettingsError(
            f"{where} is no recipe: {error}. A recipe is a JSON object as --save-recipe writes it."
        ) from error
    if not isinstance(facts, dict):
        raise SettingsError(f"{where} is no recipe: it is not a JSON object. Write one with --save-recipe.")
    number = facts.pop("format", None)
    if type(number) is not int or number != FORMAT:
        raise SettingsError(f"{where} has the format {number!r}; this version of Graft reads {FORMAT}.")
    if isinstance(facts.get("augment"), dict):
        facts["augment"] = json.dumps(facts["augment"], sort_keys=True)
    elif isinstance(facts.get("augment"), str) and facts["augment"] not in (AUTO, *STRENGTHS):
        raise SettingsError(
            f"{where}: augment is {facts['augment']!r}: choose one of {', '.join((AUTO, *STRENGTHS))}, or write the fields "
            "of an augmentation as an object."
        )
    return page_from(facts, where=where)


def _consistent(page: Page) -> None:
    """What contradicts itself is refused with a sentence."""
    if page.backbone == SCRATCH:
        _only(page, "init", (AUTO, "random"), "the small CNN has no pre-trained weights")
        _only(page, "tap", (AUTO,), "the small CNN is used as a whole")
        _only(page, "input", (AUTO, "rgb", "gray"), "the small CNN sharpens its images itself")
    if page.random:
        _only(page, "freeze", ("none",), "random weights are worth nothing while they are frozen")
        _only(page, "head", (AUTO, "linear", "mlp"), "a ridge head needs features that mean something")
        _only(page, "batch_norm", (AUTO, "train"), "a random network has no statistics to keep")
    if page.freeze == "all":
        _only(page, "batch_norm", (AUTO, "frozen"), "with --freeze all nothing but the head learns")
        _only(
            page,
            "cutmix",
            (0.0,),
            "with --freeze all there are pooled features, of which no part can be cut out",
        )
        refuse_equal_members(page)
    small = isinstance(page.batch_size, int) and page.batch_size < 4
    if small and (page.random or page.batch_norm == "train"):
        raise SettingsError(
            f"--batch-size {page.batch_size}: statistics of so few images are worth nothing. Use at least 4, or "
            "--batch-norm frozen."
        )


def refuse_equal_members(page: Page) -> None:
    """Refuse an ensemble on a network of which nothing learns, unless its heads are trained. Raises SettingsError."""
    if page.ensemble > 1 and page.head in (AUTO, "ridge"):
        raise SettingsError(
            f"--ensemble {page.ensemble}: ridge heads on the same features are all equal. Use --head linear or mlp, or "
            "freeze less."
        )


def _only(page: Page, name: str, valid: Sequence[Any], why: str) -> None:
    value = getattr(page, name)
    if value not in valid:
        listed = " or ".join(f"{one:g}" if isinstance(one, float) else str(one) for one in valid)
        raise SettingsError(f"{option(name)} {value}: {why}. Here it can only be {listed}.")


assert tuple(CHECKS) == tuple(field.name for field in fields(Page))
