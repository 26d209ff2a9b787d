"""A content-addressed cache of arrays and files on disk.

In: a key made of everything that determines the value (`content_key`). Out: arrays as read-only memory maps, small
facts as a dictionary, files as paths. An entry is a folder; its `manifest.json` is written last, so a folder without
a manifest does not exist, whatever moment the process was killed at. Nothing is ever invalidated by hand: a changed
byte is another key. When the entries outgrow `limit_bytes`, the least recently used ones go.

Not covered: sharing between machines of different byte order; locking (two writers of one key write the same bytes,
the second one to finish finds the first one's entry and keeps it).
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from graft.errors import StoreError

MANIFEST = "manifest.json"
DEFAULT_LIMIT_BYTES = 20 * 1024**3
STALE_SECONDS = 24 * 3600


def content_key(*parts: object) -> str:
    """The hexadecimal key (40 digits) of a nest of strings, numbers, None, lists, tuples and dictionaries.

    Lists and tuples count as the same; the keys of dictionaries are strings. Raises TypeError for what JSON has no
    form for, and ValueError for NaN and infinity.
    """
    return hashlib.blake2b(canonical_json(parts), digest_size=20).hexdigest()


def canonical_json(value: object) -> bytes:
    """`value` as JSON in one form only: sorted keys, no spaces, UTF-8. Raises as `content_key` does."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return _encoded(text)


def json_line(facts: Mapping[str, Any]) -> bytes:
    """`facts` as JSON on one line; what JSON cannot say (NaN, infinity) becomes null."""
    return _encoded(json.dumps(_finite(facts), ensure_ascii=False))


def write_json(path: Path, facts: Mapping[str, Any]) -> None:
    """Write `facts` as indented JSON, atomically; what JSON cannot say (NaN, infinity) becomes null."""
    write_atomically(path, _encoded(json.dumps(_finite(facts), indent=1, ensure_ascii=False)))


def _encoded(text: str) -> bytes:
    """JSON in UTF-8. Names of files need not be Unicode: what has no UTF-8 form becomes JSON's own escape."""
    return text.encode("utf-8", "backslashreplace")


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _finite(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(part) for part in value]
    if isinstance(value, (float, np.floating)):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, (np.integer, np.bool_)):
        return value.item()
    return value


