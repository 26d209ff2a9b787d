"""`graft serve` as a process: ready quickly, without torch, and gone only when all it accepted is answered."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
from made_service import image_bytes, packed
from served import served

from graft.deploy.bundle import load
from graft.errors import SettingsError
from graft.serving import process, wire
from graft.serving.process import Service
from graft.serving.settings import Limits, resolved

IMAGE = image_bytes(3)
unix = pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGTERM to send to another process")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packed(tmp_path_factory.mktemp("process") / "tiny.graft")


def begun(port: int, body: bytes, *, sent: int) -> socket.socket:
    """A request of which `sent` bytes of the body are there."""
    connection = socket.create_connection(("127.0.0.1", port), timeout=30)
    head = f"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    connection.sendall(head.encode() + body[:sent])
    return connection


def text_of(url: str) -> str:
    with urllib.request.urlopen(url, timeout=30) as answer:
        return answer.read().decode()


def read_all(connection: socket.socket) -> bytes:
    parts = []
    while part := connection.recv(65536):
        parts.append(part)
    return b"".join(parts)


@unix
def test_it_is_ready_soon_and_finishes_what_it_accepted(folder: Path, tmp_path: Path) -> None:
    expected = load(folder).predict(IMAGE)
    with served(tmp_path, folder) as service:
        assert service.ready_seconds < 10
        with ThreadPoolExecutor(16) as clients:
            answers = list(clients.map(lambda _: service.get("/predict", IMAGE), range(64)))
        assert all(answer["predictions"][0]["label"] == expected.label for answer in answers)
        with begun(service.port, IMAGE, sent=100) as connection:
            time.sleep(0.3)
            service.process.send_signal(signal.SIGTERM)
            time.sleep(0.5)
            with pytest.raises(OSError):
                socket.create_connection(("127.0.0.1", service.port), timeout=5).close()
            connection.sendall(IMAGE[100:])
            answer = read_all(connection)
        assert answer.startswith(b"HTTP/1.1 200") and expected.label.encode() in answer
        assert service.process.wait(30) == 0
    lines = [json.loads(line) for line in service.log.read_text().splitlines()]
    requests = [line for line in lines if line["event"] == "request" and line["route"] == "/predict"]
    assert len(requests) == 65 and {line["status"] for line in requests} == {200}
    assert "ERROR" not in service.log.read_text() and "Traceback" not in service.log.read_text()


@unix
def test_ctrl_c_ends_it_without_a_trace(folder: Path, tmp_path: Path) -> None:
    with served(tmp_path, folder) as service:
        assert service.stop(signal.SIGINT) == 0
    assert "Traceback" not in service.log.read_text()


@unix
@pytest.mark.slow
def test_several_workers_answer_and_count_together(folder: Path, tmp_path: Path) -> None:
    with served(tmp_path, folder, "--workers", "2") as service:
        with ThreadPoolExecutor(8) as clients:
            answers = list(clients.map(lambda _: service.get("/predict", IMAGE), range(40)))
        assert len({json.dumps(answer) for answer in answers}) == 1
        # A worker counts a request once its answer is sent: the other one may be asked a moment before that.
        wanted, end = 'graft_requests_total{route="/predict",status="200"} 40.0', time.monotonic() + 10
        while wanted not in (text := text_of(service.url + "/metrics")):
            assert time.monotonic() < end, text
            time.sleep(0.05)
        assert service.stop() == 0
    assert "Traceback" not in service.log.read_text()
    workers = {
        json.loads(line)["process"] for line in service.log.read_text().splitlines() if "/predict" in line
    }
    assert len(workers) >= 1


def test_what_cannot_start_says_why(folder: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for arguments, sentence in (
            ([str(folder), "--port", port], f"Port {port} of 127.0.0.1 cannot be had"),
            ([str(tmp_path / "none.graft"), "--port", "0"], "is no bundle"),
            ([str(tmp_path / "none.graft"), "--port", "0", "--workers", "2"], "is no bundle"),
            ([str(folder), "--port", "70000"], "--port 70000"),
            ([str(folder), "--port", "0", "--workers", "2", "--index", str(tmp_path)], "is no index"),
        ):
            done = subprocess.run(
                [sys.executable, "-m", "graft.cli", "serve", *arguments],
                capture_output=True,
                text=True,
                timeout=60,
            )
            assert done.returncode == 2 and sentence in done.stderr and "Traceback" not in done.stderr


class _Supervisor:
    """A supervisor one of whose workers could not start."""

    def __init__(self, *_: object) -> None:
        self.processes = [SimpleNamespace(exitcode=0), SimpleNamespace(exitcode=3)]

    def run(self) -> None:
        """Returns as uvicorn's does."""


def test_a_worker_that_cannot_start_is_an_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "Multiprocess", _Supervisor)
    service = Service(resolved([folder], port=0, workers=2))
    with pytest.raises(SettingsError, match="A worker could not start"):
        service._run_workers()
    service._socket.close()


def test_a_header_that_does_not_end_is_given_up(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "HEADER_SECONDS", 0.3)
    service = Service(resolved([folder], port=0, limits=Limits(body_seconds=0.3)))
    server = process._server(service._app, service._settings)
    port = service._socket.getsockname()[1]
    with ThreadPoolExecutor(1) as thread:
        running = thread.submit(server.run, [service._socket])
        try:
            for beginning in (b"", b"GET /healthz HTTP/1.1\r\nX-A: "):
                with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
                    connection.sendall(beginning)
                    assert read_all(connection) == b""
            with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
                connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n")
                assert connection.recv(65536).startswith(b"HTTP/1.1 200")
                connection.sendall(b"GET /healthz HT")
                while part := connection.recv(65536):
                    assert b"HTTP/1.1" not in part
            with begun(port, IMAGE, sent=10) as connection:
                answer = read_all(connection)
                assert b"408" in answer.splitlines()[0] and b"connection: close" in answer.lower()
        finally:
            server.should_exit = True
        running.result(30)
