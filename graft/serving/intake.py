"""Around every request: whether it may come in, how its body is counted, and what is noted of it.

In: an ASGI application. Out: the same behind a door. A request over the limits is refused before its body is read, and
a body that is longer than its header says, or that never ends, is refused when it is. Each request leaves one line in
the log and one count in the meters, neither with anything of the image or of its name.

Where too many requests are in flight, the slowest upload makes room for the next one. Slow clients are told from others
by their bytes alone: behind a proxy, all have one address.

Where an answer comes before the body is complete, the rest of the body is thrown away for at most a second, so that a
client that is still sending lives to read the answer, and then the connection is closed.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence

import anyio
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from graft.serving.meters import Meters
from graft.serving.refusals import Busy, Refusal, response
from graft.serving.settings import MIB, Limits

OPEN_TO_ALL = frozenset(
    {"/", "/docs", "/openapi.json", "/healthz", "/readyz", "/v2/health/live", "/v2/health/ready"}
)
_COUNTED = frozenset({*OPEN_TO_ALL, "/bundle", "/metrics", "/predict", "/similar", "/v2"})
_FAMILIES = ("/v2/models", "/similar/thumbnail", "/samples")
# An upload that takes longer may have to make room. Over a slow line (1 Mbit/s), a photo of 250 kB takes two seconds.
UNDISTURBED_SECONDS = 2.0
_DRAIN_SECONDS = 1.0
_DRAIN_BYTES = 16 * MIB
_HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}
_log = logging.getLogger("graft.serving")


class Door:
    """The outermost ASGI application; `keys` empty lets everybody in."""

    def __init__(
        self,
        inside: ASGIApp,
        *,
        keys: Sequence[str],
        limits: Limits,
        meters: Meters,
        full: Callable[[], int | None] = lambda: None,
    ) -> None:
        """`full`: the seconds until there may be room again, or None while there is."""
        self._inside, self._limits, self._meters, self._full = inside, limits, meters, full
        self._keys = [hashlib.sha256(key.encode()).digest() for key in keys]
        self._visits: set[_Visit] = set()
        self._away: Counter[str] = Counter()
        self.memory = Memory(limits.memory_bytes)

    def busy_seconds(self, in_flight: int) -> int | None:
        """In how many seconds a request with images may find room, with so many begun; None where it may come in."""
        if in_flight >= self._limits.requests and self._slowest() is None:
            return 1
        return self._full()

    def turned_away(self, route: str) -> None:
        """A request was refused before it became one; those of a second are counted and logged together."""
        if not self._away:
            asyncio.get_running_loop().call_later(1.0, self._note_turned_away)
        self._away[route] += 1

    def _note_turned_away(self) -> None:
        for route, count in self._away.items():
            self._meters.turned_away(route, count)
            _log.info("turned away", extra={"facts": {"route": route, "status": 503, "requests": count}})
        self._away.clear()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request."""
        if scope["type"] != "http":
            await self._inside(scope, receive, send)
            return
        scope["graft.visit"] = visit = _Visit(scope, receive, send, _Held(self.memory))
        self._visits.add(visit)
        try:
            refusal = self._refusal(Headers(scope=scope), scope)
            await (response(refusal) if refusal else self._inside)(scope, visit.receive, visit.send)
        finally:
            self._visits.discard(visit)
            visit.held.free()
            self._note(scope, visit)

    def _refusal(self, headers: Headers, scope: Scope) -> Refusal | None:
        if self._keys and scope["path"] not in OPEN_TO_ALL and not self._knows(headers):
            return Refusal(
                401,
                "This service needs an API key, in the header X-API-Key or as Authorization: Bearer.",
                {"WWW-Authenticate": "Bearer"},
            )
        length = headers.get("content-length", "0")
        if length.isascii() and length.isdigit() and int(length) > self._limits.request_bytes:
            return too_long(self._limits)
        costs = scope["method"] == "POST" or scope["path"].startswith(_FAMILIES)
        if costs and len(self._visits) > self._limits.requests:
            slowest = self._slowest()
            if slowest is None:
                return Busy(1)
            slowest.make_room()
        return None

    def _slowest(self) -> _Visit | None:
        """Of the uploads that have had their time to come and are not complete, the one of fewest bytes a second."""
        now = time.monotonic()
        latest = now - UNDISTURBED_SECONDS
        slow = [visit for visit in self._visits if visit.patience is not None and visit.begin < latest]
        return min(slow, key=lambda visit: visit.received / (now - visit.begin), default=None)

    def _knows(self, headers: Headers) -> bool:
        """Compares digests of all keys in constant time."""
        scheme, _, token = headers.get("authorization", "").partition(" ")
        given = headers.get("x-api-key") or (token.strip() if scheme.lower() == "bearer" else "")
        digest = hashlib.sha256(given.encode("latin-1")).digest()
        return any([hmac.compare_digest(digest, key) for key in self._keys])  # noqa: C419 (no early end)

    def _note(self, scope: Scope, visit: _Visit) -> None:
        path = scope["path"]
        known = path in _COUNTED
        route = (
            path if known else next((front for front in _FAMILIES if path.startswith(front + "/")), "other")
        )
        seconds = time.monotonic() - visit.begin
        self._meters.answered(route, status=visit.status, seconds=seconds)
        self._meters.refresh()
        facts = {"method": scope["method"], "route": route, "status": visit.status}
        facts |= {"seconds": round(seconds, 4), "bytes": visit.received}
        facts |= {"client": (scope.get("client") or [""])[0]}
        _log.info("request", extra={"facts": facts})


