"""graft predict: classify images with a packed model."""

from __future__ import annotations

import argparse
import csv
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graft.commands import runtimes
from graft.commands.files import image_files
from graft.commands.lines import as_json, one_line
from graft.errors import GraftError

if TYPE_CHECKING:
    from graft.deploy.bundle import Bundle, Prediction
else:
    Bundle = Prediction = Any

EXPLAINED = "explained"


def add(commands: Any) -> None:
    predict = commands.add_parser("predict", help="classify images with a packed model")
    predict.add_argument("bundle", help="a folder model.graft")
    predict.add_argument("images", nargs="+", help="image files or folders")
    predict.add_argument("--topk", type=int, default=1, help="how many classes to show (default: 1)")
    predict.add_argument(
        "--unknown", action="store_true", help="say which images are unlike all the model was made from"
    )
    predict.add_argument(
        "--sets", action="store_true", help="name the classes that hold the right one in 90 %% of cases"
    )
    predict.add_argument(
        "--explain", action="store_true", help="draw what spoke for the answer over a copy of each image"
    )
    predict.add_argument(
        "--out", metavar="DIR", help=f"the folder for --explain (default: {EXPLAINED} in the current folder)"
    )
    runtimes.add(predict)
    form = predict.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="one JSON object per line")
    form.add_argument("--csv", action="store_true", help="CSV with all probabilities")
    predict.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from graft.deploy.bundle import load

    _check(options)
    bundle = load(options.bundle, runtime=options.runtime)
    _check_bundle(bundle, options)
    files = image_files(options.images)
    if options.explain:  # what an earlier call has drawn into one of the folders is no image to classify
        from graft.deploy.explain import drawn_here

        files = [file for file in files if str(file) in options.images or not drawn_here(file)]

    tell = _csv(bundle, options) if options.csv else _json(options) if options.json else _plain(options)
    drawn: set[Path] = set()
    unread = undrawn = 0
    for file in files:
        try:
            answer = bundle.predict(file)
        except GraftError as error:
            print(one_line(f"graft: {error}"), file=sys.stderr)
            unread += 1
            continue
        place = None
        if options.explain:
            try:
                place = _explained(bundle, file, answer, options, drawn)
            except GraftError as error:
                print(one_line(f"graft: {error}"), file=sys.stderr)
                undrawn += 1
        tell(file, answer, place)
    if unread:
        print(f"graft: {unread} of {len(files)} files could not be read and have no answer.", file=sys.stderr)
    if undrawn:
        print(f"graft: {undrawn} of {len(files)} answers could not be drawn.", file=sys.stderr)
    return 2 if unread or undrawn else 0


def _check(options: argparse.Namespace) -> None:
    if options.topk < 1:
        raise GraftError(f"--topk {options.topk}: choose a number from 1 up.")
    if options.out is not None and not options.explain:
        raise GraftError("--out names the folder for --explain; give --explain, too, or leave --out away.")
    if options.out is not None and Path(options.out).exists() and not Path(options.out).is_dir():
        raise GraftError(f"--out {options.out} is a file; name a folder.")


def _check_bundle(bundle: Bundle, options: argparse.Namespace) -> None:
    """What is asked for must be in the bundle, before any image is read."""
    again = "Make it again with `graft study` of this version."
    if options.unknown and bundle.decision.limit is None:
        raise GraftError(
            f"{bundle.folder} cannot tell unknown images: it holds no statistics for it. {again}"
        )
    if options.sets and bundle.decision.least_probability is None:
        raise GraftError(f"{bundle.folder} has no label sets: it holds no quantile for them. {again}")
    if options.explain and bundle.no_activation:
        raise GraftError(
            f"{bundle.folder} cannot show what spoke for a class: {bundle.no_activation}. Leave --explain away."
        )


def _explained(
    bundle: Bundle, file: Path, answer: Prediction, options: argparse.Namespace, drawn: set[Path]
) -> Path:
    from graft.deploy.explain import write_overlay

    place = write_overlay(
        file,
        bundle.explain(file, answer.label),
        bundle.preprocess,
        folder=Path(options.out or EXPLAINED),
        taken=drawn,
    )
    drawn.add(place)
    return place


def _plain(options: argparse.Namespace) -> Any:
    def tell(file: Path, answer: Prediction, place: Path | None) -> None:
        shares = [f"{label} {100 * share:.1f} %" for label, share in answer.top(options.topk).items()]
        if answer.probability < max(answer.probabilities.values()):
            shares[0] += " (by its threshold)"
        parts = [", ".join(shares)]
        if options.unknown and answer.unknown:
            parts.append("unknown: unlike everything the model was made from")
        if options.sets and answer.labels_90 is not None:
            parts.append(f"set: {', '.join(answer.labels_90)}")
        if place is not None:
            parts.append(f"explained: {place}")
        print(one_line(f"{file}: " + "; ".join(parts)))

    return tell


def _json(options: argparse.Namespace) -> Any:
    def tell(file: Path, answer: Prediction, place: Path | None) -> None:
        facts: dict[str, Any] = {
            "file": str(file),
            "label": answer.label,
            "probabilities": answer.top(options.topk),
        }
        if options.unknown:
            facts |= {"unknown": answer.unknown, "score": answer.score}
        if options.sets:
            facts["labels_90"] = list(answer.labels_90 or ())
        if place is not None:
            facts["explained"] = str(place)
        print(as_json(facts))

    return tell


def _csv(bundle: Bundle, options: argparse.Namespace) -> Any:
    """A table whose further columns stand between the answer and the probabilities."""
    from graft.deploy.cells import path_cell

    table = csv.writer(sys.stdout, lineterminator="\n")
    further = (
        ["unknown", "score"] * options.unknown + ["set"] * options.sets + ["explained"] * options.explain
    )
    table.writerow(["file", "label", "probability", *further, *bundle.labels])

    def tell(file: Path, answer: Prediction, place: Path | None) -> None:
        told: list[str] = []
        if options.unknown:
            told += ["yes" if answer.unknown else "no", f"{answer.score:.4f}"]
        if options.sets:
            told.append(as_json(list(answer.labels_90 or ())))
        if options.explain:
            told.append("" if place is None else path_cell(str(place)))
        shares = (f"{answer.probabilities[label]:.6f}" for label in bundle.labels)
        table.writerow([path_cell(str(file)), answer.label, f"{answer.probability:.6f}", *told, *shares])

    return tell
