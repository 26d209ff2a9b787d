"""Refusals on the wire: quick while the service is full, and never at odds with how HTTP is read otherwise."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import h11
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_service import image_bytes, packed

from graft.deploy.bundle import Bundle
from graft.serving import intake, process
from graft.serving.process import Service
from graft.serving.refusals import Busy, response
from graft.serving.settings import Limits, resolved
from graft.serving.wire import busy_answer, plain_upload

IMAGE = image_bytes(1)
lines = st.sampled_from(
    [
        *(
            b"Content-Length: 7",
            b"content-length:7",
            b"Content-Length: 07",
            b"Content-Length: +7",
            b"Content-Length: 7, 7",
        ),
        *(
            b"Content-Length : 7",
            b" Content-Length: 7",
            b"Content-Length:\t7",
            b"Content-Length: 7 ",
            b"X-Content-Length: 9",
        ),
        *(
            b"Transfer-Encoding: chunked",
            b"transfer-encoding:identity",
            b"Expect: 100-continue",
            b"Host: a",
            b"Host:",
        ),
        *(
            b"Connection: close",
            b"Connection: Upgrade",
            b"Upgrade: h2c",
            b"X: a\nContent-Length: 9",
            b"X: a\rb",
            b"X: \x00",
        ),
        *(b"\tfolded", b"Content-Type: image/png", b"X-API-Key: k", b""),
    ]
)
firsts = st.sampled_from(
    [
        *(b"POST /predict HTTP/1.1", b"POST /predict?topk=2 HTTP/1.1", b"POST /v2/models/a/infer HTTP/1.1"),
        *(
            b"POST /similar HTTP/1.0",
            b"GET /predict HTTP/1.1",
            b"POST  /predict HTTP/1.1",
            b"POST /predict/ HTTP/1.1",
        ),
        *(b"POST /predict?a b HTTP/1.1", b"POST /v2/models/a/../infer HTTP/1.1", b"post /predict HTTP/1.1"),
    ]
)


@settings(max_examples=500, deadline=None)
@given(first=firsts, given_lines=st.lists(lines, max_size=5), body=st.binary(min_size=7, max_size=20))
def test_a_refused_request_ends_where_http_says(first: bytes, given_lines: list[bytes], body: bytes) -> None:
    """Else, what follows it could be read as another request than a proxy in front takes it for."""
    data = b"\r\n".join([first, *given_lines, b"Host: b", b"", b""]) + body
    found = plain_upload(data)
    if found is None:
        return
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(data[: found[1]])
    request = connection.next_event()
    assert isinstance(request, h11.Request) and request.method == b"POST"
    while not isinstance(event := connection.next_event(), h11.EndOfMessage):
        assert isinstance(event, h11.Data), event
    assert connection.trailing_data[0] == b""


def test_plain_uploads_are_seen() -> None:
    head = b"POST /predict?topk=1 HTTP/1.1\r\nHost: a\r\nContent-Length: 12\r\n\r\n"
    assert plain_upload(head + b"begin") == ("/predict", len(head) + 12)
    assert plain_upload(head[:-2]) is None
    for path in (b"/v2/models/a/infer", b"/v2/models/a/versions/1/infer"):
        infer = head.replace(b"/predict?topk=1", path)
        assert plain_upload(infer) == ("/v2/models", len(infer) + 12)


def test_it_says_what_the_application_says() -> None:
    sent, said = busy_answer(3).split(b"\r\n\r\n"), response(Busy(3))
    assert sent[1] == said.body and b"retry-after: 3" in sent[0]
    assert f"content-length: {len(sent[1])}".encode() in sent[0] and sent[0].startswith(b"HTTP/1.1 503 ")


@contextmanager
def running(folder: Path, limits: Limits) -> Iterator[int]:
    """A service on a thread; its port."""
    service = Service(resolved([folder], port=0, limits=limits))
    server = process._server(service._app, service._settings)
    with ThreadPoolExecutor(1) as thread:
        done = thread.submit(server.run, [service._socket])
        try:
            yield service._socket.getsockname()[1]
        finally:
            server.should_exit = True
        done.result(60)


def asked(data: bytes, path: str = "/predict") -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: {len(data)}\r\n\r\n"
    return head.encode() + data


def answer_of(connection: socket.socket, held: bytearray) -> tuple[int, dict[str, object]]:
    """The next answer on a connection; `held` keeps what came beyond it."""
    while b"\r\n\r\n" not in held:
        held += (part := connection.recv(65536))
        assert part, "the connection was closed"
    head, _, rest = bytes(held).partition(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
    while len(rest) < length:
        rest += (part := connection.recv(65536))
        assert part
    held[:] = rest[length:]
    return int(head.split()[1]), json.loads(rest[:length])


def test_what_is_no_http_is_refused_in_json(tmp_path: Path) -> None:
    with running(packed(tmp_path / "tiny.graft"), Limits()) as port:
        for beginning in (
            b"nonsense\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost : a\r\n\r\n",
            b"GET / HTTP/1.1\r\n\r\n",
        ):
            with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
                connection.sendall(beginning)
                status, said = answer_of(connection, held := bytearray())
                assert (status, said) == (400, {"error": "This is no valid HTTP/1.1 request."})
                assert not held and connection.recv(10) == b""


def test_dripping_uploads_make_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the wire, too, where a full service is refused before the application hears of it."""
    monkeypatch.setattr(intake, "UNDISTURBED_SECONDS", 0.3)
    head = b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\nx"
    with running(packed(tmp_path / "tiny.graft"), Limits(requests=3)) as port:
        drips = [socket.create_connection(("127.0.0.1", port), timeout=60) for _ in range(3)]
        try:
            for drip in drips:
                drip.sendall(head)
            time.sleep(0.6)
            with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
                connection.sendall(asked(IMAGE))
                assert answer_of(connection, bytearray())[0] == 200
        finally:
            for drip in drips:
                drip.close()


def test_a_full_service_refuses_at_once_and_the_connection_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go, real, begun = threading.Event(), Bundle.answer_pixels, threading.Semaphore(0)

    def slow(self: Bundle, pixels: np.ndarray) -> object:
        begun.release()
        assert go.wait(60)
        return real(self, pixels)

    folder = packed(tmp_path / "tiny.graft")
    with running(folder, Limits(files=1, queue=1)) as port:
        monkeypatch.setattr(Bundle, "answer_pixels", slow)
        first = socket.create_connection(("127.0.0.1", port), timeout=60)
        second = socket.create_connection(("127.0.0.1", port), timeout=60)
        with first, second:
            first.sendall(asked(IMAGE))
            assert begun.acquire(timeout=60)
            held = bytearray()
            # Several in one piece, one whose body comes later, and other questions in between.
            second.sendall(asked(IMAGE) * 3 + asked(IMAGE)[:-5])
            assert [answer_of(second, held)[0] for _ in range(4)] == [503] * 4
            second.sendall(IMAGE[-5:] + b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n")
            assert answer_of(second, held) == (200, {"live": True})
            second.sendall(asked(IMAGE, "/similar"))
            assert answer_of(second, held)[0] == 503
            go.set()
            assert answer_of(first, bytearray())[0] == 200
            second.sendall(asked(IMAGE))
            assert answer_of(second, held)[0] == 200
            second.sendall(b"GET /metrics HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            while part := second.recv(65536):
                held += part
    assert b" 200 OK" in held
