"""Times and sizes as people type them."""

from __future__ import annotations

import re
from collections.abc import Mapping

from graft.errors import SettingsError

LARGEST = 1e15  # beyond, a float no longer counts single bytes
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0}
_BYTES = {"b": 1.0, "kb": 1e3, "mb": 1e6, "gb": 1e9, "kib": 2.0**10, "mib": 2.0**20, "gib": 2.0**30}
_MILLISECONDS = {"us": 1e-3, "ms": 1.0, "s": 1e3}


def seconds(text: str | int | float) -> float:
    """`90`, `90s`, `5m`, `1.5h` in seconds. Raises SettingsError for anything else, zero and less included."""
    return _quantity(text, _SECONDS, "s", "--budget", "a duration such as 30s, 5m or 2h")


def size_bytes(text: str | int, *, option: str = "--max-size") -> int:
    """`500kB`, `5MB`, `2MiB` in bytes; a plain number is in bytes. Raises SettingsError as `seconds` does."""
    return max(1, round(_quantity(text, _BYTES, "b", option, "a size such as 500kB or 5MB")))


def milliseconds(text: str | int | float) -> float:
    """`10ms`, `0.5s` in milliseconds; a plain number is in milliseconds. Raises SettingsError as `seconds` does."""
    return _quantity(text, _MILLISECONDS, "ms", "--max-latency", "a time such as 3ms or 0.1s")


def _quantity(
    text: str | int | float, units: Mapping[str, float], plain: str, option: str, wanted: str
) -> float:
    """A positive number and its unit (`plain` if it has none), in the smallest of the units."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([a-zA-Z]*)\s*", str(text), re.ASCII)
    factor = units.get((match[2] or plain).lower()) if match else None
    value = float(match[1]) * factor if match and factor else 0.0
    if not 0 < value < LARGEST:
        raise SettingsError(f"{option} {text}: give {wanted}.")
    return value
