"""A packed model: the folder `model.graft/`, read and used with ONNX Runtime and Pillow alone.

In: the folder, and images as paths, bytes, PIL images or uint8 arrays. Out: probabilities by class name, or embeddings.
Importing this module and predicting costs neither torch nor timm. What does not match its hash, is not what it says of
itself, or was written by a newer major format, is refused by name: a bundle opens with the answers it was packed with,
or not at all.

Not covered: a deliberate forger, who can compute hashes, too; batches beyond what memory holds of the answers.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, overload

import numpy as np
from jaxtyping import Float32, UInt8
from PIL.Image import Image

from graft.errors import BundleError, DatasetError
from graft.images.dataset import Preprocess
from graft.images.preprocess import load as load_pixels
from graft.store import canonical_json, file_digest

if TYPE_CHECKING:
    Picture: TypeAlias = "str | Path | bytes | Image | np.ndarray"
else:
    Picture = Any

FORMAT = (1, 0)
TASK = "single-label"
MANIFEST = "bundle.json"
MODEL = "model.onnx"
INPUT = "image"
PROBABILITIES = "probabilities"
EMBEDDING = "embedding"
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


@dataclass(frozen=True, slots=True)
class Prediction:
    """One image's answer: the most probable class, its probability, and all of them, most probable first."""

    label: str
    probability: float
    probabilities: dict[str, float]

    def top(self, count: int) -> dict[str, float]:
        """The `count` most probable classes."""
        return dict(list(self.probabilities.items())[:count])


class Bundle:
    """An opened `model.graft/`. `labels` are in the order of the output; `facts` is the whole of `bundle.json`."""

    def __init__(self, folder: str | Path, *, threads: int = 0) -> None:
        self.folder = Path(folder)
        self.facts = _manifest(self.folder)
        self.labels = _labels(self.facts, self.folder)
        self.preprocess = _preprocess(self.facts, self.folder)
        _check_files(self.facts, self.folder)
        self._session = _session(self.folder / MODEL, threads)
        self._columns = _columns(self._session, self.folder, self.preprocess, classes=len(self.labels))

    # A string is a sequence of strings, too; at run time only lists and tuples are.
    @overload
    def predict(self, images: Picture) -> Prediction: ...  # type: ignore[overload-overlap]
    @overload
    def predict(self, images: Sequence[Picture]) -> list[Prediction]: ...
    def predict(self, images: Any) -> Prediction | list[Prediction]:
        """The `Prediction` of one image, or a list of them for a list or tuple.

        An image is a path, encoded bytes, a PIL image, or a uint8 array `[h, w]`, `[h, w, 1]`, `[h, w, 3]` or
        `[h, w, 4]`. Raises DatasetError for what cannot be read as an image.
        """
        answers = [self._prediction(row) for row in self.probabilities(images)]
        return answers if isinstance(images, (list, tuple)) else answers[0]

    def probabilities(self, images: Picture | Sequence[Picture]) -> Float32[np.ndarray, "n k"]:
        """Class probabilities of a list of images (or of one), a row each, columns in the order of `labels`.

        Raises DatasetError as `predict` does.
        """
        return self._run(PROBABILITIES, images)

    def embed(self, images: Picture | Sequence[Picture]) -> Float32[np.ndarray, "n d"]:
        """The features in front of the head of a list of images (or of one), a row each.

        Raises DatasetError as `predict` does.
        """
        return self._run(EMBEDDING, images)

    def run_pixels(self, pixels: UInt8[np.ndarray, "n h w c"]) -> Float32[np.ndarray, "n k"]:
        """Class probabilities of pixels that already have the network's geometry, `[n, size, size, channels]`."""
        return self._session.run([PROBABILITIES], {INPUT: pixels})[0]

    def _run(self, output: str, images: Any) -> Float32[np.ndarray, "n _"]:
        listed = images if isinstance(images, (list, tuple)) else [images]
        side, channels = self.preprocess.size, self.preprocess.channels
        rows = np.empty((len(listed), self._columns[output]), np.float32)
        for begin in range(0, len(listed), BATCH):
            part = listed[begin : begin + BATCH]
            batch = np.empty((len(part), side, side, channels), np.uint8)
            for place, image in enumerate(part):
                batch[place] = _pixels(image, self.preprocess)
            rows[begin : begin + len(part)] = self._session.run([output], {INPUT: batch})[0]
        return rows

    def _prediction(self, row: Float32[np.ndarray, " k"]) -> Prediction:
        order = np.argsort(-row, kind="stable")
        ranked = {self.labels[index]: float(row[index]) for index in order}
        return Prediction(self.labels[order[0]], float(row[order[0]]), ranked)


