"""A packed model: the folder `model.graft/`, read and used with ONNX Runtime and Pillow alone.

In: the folder, and images as paths, bytes, PIL images or uint8 arrays. Out: probabilities by class name, or embeddings.
Importing this module and predicting costs neither torch nor timm. What does not match its hash, or was written by a
newer major format, is refused by name.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from jaxtyping import Float32, UInt8

from graft.errors import BundleError
from graft.images.dataset import Preprocess
from graft.images.preprocess import load as load_pixels

if TYPE_CHECKING:
    from PIL.Image import Image

    Picture: TypeAlias = "str | Path | bytes | Image | np.ndarray"
else:
    Picture = Any

FORMAT = (1, 0)
MANIFEST = "bundle.json"
MODEL = "model.onnx"
BATCH = 32


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
        self.labels: tuple[str, ...] = tuple(self.facts["labels"])
        self.preprocess = _preprocess(self.facts, self.folder)
        self._session = _session(self.folder / MODEL, threads)

    def predict(self, images: Picture | Sequence[Picture]) -> Any:
        """The `Prediction` of one image, or a list of them for a list.

        An image is a path, encoded bytes, a PIL image, or a uint8 array `[h, w]`, `[h, w, 1]`, `[h, w, 3]` or
        `[h, w, 4]`. Raises DatasetError for what cannot be read as an image.
        """
        if isinstance(images, (list, tuple)):
            return [self._prediction(row) for row in self.probabilities(images)]
        one: Any = images
        return self._prediction(self.probabilities([one])[0])

    def probabilities(self, images: Sequence[Picture]) -> Float32[np.ndarray, "n k"]:
        """Class probabilities, a row per image, columns in the order of `labels`."""
        return self._run("probabilities", images)

    def embed(self, images: Sequence[Picture]) -> Float32[np.ndarray, "n d"]:
        """The features in front of the head, a row per image."""
        return self._run("embedding", images)

    def run_pixels(self, pixels: UInt8[np.ndarray, "n h w c"]) -> Float32[np.ndarray, "n k"]:
        """Class probabilities of pixels that already have the network's geometry."""
        return self._session.run(["probabilities"], {"image": pixels})[0]

    def _run(self, output: str, images: Sequence[Picture]) -> np.ndarray:
        parts = []
        for begin in range(0, len(images), BATCH):
            batch = [_pixels(image, self.preprocess) for image in images[begin : begin + BATCH]]
            parts.append(self._session.run([output], {"image": np.stack(batch)})[0])
        if not parts:
            return np.zeros((0, len(self.labels)), np.float32)
        return np.concatenate(parts)

    def _prediction(self, row: Float32[np.ndarray, " k"]) -> Prediction:
        order = np.argsort(-row, kind="stable")
        ranked = {self.labels[index]: float(row[index]) for index in order}
        return Prediction(self.labels[order[0]], float(row[order[0]]), ranked)


def load(folder: str | Path, *, threads: int = 0) -> Bundle:
    """Open a bundle; `threads` 0 leaves the number to ONNX Runtime.

    Raises BundleError if it is missing, incomplete, altered, or of a newer format.
    """
    return Bundle(folder, threads=threads)


def labels_digest(labels: Sequence[str]) -> str:
    """The sha256 of the class names in their order: the contract between a model and whoever reads its output."""
    return hashlib.sha256("\n".join(labels).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """The sha256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _pixels(image: Picture, preprocess: Preprocess) -> UInt8[np.ndarray, "h w c"]:
    return load_pixels(Path(image) if isinstance(image, str) else image, preprocess)


def _manifest(folder: Path) -> dict[str, Any]:
    place = folder / MANIFEST
    try:
        facts = json.loads(place.read_text(encoding="utf-8"))
        major, minor = (int(part) for part in str(facts["format"]).split("."))
    except (FileNotFoundError, NotADirectoryError):
        raise BundleError(
            f"{folder} is no bundle: it has no {MANIFEST}. Name a folder model.graft that `graft study` made."
        ) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BundleError(f"{place} cannot be read: {error}. Make the bundle again.") from error
    if major > FORMAT[0]:
        raise BundleError(
            f"{folder} has the bundle format {major}.{minor}; this Graft reads {FORMAT[0]}.x. Update Graft."
        )
    _check(folder, facts)
    return facts


def _check(folder: Path, facts: dict[str, Any]) -> None:
    files, labels = facts.get("files"), facts.get("labels")
    sound = isinstance(files, dict) and MODEL in files and isinstance(labels, list) and len(labels) >= 2
    if not sound or not all(isinstance(label, str) for label in labels or []):
        raise BundleError(f"{folder / MANIFEST} lacks its labels or its list of files. Make the bundle again.")
    assert isinstance(files, dict) and isinstance(labels, list)
    if labels_digest(labels) != facts.get("labels_sha256"):
        raise BundleError(f"The labels in {folder / MANIFEST} were altered: their hash differs. Make it again.")
    for name, expected in files.items():
        if Path(name).name != name or not (folder / name).is_file():
            raise BundleError(f"{folder} lacks its file {name!r}. Copy the whole folder, or make the bundle again.")
        if file_digest(folder / name) != expected:
            raise BundleError(f"{folder / name} was altered: its hash differs from {MANIFEST}. Copy it again.")


def _preprocess(facts: dict[str, Any], folder: Path) -> Preprocess:
    try:
        preprocess = Preprocess(**facts["preprocess"])
    except (KeyError, TypeError) as error:
        raise BundleError(f"{folder / MANIFEST} does not say how images are prepared: {error}.") from error
    if preprocess.version > Preprocess(1).version:
        raise BundleError(f"{folder} prepares images in a way that this Graft does not know. Update Graft.")
    return preprocess


def _session(path: Path, threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except (onnxruntime.capi.onnxruntime_pybind11_state.Fail, RuntimeError, ValueError) as error:
        raise BundleError(f"{path} cannot be opened: {str(error).splitlines()[0]}. Make it again.") from error
