"""The catalogue: which pre-trained networks there are, what they cost, and which of them to try.

In: a name as a person types it, or a list of candidates. Out: frozen `Entry` records. The rows lie in
`catalogue.json` beside this file; their computed columns come from `benchmarks/catalogue.py`, their accuracies from
the sources that the file names. Cost: reading the rows takes milliseconds and imports neither torch nor timm; only a
name that is in no row asks timm, which takes seconds.

Not covered: whether the weights can be had here (`graft.backbones.weights`), and how well a network transfers to
other images, which is measured, never looked up.
"""

from __future__ import annotations

import bisect
import difflib
import functools
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from graft.errors import BackboneError

Library = Literal["timm", "torchvision", "graft"]
Value = int | float | str | bool
Arguments = tuple[tuple[str, Value], ...]

DATA = Path(__file__).with_name("catalogue.json")
FAINTLY = 0.4  # how alike (difflib) a name must be to be offered for one that is unknown
PERMISSIVE = ("apache-2.0", "mit", "bsd-3-clause", "bsd-2-clause")
NON_COMMERCIAL = ("-nc", "noncommercial", "non-commercial", "research")
# Arguments that change how a network reads its input, but neither its cost nor its stages.
NEUTRAL_ARGUMENTS = ("pad_type", "num_classes", "aux_logits", "init_weights", "transform_input")
FAMILIES = {  # beginnings of architecture names; any other family is the letters that its name begins with
    "inception": ("googlenet", "inception"),
    "mobilenet": ("mobilenet", "tf_mobilenet"),
    "efficientnet": ("efficientnet", "tf_efficientnet"),
    "regnet": ("regnet",),
    "convnext": ("convnext",),
    "resnet": ("resnet", "resnext", "wide_resnet", "seresne"),
    "vit": ("vit", "deit"),
    "swin": ("swin",),
    "tinyvit": ("tiny_vit",),
}


@dataclass(frozen=True, slots=True)
class InputSpec:
    """What the network was trained to see: `size` x `size` pixels in [0, 1], minus `mean`, divided by `std`.

    `crop`: the share of the resized image that the centre crop keeps; `interpolation`: that of the resizing.
    """

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    crop: float
    channels: int = 3

    @classmethod
    def read(cls, row: Mapping[str, Any]) -> InputSpec:
        """The record of a JSON object; raises KeyError, TypeError or ValueError for anything else."""
        mean, std = (tuple(float(value) for value in row[name]) for name in ("mean", "std"))
        size, crop = int(row["size"]), float(row["crop"])
        return cls(size, mean, std, str(row["interpolation"]), crop, int(row["channels"]))


@dataclass(frozen=True, slots=True)
class StageShape:
    """What a stage puts out: `channels` maps at 1/`reduction` of the input's height and width."""

    channels: int
    reduction: int


@dataclass(frozen=True, slots=True)
class Entry:
    """One network with one set of weights. None means: not known, and no number was made up.

    `parameters`, `bytes` (float32) and `gmacs` (10^9 multiply-adds for one image at `input.size`) are of the whole
    network with its classifier; `top1` and `top5` are ImageNet-1k percentages at `input.size`, and `published` says
    where they stand, or why there are none.
    """

    name: str
    library: Library
    architecture: str
    arguments: Arguments
    family: str
    pretraining: str
    source: str
    licence: str
    parameters: int | None
    bytes: int | None
    gmacs: float | None
    input: InputSpec
    top1: float | None
    top5: float | None
    published: str
    stages: tuple[StageShape, ...]

    @property
    def commercial(self) -> bool | None:
        """Whether the licence of the weights allows commercial use; None: read its terms."""
        licence = self.licence.lower()
        if any(word in licence for word in NON_COMMERCIAL):
            return False
        return True if licence.startswith(PERMISSIVE) else None


@runtime_checkable
class Held(Protocol):
    """What looking up a name needs of a weights folder."""

    @property
    def entries(self) -> tuple[Entry, ...]: ...


@functools.cache
def rows() -> tuple[Entry, ...]:
    """Every row of the catalogue, in its own order."""
    table = _table()
    return tuple(_entry(row, table["published"]) for row in table["networks"])


def find(name: str, folder: Held | None) -> Entry:
    """The network called `name`: see `resolve`, which also says what the name left open."""
    return resolve(name, folder)[0]


