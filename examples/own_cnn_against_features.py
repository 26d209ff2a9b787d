"""A CNN of one's own against the features of two pre-trained networks: what accuracy, in what time?

    python examples/own_cnn_against_features.py                      # hymenoptera
    python examples/own_cnn_against_features.py photos/ --epochs 20 --batch-size 20

The small CNN learns from random weights for exactly 20 epochs with 20 images a step. The two networks stay as they are: one
pass puts out their features, and a head is fitted on those. All three are measured on the same folds,
fitted on all images and packed; the ratios are those of the features to the CNN.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from measured import interval, measured, megabytes, page, shown, table
from sets import Missing, arguments, backbone_of, by_class, linked, source_of, weights_of

import graft
from graft.backbones.catalogue import find
from graft.backbones.weights import folder_from, held, shelf

OTHER = "mobilenetv1_025.coral_in1k"
HEADER = (
    "model",
    "accuracy (95 %)",
    "macro-F1 (95 %)",
    "size",
    "processor seconds",
    "accuracy ratio",
    "time ratio",
)


def models(options: argparse.Namespace, weights: Path | None) -> dict[str, dict[str, Any]]:
    """The models to compare: their names in the table, and what `graft.train` is asked for."""
    own = {
        "backbone": "scratch",
        "epochs": options.epochs,
        "patience": options.epochs,
        "batch_size": options.batch_size,
    }
    networks = [backbone_of(options.backbone, weights), *other_of(options.other, weights)]
    features = {f"features of {name}": {"backbone": name, "freeze": "all"} for name in networks}
    return {f"own CNN, {options.epochs} epochs, batch {options.batch_size}": own, **features}


def other_of(name: str | None, weights: Path | None) -> list[str]:
    """The second network, if one was named or is at hand. Raises BackboneError, before anything is trained, for one that is
    unknown."""
    named = name or OTHER
    folder = folder_from(weights)
    if name is None and (folder is None or not any(entry.name == named for entry in held(folder))):
        print("One network alone is compared: name a second one with --other.", file=sys.stderr)
        return []
    find(named, shelf(folder))
    return [named]


def line(name: str, row: dict[str, Any], own: dict[str, Any]) -> list[str]:
    accuracy, spent = row["accuracy"][0] / own["accuracy"][0], row["spent"] / own["spent"]
    ratios = ["1", "1"] if row is own else [f"{accuracy:.2f}", f"{spent:.2f}"]
    scores = [interval(row, "accuracy"), interval(row, "macro_f1")]
    return [name, *scores, megabytes(row), f"{row['spent']:.0f}", *ratios]


def told(rows: dict[str, dict[str, Any]], source: Path) -> str:
    """The page so far."""
    own = next(iter(rows.values()))
    about = f"{source.name}: {own['images']} images of {own['classes']} classes, {own['folds']} folds."
    lines = [line(name, row, own) for name, row in rows.items()]
    return page("An own CNN against features", list(rows.values()), about, table(HEADER, lines))


def main(argv: list[str] | None = None) -> int:
    parser = arguments(__doc__, "own_cnn_against_features")
    parser.add_argument(
        "--other", help="the second network (default: another small one, where one is at hand)"
    )
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=20)
    options = parser.parse_args(argv)
    try:
        source = source_of(options.folder, "hymenoptera")
        weights = weights_of(options.weights)
        made = source
        if options.images is not None:
            made = linked(source, options.runs / f"images-{options.images}", images=options.images)
        graft.check(made)  # looked at once, so that the first row does not pay for it
        rows: dict[str, dict[str, Any]] = {}
        for number, (name, model) in enumerate(models(options, weights).items(), start=1):
            run = options.runs / f"{number}"
            rows[name] = measured(
                made, run, weights=weights, size=options.size, folds=options.folds, metric="accuracy", **model
            )
            shown(told(rows, source), options.out)
    except (Missing, graft.GraftError) as error:
        print(error, file=sys.stderr)
        return 2
    best = max(rows.values(), key=lambda row: row["accuracy"][0])
    picture = next(iter(by_class(source).values()))[0]
    answer = graft.load(Path(best["run"]) / "model.graft").predict(picture)
    print(f"The best of them on {picture.name}: {answer.label}, {answer.probability:.0%} sure.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
