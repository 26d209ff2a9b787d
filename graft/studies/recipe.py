"""One candidate, described completely: same recipe, same images, same folds, same numbers."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

from graft.images.dataset import Preprocess
from graft.store import content_key

Strategy = Literal["frozen", "random", "scratch", "partial", "full"]


@dataclass(frozen=True, slots=True)
class Recipe:
    """`(backbone, weights, tap, cut)` cover every strategy: frozen = cut at the tap; scratch = random weights, no cut;
    partial = fine-tuned from a cut in between; full = fine-tuned from the input.

    `weights`: the sha256 of the file, or `random:SEED`. `settings`: the content key of whatever else went into the
    training. `name` is what people read, and is unique within a study.
    """

    name: str
    strategy: Strategy
    backbone: str
    weights: str
    geometry: Preprocess
    tap: str
    cut: str
    settings: str

    @property
    def key(self) -> str:
        """The content key; the name has no part in it."""
        content = {field: value for field, value in asdict(self).items() if field not in ("name", "geometry")}
        return content_key("recipe.v1", content, self.geometry.key)
