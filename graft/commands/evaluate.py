"""graft evaluate: how good a packed model is on labelled images."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graft.commands import runtimes
from graft.commands.files import image_files
from graft.commands.lines import as_json
from graft.errors import SettingsError

if TYPE_CHECKING:
    from graft.deploy.bundle import Bundle


def add(commands: Any) -> None:
    evaluate = commands.add_parser("evaluate", help="how good a packed model is on labelled images")
    evaluate.add_argument("bundle", help="a folder model.graft")
    evaluate.add_argument("source", help="a folder <class>/..., a CSV or Parquet file")
    runtimes.add(evaluate)
    evaluate.add_argument(
        "--elsewhere",
        metavar="PATH",
        action="append",
        default=[],
        help="pictures of something else, a file or a folder: are they told apart? May be given more than once",
    )
    evaluate.add_argument("--csv", metavar="FILE", help="write every image's answer as CSV")
    evaluate.add_argument("--json", action="store_true", help="print JSON")
    evaluate.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from graft import console, following
    from graft.compute import cpu_threads
    from graft.deploy.bundle import load
    from graft.deploy.evaluate import evaluating, write_answers

    if options.csv and Path(options.csv).is_dir():
        raise SettingsError(
            f"--csv {options.csv} is a folder; name a file, such as {Path(options.csv) / 'answers.csv'}."
        )
    elsewhere = image_files(list(map(_there, options.elsewhere)))
    bundle = load(options.bundle, threads=1, runtime=options.runtime, abreast=cpu_threads())
    if elsewhere and bundle.decision.limit is None:
        raise SettingsError(
            f"{bundle.folder} cannot tell unknown images: it holds no statistics for it. Leave --elsewhere away, or make "
            "the bundle again with `graft study` of this version."
        )
    work = evaluating(bundle, options.source, elsewhere=elsewhere)
    evaluation = following.follow_steps(work, to_stderr=options.json)
    if options.csv:
        write_answers(evaluation, Path(options.csv))
    seen = _fitted_on(bundle, Path(options.source), evaluation.names)
    if options.json:
        print(as_json({**evaluation.facts, "fitted_on": seen}))
    else:
        console.show_evaluation(evaluation)
    if seen:
        print(
            f"graft: the model was fitted on {seen} of these images, so the scores flatter it; the cross-validated ones stand in "
            f"{bundle.folder / 'card.md'}.",
            file=sys.stderr,
        )
    return 0


def _fitted_on(bundle: Bundle, source: Path, names: Sequence[str]) -> int:
    """How many of the images the model was fitted on, as far as the run folder it lies in tells."""
    from graft.studies.photos import names_beside

    root, known = names_beside(bundle.folder, bundle.facts)
    here = source.resolve()
    return len({root.resolve() / name for name in known} & {here / name for name in names}) if known else 0


def _there(name: str) -> str:
    if not Path(name).exists():
        raise SettingsError(f"--elsewhere {name} does not exist; name a file or a folder with pictures.")
    return name
