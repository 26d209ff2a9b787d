"""How long until the first answer, and how long does fastai take for a worse or better one?

    python benchmarks/first_answer.py [--data DIR] [--weights DIR] [--peer-env DIR] [--repeats 3] [--no-peer]

Whole processes, in turn, `--repeats` times: `graft study` on the photos of ants and bees with one backbone, frozen, on
a cold cache; the same again on the warm cache (a new run folder); then the pair that is compared. For it the folder is
laid out so that Graft sees `val/` once, as its locked test, and fastai sees it as its validation part: both learn from
the same photos and are scored on the same ones. fastai runs `fine_tune(4)` with the same weights file, from the start
of its process to its end, imports included, as Graft's time includes choosing, packing and the report.

The peer is installed into `--peer-env` when it is not there (some 5 GB; the installation is not timed). Costs about
2 minutes per repeat on two cores.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs
import pyarrow.parquet
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

from graft.judging.uncertainty import draw_weights, estimate, paired

BACKBONE = "mobilenetv2_100.coral_in1k"
REQUIREMENTS = ("fastai", "timm", "safetensors")
PEER = Path(__file__).with_name("fastai_fine_tune.py")
FIRST_BOARD = "the first answer"  # the title of the first leaderboard
DRAWS = 2_000


def main() -> None:
    options = parser(__doc__)
    cache = Path(platformdirs.user_cache_dir("graft-benchmarks", appauthor=False))
    options.add_argument(
        "--peer-env", type=Path, default=cache / "fastai", help="fastai's environment (%(default)s)"
    )
    options.add_argument("--repeats", type=int, default=3, help="of everything (default: 3)")
    options.add_argument("--no-peer", action="store_true", help="measure Graft alone")
    given = options.parse_args()
    photos, weights = given.data / "hymenoptera", given.weights / f"{BACKBONE}.safetensors"
    need(photos, weights)
    peer = None if given.no_peer else peer_python(given.peer_env)
    warm_page_cache(photos)
    began = beginning()
    with workplace() as place:
        paired_folders(photos, place)
        measured = [
            one_repeat(given, place / f"repeat-{i}", place, peer, seed=i) for i in range(given.repeats)
        ]
    facts, targets = judged(measured)
    keep("first_answer", facts, targets, began=began)


def one_repeat(given: Any, folder: Path, place: Path, peer: Path | None, *, seed: int) -> dict[str, Any]:
    """Cold, warm, then the pair."""
    folder.mkdir()
    found: dict[str, Any] = {}
    for kind in ("cold", "warm"):
        found[kind] = study(given, given.data / "hymenoptera", folder / kind, folder / "cache")
        told(f"graft, {kind}", found[kind])
    found["held_out"] = study(given, place / "for-graft", folder / "held-out", folder / "cache-of-the-pair")
    found["ours"] = own_answers(folder / "held-out")
    told("graft, val/ held out", found["held_out"])
    if peer is not None:
        out = folder / "peer.json"
        weights = given.weights / f"{BACKBONE}.safetensors"
        found["peer"] = run([peer, PEER, place / "for-peer", weights, out, "--seed", str(seed)])
        found["theirs"] = json.loads(out.read_text())
        told("fastai fine_tune(4)", found["peer"])
    return found


def study(given: Any, source: Path, out: Path, cache: Path) -> Run:
    """The whole command."""
    arguments = [
        "study",
        source,
        "--only",
        "frozen",
        "--backbones",
        BACKBONE,
        "--weights",
        given.weights,
        "--out",
        out,
    ]
    return run(graft(*arguments), cache=cache)


def told(what: str, measured: Run) -> None:
    first = measured.seconds_to(FIRST_BOARD)
    board = "" if math.isnan(first) else f", first leaderboard after {first:.2f} s"
    say(
        f"{what}: {measured.seconds:.2f} s{board} ({measured.processor_seconds:.1f} s of processor, "
        f"{measured.peak_bytes / 1e6:.0f} MB)"
    )


def paired_folders(photos: Path, place: Path) -> None:
    """The same files twice: val/ is called test/ for Graft, which opens it once, at the end."""
    for name, held_out in (("for-graft", "test"), ("for-peer", "val")):
        shutil.copytree(photos / "train", place / name / "train")
        shutil.copytree(photos / "val", place / name / held_out)


def own_answers(run_folder: Path) -> dict[str, Any]:
    """What the choice said of the locked test, from the run folder."""
    facts = json.loads((run_folder / "study.json").read_text(encoding="utf-8"))
    table = pyarrow.parquet.read_table(run_folder / "predictions.parquet")
    answers = [
        {
            "file": row["file"].replace("test/", "val/", 1),
            "label": row["label"],
            "probabilities": row["probabilities"],
        }
        for row in table.to_pylist()
        if row["split"] == "test"
    ]
    return {
        "classes": facts["dataset"]["class_names"],
        "answers": answers,
        "choice": facts["choice"]["id"],
        "macro_f1": facts["choice"]["test"]["metrics"]["macro_f1"],
    }


def judged(measured: list[dict[str, Any]]) -> tuple[dict[str, Any], list[Target]]:
    """The medians, the comparison and the targets."""
    cold, warm = (median([one[kind] for one in measured]) for kind in ("cold", "warm"))
    board = float(np.median([one["cold"].seconds_to(FIRST_BOARD) for one in measured]))
    facts: dict[str, Any] = {
        kind: [
            {**one[kind].summary, "first_leaderboard": one[kind].seconds_to(FIRST_BOARD)} for one in measured
        ]
        for kind in ("cold", "warm", "held_out")
    }
    facts["choice"] = measured[0]["ours"]["choice"]
    targets = [
        Target("seconds, cold cache", cold.seconds, "at most", 12.0),
        Target("seconds to the first leaderboard, cold cache", board, "at most", 8.0),
        Target("seconds, warm cache", warm.seconds, "at most", 5.0),
    ]
    if "peer" in measured[0]:
        against = compared(measured)
        facts["against_fastai"] = against
        targets += [
            Target("times faster than fastai's fine_tune(4)", against["times_faster"], "at least", 10.0),
            Target(
                "macro-F1 minus fastai's, same held-out photos",
                against["difference"]["macro_f1"],
                "at least",
                0.0,
            ),
        ]
    return facts, targets


def compared(measured: list[dict[str, Any]]) -> dict[str, Any]:
    """Seconds and held-out macro-F1 of both. Where the repeats of fastai differ, its median run is compared."""
    ours, theirs = median([one["held_out"] for one in measured]), median([one["peer"] for one in measured])
    scored = sorted(
        (scores(one["ours"], one["theirs"]) for one in measured), key=lambda one: one["fastai"]["macro_f1"]
    )
    return {
        "graft_seconds": ours.seconds,
        "fastai_seconds": theirs.seconds,
        "times_faster": theirs.seconds / ours.seconds,
        **scored[(len(scored) - 1) // 2],
        "fastai_macro_f1_of_all_repeats": [one["fastai"]["macro_f1"] for one in scored],
        "fastai_runs": [one["peer"].summary for one in measured],
        "fastai_versions": measured[0]["theirs"]["versions"],
    }


def scores(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    """Both on the photos both answered, with 95 % intervals over the same bootstrap draws."""
    if ours["classes"] != theirs["classes"]:
        sys.exit(f"The two disagree about the classes: {ours['classes']} and {theirs['classes']}.")
    by_file = {answer["file"]: answer for answer in theirs["answers"]}
    common = [answer for answer in ours["answers"] if answer["file"] in by_file]
    targets = np.array([ours["classes"].index(answer["label"]) for answer in common], np.int64)
    a = np.array([answer["probabilities"] for answer in common], np.float32)
    b = np.array([by_file[answer["file"]]["probabilities"] for answer in common], np.float32)
    groups = np.arange(len(common), dtype=np.int64)
    draws = draw_weights(targets, groups, draws=DRAWS, seed=0)
    found: dict[str, Any] = {
        "photos": len(common),
        "photos_only_one_answered": len(by_file) + len(ours["answers"]) - 2 * len(common),
    }
    for name, table in (("graft", a), ("fastai", b)):
        score = estimate("macro_f1", table, targets, groups, draws)
        found[name] = {"macro_f1": score.value, "interval": [score.low, score.high]}
    difference = paired("macro_f1", a, b, targets, draws)
    found["difference"] = {"macro_f1": difference.estimate, "interval": [difference.low, difference.high]}
    return found


def peer_python(folder: Path) -> Path:
    """The Python of fastai's own environment, made when it is not there."""
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    check = [python, "-c", "import fastai.vision.all, timm, safetensors"]
    if not python.exists() or subprocess.run(check, capture_output=True, check=False).returncode:
        if folder.exists() and any(folder.iterdir()) and not (folder / "pyvenv.cfg").exists():
            sys.exit(f"{folder} holds other files; name a place for fastai's environment with --peer-env.")
        say("installing fastai into an environment of its own (once, not timed)")
        venv.create(folder, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *REQUIREMENTS], check=True)
        subprocess.run(check, check=True)
    return python


if __name__ == "__main__":
    main()
