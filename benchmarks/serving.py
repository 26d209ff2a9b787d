"""Does the service hold under load: throughput against the bundle itself, memory over many requests, ten times too much?

    python benchmarks/serving.py [--seconds 60] [--requests 20000] [--bundle model.graft]

A bundle is made from hymenoptera photos (mobilenetv1_050, frozen). Then, from the photos' bytes to the answer:

- in process: `Bundle.predict` of lists of 32, in a process of its own, before and after the service is measured; and the
  same with a thread per processor, each with its own lists, which is what a program without a service could reach;
- 64 clients (`serving_client.py`: one process, plain sockets, prepared requests), each of which asks again when it is
  answered, for so many seconds and until so many requests; the service's memory meanwhile;
- ten times as many requests a second as were answered, for 15 s, whether the earlier ones are answered or not; and what
  the service still answers in the second after.

The clients share the machine with the service; their processor time is told. Linux (memory is read from /proc).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from measuring import HERE, Target, beginning, graft, keep, need, parser, run, say, workplace

from graft.compute import cpu_threads
from graft.deploy.bundle import load

PHOTOS = 200
CLIENTS = 64
TOO_MUCH = 10
OVERLOAD_SECONDS = 15.0
IN_PROCESS_SECONDS = 10.0
LIST = 32
IN_PROCESS = """
import json, sys, time
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle
from pathlib import Path
from graft.deploy.bundle import load
folder, bundle, seconds, threads = Path(sys.argv[2]), sys.argv[1], float(sys.argv[3]), int(sys.argv[4])
opened = load(bundle, threads=1 if threads > 1 else 0)
names = cycle(json.loads((folder / "expected.json").read_text()))
data = {name: (folder / name).read_bytes() for name in json.loads((folder / "expected.json").read_text())}
opened.predict(list(data.values())[:LIST])
begun, count = time.perf_counter(), 0
with ThreadPoolExecutor(threads) as pool:
    while time.perf_counter() - begun < seconds:
        rounds = [[data[next(names)] for _ in range(LIST)] for _ in range(threads)]
        count += sum(len(answer) for answer in pool.map(opened.predict, rounds))
print(json.dumps({"images_per_second": count / (time.perf_counter() - begun), "processor_ms_per_image":
    1000 * time.process_time() / count}))
""".replace("LIST", str(LIST))


class Memory:
    """The resident memory of a process, looked at every half second by a thread."""

    def __init__(self, process: int) -> None:
        self._file, self._end = Path(f"/proc/{process}/status"), threading.Event()
        self.megabytes: list[float] = []
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> list[float]:
        """What was seen."""
        self._end.set()
        self._thread.join()
        return self.megabytes

    def _watch(self) -> None:
        while not self._end.wait(0.5):
            lines = self._file.read_text().splitlines()
            resident = next(line for line in lines if line.startswith("VmRSS"))
            self.megabytes.append(int(resident.split()[1]) / 1000)


@contextmanager
def service(bundle: Path, place: Path) -> Iterator[tuple[int, int]]:
    """A running service: its process and port."""
    with (place / "serve.log").open("wb") as log:
        process = subprocess.Popen(
            [*map(str, graft("serve", bundle, "--port", "0"))], stdout=subprocess.PIPE, stderr=log, text=True
        )
    try:
        assert process.stdout is not None
        url = process.stdout.readline().split()[2]
        time.sleep(1.0)
        yield process.pid, int(url.rpartition(":")[2])
    finally:
        process.terminate()
        process.wait(120)


def processor_seconds(process: int) -> float:
    """Of a process and its threads so far."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def client(port: int, photos: Path, *arguments: object) -> dict[str, Any]:
    """One run of the clients."""
    program = HERE / "serving_client.py"
    done = run([sys.executable, program, str(port), photos, *map(str, arguments)])
    answer: dict[str, Any] = json.loads(done.lines[-1][1])
    return answer


def in_process(bundle: Path, photos: Path, *, threads: int) -> dict[str, float]:
    """Images per second without a service."""
    done = run([sys.executable, "-c", IN_PROCESS, bundle, photos, str(IN_PROCESS_SECONDS), str(threads)])
    return {name: round(value, 2) for name, value in json.loads(done.lines[-1][1]).items()}


