"""Altered and cut indexes: refused by name, or opened with the very answers they were made with."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from hostile import counted
from made_indexes import embeddings, made_index

from graft.errors import BundleError
from graft.similar.search import open_index

ROWS = embeddings(60)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_index(tmp_path_factory.mktemp("hostile") / "index", ROWS)


def found(folder: Path) -> list[list[tuple[str, float]]]:
    return [[(one.name, one.similarity) for one in row] for row in open_index(folder).search(ROWS[:3], 5)]


def test_altered_bytes(whole: Path, tmp_path: Path) -> None:
    generator, right = np.random.default_rng(2), found(whole)
    with counted("indexes with altered bytes") as case:
        for file in sorted(file for file in whole.iterdir() if not file.name.startswith(".")):
            content = file.read_bytes()
            for _ in range(60):
                case()
                altered = bytearray(content)
                altered[int(generator.integers(len(content)))] ^= int(generator.integers(1, 256))
                shutil.copytree(whole, tmp_path / "i", dirs_exist_ok=True)
                (tmp_path / "i" / file.name).write_bytes(altered)
                try:
                    assert found(tmp_path / "i") == right
                except BundleError as error:
                    assert str(tmp_path) in str(error)


def test_cut_off(whole: Path, tmp_path: Path) -> None:
    with counted("indexes cut off") as case:
        for file in sorted(file for file in whole.iterdir() if not file.name.startswith(".")):
            content = file.read_bytes()
            for end in np.linspace(0, len(content.rstrip()) - 1, 40).astype(int):
                case()
                shutil.copytree(whole, tmp_path / "i", dirs_exist_ok=True)
                (tmp_path / "i" / file.name).write_bytes(content[:end])
                with pytest.raises(BundleError):
                    found(tmp_path / "i")
