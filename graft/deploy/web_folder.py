"""A static folder that classifies in the browser: a bundle's graphs, a page, and ONNX Runtime compiled for browsers.

In: an opened bundle. Out: a folder for any web server: `index.html` with its style and scripts, `model.onnx`,
`preprocess.onnx` (decoded picture to network input), the graph of the score where the bundle has one, `labels.txt`,
`bundle.json`, and under `runtime/` two files of the npm package onnxruntime-web (MIT licence, 14 MB), of one version
whose hashes stand here. They come from a copy that is named, from the cache, or through `npm pack`; where none of these
has them, the folder is complete but for them, and `Written.absent` says which to put where.

Cost: the size of the bundle and of the runtime; seconds. The page asks no other address than its own. Not covered: big
networks (a browser has one thread here and holds the whole model in memory).
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from graft.deploy.bundle import MANIFEST, MODEL, Bundle
from graft.deploy.opening import sealed
from graft.errors import BundleError, SettingsError
from graft.store import Store, content_key, write_json

PACKAGE = "onnxruntime-web"
RUNTIME_VERSION = "1.30.0"
PACKAGE_SHA512 = (
    "ab4cbe26baedba45d2cec05610c71c55fa97db92d19a8b171c5f8269126683ca"
    "590a5cdc57bb2f35ce2b298de32f4d956fb42644c0ecd528a0a91e025c07ca61"
)
SCRIPT = "ort.wasm.bundle.min.mjs"
BINARY = "ort-wasm-simd-threaded.wasm"
RUNTIME_SHA256 = {
    SCRIPT: "11e64bd8ffe11bd1a2a2f0d6275fdfbbba7262f0b76b99b53d228a8a22ef3d90",
    BINARY: "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
}
RUNTIME = "runtime"
PREPROCESS = "preprocess.onnx"
LABELS = "labels.txt"
_MOST_BYTES = 64 * 1024**2  # of one file of the package
_PACK_SECONDS = 300
_POLICY = (
    "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'"
)


@dataclass(frozen=True, slots=True)
class Written:
    """The folder, its size in bytes, and the runtime's files that it lacks with the sha256 that they must have."""

    folder: Path
    size: int
    absent: tuple[tuple[str, str], ...]


def web_folder(bundle: Bundle, out: Path, *, runtime: Path | None = None) -> Written:
    """Write `bundle` as a static folder into `out`, which is new, empty, or an earlier export.

    `runtime`: a folder with the runtime's files, or the package as `npm pack` writes it; without it they are looked for
    in the cache and then fetched with npm. Raises SettingsError where `out` is something else or `runtime` does not
    hold the right files; OSError on a full disk.
    """
    if out.exists() and not (out.is_dir() and (_is_ours(out) or not any(out.iterdir()))):
        raise SettingsError(
            f"{out} is there and is no exported folder, so it is not touched. Name another one."
        )
    found = _from_copy(runtime) if runtime is not None else _from_cache() or _from_npm()
    out.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
    try:
        _write(bundle, beside, found)
        beside.chmod(0o755)
        if out.exists():
            shutil.rmtree(out)
        beside.replace(out)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    absent = [(f"{RUNTIME}/{name}", digest) for name, digest in RUNTIME_SHA256.items() if name not in found]
    return Written(out, size, tuple(absent))


def _is_ours(folder: Path) -> bool:
    return (folder / "browser.js").is_file() and (folder / MANIFEST).is_file()


def _write(bundle: Bundle, folder: Path, runtime: Mapping[str, bytes]) -> None:
    graphs = {MODEL: (bundle.folder / MODEL).read_bytes(), PREPROCESS: _preprocess(bundle)}
    score = bundle.decision.unknown_file
    if score is not None:
        graphs[score] = (bundle.folder / score).read_bytes()
    for name, content in graphs.items():
        (folder / name).write_bytes(content)
    (folder / LABELS).write_text("".join(f"{label}\n" for label in bundle.labels), encoding="utf-8")
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in graphs.items()}
    write_json(folder / MANIFEST, sealed({**bundle.facts, "files": hashes}))
    _write_page(folder)
    (folder / RUNTIME).mkdir()
    for name, content in runtime.items():
        (folder / RUNTIME / name).write_bytes(content)


def _preprocess(bundle: Bundle) -> bytes:
    """The bundle's own graph, or for an older bundle the one that its geometry asks for."""
    if PREPROCESS in bundle.facts["files"]:
        return (bundle.folder / PREPROCESS).read_bytes()
    try:
        from graft.deploy.preprocess_graph import preprocess_graph
    except ImportError as error:
        raise BundleError(
            f"{bundle.folder} has no {PREPROCESS}, and making it needs the package onnx: pip install onnx."
        ) from error
    return preprocess_graph(bundle.preprocess).SerializeToString()


