"""The most similar images of an index, by the features of the model that the index was made with.

In: an index folder made by `graft index`, and embeddings. Out: names and similarities, and small pictures of the index's
images by their place in it. A picture is made only of bytes that still have the hash under which they were indexed, so
whatever else lies or comes to lie in that folder stays there; what goes out is encoded anew, without EXIF.

Cost: that of the index; a thumbnail is made once and kept, 512 of them (3 MB).
"""

from __future__ import annotations

import functools
import hashlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from graft.deploy.bundle import Bundle
from graft.errors import DatasetError, SettingsError
from graft.images import readers
from graft.images.decode import MAX_BYTES, read
from graft.serving.hosting import Models
from graft.serving.refusals import Refusal

MOST = 100
SAMPLES = 6
_THUMBNAIL_SIDE, _SAMPLE_SIDE = 160, 640
_KEPT = 512


def opened(folder: Path, bundles: Mapping[str, Bundle]) -> tuple[Any, str]:
    """The index, and the name of the model whose features it holds.

    Raises SettingsError where the index belongs to none of the models, and what it says of itself.
    """
    from graft.similar.search import open_index

    index = open_index(folder)
    model = next((name for name, bundle in bundles.items() if index.belongs_to(bundle)), None)
    if model is None:
        raise SettingsError(
            f"The index {folder} was made with none of the models that are served; serve the model it was made "
            "with, or make it again with `graft index`."
        )
    return index, model


class Neighbours:
    """An opened index, or none: then every search is refused. `model`: whose features the index holds."""

    def __init__(self, folder: Path | None, models: Models) -> None:
        """Raises as `opened` does."""
        self.model: str | None = None
        self._samples: list[int] = []
        self._index: Any = None
        self._places: dict[str, int] = {}
        self._small = functools.lru_cache(_KEPT)(self._picture)
        if folder is None:
            return
        self._index, self.model = opened(folder, {hosted.name: hosted.bundle for hosted in models})
        self._places = {name: place for place, name in enumerate(self._index.names)}
        count = min(SAMPLES, len(self._index))
        spread = [number * len(self._index) // count for number in range(count)]
        self._samples = [place for place in spread if self._is_readable(place)]

    @property
    def samples(self) -> int:
        """How many images there are to try the model with."""
        return len(self._samples)

    def model_for(self, asked: str | None) -> str:
        """The model to embed with. Raises Refusal where there is no index, or none for the model `asked` for."""
        if self.model is None:
            raise Refusal(
                404,
                "This service has no index of images; start it with --index FOLDER, made by `graft index`.",
            )
        if asked not in (None, self.model):
            raise Refusal(400, f"The index of this service is searched with the model {self.model} only.")
        return self.model

    def search(self, embeddings: Float32[np.ndarray, "n d"], *, topk: int) -> list[list[dict[str, Any]]]:
        """For each embedding the `topk` most similar images, the most similar first; needs an index."""
        found = self._index.search(embeddings, topk)
        return [[self._said(match) for match in row] for row in found]

    def thumbnail(self, place: int) -> bytes:
        """A JPEG of at most 160 pixels a side. Raises Refusal(404) where there is no such image any more."""
        return self._small(place, _THUMBNAIL_SIDE)

    def sample(self, number: int) -> bytes:
        """A JPEG of at most 640 pixels a side of one of `samples` images, spread over the index. Raises Refusal(404)."""
        if number >= self.samples:
            raise _gone()
        return self._small(self._samples[number], _SAMPLE_SIDE)

    def _said(self, match: Any) -> dict[str, Any]:
        place = self._places[match.name]
        return {
            "name": match.name,
            "similarity": float(match.similarity),
            "thumbnail": f"similar/thumbnail/{place}" if self.samples else None,
        }

    def _is_readable(self, place: int) -> bool:
        try:
            self.thumbnail(place)
        except Refusal:
            return False
        return True

    def _picture(self, place: int, side: int) -> bytes:
        if self._index is None or place >= len(self._index):
            raise _gone()
        try:
            path, row = readers.find(self._index.root, self._index.names[place])
            if row is None and path.stat().st_size > MAX_BYTES:
                raise _gone()
            data = readers.read_bytes(path, row)
            if hashlib.blake2b(data, digest_size=20).hexdigest() != self._index.digests[place]:
                raise _gone()
            image = read(data, hint_side=side)
        # ValueError: a name that no file can have; ImportError: Parquet in a container without pyarrow.
        except (DatasetError, OSError, ValueError, ImportError):
            raise _gone() from None
        image.thumbnail((side, side))
        written = io.BytesIO()
        image.save(written, "JPEG", quality=90)
        return written.getvalue()


def _gone() -> Refusal:
    return Refusal(404, "The index has no such image, or its file is no longer what it was.")
