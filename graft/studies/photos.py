"""Photos that a packed model was made from, found again through the run folder it lies in.

In: the folder of a bundle. Out: some of the study's development images, as the bytes of their files, where the run
folder beside it is that of the same images and these are still where they were. The locked test is never among them.
Cost: one column of `predictions.parquet` and reading at most as many files as are wanted.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from graft.errors import GraftError
from graft.images.readers import find, read_bytes
from graft.studies.predictions import PREDICTIONS
from graft.studies.results import RUN


@dataclass(frozen=True, slots=True, eq=False)
class StudyPhotos:
    """`photos` are encoded images out of the folder `root`."""

    root: Path
    photos: tuple[bytes, ...]


def photos_beside(bundle: Path, facts: dict[str, Any], *, most: int) -> StudyPhotos | None:
    """At most `most` images, evenly spread; None where there are none. `facts`: the content of `bundle.json`."""
    root, names = names_beside(bundle, facts)
    if not names:
        return None
    wanted = np.linspace(0, len(names) - 1, min(most, len(names))).astype(int)
    photos = tuple(photo for place in wanted if (photo := _read(root, names[place])) is not None)
    return StudyPhotos(root, photos) if photos else None


def names_beside(bundle: Path, facts: dict[str, Any]) -> tuple[Path, list[str]]:
    """The folder of the images and the names below it of those that the model was fitted on; none where that is not known."""
    run = bundle.resolve().parent
    try:
        told = json.loads((run / RUN).read_text(encoding="utf-8"))
        root, fingerprint = Path(told["root"]), told["dataset"]["fingerprint"]
        if fingerprint == facts["data"]["fingerprint"] and root.is_dir():
            return root, _development(run / PREDICTIONS)
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return run, []


def _development(predictions: Path) -> list[str]:
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(
        predictions, columns=["file"], filters=[("split", "==", "development")]
    )
    return list(dict.fromkeys(table["file"].to_pylist()))


def _read(root: Path, name: str) -> bytes | None:
    try:
        return read_bytes(*find(root, name))
    except (OSError, GraftError):
        return None
