"""From what the user names to rows, and from a row to its bytes.

In: a folder, a CSV file, a Parquet file or a folder of Parquet files. Out: a Listing of rows; everything after it is
the same for all of them. `open_bytes` and `find` are the way back to a single image.
"""

from __future__ import annotations

import re
from pathlib import Path

from graft.errors import DatasetError
from graft.images.dataset import ImageReference
from graft.images.folders import IMAGE_SUFFIXES, read_folder, walk
from graft.images.parquet import read_cell, read_parquet
from graft.images.rows import Listing, Row
from graft.images.tables import read_table

__all__ = ["Listing", "Row", "find", "open_bytes", "read", "read_bytes"]


def read(source: Path) -> Listing:
    """The rows of `source`. Raises DatasetError where there is nothing that can be read as labelled images."""
    if not source.exists():
        raise DatasetError(f"{source} does not exist. Give a folder of images, a CSV file or a Parquet file.")
    suffix = source.suffix.lower()
    if source.is_dir():
        try:
            tree = walk(source)
        except OSError as error:
            raise DatasetError(f"{source} cannot be opened: {error.strerror or error}.") from error
        files = list(tree.all_files())
        cells = [file for file in files if file.suffix.lower() == ".parquet"]
        if cells and not any(file.suffix.lower() in IMAGE_SUFFIXES for file in files):
            return read_parquet(source, cells)
        return read_folder(tree)
    if suffix == ".parquet":
        return read_parquet(source.parent, [source])
    if suffix in (".csv", ".tsv"):
        return read_table(source)
    if suffix in IMAGE_SUFFIXES:
        raise DatasetError(
            f"{source} is a single image. Learning needs many: give the folder that holds one sub-folder per class."
        )
    raise DatasetError(f"{source} is neither a folder nor a CSV or Parquet file. Give one of these.")


def read_bytes(path: Path, row: int | None) -> bytes:
    """The encoded bytes of an image file, or of line `row` of a Parquet file. Raises OSError without the file."""
    return path.read_bytes() if row is None else read_cell(path, row)


def open_bytes(reference: ImageReference) -> bytes:
    """The encoded bytes of one image; any number of threads may call it, best in the order of the rows.

    Raises OSError where the file is gone, DatasetError where a Parquet file has become shorter.
    """
    return read_bytes(reference.path, reference.row)


def find(root: Path, name: str) -> tuple[Path, int | None]:
    """The path and the Parquet line of the image that is called `name` in the dataset at `root`."""
    whole = root / name
    cell = re.fullmatch(r"(?s)(.+)#(\d+)", name)
    if cell is None or whole.exists():
        return whole, None
    return root / cell[1], int(cell[2])
