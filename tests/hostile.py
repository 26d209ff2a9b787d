"""How many bad uploads, bundles and indexes the tests make, by kind; docs/security.md shows the same table.

Each test counts its cases and compares them with the number here, so the table cannot say more than is tested.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

KINDS = {
    "images cut off": 1_800,
    "images with altered bytes": 1_800,
    "images behind something else": 54,
    "images with something behind them": 36,
    "garbage": 700,
    "headers that promise more pixels than memory holds": 64,
    "decompression bombs": 16,
    "huge headers": 12,
    "forms cut off": 500,
    "forms of thousands of parts": 11,
    "names with paths and control characters": 64,
    "JSON and base64 that is nearly right": 145,
    "slow and endless bodies": 12,
    "bundles with altered bytes": 300,
    "bundles cut off": 200,
    "bundles with altered labels and facts": 120,
    "bundles with another graph": 10,
    "indexes with altered bytes": 180,
    "indexes cut off": 120,
}


@dataclass
class Count:
    """Cases so far."""

    cases: int = 0

    def __call__(self) -> None:
        """One more."""
        self.cases += 1


@contextmanager
def counted(kind: str) -> Iterator[Count]:
    """Compares the cases of a test with the table."""
    count = Count()
    yield count
    expected = KINDS[kind]
    assert count.cases == expected, f"{kind}: {count.cases} cases, the table says {expected}"
