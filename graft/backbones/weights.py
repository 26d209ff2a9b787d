"""Where weights come from: a weights folder, Graft itself, or the hub and its cache; and networks to load them into.

In: a catalogue `Entry`. Out: its state as float32 tensors with the digest of the file it came from, or one sentence
about why it cannot be had. A weights folder holds `weights.json` (format 1) and one safetensors file per entry; each
file is checked against its sha256 whenever it is loaded. Importing this module, opening a folder (it reads only the
heads of the files) and locating weights cost no torch.

Not covered: fetching (`graft.backbones.hub`), and checking that a state fits its network (`graft.backbones.opening`).
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal

from graft.backbones.catalogue import Entry, InputSpec, computed, family_of
from graft.backbones.hub import Reach, cached, file_digest, load_from_hub, load_from_torchvision
from graft.backbones.hub import reach_hub as reach_hub
from graft.backbones.students import build_student, student_cost
from graft.errors import BackboneError

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module
else:  # listing the catalogue must not wait for torch
    Tensor = Module = object

Place = Literal["here", "embedded", "hub", "unreachable"]

FORMAT = 1
PRETRAINING = {
    "ImageNet-1k": "in1k",
    "ImageNet-12k": "in12k",
    "ImageNet-21k": "in21k",
    "ImageNet-22k": "in21k",
}
LIBRARIES = ("timm", "torchvision", "graft")
EMBEDDED = Path(__file__).with_name("embedded_weights")
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


@dataclass(frozen=True, slots=True)
class WeightsFile:
    """One entry of a weights folder: `dtype` and `sha256` are those of the file."""

    entry: Entry
    path: Path
    dtype: str
    sha256: str


@dataclass(frozen=True, slots=True)
class WeightsFolder:
    """A folder with `weights.json` (format 1) and the files that it names."""

    path: Path
    files: tuple[WeightsFile, ...]

    @classmethod
    def open(cls, path: str | Path) -> WeightsFolder:
        """Read `weights.json`; the weights themselves are read and checked when they are loaded.

        Raises BackboneError if it is missing, broken, of a newer format, or names a file that is not there.
        """
        folder = Path(path).expanduser()
        table = _read_table(folder)
        files = tuple(
            _weights_file(folder, row, place) for place, row in enumerate(table["weights"], start=1)
        )
        names = [file.entry.name for file in files]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise BackboneError(
                f"{folder / 'weights.json'} has {twice[0]} twice; give each entry a name of its own."
            )
        return cls(folder, files)

    @property
    def entries(self) -> tuple[Entry, ...]:
        """The networks of the folder, in the order of `weights.json`."""
        return tuple(file.entry for file in self.files)

    def file(self, name: str) -> WeightsFile | None:
        """The file called `name`, or None."""
        return next((file for file in self.files if file.entry.name == name), None)


@dataclass(frozen=True, slots=True)
class LoadedWeights:
    """A state: tensors by name, floating-point ones as float32; `digest`: sha256 of the file; `origin` in words."""

    state: dict[str, Tensor]
    digest: str
    origin: str


def folder_from(option: str | Path | None) -> WeightsFolder | None:
    """The weights folder that `--weights` names, else `GRAFT_WEIGHTS`, else None."""
    chosen = option or os.environ.get("GRAFT_WEIGHTS")
    return WeightsFolder.open(chosen) if chosen else None


def embedded() -> WeightsFolder | None:
    """The weights folder that comes with Graft itself, if this copy of it has one."""
    return _opened(EMBEDDED)


@functools.cache
def _opened(place: Path) -> WeightsFolder | None:
    return WeightsFolder.open(place) if (place / "weights.json").is_file() else None


@dataclass(frozen=True, slots=True)
class Shelf:
    """Networks to look up names in."""

    entries: tuple[Entry, ...]


def shelf(folder: WeightsFolder | None) -> Shelf:
    """What is on this machine in any case, for `catalogue.find`."""
    return Shelf(held(folder))


def held(folder: WeightsFolder | None) -> tuple[Entry, ...]:
    """What is on this machine in any case: the networks of the folder, then the embedded ones of other names."""
    own = folder.entries if folder else ()
    names = {entry.name for entry in own}
    within = embedded()
    return (*own, *(entry for entry in (within.entries if within else ()) if entry.name not in names))


def locate(entries: Sequence[Entry], *, folder: WeightsFolder | None, reach: Reach) -> dict[str, Place]:
    """Where the weights of each entry are now: in the folder or a local cache, inside Graft, on a host that answers,
    or nowhere."""
    named = {entry.name for entry in folder.entries} if folder else set()

    def place(entry: Entry) -> Place:
        if entry.name in named or cached(entry) is not None:
            return "here"
        if _file_of(entry, None) is not None:
            return "embedded"
        return "hub" if reach.serves(entry) else "unreachable"

    return {entry.name: place(entry) for entry in entries}


def _file_of(entry: Entry, folder: WeightsFolder | None) -> WeightsFile | None:
    """The file in the folder that was named, else the one inside Graft."""
    places = (place for place in (folder, embedded()) if place is not None)
    return next((file for place in places if (file := place.file(entry.name)) is not None), None)


def load_state(entry: Entry, *, folder: WeightsFolder | None, reach: Reach) -> LoadedWeights:
    """The weights of `entry`: from the folder or inside Graft, a local cache, or the host it names, in this order.

    Raises BackboneError, and at once, if the host did not answer before; if a file is damaged, altered or missing.
    """
    file = _file_of(entry, folder)
    if file is not None:
        return _from_folder(file)
    if cached(entry) is None and not reach.serves(entry):
        raise BackboneError(
            f"The weights of {entry.name} are not here and cannot be had. {reach.reason or 'No host has them.'} "
            "Name a folder that holds them (--weights DIR, in Python weights=DIR), or set GRAFT_WEIGHTS to it."
        )
    load = load_from_torchvision if entry.library == "torchvision" else load_from_hub
    state, path = load(entry)
    return LoadedWeights(_as_float32(state), file_digest(path), entry.source)


def known_digest(entry: Entry, *, folder: WeightsFolder | None) -> str | None:
    """The sha256 of the file that `load_state` would read, found without loading it; None before it is downloaded."""
    file = _file_of(entry, folder)
    if file is not None:
        return file.sha256
    path = cached(entry)
    return file_digest(path) if path is not None else None


def build(entry: Entry) -> Module:
    """The whole network of `entry` with its classifier and random weights. Raises BackboneError if it is unknown."""
    return build_network(entry.library, entry.architecture, dict(entry.arguments))


def build_network(library: str, architecture: str, arguments: Mapping[str, Any]) -> Module:
    """As `build`, from the library's name for the architecture and its arguments."""
    try:
        if library == "torchvision":
            import torchvision

            return torchvision.models.get_model(architecture, weights=None, **arguments)
        if library == "graft":
            return build_student(architecture, **arguments)
        if architecture == "mobilenetv1":
            return _mobilenetv1(**arguments)
        import timm

        # Without a number timm takes that of the architecture's first weights, which may have more classes than these.
        return timm.create_model(architecture, pretrained=False, **{"num_classes": 1000, **arguments})
    except (RuntimeError, ValueError, TypeError) as error:
        raise BackboneError(
            f"{library} cannot build {architecture} with the arguments {dict(arguments)}: {error}. "
            "Check the name and the arguments, or install a newer version of the library."
        ) from error


