"""Packing a fitted model into `model.graft/`, verified on real images before it gets its name.

In: the assembled ONNX model, the class names, the geometry, what is to be told about it, and the probabilities that
torch gives on a few real images. Out: the folder, written beside and renamed. The check opens the folder as a user
would; more than `TOLERANCE` of difference in any probability, or one changed decision, and nothing is packed.

Not covered: two programs that pack into the same place at once. No system can swap two folders everywhere: a process
killed between the two renames leaves the older bundle under a hidden name and none under its own.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from graft.deploy.bundle import (
    EMBEDDING,
    FORMAT,
    INPUT,
    MANIFEST,
    MODEL,
    PROBABILITIES,
    TASK,
    Bundle,
    digest,
)
from graft.deploy.card import card
from graft.errors import BundleError
from graft.images.dataset import Preprocess
from graft.store import file_digest, write_json
from graft.version import VERSION

TOLERANCE = 1e-3
CARD = "card.md"


@dataclass(frozen=True, slots=True, eq=False)
class Check:
    """At least one real image in the network's geometry, and what torch in float32 says of it."""

    pixels: UInt8[np.ndarray, "m h w c"]
    probabilities: Float[np.ndarray, "m k"]


def pack(
    folder: Path,
    model: bytes,
    *,
    labels: Sequence[str],
    preprocess: Preprocess,
    about: Mapping[str, Any],
    check: Check,
) -> dict[str, Any]:
    """Write the bundle and return `bundle.json`'s content.

    `about` goes into it as it is (backbone, strategy, metrics, sources and licences of the weights) and into the card.
    Raises BundleError if ONNX Runtime and torch disagree, or if `folder` is there and is no bundle; what is there then
    stays as it was.
    """
    if folder.exists() and not (folder / MANIFEST).is_file():
        raise BundleError(f"{folder} is there and is no bundle, so it is not replaced. Name another place.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        facts = _write(beside, model, labels, preprocess, about)
        difference = _verify(beside, check)
        facts["parity"] = {
            "images": len(check.pixels),
            "largest_difference": difference,
            "tolerance": TOLERANCE,
        }
        write_json(beside / MANIFEST, facts)
        beside.chmod(0o755)
        _put_in_place(beside, folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return facts


def _write(
    folder: Path, model: bytes, labels: Sequence[str], preprocess: Preprocess, about: Mapping[str, Any]
) -> dict[str, Any]:
    (folder / MODEL).write_bytes(model)
    (folder / CARD).write_text(
        card(labels, preprocess, about, len(model)), encoding="utf-8", errors="replace"
    )
    side = [preprocess.size, preprocess.size, preprocess.channels]
    facts: dict[str, Any] = {
        "format": f"{FORMAT[0]}.{FORMAT[1]}",
        "graft": VERSION,
        "task": TASK,
        "labels": list(labels),
        "labels_sha256": digest(list(labels)),
        "preprocess": asdict(preprocess),
        "preprocess_sha256": digest(asdict(preprocess)),
        "model": {
            "file": MODEL,
            "input": {"name": INPUT, "type": "uint8", "shape": ["n", *side]},
            "outputs": {PROBABILITIES: ["n", len(labels)], EMBEDDING: ["n", "d"]},
        },
        "files": {name: file_digest(folder / name) for name in (MODEL, CARD)},
    }
    facts = {**facts, **{name: value for name, value in about.items() if name not in facts}}
    write_json(folder / MANIFEST, facts)
    return facts


def _verify(folder: Path, check: Check) -> float:
    answers = Bundle(folder).run_pixels(np.ascontiguousarray(check.pixels))
    difference = float(np.abs(answers - check.probabilities).max())
    changed = int((answers.argmax(axis=1) != check.probabilities.argmax(axis=1)).sum())
    if not difference <= TOLERANCE or changed:  # a NaN is no agreement
        raise BundleError(
            f"The packed model differs from torch by {difference:.2g} in probability (allowed: {TOLERANCE}) and "
            f"decides {changed} of {len(answers)} images differently, so it was not written. Choose another backbone "
            "with --backbones, and please report this one."
        )
    return difference


def _put_in_place(beside: Path, folder: Path) -> None:
    """Rename `beside` to `folder`; an older bundle goes away only when the new one stands."""
    if not folder.exists():
        beside.replace(folder)
        return
    old = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.old."))
    folder.replace(old / folder.name)
    try:
        beside.replace(folder)
    except OSError:
        (old / folder.name).replace(folder)
        raise
    finally:
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)
