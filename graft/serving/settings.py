"""What a service is told: which models, where to listen, whom to answer, and how much to accept.

In: the options of `graft serve`. Out: a frozen, picklable record that every worker process starts from. Cost: reads the
key file. Not covered: TLS, which belongs to the proxy in front.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from graft.deploy.compiled import Runtime
from graft.errors import SettingsError

MIB = 1024**2
LEAST_KEY = 16


@dataclass(frozen=True, slots=True)
class Limits:
    """How much is accepted.

    `queue`: images of one model that are accepted and not yet answered; `batch`: images in one run of the network;
    `requests`, `memory_bytes`: requests in flight and bytes of their bodies, over the whole process. `request_pixels`,
    `waiting_pixels`: to decode, of a request with several images and of all that wait, where those of a JPEG count a quarter.
    """

    file_bytes: int = 32 * MIB
    request_bytes: int = 64 * MIB
    files: int = 32
    queue: int = 96
    batch: int = 8
    requests: int = 192
    memory_bytes: int = 512 * MIB
    request_pixels: int = 300_000_000
    waiting_pixels: int = 600_000_000
    body_seconds: float = 30.0
    answer_seconds: float = 30.0

    def __post_init__(self) -> None:
        """Raises SettingsError where a request could be allowed that never fits."""
        if self.files > self.queue:
            raise SettingsError(
                f"{self.files} files per request never fit into a queue of {self.queue} images; "
                "allow fewer files or a longer queue."
            )


@dataclass(frozen=True, slots=True)
class Settings:
    """One service. `bundles`: (name, folder), the first one answers where no model is named."""

    bundles: tuple[tuple[str, Path], ...]
    host: str = "127.0.0.1"
    port: int = 8000
    keys: tuple[str, ...] = field(default=(), repr=False)
    workers: int = 1
    index: Path | None = None
    limits: Limits = Limits()
    runtime: Runtime = "onnxruntime"


def resolved(
    bundles: Sequence[str | Path],
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    api_key_file: str | Path | None = None,
    workers: int = 1,
    index: str | Path | None = None,
    limits: Limits | None = None,
    runtime: Runtime = "onnxruntime",
) -> Settings:
    """The settings that the options mean. A bundle is a folder, or `NAME=FOLDER`.

    Raises SettingsError for a value that cannot be.
    """
    if not 0 <= port <= 65535:
        raise SettingsError(f"--port {port}: choose a number from 0 (any free port) to 65535.")
    if not 1 <= workers <= 64:
        raise SettingsError(f"--workers {workers}: choose a number from 1 to 64.")
    return Settings(
        bundles=_named(bundles),
        host=host,
        port=port,
        keys=_keys(Path(api_key_file)) if api_key_file else (),
        workers=workers,
        index=Path(index) if index else None,
        limits=limits or Limits(),
        runtime=runtime,
    )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _named(bundles: Sequence[str | Path]) -> tuple[tuple[str, Path], ...]:
    named: dict[str, Path] = {}
    for given in bundles:
        name, folder = _name_and_folder(str(given))
        if name in named:
            raise SettingsError(
                f"Two models would be called {name!r}: {named[name]} and {folder}. Give one another name: "
                f"other={folder}"
            )
        named[name] = folder
    if not named:
        raise SettingsError("No model to serve; name a folder model.graft.")
    return tuple(named.items())


def _name_and_folder(given: str) -> tuple[str, Path]:
    """The folder's stem, or its parent's name where it is called model.graft like all that a study makes."""
    name, sign, rest = given.partition("=")
    if sign and not Path(given).exists():
        if not name or not rest or set(name) & set("/\\?#&% "):
            raise SettingsError(f"{given!r}: a named model is written NAME=FOLDER, such as ants=model.graft.")
        return name, Path(rest)
    folder = Path(given)
    place = folder.resolve()
    return (place.parent.name if place.stem == "model" and place.parent.name else place.stem), folder


def _keys(file: Path) -> tuple[str, ...]:
    """One key per line; several let a new key be brought in before the old one goes."""
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()  # some editors begin files with a mark
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"The key file {file} cannot be read: {error}. Check --api-key-file.") from error
    keys = tuple(line.strip() for line in lines if line.strip())
    if not keys or min(map(len, keys)) < LEAST_KEY:
        raise SettingsError(
            f"The key file {file} needs at least one key, one per line, each of at least {LEAST_KEY} characters."
        )
    return keys
