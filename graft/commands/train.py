"""graft train: one recipe by hand, with every option; the same run folder, report and bundle as a study's."""

from __future__ import annotations

import argparse
from threading import Event as Flag
from typing import Any

from graft.commands.lines import as_json

EPILOG = """What is not given is taken from --recipe, or else decided by Graft (auto). docs/train.md explains every option.

examples:
  graft train photos/ --backbone resnet18 --freeze all              features and a head, in seconds
  graft train photos/ --backbone resnet18 --freeze 7 --epochs 20 --batch-size 20
  graft train photos/ --backbone resnet18 --init random --seeds 3   the same network from random weights
  graft train photos/ --recipe r.json --ensemble 3                  a saved recipe, with one thing changed
"""


def add(commands: Any) -> None:
    train = commands.add_parser(
        "train",
        help="one recipe by hand, with every option",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    train.add_argument("source", help="as for graft study: a folder <class>/..., a CSV or Parquet file")
    train.set_defaults(run=run)
    _network(train.add_argument_group("network"))
    _images(train.add_argument_group("images"))
    _training(train.add_argument_group("training"))
    _measuring(train.add_argument_group("measuring"))
    _running(train.add_argument_group("running"))


def _network(group: Any) -> None:
    group.add_argument("--backbone", metavar="NAME", help="a name of graft models, or scratch: the small CNN")
    group.add_argument("--init", help="pretrained (default) or random: everything learns from random weights")
    group.add_argument(
        "--freeze",
        metavar="WHAT",
        help="none (default), all, N: the first N layers, or STAGE: up to that stage",
    )
    group.add_argument(
        "--tap",
        metavar="STAGE",
        help="the stage that feeds the head (default: the last); depths: all stages that learn",
    )
    group.add_argument("--head", help="ridge (default), linear or mlp; from random weights linear")


def _images(group: Any) -> None:
    group.add_argument("--input", help="rgb, gray, edges, rgb+edges, thin or rgb+thin (default: as they are)")
    group.add_argument("--size", metavar="PX", help="pixels a side (default: those of the network)")
    group.add_argument("--fit", help="how images become square: crop (default), squash or pad")
    group.add_argument("--augment", metavar="HOW", help="none, light, medium, strong or a JSON FILE")
    group.add_argument("--preview", action="store_true", help="write preview.jpg before anything is trained")


def _training(group: Any) -> None:
    group.add_argument("--balance", help="none, weights (default), sampler or logit")
    group.add_argument("--lr", metavar="RATE", help="auto (default), find, or a number: the trunk's rate")
    group.add_argument("--epochs", metavar="N", help="at most so many (default: by the number of images)")
    group.add_argument("--patience", metavar="N", help="epochs without a better log loss before it stops")
    group.add_argument("--batch-size", metavar="N", help="images per step (default: 32, from scratch 16)")
    group.add_argument("--batch-norm", metavar="HOW", help="frozen (default), train or reestimate")
    group.add_argument("--mixup", metavar="A", help="parameter of MixUp (default: 0, none)")
    group.add_argument("--cutmix", metavar="A", help="parameter of CutMix (default: 0, none)")
    group.add_argument(
        "--ema", action=argparse.BooleanOptionalAction, default=None, help="average the weights (default)"
    )
    group.add_argument(
        "--generations", metavar="N", help="each network also learns from the one before it (default: 1)"
    )
    group.add_argument("--ensemble", metavar="N", help="the mean of N trainings (default: 1)")


def _measuring(group: Any) -> None:
    group.add_argument("--seeds", metavar="N", help="measure N times with other seeds (default: 1)")
    group.add_argument("--folds", metavar="N", help="folds of the cross-validation (default: 5)")
    group.add_argument("--metric", help="what leads: macro_f1 (default), accuracy, log_loss, ...")
    group.add_argument("--groups", help="what stays on one side: near (default) or series")
    group.add_argument("--seed", metavar="N", help="of folds and training (default: 0)")


def _running(group: Any) -> None:
    group.add_argument("--recipe", metavar="FILE", help="repeat the recipe in this file")
    group.add_argument("--save-recipe", metavar="FILE", help="write the recipe as one page of JSON")
    group.add_argument("--out", metavar="DIR", help="the run folder (default: runs/<name of the source>)")
    group.add_argument("--budget", metavar="TIME", help="time to spend, such as 5m (default: no limit)")
    group.add_argument("--weights", metavar="DIR", help="a folder with weights.json (or GRAFT_WEIGHTS)")
    group.add_argument("--device", default="auto", help="auto, cpu, cuda or mps (default: auto)")
    group.add_argument("--overwrite", action="store_true", help="replace another study in --out")
    group.add_argument(
        "--json", action="store_true", help="print the result as JSON, progress on standard error"
    )


def run(options: argparse.Namespace) -> int:
    from graft import console, following
    from graft.api import running_recipe
    from graft.studies.single.settings import resolved_training

    settings = resolved_training(
        options.source,
        backbone=options.backbone,
        init=options.init,
        freeze=options.freeze,
        tap=options.tap,
        head=options.head,
        input=options.input,
        size=options.size,
        fit=options.fit,
        augment=options.augment,
        balance=options.balance,
        lr=options.lr,
        epochs=options.epochs,
        patience=options.patience,
        batch_size=options.batch_size,
        batch_norm=options.batch_norm,
        mixup=options.mixup,
        cutmix=options.cutmix,
        ema=options.ema,
        generations=options.generations,
        ensemble=options.ensemble,
        seeds=options.seeds,
        folds=options.folds,
        metric=options.metric,
        groups=options.groups,
        seed=options.seed,
        recipe=options.recipe,
        save_recipe=options.save_recipe,
        out=options.out,
        budget=options.budget,
        weights=options.weights,
        device=options.device,
        preview=options.preview,
        overwrite=options.overwrite,
    )
    halt = Flag()
    work = running_recipe(settings, command=options.typed, halt=halt)
    result = following.follow(work, to_stderr=options.json, halt=halt)
    if options.json:
        print(as_json(result.facts))
    else:
        console.show_result(result)
    return 0
