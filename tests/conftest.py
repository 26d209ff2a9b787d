"""What every test may use: where the given images and weights are, and a clean environment."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """No setting of the person's own, and a cache of the test session's own."""
    for name in list(os.environ):
        if name.startswith("GRAFT_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("GRAFT_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def _given(folder: str) -> Path:
    place = SHARED / folder
    if not place.is_dir():
        pytest.skip(f"the given {folder}/ is not beside the checkout")
    return place


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real image sets, where they are beside the checkout."""
    return _given("data")


@pytest.fixture(scope="session")
def shared_weights() -> Path:
    """Real ImageNet weights, where they are beside the checkout."""
    return _given("weights")
