"""The two hosts that publish weights: whether they answer, what of theirs is already here, and fetching the rest.

In: a catalogue `Entry` whose `source` is an address. Out: a state as its library publishes it, and the file it came
from. Whether the hosts answer is found out once per process, in at most `PROBE_SECONDS`, whatever a name server or a
silent firewall does; left to itself, a loader waits and retries for most of a minute per network. Looking into the
local caches costs neither torch nor a request.

Nothing is unpickled but torchvision's own files, which exist in no other format: torch reads them with
`weights_only=True` after their checksum held. Networks that the hub has without `model.safetensors` are refused.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from pickle import UnpicklingError
from typing import TYPE_CHECKING

from graft.backbones.catalogue import Entry
from graft.errors import BackboneError

if TYPE_CHECKING:
    from torch import Tensor
else:  # asking what is here must not wait for torch
    Tensor = object

PROBE_SECONDS = 4.0
TORCHVISION_HOST = "https://download.pytorch.org"
TORCHVISION_FILE = (
    "models/squeezenet1_1-b8a52dc0.pth"  # its root is forbidden, which a file that it has is not
)
HUB_FILE = "model.safetensors"


@dataclass(frozen=True, slots=True)
class Reach:
    """Which hosts answered when asked; `reason` is empty, or a sentence on what did not and why."""

    hub: bool
    torchvision: bool
    reason: str = ""

    def serves(self, entry: Entry) -> bool:
        """Whether the host that has the weights of `entry` answered."""
        if not _published(entry):
            return False
        return self.torchvision if entry.library == "torchvision" else self.hub


@functools.cache
def reach_hub() -> Reach:
    """Whether the hosts of weights answer: asked once per process, whatever the network does within 5 seconds."""
    return probe()


def probe(seconds: float = PROBE_SECONDS) -> Reach:
    """Ask both hosts at once, and stop waiting after `seconds` even inside a name lookup that hangs."""
    if os.environ.get("HF_HUB_OFFLINE", "").strip().upper() in ("1", "ON", "YES", "TRUE"):
        return Reach(False, False, "HF_HUB_OFFLINE is set, so nothing is downloaded.")
    hosts = (hub_endpoint(), TORCHVISION_HOST)
    asked = (hosts[0], f"{hosts[1]}/{TORCHVISION_FILE}")
    statuses = _within(seconds, [functools.partial(_status, address, seconds) for address in asked])
    answers = [status is not None and (status < 400 or status in (401, 404, 405)) for status in statuses]
    silent = [host for host, answer in zip(hosts, answers, strict=True) if not answer]
    reason = (
        f"No answer from {' and '.join(silent)}: weights that are not here cannot be had." if silent else ""
    )
    return Reach(answers[0], answers[1], reason)


def hub_endpoint() -> str:
    """The hub's address: `HF_ENDPOINT` where a mirror is used."""
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def cached(entry: Entry) -> Path | None:
    """The file of `entry` in the local cache of the hub or of torch, if it is there."""
    if not _published(entry):
        return None
    if entry.library == "torchvision":
        path = _torch_checkpoints() / PurePosixPath(entry.source).name
        return path if path.is_file() else None
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(_repository(entry), HUB_FILE)
    return Path(found) if isinstance(found, str) else None


def load_from_hub(entry: Entry) -> tuple[dict[str, Tensor], Path]:
    """State and file: fetch the safetensors file, and let timm load it, which renames the keys of some checkpoints.

    Raises BackboneError if the file cannot be had or does not fit.
    """
    import timm
    from safetensors import SafetensorError

    path = cached(entry) or _download_from_hub(entry)
    overlay = {"file": str(path), "custom_load": False}  # some timm would read a file of its own format
    try:
        network = timm.create_model(
            entry.name, pretrained=True, pretrained_cfg_overlay=overlay, **dict(entry.arguments)
        )
    except (RuntimeError, ValueError, KeyError, SafetensorError) as error:
        raise BackboneError(
            f"The weights of {entry.name} in {path} do not fit the network: {error}. Remove that file and try again."
        ) from error
    return network.state_dict(), path


