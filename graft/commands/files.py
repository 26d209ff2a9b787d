"""Which images a command line names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from graft.errors import GraftError


def image_files(paths: Sequence[Path]) -> list[Path]:
    """The named files, whether they exist or not, and the images in the named folders and below them, sorted.

    A folder without images stands for itself, as a file that does not exist does: whoever reads it says what it is.
    Raises GraftError where nothing else is named.
    """
    from graft.images.folders import IMAGE_SUFFIXES, walk

    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            found = [file for file in walk(path).all_files() if file.suffix.lower() in IMAGE_SUFFIXES]
            files += sorted(found) or [path]
        else:
            files.append(path)
    if files and all(path.is_dir() for path in files):
        raise GraftError(
            f"{files[0]} holds no image files; name a folder with images, or the files themselves."
        )
    return files
