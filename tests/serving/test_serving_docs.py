"""docs/deploy.md, tested as written: the lines of Python, the curl calls, the browser folder, and the container's packages;
and the numbers of docs/security.md."""

from __future__ import annotations

import importlib.metadata
import json
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from hostile import KINDS
from made_service import image_bytes, knowing, packed
from served import served

from graft.cli import _parser, main
from graft.deploy.bundle import load
from graft.images.dataset import Preprocess

try:
    import tomllib
except ImportError:  # Python 3.10
    tomllib = None  # type: ignore[assignment]

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")
DOCKERFILE = (ROOT / "docs" / "Dockerfile").read_text(encoding="utf-8")
REQUIREMENTS = (ROOT / "docs" / "serve-requirements.txt").read_text(encoding="utf-8")


def block(language: str) -> str:
    found = re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    assert len(found) == 1
    return found[0]


@pytest.mark.parametrize(
    "preprocess", [Preprocess(16), Preprocess(16, "squash", channels=1), Preprocess(16, "pad")]
)
def test_the_lines_of_python(tmp_path: Path, preprocess: Preprocess) -> None:
    folder = packed(tmp_path / "model.graft", preprocess)
    photo = tmp_path / "a.png"
    photo.write_bytes(image_bytes(2, side=40))
    done = subprocess.run(
        [sys.executable, "-c", block("python"), str(folder), str(photo)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    label, _, probability = done.stdout.strip().rpartition(" ")
    expected = load(folder).predict(photo)
    assert label == expected.label and float(probability) == pytest.approx(expected.probability, abs=0.01)


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_curl_calls(tmp_path: Path) -> None:
    folder = packed(tmp_path / "photos" / "model.graft")
    (tmp_path / "photo.jpg").write_bytes(image_bytes(2, form="JPEG"))
    expected = load(folder).predict(tmp_path / "photo.jpg")
    with served(tmp_path, folder) as service:
        said = []
        for line in block("sh").splitlines():
            call = shlex.split(line.replace("http://127.0.0.1:8000", service.url))
            done = subprocess.run(call, cwd=tmp_path, capture_output=True, text=True, timeout=60)
            assert done.returncode == 0, done.stderr
            said.append(json.loads(done.stdout))
    shown = json.loads(block("json"))
    assert said[0]["predictions"][0]["label"] == said[1]["predictions"][0]["label"] == expected.label
    assert list(said[0]) == list(shown) and said[0]["model"] == shown["model"]
    assert list(said[0]["predictions"][0]) == list(shown["predictions"][0])
    assert said[2]["ready"]


def listed() -> set[str]:
    """The packages of the container."""
    lines = [line.partition("#")[0].strip() for line in REQUIREMENTS.splitlines()]
    return {normal(re.split(r"[^\w.-]", line)[0]) for line in lines if line}


def with_theirs(names: set[str]) -> set[str]:
    """Packages with all that they need themselves, as installed here."""
    found, ahead = set(), list(names)
    while ahead:
        name = ahead.pop()
        if name in found:
            continue
        found.add(name)
        try:
            needed = importlib.metadata.requires(name) or ()
        except importlib.metadata.PackageNotFoundError:
            continue
        ahead += [normal(re.split(r"[^\w.-]", text)[0]) for text in needed if "extra ==" not in text]
    return found


BLOCKED = """
import importlib.metadata, re, sys
allowed = set(sys.argv[1].split(","))
owners = importlib.metadata.packages_distributions()
class Blocker:
    def find_spec(self, name, path=None, target=None):
        given = {re.sub(r"[-_.]+", "-", owner).lower() for owner in owners.get(name.partition(".")[0], ())}
        if given and not given & allowed:
            raise ImportError(f"{name} is not in the container")
sys.meta_path.insert(0, Blocker())
from graft.cli import main
sys.exit(main(sys.argv[2:]))
"""


def test_the_service_runs_on_the_containers_packages_alone(tmp_path: Path) -> None:
    """Everything else cannot be imported: neither torch nor timm, onnx, scipy or pyarrow."""
    folder, photo = packed(tmp_path / "model.graft", knowing=knowing()), tmp_path / "a.png"
    photo.write_bytes(image_bytes(2))
    allowed = with_theirs(listed()) | {"graft-vision"}
    assert not allowed & {"torch", "timm", "torchvision", "openvino", "onnx", "scipy", "pyarrow"}
    command = [sys.executable, "-c", BLOCKED, ",".join(allowed)]
    done = subprocess.run(
        [*command, "predict", str(folder), str(photo)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0 and load(folder).predict(photo).label in done.stdout, done.stderr
    with served(tmp_path, folder, command=command) as service:
        said = service.get("/predict?explain=1", photo.read_bytes())["predictions"][0]
        assert said["label"] == load(folder).predict(photo).label and said["activation"]
        assert service.get("/readyz")["ready"]


def test_the_dockerfile_names_what_there_is() -> None:
    """As far as it can be checked without building it: files, options and the health check's address exist."""
    assert block("dockerfile") == DOCKERFILE
    assert (
        "--requirement /tmp/serve-requirements.txt" in DOCKERFILE
        and "--no-deps /tmp/graft_vision-*.whl" in DOCKERFILE
    )
    copied = re.findall(r"^COPY (.+) \S+$", DOCKERFILE, re.MULTILINE)
    assert copied == ["serve-requirements.txt graft_vision-*.whl", "model.graft"]
    assert (ROOT / "docs" / "serve-requirements.txt").is_file()
    entry = json.loads(re.findall(r"^ENTRYPOINT (\[.*\])$", DOCKERFILE, re.MULTILINE)[0])
    options = _parser().parse_args(entry[1:])
    assert entry[0] == "graft" and options.bundles == ["model=/model.graft"] and options.host == "0.0.0.0"
    assert f"EXPOSE {options.port}" in DOCKERFILE and f":{options.port}/readyz" in DOCKERFILE
    project = tomllib.loads((ROOT / "pyproject.toml").read_text()) if tomllib else {}
    if project:
        needed = {normal(re.split(r"[^\w.-]", text)[0]) for text in project["project"]["dependencies"]}
        assert listed() <= needed | {"jaxtyping"} and "graft" in project["project"]["scripts"]


@pytest.mark.slow
def test_the_wheel_holds_every_file_of_the_package(tmp_path: Path) -> None:
    line = re.search(r"`pip (wheel .*) DIR \.`", PAGE)
    assert line is not None
    copied = tmp_path / "checkout"
    ignored = shutil.ignore_patterns(
        ".*", "tests", "benchmarks", "runs", "build", "__pycache__", "*.egg-info"
    )
    shutil.copytree(ROOT, copied, ignore=ignored)
    command = [sys.executable, "-m", "pip", *line[1].split(), str(tmp_path), str(copied)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    if done.returncode and "setuptools" in done.stderr:
        pytest.skip("the build's own requirements cannot be had here")
    (wheel,) = tmp_path.glob("graft_vision-*.whl")
    with zipfile.ZipFile(wheel) as packed:
        held = {name for name in packed.namelist() if name.startswith("graft/")}
    there = {path.relative_to(copied).as_posix() for path in (copied / "graft").rglob("*") if path.is_file()}
    assert there == held


def test_the_browser_folder_is_made_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed(tmp_path / "model.graft")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("graft.deploy.web_folder.shutil.which", lambda _: None)
    line = re.search(r"^    graft (export .*--to web.*)$", PAGE, re.MULTILINE)
    assert line is not None and main(shlex.split(line[1])) == 0
    assert (tmp_path / "site" / "index.html").is_file()


def test_the_security_page_shows_the_numbers_of_the_tests() -> None:
    page = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| ([^|*]+) \| ([\d,]+) \|$", page, re.MULTILINE))
    assert {kind: int(count.replace(",", "")) for kind, count in rows.items()} == KINDS
    assert f"**{sum(KINDS.values()):,}**" in page and sum(KINDS.values()) >= 5000


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
