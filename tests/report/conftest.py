"""What the tests of the report use."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from made_run import write_run


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """A function that writes a run folder and returns it."""

    def make(
        *, classes: int = 6, images: int = 240, backbones: int = 6, taps: int = 5, photos: bool = True
    ) -> Path:
        return write_run(
            tmp_path / "run", classes=classes, images=images, backbones=backbones, taps=taps, photos=photos
        )

    return make
