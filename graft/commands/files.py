"""Which images a command line names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from graft.errors import GraftError


def image_files(names: Sequence[str]) -> list[Path]:
    """The named files, whether they exist or not, and the images in the named folders and below them, sorted.

    A folder without images stands for itself, as a file that does not exist does: whoever reads it says what it is. So
    does whatever in a folder is an image that is not read, a folder that cannot be opened, a pipe.
    Raises GraftError where nothing else is named, and for a name without letters, which would mean this whole folder.
    """
    from graft.images.folders import looks_like_image, walk

    if "" in names:
        raise GraftError("One of the names is empty. Name the files, or a folder with images; . is this one.")
    files: list[Path] = []
    for path in map(Path, names):
        if path.is_dir():
            tree = walk(path)
            found = [file for file in tree.all_files() if looks_like_image(file)]
            found += [path / issue.name for issue in tree.all_issues() if issue.kind != "hidden"]
            files += sorted(found) or [path]
        else:
            files.append(path)
    if files and all(path.is_dir() for path in files):
        raise GraftError(
            f"{files[0]} holds no image files; name a folder with images, or the files themselves."
        )
    return files
