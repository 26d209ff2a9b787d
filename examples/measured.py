"""One training as one row of a table, and a table as Markdown.

`spent` are processor seconds of the whole run: reading, decoding, features, all folds, fitting on all images, packing,
report. Processor seconds, because they do not depend on what else the machine does; on one thread they are about the time
a user waits. A row is kept as JSON beside its run folder, so that an interrupted program goes on with the next one.
"""

from __future__ import annotations

import json
import platform
import shlex
import sys
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import timm  # imported here, so that the first row does not pay for the imports
import torch

import graft

SCORES = ("macro_f1", "accuracy")


def measured(source: Path, run: Path, **options: Any) -> dict[str, Any]:
    """`graft.train` with these options in the run folder `run`, as a row; a row that is there already is read."""
    asked = {"source": str(source), **{name: str(value) for name, value in options.items()}}
    kept = run.with_name(run.name + ".json")
    if kept.exists():
        row = json.loads(kept.read_text(encoding="utf-8"))
        if row["asked"] == asked:
            return row
    begun = time.process_time()
    result = graft.train(source, out=run, **options)
    spent = time.process_time() - begun
    row = {"asked": asked, "spent": round(spent, 1), "run": str(run), **told(result)}
    kept.write_text(json.dumps(row, indent=1), encoding="utf-8")
    print(
        f"{run.name}: accuracy {interval(row, 'accuracy')}, {row['spent']:.0f} processor seconds", flush=True
    )
    return row


def told(result: graft.StudyResult) -> dict[str, Any]:
    """What a table shows of a result."""
    (candidate,) = result.facts["candidates"]
    return {
        "images": result.facts["dataset"]["development"],
        "classes": result.facts["dataset"]["classes"],
        "folds": result.facts["settings"]["folds"],
        "size": candidate["input"]["size"],
        "bytes": candidate["cost"]["bytes"],
        "f1": {row["class"]: row["f1"] for row in candidate["per_class"]},
        **{name: [candidate["metrics"][name], *candidate["interval"][name]] for name in SCORES},
        "best": [curve["best_epoch"] for curve in candidate["curves"] or ()],
        "cpu": result.facts["environment"]["cpu"],
        "threads": result.facts["settings"]["threads"],
    }


def interval(row: dict[str, Any], score: str) -> str:
    """A score in percent with its 95 % interval."""
    value, low, high = (100 * one for one in row[score])
    return f"{value:.1f} ({low:.1f} to {high:.1f})"


def megabytes(row: dict[str, Any]) -> str:
    return f"{row['bytes'] / 1e6:.2f} MB"


def table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    listed = [header, ["---"] * len(header), *lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in listed)


def page(title: str, rows: Sequence[dict[str, Any]], *parts: str) -> str:
    """Title, command, machine and date above the tables and sentences in `parts`."""
    command = shlex.join(["python", f"examples/{Path(sys.argv[0]).name}", *sys.argv[1:]])
    machine = f"{rows[0]['cpu']}, {platform.machine()}, {rows[0]['threads']} thread(s)"
    versions = f"graft {graft.__version__}, torch {torch.__version__}, timm {timm.__version__}"
    made = f"`{command}`\n\n{date.today().isoformat()}; {machine}; {versions}."
    return "\n\n".join([f"## {title}", made, *parts]) + "\n"


def shown(text: str, out: Path | None) -> None:
    """Print the page, and keep it in a file where one was named."""
    print(text, flush=True)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text, encoding="utf-8")
