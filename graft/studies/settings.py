"""What the user asked for, checked and resolved before anything is read or written."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

from graft.errors import SettingsError
from graft.judging.metrics import METRICS

Only = Literal["frozen", "scratch"]
Fit = Literal["auto", "crop", "squash", "pad"]

_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0}
_BYTES = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
_MILLISECONDS = {"us": 1e-3, "ms": 1.0, "s": 1e3}


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
    device: str = "auto"
    seed: int = 0
    overwrite: bool = False


def resolved(
    source: str | Path,
    *,
    out: str | Path | None = None,
    budget: str | float = "10m",
    weights: str | Path | None = None,
    backbones: str | tuple[str, ...] = "auto",
    folds: int = 5,
    metric: str = "macro_f1",
    max_size: str | int | None = None,
    max_latency: str | float | None = None,
    only: str | None = None,
    fit: str = "auto",
    device: str = "auto",
    seed: int = 0,
    overwrite: bool = False,
) -> Settings:
    """The settings as records want them. Raises SettingsError naming the option, the value and the valid ones."""
    if metric not in METRICS:
        raise SettingsError(f"--metric {metric}: choose one of {', '.join(METRICS)}.")
    if only not in (None, "frozen", "scratch"):
        raise SettingsError(f"--only {only}: choose frozen or scratch.")
    if fit not in ("auto", "crop", "squash", "pad"):
        raise SettingsError(f"--fit {fit}: choose auto, crop, squash or pad.")
    if not 2 <= folds <= 20:
        raise SettingsError(f"--folds {folds}: choose a number from 2 to 20.")
    if seed < 0:
        raise SettingsError(f"--seed {seed}: choose a number from 0 up.")
    names = backbones if isinstance(backbones, tuple) else tuple(filter(None, re.split(r"[,\s]+", backbones)))
    place = Path(source).expanduser()
    return Settings(
        source=place,
        out=Path(out).expanduser() if out else Path("runs") / (place.resolve().stem or "study"),
        budget_seconds=seconds(budget),
        weights=Path(weights).expanduser() if weights else None,
        backbones=names or ("auto",),
        folds=folds,
        metric=metric,
        max_bytes=None if max_size is None else size_bytes(max_size),
        max_latency_ms=None if max_latency is None else milliseconds(max_latency),
        only=cast("Only | None", only),
        fit=cast("Fit", fit),
        device=device,
        seed=seed,
        overwrite=overwrite,
    )


def seconds(text: str | float) -> float:
    """`90`, `90s`, `5m`, `1.5h` in seconds."""
    return _quantity(text, _SECONDS, "s", "--budget", "a duration such as 30s, 5m or 2h")


def size_bytes(text: str | int) -> int:
    """`500kB`, `5MB`, `2MiB` in bytes."""
    return round(_quantity(text, _BYTES, "b", "--max-size", "a size such as 500kB or 5MB"))


def milliseconds(text: str | float) -> float:
    """`10ms`, `0.5s` in milliseconds; a plain number is in milliseconds."""
    return _quantity(text, _MILLISECONDS, "ms", "--max-latency", "a time such as 3ms or 0.1s")


def _quantity(text: str | float, units: dict[str, float] | dict[str, int], plain: str, option: str, wanted: str) -> float:
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([a-zA-Z]*)\s*", str(text), re.ASCII)
    unit = match[2].lower() if match and match[2] else plain
    value = float(match[1]) * units[unit] if match and unit in units else 0.0
    if not 0 < value < 1e15:
        raise SettingsError(f"{option} {text}: give {wanted}.")
    return value