class Memory:
    """Bytes of bodies that may be held at the same time."""

    def __init__(self, most: int) -> None:
        self.most, self.held = most, 0


class _Held:
    """What one request holds of the memory."""

    def __init__(self, memory: Memory) -> None:
        self._memory, self._bytes = memory, 0

    def take(self, count: int) -> None:
        """Hold `count` more bytes. Raises Busy where the service holds too much already."""
        if self._memory.held + count > self._memory.most:
            raise Busy(1)
        self._memory.held += count
        self._bytes += count

    def free(self) -> None:
        """Give all back."""
        self._memory.held -= self._bytes
        self._bytes = 0


class _Visit:
    """One request's two channels, watched; and what it holds of the memory.

    `patience`: what ends the wait for its body, while somebody waits for it.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send, held: _Held) -> None:
        self.held, self.is_outpaced = held, False
        self.patience: anyio.CancelScope | None = None
        self._receive, self._send = receive, send
        headers = Headers(scope=scope)
        self._complete = "content-length" not in headers and "transfer-encoding" not in headers
        self._asks_first = "100-continue" in headers.get("expect", "")
        self.begin, self.status, self.received = time.monotonic(), 0, 0

    def make_room(self) -> None:
        """Wait no longer for the body."""
        assert self.patience is not None
        self.patience.deadline, self.patience = anyio.current_time(), None
        self.is_outpaced = True

    async def receive(self) -> Message:
        message = await self._receive()
        self.received += len(message.get("body", b""))
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            self._complete = True
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            # The pages' headers are shared between requests.
            message = {**message, "headers": list(message["headers"])}
            headers = MutableHeaders(scope=message)
            for name, value in _HEADERS.items():
                headers.setdefault(name, value)
            if not self._complete:
                if self.status != 408:  # there, enough was waited
                    await self._drain()
                if not self._complete:
                    headers["connection"] = "close"
        await self._send(message)

    async def _drain(self) -> None:
        if self._asks_first and not self.received:
            return
        most = self.received + _DRAIN_BYTES
        with anyio.move_on_after(_DRAIN_SECONDS):
            while not self._complete and self.received < most:
                await self.receive()


def too_long(limits: Limits) -> Refusal:
    """The refusal of a body over the limit."""
    return Refusal(413, f"The request is larger than the {limits.request_bytes:,} bytes that are taken.")


async def pour(request: Request, limits: Limits, take: Callable[[bytes], object]) -> None:
    """Hand the body's bytes to `take` as they come, counted.

    Raises Refusal: 408 where it is not complete in time, 413 for too many bytes, 415 for a compressed body; and Busy
    where too much is held in memory already.
    """
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise Refusal(415, "Compressed bodies are not taken; send the image as it is.")
    count, visit = 0, request.scope["graft.visit"]
    try:
        with anyio.fail_after(limits.body_seconds) as visit.patience:
            async for chunk in request.stream():
                count += len(chunk)
                if count > limits.request_bytes:
                    raise too_long(limits)
                visit.held.take(len(chunk))
                take(chunk)
    except TimeoutError:
        why = (
            "came too slowly while others were waiting"
            if visit.is_outpaced
            else f"was not complete within {limits.body_seconds:g} s"
        )
        raise Refusal(408, f"The request {why}; send it again.") from None
    finally:
        visit.patience = None