def resolve(name: str, folder: Held | None) -> tuple[Entry, str | None]:
    """The network called `name`, and a notice if the name fits several files of the weights folder.

    Looked for in the weights folder, in the catalogue, in timm, in this order; in each first as a full name
    (`resnet50.a1_in1k`), then as an architecture (`resnet50`), of which the best published top-1 is taken.
    Raises BackboneError with the closest names if there is none.
    """
    held = folder.entries if folder is not None else ()
    for known in (held, rows()):
        for entry in known:
            if entry.name == name:
                return entry, None
        fitting = [entry for entry in known if name in (entry.architecture, entry.name.split(".")[0])]
        if fitting:
            best = max(fitting, key=lambda entry: entry.top1 or 0.0)
            others = ", ".join(entry.name for entry in fitting if entry is not best)
            several = f"{name} fits several files of the weights folder; {best.name} is taken, not {others}."
            return best, several if others and known is held else None
    made = _from_timm(name)
    if made is None:
        raise BackboneError(_unknown(name, held))
    return made, None


def computed(
    architecture: str, arguments: Mapping[str, Any], size: int
) -> tuple[float | None, tuple[StageShape, ...]]:
    """GMACs at `size` pixels and stages of a network as far as the catalogue knows them, whatever its weights."""
    wanted = _shape_arguments(arguments)
    # A hundred classes more or fewer change the GMACs by less than 0.0005, twenty thousand by up to a tenth.
    alike = abs(arguments.get("num_classes", 1000) - 1000) <= 100
    for entry in rows():
        if entry.architecture == architecture and _shape_arguments(dict(entry.arguments)) == wanted:
            return (entry.gmacs if entry.input.size == size and alike else None), entry.stages
    for row in _table()["shapes"]:
        if row["architecture"] == architecture and _shape_arguments(row["arguments"]) == wanted:
            return (row["gmacs"].get(str(size)) if alike else None), _stages(row["stages"])
    return None, ()


def family_of(architecture: str) -> str:
    """The family of an architecture: `mobilenetv2_100` -> `mobilenet`; unlisted ones by the letters they begin with."""
    for family, beginnings in FAMILIES.items():
        if architecture.startswith(beginnings):
            return family
    letters = re.match(r"[a-z]+", architecture.lower())
    return letters.group() if letters else architecture


def pretraining_of(tag: str) -> str:
    """What the weights learned from, read off timm's tag: `ssl`, `clip`, `distilled`, `in21k`, `in12k`, `in1k`."""
    kinds = (
        ("ssl", r"dino|^mae|^fcmae$|_mae$|^mim|lvd\d|ijepa|seer$"),
        ("clip", r"clip|openai|laion|datacomp|webli|siglip"),
        ("distilled", r"dist"),
        ("in21k", r"in2[12]k|goog_in21k"),
        ("in12k", r"in12k"),
        ("in1k", r"in1k"),
    )
    return next((kind for kind, pattern in kinds if re.search(pattern, tag)), "unknown")


def stratified(
    candidates: Sequence[Entry],
    *,
    least: int = 8,
    most: int = 12,
    max_parameters: int | None = None,
    max_bytes: int | None = None,
) -> list[tuple[Entry, str]]:
    """The networks to try when nobody named any, the most promising first, each with the reason in a few words.

    A static prior (mean rank of published top-1 and of parameters) predicts transfer as well as the scores that look
    at the data (Singh et al., arXiv 2510.06448), but says little about unusual images (Fang et al., arXiv
    2301.04644). So its favourite is always in, and each next one is the best of what is least represented among
    families (which count twice), kinds of pre-training and cost. Networks that another one of the same pre-training
    beats in accuracy, size and cost at once come only if fewer than `least` remain. With limits, a network of unknown
    size is left out.
    """
    within = [entry for entry in candidates if _within(entry, max_parameters, max_bytes)]
    within = list({entry.name: entry for entry in within}.values())
    prior = _prior(within)
    within.sort(key=lambda entry: (-prior[entry.name], entry.gmacs or 0.0, entry.name))
    front = [entry for entry in within if not any(_outclasses(other, entry) for other in within)]
    beaten = [entry for entry in within if entry not in front]
    chosen: list[tuple[Entry, str]] = []
    _pick(front, chosen, until=most)
    _pick(beaten, chosen, until=min(least, most))
    return chosen


def cost_bucket(entry: Entry) -> str:
    """`tiny`, `small`, `medium` or `large`: by GMACs, or by parameters where the GMACs are not known."""
    names = ("tiny", "small", "medium", "large")
    if entry.gmacs is not None:
        return names[sum(entry.gmacs >= limit for limit in (0.3, 1.0, 3.0))]
    return names[sum((entry.parameters or math.inf) >= limit for limit in (3e6, 8e6, 2e7))]


def _pick(pool: Sequence[Entry], chosen: list[tuple[Entry, str]], *, until: int) -> None:
    """Append from `pool` (best prior first) what is least represented, until `until` are chosen."""
    left = list(pool)
    while left and len(chosen) < until:
        taken = [entry for entry, _ in chosen]
        counts = [
            [sum(_marks(other)[k] == _marks(entry)[k] for other in taken) for k in range(3)] for entry in left
        ]
        best = min(range(len(left)), key=lambda index: (counts[index][0] + sum(counts[index]), index))
        entry = left.pop(best)
        chosen.append((entry, _reason(entry, counts[best]) if taken else "best by the static prior"))


