"""Where the examples find their images, and how they make a smaller or simpler set of them.

A made set holds hard links (copies where links are not possible) or one Parquet file, in a folder of its own: nothing is
ever written into the folder that the images come from.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

SHARED = Path(__file__).resolve().parents[2] / "shared"
"""Image sets and weights of the documented numbers; looked for beside the checkout."""
SUFFIXES = {".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp"}


class Missing(Exception):
    """Something that an example needs is not there; the message says what to do."""


def arguments(told: str, name: str, *, images: int | None = None) -> argparse.ArgumentParser:
    """The arguments that all examples have; `told` is the text of --help, `name` that of the folder for the runs."""
    parser = argparse.ArgumentParser(description=told, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, help="images in a folder per class")
    parser.add_argument("--weights", type=Path, help="a folder with weights.json")
    parser.add_argument("--backbone", help="the pre-trained network (default: a small one)")
    parser.add_argument("--size", type=int, help="pixels a side (default: those of each network)")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument(
        "--images", type=_several, default=images, help=f"at most so many (default: {images or 'all'})"
    )
    parser.add_argument("--runs", type=Path, default=Path("runs") / name, help="a run folder for each row")
    parser.add_argument("--out", type=Path, help="write the table to this Markdown file")
    return parser


def _several(text: str) -> int:
    if not text.isdigit() or int(text) < 2:
        raise argparse.ArgumentTypeError(f"{text!r}: give a whole number of at least 2")
    return int(text)


def source_of(folder: Path | None, name: str) -> Path:
    """The user's folder, or the set of that name. Raises Missing if there is neither."""
    source = SHARED / "data" / name if folder is None else folder
    if source.is_dir():
        return source
    raise Missing(
        f"{source} is not there: name a folder with one folder of images per class, as in "
        "`python examples/NAME.py photos/`."
    )


def weights_of(folder: Path | None) -> Path | None:
    """The user's weights folder, or the one beside the checkout, or None: inside the package, or from the hub."""
    beside = SHARED / "weights"
    return folder or (beside if beside.is_dir() else None)


def backbone_of(name: str | None, weights: Path | None) -> str:
    """The network that was named, or a small one that is at hand."""
    at_hand = "mobilenetv1_050.coral_in1k" if weights == SHARED / "weights" else "graft_small.distilled"
    return name or at_hand


def by_class(source: Path) -> dict[str, list[Path]]:
    """The images of each class, which is the name of the folder they lie in."""
    classes: dict[str, list[Path]] = {}
    for path in sorted(source.rglob("*")):
        if path.suffix.lower() in SUFFIXES:
            classes.setdefault(path.parent.name, []).append(path)
    return classes


def linked(
    source: Path, target: Path, *, images: int | None = None, called: Callable[[str], str] = str
) -> Path:
    """A set in `target` with the classes renamed by `called`, and of each class its share of `images`, evenly spaced."""
    classes = by_class(source)
    total = sum(map(len, classes.values()))
    if len(classes) < 2:
        raise Missing(f"{source} has no images in two or more folders, one for each class.")
    if target.resolve().is_relative_to(source.resolve()):
        raise Missing(f"{target} lies inside {source}: name another place with --runs.")
    belongs(target, source, images, {name: called(name) for name in classes})
    for name, files in classes.items():
        place = target / called(name)
        place.mkdir(parents=True, exist_ok=True)
        for path in spaced(files, len(files) if images is None else round(images * len(files) / total)):
            link(path, place / "-".join(path.relative_to(source).parts))
    return target


def belongs(target: Path, source: Path, *facts: object) -> None:
    """Write beside `target` what it is made of. Raises Missing where something else was made there: neither are two sets
    mixed, nor are the numbers of one told of the other."""
    beside = target.with_name(f"{target.name}.made.json")
    now = json.dumps([str(source.resolve()), *facts])
    if target.exists() and not (beside.exists() and beside.read_text(encoding="utf-8") == now):
        raise Missing(f"{target} was made of another set, or in another way: name another place with --runs.")
    beside.parent.mkdir(parents=True, exist_ok=True)
    beside.write_text(now, encoding="utf-8")


def spaced(files: list[Path], wanted: int) -> list[Path]:
    """`wanted` of the files, at least two, from all over the list."""
    count = min(len(files), max(2, wanted))
    return [files[i * len(files) // count] for i in range(count)]


def link(path: Path, place: Path) -> None:
    if place.exists():
        return
    try:
        os.link(path.resolve(), place)
    except OSError:
        shutil.copyfile(path, place)


def parquet_part(folder: Path, target: Path, *, images: int | None) -> Path:
    """A Parquet file in `target` with `images` of the rows of the Parquet files in `folder`, evenly spaced."""
    import pyarrow
    import pyarrow.parquet

    tables = [pyarrow.parquet.read_table(path) for path in sorted(folder.glob("*.parquet"))]
    table = pyarrow.concat_tables(tables).select(["image", "label"])
    count = min(len(table), images or len(table))
    belongs(target, folder, images)
    target.mkdir(parents=True, exist_ok=True)
    file = target / f"{folder.name}.parquet"
    pyarrow.parquet.write_table(table.take([i * len(table) // count for i in range(count)]), file)
    return file
