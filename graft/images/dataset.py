"""The records of chapter one: what is known about the images before any network sees them.

A `Dataset` is immutable. Everything after the scan is the same whether the images came as a folder, a CSV or a
Parquet file: an image is an `ImageReference`, which may be a file or a cell of a Parquet file.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Bool, Int64

from graft.store import content_key

Split = Literal["train", "val", "test"]
IssueKind = Literal[
    "unreadable",
    "truncated",
    "empty",
    "not_an_image",
    "too_large",
    "too_small",
    "unplaced",
    "hidden",
    "exact_duplicate",
    "near_duplicate",
    "conflict",
    "few_images",
    "empty_class",
]


@dataclass(frozen=True, slots=True)
class Task:
    """What is to be learned. It decides the targets, the head's loss and the metrics.

    Only `single-label` exists today; the record is passed along so that the others need no second way.
    """

    kind: Literal["single-label", "multi-label", "regression"] = "single-label"


@dataclass(frozen=True, slots=True)
class ImageReference:
    """Where the bytes of one image are.

    `name` is what the user sees: the path below the root with forward slashes, or `file.parquet#row`.
    `digest` is the BLAKE2b hash (40 hexadecimal digits) of the encoded bytes.
    """

    path: Path
    name: str
    digest: str
    row: int | None = None


@dataclass(frozen=True, slots=True)
class Issue:
    """One remark about one image or class; `excluded` images take no part in anything.

    `label` is the class it was found under, or an empty string.
    """

    name: str
    kind: IssueKind
    detail: str
    excluded: bool
    label: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """A checked index of `n` readable images.

    `targets[i]` is an index into `classes` (sorted names, saved with every model). Images with the same number in
    `groups` are the same picture or nearly so and never fall on two sides of a split. `series` is set where many images
    show the same subject (several exposures or views): its numbers are the subjects, each made of whole groups. `splits[i]` is where the user
    had put the image. `widths`, `heights` are in pixels after orientation; `grey[i]` says that the image has no colour.
    """

    root: Path
    images: tuple[ImageReference, ...]
    classes: tuple[str, ...]
    targets: Int64[np.ndarray, " n"]
    groups: Int64[np.ndarray, " n"]
    splits: tuple[Split, ...]
    widths: Int64[np.ndarray, " n"]
    heights: Int64[np.ndarray, " n"]
    grey: Bool[np.ndarray, " n"]
    issues: tuple[Issue, ...]
    task: Task = Task()
    series: Int64[np.ndarray, " n"] | None = None

    def __len__(self) -> int:
        return len(self.images)

    @property
    def mostly_grey(self) -> bool:
        """Whether at least 99 % of the images are grey."""
        return float(self.grey.mean()) >= 0.99

    @property
    def excluded(self) -> int:
        """How many files were left out."""
        return sum(issue.excluded for issue in self.issues)

    @property
    def fingerprint(self) -> str:
        """The key of the content: names, bytes, labels, splits and groups."""
        return content_key(
            "dataset.v1",
            [(image.name, image.digest) for image in self.images],
            list(self.classes),
            self.targets.tolist(),
            self.groups.tolist(),
            list(self.splits),
            self.task.kind,
        )


@dataclass(frozen=True, slots=True)
class Preprocess:
    """The geometry between a decoded image and a network's input; part of every bundle.

    `size`: the side of the square input in pixels. `fit`: `crop` scales the short side to `size / crop_share` and cuts
    the centre; `squash` scales both sides to `size` and shows everything, distorted; `pad` scales the long side to
    `size` and fills with mid-grey. `channels`: 3 for RGB, 1 for grey.
    """

    size: int
    fit: Literal["crop", "squash", "pad"] = "crop"
    crop_share: float = 0.875
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    channels: Literal[1, 3] = 3
    version: int = 1

    @property
    def key(self) -> str:
        """The content key of the geometry."""
        share = self.crop_share if self.fit == "crop" else 1.0
        return content_key(
            "preprocess", self.size, self.fit, share, self.interpolation, self.channels, self.version
        )
