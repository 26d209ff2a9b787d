"""graft check: what is in a folder of images, and what is wrong with it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from graft.commands.lines import as_json


def add(commands: Any) -> None:
    check = commands.add_parser("check", help="only look at the images: what is there, what is wrong")
    check.add_argument("source", help="a folder, a CSV or a Parquet file")
    check.add_argument("--out", metavar="FILE", help="write the list of issues as CSV")
    check.add_argument("--json", action="store_true", help="print JSON")
    check.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from graft import console
    from graft.api import check
    from graft.images.issues import write_check

    dataset = check(options.source)
    if options.out:
        write_check(dataset, Path(options.out))
    if options.json:
        print(as_json(console.dataset_facts(dataset)))
    else:
        console.show_dataset(dataset)
    return 0
