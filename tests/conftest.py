"""What every test may use: where the given images and weights are, and a clean environment."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# Of several test processes each keeps to cores of its own, and so do the programs it starts: two that share
# their cores, with as many threads each as there are cores, take five to ten times as long.
if (worker := os.environ.get("PYTEST_XDIST_WORKER")) and hasattr(os, "sched_setaffinity"):
    cores = sorted(os.sched_getaffinity(0))
    workers = int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.sched_setaffinity(0, cores[int(worker.removeprefix("gw")) % len(cores) :: workers])

# The same examples for everyone; `pytest --hypothesis-profile default` looks for new ones.
settings.register_profile("same", derandomize=True)
settings.load_profile("same")

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """For what is made once for a module or the session, too: that comes before `clean_environment`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRAFT_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        yield


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
