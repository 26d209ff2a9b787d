"""graft predict: classify images with a packed model."""

from __future__ import annotations

import argparse
import csv
import json
import sys
from pathlib import Path
from typing import Any

from graft.commands.files import image_files
from graft.errors import GraftError


def add(commands: Any) -> None:
    predict = commands.add_parser("predict", help="classify images with a packed model")
    predict.add_argument("bundle", help="a folder model.graft")
    predict.add_argument("images", nargs="+", help="image files or folders")
    predict.add_argument("--topk", type=int, default=1, help="how many classes to show (default: 1)")
    form = predict.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="one JSON object per line")
    form.add_argument("--csv", action="store_true", help="CSV with all probabilities")
    predict.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from graft.deploy.bundle import load

    if options.topk < 1:
        raise GraftError(f"--topk {options.topk}: choose a number from 1 up.")
    bundle = load(options.bundle)
    files = image_files([Path(name) for name in options.images])
    failed = 0
    table = csv.writer(sys.stdout, lineterminator="\n") if options.csv else None
    if table:
        table.writerow(["file", "label", "probability", *bundle.labels])
    for file in files:
        try:
            answer = bundle.predict(file)
        except GraftError as error:
            print(f"graft: {error}", file=sys.stderr)
            failed += 1
            continue
        top = answer.top(options.topk)
        if table:
            row = [answer.probabilities[label] for label in bundle.labels]
            table.writerow([str(file), answer.label, f"{answer.probability:.6f}", *(f"{p:.6f}" for p in row)])
        elif options.json:
            print(
                json.dumps(
                    {"file": str(file), "label": answer.label, "probabilities": top}, ensure_ascii=False
                )
            )
        else:
            print(f"{file}: " + ", ".join(f"{label} {100 * share:.1f} %" for label, share in top.items()))
    if failed:
        print(f"graft: {failed} of {len(files)} files could not be read and have no answer.", file=sys.stderr)
    return 2 if failed else 0
