"""A packed model: the folder `model.graft/`, read and used with ONNX Runtime (or OpenVINO) and Pillow alone.

In: the folder, and images as paths, bytes, PIL images or uint8 arrays. Out: probabilities by class name, or embeddings.
Importing this module and predicting costs neither torch nor timm. What does not match its hash, is not what it says of
itself, or was written by a newer major format, is refused by name: a bundle opens with the answers it was packed with,
or not at all.

Not covered: a deliberate forger, who can compute hashes, too; batches beyond what memory holds of the answers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, overload

import numpy as np
from jaxtyping import Float32, Int64, UInt8
from PIL.Image import Image

from graft.deploy.compiled import Compiled, Runtime
from graft.deploy.lean import without_activation
from graft.deploy.opening import (
    ACTIVATION,
    BATCH,
    EMBEDDING,
    INPUT,
    MODEL,
    PROBABILITIES,
    SCORE,
    check_facts,
    check_files,
    check_unknown,
    columns_of,
    decision_of,
    labels_of,
    manifest,
    preprocess_of,
    session_of,
)
from graft.deploy.opening import AGAIN as AGAIN
from graft.deploy.opening import FORMAT as FORMAT
from graft.deploy.opening import GEOMETRY as GEOMETRY
from graft.deploy.opening import MANIFEST as MANIFEST
from graft.deploy.opening import TASK as TASK
from graft.deploy.opening import digest as digest
from graft.errors import BundleError, DatasetError
from graft.images.dataset import Preprocess
from graft.images.preprocess import load as load_pixels

if TYPE_CHECKING:
    Picture: TypeAlias = "str | Path | bytes | Image | np.ndarray"
else:
    Picture = Any


@dataclass(frozen=True, slots=True)
class Prediction:
    """One image's answer: the class, its probability, and all of them, the answer's first, then most probable first.

    The answer is the most probable class, too, unless the bundle decides by a threshold. Where the bundle knows what it
    was made from: `unknown`, whether the image is unlike all of that; `score`, how much (comparable within one bundle
    only); `labels_90`, the classes among which the right one is in 90 % of cases, the answer always one of them.
    """

    label: str
    probability: float
    probabilities: dict[str, float]
    unknown: bool | None = None
    score: float | None = None
    labels_90: tuple[str, ...] | None = None

    def top(self, count: int) -> dict[str, float]:
        """The first `count` classes: the answer and the most probable others."""
        return dict(list(self.probabilities.items())[:count])


class Bundle:
    """An opened `model.graft/`. `labels` are in the order of the output; `facts` is the whole of `bundle.json`.

    `threads`: of one run of the network, 0 leaves the number to the runtime. `abreast`: how many threads ask at once,
    which only OpenVINO wants to know.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        threads: int = 0,
        runtime: Runtime = "onnxruntime",
        abreast: int = 1,
    ) -> None:
        self.folder = Path(folder)
        self.facts = manifest(self.folder)
        self.labels = labels_of(self.facts, self.folder)
        self.preprocess = preprocess_of(self.facts, self.folder)
        check_files(self.facts, self.folder)
        self.decision = decision_of(self.facts, self.folder, self.labels)
        check_facts(self.facts, self.folder)
        whole = (self.folder / MODEL).read_bytes()
        lean = without_activation(whole)
        self._has_activation = len(lean) < len(whole)
        self._session = session_of(self.folder / MODEL, threads, content=lean)
        self._columns = columns_of(self._session, self.folder, self.preprocess, classes=len(self.labels))
        if runtime == "openvino":
            self._session = Compiled(self.folder / MODEL, lean, threads=threads, abreast=abreast)
        self._unknown: Any = None
        if self.decision.unknown_file is not None:
            path = self.folder / self.decision.unknown_file
            self._unknown = session_of(path, 1)
            check_unknown(self._unknown, path, self._columns, len(self.labels))

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
        listed = images if isinstance(images, (list, tuple)) else [images]
        answers: list[Prediction] = []
        for batch in self._batches(listed):
            rows, scores = self.answer_pixels(batch)
            answers += [
                self.prediction(row, None if scores is None else float(scores[place]))
                for place, row in enumerate(rows)
            ]
        return answers if isinstance(images, (list, tuple)) else answers[0]

    def probabilities(self, images: Picture | Sequence[Picture]) -> Float32[np.ndarray, "n k"]:
        """Class probabilities of a list of images (or of one), a row each, columns in the order of `labels`.

        Raises DatasetError as `predict` does.
        """
        return self._run(PROBABILITIES, images)

    def scored(self, image: Picture) -> tuple[Float32[np.ndarray, " k"], float | None]:
        """The class probabilities of one image, and how unlike everything the bundle was made from it is.

        The score is None where the bundle cannot tell. Raises DatasetError as `predict` does.
        """
        rows, scores = self.answer_pixels(next(self._batches([image])))
        return rows[0], None if scores is None else float(scores[0])

    def embed(self, images: Picture | Sequence[Picture]) -> Float32[np.ndarray, "n d"]:
        """The features in front of the head of a list of images (or of one), a row each.

        Raises DatasetError as `predict` does.
        """
        return self._run(EMBEDDING, images)

    @property
    def no_activation(self) -> str:
        """Why the model has no map of what spoke for a class; empty if it has one."""
        if self._has_activation:
            return ""
        told = self.facts.get("model")
        reason = told.get("no_activation") if isinstance(told, dict) else None
        return str(reason or "it was packed by an older Graft")

    def explain(self, image: Picture, label: str | None = None) -> Float32[np.ndarray, "y x"]:
        """Which places of the picture spoke for `label` (default: for the answer) rather than for the average class.

        The map covers the part of the picture that the network sees, and its mean is the logarithm of the class's
        probability minus the mean of those of all classes: what has no place is spread evenly. Negative places spoke
        against the class. Raises BundleError if the model has no such output or no such class, DatasetError as
        `predict` does.
        """
        if label is not None and label not in self.labels:
            raise BundleError(f"{self.folder} has no class {label!r}; it has {', '.join(self.labels)}.")
        if self.no_activation:
            raise BundleError(f"{self.folder} cannot show what spoke for a class: {self.no_activation}.")
        pixels = _pixels(image, self.preprocess)[None]
        rows, maps = self._explaining.run([PROBABILITIES, ACTIVATION], {INPUT: pixels})
        column = self.decide(rows)[0] if label is None else self.labels.index(label)
        logits = np.log(np.maximum(rows[0], np.finfo(np.float32).tiny))
        contrast = maps[0, column] - maps[0].mean(axis=0)
        return contrast + (logits[column] - logits.mean() - contrast.mean())

    @cached_property
    def _explaining(self) -> Any:
        """The whole graph, which costs time and memory that only explanations are worth."""
        return session_of(self.folder / MODEL, 1)

    def predict_pixels(self, pixels: UInt8[np.ndarray, "n h w c"]) -> Float32[np.ndarray, "n k"]:
        """Class probabilities of pixels that already have the network's geometry, `[n, size, size, channels]`."""
        return self._session.run([PROBABILITIES], {INPUT: pixels})[0]

    def answer_pixels(
        self, pixels: UInt8[np.ndarray, "n h w c"]
    ) -> tuple[Float32[np.ndarray, "n k"], Float32[np.ndarray, " n"] | None]:
        """Probabilities and, where the bundle has it, the score of being unknown: what `prediction` wants, a row each."""
        if self._unknown is None:
            return self.predict_pixels(pixels), None
        rows, features = self._session.run([PROBABILITIES, EMBEDDING], {INPUT: pixels})
        return rows, self.scores(rows, features)

    def scores(
        self, probabilities: Float32[np.ndarray, "n k"], embeddings: Float32[np.ndarray, "n d"]
    ) -> Float32[np.ndarray, " n"] | None:
        """How unlike everything it was made from each image is; None where the bundle cannot tell."""
        if self._unknown is None:
            return None
        given = {EMBEDDING: embeddings, PROBABILITIES: probabilities}
        return self._unknown.run(
            [SCORE], {name.name: given[name.name] for name in self._unknown.get_inputs()}
        )[0]

    def decide(self, probabilities: Float32[np.ndarray, "n k"]) -> Int64[np.ndarray, " n"]:
        """The column of each row's answer: the most probable class, or by the bundle's threshold where it has one."""
        if self.decision.threshold is None:
            return probabilities.argmax(axis=1).astype(np.int64)
        column, least = self.decision.threshold
        return np.where(probabilities[:, column] >= least, column, 1 - column).astype(np.int64)

    def prediction(self, row: Float32[np.ndarray, " k"], score: float | None = None) -> Prediction:
        """The answer that one row of probabilities, and its score, stand for."""
        decided, order = int(self.decide(row[None])[0]), np.argsort(-row, kind="stable")
        label, most = self.labels[decided], self.labels[order[0]]
        ranked = {self.labels[index]: float(row[index]) for index in (decided, *order)}
        limit, least = self.decision.limit, self.decision.least_probability
        unknown = None if limit is None or score is None else not score <= limit
        likely = None
        if least is not None:
            likely = tuple(name for name, share in ranked.items() if name in (label, most) or share >= least)
        return Prediction(label, ranked[label], ranked, unknown, score, likely)

    def _run(self, output: str, images: Any) -> Float32[np.ndarray, "n _"]:
        listed = images if isinstance(images, (list, tuple)) else [images]
        rows = np.empty((len(listed), self._columns[output]), np.float32)
        begin = 0
        for batch in self._batches(listed):
            rows[begin : begin + len(batch)] = self._session.run([output], {INPUT: batch})[0]
            begin += len(batch)
        return rows

    def _batches(self, listed: Sequence[Any]) -> Iterator[UInt8[np.ndarray, "n h w c"]]:
        side, channels = self.preprocess.size, self.preprocess.channels
        for begin in range(0, len(listed), BATCH):
            part = listed[begin : begin + BATCH]
            batch = np.empty((len(part), side, side, channels), np.uint8)
            for place, image in enumerate(part):
                batch[place] = _pixels(image, self.preprocess)
            yield batch


def load(
    folder: str | Path, *, threads: int = 0, runtime: Runtime = "onnxruntime", abreast: int = 1
) -> Bundle:
    """Open a bundle (see `Bundle`); its answers by either runtime differ by rounding alone.

    Raises BundleError if it is missing, incomplete, altered, or of a newer format, and where OpenVINO is not installed.
    """
    return Bundle(folder, threads=threads, runtime=runtime, abreast=abreast)


def _pixels(image: Any, preprocess: Preprocess) -> UInt8[np.ndarray, "h w c"]:
    if not isinstance(image, (str, Path, bytes, Image, np.ndarray)):
        raise DatasetError(
            f"A {type(image).__name__} is no image; give a path, encoded bytes, a PIL image or a uint8 array."
        )
    return load_pixels(image, preprocess)
