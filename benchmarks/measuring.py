"""What all benchmark programs share: a process measured from outside, the machine described, the result kept.

In: a command line. Out: a `Run` with its wall-clock and processor seconds, its peak memory and when each line of its
output appeared. `keep` writes `results/NAME.json`: date, commit, machine, load, versions, the measurements and whether
each target was met. The parent reads a pipe meanwhile and costs nothing that counts. Linux and macOS (`os.wait4`).

Not covered: a cold page cache. Files that were read before are read from memory again, by every program alike.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

from graft.compute import cpu_has_bf16, cpu_name, cpu_threads
from graft.studies.results import environment

HERE = Path(__file__).resolve().parent
SHARED = HERE.parent.parent / "shared"
BUSY_LOAD = (
    0.3  # per processor; above, seconds on the clock say more about the neighbours than about the program
)


@dataclass(frozen=True, slots=True)
class Run:
    """One process from its start to its end.

    `seconds` on the clock; `processor_seconds` of it and of all processes it waited for; `peak_bytes` resident in the
    largest single one of them; `lines` of its output with the seconds after the start at which each was complete.
    """

    seconds: float
    processor_seconds: float
    peak_bytes: int
    lines: tuple[tuple[float, str], ...]

    def seconds_to(self, text: str) -> float:
        """When the first line that holds `text` appeared; not a number if none did."""
        return next((at for at, line in self.lines if text in line), math.nan)

    @property
    def summary(self) -> dict[str, float]:
        """The numbers without the output."""
        return {
            "seconds": round(self.seconds, 3),
            "processor_seconds": round(self.processor_seconds, 3),
            "peak_mb": round(self.peak_bytes / 1e6, 1),
        }


def run(command: Sequence[str | Path], *, cache: Path | None = None, allowed: Sequence[int] = (0,)) -> Run:
    """Run `command` to its end, with `GRAFT_CACHE` at `cache`.

    Ends this program, with its last lines, if the exit code is not one of `allowed`.
    """
    surroundings = {name: value for name, value in os.environ.items() if name != "GRAFT_WEIGHTS"}
    if cache is not None:
        surroundings["GRAFT_CACHE"] = str(cache)
    lines: list[tuple[float, str]] = []
    started = time.monotonic()
    process = subprocess.Popen(
        [str(part) for part in command],
        env=surroundings,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    try:
        for line in process.stdout:
            lines.append((time.monotonic() - started, line.rstrip()))
        _, status, usage = os.wait4(process.pid, 0)
    except BaseException:
        process.kill()
        raise
    seconds = time.monotonic() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode not in allowed:
        told = "\n".join(line for _, line in lines[-20:])
        sys.exit(f"{Path(command[0]).name} ended with exit code {process.returncode}:\n{told}")
    unit = 1 if platform.system() == "Darwin" else 1024
    return Run(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * unit, tuple(lines))


def graft(*arguments: str | Path) -> list[str | Path]:
    """The command line of the installed `graft` that belongs to this Python."""
    script = shutil.which("graft", path=str(Path(sys.executable).parent))
    return [script, *arguments] if script else [sys.executable, "-m", "graft.cli", *arguments]


def median(runs: Sequence[Run]) -> Run:
    """The run with the median seconds (the lower one of two in the middle)."""
    middle = statistics.median_low(one.seconds for one in runs)
    return next(one for one in runs if one.seconds == middle)


@contextmanager
def workplace() -> Iterator[Path]:
    """A temporary folder for caches and run folders."""
    with tempfile.TemporaryDirectory(prefix="graft-benchmark-") as folder:
        yield Path(folder)


def warm_page_cache(*folders: Path) -> None:
    """Read the images and the libraries once, so that no measured process pays the disk for the others."""
    for folder in folders:
        for file in folder.rglob("*"):
            if file.is_file():
                file.read_bytes()
    run([sys.executable, "-c", "import torch, timm, torchvision, openvino, onnxruntime, sklearn, pyarrow"])


def parser(description: str | None) -> argparse.ArgumentParser:
    """The options of every benchmark: where the images and the weights are."""
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--data", type=Path, default=SHARED / "data", help="the folder with the image sets")
    made.add_argument("--weights", type=Path, default=SHARED / "weights", help="a folder with weights.json")
    return made


def need(*places: Path) -> None:
    """End the program with a sentence if something to measure with is not here."""
    for place in places:
        if not place.exists():
            sys.exit(
                f"{place} is not here: this benchmark measures with real images and weights, which are not part of "
                "the project. Name the folders that hold them with --data DIR and --weights DIR."
            )


def say(text: str) -> None:
    """A line at once, also into a file."""
    print(text, flush=True)


@dataclass(frozen=True, slots=True)
class Target:
    """What must hold: `value` is `at most` or `at least` the `limit`."""

    name: str
    value: float
    bound: Literal["at most", "at least"]
    limit: float

    @property
    def met(self) -> bool:
        """Whether it holds; what could not be measured does not."""
        return self.value <= self.limit if self.bound == "at most" else self.value >= self.limit


def keep(
    name: str, results: Mapping[str, Any], targets: Sequence[Target], *, began: Mapping[str, Any]
) -> None:
    """Print the verdicts and write `results/NAME.json`. `began`: what `beginning` returned."""
    verdicts = [{**asdict(target), "met": target.met} for target in targets]
    content = {
        "benchmark": name,
        **began,
        "load_at_end": _load(),
        "targets": verdicts,
        "results": dict(results),
    }
    place = HERE / "results" / f"{name}.json"
    place.parent.mkdir(exist_ok=True)
    place.write_text(json.dumps(_finite(content), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    say("")
    for target in targets:
        verdict = "met " if target.met else "LOST"
        say(f"{verdict}  {target.name}: {target.value:.4g}, wanted {target.bound} {target.limit:g}")
    say(f"kept in benchmarks/results/{place.name}")


def beginning() -> dict[str, Any]:
    """Date, commit, machine, load and versions, taken before the first measurement; a busy machine is told."""
    load = _load()
    if load is not None and load > BUSY_LOAD * cpu_threads():
        say(
            f"NOTE: the machine is busy (load {load:.1f} on {cpu_threads()} processors): times are not comparable."
        )
    versions = environment()
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": _git("rev-parse", "HEAD"),
        "uncommitted_changes": bool(_git("status", "--porcelain", "--", "graft")),
        "machine": {
            "processor": cpu_name(),
            "threads": cpu_threads(),
            "bf16": cpu_has_bf16(),
            "memory_gb": _memory_gb(),
            "system": versions.pop("platform"),
        },
        "load_at_begin": load,
        "versions": {k: v for k, v in versions.items() if k != "cpu"},
    }


def _load() -> float | None:
    """How many processes wanted a processor during the last minute, on average."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def _memory_gb() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)
    except (ValueError, OSError):
        return None


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=HERE.parent, capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        return ""
    return done.stdout.strip()


def _finite(value: Any) -> Any:
    """What JSON cannot say (NaN, infinity) becomes null."""
    if isinstance(value, Mapping):
        return {str(name): _finite(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