def file_digest(path: Path) -> str:
    """The sha256 of a file, in hexadecimal. Raises OSError if it cannot be read."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def default_folder() -> Path:
    """`GRAFT_CACHE`, or the platform's folder for caches."""
    chosen = os.environ.get("GRAFT_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    import platformdirs

    return Path(platformdirs.user_cache_dir("graft", appauthor=False))


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write a file so that a reader sees the old content or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode() if isinstance(content, str) else content
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


@dataclass(frozen=True, slots=True)
class Entry:
    """A finished entry: `facts` from its manifest, arrays and files by name."""

    folder: Path
    facts: dict[str, Any]

    def array(self, name: str) -> np.ndarray:
        """The array called `name`, as a read-only memory map (a copy costs nothing until it is read)."""
        return np.load(self.folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)

    def file(self, name: str) -> Path:
        """The path of the file called `name`."""
        return self.folder / name


class Store:
    """The cache in `folder` (default: `GRAFT_CACHE` or the platform's cache folder)."""

    def __init__(self, folder: Path | str | None = None, *, limit_bytes: int | None = None) -> None:
        self.folder = Path(folder) if folder is not None else default_folder()
        self.limit_bytes = limit_bytes if limit_bytes is not None else _limit_from_environment()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(
                f"The cache folder {self.folder} cannot be made: {error.strerror}. "
                "Set GRAFT_CACHE to a folder that can be written."
            ) from error

    def get(self, key: str) -> Entry | None:
        """The entry under `key`, or None. Reading it marks it as recently used."""
        folder = self._place(key)
        try:
            facts = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        with suppress(OSError):  # a read-only cache still serves
            os.utime(folder / MANIFEST)
        return Entry(folder, facts)

    @contextmanager
    def writing(self, key: str) -> Iterator[Path]:
        """A temporary folder to fill; when the block ends without an error, it becomes the entry.

        The block writes its arrays with `numpy.save` or `numpy.lib.format.open_memmap`, its files as it likes, and
        its facts with `write_facts`.
        """
        place = self._place(key)
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            folder = Path(tempfile.mkdtemp(dir=self.folder, prefix="tmp-"))
        except OSError as error:
            raise self._unwritable(error) from error
        try:
            yield folder
            if not (folder / MANIFEST).exists():
                write_facts(folder, {})
            try:
                folder.replace(place)
            except OSError:
                if self.get(key) is None:  # a leftover without a manifest is in the way
                    shutil.rmtree(place, ignore_errors=True)
                    folder.replace(place)
        except OSError as error:
            raise self._unwritable(error) from error
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def put(self, key: str, facts: Mapping[str, Any] | None = None, **arrays: np.ndarray) -> Entry:
        """Store `arrays` and `facts` under `key` and return the entry."""
        with self.writing(key) as folder:
            for name, array in arrays.items():
                np.save(folder / f"{name}.npy", array, allow_pickle=False)
            write_facts(folder, facts or {})
        entry = self.get(key)
        if entry is None:
            raise StoreError(
                f"The cache entry {key} vanished from {self.folder} while it was written; try again."
            )
        return entry

    def size_bytes(self) -> int:
        """How much the entries take."""
        return sum(size for _, size, _ in self._entries())

    def free_bytes(self) -> int:
        """How much the disk of the cache can still take."""
        return shutil.disk_usage(self.folder).free

    def tidy(self) -> int:
        """Remove leftovers of killed processes and the oldest entries over the limit; returns bytes freed."""
        freed = 0
        for leftover in self._leftovers():
            freed += _folder_bytes(leftover)
            shutil.rmtree(leftover, ignore_errors=True)
        entries = sorted(self._entries())
        total = sum(size for _, size, _ in entries)
        for _, size, folder in entries:
            if total <= self.limit_bytes:
                break
            (folder / MANIFEST).unlink(missing_ok=True)
            shutil.rmtree(folder, ignore_errors=True)
            total -= size
            freed += size
        return freed

    @contextmanager
    def temporary(self) -> Iterator[Path]:
        """An empty folder for the time of the block; what a killed process leaves of it, `tidy` removes a day later."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            place = tempfile.TemporaryDirectory(dir=self.folder, prefix="tmp-", ignore_cleanup_errors=True)
        except OSError as error:
            raise self._unwritable(error) from error
        with place as name:
            yield Path(name)

    def _place(self, key: str) -> Path:
        return self.folder / key[:2] / key

    def _leftovers(self) -> Iterator[Path]:
        """What killed processes were filling or removing, long enough ago that none of them still lives."""
        for folder in [*self.folder.glob("tmp-*"), *self.folder.glob("??/*")]:
            try:
                old = time.time() - folder.stat().st_mtime > STALE_SECONDS
            except FileNotFoundError:
                continue  # another process removed it
            if old and (folder.name.startswith("tmp-") or not (folder / MANIFEST).exists()):
                yield folder

    def _entries(self) -> Iterator[tuple[float, int, Path]]:
        for manifest in self.folder.glob(f"??/*/{MANIFEST}"):
            try:
                yield manifest.stat().st_mtime, _folder_bytes(manifest.parent), manifest.parent
            except FileNotFoundError:
                continue  # another process removed it

    def _unwritable(self, error: OSError) -> StoreError:
        return StoreError(
            f"The cache {self.folder} cannot be written: {error.strerror or error}. "
            "Free some space or set GRAFT_CACHE to another folder."
        )


def write_facts(folder: Path, facts: Mapping[str, Any]) -> None:
    """Write the manifest of an entry under construction: the last thing to do for it."""
    (folder / MANIFEST).write_bytes(json_line(facts))


def _folder_bytes(folder: Path) -> int:
    """What the files below take; those that vanish meanwhile count nothing."""
    total = 0
    for file in folder.rglob("*"):
        try:
            total += file.stat().st_size if file.is_file() else 0
        except FileNotFoundError:
            continue
    return total


def _limit_from_environment() -> int:
    text = os.environ.get("GRAFT_CACHE_GB")
    if not text:
        return DEFAULT_LIMIT_BYTES
    try:
        gigabytes = float(text)
    except ValueError:
        gigabytes = math.nan
    if not 0 < gigabytes < math.inf:
        raise StoreError(f"GRAFT_CACHE_GB is {text!r}; give a number of gigabytes such as 20.")
    return int(gigabytes * 1024**3)
