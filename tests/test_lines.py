"""What the commands print when names are odd, readers leave, and disks are full."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from made_models import noise, packed
from PIL import Image

from graft.commands.lines import one_line
from graft.deploy.cells import path_cell
from graft.images.dataset import Preprocess

posix = pytest.mark.skipif(os.name == "nt", reason="names of any bytes, and pipes that break, are POSIX")


# As in a pipe by default, what is printed waits in a buffer.
BUFFERED = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}


def graft(*arguments: str | bytes | Path, **environment: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "graft.cli", *arguments],
        capture_output=True,
        env={**BUFFERED, **environment},
        timeout=120,
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packed(tmp_path_factory.mktemp("made") / "m.graft")


def photo(place: Path | bytes) -> None:
    with open(place, "wb") as file:  # noqa: PTH123 (a name that is bytes)
        Image.fromarray(noise(1, Preprocess(16))[0]).save(file, "PNG")


@posix
@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
def test_bytes_that_are_no_text_come_out_as_they_are(made: Path, tmp_path: Path, encoding: str) -> None:
    name = os.fsencode(tmp_path) + b"/bad\xff \xe8\x9a\x81.png"
    photo(name)
    told = {
        form: graft("predict", made, tmp_path, *form.split(), PYTHONIOENCODING=encoding)
        for form in ("", "--csv", "--json")
    }
    assert all(done.returncode == 0 and not done.stderr for done in told.values())
    if encoding == "utf-8":
        assert told[""].stdout.startswith(name + b": ")
        assert told["--csv"].stdout.splitlines()[1].startswith(name + b",")
    assert os.fsencode(json.loads(told["--json"].stdout.decode(encoding))["file"]) == name


@posix
def test_a_line_stays_a_line(made: Path, tmp_path: Path) -> None:
    photo(tmp_path / "two\nlines\x1b[2J.png")
    (tmp_path / "no\nimage.png").write_text("text")
    done = graft("predict", made, tmp_path)
    assert done.stdout.count(b"\n") == 1 and b"two\\nlines\\x1b[2J.png: " in done.stdout
    assert done.stderr.count(b"\n") == 2 and b"no\\nimage.png: The content" in done.stderr
    assert one_line("naïve 蟻\u202f\u2028") == "naïve 蟻\u202f\\u2028"


@posix
def test_a_reader_that_leaves_is_no_fault(made: Path, tmp_path: Path) -> None:
    photo(tmp_path / "a.png")
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "graft.cli", "predict", made, tmp_path],
        stdout=writing,
        stderr=subprocess.PIPE,
        env=BUFFERED,
        timeout=120,
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_is_a_sentence(made: Path, tmp_path: Path) -> None:
    photo(tmp_path / "a.png")
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "graft.cli", "predict", made, tmp_path],
            stdout=full,
            stderr=subprocess.PIPE,
            env=BUFFERED,
            timeout=120,
        )
    assert done.returncode == 2 and done.stderr.startswith(b"graft: ") and done.stderr.count(b"\n") == 1


def test_a_missing_file_is_named_and_the_others_are_answered(made: Path, tmp_path: Path) -> None:
    photo(tmp_path / "a.png")
    done = graft("predict", made, tmp_path / "none.png", tmp_path / "a.png")
    assert done.returncode == 2 and done.stdout.startswith(os.fsencode(tmp_path / "a.png"))
    assert b"none.png: " in done.stderr and b"1 of 2 files could not be read" in done.stderr


@posix
def test_no_file_is_a_formula(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = ["=x.png", "+x.png", "@x.png", "\tx.png", "-1+1.png"]
    for name in names:
        photo(Path(name))
    done = graft("predict", made, "--csv", "--", *names)
    files = [row["file"] for row in csv.DictReader(io.StringIO(done.stdout.decode()))]
    assert files == [f"./{name}" for name in names] and all(Path(file).is_file() for file in files)
    assert path_cell("a/=x.png") == "a/=x.png"
