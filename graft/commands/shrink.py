"""graft shrink: a finished study goes on to smaller models."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from threading import Event as Flag
from typing import Any

from graft.commands.lines import as_json


def add(commands: Any) -> None:
    shrink = commands.add_parser("shrink", help="continue a finished study with smaller models")
    shrink.add_argument("folder", metavar="RUN", help="the run folder of a study, such as runs/photos")
    shrink.add_argument("--max-size", metavar="SIZE", help="limit of the whole bundle, such as 1MB")
    shrink.add_argument(
        "--max-latency", metavar="TIME", help="limit for one image on one thread, such as 3ms"
    )
    shrink.add_argument(
        "--tolerance",
        type=float,
        default=0.01,
        help="what may be lost of the metric, 0 to 0.5 (default: %(default)s)",
    )
    shrink.add_argument(
        "--budget",
        default="10m",
        metavar="TIME",
        help="time for trying smaller models, such as 5m (default: 10m)",
    )
    shrink.add_argument(
        "--weights", metavar="DIR", help="the folder of the study's weights, where it has moved"
    )
    shrink.add_argument("--json", action="store_true", help="print JSON, progress on standard error")
    shrink.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from graft import following
    from graft.api import shrinking_run

    halt = Flag()
    work = shrinking_run(
        options.folder,
        max_size=options.max_size,
        max_latency=options.max_latency,
        tolerance=options.tolerance,
        budget=options.budget,
        weights=options.weights,
        halt=halt,
    )
    result = following.follow(work, to_stderr=options.json, halt=halt)
    told = result.facts["shrink"]
    if options.json:
        print(as_json(told))
        return 2 if told["missed"] else 0
    for step in told["steps"]:
        verdict = "kept   " if step["accepted"] else "refused"
        print(
            f"  {verdict} {step['id']}: {step['score']:.4f}, {step['bytes'] / 1e3:.0f} kB, {step['reason']}"
        )
    print(told["sentence"])
    if told["missed"]:
        print(f"graft: {told['missed']}", file=sys.stderr)
        return 2
    print(f"bundle: {Path(options.folder) / told['bundle']}")
    return 0
