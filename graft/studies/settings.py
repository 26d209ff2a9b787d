"""What the user asked for, checked and resolved before anything is read or written."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast, get_args

from graft.compute import DEVICES
from graft.errors import SettingsError
from graft.judging.metrics import METRICS
from graft.quantities import milliseconds, seconds, size_bytes

Only = Literal["frozen", "finetuned", "scratch"]
Fit = Literal["auto", "crop", "squash", "pad"]
Groups = Literal["near", "series"]

MOST_FOLDS = 20
LARGEST_SEED = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Settings:
    """One study. `backbones` is `("auto",)` or names; limits that are None do not bind; budget in seconds."""

    source: Path
    out: Path
    budget_seconds: float = 600.0
    weights: Path | None = None
    backbones: tuple[str, ...] = ("auto",)
    folds: int = 5
    metric: str = "macro_f1"
    max_bytes: int | None = None
    max_latency_ms: float | None = None
    only: Only | None = None
    fit: Fit = "auto"
    groups: Groups = "near"
    device: str = "auto"
    seed: int = 0
    overwrite: bool = False


def resolved(
    source: str | Path,
    *,
    out: str | Path | None = None,
    budget: str | int | float = "10m",
    weights: str | Path | None = None,
    backbones: str | Sequence[str] = "auto",
    folds: int | str = 5,
    metric: str = "macro_f1",
    max_size: str | int | None = None,
    max_latency: str | int | float | None = None,
    only: str | None = None,
    fit: str = "auto",
    groups: str = "near",
    device: str = "auto",
    seed: int | str = 0,
    overwrite: bool = False,
) -> Settings:
    """The settings as records want them; the arguments are those of `graft.study`.

    Raises SettingsError naming the option, the value and the valid ones.
    """
    _one_of("--metric", metric, tuple(METRICS))
    _one_of("--fit", fit, get_args(Fit))
    _one_of("--groups", groups, get_args(Groups))
    _one_of("--device", device, DEVICES)
    if only is not None:
        _one_of("--only", only, get_args(Only))
    place = Path(source).expanduser()
    return Settings(
        source=place,
        out=Path(out).expanduser() if out else _default_out(place),
        budget_seconds=seconds(budget),
        weights=Path(weights).expanduser() if weights else None,
        backbones=_names(backbones),
        folds=_whole("--folds", folds, 2, MOST_FOLDS),
        metric=metric,
        max_bytes=None if max_size is None else size_bytes(max_size),
        max_latency_ms=None if max_latency is None else milliseconds(max_latency),
        only=cast("Only | None", only),
        fit=cast("Fit", fit),
        groups=cast("Groups", groups),
        device=device,
        seed=_whole("--seed", seed, 0, LARGEST_SEED),
        overwrite=overwrite,
    )


def _one_of(option: str, value: str, valid: Sequence[str]) -> None:
    if value not in valid:
        raise SettingsError(f"{option} {value}: choose one of {', '.join(valid)}.")


def _whole(option: str, value: int | str, least: int, most: int) -> int:
    text = str(value).strip()
    if not (text.isascii() and text.isdigit() and least <= int(text) <= most):
        raise SettingsError(f"{option} {value}: choose a whole number from {least} to {most}.")
    return int(text)


def _names(backbones: str | Sequence[str]) -> tuple[str, ...]:
    """The backbones that were named, each once. Raises SettingsError where none was."""
    listed = (
        re.split(r"[,\s]+", backbones) if isinstance(backbones, str) else [name.strip() for name in backbones]
    )
    names = tuple(dict.fromkeys(filter(None, listed)))
    if "auto" in names and len(names) > 1:
        raise SettingsError(
            f"--backbones {','.join(names)}: give auto, or names (graft models lists them), not both."
        )
    if not names:
        raise SettingsError("--backbones: give auto, or names separated by commas (graft models lists them).")
    return names


def _default_out(source: Path) -> Path:
    """`runs/photos` for `photos/` and for `photos.csv`."""
    place = source.resolve()
    return Path("runs") / ((place.name if place.is_dir() else place.stem) or "study")
