"""What was finished stays finished, whatever moment the process is killed at; only one process writes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from graft.errors import RunError
from graft.studies import journal
from graft.studies.journal import FILE, Journal, read

RECIPES = ("a" * 40, "b" * 40)


def rows(seed: int, count: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).dirichlet([1, 1], count).astype(np.float32)


def written(run: Path, folds: int = 3) -> bytes:
    """A journal with a begin and `folds` finished folds per recipe; returns the content of its file."""
    opened = Journal(run)
    opened.append("begin", {})
    for recipe in RECIPES:
        for fold in range(folds):
            opened.add_fold(recipe, fold, rows(fold), {"name": "größe/ä", "seconds": 0.5})
    opened.close()
    return (run / FILE).read_bytes()


def test_what_was_added_is_found_again(tmp_path: Path) -> None:
    written(tmp_path)
    opened = Journal(tmp_path)
    found = opened.fold(RECIPES[1], 2)
    assert found is not None and found[0]["name"] == "größe/ä"
    np.testing.assert_array_equal(found[1], rows(2))
    assert opened.fold(RECIPES[0], 3) is None and opened.fold("c" * 40, 0) is None
    assert opened.find("begin", {}) is not None and opened.find("fold", {"fold": 9}) is None
    assert [record["kind"] for record in opened.records] == ["begin"] + 6 * ["fold"]
    opened.close()


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_line_torn_at_any_byte_never_happened(tmp_path: Path, data: st.DataObject) -> None:
    place = tmp_path / "kept"
    content = (place / FILE).read_bytes() if place.exists() else written(place)
    end = data.draw(st.integers(0, len(content)))
    torn_at(place, content, end)


def test_the_last_line_torn_at_every_byte(tmp_path: Path) -> None:
    content = written(tmp_path, folds=1)
    for end in range(content[:-1].rfind(b"\n") + 1, len(content) + 1):
        torn_at(tmp_path, content, end)


def torn_at(run: Path, content: bytes, end: int) -> None:
    """With only `end` bytes on the disk, all whole lines are there, and the journal goes on behind them."""
    (run / FILE).write_bytes(content[:end])
    whole = content[:end].count(b"\n")
    assert len(read(run)) == whole
    opened = Journal(run)
    assert len(opened.records) == whole
    opened.append("more", {"n": 1})
    opened.close()
    lines = (run / FILE).read_bytes().splitlines()
    assert lines[:whole] == content.splitlines()[:whole] and len(lines) == whole + 1
    assert json.loads(lines[-1])["kind"] == "more"
    (run / FILE).write_bytes(content)


@pytest.mark.parametrize(
    "line",
    [b"", b"half", b"[]", b"{}", b'{"kind": "x"}', b'{"kind": 1, "at": 1}', b'{"kind": "x", "at": NaN}'],
)
def test_a_damaged_line_in_the_middle_is_said_and_nothing_is_touched(line: bytes, tmp_path: Path) -> None:
    content = written(tmp_path).splitlines()
    content[2] = line
    damaged = b"\n".join(content) + b"\n"
    (tmp_path / FILE).write_bytes(damaged)
    with pytest.raises(RunError, match=r"line 3, is damaged.*--overwrite"):
        Journal(tmp_path)
    assert (tmp_path / FILE).read_bytes() == damaged
    (tmp_path / FILE).write_bytes(b"")
    Journal(tmp_path).close()  # the failed attempt holds no lock


HOLDER = """
import sys, time
from pathlib import Path
from graft.studies.journal import Journal
opened = Journal(Path(sys.argv[1]))
opened.append("begin", {})
print("open", flush=True)
time.sleep(60)
"""


def test_only_one_process_writes_and_a_killed_one_lets_go(tmp_path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None and holder.stdout.readline().strip() == b"open"
        with pytest.raises(RunError, match=r"Another study is writing to .*--out"):
            Journal(tmp_path)
    finally:
        holder.kill()
        holder.communicate()
    opened = Journal(tmp_path)
    assert opened.find("begin", {}) is not None
    opened.close()


def test_the_array_is_there_before_its_line_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Journal(tmp_path)

    def killed(kind: str, facts: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(opened, "append", killed)
    with pytest.raises(KeyboardInterrupt):
        opened.add_fold(RECIPES[0], 0, rows(0), {})
    np.testing.assert_array_equal(np.load(opened._place(RECIPES[0], 0)), rows(0))
    assert read(tmp_path) == [] and opened.fold(RECIPES[0], 0) is None
    monkeypatch.undo()
    opened.add_fold(RECIPES[0], 0, rows(1), {})
    found = opened.fold(RECIPES[0], 0)
    assert found is not None
    np.testing.assert_array_equal(found[1], rows(1))
    opened.close()


@pytest.mark.parametrize("content", [None, b"", b"\x93NUMPY\x01\x00", b"text"])
def test_an_array_that_somebody_removed_or_damaged_is_measured_again(
    content: bytes | None, tmp_path: Path
) -> None:
    written(tmp_path)
    opened = Journal(tmp_path)
    place = opened._place(RECIPES[0], 1)
    place.unlink() if content is None else place.write_bytes(content)
    assert opened.fold(RECIPES[0], 1) is None
    opened.add_fold(RECIPES[0], 1, rows(9), {"seconds": 2.5})
    found = opened.fold(RECIPES[0], 1)
    assert found is not None and found[0]["seconds"] == 2.5
    opened.close()


def test_no_pickle_is_ever_loaded(tmp_path: Path) -> None:
    written(tmp_path)
    opened = Journal(tmp_path)
    np.save(opened._place(RECIPES[0], 0), np.array([{"a": 1}], dtype=object), allow_pickle=True)
    assert opened.fold(RECIPES[0], 0) is None
    opened.close()


def test_the_time_goes_on_from_session_to_session(tmp_path: Path) -> None:
    first = Journal(tmp_path)
    time.sleep(0.05)
    assert 0.04 <= first.elapsed_seconds() < 5
    first.append("begin", {})
    first.close()
    before = read(tmp_path)[-1]["at"]
    assert before >= 0.04  # records round to milliseconds
    second = Journal(tmp_path)
    assert before <= second.elapsed_seconds() < before + 5
    time.sleep(0.05)
    assert second.append("more", {})["at"] >= before + 0.04
    second.close()


def test_five_thousand_records_are_no_burden(tmp_path: Path) -> None:
    record = {"kind": "fold", "at": 1.0, "recipe": "r", "fold": 0, "name": "x" * 40, "seconds": 0.5}
    lines = [json.dumps({**record, "recipe": f"{i:040x}", "fold": i % 5}) for i in range(5_000)]
    (tmp_path / FILE).write_text("\n".join(lines) + "\n")
    begun = time.process_time()
    opened = Journal(tmp_path)
    assert all(opened.fold(f"{i:040x}", 4) is None for i in range(5_000))
    opened.close()
    assert time.process_time() - begun < 2


def test_names_that_are_no_unicode_and_numbers_that_are_none(tmp_path: Path) -> None:
    opened = Journal(tmp_path)
    opened.append("packed", {"command": os.fsdecode(b"graft study photos\xff"), "score": float("nan")})
    opened.close()
    (record,) = read(tmp_path)
    assert record["command"] == "graft study photos\udcff" and record["score"] is None


def test_a_place_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"cannot be written.*--out"):
        Journal(tmp_path / "file" / "run")


def test_a_run_without_a_journal_has_no_records(tmp_path: Path) -> None:
    assert read(tmp_path) == []
    assert journal.FILE == "journal.jsonl"
