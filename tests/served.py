"""`graft serve` as a process of its own."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass
class Served:
    """A running service: its address, and how long it took from the start of the process to its first answer."""

    process: subprocess.Popen[bytes]
    url: str
    ready_seconds: float
    log: Path

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def get(self, path: str, data: bytes | None = None) -> Any:
        request = urllib.request.Request(self.url + path, data=data)
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(60)


@contextmanager
def served(
    place: Path, *arguments: str | Path, command: Sequence[str] = (sys.executable, "-m", "graft.cli")
) -> Iterator[Served]:
    """The command with any free port; ended in any case."""
    begin, log = time.monotonic(), place / "serve.log"
    with log.open("wb") as errors:
        process = subprocess.Popen(
            [*command, "serve", *map(str, arguments), "--port", "0"],
            stdout=subprocess.PIPE,
            stderr=errors,
            env=dict(os.environ, PYTHONWARNINGS="error"),
        )
    try:
        assert process.stdout is not None
        found = re.search(rb"http://\S+", process.stdout.readline())
        assert found, log.read_text()
        service = Served(process, found[0].decode(), 0.0, log)
        while True:
            try:
                service.get("/readyz")
                break
            except (ConnectionError, urllib.error.URLError):
                assert time.monotonic() < begin + 60, log.read_text()
                time.sleep(0.02)
        service.ready_seconds = time.monotonic() - begin
        yield service
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        assert process.stdout is not None
        process.stdout.close()
