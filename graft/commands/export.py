"""graft export: a packed model in the form that another place needs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graft.errors import SettingsError

if TYPE_CHECKING:
    from graft.studies.photos import StudyPhotos

STUDY_PHOTOS = 66  # a third of them is only checked on


def add(commands: Any) -> None:
    export = commands.add_parser("export", help="write a packed model for another place, such as a browser")
    export.add_argument("bundle", help="a folder model.graft")
    export.add_argument("--to", metavar="FORM", required=True, help=f"one of {', '.join(FORMS)}")
    export.add_argument("--out", metavar="DIR", help="where to (default: the bundle's name with the form)")
    export.add_argument(
        "--runtime",
        metavar="PATH",
        help="for web: a folder with the files of onnxruntime-web, or its npm package",
    )
    export.add_argument(
        "--calibrate",
        metavar="PHOTOS",
        help="a folder of photos like those to come, to calibrate 8 bits and to check on (default: images of the study "
        "that made the bundle, where both are still in place)",
    )
    export.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    if options.to not in FORMS:
        raise SettingsError(f"--to {options.to}: choose one of {', '.join(FORMS)}.")
    if options.runtime and options.to != "web":
        raise SettingsError(f"--runtime belongs to --to web, not to --to {options.to}.")
    if options.calibrate and options.to == "web":
        raise SettingsError("--calibrate belongs to --to onnx, onnx-int8 and openvino, not to --to web.")
    folder = Path(options.bundle)
    named = folder if folder.name not in ("", "..") else folder.resolve()  # `.`, say
    out = Path(options.out) if options.out else named.with_name(f"{named.stem or 'model'}-{options.to}")
    return FORMS[options.to](options, out)


def _web(options: argparse.Namespace, out: Path) -> int:
    from graft.deploy.bundle import load
    from graft.deploy.web_folder import PACKAGE, RUNTIME_VERSION, web_folder

    runtime = Path(options.runtime) if options.runtime else None
    written = web_folder(load(options.bundle, threads=1), out, runtime=runtime)
    print(f"{written.folder}: {written.size / 1e6:.1f} MB for any web server.")
    print(f"to try it: python3 -m http.server --directory {written.folder}")
    if written.absent:
        print(
            f"graft: it lacks files of the npm package {PACKAGE} {RUNTIME_VERSION}, which could not be had here. "
            f"Put them there from its folder dist/, or export again with --runtime:",
            file=sys.stderr,
        )
        for name, digest in written.absent:
            print(f"  {written.folder / name}  sha256 {digest}", file=sys.stderr)
    return 0


def _converted(options: argparse.Namespace, out: Path) -> int:
    from graft.commands.files import image_files
    from graft.deploy.conversion import to_int8, to_onnx, to_openvino

    photos: Sequence[Path | bytes] = image_files([options.calibrate]) if options.calibrate else []
    beside = None if options.calibrate else _of_study(options)
    if beside is not None:
        photos = beside.photos
    forms: dict[str, Callable[..., Any]] = {"onnx": to_onnx, "onnx-int8": to_int8, "openvino": to_openvino}
    made = forms[options.to](options.bundle, out, photos=photos)
    if beside is not None:
        verb = "calibrated and checked" if options.to == "onnx-int8" else "checked"
        print(f"{verb} on {len(photos)} images of {beside.root}")
    print(
        f"{made.folder}: {made.bytes / 1e6:.2f} MB; on {made.images} images {made.agreement:.1%} of the decisions are "
        f"those of the bundle, probabilities differ by at most {made.largest_difference:.2g}."
    )
    return 0


def _of_study(options: argparse.Namespace) -> StudyPhotos | None:
    """Images of the study in whose run folder the bundle lies."""
    from graft.deploy.opening import manifest
    from graft.studies.photos import photos_beside

    folder = Path(options.bundle)
    return photos_beside(folder, manifest(folder), most=STUDY_PHOTOS)


FORMS: dict[str, Callable[[argparse.Namespace, Path], int]] = {
    "web": _web,
    "onnx": _converted,
    "onnx-int8": _converted,
    "openvino": _converted,
}
