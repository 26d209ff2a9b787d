"""What an estimator's parts hand to each other: the wish, what is learned from, one probed tap, the fitted model.

In: an estimator's parameters and images. Out: frozen records, and the few things that fitting a head and training a
network both ask of them. Costs nothing. Not covered: checking the parameters (`graft.estimator`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float, Float32, Int64, UInt8

from graft.backbones.catalogue import Entry
from graft.backbones.hub import Reach, reach_hub
from graft.backbones.trunks import TapRow, TrunkFile
from graft.backbones.weights import WeightsFolder, held
from graft.compute import Compute
from graft.estimator_input import Pictures, Span
from graft.images.augmentations import Strength
from graft.images.dataset import Preprocess
from graft.learning import ridge
from graft.learning.heads import HeadKind
from graft.learning.tune_settings import BatchNorm

Fit = Literal["crop", "squash", "pad"]

CHECK_IMAGES = 8


@dataclass(frozen=True, slots=True)
class Wish:
    """The estimator's parameters, checked; what they mean stands there."""

    backbone: str
    weights: str | Path | None
    strategy: str
    freeze: str
    tap: str | int
    input: str
    fit: str
    size: int | None
    balance: str
    epochs: int | None
    lr: float | None
    batch_size: int | None
    patience: int | None
    head: HeadKind
    batch_norm: BatchNorm
    augment: Strength
    mixup: float
    seed: int
    compute: Compute


@dataclass(frozen=True, slots=True, eq=False)
class Given:
    """What is learned from: `targets` are class numbers."""

    items: Pictures
    span: Span
    targets: Int64[np.ndarray, " n"]
    classes: int


@dataclass(frozen=True, slots=True, eq=False)
class Model:
    """A fitted graph. `tried`: (backbone, fit, tap) and its leave-one-out log loss, where something was chosen.

    `check`: a few training images; `expected`: what torch says of them, None where it has not been asked yet.
    """

    graph: bytes
    geometry: Preprocess
    backbone: str
    tap: str
    strategy: str
    weights: dict[str, str]
    features: int
    tried: dict[tuple[str, str, str], float]
    check: UInt8[np.ndarray, "m h w c"]
    expected: Float32[np.ndarray, "m k"] | None
    frozen: tuple[TrunkFile, int, ridge.RidgeHead] | None


@dataclass(frozen=True, slots=True, eq=False)
class Probe:
    """One tap of one backbone over all given."""

    trunk: TrunkFile
    tap: TapRow
    pixels: UInt8[np.ndarray, "n h w c"]
    key: str
    rows: Float[np.ndarray, "n d"]


def fit_of(name: str) -> Fit:
    return "crop" if name == "crop" else "squash" if name == "squash" else "pad"


def reach_of(entry: Entry, folder: WeightsFolder | None) -> Reach:
    """No host is asked for weights that are on this machine."""
    at_hand = any(known.name == entry.name for known in held(folder))
    return Reach(False, False) if at_hand else reach_hub()


def some_of(pixels: UInt8[np.ndarray, "n h w c"]) -> UInt8[np.ndarray, "m h w c"]:
    """A few images, evenly spread."""
    last = len(pixels) - 1
    return pixels[np.linspace(0, last, min(CHECK_IMAGES, last + 1)).astype(np.int64)]


def weights_of(trunk: TrunkFile) -> dict[str, str]:
    entry = trunk.entry
    return {"name": entry.name, "source": trunk.origin, "licence": entry.licence, "digest": trunk.digest}
