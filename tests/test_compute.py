"""The device is chosen once, named ones are refused where they are not, and nothing heavy is imported for a CPU."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from graft.compute import DEVICES, Compute, choose, cpu_has_bf16, cpu_name, cpu_threads, environment
from graft.errors import SettingsError


def test_the_cpu_is_always_there() -> None:
    made = choose("cpu")
    assert made == Compute("cpu", cpu_has_bf16(), cpu_threads())
    assert 1 <= made.threads <= (os.cpu_count() or 1)
    assert choose("auto").device in DEVICES[1:]


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_a_device_is_there_or_refused_in_a_sentence(device: str) -> None:
    import torch

    there = torch.cuda.is_available() if device == "cuda" else torch.backends.mps.is_available()
    if there:
        assert choose(device).device == device
    else:
        with pytest.raises(SettingsError, match=rf"--device {device}: this machine has no such device.*auto"):
            choose(device)


def test_an_unknown_device() -> None:
    with pytest.raises(SettingsError, match="--device tpu: choose one of auto, cpu, cuda, mps"):
        choose("tpu")


def test_choosing_the_cpu_imports_no_torch() -> None:
    program = "import sys\nfrom graft.compute import choose\nchoose('cpu')\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_the_environment_is_told_in_words() -> None:
    facts = environment()
    assert {"graft", "python", "platform", "cpu", "torch", "onnxruntime"} <= set(facts)
    assert facts["cpu"] == cpu_name() and all(isinstance(value, str) and value for value in facts.values())
