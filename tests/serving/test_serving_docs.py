"""docs/deploy.md, tested as written: the lines of Python, the curl calls, and the packages of the container."""

from __future__ import annotations

import importlib.metadata
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from made_service import image_bytes, packed
from served import served

from graft.deploy.bundle import load
from graft.images.dataset import Preprocess

PAGE = (Path(__file__).parents[2] / "docs" / "deploy.md").read_text(encoding="utf-8")


def block(language: str) -> str:
    found = re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    assert len(found) == 1
    return found[0]


@pytest.mark.parametrize("preprocess", [Preprocess(16), Preprocess(16, "squash", channels=1)])
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
    assert label == expected.label and float(probability) == pytest.approx(expected.probability, abs=1e-5)


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


def test_the_container_has_what_the_service_loads() -> None:
    """With what these packages need themselves."""
    program = (
        "import sys\nbefore = set(sys.modules)\nimport graft.cli, graft.serving.app, graft.serving.process\n"
        "import onnxruntime, uvicorn.protocols.http.h11_impl, uvicorn.lifespan.on\n"
        "print(' '.join({name.split('.')[0] for name in set(sys.modules) - before}))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    owners = importlib.metadata.packages_distributions()
    used = {normal(owner) for name in done.stdout.split() for owner in owners.get(name, [])}
    listed = re.search(r"pip install --no-cache-dir (\w.*) \\", block("dockerfile"))
    assert listed is not None
    given = {normal(name) for name in listed[1].split()}
    needed = set(given)
    for name in given:
        needed |= {normal(re.split(r"[^\w.-]", text)[0]) for text in importlib.metadata.requires(name) or ()}
    assert given <= used and used - needed <= {"graft-vision", "setuptools", "typing-extensions"}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
