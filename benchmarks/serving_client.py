"""Clients of the service, as cheap as they can be: one process, plain sockets, requests prepared before the clock starts.

    python benchmarks/serving_client.py PORT FOLDER --clients 64 --seconds 60        each asks again when it is answered
    python benchmarks/serving_client.py PORT FOLDER --clients 64 --requests 20000
    python benchmarks/serving_client.py PORT FOLDER --rate 3000 --seconds 10         so many a second, answered or not

Prints one JSON object: answers by status, seconds to each as percentiles, how many were wrong, and the processor seconds
of this program, which shares the machine with what it measures. An answer is right where its label is the one in
`expected.json` (file name to label) of the folder.
"""

from __future__ import annotations

import argparse
import json
import resource
import selectors
import socket
import statistics
import time
from collections import Counter, defaultdict, deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

AT_MOST = 1000  # connections of the open loop; a request that finds none free is not sent, and counted


@dataclass(slots=True)
class Connection:
    """One connection with at most one request on its way."""

    socket: socket.socket
    unsent: memoryview = field(default_factory=lambda: memoryview(b""))
    received: bytearray = field(default_factory=bytearray)
    begun: float = 0.0
    label: bytes = b""


@dataclass(slots=True)
class Tally:
    """What came back."""

    seconds: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))
    without_retry_after: int = 0
    wrong: int = 0
    lost: int = 0
    not_sent: int = 0


class Clients:
    """Connections to a service, and the requests that they send in turn."""

    def __init__(self, port: int, requests: list[tuple[bytes, bytes]]) -> None:
        self._port, self._requests, self._next = port, requests, 0
        self._selector = selectors.DefaultSelector()
        self.free: deque[Connection] = deque()
        self.open = self.busy = 0
        self.tally = Tally()

    def connect(self) -> None:
        """One more connection."""
        made = socket.create_connection(("127.0.0.1", self._port), timeout=30)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        made.setblocking(False)
        self.free.append(Connection(made))
        self.open += 1

    def send(self) -> None:
        """The next request, on a free connection."""
        connection = self.free.popleft()
        request, connection.label = self._requests[self._next]
        self._next = (self._next + 1) % len(self._requests)
        connection.begun, connection.unsent = time.perf_counter(), memoryview(request)
        self.busy += 1
        self._selector.register(connection.socket, selectors.EVENT_READ, connection)
        self._write(connection)

    def turn(self, seconds: float) -> int:
        """Reads and writes what is ready within `seconds`; the number of answers."""
        answers = 0
        for key, mask in self._selector.select(seconds):
            if mask & selectors.EVENT_WRITE:
                self._write(key.data)
            if mask & selectors.EVENT_READ:
                answers += self._read(key.data)
        return answers

    def close(self) -> None:
        """Ends the connections."""
        for connection in self.free:
            connection.socket.close()
        for key in list(self._selector.get_map().values()):
            key.data.socket.close()
        self._selector.close()

    def _write(self, connection: Connection) -> None:
        try:
            sent = connection.socket.send(connection.unsent)
        except BlockingIOError:
            sent = 0
        except OSError:
            connection.unsent = memoryview(b"")  # refused early; the answer is still to be read
            self._selector.modify(connection.socket, selectors.EVENT_READ, connection)
            return
        connection.unsent = connection.unsent[sent:]
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if connection.unsent else 0)
        if self._selector.get_key(connection.socket).events != events:
            self._selector.modify(connection.socket, events, connection)

    def _read(self, connection: Connection) -> int:
        try:
            part = connection.socket.recv(65536)
        except BlockingIOError:
            return 0
        except OSError:
            part = b""
        if not part:
            self.tally.lost += 1
            self._drop(connection)
            return 1
        connection.received += part
        end = connection.received.find(b"\r\n\r\n")
        if end < 0:
            return 0
        head = bytes(connection.received[:end]).lower()
        length = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
        if len(connection.received) < end + 4 + length:
            return 0
        self._count(connection, head, bytes(connection.received[end + 4 :]))
        connection.received.clear()
        if b"connection: close" in head or connection.unsent:
            self._drop(connection)
        else:
            self._selector.unregister(connection.socket)
            self.free.append(connection)
            self.busy -= 1
        return 1

    def _count(self, connection: Connection, head: bytes, body: bytes) -> None:
        status = int(head[9:12])
        self.tally.seconds[status].append(time.perf_counter() - connection.begun)
        if status == 200 and connection.label not in body:
            self.tally.wrong += 1
        if status == 503 and b"retry-after: " not in head:
            self.tally.without_retry_after += 1

    def _drop(self, connection: Connection) -> None:
        self._selector.unregister(connection.socket)
        connection.socket.close()
        self.open -= 1
        self.busy -= 1


