"""How small can the model be for the same score?

    python benchmarks/shrink.py [--data DIR] [--weights DIR] [--sets NAME,NAME] [--budget 10m] [--folds 5]

A full study of each set, then `graft shrink` of its run folder with the size that is wanted. `defect` is made of
magnetic_tile: its pictures in two classes, with a defect or without. Told are the best full-size candidate, the smallest
model within one point of it, the small CNN from scratch, and the packed folder opened again on all images.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from measuring import Target, beginning, graft, keep, need, parser, run, say, workplace

LIMITS = {"magnetic_tile": 1_000_000, "defect": 1_000_000, "hymenoptera": 1_500_000}
POINT = 0.01


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--sets", default=",".join(LIMITS), help="(default: %(default)s)")
    options.add_argument("--budget", default="10m", help="of each study (default: 10m)")
    options.add_argument("--folds", default="5", help="(default: 5)")
    options.add_argument("--only", help="as of graft study")
    given = options.parse_args()
    sets = given.sets.split(",")
    need(given.weights / "weights.json", given.data / "magnetic_tile", given.data / "hymenoptera")
    began = beginning()
    rows: list[dict[str, Any]] = []
    with workplace() as place:
        for name in sets:
            source = two_classes(given.data, place) if name == "defect" else given.data / name
            out, cache = place / f"run-{name}", place / "cache"
            wanted = [
                "--weights",
                given.weights,
                "--budget",
                given.budget,
                "--folds",
                given.folds,
                "--out",
                out,
            ]
            wanted += ["--only", given.only] if given.only else []
            study = run(graft("study", source, *wanted), cache=cache)
            limited = graft("shrink", out, "--max-size", str(LIMITS[name]))
            shrink = run(limited, cache=cache, allowed=(0, 2))
            if not (
                out / "model-small.graft"
            ).exists():  # the limit is missed: the smallest, whatever its size
                run(graft("shrink", out), cache=cache)
            rows.append({"set": name, **read(out), "study": study.summary, "shrink": shrink.summary})
            tell(rows[-1])
    others = [row for row in earlier() if row["set"] not in sets]
    rows = [*others, *({**row, "began": began["date"]} for row in rows)]
    keep("shrink", {"sets": rows}, [t for row in rows for t in targets(row)], began=began)


def earlier() -> list[dict[str, Any]]:
    """The sets of earlier runs, which may be measured one by one."""
    kept = Path(__file__).resolve().parent / "results" / "shrink.json"
    return json.loads(kept.read_text())["results"]["sets"] if kept.exists() else []


def two_classes(data: Path, place: Path) -> Path:
    """The pictures of magnetic_tile in two folders."""
    source, made = data / "magnetic_tile", place / "defect-photos"
    for folder in sorted(path for path in source.iterdir() if path.is_dir()):
        target = made / ("good" if folder.name == "Free" else "defect")
        target.mkdir(parents=True, exist_ok=True)
        for file in sorted(folder.iterdir()):
            (target / f"{folder.name}-{file.name}").write_bytes(file.read_bytes())
    return made


def read(out: Path) -> dict[str, Any]:
    """What `study.json` says, in one flat row."""
    facts = json.loads((out / "study.json").read_text(encoding="utf-8"))
    told, rows = facts["shrink"], {row["id"]: row for row in facts["candidates"]}
    scratch = next((row for row in facts["candidates"] if row["strategy"] == "scratch"), None)
    small = out / told["bundle"]
    return {
        "reference": told["reference"],
        "small": number(rows[told["choice"]]),
        "small_model_file": (small / "model.onnx").stat().st_size,
        "small_folder": sum(file.stat().st_size for file in small.iterdir()),
        "scratch": None if scratch is None else number(scratch),
        "missed": told["missed"],
        "steps": [
            {n: step[n] for n in ("id", "score", "bytes", "latency_ms", "accepted", "reason")}
            for step in told["steps"]
        ],
        "curve": told["curve"],
    }


def number(row: dict[str, Any]) -> dict[str, Any]:
    """The numbers of one candidate that this benchmark is about."""
    return {
        "id": row["id"],
        "macro_f1": row["metrics"]["macro_f1"],
        "bytes": row["cost"]["bytes"],
        "latency_ms": row["cost"]["latency_ms"],
    }


def tell(row: dict[str, Any]) -> None:
    """One set for people."""
    small, reference = row["small"], row["reference"]
    say(
        f"{row['set']}: {reference['id']} {reference['score']:.4f}, {reference['bytes'] / 1e6:.2f} MB -> {small['id']} "
        f"{small['macro_f1']:.4f}, {small['bytes'] / 1e6:.2f} MB, {small['latency_ms']:.2f} ms "
        f"(in {row['shrink']['seconds']:.0f} s); {row['missed'] or 'within the limits'}"
    )


def targets(row: dict[str, Any]) -> list[Target]:
    """What must hold for a set."""
    small, name = row["small"], row["set"]
    lost = row["reference"]["score"] - small["macro_f1"]
    found = [
        Target(f"{name}: bytes of the small bundle's folder", row["small_folder"], "at most", LIMITS[name]),
        Target(f"{name}: macro-F1 below the best full-size candidate", lost, "at most", POINT),
    ]
    scratch = row["scratch"]
    if scratch is not None and name != "hymenoptera":
        fitting = [s for s in row["curve"] if s["kind"] != "scratch" and s["bytes"] <= scratch["bytes"]]
        best = max((s["score"] for s in fitting), default=0.0)
        found.append(
            Target(
                f"{name}: macro-F1 at most as large as from scratch, minus its",
                best - scratch["macro_f1"],
                "at least",
                0.0,
            )
        )
    return found


if __name__ == "__main__":
    main()
