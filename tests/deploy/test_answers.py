"""One answer per image, in order, whatever the files are."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path

import numpy as np
import pytest

from graft.deploy import answers as chapter
from graft.deploy.answers import answers
from graft.errors import BundleError, DatasetError
from graft.images.rows import Row


def files(folder: Path, count: int) -> list[Row]:
    for number in range(count):
        (folder / f"{number:03}.png").write_bytes(bytes([number]))
    return [Row(folder / f"{number:03}.png", None, None) for number in range(count)]


@pytest.mark.parametrize("threads", [1, 3])
def test_in_the_order_of_the_rows(tmp_path: Path, threads: int) -> None:
    rows = files(tmp_path, 40)
    found = list(answers(rows, lambda data, _: np.full(2, data[0], np.float32), threads=threads))
    assert [int(one.values[0]) for one in found if one.values is not None] == list(range(40))
    assert found[7].digest == hashlib.blake2b(bytes([7]), digest_size=20).hexdigest()


def test_what_fails_becomes_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [*files(tmp_path, 5), Row(tmp_path / "gone.png", None, None)]
    (tmp_path / "004.png").write_bytes(b"12345")
    monkeypatch.setattr(chapter, "MAX_BYTES", 4)

    def ask(data: bytes, digest: str) -> np.ndarray | None:
        if data[0] == 1:
            raise DatasetError("It is no image.")
        return None if data[0] == 2 else np.array([np.nan if data[0] == 3 else 1.0], np.float32)

    found = list(answers(rows, ask, threads=2))
    assert [one.values is not None for one in found] == [True, False, False, False, False, False]
    said = [one.reason for one in found]
    assert said[:4] == ["", "It is no image.", "", "The model's answer to this image is not a number."]
    assert "larger than 4 bytes" in said[4] and "does not exist" in said[5]
    assert found[1].digest and not found[4].digest


def test_a_broken_model_is_no_reason_but_an_error(tmp_path: Path) -> None:
    def ask(data: bytes, digest: str) -> np.ndarray:
        raise BundleError("The model is broken.")

    with pytest.raises(BundleError):
        list(answers(files(tmp_path, 3), ask, threads=2))


def test_only_few_images_are_in_memory_and_no_thread_stays(tmp_path: Path) -> None:
    asked: list[str] = []

    def ask(data: bytes, digest: str) -> np.ndarray:
        asked.append(digest)
        return np.zeros(1, np.float32)

    work = answers(files(tmp_path, 100), ask, threads=2)
    next(work)
    work.close()
    assert len(asked) <= 4 * 2 + 2
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("graft-answer")]
