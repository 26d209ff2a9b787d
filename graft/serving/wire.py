"""uvicorn's HTTP/1.1 with what it lacks: patience with an end, refusals that cost next to nothing, and in JSON.

In: bytes of a connection. Out: what uvicorn makes of them. A header that does not end within `HEADER_SECONDS` ends the
connection. While the service is full, a plain request with an image is answered 503 here, in about a tenth of the time
that the whole way to the application and back takes: ten times more requests than can be answered would otherwise leave
no time to answer any. Its body is skipped, and the connection goes on.

Not covered here: requests whose header comes in pieces or is written in an unusual way; they take the whole way.
"""

from __future__ import annotations

import asyncio
import re
from typing import Protocol, cast, runtime_checkable

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

HEADER_SECONDS = 10.0
_PLAIN = re.compile(
    rb"POST (/predict|/similar|/v2/models/[^/ ?]+(?:/versions/[^/ ?]+)?/infer)(?:\?[!-~]*)? HTTP/1\.1\r\n((?:[A-Za-z0-9-]+: ?[!-~][ -~]*\r\n)*)\r\n"
)
_LENGTH = re.compile(rb"^content-length: ?(\d{1,12})\r$", re.IGNORECASE | re.MULTILINE)
# With one of these, where the body ends or what is to be done first is another question.
_UNUSUAL = re.compile(rb"^(?:transfer-encoding|expect|upgrade|connection):", re.IGNORECASE | re.MULTILINE)
_ONCE = re.compile(rb"^(host|content-length):", re.IGNORECASE | re.MULTILINE)
_LONGEST_HEADER = 16_384


@runtime_checkable
class Full(Protocol):
    """What the application tells: in how many seconds there may be room again (None: there is), and it counts."""

    def busy_seconds(self, in_flight: int) -> int | None:
        """In how many seconds, with so many requests begun; None where there is room."""

    def turned_away(self, route: str) -> None:
        """Counts."""


class PatientProtocol(H11Protocol):
    """One connection."""

    _header_timer: asyncio.TimerHandle | None = None
    _to_skip = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """The first header may take its time from here."""
        super().connection_made(transport)
        self._wait_for_header()

    def data_received(self, data: bytes) -> None:
        """A complete header ends the wait, the beginning of the next one starts another."""
        data = self._refused(data)
        if not data:
            return
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._end_wait()
        elif self._header_timer is None:
            self._wait_for_header()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing to wait for."""
        self._end_wait()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """For what is no HTTP: `{"error": sentence}`, as all else is refused."""
        body = b'{"error":"This is no valid HTTP/1.1 request."}'
        headers = [
            ("content-type", "application/json"),
            ("content-length", str(len(body))),
            ("connection", "close"),
        ]
        said = (h11.Response(status_code=400, headers=headers), h11.Data(data=body), h11.EndOfMessage())
        for event in said:
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _refused(self, data: bytes) -> bytes:
        """Refuses the requests at the beginning of `data` as long as the service is full; what is left of it."""
        while data:
            if self._to_skip >= len(data):
                self._to_skip -= len(data)
                return b""
            data, self._to_skip = data[self._to_skip :], 0
            # Counts those, too, whose turn has not come: in a burst, all are here before the first is looked at.
            seconds = self._full().busy_seconds(len(self.tasks))
            found = plain_upload(data) if seconds is not None and self._is_between_requests() else None
            if seconds is None or found is None:
                break
            route, self._to_skip = found
            self._refuse(route, seconds)
        return data

    def _refuse(self, route: str, seconds: int) -> None:
        self._end_wait()
        self._unset_keepalive_if_required()
        self.transport.write(busy_answer(seconds))
        self._full().turned_away(route)
        # It runs from the refusal, not from the last byte: a body that drips in does not keep the connection.
        self.timeout_keep_alive_task = self.loop.call_later(
            self.timeout_keep_alive, self.timeout_keep_alive_handler
        )

    def _full(self) -> Full:
        return cast(Full, self.app)

    def _is_between_requests(self) -> bool:
        fresh = self.conn.their_state is h11.IDLE and self.conn.our_state is h11.IDLE
        return fresh and not self.conn.trailing_data[0] and not self.transport.is_closing()

    def _wait_for_header(self) -> None:
        self._header_timer = self.loop.call_later(HEADER_SECONDS, self.transport.close)

    def _end_wait(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None


def plain_upload(data: bytes) -> tuple[str, int] | None:
    """The route and the length with its body of a plain upload whose whole header `data` begins with.

    None for everything that could be read in two ways or refused as a whole: another method or version, bare line ends,
    folded lines, no length or two, a transfer encoding.
    """
    found = _PLAIN.match(data, 0, _LONGEST_HEADER)
    if found is None or _UNUSUAL.search(found[2]):
        return None
    length = _LENGTH.search(found[2])
    if length is None or sorted(name.lower() for name in _ONCE.findall(found[2])) != [
        b"content-length",
        b"host",
    ]:
        return None
    route = found[1].decode("latin-1")
    return ("/v2/models" if route.startswith("/v2") else route), found.end() + int(length[1])


def busy_answer(seconds: int) -> bytes:
    """The whole response of a service without room, as `refusals.Busy` says it."""
    body = b'{"error":"The service is busy; try again in %d s."}' % seconds
    head = (
        b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\ncontent-length: %d\r\n"
        b"retry-after: %d\r\nx-content-type-options: nosniff\r\nreferrer-policy: no-referrer\r\n"
        b"cache-control: no-store\r\n\r\n"
    )
    return head % (len(body), seconds) + body
