"""A second process opens backbones into the same cache; where it cannot, nothing is lost but time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np

from graft.backbones.ahead import Ahead, opening_ahead
from graft.backbones.hub import Reach
from graft.backbones.weights import WeightsFolder
from graft.compute import Compute
from graft.images.dataset import Preprocess
from graft.store import Store

WEIGHTS = Path(__file__).parents[1] / "golden" / "weights-v1"
NOWHERE = Reach(False, False, "No answer from anybody.")
PLAIN = Compute("cpu", False, 1)

# A process of its own, because torch is loaded in this one. `{act}` is done between the order and the waiting.
PROGRAM = """
import sys
import numpy as np
from graft.backbones.ahead import opening_ahead
from graft.backbones.hub import Reach
from graft.backbones.trunks import is_open, trunk_of
from graft.backbones.weights import WeightsFolder
from graft.compute import Compute
from graft.images.dataset import Preprocess
from graft.store import Store

folder, store = WeightsFolder.open({weights!r}), Store({store!r})
reach, compute = Reach(False, False, "No."), Compute("cpu", False, 1)
entry, geometry = folder.entries[0], Preprocess(folder.entries[0].input.size)
samples = np.random.default_rng(0).integers(0, 256, (16, geometry.size, geometry.size, 3), np.uint8)
with opening_ahead(wanted=True, folder=folder, reach=reach, store=store, compute=compute) as ahead:
    ahead.open(entry, geometry, samples)
    {act}
    waits = sum(1 for _ in ahead.waiting(entry, geometry))
assert ahead.process.poll() is not None, "the second process outlived the block"
print(waits, is_open(entry, geometry.size, folder=folder, store=store, compute=compute), "torch" in sys.modules)
trunk = trunk_of(entry, geometry, folder=folder, reach=reach, store=store, samples=samples, compute=compute)
print(trunk.key, trunk.runner)
"""


def lines(tmp_path: Path, *, act: str, name: str) -> list[str]:
    program = PROGRAM.format(weights=str(WEIGHTS), store=str(tmp_path / name), act=act)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split("\n")


def test_what_was_opened_ahead_is_in_the_cache_without_torch_here(tmp_path: Path) -> None:
    first, trunk, *_ = lines(tmp_path, act="pass", name="ahead")
    waits, is_open, torch_here = first.split()
    assert int(waits) > 0 and is_open == "True" and torch_here == "False"
    killed, same, *_ = lines(tmp_path, act="ahead.process.kill()", name="killed")
    assert killed.split()[1:] == ["False", "False"], "the dead process cannot have opened it"
    assert same == trunk, "whoever opens it makes the same trunk"


def test_a_file_of_the_users_does_not_stand_in_for_a_library(tmp_path: Path) -> None:
    (tmp_path / "timm.py").write_text("raise SystemExit('the wrong timm')")
    program = PROGRAM.format(weights=str(WEIGHTS), store=str(tmp_path / "store"), act="pass").split(
        "trunk ="
    )[0]
    script = tmp_path / "elsewhere" / "program.py"
    script.parent.mkdir()
    script.write_text(program)
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=120, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[1] == "True"


def test_where_torch_is_loaded_or_nothing_is_wanted_no_process_begins(tmp_path: Path) -> None:
    folder, store = WeightsFolder.open(WEIGHTS), Store(tmp_path)
    entry, geometry = folder.entries[0], Preprocess(32)
    import torch  # noqa: F401

    for wanted in (True, False):
        with opening_ahead(wanted=wanted, folder=folder, reach=NOWHERE, store=store, compute=PLAIN) as ahead:
            assert ahead == Ahead()
            ahead.open(entry, geometry, np.zeros((1, 32, 32, 3), np.uint8))
            assert list(ahead.waiting(entry, geometry)) == []
