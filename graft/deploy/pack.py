"""Packing a fitted model into `model.graft/`, verified on real images before it gets its name.

In: the assembled ONNX model, the class names, the geometry, what is to be told about it, and the probabilities that
torch gives on a few real images. Out: the folder, written beside and renamed. The check opens the folder as a user
would; more than `TOLERANCE` of difference in any probability, or one changed decision, and nothing is packed.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from graft.deploy.bundle import FORMAT, MANIFEST, MODEL, Bundle, file_digest, labels_digest
from graft.deploy.card import card
from graft.errors import BundleError
from graft.images.dataset import Preprocess
from graft.version import VERSION

TOLERANCE = 1e-3


@dataclass(frozen=True, slots=True, eq=False)
class Check:
    """Real images in the network's geometry and what torch in float32 says of them."""

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
    Raises BundleError if ONNX Runtime and torch disagree; an older bundle of that name then stays.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        facts = _write(beside, model, labels, preprocess, about)
        difference = _verify(beside, check)
        facts["parity"] = {"images": len(check.pixels), "largest_difference": difference, "tolerance": TOLERANCE}
        _write_manifest(beside, facts)
        beside.chmod(0o755)
        _put_in_place(beside, folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return facts


def _write(
    folder: Path, model: bytes, labels: Sequence[str], preprocess: Preprocess, about: Mapping[str, Any]
) -> dict[str, Any]:
    (folder / MODEL).write_bytes(model)
    (folder / "card.md").write_text(card(labels, preprocess, about, len(model)), encoding="utf-8")
    facts: dict[str, Any] = {
        "format": f"{FORMAT[0]}.{FORMAT[1]}",
        "graft": VERSION,
        "task": "single-label",
        "labels": list(labels),
        "labels_sha256": labels_digest(labels),
        "preprocess": asdict(preprocess),
        "model": {
            "file": MODEL,
            "input": {"name": "image", "type": "uint8", "shape": ["n", preprocess.size, preprocess.size, preprocess.channels]},
            "outputs": {"probabilities": ["n", len(labels)], "embedding": ["n", "d"]},
        },
        **about,
        "files": {name: file_digest(folder / name) for name in (MODEL, "card.md")},
    }
    _write_manifest(folder, facts)
    return facts


def _write_manifest(folder: Path, facts: Mapping[str, Any]) -> None:
    (folder / MANIFEST).write_text(json.dumps(facts, indent=1, ensure_ascii=False), encoding="utf-8")


def _verify(folder: Path, check: Check) -> float:
    bundle = Bundle(folder)
    answers = bundle.run_pixels(np.ascontiguousarray(check.pixels))
    difference = float(np.abs(answers - check.probabilities).max())
    changed = int((answers.argmax(axis=1) != check.probabilities.argmax(axis=1)).sum())
    if difference > TOLERANCE or changed:
        raise BundleError(
            f"The packed model differs from torch by {difference:.2g} in probability (allowed: {TOLERANCE}) and "
            f"decides {changed} of {len(answers)} images differently, so it was not written. Choose another backbone "
            "with --backbones, and please report this one."
        )
    return difference


def _put_in_place(beside: Path, folder: Path) -> None:
    if folder.exists():
        old = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.old."))
        os.replace(folder, old / folder.name)
        os.replace(beside, folder)
        shutil.rmtree(old, ignore_errors=True)
    else:
        os.replace(beside, folder)
