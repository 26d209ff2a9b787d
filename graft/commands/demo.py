"""graft demo: the main job on images made on the spot."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from graft.commands import study


def add(commands: Any) -> None:
    demo = commands.add_parser("demo", help="make a set of surface-inspection images and run the study on it")
    demo.add_argument("--folder", default="demo/surfaces", help="where the images go (default: %(default)s)")
    demo.set_defaults(run=run)
    study.study_options(demo, out="runs/surfaces", budget="4m")


def run(options: argparse.Namespace) -> int:
    from graft import following
    from graft.images.demo import write

    folder = Path(options.folder)
    following.count(write(folder), "making demo images", to_stderr=options.json)
    options.source = str(folder)
    options.out = options.out or "runs/surfaces"
    return study.run(options)
