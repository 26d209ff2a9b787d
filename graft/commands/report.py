"""graft report: render the report of a study again."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add(commands: Any) -> None:
    report = commands.add_parser("report", help="render the report of a study again")
    report.add_argument("run_folder", help="a run folder")
    report.add_argument(
        "--out", metavar="FILE", help="where to write it (default: report.html in the run folder)"
    )
    report.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from graft.report.page import write

    place = write(Path(options.run_folder), Path(options.out) if options.out else None)
    print(f"report: {place}")
    return 0
