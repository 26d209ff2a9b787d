"""Where a training stands, in one file that is always whole: a kill at any moment costs at most the last minute.

In: the learner's tensors and a few facts. Out: `OUT/.NAME.pretrain/checkpoint.safetensors`, its facts as JSON in the
file's own header, written beside and moved into place, so tensors and facts never belong to different moments.
Cost: 16 bytes a parameter, some 50 ms.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from torch import Tensor

from graft.errors import RunError
from graft.pretraining.records import Epoch
from graft.pretraining.settings import PretrainSettings
from graft.store import write_atomically

FILE = "checkpoint.safetensors"
FORMAT = 1


@dataclass(slots=True)
class Standing:
    """Where a training stands: `step` of `epochs` x `steps`; sums of loss, agreement and images since the last epoch.

    `seconds` is the time spent so far, all processes together; `curve` the epochs that are over.
    """

    identity: dict[str, Any]
    epochs: int
    steps: int
    step: int
    sums: tuple[float, float, int]
    seconds: float
    curve: list[Epoch]


def folder_of(settings: PretrainSettings) -> Path:
    """The hidden folder of an unfinished training."""
    return settings.out / f".{settings.name}.pretrain"


@contextmanager
def claimed(settings: PretrainSettings) -> Iterator[None]:
    """Nobody else trains under this name for the time of a block. Raises RunError if somebody does already."""
    lock = FileLock(folder_of(settings).with_suffix(".lock"))
    try:
        settings.out.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        raise RunError(
            f"Another training writes {settings.name} to {settings.out} now. Wait for it, or choose another --name."
        ) from None
    except OSError as error:
        raise RunError(
            f"{settings.out} cannot be written: {error.strerror or error}. Choose another --out."
        ) from error
    try:
        yield
    finally:
        lock.release()
        with suppress(OSError):
            Path(lock.lock_file).unlink()


def save(settings: PretrainSettings, standing: Standing, tensors: Mapping[str, Tensor]) -> None:
    """Write the checkpoint. Raises RunError where the disk is full or cannot be written; the last one stays."""
    from safetensors.torch import save as packed

    place = folder_of(settings) / FILE
    facts = {"format": FORMAT, **asdict(standing)}
    try:
        write_atomically(place, packed(dict(tensors), {"facts": json.dumps(facts)}))
    except OSError as error:
        raise RunError(
            f"The checkpoint {place} cannot be written: {error.strerror or error}. The one before it is intact: free "
            "some space and go on with --resume."
        ) from error


def load(settings: PretrainSettings) -> tuple[Standing, dict[str, Tensor]] | None:
    """The checkpoint, or None if there is none yet. Raises RunError for one that is damaged or too new."""
    from safetensors import SafetensorError, safe_open

    place = folder_of(settings) / FILE
    if not place.exists():
        return None
    try:
        with safe_open(place, framework="pt") as file:
            facts = json.loads((file.metadata() or {})["facts"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no iteration protocol)
        if facts.pop("format") > FORMAT:
            raise RunError(
                f"{place} was written by a newer Graft. Update Graft, or start over with --overwrite."
            )
        curve = [Epoch(**row) for row in facts.pop("curve")]
        return Standing(**{**facts, "sums": tuple(facts["sums"]), "curve": curve}), tensors
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(
            f"The checkpoint {place} is damaged ({error}). Start over with --overwrite."
        ) from error


def refuse_other(settings: PretrainSettings, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raises RunError naming the first setting in which a training to be resumed differs."""
    for name in sorted({*found, *wanted}):
        if found.get(name) != wanted.get(name):
            raise RunError(
                f"The training in {folder_of(settings)} has {name.replace('_', ' ')} {_short(found.get(name))}, this "
                f"command has {_short(wanted.get(name))}. Resume with the same settings, or start over with --overwrite."
            )


def discard(settings: PretrainSettings) -> None:
    """Remove the hidden folder."""
    shutil.rmtree(folder_of(settings), ignore_errors=True)


def _short(value: Any) -> str:
    text = str(value)
    return f"{text[:12]}..." if len(text) == 40 or len(text) == 64 else text