def again_and_again(clients: Clients, count: int, *, seconds: float, requests: int) -> float:
    """`count` clients, each of which asks again when it is answered; the seconds that it took."""
    for _ in range(count):
        clients.connect()
    begun, answers = time.perf_counter(), 0
    while time.perf_counter() - begun < seconds and answers < requests:
        while clients.open < count:
            clients.connect()
        while clients.free:
            clients.send()
        answers += clients.turn(1.0)
    taken = time.perf_counter() - begun
    while clients.busy and time.perf_counter() - begun < taken + 30:
        clients.turn(1.0)
    return taken


def steadily(clients: Clients, rate: float, *, seconds: float) -> float:
    """`rate` requests a second, whether or not the earlier ones are answered; the seconds that it took."""
    for _ in range(AT_MOST):
        clients.connect()
    begun, sent = time.perf_counter(), 0
    while (now := time.perf_counter() - begun) < seconds:
        due = int(now * rate)
        while sent < due:
            sent += 1
            if not clients.free and clients.open < AT_MOST:
                clients.connect()
            if clients.free:
                clients.send()
            else:
                clients.tally.not_sent += 1
        clients.turn(0.0005)
    taken = time.perf_counter() - begun
    while clients.busy and time.perf_counter() - begun < taken + 60:
        clients.turn(1.0)
    return taken


def percentiles(seconds: list[float]) -> dict[str, float]:
    """Count, median, p95, p99 and the longest, in milliseconds."""
    ordered = sorted(seconds)
    at = {f"p{part}_ms": ordered[min(len(ordered) - 1, len(ordered) * part // 100)] for part in (50, 95, 99)}
    shown = {name: round(1000 * value, 2) for name, value in {**at, "longest_ms": ordered[-1]}.items()}
    return {"answers": len(ordered), **shown, "mean_ms": round(1000 * statistics.fmean(ordered), 2)}


def requests_of(folder: Path, port: int) -> list[tuple[bytes, bytes]]:
    """Each file of the folder as a whole request, with the beginning of the right answer."""
    expected: dict[str, str] = json.loads((folder / "expected.json").read_text(encoding="utf-8"))
    made = []
    for name, label in expected.items():
        data = (folder / name).read_bytes()
        head = f"POST /predict HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: image/jpeg\r\n"
        head += f"Content-Length: {len(data)}\r\n\r\n"
        made.append((head.encode() + data, f'"label":{json.dumps(label)}'.encode()))
    return made


def main() -> None:
    """One run."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("port", type=int)
    options.add_argument("folder", type=Path)
    options.add_argument("--clients", type=int, default=64)
    options.add_argument("--seconds", type=float, default=1e9)
    options.add_argument("--requests", type=int, default=10**9)
    options.add_argument("--rate", type=float, default=0.0)
    given = options.parse_args()
    clients = Clients(given.port, requests_of(given.folder, given.port))
    before = resource.getrusage(resource.RUSAGE_SELF)
    if given.rate:
        seconds = steadily(clients, given.rate, seconds=given.seconds)
    else:
        seconds = again_and_again(clients, given.clients, seconds=given.seconds, requests=given.requests)
    after = resource.getrusage(resource.RUSAGE_SELF)
    clients.close()
    tally = clients.tally
    said: dict[str, Any] = {
        "seconds": round(seconds, 2),
        "answered_per_second": round(len(tally.seconds[200]) / seconds, 1),
        "statuses": dict(
            Counter({str(status): len(times) for status, times in tally.seconds.items() if times})
        ),
        "by_status": {str(status): percentiles(times) for status, times in tally.seconds.items() if times},
        "wrong_labels": tally.wrong,
        "lost_connections": tally.lost,
        "unanswered": clients.busy,
        "not_sent": tally.not_sent,
        "refused_without_retry_after": tally.without_retry_after,
        "client_processor_seconds": round(
            after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 2
        ),
    }
    print(json.dumps(said))


if __name__ == "__main__":
    main()
