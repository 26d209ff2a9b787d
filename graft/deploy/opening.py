"""What a bundle's folder says of itself, held against what it is: everything that can be refused is refused here.

In: the folder. Out: the content of `bundle.json`, checked piece by piece, and opened graphs. See docs/bundle-format.md.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graft.errors import BundleError
from graft.images.dataset import Preprocess
from graft.store import canonical_json, file_digest, json_line

FORMAT = (1, 0)
TASK = "single-label"
MANIFEST = "bundle.json"
MODEL = "model.onnx"
PREPROCESS = "preprocess.onnx"
UNKNOWN = "unknown.onnx"
LABELS = "labels.txt"
CARD = "card.md"
INPUT = "image"
PROBABILITIES = "probabilities"
EMBEDDING = "embedding"
ACTIVATION = "activation"
SCORE = "score"
DECISION = ("thresholds", "unknown", "conformal")
SEAL = "facts_sha256"
BATCH = 32
AGAIN = "Copy the whole folder again, or make the bundle again with `graft study`."
# The values a geometry may have; with another one the bundle was made for another Graft, or by nobody.
GEOMETRY = {
    "size": range(1, 16_385),
    "fit": ("crop", "squash", "pad"),
    "interpolation": ("bicubic", "bilinear"),
    "channels": (1, 3),
    "version": (1,),
}


def digest(value: object) -> str:
    """The sha256 of a value's compact JSON in UTF-8; of a list of labels, it is that of JavaScript's JSON.stringify."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def sealed(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Facts as they are read back from JSON, with the digest of all of them."""
    plain: dict[str, Any] = json.loads(json_line({name: facts[name] for name in facts if name != SEAL}))
    return {**plain, SEAL: digest(plain)}


@dataclass(frozen=True, slots=True)
class Decision:
    """How numbers become answers; None where the bundle does not say.

    `threshold`: a column of two, and the probability from which on it is the answer. `limit`: a score above it is
    unknown. `least_probability`: the classes from there on are the label set, the most probable one always.
    """

    threshold: tuple[int, float] | None = None
    limit: float | None = None
    least_probability: float | None = None
    unknown_file: str | None = None


