"""graft study: labelled photos in; a choice, a report and a bundle out."""

from __future__ import annotations

import argparse
from threading import Event as Flag
from typing import Any

from graft.commands.lines import as_json


def add(commands: Any) -> None:
    study = commands.add_parser(
        "study", help="the main job: labelled photos in; a choice, a report and a bundle out"
    )
    study.add_argument(
        "source", help="a folder <class>/..., a folder with train|val|test above it, a CSV or Parquet file"
    )
    study.set_defaults(run=run)
    study_options(study, out="runs/<name of the source>", budget="10m")


def study_options(study: Any, *, out: str, budget: str) -> None:
    study.add_argument("--out", metavar="DIR", help=f"the run folder (default: {out})")
    study.add_argument(
        "--budget", default=budget, help="time to spend, such as 90s, 5m, 2h (default: %(default)s)"
    )
    study.add_argument("--weights", metavar="DIR", help="a folder with weights.json (or GRAFT_WEIGHTS)")
    study.add_argument(
        "--backbones", default="auto", metavar="NAMES", help="auto, or names separated by commas"
    )
    study.add_argument("--folds", metavar="N", default=5, help="folds of the cross-validation (default: 5)")
    study.add_argument(
        "--metric",
        default="macro_f1",
        help="what decides: macro_f1, accuracy, log_loss, ... (default: macro_f1)",
    )
    study.add_argument("--max-size", metavar="SIZE", help="limit of the packed model, such as 5MB")
    study.add_argument(
        "--max-latency", metavar="TIME", help="limit for one image on one thread, such as 10ms"
    )
    study.add_argument("--only", metavar="WHAT", help="frozen, finetuned or scratch")
    study.add_argument(
        "--fit", default="auto", help="how images become square: auto (measured), crop, squash, pad"
    )
    study.add_argument(
        "--groups",
        default="near",
        help="what stays on one side of a split: near (duplicates) or series (all views of one subject)",
    )
    study.add_argument("--device", default="auto", help="auto, cpu, cuda or mps (default: auto)")
    study.add_argument("--seed", metavar="N", default=0, help="of folds and training (default: 0)")
    study.add_argument("--overwrite", action="store_true", help="replace another study in --out")
    study.add_argument(
        "--json", action="store_true", help="print the result as JSON, progress on standard error"
    )


def run(options: argparse.Namespace) -> int:
    from graft import console, following
    from graft.api import running
    from graft.studies.settings import resolved

    settings = resolved(
        options.source,
        out=options.out,
        budget=options.budget,
        weights=options.weights,
        backbones=options.backbones,
        folds=options.folds,
        metric=options.metric,
        max_size=options.max_size,
        max_latency=options.max_latency,
        only=options.only,
        fit=options.fit,
        groups=options.groups,
        device=options.device,
        seed=options.seed,
        overwrite=options.overwrite,
    )
    halt = Flag()
    result = following.follow(
        running(settings, command=options.typed, halt=halt), to_stderr=options.json, halt=halt
    )
    if options.json:
        print(as_json(result.facts))
    else:
        console.show_result(result)
    return 0
