"""The index folder on disk, format 1.0 (docs/index-format.md): written so that it is whole at every moment.

In and out: `Contents`, the rows (name, digest, key), their embeddings and the facts about them. `index.json` names the
other files, whose names hold a part of their hash, and is replaced last: whoever opens the folder meanwhile, or after a
kill, finds the old index or the new one. What does not match its hash is refused by name.

Cost: reading checks the sha256 of every file (about 1 s per GB). Not covered: a deliberate forger, who can compute
hashes, too.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float16, Int64

from graft.deploy.bundle import Bundle, digest
from graft.errors import BundleError
from graft.store import file_digest, json_line, write_json
from graft.version import VERSION

FORMAT = (1, 0)
MANIFEST = "index.json"
UNFINISHED = "unfinished.json"
ENDINGS = {"names": ".jsonl", "embeddings": ".npy", "graph": ".usearch"}
OURS = re.compile(
    r"(names|embeddings|graph)-[0-9a-f]{16}\.(jsonl|npy|usearch)|\.(graft-|index\.json\.|unfinished\.json\.).*"
)
AGAIN = "Make it again with `graft index --overwrite`."
_FACTS = {
    "format": str,
    "bundle": dict,
    "root": str,
    "images": int,
    "width": int,
    "next_key": int,
    "files": dict,
}


@dataclass(frozen=True, slots=True, eq=False)
class Contents:
    """An index as it lies on disk.

    `names` are relative to `facts["root"]`; `digests` are those of the images' bytes; `keys` are what the graph calls
    the rows: positive, different, and never used again. `embeddings` are of unit length (or zero). `graph` is the file
    of the HNSW graph, if there is one. `facts` is the whole of `index.json`.
    """

    names: tuple[str, ...]
    digests: tuple[str, ...]
    keys: Int64[np.ndarray, " n"]
    embeddings: Float16[np.ndarray, "n d"]
    graph: Path | None
    facts: dict[str, Any]


def bundle_key(bundle: Bundle) -> str:
    """What determines a bundle's embeddings: the hashes of its network and of its preprocessing."""
    return digest([bundle.facts["files"]["model.onnx"], bundle.facts["preprocess_sha256"]])


def write(
    folder: Path,
    contents: Contents,
    *,
    save_graph: Callable[[Path], None] | None = None,
    manifest: str = MANIFEST,
) -> None:
    """Write `contents` under `manifest`; `save_graph` writes the graph to a path, without it there is none.

    `files`, `format`, `graft` and the counts in `facts` are filled in here. Raises OSError on a full disk.
    """
    lines = b"".join(
        json_line({"name": name, "digest": mark, "key": int(key)}) + b"\n"
        for name, mark, key in zip(contents.names, contents.digests, contents.keys, strict=True)
    )
    makers: dict[str, Callable[[Path], object]] = {
        "names": lambda place: place.write_bytes(lines),
        "embeddings": lambda place: np.save(place, contents.embeddings, allow_pickle=False),
    }
    if save_graph is not None:
        makers["graph"] = save_graph
    folder.mkdir(parents=True, exist_ok=True)
    rows, width = contents.embeddings.shape
    facts = {
        "format": ".".join(map(str, FORMAT)),
        "graft": VERSION,
        **{
            name: value for name, value in contents.facts.items() if name not in ("format", "graft", "sha256")
        },
        "images": rows,
        "width": width,
        "files": {role: _write_named(folder, role, make) for role, make in makers.items()},
    }
    write_json(folder / manifest, {**facts, "sha256": _own_hash(facts)})


def tidy(folder: Path) -> None:
    """Remove every file of ours that no manifest names: leftovers of earlier states and of killed processes."""
    named: set[str] = set()
    for manifest in (MANIFEST, UNFINISHED):
        with suppress(OSError, ValueError, AttributeError, KeyError, TypeError):
            facts = json.loads((folder / manifest).read_text(encoding="utf-8"))
            named |= {file["name"] for file in facts["files"].values()}
    for file in folder.iterdir():
        if OURS.fullmatch(file.name) and file.name not in named:
            with suppress(
                OSError
            ):  # on Windows, a file that somebody still searches stays until the next time
                file.unlink()


def read(folder: Path, *, manifest: str = MANIFEST) -> Contents:
    """The index in `folder`, every file compared with its hash.

    Raises BundleError if it is missing, incomplete, altered or of a newer format. The embeddings are memory-mapped.
    """
    facts = read_facts(folder, manifest=manifest)
    try:
        places = {role: _checked(folder, role, facts["files"]) for role in facts["files"]}
    except _Replaced as missing:
        again = read_facts(folder, manifest=manifest)
        if again == facts:
            raise BundleError(f"{folder} lacks its file {missing}. {AGAIN}") from None
        return read(folder, manifest=manifest)
    names, digests, keys = _rows(places["names"])
    embeddings = _embeddings(places["embeddings"])
    if not len(names) == len(embeddings) == facts["images"] or embeddings.shape[1] != facts["width"]:
        raise BundleError(f"The files of {folder} do not belong together. {AGAIN}")
    return Contents(names, digests, keys, embeddings, places.get("graph"), facts)


