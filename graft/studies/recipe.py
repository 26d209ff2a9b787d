"""One candidate, described completely: same recipe, same images, same folds, same numbers."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

from graft.backbones.inputs import Look
from graft.images.dataset import Preprocess
from graft.store import content_key

Strategy = Literal["frozen", "depths", "random", "scratch", "partial", "full", "shrunk", "ensemble"]


@dataclass(frozen=True, slots=True)
class Recipe:
    """`(backbone, weights, tap, cut)` cover every strategy: frozen = cut at the tap; depths = frozen and
    read at several depths at once (`graft.studies.depths`); scratch = random weights, no cut;
    partial = fine-tuned from a cut in between; full = fine-tuned from the input; shrunk = a frozen network made smaller;
    ensemble = the mean of several candidates (`graft.studies.ensembles`), which has no backbone, tap and cut of its own.

    `weights`: the sha256 of the file, or `random:SEED`. `settings`: the content key of whatever else went into the
    training. `look`: what the network makes of the decoded pixels first (`graft.backbones.inputs.read_as` gives it and the
    geometry for a word such as `rgb+edges`). `name` is what people read, and is unique within a study.
    """

    name: str
    strategy: Strategy
    backbone: str
    weights: str
    geometry: Preprocess
    tap: str
    cut: str
    settings: str
    look: Look = "plain"

    @property
    def key(self) -> str:
        """The content key; the name has no part in it, nor has a plain look."""
        without = ("name", "geometry", *(["look"] if self.look == "plain" else []))
        content = {field: value for field, value in asdict(self).items() if field not in without}
        return content_key("recipe.v1", content, self.geometry.key)
