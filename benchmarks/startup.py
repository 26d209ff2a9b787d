"""How long do the small commands take, as whole processes?

    python benchmarks/startup.py [--data DIR] [--weights DIR] [--repeats 10]

The median of ten runs each of `graft --version`, `graft --help`, `graft models` and `graft predict` on one photo, in
turn, beside `python -c pass` as the floor under all of them. The model that predicts is packed first by a short study
that is not timed.
"""

from __future__ import annotations

import sys
from pathlib import Path

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

BACKBONE = "mobilenetv2_100.coral_in1k"


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--repeats", type=int, default=10, help="(default: 10)")
    given = options.parse_args()
    photos = given.data / "hymenoptera"
    need(photos, given.weights / "weights.json")
    photo = sorted((photos / "val" / "bees").glob("*.jpg"))[0]
    warm_page_cache(photos / "val")
    with workplace() as place:
        bundle = packed(place, photos, given.weights)
        commands = {
            "python -c pass": [sys.executable, "-c", "pass"],
            "graft --version": graft("--version"),
            "graft --help": graft("--help"),
            "graft models": graft("models", "--weights", given.weights),
            "graft predict": graft("predict", bundle, photo),
        }
        began = beginning()
        runs: dict[str, list[Run]] = {name: [] for name in commands}
        for _ in range(given.repeats):
            for name, command in commands.items():
                runs[name].append(run(command, cache=place / "cache"))
    middle = {name: median(several) for name, several in runs.items()}
    for name, one in middle.items():
        say(
            f"{name}: {one.seconds:.3f} s ({one.processor_seconds:.3f} s of processor, {one.peak_bytes / 1e6:.0f} MB)"
        )
    facts = {
        name: {"median": middle[name].summary, "seconds": [one.seconds for one in runs[name]]}
        for name in runs
    }
    targets = [
        Target("seconds of graft --help", middle["graft --help"].seconds, "at most", 0.3),
        Target("seconds of graft predict on one photo", middle["graft predict"].seconds, "at most", 1.0),
    ]
    keep("startup", facts, targets, began=began)


def packed(place: Path, photos: Path, weights: Path) -> Path:
    """A bundle to predict with."""
    out = place / "run"
    wanted = [
        "--only",
        "frozen",
        "--fit",
        "crop",
        "--backbones",
        BACKBONE,
        "--weights",
        weights,
        "--out",
        out,
    ]
    run(graft("study", photos, *wanted), cache=place / "cache")
    return out / "model.graft"


if __name__ == "__main__":
    main()