def prepared(bundle: Path, source: Path, place: Path) -> Path:
    """Photos with the answers that the bundle gives."""
    folder = place / "photos"
    folder.mkdir()
    found = sorted(source.rglob("*.jpg"))
    chosen = found[:: max(1, len(found) // PHOTOS)][:PHOTOS]
    opened, expected = load(bundle), {}
    for number, photo in enumerate(chosen):
        (folder / f"{number}.jpg").write_bytes(photo.read_bytes())
        expected[f"{number}.jpg"] = opened.predict(photo).label
    (folder / "expected.json").write_text(json.dumps(expected))
    return folder


def under_load(bundle: Path, photos: Path, place: Path, *, seconds: float, requests: int) -> dict[str, Any]:
    """64 clients for so many seconds, and on until so many requests; with the memory."""
    with service(bundle, place) as (process, port):
        memory, before = Memory(process), processor_seconds(process)
        first = client(port, photos, "--clients", CLIENTS, "--seconds", seconds)
        used = processor_seconds(process) - before
        rest = max(0, requests - first["by_status"]["200"]["answers"])
        second = client(port, photos, "--clients", CLIENTS, "--requests", rest) if rest else None
        seen = memory.stop()
    tenth = max(1, len(seen) // 10)
    answers = first["by_status"]["200"]["answers"]
    return {
        "first": first,
        "rest": second,
        "service_processor_ms_per_answer": round(1000 * used / answers, 2),
        "client_processor_ms_per_answer": round(1000 * first["client_processor_seconds"] / answers, 3),
        "client_share_of_processor": round(
            first["client_processor_seconds"] / (used + first["client_processor_seconds"]), 3
        ),
        "memory_mb": {
            "second_tenth_highest": max(seen[tenth : 2 * tenth]),
            "last_tenth_highest": max(seen[-tenth:]),
            "highest": max(seen),
        },
        "requests": answers + (second["by_status"]["200"]["answers"] if second else 0),
    }


def overloaded(bundle: Path, photos: Path, place: Path, *, rate: float) -> dict[str, Any]:
    """`rate` requests a second, and what one client finds a second later."""
    with service(bundle, place) as (process, port):
        memory = Memory(process)
        said = client(port, photos, "--rate", rate, "--seconds", OVERLOAD_SECONDS)
        seen = memory.stop()
        time.sleep(1.0)
        after = client(port, photos, "--clients", 1, "--requests", 50)
    return {"offered_per_second": round(rate, 1), **said, "memory_mb_highest": max(seen), "afterwards": after}


def failures(said: dict[str, Any], *, allowed: tuple[str, ...]) -> int:
    """Everything but the allowed statuses with right answers."""
    others = sum(count for status, count in said["statuses"].items() if status not in allowed)
    return int(
        others
        + said["wrong_labels"]
        + said["lost_connections"]
        + said["unanswered"]
        + said["refused_without_retry_after"]
    )


def main() -> None:
    """All of it."""
    options = parser(__doc__)
    options.add_argument("--bundle", type=Path, help="measure this one instead of making one")
    options.add_argument("--seconds", type=float, default=60.0)
    options.add_argument("--requests", type=int, default=20_000)
    given = options.parse_args()
    source = given.data / "hymenoptera"
    need(source)
    began = beginning()
    with workplace() as place:
        bundle = given.bundle
        if bundle is None:
            need(given.weights)
            made = [
                "--only",
                "frozen",
                "--backbones",
                "mobilenetv1_050.coral_in1k",
                "--weights",
                given.weights,
            ]
            run(graft("study", source, *made, "--out", place / "run"), cache=place / "cache")
            bundle = place / "run" / "model.graft"
        photos = prepared(bundle, source, place)
        cores = cpu_threads()
        alone = [in_process(bundle, photos, threads=1)]
        together = in_process(bundle, photos, threads=cores)
        loaded = under_load(bundle, photos, place, seconds=given.seconds, requests=given.requests)
        alone.append(in_process(bundle, photos, threads=1))
        capacity = loaded["first"]["answered_per_second"]
        flooded = overloaded(bundle, photos, place, rate=TOO_MUCH * capacity)
        size = (bundle / "model.onnx").stat().st_size
    reference = sum(one["images_per_second"] for one in alone) / len(alone)
    latency, refused = loaded["first"]["by_status"]["200"], flooded["by_status"].get("503", {})
    accepted = flooded["by_status"].get("200", {})
    say(f"in process {reference:.0f} images/s ({together['images_per_second']:.0f} on {cores} threads), ")
    say(
        f"served {capacity:.0f}/s, p50 {latency['p50_ms']} p95 {latency['p95_ms']} p99 {latency['p99_ms']} ms"
    )
    say(f"overload: accepted p99 {accepted.get('p99_ms')} ms, 503 median {refused.get('p50_ms')} ms")
    memory = loaded["memory_mb"]
    growth = memory["last_tenth_highest"] / memory["second_tenth_highest"] - 1
    keep(
        "serving",
        {
            "model_bytes": size,
            "photos": PHOTOS,
            "in_process": alone,
            "in_process_a_thread_per_processor": together,
            "load": loaded,
            "overload": flooded,
        },
        [
            Target("throughput of the share in process", capacity / reference, "at least", 0.8),
            Target("failures under load", float(failures(loaded["first"], allowed=("200",))), "at most", 0.0),
            Target("memory growth from the second to the last tenth", growth, "at most", 0.05),
            Target("requests in all", float(loaded["requests"]), "at least", float(given.requests)),
            Target("overload: failures", float(failures(flooded, allowed=("200", "503"))), "at most", 0.0),
            Target("overload: median ms to a 503", refused.get("p50_ms", float("nan")), "at most", 100.0),
            Target(
                "overload: p99 ms of what was accepted",
                accepted.get("p99_ms", float("nan")),
                "at most",
                2000.0,
            ),
        ],
        began=began,
    )


if __name__ == "__main__":
    main()