def load_from_torchvision(entry: Entry) -> tuple[dict[str, Tensor], Path]:
    """State and file. torchvision publishes pickled states only: `weights_only` lets torch build tensors and nothing
    else out of them, and the name of each file carries the beginning of its sha256, which must hold.

    Raises BackboneError if the file cannot be had or is not what its name says.
    """
    import torch

    folder = _torch_checkpoints()
    path = folder / PurePosixPath(entry.source).name
    if not path.is_file():
        _still_there(entry, entry.source)
    elif not file_digest(path).startswith(path.stem.rsplit("-", 1)[-1]):
        raise BackboneError(
            f"{path} is damaged: its sha256 is not the one in its name. Remove it and try again."
        )
    try:
        state = torch.hub.load_state_dict_from_url(
            entry.source, str(folder), map_location="cpu", progress=False, check_hash=True, weights_only=True
        )
    except (OSError, RuntimeError, ValueError, UnpicklingError) as error:
        raise BackboneError(
            f"The weights of {entry.name} could not be had from {entry.source}: {error}"
        ) from error
    if dict(entry.arguments).get("aux_logits") is False:
        state = {name: tensor for name, tensor in state.items() if not name.startswith(("aux", "AuxLogits"))}
    return state, path


def file_digest(path: Path) -> str:
    """The sha256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _download_from_hub(entry: Entry) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        HTTPError,
    )  # the base of every failed request, of whichever HTTP library

    address = f"{hub_endpoint()}/{_repository(entry)}/resolve/main/{HUB_FILE}"
    _still_there(entry, address)
    try:
        return Path(hf_hub_download(_repository(entry), HUB_FILE))
    except (OSError, HTTPError, RuntimeError, ValueError, ImportError) as error:
        # HTTPError: that of whichever HTTP library the client uses; its transfers in pieces fail with a RuntimeError
        raise BackboneError(
            f"The weights of {entry.name} could not be fetched from {address}: {error}"
        ) from error


def _still_there(entry: Entry, address: str) -> None:
    """One question with a hard limit before a loader is let loose that would wait for most of a minute."""
    (status,) = _within(PROBE_SECONDS, [functools.partial(_status, address, PROBE_SECONDS)])
    if status is None or status >= 500:
        raise BackboneError(
            f"The weights of {entry.name} cannot be fetched: {address} does not answer. Try later."
        )
    if status == 404:
        raise BackboneError(
            f"There are no weights at {address}; name a weights folder with {entry.name} in it."
        )


def _published(entry: Entry) -> bool:
    """Whether the source is an address: in a weights folder it is a sentence."""
    return entry.source.startswith(("http://", "https://"))


def _repository(entry: Entry) -> str:
    """`https://huggingface.co/timm/resnet50.a1_in1k` -> `timm/resnet50.a1_in1k`."""
    return "/".join(entry.source.rstrip("/").split("/")[-2:])


def _torch_checkpoints() -> Path:
    """Where torch.hub keeps downloads, found without importing torch."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get("TORCH_HOME") or Path(cache) / "torch").expanduser() / "hub" / "checkpoints"


def _within(seconds: float, questions: Sequence[Callable[[], int | None]]) -> list[int | None]:
    """Ask all at once; None for those that have no answer after `seconds`. Their threads die with the process."""
    answers: list[int | None] = [None] * len(questions)

    def ask(place: int) -> None:
        answers[place] = questions[place]()

    threads = [threading.Thread(target=ask, args=(place,), daemon=True) for place in range(len(questions))]
    deadline = time.monotonic() + seconds
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    return list(answers)


def _status(address: str, seconds: float) -> int | None:
    """The HTTP status of a HEAD request through the proxies of the environment; None without an answer."""
    request = urllib.request.Request(address, method="HEAD", headers={"User-Agent": "graft"})
    try:
        with urllib.request.urlopen(request, timeout=seconds, context=_certificates()) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code
    except (OSError, HTTPException, ValueError):
        return None


def _certificates() -> ssl.SSLContext:
    """The system's certificates, and those of certifi where a client of the hub brought it along."""
    context = ssl.create_default_context()
    if importlib.util.find_spec("certifi") is not None:
        context.load_verify_locations(importlib.import_module("certifi").where())
    return context
