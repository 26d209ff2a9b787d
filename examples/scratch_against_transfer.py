"""Is a small network from scratch enough to find defects, or does it take transfer? With augmentation, edges and folds.

    python examples/scratch_against_transfer.py                        # magnetic_tile: any defect against none
    python examples/scratch_against_transfer.py photos/ --normal good  # the class "good" against all others

Out of a set with several classes it makes one with two, `normal` and `defect` (hard links in the folder of --runs),
which is unbalanced and, for magnetic_tile, grey. Then it trains, each in a run folder of its own:

- the small CNN from random weights, without and with augmentation;
- a new head on the frozen features of a pre-trained network, on grey images and on their edges;
- the same network with its first layers frozen, the others trained, on grey images and with the edges as a further channel.

Images are squashed, not cropped, because a defect may lie at the border. Whole series of views of one tile stay on one side
of each fold: the scores are those of tiles never seen.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from measured import interval, measured, megabytes, page, shown, table
from sets import Missing, arguments, backbone_of, by_class, linked, source_of, weights_of

import graft

HEADER = ("model", "F1 defect", "F1 normal", "macro-F1 (95 %)", "size of the model", "processor seconds")


def two_classes(source: Path, target: Path, *, normal: str, images: int | None) -> Path:
    """The set with the classes `normal` and `defect`. Raises Missing if it has no class of the name `normal`."""
    names = by_class(source)
    if normal not in names or len(names) < 2:
        raise Missing(
            f"{source} has the classes {', '.join(names)}: name the one without a defect with --normal."
        )
    return linked(source, target, images=images, called=lambda name: "normal" if name == normal else "defect")


def strategies(options: argparse.Namespace, weights: Path | None) -> dict[str, dict[str, Any]]:
    """The models to compare: their names in the table, and what `graft.train` is asked for."""
    backbone = backbone_of(options.backbone, weights)
    scratch = {"backbone": "scratch", "epochs": options.scratch_epochs}
    frozen = {"backbone": backbone, "freeze": "all"}
    tuned = {"backbone": backbone, "freeze": options.freeze, "epochs": options.epochs, "augment": "medium"}
    layers = f"{backbone}, first {options.freeze} layers frozen, augmented"
    return {
        f"{backbone}, all frozen, new head, grey": {**frozen, "input": "gray"},
        f"{backbone}, all frozen, new head, edges": {**frozen, "input": "edges"},
        "small CNN from scratch, augmented": {**scratch, "augment": "medium"},
        f"{layers}, grey": {**tuned, "input": "gray"},
        f"{layers}, grey and edges": {**tuned, "input": "rgb+edges"},
        "small CNN from scratch, no augmentation": {**scratch, "augment": "none"},
    }


def line(name: str, row: dict[str, Any]) -> list[str]:
    f1 = [f"{100 * row['f1'][label]:.1f}" for label in ("defect", "normal")]
    return [name, *f1, interval(row, "macro_f1"), megabytes(row), f"{row['spent']:.0f}"]


def main(argv: list[str] | None = None) -> int:
    parser = arguments(__doc__, "scratch_against_transfer")
    parser.add_argument("--normal", default="Free", help="the class without a defect (default: Free)")
    parser.add_argument("--freeze", default="14", help="how many first layers stay as they are (default: 14)")
    parser.add_argument("--epochs", type=int, help="with frozen first layers (default: while it improves)")
    parser.add_argument("--scratch-epochs", type=int, help="from scratch (default: while it improves)")
    options = parser.parse_args(argv)
    try:
        source = source_of(options.folder, "magnetic_tile")
        weights = weights_of(options.weights)
        made = options.runs / f"images-{options.images or 'all'}"
        two_classes(source, made, normal=options.normal, images=options.images)
        graft.check(made)  # looked at once, so that the first row does not pay for it
        rows: dict[str, dict[str, Any]] = {}
        for number, (name, strategy) in enumerate(strategies(options, weights).items(), start=1):
            rows[name] = measured(
                made,
                options.runs / f"{number}",
                weights=weights,
                size=options.size,
                folds=options.folds,
                fit="squash",
                groups="series",
                **strategy,
            )
            shown(told(rows), options.out)
    except (Missing, graft.GraftError) as error:
        print(error, file=sys.stderr)
        return 2
    best = max(rows.values(), key=lambda row: row["macro_f1"][0])
    answer = graft.load(Path(best["run"]) / "model.graft").predict(by_class(made)["defect"][0])
    print(f"The best of them says of a defect: {answer.label}, {answer.probability:.0%} sure.")
    return 0


def told(rows: dict[str, dict[str, Any]]) -> str:
    """The page so far."""
    any_row = next(iter(rows.values()))
    about = f"{any_row['images']} images, {any_row['folds']} folds, whole series of views held out together."
    lines = [line(name, row) for name, row in rows.items()]
    return page("Scratch against transfer", list(rows.values()), about, table(HEADER, lines))


if __name__ == "__main__":
    sys.exit(main())
