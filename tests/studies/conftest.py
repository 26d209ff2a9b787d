"""What the tests of studies share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True, scope="session")
def one_seed() -> Iterator[None]:
    """Further seeds use up what is left of a budget; only their own tests wait for them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("graft.studies.seeds.MOST_SEEDS", 1)
        yield
