"""Which images a command line names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from graft.errors import GraftError


def image_files(paths: Sequence[Path]) -> list[Path]:
    """The named files, whether they exist or not, and the images in the named folders and below them, sorted.

    Raises GraftError for a folder without images.
    """
    from graft.images.folders import IMAGE_SUFFIXES, walk

    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            found = [file for file in walk(path).all_files() if file.suffix.lower() in IMAGE_SUFFIXES]
            if not found:
                raise GraftError(
                    f"{path} holds no image files; name a folder with images, or the files themselves."
                )
            files += sorted(found)
        else:
            files.append(path)
    return files
