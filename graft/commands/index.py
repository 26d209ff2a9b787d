"""graft index: make a folder of images searchable."""

from __future__ import annotations

import argparse
from typing import Any


def add(commands: Any) -> None:
    index = commands.add_parser("index", help="make a folder of images searchable for similar ones")
    index.add_argument("bundle", help="a folder model.graft")
    index.add_argument("source", help="a folder of images, a CSV or Parquet file")
    index.add_argument("--out", metavar="DIR", required=True, help="the index; one that is there is updated")
    index.add_argument("--overwrite", action="store_true", help="replace an index of another model or folder")
    index.add_argument("--rebuild", action="store_true", help="embed all images anew")
    index.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from graft import console, following
    from graft.deploy.bundle import load
    from graft.similar.build import indexing

    steps = indexing(
        load(options.bundle, threads=1),
        options.source,
        out=options.out,
        overwrite=options.overwrite,
        rebuild=options.rebuild,
    )
    console.show_indexed(following.follow_steps(steps))
    return 0
