"""The cache keeps what was finished and nothing else."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest

from graft.errors import StoreError
from graft.store import MANIFEST, STALE_SECONDS, Store, content_key, write_atomically, write_facts


def test_what_is_put_can_be_got(tmp_path: Path) -> None:
    store = Store(tmp_path)
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    store.put("k" * 40, {"unit": "px"}, values=values)
    entry = store.get("k" * 40)
    assert entry is not None and entry.facts == {"unit": "px"}
    np.testing.assert_array_equal(entry.array("values"), values)


def test_an_entry_without_a_manifest_does_not_exist_and_is_replaced(tmp_path: Path) -> None:
    store = Store(tmp_path)
    leftover = tmp_path / "ab" / ("ab" + "0" * 38)
    leftover.mkdir(parents=True)
    (leftover / "values.npy").write_bytes(b"half")
    assert store.get(leftover.name) is None
    entry = store.put(leftover.name, values=np.ones(2))
    np.testing.assert_array_equal(entry.array("values"), np.ones(2))


def test_a_failed_block_leaves_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(ValueError, match="stop"), store.writing("c" * 40) as folder:
        write_facts(folder, {})
        raise ValueError("stop")
    assert store.get("c" * 40) is None
    assert not list(tmp_path.glob("tmp-*"))


def test_the_oldest_entries_go_when_the_limit_is_reached(tmp_path: Path) -> None:
    store = Store(tmp_path, limit_bytes=20_000)
    for index, key in enumerate(["a" * 40, "b" * 40, "c" * 40]):
        entry = store.put(key, values=np.zeros(1000))
        os.utime(entry.folder / MANIFEST, (time.time() - 100 + index,) * 2)
    store.tidy()
    assert store.get("a" * 40) is None
    assert store.get("b" * 40) is not None and store.get("c" * 40) is not None


def test_what_a_killed_process_left_is_swept_a_day_later(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with store.temporary() as place:
        (place / "0.npy").touch()
        store.tidy()
        assert place.parent == tmp_path and list(place.iterdir())
    assert not list(tmp_path.iterdir())
    killed = store.temporary()
    left = killed.__enter__()
    os.utime(left, (time.time() - 2 * STALE_SECONDS,) * 2)
    store.tidy()
    assert not left.exists()


def test_keys_tell_content_apart() -> None:
    assert content_key("a", 1) != content_key("a", "1")
    assert content_key(["a", "b"]) != content_key(["ab"])
    assert content_key({"x": 1, "y": 2}) == content_key({"y": 2, "x": 1})
    with pytest.raises(ValueError):
        content_key(float("nan"))


def test_a_full_or_forbidden_place_is_said_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="GRAFT_CACHE"):
        Store(tmp_path / "file" / "cache")


def test_writing_atomically_keeps_the_old_file_on_failure(tmp_path: Path) -> None:
    place = tmp_path / "x.json"
    write_atomically(place, "old")
    with pytest.raises(TypeError):
        write_atomically(place, 3)  # type: ignore[arg-type]
    assert place.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]
