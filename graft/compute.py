"""Where the arithmetic runs: device, number format and threads, chosen once and passed on; and what there is to run on.

Importing this module costs no torch; only `choose` does, and only for devices other than the CPU.
"""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from graft.errors import SettingsError
from graft.version import VERSION

Device = Literal["cpu", "cuda", "mps"]
DEVICES = ("auto", "cpu", "cuda", "mps")


@dataclass(frozen=True, slots=True)
class Compute:
    """`device`; `bf16`: whether the processor or card multiplies bfloat16 natively; `threads` for the CPU's part."""

    device: Device
    bf16: bool
    threads: int


def choose(device: str = "auto") -> Compute:
    """The named device, or with `auto` the best one there is. Raises SettingsError for one that is not here."""
    if device not in DEVICES:
        raise SettingsError(f"--device {device}: choose one of {', '.join(DEVICES)}.")
    threads = cpu_threads()
    if device == "cpu" or (device == "auto" and not _accelerator_likely()):
        return Compute("cpu", cpu_has_bf16(), threads)
    import torch

    if device in ("auto", "cuda") and torch.cuda.is_available():
        # What a card before compute capability 8.0 emulates is slower than float32.
        return Compute("cuda", torch.cuda.is_bf16_supported(including_emulation=False), threads)
    if device in ("auto", "mps") and torch.backends.mps.is_available():
        return Compute("mps", False, threads)
    if device == "auto":
        return Compute("cpu", cpu_has_bf16(), threads)
    raise SettingsError(
        f"--device {device}: this machine has no such device that torch can use. Use --device auto."
    )


def cpu_threads() -> int:
    """The number of processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return max(1, os.cpu_count() or 1)


def step_back() -> None:
    """Let the calling thread yield to everything else that waits for a processor; on Linux only.

    For threads that prepare what is not wanted yet: beside them a second process opens the first backbone (`ahead`),
    which then took 3 s instead of 4 s to import its libraries on two cores. One that yields more already stays so.
    """
    if sys.platform == "linux":
        thread = threading.get_native_id()
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, thread, max(10, os.getpriority(os.PRIO_PROCESS, thread)))


@functools.cache
def cpu_name() -> str:
    """The processor's name as far as the system tells."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


@functools.cache
def cpu_has_bf16() -> bool:
    """Whether bfloat16 products are native. Without AVX512-BF16 or AMX, bfloat16 is emulated and slower than float32."""
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def environment() -> dict[str, str]:
    """Versions and machine, found without importing anything heavy."""
    facts = {
        "graft": VERSION,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": cpu_name(),
    }
    for name in ("torch", "timm", "torchvision", "openvino", "onnxruntime", "onnx", "numpy", "pillow"):
        try:
            facts[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            facts[name] = "missing"
    return facts


def _accelerator_likely() -> bool:
    """Cheap signs of a CUDA, ROCm or Apple device, so that a plain CPU run need not import torch to find none."""
    if platform.system() == "Darwin" and platform.machine() == "arm64":
        return True
    if platform.system() == "Windows":
        return True
    return any(Path("/dev", name).exists() for name in ("nvidiactl", "dxg", "kfd", "nvhost-ctrl"))
