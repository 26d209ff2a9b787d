"""The result: weights that any study can use, their entry in `weights.json`, and their card.

In: a finished learner and the curve. Out: `NAME.safetensors` (float16, without the classifier), its entry beside those
that were there already, `NAME.md` and the learning curve, `NAME.curve.json`. The entry is written last, and only after the file was opened and run the way a
study does it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from graft.backbones.catalogue import Entry
from graft.backbones.opening import open_backbone
from graft.backbones.weights import build
from graft.errors import RunError
from graft.pretraining.learner import headless
from graft.pretraining.records import Epoch
from graft.pretraining.settings import PretrainSettings
from graft.store import write_atomically, write_json
from graft.version import VERSION

LARGEST_FLOAT16 = 65_504.0


@dataclass(frozen=True, slots=True)
class Published:
    """Where the result is, and its entry in `weights.json`."""

    weights: Path
    card: Path
    facts: dict[str, Any]


def refuse_taken(settings: PretrainSettings) -> None:
    """Raises RunError if `weights.json` has the name already and `--overwrite` was not given, or cannot be read."""
    names = [row.get("name") for row in _table(settings.out)["weights"] if isinstance(row, dict)]
    if settings.name in names and not settings.overwrite:
        raise RunError(
            f"{settings.out / 'weights.json'} has {settings.name} already. Choose another --name, or replace it with "
            "--overwrite."
        )


def publish(
    settings: PretrainSettings,
    entry: Entry,
    network: Mapping[str, Tensor],
    *,
    facts: Mapping[str, Any],
    curve: Sequence[Epoch],
) -> Published:
    """Write weights, card, curve and entry. `facts`: what the entry says beside how to open it (teacher, metrics).

    Raises RunError where they cannot be written or do not open.
    """
    from safetensors.torch import save

    published = headless(entry)
    published = replace(published, input=replace(entry.input, size=settings.input_size))
    state = _halved(_without_classifier(network, published))
    content = save(state, {"format": "pt"})
    _try(published, state)
    place = settings.out / f"{settings.name}.safetensors"
    row = {**_row(settings, published, place.name, content), **facts, "parameters": _parameters(published)}
    card = settings.out / f"{settings.name}.md"
    try:
        write_atomically(place, content)
        write_atomically(card, card_text(row))
        write_json(
            settings.out / f"{settings.name}.curve.json", {"epochs": [asdict(epoch) for epoch in curve]}
        )
        table = _table(settings.out)
        others = [one for one in table["weights"] if one.get("name") != settings.name]
        write_json(settings.out / "weights.json", {**table, "weights": [*others, row]})
    except OSError as error:
        raise RunError(
            f"The weights cannot be written to {settings.out}: {error.strerror or error}. Free some space; the same "
            "command with --resume writes them again."
        ) from error
    return Published(place, card, row)


def card_text(row: Mapping[str, Any]) -> str:
    """The card of one set of weights, as Markdown."""
    teacher = row.get("teacher")
    lesson = (
        f"It was distilled from {teacher['name']} (licence: {teacher['licence']}, sha256 {teacher['sha256'][:12]})."
        if teacher
        else "It learned from the labels of its source."
    )
    lines = [
        f"# {row['name']}",
        "",
        f"A {row['architecture']} with {row['parameters']:,} parameters for images of {row['input']['size']} px, "
        f"trained by `graft pretrain` {VERSION}. {lesson}",
        "",
        f"Source of the images: {row['trained_on']}. Licence: {row['licence_note']}",
        "",
        "| setting | value |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in row["settings"].items()),
        "",
        "| measured on the held-out part | value |",
        "|---|---|",
        *(f"| {name} | {_figure(value)} |" for name, value in row["metrics"].items()),
        "",
        "Its features follow those of its teacher or its labels, mistakes and biases included. Measure it on images of "
        "your own (`graft study --weights`) before you rely on it.",
        "",
    ]
    return "\n".join(lines)


def _figure(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _table(folder: Path) -> dict[str, Any]:
    place = folder / "weights.json"
    try:
        table = (
            json.loads(place.read_text(encoding="utf-8")) if place.exists() else {"format": 1, "weights": []}
        )
    except (OSError, ValueError) as error:
        raise RunError(f"{place} cannot be read: {error}. Mend it, or choose another --out.") from error
    if not isinstance(table, dict) or not isinstance(table.get("weights"), list):
        raise RunError(f"{place} is no list of weights. Mend it, or choose another --out.")
    return table


def _row(settings: PretrainSettings, entry: Entry, file: str, content: bytes) -> dict[str, Any]:
    return {
        "name": settings.name,
        "file": file,
        "library": entry.library,
        "architecture": entry.architecture,
        "arguments": {name: value for name, value in entry.arguments if name != "num_classes"},
        "classes": 0,
        "input": asdict(entry.input),
        "dtype": "float16",
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
    }


def _parameters(entry: Entry) -> int:
    return sum(weight.numel() for weight in build(entry).parameters())


def _without_classifier(network: Mapping[str, Tensor], entry: Entry) -> dict[str, Tensor]:
    """Those tensors that the network without a classifier has."""
    return {name: network[name] for name in build(entry).state_dict()}


def _halved(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """As float16, but for tensors with numbers that have no place there."""

    def halved(tensor: Tensor) -> Tensor:
        fits = tensor.is_floating_point() and bool(tensor.abs().max() <= LARGEST_FLOAT16)
        return (tensor.half() if fits else tensor).cpu().contiguous()

    return {name: halved(tensor) for name, tensor in state.items()}


def _try(entry: Entry, state: Mapping[str, Tensor]) -> None:
    """Open the weights as a study would, and run them once."""
    size = entry.input.size
    floats = {name: part.float() if part.is_floating_point() else part for name, part in state.items()}
    trunk = open_backbone(entry, floats, channels=3, size=size).trunk
    with torch.inference_mode():
        rows = trunk(torch.zeros(2, size, size, 3, dtype=torch.uint8))
    if not all(bool(part.isfinite().all()) for part in rows):
        raise RunError(
            "The trained weights put out infinite or undefined features; train again with a lower --lr."
        )
