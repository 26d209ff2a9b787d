"""The reader of folders: `<class>/...`, or `train|val|test` above the classes.

In: a folder. Out: a Listing with a row for every file that could be an image; whether it is one shows when it is
decoded. Cost: one walk over the folder tree, and a look at the first bytes of files that lie directly in folders
called train, val or test. Symbolic links are followed; a link back to a folder above is not entered again.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from graft.errors import DatasetError
from graft.images.dataset import Issue, Split
from graft.images.headers import UnreadableImage, sniff
from graft.images.rows import Listing, Row, class_name, name_below, split_of

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"})
"""How the names of images that are read end."""
UNREAD_SUFFIXES = frozenset(
    {
        ".heic",
        ".heif",
        ".avif",
        ".jxl",
        ".jp2",
        ".ico",
        ".psd",
        ".svg",
        ".dng",
        ".cr2",
        ".nef",
        ".arw",
        ".dcm",
    }
)
"""How the names of images that are not read end."""
_SYSTEM_FILES = frozenset({".ds_store", "thumbs.db", "ehthumbs.db", "desktop.ini", ".directory", "icon\r"})
_SYSTEM_FOLDERS = frozenset(
    {"__macosx", "@eadir", ".appledouble", "$recycle.bin", "system volume information"}
)
_TABLES = frozenset({".csv", ".tsv"})


@dataclass(frozen=True, slots=True)
class Tree:
    """A folder with what lies in it, sorted by name; system files are left out."""

    path: Path
    files: tuple[Path, ...]
    folders: tuple[Tree, ...]
    issues: tuple[Issue, ...]

    def all_files(self) -> Iterator[Path]:
        """The files of this folder and of every folder below it."""
        yield from self.files
        for folder in self.folders:
            yield from folder.all_files()

    def all_issues(self) -> Iterator[Issue]:
        """The remarks on this folder and on every folder below it."""
        yield from self.issues
        for folder in self.folders:
            yield from folder.all_issues()


def walk(root: Path) -> Tree:
    """The tree below `root`. Raises OSError where `root` itself cannot be listed."""
    return _walk(root, root, frozenset())


def read_folder(tree: Tree) -> Listing:
    """The rows of a folder of images. Raises DatasetError where its layout makes no classes."""
    if not tree.folders:
        raise DatasetError(_no_classes(tree))
    parts = _splits(tree)
    rows = [Row(file, None, None) for file in tree.files]
    labels: set[str] = set()
    for part, split in parts:
        if part is not tree:
            rows += [Row(file, None, None, split) for file in part.files]
        for folder in part.folders:
            label = class_name(folder.path.name)
            labels.add(label)
            rows += [Row(file, None, label, split) for file in folder.all_files()]
    rows.sort(key=lambda row: name_below(tree.path, row.path))
    return Listing(tree.path, tuple(rows), tuple(sorted(labels)), tuple(tree.all_issues()))


def _splits(tree: Tree) -> list[tuple[Tree, Split]]:
    """The folders whose sub-folders are the classes. Raises DatasetError for a layout with two readings."""
    named = {folder: split_of(folder.path.name) for folder in tree.folders}
    above = [folder for folder in tree.folders if named[folder] and _holds_classes(folder)]
    others = [folder for folder in tree.folders if not named[folder]]
    if others:
        if len(above) >= 2:
            raise DatasetError(_mixed(tree, above, others))
        return [(tree, "train")]
    flat = [folder for folder in tree.folders if folder not in above and any(map(_is_image, folder.files))]
    if not above:
        return [(tree, "train")]
    if flat:
        raise DatasetError(
            f"In {tree.path}, {_listed(above)} holds class folders, but {_listed(flat)} holds images directly. Put "
            f"the images of {_listed(flat)} into class folders of the same names, or move the folder elsewhere."
        )
    parts = [(folder, split) for folder in above if (split := named[folder])]
    for split in ("train", "val", "test"):
        twice = [folder for folder, other in parts if other == split]
        if len(twice) > 1:
            raise DatasetError(f"{tree.path} has {_listed(twice)}, which mean the same. Merge them into one.")
    return parts


def _holds_classes(folder: Tree) -> bool:
    """Whether most of the images lie in folders below `folder` instead of directly in it."""
    below = sum(1 for inner in folder.folders for _ in inner.all_files())
    return below > sum(map(_is_image, folder.files))


def looks_like_image(path: Path) -> bool:
    """Whether a file is an image by its name, be it of a kind that is read or not, or by its first bytes."""
    return path.suffix.lower() in IMAGE_SUFFIXES | UNREAD_SUFFIXES or _is_image(path)


def _is_image(path: Path) -> bool:
    try:
        if not path.is_file():  # a link to a pipe, which would keep whoever opens it waiting
            return False
        with path.open("rb") as file:
            sniff(file.read(256))
    except (OSError, UnreadableImage):
        return False
    return True


def _walk(root: Path, path: Path, above: frozenset[tuple[int, int]]) -> Tree:
    status = path.stat()
    here = above | {(status.st_dev, status.st_ino)}
    files: list[Path] = []
    folders: list[Tree] = []
    issues: list[Issue] = []
    for entry in sorted(os.scandir(path), key=lambda entry: entry.name):
        place, name = path / entry.name, name_below(root, path / entry.name)
        if entry.name.startswith("._") or entry.name.lower() in _SYSTEM_FILES | _SYSTEM_FOLDERS:
            continue
        if _is_folder(entry):
            if entry.name.startswith("."):
                issues.append(Issue(name, "hidden", "The hidden folder was not looked into.", False))
            elif not _is_above(place, here):
                try:
                    folders.append(_walk(root, place, here))
                except OSError as error:
                    reason = f"The folder cannot be opened: {error.strerror or error}."
                    issues.append(Issue(name, "unreadable", reason, True))
        elif entry.name.startswith("."):
            issues.append(Issue(name, "hidden", "The name starts with a dot.", _is_image(place)))
        elif entry.is_symlink() or entry.is_file():
            files.append(place)
        else:
            issues.append(Issue(name, "not_an_image", "This is a pipe or a device, not a file.", True))
    return Tree(path, tuple(files), tuple(folders), tuple(issues))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, say: whoever reads it as a file says so
        return False


def _is_above(path: Path, above: frozenset[tuple[int, int]]) -> bool:
    """Whether a folder is one of those that it lies in. Where the system has no inode numbers, only links can be."""
    try:
        status = path.stat()
    except OSError:
        return False
    if status.st_ino == 0:
        return path.is_symlink()
    return (status.st_dev, status.st_ino) in above


def _no_classes(tree: Tree) -> str:
    tables = [file.name for file in tree.files if file.suffix.lower() in _TABLES]
    if tables:
        return (
            f"{tree.path} has no class folders. To use the labels in {tables[0]}, give the table itself: "
            f"{tree.path / tables[0]}"
        )
    images = sum(map(_is_image, tree.files))
    if images:
        return (
            f"{tree.path} holds {images} images but no class folders. Put the images of each class into a folder "
            "named after the class, or list them in a CSV file with the columns path and label."
        )
    return (
        f"{tree.path} holds no images. Give a folder with one sub-folder of images per class, a CSV file or a "
        "Parquet file."
    )


def _mixed(tree: Tree, above: list[Tree], others: list[Tree]) -> str:
    return (
        f"In {tree.path}, {_listed(above)} hold class folders as splits do, but {_listed(others)} lie beside them. "
        f"Move {_listed(others)} elsewhere, or into a split if they are classes."
    )


def _listed(folders: list[Tree], most: int = 5) -> str:
    names = [f"{folder.path.name!r}" for folder in folders[:most]]
    if len(folders) > most:
        return f"{', '.join(names)} and {len(folders) - most} more"
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else names[0]
