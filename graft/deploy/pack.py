"""Packing a fitted model into `model.graft/`, verified on real images before it gets its name; telling of it anew.

In: the assembled ONNX model, the class names, the geometry, what is to be told about it, and the probabilities that
torch gives on a few real images. Out: the folder, written beside and renamed. The check opens the folder as a user
would; more than `TOLERANCE` of difference in any probability, or one changed decision, and nothing is packed.

Not covered: two programs that pack into the same place at once. No system can swap two folders everywhere: a process
killed between the two renames leaves the older bundle under a hidden name and none under its own.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from jaxtyping import Float, UInt8
from onnx import ModelProto

from graft.deploy.activation import with_activation
from graft.deploy.bundle import Bundle
from graft.deploy.card import card
from graft.deploy.opening import (
    ACTIVATION,
    CARD,
    DECISION,
    EMBEDDING,
    FORMAT,
    INPUT,
    LABELS,
    MANIFEST,
    MODEL,
    PREPROCESS,
    PROBABILITIES,
    SCORE,
    SEAL,
    TASK,
    UNKNOWN,
    digest,
    sealed,
)
from graft.deploy.preprocess_graph import PICTURE, preprocess_graph
from graft.errors import BundleError
from graft.images.dataset import Preprocess
from graft.store import file_digest, json_line, write_json
from graft.version import VERSION

TOLERANCE = 1e-3


@dataclass(frozen=True, slots=True, eq=False)
class Check:
    """At least one real image in the network's geometry, and what torch in float32 says of it."""

    pixels: UInt8[np.ndarray, "m h w c"]
    probabilities: Float[np.ndarray, "m k"]


@dataclass(frozen=True, slots=True, eq=False)
class Knowing:
    """What the model knows of its own limits: see docs/bundle-format.md for the keys.

    `graph`: from `embedding` and `probabilities` to `score` `[n]`, higher for images unlike those it was made from.
    `unknown` holds the `threshold` of the score and how it was measured, `conformal` the `least_probability` of a
    label set, `thresholds` the decision between two classes, `{label: probability from which on it is the answer}`.
    """

    graph: bytes | None = None
    unknown: Mapping[str, Any] | None = None
    conformal: Mapping[str, Any] | None = None
    thresholds: Mapping[str, float] | None = None


NOTHING_KNOWN = Knowing()


