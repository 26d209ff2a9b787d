"""How good is the best frozen candidate, is the choice as good and cheaper, and what does training from scratch reach?

    python benchmarks/accuracy.py [--data DIR] [--weights DIR] [--sets NAME,NAME] [--budget 10m]

A full study of each image set with all the weights of the folder: `graft study SET --budget 10m`. Scores are macro-F1 of
five folds, out of fold, near-duplicates on one side of every fold, with 95 % bootstrap intervals. A set with a test
split, or with at least 2,000 images, has a part locked away that no fold sees (dogs_vs_cats: its test/; caltech101:
20 %), so its folds learn from fewer images; the headline is then the score on that part. Costs up to the budget per set.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from measuring import Target, beginning, graft, keep, need, parser, run, say, workplace

LEAST = {"hymenoptera": 0.965, "magnetic_tile": 0.87, "dogs_vs_cats": 0.98, "caltech101": 0.87}


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--sets", default=",".join(LEAST), help="(default: %(default)s)")
    options.add_argument("--budget", default="10m", help="of each study (default: 10m)")
    given = options.parse_args()
    sets = given.sets.split(",")
    need(given.weights / "weights.json", *(given.data / name for name in sets))
    began = beginning()
    rows: list[dict[str, Any]] = []
    with workplace() as place:
        for name in sets:
            out = place / name
            wanted = ["--weights", given.weights, "--budget", given.budget, "--out", out]
            measured = run(graft("study", given.data / name, *wanted), cache=place / "cache")
            rows.append({"set": name, **read(out), "process": measured.summary})
            tell(rows[-1])
    keep(
        "accuracy",
        {"budget": given.budget, "sets": rows},
        [t for row in rows for t in targets(row)],
        began=began,
    )


def read(run_folder: Path) -> dict[str, Any]:
    """What `study.json` says, in one flat row."""
    facts = json.loads((run_folder / "study.json").read_text(encoding="utf-8"))
    choice = facts["choice"]
    frozen = [row for row in facts["candidates"] if row["strategy"] == "frozen" and row["complete"]]
    scratch = next((row for row in facts["candidates"] if row["strategy"] == "scratch"), None)
    return {
        **{name: facts["dataset"][name] for name in ("images", "classes", "excluded", "development", "test")},
        "near_duplicates": facts["dataset"]["near_duplicates"],
        "best_frozen": candidate(max(frozen, key=lambda row: row["metrics"]["macro_f1"])),
        "choice": candidate(next(row for row in facts["candidates"] if row["id"] == choice["id"])),
        "headline": {name: choice["headline"][name] for name in ("macro_f1", "interval", "kind")},
        "scratch": None if scratch is None else candidate(scratch),
        "scratch_versus_transfer": facts["scratch_versus_transfer"],
        "seconds": facts["seconds"],
    }


def candidate(row: dict[str, Any]) -> dict[str, Any]:
    """The numbers of one candidate that this benchmark is about."""
    return {
        "id": row["id"],
        "macro_f1": row["metrics"]["macro_f1"],
        "interval": row["interval"].get("macro_f1"),
        "accuracy": row["metrics"]["accuracy"],
        "bytes": row["cost"]["bytes"],
        "latency_ms": row["cost"]["latency_ms"],
        "tied": row["tied"],
        "complete": row["complete"],
    }


def tell(row: dict[str, Any]) -> None:
    """One set for people."""
    say(
        f"\n{row['set']}: {row['images']} images, {row['classes']} classes, {row['test']} locked; {row['seconds']['total']} s"
    )
    for what in ("best_frozen", "choice", "scratch"):
        one = row[what]
        if one is None:
            say(f"  {what}: not measured")
            continue
        low, high = one["interval"] or (float("nan"), float("nan"))
        say(
            f"  {what}: {one['id']} {one['macro_f1']:.4f} ({low:.4f} to {high:.4f}), {one['bytes'] / 1e6:.2f} MB"
        )
    low, high = row["headline"]["interval"]
    say(
        f"  headline ({row['headline']['kind']}): {row['headline']['macro_f1']:.4f} ({low:.4f} to {high:.4f})"
    )
    say(f"  {row['scratch_versus_transfer']['sentence']}")


def targets(row: dict[str, Any]) -> list[Target]:
    """The best frozen score; and the choice tied with the best and no larger than the best frozen candidate."""
    best, choice = row["best_frozen"], row["choice"]
    found = [
        Target(f"{row['set']}: the choice is tied with the best", float(choice["tied"]), "at least", 1.0),
        Target(f"{row['set']}: bytes of the choice", choice["bytes"], "at most", best["bytes"]),
    ]
    if row["set"] in LEAST:
        score = Target(
            f"{row['set']}: macro-F1 of the best frozen", best["macro_f1"], "at least", LEAST[row["set"]]
        )
        found.insert(0, score)
    return found


if __name__ == "__main__":
    main()
