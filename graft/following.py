"""Live progress: a bar on a terminal, elsewhere a line now and then; and what Ctrl-C means.

In: the generators of the commands. Out: what they return. Nothing is decided here but when a line is worth printing.
"""

from __future__ import annotations

import _thread
import math
import signal
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager, nullcontext
from threading import Event as Flag
from types import FrameType
from typing import TYPE_CHECKING, TypeVar

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from graft.console import board, terminal

if TYPE_CHECKING:
    from graft.pretraining.publishing import Published
    from graft.pretraining.records import Epoch
    from graft.pretraining.records import Event as Happening
    from graft.studies.frame import Event
    from graft.studies.results import StudyResult

Returned = TypeVar("Returned")
AGAIN_SECONDS = 0.1
PLAIN_SECONDS = 5.0  # without a terminal, a line of progress at most so often


def follow(
    events: Generator[Event, None, StudyResult], *, to_stderr: bool, halt: Flag | None = None
) -> StudyResult:
    """Show a study's events as they come, and return its result.

    Once there is a result, the first Ctrl-C sets `halt`, so that the study ends with the answer so far; without
    `halt` it is itself.
    """
    console = terminal(to_stderr=to_stderr)
    answered = Flag()
    gentle = nullcontext() if halt is None else _gentle_interrupt(console, answered, halt)
    with _Live(console) as live, gentle:
        while True:
            try:
                event = next(events)
            except StopIteration as finished:
                return finished.value
            live.show(event)
            if event.kind in ("board", "result"):
                answered.set()


@contextmanager
def _gentle_interrupt(console: Console, answered: Flag, halt: Flag) -> Iterator[None]:
    """Ctrl-C sets `halt` where there is an answer, and is itself before that and the second time.

    Inside an import it waits for its end: raised there, it ended the process in the C++ of an extension (one time in 11).
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupted(_: int, where: FrameType | None) -> None:
        if _importing(where):
            again = threading.Timer(AGAIN_SECONDS, _thread.interrupt_main)
            again.daemon = True
            again.start()
            return
        if halt.is_set() or not answered.is_set():
            raise KeyboardInterrupt
        halt.set()
        console.print("  Ctrl-C: ending with the answer so far. Once more stops at once.", soft_wrap=True)

    before = signal.signal(signal.SIGINT, interrupted)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _importing(where: FrameType | None) -> bool:
    """Whether a module is being imported there."""
    while where is not None:
        if where.f_code.co_filename.startswith("<frozen importlib"):
            return True
        where = where.f_back
    return False


def count(steps: Iterator[tuple[int, int]], text: str, *, to_stderr: bool) -> None:
    """Show the progress of plain (done, total) steps."""
    from graft.studies.frame import Event

    with _Live(terminal(to_stderr=to_stderr)) as live:
        for done, total in steps:
            live.show(Event("progress", text, done, total))


def follow_steps(
    steps: Generator[tuple[str, int, int], None, Returned], *, to_stderr: bool = False
) -> Returned:
    """Show the progress of (what, done, total) steps, and return what they return."""
    with _Live(terminal(to_stderr=to_stderr)) as live:
        while True:
            try:
                text, done, total = next(steps)
            except StopIteration as finished:
                return finished.value
            live.bar(text, done, total, "")


def follow_pretraining(events: Generator[Happening, None, Published]) -> Published:
    """Show a training's progress, its remaining time and a line per epoch, and return what it published."""
    from graft.pretraining.records import Epoch, Progress

    console = terminal()
    with _Live(console, plain_seconds=60.0) as live:
        while True:
            try:
                event = next(events)
            except StopIteration as finished:
                return finished.value
            if isinstance(event, Progress):
                parts = (
                    event.detail,
                    f"{duration(event.remaining_seconds)} left" if event.remaining_seconds else "",
                )
                live.bar(event.text, event.done, event.total, ", ".join(filter(None, parts)))
            elif isinstance(event, Epoch):
                console.print(_epoch_line(event), soft_wrap=True)
            else:
                console.print(f"  {escape(event.text)}", soft_wrap=True)


def _epoch_line(epoch: Epoch) -> str:
    parts = [f"epoch {epoch.number}/{epoch.planned}", f"loss {epoch.train_loss:.4f}"]
    if epoch.held_loss is not None:
        parts.append(f"held out {epoch.held_loss:.4f}")
    if epoch.held_accuracy is not None:
        parts.append(f"right {100 * epoch.held_accuracy:.1f} %")
    parts += [
        f"lr {epoch.learning_rate:.2e}",
        f"{epoch.images_per_second:.0f} images/s",
        duration(epoch.seconds),
    ]
    return "  " + ", ".join(parts)


def duration(seconds: float) -> str:
    """`2 h 05 min`, `4 min 20 s`, `12 s`."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 60} min {whole % 60:02d} s" if whole >= 60 else f"{whole} s"


class _Live:
    """A progress bar on a terminal; elsewhere a line now and then."""

    def __init__(self, console: Console, *, plain_seconds: float = PLAIN_SECONDS) -> None:
        self.console = console
        self.plain_seconds = plain_seconds
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TextColumn("[dim]{task.fields[left]}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self.task: TaskID | None = None
        self.text = ""
        self.printed = 0.0

    def __enter__(self) -> _Live:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def show(self, event: Event) -> None:
        if event.kind == "progress":
            self._progress(event)
        elif event.kind == "board":
            self.console.print(board(event.board, title=event.text))
        elif event.kind == "stage":
            self.console.print(f"[bold]{escape(event.text)}[/bold]")
        else:
            self.console.print(f"  {escape(event.text)}", soft_wrap=True)

    def _progress(self, event: Event) -> None:
        limited = 0 < event.remaining_seconds < math.inf
        left = f"{event.remaining_seconds:.0f} s of the budget left" if limited else ""
        self.bar(event.text, event.done, event.total, left)

    def bar(self, text: str, done: int, total: int, left: str) -> None:
        """Show that `done` of `total` are done, and what is `left` in words."""
        if self.console.is_terminal:
            if self.task is not None and text != self.text:
                self.progress.remove_task(self.task)
                self.task = None
            if self.task is None:
                self.task = self.progress.add_task(escape(text), total=max(total, 1), left=left)
            self.progress.update(self.task, completed=done, total=max(total, 1), left=left)
        elif text != self.text or time.monotonic() - self.printed > self.plain_seconds:
            where = f" {done}/{total}" if total else ""
            self.console.print(f"  {escape(text)}{where}{f' ({left})' if left else ''}", soft_wrap=True)
            self.printed = time.monotonic()
        self.text = text
