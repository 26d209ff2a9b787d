"""The run folder: whose it is, and what may happen to it.

A folder with anything else in it is never touched; another study's only with `--overwrite`; the same study continues.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from graft.backbones.weights import WeightsFolder
from graft.errors import RunError
from graft.images.dataset import Dataset
from graft.store import content_key, write_atomically
from graft.studies import results
from graft.studies.frame import Frame
from graft.studies.journal import FILE, TRIALS
from graft.studies.settings import Settings

OURS = (
    "run.json",
    "check.csv",
    FILE,
    "study.json",
    "predictions.parquet",
    "report.html",
    "preview.jpg",
    "model.graft",
    "model-small.graft",
    TRIALS,
    ".lock",
)


class AnotherStudy(RunError):
    """The run folder was made from other images or with other settings."""


def refuse_place(settings: Settings, *, besides: Path | None = None) -> None:
    """A folder with something else in it is never touched, whatever was asked; nor is anything put among the images.

    `besides`: a file that may lie there, too.
    """
    out, source = settings.out, settings.source
    if source.is_dir() and out.resolve().is_relative_to(source.resolve()):
        raise RunError(
            f"The run folder {out} would lie among the images of {source}, where the next scan would take it for a "
            "class. Choose another --out."
        )
    if out.exists() and not out.is_dir():
        raise RunError(f"{out} is a file; choose another --out.")
    if out.is_dir() and any(out.iterdir()) and not (out / results.RUN).exists():
        foreign = [path.name for path in out.iterdir() if path.name not in OURS and path != besides]
        if foreign:
            raise RunError(f"{out} holds other files ({foreign[0]}) and no study; choose another --out.")


def claim(settings: Settings, dataset: Dataset, folder: WeightsFolder | None, *, recipe: str = "") -> None:
    """Continue the same study, or begin a new one where nothing of another is lost.

    `recipe`: the page of the one recipe that is trained, or empty.
    """
    try:
        written = json.loads((settings.out / results.RUN).read_text(encoding="utf-8"))
        same = written.get("identity") == _identity(settings, dataset, folder, recipe)
    except FileNotFoundError:
        return
    except ValueError:
        same = False
    if same and not settings.overwrite:
        return
    if not settings.overwrite:
        raise AnotherStudy(
            f"{settings.out} holds another study (other images or settings). Choose another --out, or --overwrite to "
            "replace it."
        )
    for name in OURS:
        path = settings.out / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    write_atomically(settings.out / results.RUN, "{}")


def sweep(out: Path) -> None:
    """Remove what a killed session was writing beside its final place; the journal's lock is held."""
    for leftover in [found for name in OURS for found in out.glob(f".{name}.*")] + [
        *(out / TRIALS).glob(".*")
    ]:
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def write_run(frame: Frame, command: str, *, recipe: str = "") -> None:
    results.write_json(
        frame.settings.out / results.RUN,
        {
            "format": results.FORMAT,
            "graft": results.VERSION,
            "identity": _identity(frame.settings, frame.dataset, frame.folder, recipe),
            "root": str(frame.dataset.root.resolve()),
            "settings": results.settings_facts(frame, command),
            "environment": results.environment(),
            "command": command,
            "recipe": recipe or None,
            "dataset": {"fingerprint": frame.dataset.fingerprint},
        },
    )


def _identity(settings: Settings, dataset: Dataset, folder: WeightsFolder | None, recipe: str) -> str:
    """What makes it the same study: everything but the budget and the place."""
    held = sorted(file.sha256 for file in folder.files) if folder else []
    return content_key(
        "study.v1",
        dataset.fingerprint,
        list(settings.backbones),
        held,
        [settings.folds, settings.metric, settings.max_bytes, settings.max_latency_ms],
        [settings.only, settings.fit, settings.groups, settings.device, settings.seed],
        *([recipe] if recipe else []),
    )