def manifest(folder: Path) -> dict[str, Any]:
    """The content of `bundle.json`. Raises BundleError, as all functions here do."""
    place = folder / MANIFEST
    try:
        facts = json.loads(place.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except (FileNotFoundError, NotADirectoryError):
        raise BundleError(
            f"{folder} is no bundle: it has no {MANIFEST}. Name a folder model.graft that `graft study` made."
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(f"{place} cannot be read: {error}. {AGAIN}") from error
    number = (
        re.fullmatch(r"(\d{1,4})\.(\d{1,4})", str(facts.get("format")), re.ASCII)
        if isinstance(facts, dict)
        else None
    )
    if number is None:
        raise BundleError(f"{place} does not say of which format it is. {AGAIN}")
    if int(number[1]) != FORMAT[0]:
        raise BundleError(
            f"{folder} has the bundle format {number[0]}; this Graft reads {FORMAT[0]}.x. Update Graft."
        )
    if facts.get("task") != TASK:
        raise BundleError(
            f"{folder} is made for the task {facts.get('task')!r}; this Graft knows {TASK}. Update Graft."
        )
    return facts


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def labels_of(facts: dict[str, Any], folder: Path) -> tuple[str, ...]:
    """The class names in the order of the output."""
    labels = facts.get("labels")
    labels = labels if isinstance(labels, list) and all(isinstance(label, str) for label in labels) else []
    if len(labels) < 2 or len(set(labels)) < len(labels):
        raise BundleError(f"{folder / MANIFEST} lacks its labels, at least two different names. {AGAIN}")
    if digest(labels) != facts.get("labels_sha256"):
        raise BundleError(f"The labels in {folder / MANIFEST} were altered: their hash differs. {AGAIN}")
    return tuple(labels)


def preprocess_of(facts: dict[str, Any], folder: Path) -> Preprocess:
    """How an image becomes the network's input."""
    given = facts.get("preprocess")
    if not isinstance(given, dict) or digest(given) != facts.get("preprocess_sha256"):
        raise BundleError(
            f"{folder / MANIFEST} does not say how images are prepared, or was altered there. {AGAIN}"
        )
    share = given.get("crop_share")
    known = set(given) == {*GEOMETRY, "crop_share"} and isinstance(share, float) and 0 < share <= 1
    if not known or any(given[name] not in valid for name, valid in GEOMETRY.items()):
        raise BundleError(f"{folder} prepares images in a way that this Graft does not know. Update Graft.")
    return Preprocess(**given)


def decision_of(facts: dict[str, Any], folder: Path, labels: tuple[str, ...]) -> Decision:
    """How the numbers are to be read. Bundles of before 1.0 was complete say nothing of it."""
    parts = {name: facts.get(name) for name in DECISION}
    expected = facts.get("decision_sha256")
    if parts == dict.fromkeys(DECISION) and expected is None:
        return Decision()
    if digest(parts) != expected:
        raise BundleError(f"{folder / MANIFEST} was altered where it says how to decide. {AGAIN}")
    thresholds, unknown, conformal = (parts[name] or {} for name in DECISION)
    try:
        threshold = [(labels.index(label), _share(value)) for label, value in thresholds.items()]
        limit = float(unknown["threshold"]) if unknown else None
        least = _share(conformal["least_probability"]) if conformal else None
        file = str(unknown["file"]) if unknown else None
    except (AttributeError, KeyError, TypeError, ValueError):
        threshold, limit, least, file = [], math.nan, None, None
    odd = len(threshold) > 1 or (threshold and len(labels) != 2) or not math.isfinite(limit or 0.0)
    if odd or (file is not None and file not in (facts.get("files") or {})):
        raise BundleError(f"{folder} decides in a way that this Graft does not know. Update Graft.")
    return Decision(threshold[0] if threshold else None, limit, least, file)


def _share(value: Any) -> float:
    if not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise ValueError
    return float(value)


def check_files(facts: dict[str, Any], folder: Path) -> None:
    """Whether every file is there and is what it was."""
    files = facts.get("files")
    if not isinstance(files, dict) or MODEL not in files:
        raise BundleError(f"{folder / MANIFEST} lacks its list of files. {AGAIN}")
    for name in (PREPROCESS, UNKNOWN, LABELS, CARD):
        if name not in files and (folder / name).exists():
            raise BundleError(f"{folder / name} is not in the list of files in {MANIFEST}. {AGAIN}")
    for name, expected in files.items():
        if Path(name).name != name or not (folder / name).is_file():
            raise BundleError(f"{folder} lacks its file {name!r}. {AGAIN}")
        if not (folder / name).resolve().is_relative_to(folder.resolve()):
            raise BundleError(f"{folder / name} is a link that leads out of the folder. {AGAIN}")
        try:
            found = file_digest(folder / name)
        except OSError as error:
            raise BundleError(f"{folder / name} cannot be read: {error.strerror}. {AGAIN}") from error
        if found != expected:
            raise BundleError(
                f"{folder / name} was altered: its hash differs from that in {MANIFEST}. {AGAIN}"
            )


def check_facts(facts: dict[str, Any], folder: Path) -> None:
    """Whether all that is told is what was packed. Bundles of before there was a seal are not asked."""
    if SEAL in facts and sealed(facts)[SEAL] != facts[SEAL]:
        raise BundleError(f"{folder / MANIFEST} was altered: its hash differs from what it says. {AGAIN}")


def session_of(path: Path, threads: int, *, content: bytes | None = None) -> Any:
    """The graph in ONNX Runtime, on the processor; `content`: what to take for that of the file."""
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # Patterns are kept for every size of batch: 217 MB instead of 179 under load, and no faster (64 clients, 30 s).
    options.enable_mem_pattern = False
    # Else a graph from memory could take weights from wherever the program was started.
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent))
    # ONNX Runtime's errors share no ancestor but Exception.
    refusals = (
        *(state.Fail, state.InvalidArgument, state.InvalidGraph, state.InvalidProtobuf, state.NoSuchFile),
        *(state.NotImplemented, state.RuntimeException, state.EPFail, RuntimeError, ValueError),
    )
    try:
        given = str(path) if content is None else content
        return onnxruntime.InferenceSession(given, options, providers=["CPUExecutionProvider"])
    except refusals as error:
        reason = (str(error).splitlines() or [""])[0]
        raise BundleError(
            f"ONNX Runtime cannot open {path}: {reason}. Update onnxruntime. {AGAIN}"
        ) from error


def columns_of(session: Any, folder: Path, preprocess: Preprocess, *, classes: int) -> dict[str, int]:
    """How many columns each output has; the graph must take the pixels that `preprocess` makes and know every label."""
    inputs = [(given.name, given.type, given.shape[1:]) for given in session.get_inputs()]
    outputs = {given.name: given.shape[-1] for given in session.get_outputs() if len(given.shape) in (2, 4)}
    wanted = [(INPUT, "tensor(uint8)", [preprocess.size, preprocess.size, preprocess.channels])]
    sound = inputs == wanted and outputs.get(PROBABILITIES) == classes
    if not sound or not isinstance(outputs.get(EMBEDDING), int):
        raise BundleError(f"{folder / MODEL} is not the model that {MANIFEST} describes. {AGAIN}")
    return outputs


def check_unknown(session: Any, path: Path, columns: Mapping[str, Any], classes: int) -> None:
    """Whether the graph of the score takes what the model puts out."""
    inputs = {given.name: (given.type, given.shape[1:]) for given in session.get_inputs()}
    wanted = {EMBEDDING: ("tensor(float)", [columns[EMBEDDING]]), PROBABILITIES: ("tensor(float)", [classes])}
    outputs = [(given.name, given.type, len(given.shape)) for given in session.get_outputs()]
    known = bool(inputs) and all(wanted.get(name) == shape for name, shape in inputs.items())
    if not known or outputs != [(SCORE, "tensor(float)", 1)]:
        raise BundleError(f"{path} is not the graph that {MANIFEST} describes. {AGAIN}")
