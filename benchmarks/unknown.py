"""Does a bundle know what it does not know? Pictures of something else entirely, and the promises made on the folds.

    python benchmarks/unknown.py [--backbone mobilenetv1_025.coral_in1k] [--images 300] [--far 150]

Bundles of two sets (hymenoptera photos; grey surfaces of magnetic_tile) from `graft study --only frozen`, each made from
all but a fifth of its images. Asked are that fifth and pictures of the other sets: how well the score tells far pictures
from held-back ones of the same kind (AUROC), how many of each are called unknown, what the accepted ones are worth, and
how often the label sets hold the right class. Confidence alone is the baseline.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as parquet
from measuring import Target, beginning, keep, say, workplace
from scipy.stats import rankdata

import graft
from graft.deploy.bundle import Bundle

SHARED = Path(__file__).resolve().parents[2] / "shared"
SETS = ("hymenoptera", "magnetic_tile")
FAR = ("dogs_vs_cats", "fashion_mnist")


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--backbone", default="mobilenetv1_025.coral_in1k")
    options.add_argument("--images", type=int, default=300, help="of each set, at most (default: 300)")
    options.add_argument("--far", type=int, default=150, help="pictures of each other set (default: 150)")
    given = options.parse_args()
    began = beginning()
    facts: dict[str, Any] = {"backbone": given.backbone}
    targets = []
    with workplace() as place:
        for name in SETS:
            learned, kept = divided(name, given.images, place / name)
            result = graft.study(
                learned,
                out=place / f"{name}-run",
                only="frozen",
                backbones=[given.backbone],
                weights=SHARED / "weights",
                budget="5m",
            )
            bundle = graft.load(result.bundle())
            others = {other: pictures(other, given.far) for other in (*SETS, *FAR) if other != name}
            facts[name] = {"choice": result.choice["id"], **measured(bundle, kept, others)}
            for other, numbers in facts[name]["far"].items():
                say(f"{name} against {other}: AUROC {numbers['auroc']:.3f}, unknown {numbers['unknown']:.2f}")
                targets.append(Target(f"AUROC of {name} against {other}", numbers["auroc"], "at least", 0.9))
    keep("unknown", facts, targets, began=began)


def divided(name: str, most: int, place: Path) -> tuple[Path, list[tuple[Path, str]]]:
    """A folder with four fifths of the set's images, and the other fifth with their classes."""
    files = spread(sorted(file for file in (SHARED / "data" / name).rglob("*.jpg")), most)
    kept = []
    for number, file in enumerate(files):
        label = file.parent.name
        if number % 5 == 2:
            kept.append((file, label))
            continue
        (place / label).mkdir(parents=True, exist_ok=True)
        shutil.copy(file, place / label / f"{number}-{file.name}")
    return place, kept


def pictures(name: str, most: int) -> list[Path | bytes]:
    """Some pictures of a set, evenly spread."""
    folder = SHARED / "data" / name
    tables = sorted(folder.glob("*.parquet"))
    if tables:
        cells = parquet.read_table(tables[0], columns=["image"]).slice(0, most).to_pylist()
        return [
            cell["image"]["bytes"] if isinstance(cell["image"], dict) else cell["image"] for cell in cells
        ]
    return list(spread(sorted(folder.rglob("*.jpg")), most))


def spread(files: Sequence[Path], most: int) -> list[Path]:
    places = np.linspace(0, len(files) - 1, min(most, len(files))).astype(int)
    return [files[place] for place in places]


def measured(
    bundle: Bundle, kept: list[tuple[Path, str]], others: dict[str, list[Path | bytes]]
) -> dict[str, Any]:
    """The held-back images, and how far the others are from them."""
    same = bundle.predict([file for file, _ in kept])
    right = np.array([answer.label == label for answer, (_, label) in zip(same, kept, strict=True)])
    accepted = np.array([not answer.unknown for answer in same])
    sets = [label in (answer.labels_90 or ()) for answer, (_, label) in zip(same, kept, strict=True)]
    facts: dict[str, Any] = {
        "held_back": len(kept),
        "accuracy": float(right.mean()),
        "accepted": float(accepted.mean()),
        "accuracy_of_accepted": float(right[accepted].mean()),
        "sets_hold_the_class": float(np.mean(sets)),
        "mean_set_size": float(np.mean([len(answer.labels_90 or ()) for answer in same])),
        "far": {},
    }
    for name, images in others.items():
        far = bundle.predict(images)
        facts["far"][name] = {
            "images": len(far),
            "auroc": auroc([a.score or 0.0 for a in same], [a.score or 0.0 for a in far]),
            "auroc_of_confidence": auroc([-a.probability for a in same], [-a.probability for a in far]),
            "unknown": float(np.mean([bool(answer.unknown) for answer in far])),
        }
    return facts


def auroc(near: list[float], far: list[float]) -> float:
    """The share of pairs in which the far picture has the higher score."""
    ranks = rankdata([*near, *far])[len(near) :]
    return float((ranks.sum() - len(far) * (len(far) + 1) / 2) / (len(near) * len(far)))


if __name__ == "__main__":
    main()
