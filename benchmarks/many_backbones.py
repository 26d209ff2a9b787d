"""How long do six backbones take, at every depth, on five folds?

    python benchmarks/many_backbones.py [--data DIR] [--weights DIR] [--repeats 3]

One whole process per repeat on a cold cache: `graft study --only frozen` on the photos of ants and bees with the six
networks of the weights folder that learned ImageNet-1k. Told per backbone, from the lines of progress as they appear:
seconds to open (export, compile, check against torch), to pass all images through, and for the heads of all taps and
folds; the first backbone that is opened also pays for importing torch. Beside them the best macro-F1 of its taps.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from measuring import (
    Run,
    Target,
    beginning,
    graft,
    keep,
    median,
    need,
    parser,
    run,
    say,
    warm_page_cache,
    workplace,
)

STEPS = ("opening", "features", "heads")


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--repeats", type=int, default=3, help="(default: 3)")
    given = options.parse_args()
    photos, listed = given.data / "hymenoptera", given.weights / "weights.json"
    need(photos, listed)
    names = imagenet_networks(listed)
    warm_page_cache(photos)
    began = beginning()
    runs: list[Run] = []
    with workplace() as place:
        for i in range(given.repeats):
            out = place / f"run-{i}"
            wanted = [
                "--only",
                "frozen",
                "--backbones",
                ",".join(names),
                "--weights",
                given.weights,
                "--out",
                out,
            ]
            runs.append(run(graft("study", photos, *wanted), cache=place / f"cache-{i}"))
            say(
                f"{len(names)} backbones, cold: {runs[-1].seconds:.2f} s ({runs[-1].processor_seconds:.1f} s of processor)"
            )
        study = json.loads((out / "study.json").read_text(encoding="utf-8"))
    middle = median(runs)
    table = backbone_rows(middle, study, names)
    for row in table:
        say("  ".join(f"{key} {value}" for key, value in row.items()))
    facts = {"runs": [one.summary for one in runs], "backbones": table, "choice": study["choice"]["id"]}
    keep(
        "many_backbones",
        facts,
        [Target("seconds, six backbones, cold cache", middle.seconds, "at most", 60.0)],
        began=began,
    )


def imagenet_networks(listed: Path) -> list[str]:
    """The networks of a weights folder that learned ImageNet-1k, six at most."""
    rows = json.loads(listed.read_text(encoding="utf-8"))["weights"]
    return [row["name"] for row in rows if row["trained_on"] == "ImageNet-1k"][:6]


def backbone_rows(measured: Run, study: dict[str, Any], names: list[str]) -> list[dict[str, Any]]:
    """A row per backbone: its seconds by step, and its best tap."""
    spent = seconds_by_step(measured, names)
    rows = []
    for name in names:
        taps = [row for row in study["candidates"] if row["backbone"] == name]
        best = max(taps, key=lambda row: row["metrics"]["macro_f1"])
        low, high = best["interval"]["macro_f1"]
        rows.append(
            {
                "backbone": name,
                **{step: round(spent[name, step], 2) for step in STEPS},
                "seconds": round(sum(spent[name, step] for step in STEPS), 2),
                "taps": len(taps),
                "best_tap": best["id"].removeprefix(f"{name}/"),
                "macro_f1": round(best["metrics"]["macro_f1"], 4),
                "interval": [round(low, 4), round(high, 4)],
                "runner": best["runner"],
            }
        )
    return rows


def seconds_by_step(measured: Run, names: list[str]) -> dict[tuple[str, str], float]:
    """Between one line of progress and the next that belongs to another step."""
    spent = {(name, step): 0.0 for name in names for step in STEPS}
    current: tuple[str, str] | None = None
    since = 0.0
    for at, line in measured.lines:
        found = step_of(line, names)
        if found == current or (found is None and " needs float32" in line):
            continue
        if current is not None:
            spent[current] += at - since
        current, since = found, at
    return spent


def step_of(line: str, names: list[str]) -> tuple[str, str] | None:
    """`(backbone, step)` of a line of progress, or None for any other line."""
    name, _, rest = line.strip().partition(": ")
    return next(((name, step) for step in STEPS if name in names and rest.startswith(step)), None)


if __name__ == "__main__":
    main()
