"""What the user asked of `graft pretrain`, checked before anything is read or written."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

from graft.compute import DEVICES
from graft.errors import SettingsError
from graft.quantities import seconds, size_bytes

Init = Literal["auto", "random", "teacher"]

OWN = {"small": "graft_small", "tiny": "graft_tiny"}
SMALLEST, LARGEST, STEP = 64, 384, 16
DEFAULT_EPOCHS = 60
# Where the files go and how often is no matter of what comes out; all other settings must agree to go on.
ASIDE = (
    "source",
    "input_size",
    "out",
    "name",
    "weights",
    "resume",
    "overwrite",
    "checkpoint_seconds",
    "version",
)


@dataclass(frozen=True, slots=True)
class PretrainSettings:
    """One training. `student` is an architecture; without a `teacher` the source's labels teach.

    `size` in pixels; `input_size`: that of the result, larger, because random crops show things larger than they are in
    a whole image (Touvron et al. 2019, arXiv 1906.06423). `budget_seconds` and `epochs` are limits, None does not bind. `hint`: weight of the loss on the
    earlier taps; `mosaic`, `made`: probability of a batch of mosaics, and share of images that Graft makes itself.
    `target_bytes`: what the teacher's kept answers may take on disk.
    """

    source: Path
    out: Path
    name: str
    student: str
    teacher: str | None = None
    weights: Path | None = None
    size: int = 96
    input_size: int = 128
    epochs: int | None = DEFAULT_EPOCHS
    batch_size: int = 128
    budget_seconds: float | None = None
    learning_rate: float = 1e-3
    weight_decay: float = 0.02
    averaging: float = 0.999
    label_smoothing: float = 0.1
    init: Init = "auto"
    made: float = 0.0
    mosaic: float = 0.3
    hint: float = 1.0
    target_bytes: int = 8 * 10**9
    device: str = "auto"
    seed: int = 0
    resume: bool = False
    overwrite: bool = False
    checkpoint_seconds: float = 60.0
    version: int = 1

    @property
    def identity(self) -> dict[str, Any]:
        """What a resumed run must have in common with the one that it continues."""
        return {name: value for name, value in asdict(self).items() if name not in ASIDE}


def resolved_pretraining(
    source: str | Path,
    *,
    out: str | Path,
    name: str | None = None,
    student: str = "small",
    teacher: str | None = None,
    weights: str | Path | None = None,
    size: int = 96,
    input_size: int | None = None,
    epochs: int | None = None,
    batch_size: int = 128,
    budget: str | int | float | None = None,
    lr: float = 1e-3,
    init: str = "auto",
    made: float = 0.0,
    hint: float = 1.0,
    target_space: str | int = "8GB",
    device: str = "auto",
    seed: int = 0,
    resume: bool = False,
    overwrite: bool = False,
    checkpoint_seconds: float = 60.0,
) -> PretrainSettings:
    """The settings as records want them; the arguments are those of `graft.pretrain`. Raises SettingsError naming the option, the value and the valid ones."""
    _one_of("--init", init, get_args(Init))
    _one_of("--device", device, DEVICES)
    if not (SMALLEST <= size <= LARGEST and size % STEP == 0):
        raise SettingsError(
            f"--size {size}: choose a multiple of {STEP} from {SMALLEST} to {LARGEST} pixels."
        )
    if input_size is not None and not (SMALLEST <= input_size <= LARGEST and input_size % STEP == 0):
        raise SettingsError(
            f"--input-size {input_size}: choose a multiple of {STEP} from {SMALLEST} to {LARGEST} pixels."
        )
    _within("--epochs", 1.0 if epochs is None else epochs, 1, 100_000)
    _within("--batch-size", batch_size, 2, 8192)
    _within("--lr", lr, 1e-6, 0.1)
    _within("--made", made, 0.0, 0.9)
    _within("--hint", hint, 0.0, 100.0)
    _within("--seed", seed, 0, 2**31)
    if teacher is None:
        _needs_teacher("--made", made > 0)
        _needs_teacher("--init teacher", init == "teacher")
    place = Path(source).expanduser()
    architecture = OWN.get(student, student)
    return PretrainSettings(
        source=place,
        out=Path(out).expanduser(),
        name=_name(name, student, place),
        student=architecture,
        teacher=teacher,
        weights=Path(weights).expanduser() if weights else None,
        size=size,
        input_size=round(size * 4 / 3 / STEP) * STEP if input_size is None else input_size,
        epochs=DEFAULT_EPOCHS if epochs is None and budget is None else epochs,
        batch_size=batch_size,
        budget_seconds=None if budget is None else seconds(budget),
        learning_rate=float(lr),
        init=cast("Init", init),
        made=float(made),
        hint=float(hint),
        target_bytes=size_bytes(target_space, option="--target-space"),
        device=device,
        seed=seed,
        resume=resume,
        overwrite=overwrite,
        checkpoint_seconds=checkpoint_seconds,
    )


def _name(name: str | None, student: str, source: Path) -> str:
    """`--name`, or one of the student's and the source's."""
    chosen = name or re.sub(r"[^A-Za-z0-9_.-]+", "-", f"{student}-{source.resolve().stem}")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}", chosen):
        raise SettingsError(
            f"--name {chosen!r}: use letters, digits, '-', '_' and '.', beginning with a letter or a digit."
        )
    return chosen


def _one_of(option: str, value: str, valid: Sequence[str]) -> None:
    if value not in valid:
        raise SettingsError(f"{option} {value}: choose one of {', '.join(valid)}.")


def _within(option: str, value: int | float, least: int | float, most: int | float) -> None:
    if not least <= value <= most:
        raise SettingsError(f"{option} {value:g}: choose a number from {least:g} to {most:g}.")


def _needs_teacher(option: str, given: bool) -> None:
    if given:
        raise SettingsError(
            f"{option} needs a teacher: name one with --teacher, or leave {option.split()[0]} out."
        )
