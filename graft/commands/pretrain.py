"""graft pretrain: a backbone of your own."""

from __future__ import annotations

import argparse
from typing import Any


def add(commands: Any) -> None:
    pretrain = commands.add_parser(
        "pretrain", help="make a backbone of your own: from labelled images, or taught by a larger network"
    )
    add = pretrain.add_argument
    add("source", help="a folder of images (classes, nested or flat) or Parquet files with image bytes")
    add("--out", metavar="DIR", required=True, help="the weights folder to write to; others in it are kept")
    add("--name", help="what the weights are called (default: from the student and the source)")
    add("--teacher", metavar="NAME", help="distil from this network instead of learning from labels")
    add("--weights", metavar="DIR", help="a folder with the teacher's weights (or GRAFT_WEIGHTS)")
    add("--student", default="small", help="small, tiny or an architecture of timm (default: small)")
    add("--size", type=int, default=96, help="side of the input in pixels (default: 96)")
    add("--input-size", type=int, help="side of the input of the result (default: a third larger)")
    add("--epochs", type=int, help="passes over the source (default: 60, or as the budget allows)")
    add("--batch-size", type=int, default=128, help="images in a step (default: 128)")
    add("--budget", metavar="TIME", help="time to spend, such as 20m or 2h")
    add("--lr", type=float, default=1e-3, help="the highest learning rate (default: 0.001)")
    add("--init", default="auto", help="auto, random or teacher: how the student begins (default: auto)")
    add("--made", type=float, default=0.0, help="share of images that Graft makes itself (default: 0)")
    add("--hint", type=float, default=1.0, help="weight of the teacher's earlier taps (default: 1)")
    add("--target-space", default="8GB", help="disk for the teacher's kept answers (default: 8GB)")
    add("--device", default="auto", help="auto, cpu, cuda or mps (default: auto)")
    add("--seed", type=int, default=0, help="of the first weights and of all views (default: 0)")
    add("--resume", action="store_true", help="go on with an unfinished training")
    add("--overwrite", action="store_true", help="start over, and replace weights of this name")
    pretrain.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from graft import following
    from graft.pretraining.settings import resolved_pretraining

    settings = resolved_pretraining(
        options.source,
        out=options.out,
        name=options.name,
        student=options.student,
        teacher=options.teacher,
        weights=options.weights,
        size=options.size,
        input_size=options.input_size,
        epochs=options.epochs,
        batch_size=options.batch_size,
        budget=options.budget,
        lr=options.lr,
        init=options.init,
        made=options.made,
        hint=options.hint,
        target_space=options.target_space,
        device=options.device,
        seed=options.seed,
        resume=options.resume,
        overwrite=options.overwrite,
    )
    from graft.pretraining.pretrain import pretraining

    published = following.follow_pretraining(pretraining(settings))
    print(f"weights: {published.weights}\ncard:    {published.card}")
    return 0
