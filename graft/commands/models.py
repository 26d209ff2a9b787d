"""graft models: the catalogue of backbones, and where their weights are."""

from __future__ import annotations

import argparse
import json
from typing import Any


def add(commands: Any) -> None:
    models = commands.add_parser("models", help="the catalogue of backbones, and where their weights are now")
    models.add_argument("--weights", metavar="DIR", help="a folder with weights.json (or GRAFT_WEIGHTS)")
    models.add_argument("--sort", default="name", help="name, size, gmacs or top1 (default: name)")
    models.add_argument("--max-params", metavar="N", help="at most so many parameters, such as 5M")
    models.add_argument("--json", action="store_true", help="print JSON")
    models.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from graft import console
    from graft.backbones.catalogue import rows
    from graft.backbones.hub import reach_hub
    from graft.backbones.weights import folder_from, held, locate

    folder = folder_from(options.weights)
    here = held(folder)
    names = {entry.name for entry in here}
    entries = [*here, *(row for row in rows() if row.name not in names)]
    listed = console.model_rows(
        entries,
        locate(entries, folder=folder, reach=reach_hub()),
        sort=options.sort,
        most=console.parameter_count(options.max_params) if options.max_params else None,
    )
    if options.json:
        print(json.dumps(listed, ensure_ascii=False))
    else:
        console.show_models(listed)
    return 0
