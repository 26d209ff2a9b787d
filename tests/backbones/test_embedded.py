"""Weights inside the package: found, loaded and listed like any others, and everything works without them."""

from __future__ import annotations

from pathlib import Path

import pytest
from made_sets import weights_folder

from graft.backbones import weights
from graft.backbones.hub import Reach
from graft.backbones.weights import WeightsFolder, held, known_digest, load_state, locate
from graft.studies.plan import plan
from graft.studies.settings import resolved

NOWHERE = Reach(False, False, "No answer.")


@pytest.fixture
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WeightsFolder:
    """A package with the made weights inside."""
    place = weights_folder(tmp_path / "inside")
    monkeypatch.setattr(weights, "EMBEDDED", place)
    return WeightsFolder.open(place)


def test_embedded_weights_load_like_any_others(inside: WeightsFolder) -> None:
    entry = inside.entries[0]
    assert locate([entry], folder=None, reach=NOWHERE) == {entry.name: "embedded"}
    assert known_digest(entry, folder=None) == inside.files[0].sha256
    assert load_state(entry, folder=None, reach=NOWHERE).digest == inside.files[0].sha256


def test_a_folder_that_is_named_goes_first(inside: WeightsFolder, tmp_path: Path) -> None:
    folder = WeightsFolder.open(weights_folder(tmp_path / "named"))
    assert locate(folder.entries, folder=folder, reach=NOWHERE)[folder.entries[0].name] == "here"
    assert held(folder) == folder.entries


def test_auto_always_has_it_and_a_name_finds_it(inside: WeightsFolder, tmp_path: Path) -> None:
    name = inside.entries[0].name
    automatic = plan(resolved(tmp_path), folder=None, reach=NOWHERE)
    assert [entry.name for entry, _ in automatic.backbones].count(name) == 1
    assert any("No answer." in notice and "Graft itself" in notice for notice in automatic.notices)
    named = plan(resolved(tmp_path, backbones=name), folder=None, reach=NOWHERE)
    assert [entry.name for entry, _ in named.backbones] == [name]


def test_no_limit_keeps_it_out(inside: WeightsFolder, tmp_path: Path) -> None:
    settings = resolved(tmp_path, max_size=1000)
    assert inside.entries[0].bytes is not None and inside.entries[0].bytes > 4000
    assert plan(settings, folder=None, reach=NOWHERE).backbones == ((inside.entries[0], "comes with Graft"),)


def test_without_the_folder_nothing_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "EMBEDDED", tmp_path / "nothing")
    assert held(None) == () and weights.embedded() is None
    assert any(
        "nothing to transfer from" in notice
        for notice in plan(resolved(tmp_path), folder=None, reach=NOWHERE).notices
    )
