"""Is fine-tuning worth it, or is a head on frozen features enough? In colour and in grey, with intervals.

    python examples/freeze_or_tune.py             # hymenoptera, dogs_vs_cats, caltech101 and Fashion-MNIST
    python examples/freeze_or_tune.py photos/     # your own images

Each set is measured up to four times on the same folds: frozen features with a new head and full fine-tuning (--freeze
names first layers to keep), in colour and in grey; a set that is grey only in grey. What was published in 2017 stands below,
with what its numbers are. Where the two counts under `right` are close, so are the networks, whatever the accuracies say.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet
from measured import interval, measured, page, shown, table
from sets import Missing, arguments, backbone_of, linked, parquet_part, source_of, weights_of

import graft

SETS = ("hymenoptera", "dogs_vs_cats", "caltech101", "fashion_mnist")
HEADER = ("set", "images", "folds", "input", "frozen (95 %)", "tuned (95 %)", "right", "epochs", "seconds")
PUBLISHED = """Published in 2017, not measured here: M. González-Fierro, "A Gentle Introduction to Transfer Learning for Image
Classification": ResNet-18, 15 epochs, SGD with a rate of 0.001, four Tesla M60. Each number is the highest validation accuracy of
any epoch of one run, without a test set; frozen heads learned at the whole network's rate, with batch normalisation in training
mode. On Hymenoptera the difference of freezing and fine-tuning is one image of 153.

| set | images | freezing | fine-tuning | grey, freezing | grey, fine-tuning |
| --- | --- | --- | --- | --- | --- |
| Hymenoptera | 397 | 96.1 | 95.4 | 90.2 | 92.2 |
| Dogs vs Cats | 25,000 | 98.1 | 98.9 | 97.6 | 98.9 |
| Caltech256, 257 classes | 30,607 | 54.3 | 67.4 | 43.5 | 61.3 |
| Simpsons, 20 classes | 19,548 | 64.2 | 92.5 | 54.3 | 90.2 |"""


def part(folder: Path | None, name: str, options: argparse.Namespace) -> Path:
    """The images of one set, as many as are wanted, in a place of their own."""
    source, target = source_of(folder, name), options.runs / f"{name}-{options.images}"
    if list(source.glob("*.parquet")):
        return parquet_part(source, target, images=options.images)
    return linked(source, target, images=options.images)


def only_one_right(tuned: dict[str, Any], frozen: dict[str, Any]) -> str:
    """How many images only the tuned and only the frozen network has right, out of fold."""
    right = []
    for row in (tuned, frozen):
        answers = pyarrow.parquet.read_table(Path(row["run"]) / "predictions.parquet").to_pylist()
        asked = [one for one in answers if one["split"] == "development"]
        right.append({one["file"]: one["label"] == one["predicted"] for one in asked})
    pairs = [(right[0][file], right[1][file]) for file in right[0]]
    return f"{pairs.count((True, False))} : {pairs.count((False, True))}"


def line(name: str, kind: str, frozen: dict[str, Any], tuned: dict[str, Any]) -> list[str]:
    scores = [interval(frozen, "accuracy"), interval(tuned, "accuracy"), only_one_right(tuned, frozen)]
    times = f"{frozen['spent']:.0f} : {tuned['spent']:.0f}"
    epochs = ", ".join(map(str, tuned["best"]))
    return [name, f"{frozen['images']}", f"{frozen['folds']}", kind, *scores, epochs, times]


def compared(name: str, source: Path, options: argparse.Namespace, lines: list[list[str]]) -> None:
    """Add the set's lines, and show the table after each."""
    weights = weights_of(options.weights)
    grey = graft.check(source).mostly_grey  # looked at before the first row, which does not pay for it
    for kind, word in {"colour": "rgb", "grey": "gray"}.items():
        if grey and kind == "colour":
            continue
        asked: dict[str, Any] = {
            "weights": weights,
            "backbone": backbone_of(options.backbone, weights),
            "input": word,
            "size": options.size,
            "folds": options.folds,
            "metric": "accuracy",
        }
        frozen = measured(source, options.runs / f"{name}-{kind}-frozen", freeze="all", **asked)
        tuned = measured(
            source,
            options.runs / f"{name}-{kind}-tuned",
            freeze=options.freeze,
            epochs=options.epochs,
            **asked,
        )
        lines.append(line(name, kind, frozen, tuned))
        title = f"Freezing or fine-tuning, {asked['backbone']} at {frozen['size']} px"
        about = (
            "Accuracy in percent. `right`: images that only the tuned and only the frozen network has right, out of fold. "
            "`epochs`: the best one of each fold; 0 is the frozen network's head, because no epoch of tuning had a lower "
            "log loss. `seconds`: processor seconds of the frozen and of the tuned run."
        )
        shown(page(title, [frozen], about, table(HEADER, lines), PUBLISHED), options.out)


def main(argv: list[str] | None = None) -> int:
    parser = arguments(__doc__, "freeze_or_tune", images=1500)
    parser.add_argument("--sets", nargs="+", choices=SETS, default=SETS, help="without FOLDER: which sets")
    parser.add_argument(
        "--freeze", default="none", help="what tuning keeps: none (default), N layers, a stage"
    )
    parser.add_argument("--epochs", type=int, help="of tuning, at most (default: by the number of images)")
    options = parser.parse_args(argv)
    lines: list[list[str]] = []
    try:
        for name in [options.folder.resolve().name] if options.folder else options.sets:
            compared(name, part(options.folder, name, options), options, lines)
    except (Missing, graft.GraftError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
