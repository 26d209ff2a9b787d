"""Opening backbones ahead of their use, in a second process.

Importing torch and timm takes 3 s and holds the interpreter's lock, so that a thread would only slow the decoding of
the images down. The second process puts what it opens into the same cache in which `graft.backbones.trunks` looks
first; nothing else passes between the two. If it fails or dies, whoever needed the backbone opens it himself and meets
the same error. On accelerators torch does the feature pass itself, so that nothing is won and nothing is started.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
from jaxtyping import UInt8

from graft.backbones.catalogue import Entry, find
from graft.backbones.inputs import Look
from graft.backbones.trunks import trunk_of
from graft.backbones.weights import Reach, WeightsFolder, shelf
from graft.compute import Compute
from graft.errors import GraftError
from graft.images.dataset import Preprocess
from graft.store import Store

PAUSE = 0.02  # seconds between two looks whether a backbone is open


@dataclass(slots=True)
class Ahead:
    """The second process, or none. `asked` are the orders given to it, in order."""

    process: subprocess.Popen[str] | None = None
    place: Path = field(default_factory=Path)
    asked: list[tuple[str, int, int, Look]] = field(default_factory=list)

    def open(
        self,
        entry: Entry,
        geometry: Preprocess,
        samples: UInt8[np.ndarray, "m h w c"],
        *,
        look: Look = "plain",
    ) -> None:
        """Order a backbone; see `trunk_of`. Returns at once."""
        order = _order(entry, geometry, look)
        if self.process is None or order in self.asked:
            return
        images = self.place / f"{len(self.asked)}.npy"
        line = {"name": entry.name, "geometry": asdict(geometry), "look": look, "samples": str(images)}
        with suppress(OSError):  # it has died, or its folder was swept; whoever waits will notice
            np.save(images, samples)
            assert self.process.stdin is not None
            self.process.stdin.write(json.dumps(line) + "\n")
            self.process.stdin.flush()
            self.asked.append(order)

    def waiting(self, entry: Entry, geometry: Preprocess, *, look: Look = "plain") -> Iterator[None]:
        """Yields now and then until the backbone is open or has failed; at once if it was never ordered."""
        order = _order(entry, geometry, look)
        if self.process is None or order not in self.asked:
            return
        mark = self.place / f"{self.asked.index(order)}.done"
        while not mark.exists() and self.process.poll() is None:
            time.sleep(PAUSE)
            yield


def _order(entry: Entry, geometry: Preprocess, look: Look) -> tuple[str, int, int, Look]:
    """What makes the trunk; how images become square does not matter to it."""
    return entry.name, geometry.size, geometry.channels, look


@contextmanager
def opening_ahead(
    *, wanted: bool, folder: WeightsFolder | None, reach: Reach, store: Store, compute: Compute
) -> Iterator[Ahead]:
    """A second process for the time of a block; none if it is not `wanted` or torch is here already."""
    if not wanted or "torch" in sys.modules or compute.device != "cpu":
        yield Ahead()
        return
    settings = {
        "folder": None if folder is None else str(folder.path.resolve()),
        "reach": asdict(reach),
        "store": str(store.folder.resolve()),
        "compute": asdict(compute),
    }
    with store.temporary() as place:
        command = [sys.executable, "-m", "graft.backbones.ahead", str(place), json.dumps(settings)]
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd=place,  # or else whatever lies in the user's folder would be imported first
        )
        try:
            yield Ahead(process, place)
        finally:
            process.kill()
            process.communicate()


def work(orders: IO[str], place: Path, settings: dict[str, Any]) -> None:
    """Open what is ordered, a line each, until the input ends or the process that gives the orders has gone."""
    import timm  # noqa: F401 (the imports are what takes long: begin at once)
    import torch

    from graft.backbones import export  # noqa: F401

    compute = Compute(**settings["compute"])
    torch.set_num_threads(compute.threads)
    folder = None if settings["folder"] is None else WeightsFolder.open(settings["folder"])
    reach, store = Reach(**settings["reach"]), Store(Path(settings["store"]))
    parent = os.getppid()
    for number, line in enumerate(orders):
        if os.getppid() != parent:
            return
        order = json.loads(line)
        with suppress(GraftError, OSError, RuntimeError):  # told by whoever tries again
            trunk_of(
                find(order["name"], shelf(folder)),
                Preprocess(**order["geometry"]),
                look=order["look"],
                folder=folder,
                reach=reach,
                store=store,
                samples=np.load(order["samples"], allow_pickle=False),
                compute=compute,
            )
        (place / f"{number}.done").touch()


if __name__ == "__main__":
    work(sys.stdin, Path(sys.argv[1]), json.loads(sys.argv[2]))