def load(folder: str | Path, *, threads: int = 0) -> Bundle:
    """Open a bundle; `threads` 0 leaves the number to ONNX Runtime.

    Raises BundleError if it is missing, incomplete, altered, or of a newer format.
    """
    return Bundle(folder, threads=threads)


def digest(value: object) -> str:
    """The sha256 of a value's compact JSON in UTF-8; of a list of labels, it is that of JavaScript's JSON.stringify."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def _pixels(image: Any, preprocess: Preprocess) -> UInt8[np.ndarray, "h w c"]:
    if not isinstance(image, (str, Path, bytes, Image, np.ndarray)):
        raise DatasetError(
            f"A {type(image).__name__} is no image; give a path, encoded bytes, a PIL image or a uint8 array."
        )
    return load_pixels(image, preprocess)


def _manifest(folder: Path) -> dict[str, Any]:
    place = folder / MANIFEST
    try:
        facts = json.loads(place.read_text(encoding="utf-8"))
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


def _labels(facts: dict[str, Any], folder: Path) -> tuple[str, ...]:
    labels = facts.get("labels")
    labels = labels if isinstance(labels, list) and all(isinstance(label, str) for label in labels) else []
    if len(labels) < 2 or len(set(labels)) < len(labels):
        raise BundleError(f"{folder / MANIFEST} lacks its labels, at least two different names. {AGAIN}")
    if digest(labels) != facts.get("labels_sha256"):
        raise BundleError(f"The labels in {folder / MANIFEST} were altered: their hash differs. {AGAIN}")
    return tuple(labels)


def _preprocess(facts: dict[str, Any], folder: Path) -> Preprocess:
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


def _check_files(facts: dict[str, Any], folder: Path) -> None:
    files = facts.get("files")
    if not isinstance(files, dict) or MODEL not in files:
        raise BundleError(f"{folder / MANIFEST} lacks its list of files. {AGAIN}")
    for name, expected in files.items():
        if Path(name).name != name or not (folder / name).is_file():
            raise BundleError(f"{folder} lacks its file {name!r}. {AGAIN}")
        try:
            found = file_digest(folder / name)
        except OSError as error:
            raise BundleError(f"{folder / name} cannot be read: {error.strerror}. {AGAIN}") from error
        if found != expected:
            raise BundleError(
                f"{folder / name} was altered: its hash differs from that in {MANIFEST}. {AGAIN}"
            )


def _session(path: Path, threads: int) -> Any:
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # ONNX Runtime's errors share no ancestor but Exception.
    refusals = (
        *(state.Fail, state.InvalidArgument, state.InvalidGraph, state.InvalidProtobuf, state.NoSuchFile),
        *(state.NotImplemented, state.RuntimeException, state.EPFail, RuntimeError, ValueError),
    )
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except refusals as error:
        reason = (str(error).splitlines() or [""])[0]
        raise BundleError(
            f"ONNX Runtime cannot open {path}: {reason}. Update onnxruntime. {AGAIN}"
        ) from error


def _columns(session: Any, folder: Path, preprocess: Preprocess, *, classes: int) -> dict[str, int]:
    """How many columns each output has; the graph must take the pixels that `preprocess` makes and know every label."""
    inputs = [(given.name, given.type, given.shape[1:]) for given in session.get_inputs()]
    outputs = {given.name: given.shape[-1] for given in session.get_outputs() if len(given.shape) == 2}
    wanted = [(INPUT, "tensor(uint8)", [preprocess.size, preprocess.size, preprocess.channels])]
    sound = inputs == wanted and outputs.get(PROBABILITIES) == classes
    if not sound or not isinstance(outputs.get(EMBEDDING), int):
        raise BundleError(f"{folder / MODEL} is not the model that {MANIFEST} describes. {AGAIN}")
    return outputs