def _write_page(folder: Path) -> None:
    web = files("graft.deploy") / "web"
    for name in ("page.css", "page.js", "browser.js"):
        (folder / name).write_text((web / name).read_text(encoding="utf-8"), encoding="utf-8")
    facts = {"version": RUNTIME_VERSION, "script": SCRIPT, "binary": BINARY}
    (folder / "runtime.js").write_text(f"const RUNTIME = {json.dumps(facts)};\n", encoding="utf-8")
    style = f'<meta http-equiv="content-security-policy" content="{_POLICY}">\n'
    style += '<link rel="stylesheet" href="page.css">'
    scripts = "\n".join(f'<script src="{name}.js"></script>' for name in ("page", "runtime", "browser"))
    page = (web / "page.html").read_text(encoding="utf-8")
    page = page.replace("<!--style-->", style).replace("<!--scripts-->", scripts)
    (folder / "index.html").write_text(page, encoding="utf-8")


def _from_copy(place: Path) -> dict[str, bytes]:
    """The runtime's files in a folder, below it, or in a package. Raises SettingsError where they are not these."""
    if place.is_dir():
        found = {}
        for name in RUNTIME_SHA256:
            near = [
                place / part / name for part in (".", "dist", "package/dist", f"node_modules/{PACKAGE}/dist")
            ]
            there = next((path for path in near if path.is_file()), None)
            if there is not None and there.stat().st_size <= _MOST_BYTES:
                found[name] = there.read_bytes()
    else:
        try:
            found = _unpacked(place.read_bytes())
        except OSError as error:
            raise SettingsError(
                f"--runtime {place} cannot be read: {error.strerror or error}. Name a folder with {SCRIPT} and "
                f"{BINARY}, or the package that `npm pack {PACKAGE}@{RUNTIME_VERSION}` writes."
            ) from error
    wrong = [name for name in RUNTIME_SHA256 if not _is_right(name, found.get(name))]
    if wrong:
        raise SettingsError(
            f"--runtime {place} does not hold {' and '.join(wrong)} of {PACKAGE} {RUNTIME_VERSION}. Name a folder "
            f"with these files, or the package that `npm pack {PACKAGE}@{RUNTIME_VERSION}` writes."
        )
    return found


def _from_cache() -> dict[str, bytes]:
    entry = Store().get(_key())
    if entry is None:
        return {}
    found = {name: entry.file(name).read_bytes() for name in RUNTIME_SHA256 if entry.file(name).is_file()}
    return found if all(_is_right(name, found.get(name)) for name in RUNTIME_SHA256) else {}


def _from_npm() -> dict[str, bytes]:
    """Through the npm of this machine and whatever registry it is set to; nothing where that does not work."""
    npm = shutil.which("npm")
    if npm is None:
        return {}
    with tempfile.TemporaryDirectory(prefix="graft-npm-", ignore_cleanup_errors=True) as folder:
        command = [
            npm,
            "pack",
            f"{PACKAGE}@{RUNTIME_VERSION}",
            "--ignore-scripts",
            "--pack-destination",
            folder,
        ]
        try:
            subprocess.run(command, cwd=folder, capture_output=True, timeout=_PACK_SECONDS, check=True)
            package = next(Path(folder).glob("*.tgz")).read_bytes()
        except (OSError, subprocess.SubprocessError, StopIteration):
            return {}
    if hashlib.sha512(package).hexdigest() != PACKAGE_SHA512:
        return {}
    found = _unpacked(package)
    if not all(_is_right(name, found.get(name)) for name in RUNTIME_SHA256):
        return {}
    with Store().writing(_key()) as place:
        for name, content in found.items():
            (place / name).write_bytes(content)
    return found


def _unpacked(package: bytes) -> dict[str, bytes]:
    """Those members of the package that are wanted, by their exact names; nothing is written to disk."""
    found = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(package), mode="r:gz") as archive:
            for name in RUNTIME_SHA256:
                member = archive.getmember(f"package/dist/{name}")
                held = archive.extractfile(member) if member.isfile() and member.size <= _MOST_BYTES else None
                if held is not None:
                    found[name] = held.read()
    except (tarfile.TarError, OSError, EOFError, KeyError, ValueError):
        return found
    return found


def _is_right(name: str, content: bytes | None) -> bool:
    return content is not None and hashlib.sha256(content).hexdigest() == RUNTIME_SHA256[name]


def _key() -> str:
    return content_key(PACKAGE, RUNTIME_VERSION, dict(RUNTIME_SHA256))
