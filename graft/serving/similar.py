"""The most similar images of an index, by the features of the model that the index was made with.

In: an index folder made by `graft index`, and embeddings. Out: names and similarities. Cost: that of the index.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from graft.errors import SettingsError
from graft.serving.hosting import Models
from graft.serving.refusals import Refusal

MOST = 100


class Neighbours:
    """An opened index, or none: then every search is refused. `model`: whose features the index holds."""

    def __init__(self, folder: Path | None, models: Models) -> None:
        """Raises SettingsError where the index belongs to none of the models, and what it says of itself."""
        self.model: str | None = None
        self._index: Any = None
        if folder is None:
            return
        from graft.similar.search import open_index

        self._index = index = open_index(folder)
        self.model = next((hosted.name for hosted in models if index.belongs_to(hosted.bundle)), None)
        if self.model is None:
            raise SettingsError(
                f"The index {folder} was made with none of the models that are served; serve the model it was made "
                "with, or make it again with `graft index`."
            )

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
        return [
            [{"name": match.name, "similarity": float(match.similarity)} for match in row] for row in found
        ]