def _mobilenetv1(*, width: float, **arguments: Any) -> Module:
    """MobileNetV1 (arXiv 1704.04861) at any width, stem and last layer scaled too; timm names only some widths."""
    from timm.models.efficientnet import _gen_mobilenet_v1

    return _gen_mobilenet_v1("mobilenetv1_100", width, fix_stem_head=False, pretrained=False, **arguments)


def _read_table(folder: Path) -> dict[str, Any]:
    place = folder / "weights.json"
    try:
        table = json.loads(place.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BackboneError(
            f"{folder} is no weights folder: it has no weights.json. Name the folder that holds it."
        ) from None
    except (OSError, ValueError) as error:
        raise BackboneError(f"{place} cannot be read: {error}. Write it again.") from error
    number = table.get("format") if isinstance(table, dict) else None
    if not isinstance(number, int) or not isinstance(table.get("weights"), list):
        raise BackboneError(f"{place} is no list of weights: it needs 'format': 1 and 'weights': [...].")
    if number > FORMAT:
        raise BackboneError(f"{place} is of format {number}; this Graft reads format {FORMAT}. Update Graft.")
    return table


def _weights_file(folder: Path, row: Any, place: int) -> WeightsFile:
    where = f"{folder / 'weights.json'}, entry {place}"
    name = row.get("name") if isinstance(row, dict) else None
    if not isinstance(name, str) or not name:
        raise BackboneError(f"{where}: 'name' is missing.")
    where = f"{where} ({name})"
    try:
        relative = PurePosixPath(row["file"])
        sha256 = str(row["sha256"]).lower()
        if row["library"] not in LIBRARIES:
            raise BackboneError(
                f"{where}: unknown library {row['library']!r}; use one of {', '.join(LIBRARIES)}."
            )
        if relative.is_absolute() or ".." in relative.parts or relative.suffix != ".safetensors":
            raise BackboneError(f"{where}: {row['file']!r} must be a .safetensors file inside the folder.")
        path = folder.joinpath(*relative.parts)
        if not path.is_file():
            raise BackboneError(f"{where}: there is no file {path}. Copy it there or take the entry out.")
        return WeightsFile(_folder_entry(row, path), path, str(row.get("dtype", "float32")), sha256)
    except KeyError as error:
        raise BackboneError(f"{where}: {error} is missing.") from error
    except (TypeError, ValueError, AttributeError) as error:
        raise BackboneError(f"{where}: a value is of the wrong kind: {error}.") from error


def _folder_entry(row: Mapping[str, Any], path: Path) -> Entry:
    arguments, classes = dict(row.get("arguments", {})), int(row["classes"])
    if classes != 1000:
        arguments["num_classes"] = classes
    parameters, floats = _counted(path)
    cost = student_cost if row["library"] == "graft" else computed
    gmacs, stages = cost(row["architecture"], arguments, int(row["input"]["size"]))
    trained_on = row.get("trained_on") or "unknown"
    return Entry(
        name=row["name"],
        library=row["library"],
        architecture=row["architecture"],
        arguments=tuple(arguments.items()),
        family=family_of(row["architecture"]),
        pretraining=PRETRAINING.get(trained_on, trained_on),
        source=row.get("source") or "",
        licence=row.get("licence") or "unknown",
        parameters=parameters,
        bytes=4 * floats,
        gmacs=gmacs,
        input=InputSpec.read(row["input"]),
        top1=_figure(row.get("published_top1")),
        top5=_figure(row.get("published_top5")),
        published="weights.json",
        stages=stages,
    )


def _figure(value: Any) -> float | None:
    return None if value is None else float(value)


def _counted(path: Path) -> tuple[int, int]:
    """Parameters, and elements of all floating-point tensors, from the head of a safetensors file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (no iteration protocol)
            counts = {name: math.prod(part.get_shape()) for name, part in slices.items()}
            floats = {name for name, part in slices.items() if part.get_dtype().startswith(("F", "BF"))}
    except (SafetensorError, OSError) as error:
        raise BackboneError(f"{path} is no readable safetensors file: {error}. Copy it again.") from error
    parameters = sum(count for name, count in counts.items() if not name.endswith(STATISTICS))
    return parameters, sum(counts[name] for name in floats)


def _from_folder(file: WeightsFile) -> LoadedWeights:
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        content = file.path.read_bytes()
    except OSError as error:
        raise BackboneError(f"{file.path} cannot be read: {error.strerror}. Copy it again.") from error
    digest = hashlib.sha256(content).hexdigest()
    if digest != file.sha256:
        raise BackboneError(
            f"{file.path} is not the file that weights.json describes: its sha256 begins with {digest[:12]}, "
            f"expected was {file.sha256[:12]}. Copy it again."
        )
    try:
        return LoadedWeights(_as_float32(load(content)), digest, f"weights folder, {file.path.name}")
    except SafetensorError as error:
        raise BackboneError(f"{file.path} is no readable safetensors file: {error}.") from error


def _as_float32(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: part.float() if part.is_floating_point() else part for name, part in state.items()}