def read_facts(folder: Path, *, manifest: str = MANIFEST) -> dict[str, Any]:
    """What `index.json` says, without a look at the other files. Raises BundleError as `read` does."""
    place = folder / manifest
    try:
        facts = json.loads(place.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise BundleError(
            f"{folder} is no index: it has no {manifest}. Name a folder that `graft index` made."
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(f"{place} cannot be read: {error}. {AGAIN}") from error
    number = (
        re.fullmatch(r"(\d{1,4})\.(\d{1,4})", str(facts.get("format")), re.ASCII) if _is_dict(facts) else None
    )
    if number is None:
        raise BundleError(f"{place} does not say of which format it is. {AGAIN}")
    if int(number[1]) != FORMAT[0]:
        raise BundleError(
            f"{folder} has the index format {number[0]}; this Graft reads {FORMAT[0]}.x. Update Graft."
        )
    stated = facts.pop("sha256", None)
    try:
        sound = stated == _own_hash(facts)
    except (ValueError, RecursionError):
        sound = False
    if not sound or any(type(facts.get(name)) is not kind for name, kind in _FACTS.items()):
        raise BundleError(f"{place} was altered: its hash differs. {AGAIN}")
    if not {"names", "embeddings"} <= set(facts["files"]) <= set(ENDINGS):
        raise BundleError(f"{place} lacks its list of files. {AGAIN}")
    return facts


class _Replaced(Exception):
    """A file is not there: altered, or replaced by a newer state since `index.json` was read."""


def _write_named(folder: Path, role: str, make: Callable[[Path], object]) -> dict[str, str]:
    """Let `make` write a file, and give it the name that its content asks for."""
    handle, name = tempfile.mkstemp(dir=folder, prefix=".graft-", suffix=ENDINGS[role])
    os.close(handle)
    place = Path(name)
    try:
        make(place)
        with place.open("rb+") as file:
            os.fsync(file.fileno())
        place.chmod(0o644)
        found = file_digest(place)
        final = folder / f"{role}-{found[:16]}{ENDINGS[role]}"
        if final.is_file() and file_digest(final) == found:
            place.unlink()
        else:
            place.replace(final)
    except BaseException:
        place.unlink(missing_ok=True)
        raise
    return {"name": final.name, "sha256": found}


def _own_hash(facts: Mapping[str, Any]) -> str:
    """The hash of all of `index.json` but the hash itself; text that is no Unicode counts by its escapes."""
    text = json.dumps(facts, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _is_dict(value: object) -> bool:
    return isinstance(value, dict)


def _checked(folder: Path, role: str, files: dict[str, Any]) -> Path:
    name = files[role].get("name") if _is_dict(files[role]) else None
    if not isinstance(name, str) or not OURS.fullmatch(name) or not name.startswith(f"{role}-"):
        raise BundleError(f"{folder / MANIFEST} names a file that Graft did not write: {name!r}. {AGAIN}")
    place = folder / name
    try:
        found = file_digest(place)
    except FileNotFoundError:
        raise _Replaced(name) from None
    except OSError as error:
        raise BundleError(f"{place} cannot be read: {error.strerror or error}. {AGAIN}") from error
    if found != files[role].get("sha256"):
        raise BundleError(f"{place} was altered: its hash differs from that in {MANIFEST}. {AGAIN}")
    return place


def _rows(place: Path) -> tuple[tuple[str, ...], tuple[str, ...], Int64[np.ndarray, " n"]]:
    try:
        lines = [json.loads(line) for line in place.read_bytes().split(b"\n") if line]
        names = tuple(line["name"] for line in lines)
        digests = tuple(line["digest"] for line in lines)
        keys = np.array([line["key"] for line in lines], np.int64)
    except (OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        raise BundleError(f"{place} cannot be read: {error}. {AGAIN}") from error
    if not all(isinstance(text, str) for text in names + digests) or len(set(keys.tolist())) < len(keys):
        raise BundleError(f"{place} is not a list of images. {AGAIN}")
    return names, digests, keys


def _embeddings(place: Path) -> Float16[np.ndarray, "n d"]:
    try:
        found = np.load(place, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError, SyntaxError) as error:
        raise BundleError(f"{place} cannot be read: {error}. {AGAIN}") from error
    if not isinstance(found, np.ndarray) or found.dtype != np.float16 or found.ndim != 2 or not found.size:
        raise BundleError(f"{place} holds no embeddings. {AGAIN}")
    return found
