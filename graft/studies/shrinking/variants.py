"""One way to make a network smaller: its name, its recipe, its graph.

In: a prepared trunk and a `Variant`: read at several depths up to some waist (where that is the last one, nothing is
made smaller: `graft.studies.depths`), inner channels taken out, 8 bits, 4-bit weights, or a student of it. Out: the graph
with the output `graft_reading`. What it is worth on the folds: `graft.studies.shrinking.measuring`.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, replace
from typing import Literal

import numpy as np
from onnx import ModelProto

from graft.deploy.quantise import quantised, spread
from graft.deploy.reading import depths, maps_of, maps_read, read_together, waists, weights_of
from graft.deploy.thinning import thinned
from graft.store import content_key
from graft.studies.frame import Trial
from graft.studies.recipe import Recipe
from graft.studies.shrinking.students import STUDENT_VERSION, student_geometry

Precision = Literal["float32", "int8", "int4"]
Kind = Literal[
    "smaller input",
    "several depths",
    "8 bits",
    "4-bit weights",
    "fewer channels, 8 bits",
    "fewer channels, 4-bit weights",
    "student",
    "student, 8 bits",
]
SMALLER = re.compile(r"@\d+px$")  # how the names of trials with smaller inputs end
CALIBRATED_ON = 64
THINNED_ON = 32
VERSION = 3


@dataclass(frozen=True, slots=True)
class Variant:
    """`deepest`: the number of the last waist that is read, together with some below (by a student: by its teacher); None:
    the tap, as it was. `whole`: that waist is the last one, and the input as large as it was. `quarters`: the deepest maps
    are read by quarters of the picture, too.

    `share`: of the weights that stay; `precision` of what lies before the head, where int4 holds the largest weights in 4
    bits and computes in 8. `student`: the width of a small CNN that
    learns from the network and takes its place; 0 for none.
    """

    deepest: int | None = None
    share: float = 1.0
    precision: Precision = "float32"
    student: int = 0
    whole: bool = False
    quarters: bool = False

    @property
    def calibrated(self) -> bool:
        """Whether images decide how it comes out."""
        return self.share < 1 or self.precision != "float32"

    @property
    def suffix(self) -> str:
        """What its name says of it."""
        parts = [
            "" if self.deepest is None else "+depths" if self.whole else f"+depths:{self.deepest}",
            "+quarters" if self.quarters else "",
            f"+student:{self.student}" if self.student else "",
            "" if self.share == 1 else f"+thin:{round(100 * self.share)}",
            "" if self.precision == "float32" else f"+{self.precision}",
        ]
        return "".join(parts)


def shrunk_recipe(base: Trial, variant: Variant) -> Recipe:
    """The recipe of a variant of a trial that is frozen or was trained."""
    made = replace(
        base.recipe,
        name=base.recipe.name + variant.suffix,
        strategy="depths" if variant.whole and not variant.calibrated and not variant.student else "shrunk",
        settings=content_key("shrunk", VERSION, base.recipe.strategy, base.recipe.settings, asdict(variant)),
    )
    if not variant.student:
        return made
    geometry = student_geometry(base)
    settings = content_key(made.settings, base.recipe.key, STUDENT_VERSION)
    return replace(
        made, backbone="small_cnn", geometry=geometry, tap="head", cut="", look="plain", settings=settings
    )


def variant_of(trial: Trial) -> Variant:
    """The variant of a shrunk trial; of any other, the network as it is."""
    return Variant(**trial.about["shrunk"]["variant"]) if "shrunk" in trial.about else Variant()


def kind_of(trial: Trial) -> Kind | None:
    """Which step made it; None for what shrinking has not made."""
    if trial.recipe.strategy == "shrunk":
        variant = variant_of(trial)
        if variant.student:
            return "student, 8 bits" if variant.precision == "int8" else "student"
        if variant.precision == "int4":
            return "4-bit weights" if variant.share == 1 else "fewer channels, 4-bit weights"
        if variant.share < 1:
            return "fewer channels, 8 bits"
        return "8 bits" if variant.precision == "int8" else "several depths"
    smaller = SMALLER.search(trial.recipe.name) is not None and "enlarged" not in trial.about
    return "smaller input" if smaller else None


def small_graph(
    model: ModelProto, variant: Variant, images: np.ndarray, *, reduce_range: bool = True
) -> tuple[ModelProto, int]:
    """The variant of a prepared trunk with the output `graft_reading`, and how many weights it has."""
    if variant.deepest is not None:
        found = waists(model)
        chosen = depths(len(found), variant.deepest)
        model = maps_of(model, [found[number].tensor for number in chosen])
    # What is read together stays in float32: one scale for parts of different size would round the small ones away.
    outputs = [name for value in model.graph.output for name in maps_read(model, value.name)]
    if variant.share < 1:
        wanted = int(variant.share * weights_of(model))
        model = thinned(model, spread(images, THINNED_ON), weights=wanted)
    weights = weights_of(model)
    if variant.precision != "float32":
        model = quantised(
            model,
            spread(images, CALIBRATED_ON),
            upto=outputs,
            reduce_range=reduce_range,
            weight_bits=4 if variant.precision == "int4" else 8,
        )
    if variant.deepest is not None:
        model = read_together(model, quarters=[0] if variant.quarters else [])
    return model, weights


def read_by(model: ModelProto, variant: Variant) -> ModelProto:
    """A prepared trunk read at the depths of a variant and otherwise as it is."""
    reading = Variant(deepest=variant.deepest, quarters=variant.quarters)
    return small_graph(model, reading, np.zeros((0, 1, 1, 1), np.uint8))[0]
