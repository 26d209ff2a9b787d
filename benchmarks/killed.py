"""Does a study that is killed again and again end like one that is left alone?

    python benchmarks/killed.py [--data DIR] [--weights DIR] [--kills 20] [--budget 60s] [--seed 0]

`graft study` on the photos of ants and bees, every rung, once without interruption and once killed with SIGKILL at
random moments and started again. Checked after every kill: no finished (recipe, fold) is lost, every entry of the cache
can be read. At the end: the same choice and the same numbers. Costs about ten minutes on two cores.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
from measuring import Target, beginning, graft, keep, need, parser, say, workplace

from graft.studies.journal import read

BACKBONES = "mobilenetv1_025.coral_in1k,mobilenetv2_100.coral_qat_in1k"


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--kills", type=int, default=20)
    options.add_argument("--budget", default="60s")
    options.add_argument("--seed", type=int, default=0)
    given = options.parse_args()
    photos = given.data / "hymenoptera"
    need(photos)
    began = beginning()
    with workplace() as place:
        command = [
            *graft("study", photos, "--weights", given.weights, "--backbones", BACKBONES),
            *("--budget", given.budget, "--folds", "3"),
        ]
        begun = time.monotonic()
        expected = finished(command, place, "alone")
        seconds = time.monotonic() - begun
        say(f"alone: {seconds:.0f} s, {expected['choice']['id']}")
        lost, broken = killed(command, place, given.kills, given.seed, seconds)
        found = finished(command, place, "killed")
    odd = differences(numbers(expected), numbers(found))
    for line in odd[:10]:
        say(line)
    targets = [
        Target("finished trials lost", lost, "at most", 0),
        Target("cache entries that cannot be read", broken, "at most", 0),
        Target(
            "same choice (1: yes)", float(found["choice"]["id"] == expected["choice"]["id"]), "at least", 1
        ),
        Target("numbers that differ", len(odd), "at most", 0),
    ]
    facts = {"kills": given.kills, "seconds_alone": round(seconds, 1), "choice": found["choice"]["id"]}
    keep("killed", facts, targets, began=began)


def finished(command: list[str], place: Path, name: str) -> dict:
    environment = {**os.environ, "GRAFT_CACHE": str(place / f"cache-{name}")}
    subprocess.run(
        [*command, "--out", str(place / name)], env=environment, check=True, stdout=subprocess.DEVNULL
    )
    return json.loads((place / name / "study.json").read_text(encoding="utf-8"))


def killed(command: list[str], place: Path, kills: int, seed: int, seconds: float) -> tuple[int, int]:
    """How many finished trials were lost, and how many entries of the cache were broken, over all kills."""
    moments = random.Random(seed)
    environment = {**os.environ, "GRAFT_CACHE": str(place / "cache-killed")}
    known: set[tuple[str, int]] = set()
    lost = broken = 0
    for number in range(kills):
        process = subprocess.Popen(
            [*command, "--out", str(place / "killed")],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        time.sleep(moments.uniform(0.5, seconds / 3))
        process.send_signal(signal.SIGKILL)
        process.wait()
        now = {(row["recipe"], row["fold"]) for row in read(place / "killed") if row["kind"] == "fold"}
        lost += len(known - now)
        known = now
        broken += unreadable(place / "cache-killed")
        say(f"kill {number + 1}: {len(known)} trials finished, {lost} lost, {broken} entries broken")
    return lost, broken


def unreadable(cache: Path) -> int:
    count = 0
    for manifest in cache.rglob("manifest.json"):
        if manifest.parent.name.startswith("tmp-"):
            continue
        try:
            json.loads(manifest.read_text(encoding="utf-8"))
            for array in manifest.parent.glob("*.npy"):
                np.load(array, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError):
            count += 1
    return count


def numbers(facts: dict) -> dict:
    """Everything of study.json that a clock has no part in."""
    rows = {
        row["id"]: {name: row[name] for name in ("metrics", "interval", "tied", "complete")}
        for row in facts["candidates"]
    }
    choice = {name: facts["choice"][name] for name in ("id", "headline", "test")}
    versus = {name: facts["scratch_versus_transfer"][name] for name in ("difference", "interval")}
    return {"candidates": rows, "choice": choice, "versus": versus}


def differences(a: object, b: object, where: str = "") -> list[str]:
    if isinstance(a, dict) and isinstance(b, dict):
        names = sorted({*a, *b})
        return [line for name in names for line in differences(a.get(name), b.get(name), f"{where}/{name}")]
    return [] if a == b else [f"{where}: {a} and {b}"]


if __name__ == "__main__":
    main()
