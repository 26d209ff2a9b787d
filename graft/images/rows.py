"""What every reader yields, whatever the layout: one row per image, before any byte of it is looked at."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from pathlib import Path

from graft.images.dataset import Issue, Split

SPLIT_NAMES: dict[str, Split] = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}


@dataclass(frozen=True, slots=True)
class Row:
    """One image as its reader found it.

    `row` is the index within a Parquet file, None for a file of its own. `label` is the name of the class, None where
    none is given. Rows with the same `group` never fall on two sides of a split.
    """

    path: Path
    row: int | None
    label: str | None
    split: Split = "train"
    group: str | None = None


@dataclass(frozen=True, slots=True)
class Listing:
    """All rows of a source, in the order of their names.

    Names are relative to `root`. `classes` are the declared ones in their final order; some may turn out to have no
    readable image. `issues` are what the reader itself had to remark.
    """

    root: Path
    rows: tuple[Row, ...]
    classes: tuple[str, ...]
    issues: tuple[Issue, ...] = ()

    def name(self, row: Row) -> str:
        """What the user sees: the path below the root with forward slashes, and `#row` in a Parquet file."""
        return name_below(self.root, row.path) + ("" if row.row is None else f"#{row.row}")


def name_below(root: Path, path: Path) -> str:
    """`path` relative to `root` with forward slashes; in full where it lies elsewhere."""
    return (path.relative_to(root) if path.is_relative_to(root) else path).as_posix()


def class_name(text: str) -> str:
    """The class that a text stands for: the same letters are one class, however their accents are stored."""
    return unicodedata.normalize("NFC", text)


def split_of(text: str) -> Split | None:
    """The split that a folder name or a cell stands for, or None."""
    return SPLIT_NAMES.get(text.strip().lower())