def _marks(entry: Entry) -> tuple[str, str, str]:
    return entry.family, entry.pretraining, cost_bucket(entry)


def _reason(entry: Entry, counts: Sequence[int]) -> str:
    family, pretraining, cost = _marks(entry)
    parts = (f"the {family} family", f"{pretraining} pre-training", f"{cost} cost")
    new = [part for part, count in zip(parts, counts, strict=True) if not count]
    return f"first of {' and '.join(new)}" if new else f"next of {family}, {pretraining}, {cost} cost"


def _prior(entries: Sequence[Entry]) -> dict[str, float]:
    """Mean of the ranks (0 to 1) by top-1 and by parameters; without a top-1, the rank by parameters alone."""
    top1 = sorted(entry.top1 for entry in entries if entry.top1 is not None)
    sizes = sorted(entry.parameters for entry in entries if entry.parameters is not None)
    prior = {}
    for entry in entries:
        ranks = []
        if entry.top1 is not None:
            ranks.append(bisect.bisect_right(top1, entry.top1) / len(top1))
        if entry.parameters is not None:
            ranks.append(bisect.bisect_right(sizes, entry.parameters) / len(sizes))
        prior[entry.name] = sum(ranks) / len(ranks) if ranks else 0.0
    return prior


def _outclasses(other: Entry, entry: Entry) -> bool:
    """Whether `other`, with the same pre-training, is more accurate, smaller and cheaper at once."""
    if other.pretraining != entry.pretraining:
        return False
    pairs = ((other.top1, entry.top1), (entry.parameters, other.parameters), (entry.gmacs, other.gmacs))
    return all(better is not None and worse is not None and better > worse for better, worse in pairs)


def _within(entry: Entry, max_parameters: int | None, max_bytes: int | None) -> bool:
    pairs = ((entry.parameters, max_parameters), (entry.bytes, max_bytes))
    return all(limit is None or (value is not None and value <= limit) for value, limit in pairs)


@functools.cache
def _table() -> dict[str, Any]:
    return json.loads(DATA.read_text(encoding="utf-8"))


def _entry(row: Mapping[str, Any], published: Mapping[str, str]) -> Entry:
    read = {
        "arguments": tuple(row["arguments"].items()),
        "input": InputSpec.read(row["input"]),
        "published": published[row["published"]],
        "stages": _stages(row["stages"]),
    }
    return Entry(**{**row, **read})


def _stages(shapes: Sequence[Sequence[int]]) -> tuple[StageShape, ...]:
    return tuple(StageShape(channels, reduction) for channels, reduction in shapes)


def _shape_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in arguments.items() if name not in NEUTRAL_ARGUMENTS}


def _from_timm(name: str) -> Entry | None:
    """A row for any name that timm knows, from its own description of the weights; None if it knows none."""
    import timm

    if not timm.is_model(name.split(".")[0]):
        return None
    try:
        config = timm.get_pretrained_cfg(name)
    except RuntimeError:  # the architecture exists, the tag does not
        return None
    if config is None:
        return None
    architecture = name.split(".")[0]
    arguments: dict[str, Value] = {} if config.num_classes == 1000 else {"num_classes": config.num_classes}
    channels, size, _ = config.input_size
    gmacs, stages = computed(architecture, arguments, size)
    return Entry(
        name=f"{architecture}.{config.tag}" if config.tag else architecture,
        library="timm",
        architecture=architecture,
        arguments=tuple(arguments.items()),
        family=family_of(architecture),
        pretraining=pretraining_of(config.tag or ""),
        source=f"https://huggingface.co/{config.hf_hub_id}" if config.hf_hub_id else "",
        licence=config.license or "unknown",
        parameters=None,
        bytes=None,
        gmacs=gmacs,
        input=InputSpec(size, config.mean, config.std, config.interpolation, config.crop_pct, channels),
        top1=None,
        top5=None,
        published="not in the catalogue",
        stages=stages,
    )


def _unknown(name: str, held: Sequence[Entry]) -> str:
    import timm

    known = {entry.name for entry in (*held, *rows())} | {*timm.list_models(), *timm.list_pretrained()}
    close = difflib.get_close_matches(name, sorted(known), n=5, cutoff=FAINTLY)
    hint = (
        f"The closest names are {', '.join(close)}; graft models lists" if close else "`graft models` lists"
    )
    return f"There is no network called {name!r} in the weights folder, in the catalogue or in timm. {hint} the names."
