"""graft similar: the images of an index that look most like this one."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from graft.commands.files import image_files
from graft.commands.lines import as_json, one_line
from graft.errors import DatasetError, GraftError


def add(commands: Any) -> None:
    similar = commands.add_parser("similar", help="the images of an index that look most like this one")
    similar.add_argument("index", help="a folder that `graft index` made")
    similar.add_argument("images", nargs="*", help="image files or folders to search for")
    similar.add_argument("--topk", type=int, default=10, help="how many to list for each (default: 10)")
    similar.add_argument("--duplicates", action="store_true", help="list groups of near-duplicates instead")
    similar.add_argument(
        "--threshold",
        type=float,
        metavar="S",
        help="similarity of duplicates, up to 1 (default: by the index)",
    )
    similar.add_argument("--model", metavar="DIR", help="the model.graft of the index, if it was moved")
    similar.add_argument("--json", action="store_true", help="one JSON object per line")
    similar.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from graft.similar.search import open_index

    if options.duplicates == bool(options.images):
        raise GraftError("graft similar wants either images to search for, or --duplicates.")
    if options.threshold is not None and not options.duplicates:
        raise GraftError("--threshold belongs to --duplicates; for the most similar images, give --topk.")
    index = open_index(options.index)
    if options.duplicates:
        return _duplicates(options, index)
    from graft.deploy.bundle import load
    from graft.similar.search import matching_bundle

    bundle = matching_bundle(index, load(options.model) if options.model else None)
    files = image_files(options.images)
    failed = 0
    for file in files:
        try:
            matches = index.search(bundle.embed(file), options.topk)[0]
        except DatasetError as error:
            print(one_line(f"graft: {error}"), file=sys.stderr)
            failed += 1
            continue
        if options.json:
            found = [{"name": match.name, "similarity": match.similarity} for match in matches]
            print(as_json({"file": str(file), "similar": found}))
            continue
        print(one_line(f"{file}:"))
        for match in matches:
            print(f"  {match.similarity:6.3f}  {one_line(str(index.root / match.name))}")
    if failed:
        print(f"graft: {failed} of {len(files)} files could not be read and have no answer.", file=sys.stderr)
    return 2 if failed else 0


def _duplicates(options: argparse.Namespace, index: Any) -> int:
    from graft.similar.duplicates import groups, usual_threshold

    threshold = usual_threshold(index) if options.threshold is None else options.threshold
    found = groups(index, threshold=threshold)
    if options.json:
        for group in found:
            print(as_json({"similarity": group.least, "names": list(group.names)}))
        return 0
    for number, group in enumerate(found, start=1):
        print(f"group {number}: {len(group.names)} images, similarity {group.least:.3f} or more")
        for name in group.names:
            print(f"  {one_line(str(index.root / name))}")
    images = sum(len(group.names) for group in found)
    print(
        f"{len(found)} groups with {images} of {len(index)} images, by a similarity from {threshold:.4g} up"
    )
    return 0