def pack(
    folder: Path,
    model: bytes,
    *,
    labels: Sequence[str],
    preprocess: Preprocess,
    about: Mapping[str, Any],
    check: Check,
    knowing: Knowing = NOTHING_KNOWN,
    parity: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write the bundle and return `bundle.json`'s content.

    `model` gains its activation map where it can have one. `about` goes into it as it is (backbone, strategy, metrics, sources and licences of the weights) and into the card.
    `parity`: what to tell where the model was held against something else before, and `check` is its own answers.
    Raises BundleError if ONNX Runtime and torch disagree, or if `folder` is there and is no bundle; what is there then
    stays as it was.
    """
    if folder.exists() and not (folder / MANIFEST).is_file():
        raise BundleError(f"{folder} is there and is no bundle, so it is not replaced. Name another place.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        facts = _write(beside, model, labels, preprocess, about, knowing)
        difference = _verify(beside, check)
        facts["parity"] = parity or {
            "images": len(check.pixels),
            "largest_difference": difference,
            "tolerance": TOLERANCE,
        }
        facts = sealed(facts)
        write_json(beside / MANIFEST, facts)
        beside.chmod(0o755)
        put_in_place(beside, folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return facts


def retell(folder: Path, about: Mapping[str, Any]) -> dict[str, Any]:
    """Write the bundle in `folder` again, with the same graphs and another `about`; return `bundle.json`'s content.

    `about` is as `pack` wants it. The graphs are those that were verified, byte for byte, and keep their `parity`.
    Raises BundleError if there is no sound bundle, or if it would be none afterwards; what is there then stays as it was.
    """
    old = Bundle(folder)
    beside = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        for name in old.facts["files"]:
            shutil.copyfile(folder / name, beside / name)
        decision = {name: old.facts.get(name) for name in DECISION}
        _write_card(beside, old.labels, old.preprocess, {**about, **decision})
        files = {**old.facts["files"], CARD: file_digest(beside / CARD)}
        facts = sealed({**old.facts, **about, "graft": VERSION, "files": files})
        write_json(beside / MANIFEST, facts)
        Bundle(beside)
        beside.chmod(0o755)
        put_in_place(beside, folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return facts


def _write(
    folder: Path,
    model: bytes,
    labels: Sequence[str],
    preprocess: Preprocess,
    about: Mapping[str, Any],
    knowing: Knowing,
) -> dict[str, Any]:
    graph, no_activation = with_activation(onnx.load_from_string(model))
    graphs = {MODEL: graph, PREPROCESS: preprocess_graph(preprocess)}
    if knowing.graph is not None and knowing.unknown is not None:
        graphs[UNKNOWN] = onnx.load_from_string(knowing.graph)
    for name, each in graphs.items():
        (folder / name).write_bytes(each.SerializeToString())
    lines = "".join(" ".join(label.splitlines()) + "\n" for label in labels)
    (folder / LABELS).write_text(lines, encoding="utf-8", errors="replace", newline="\n")
    decision = _decision(knowing, len(labels))
    _write_card(folder, labels, preprocess, {**about, **decision})
    facts: dict[str, Any] = {
        "format": f"{FORMAT[0]}.{FORMAT[1]}",
        "graft": VERSION,
        "task": TASK,
        "labels": list(labels),
        "labels_sha256": digest(list(labels)),
        "preprocess": asdict(preprocess),
        "preprocess_sha256": digest(asdict(preprocess)),
        "preprocess_model": _about_preprocess(preprocess),
        "model": _about_model(graph, preprocess, len(labels), no_activation),
        **decision,
        "decision_sha256": digest(decision),
        "opset": {name: [each.opset_import[0].version, each.ir_version] for name, each in graphs.items()},
        "files": {name: file_digest(folder / name) for name in (*graphs, LABELS, CARD)},
    }
    told = {name: value for name, value in about.items() if name not in facts and name != SEAL}
    facts = {**facts, **told}
    write_json(folder / MANIFEST, facts)
    return facts


def _write_card(
    folder: Path, labels: Sequence[str], preprocess: Preprocess, about: Mapping[str, Any]
) -> None:
    text = card(labels, preprocess, about, (folder / MODEL).stat().st_size)
    (folder / CARD).write_text(text, encoding="utf-8", errors="replace", newline="\n")


def _about_model(
    model: ModelProto, preprocess: Preprocess, classes: int, no_activation: str
) -> dict[str, Any]:
    side = [preprocess.size, preprocess.size, preprocess.channels]
    outputs: dict[str, list[Any]] = {PROBABILITIES: ["n", classes], EMBEDDING: ["n", "d"]}
    if not no_activation:
        outputs[ACTIVATION] = ["n", classes, "y", "x"]
    return {
        "file": MODEL,
        "input": {"name": INPUT, "type": "uint8", "shape": ["n", *side]},
        "outputs": outputs,
        "no_activation": no_activation or None,
    }


def _about_preprocess(preprocess: Preprocess) -> dict[str, Any]:
    side = [preprocess.size, preprocess.size, preprocess.channels]
    return {
        "file": PREPROCESS,
        "input": {"name": PICTURE, "type": "uint8", "shape": ["h", "w", "c"]},
        "output": {"name": INPUT, "type": "uint8", "shape": [1, *side]},
    }


def _decision(knowing: Knowing, classes: int) -> dict[str, Any]:
    """How numbers become answers, in the order in which its hash is made; plain JSON, so that it reads back the same."""
    unknown = None
    if knowing.graph is not None and knowing.unknown is not None:
        inputs = {EMBEDDING: ["n", "d"], PROBABILITIES: ["n", classes]}
        unknown = {"file": UNKNOWN, "inputs": inputs, "output": SCORE, **knowing.unknown}
    parts = dict(zip(DECISION, (knowing.thresholds or None, unknown, knowing.conformal), strict=True))
    plain: dict[str, Any] = json.loads(json_line(parts))
    return plain


def _verify(folder: Path, check: Check) -> float:
    answers = Bundle(folder).predict_pixels(np.ascontiguousarray(check.pixels))
    difference = float(np.abs(answers - check.probabilities).max())
    changed = int((answers.argmax(axis=1) != check.probabilities.argmax(axis=1)).sum())
    if not difference <= TOLERANCE or changed:  # a NaN is no agreement
        raise BundleError(
            f"The packed model differs from torch by {difference:.2g} in probability (allowed: {TOLERANCE}) and "
            f"decides {changed} of {len(answers)} images differently, so it was not written. Choose another backbone "
            "with --backbones, and please report this one."
        )
    return difference


def put_in_place(beside: Path, folder: Path) -> None:
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
