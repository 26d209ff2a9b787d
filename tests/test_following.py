"""Ctrl-C while a study is followed."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Generator
from pathlib import Path
from threading import Event as Flag
from typing import Any

import pytest

from graft.following import follow
from graft.studies.frame import Event


def interrupted(work: Any) -> Generator[Event, None, Any]:
    yield Event("stage", "begun")
    work()
    for _ in range(200):  # Ctrl-C comes again within these two seconds
        time.sleep(0.01)
        yield Event("progress", "working", 1, 2)
    return "done"


def test_inside_an_import_it_waits_for_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = "import signal\nsignal.raise_signal(signal.SIGINT)\nfinished = True\n"
    (tmp_path / "slow_extension.py").write_text(module)
    monkeypatch.syspath_prepend(tmp_path)

    def imports() -> None:
        import slow_extension  # type: ignore[import-not-found]

        assert slow_extension.finished

    with pytest.raises(KeyboardInterrupt):
        follow(interrupted(imports), to_stderr=True, halt=Flag())
    assert sys.modules["slow_extension"].finished


def test_before_there_is_an_answer_it_is_itself_at_once() -> None:
    with pytest.raises(KeyboardInterrupt):
        follow(interrupted(lambda: signal.raise_signal(signal.SIGINT)), to_stderr=True, halt=Flag())


@pytest.mark.parametrize("answer", [Event("board", "first", board=()), Event("result", "fold 1 of 5: 90 %")])
def test_once_there_is_an_answer_it_asks_for_it(answer: Event) -> None:
    halt = Flag()

    def work() -> Generator[Event, None, Any]:
        yield answer
        signal.raise_signal(signal.SIGINT)
        yield Event("progress", "working", 1, 2)
        return halt.is_set()

    assert follow(work(), to_stderr=True, halt=halt) is True
