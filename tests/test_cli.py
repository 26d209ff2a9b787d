"""The command line as a process: what it prints, what it returns, what it refuses."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from made_sets import stripes, weights_folder

from graft.cli import main


def graft(
    *arguments: str | Path, timeout: float = 300, cache: Path | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "graft.cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout,
        env=None if cache is None else {**os.environ, "GRAFT_CACHE": str(cache)},
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished study made by the command itself, with its cache beside it."""
    place = tmp_path_factory.mktemp("cli")
    photos = stripes(place / "photos", each=12)
    (photos / "left" / "broken.jpg").write_bytes(b"no image")
    weights = weights_folder(place / "weights")
    given = [
        "study",
        photos,
        "--out",
        place / "run",
        "--weights",
        weights,
        "--only",
        "frozen",
        "--folds",
        "3",
    ]
    done = graft(*given, cache=place / "cache")
    assert done.returncode == 0, done.stderr
    assert "the first answer" in done.stdout and "Choice:" in done.stdout
    assert f"report: {place / 'run' / 'report.html'}" in done.stdout
    assert "1 files left out" in done.stdout
    return place / "run"


def test_predict_in_its_three_forms(run: Path) -> None:
    photos = run.parent / "photos"
    plain = graft("predict", run / "model.graft", photos / "left" / "000.png", "--topk", "2")
    assert plain.returncode == 0 and "left" in plain.stdout and "right" in plain.stdout
    lines = graft("predict", run / "model.graft", photos / "right", "--json").stdout.splitlines()
    assert len(lines) == 12 and all(json.loads(line)["label"] in ("left", "right") for line in lines)
    table = list(
        csv.DictReader(io.StringIO(graft("predict", run / "model.graft", photos / "right", "--csv").stdout))
    )
    assert len(table) == 12 and float(table[0]["left"]) + float(table[0]["right"]) == pytest.approx(
        1, abs=1e-4
    )


def test_predict_names_what_it_cannot_read_and_answers_the_rest(run: Path) -> None:
    photos = run.parent / "photos"
    done = graft("predict", run / "model.graft", photos / "left")
    assert done.returncode == 2 and len(done.stdout.splitlines()) == 12
    assert "broken.jpg" in done.stderr and "1 of 13" in done.stderr and "Traceback" not in done.stderr


def test_scores_on_what_it_was_fitted_on_are_called_so(run: Path, tmp_path: Path) -> None:
    photos = run.parent / "photos"
    done = graft("evaluate", run / "model.graft", photos, "--json")
    seen = json.loads(done.stdout)["fitted_on"]
    assert (
        done.returncode == 0 and 12 <= seen <= 24 and f"was fitted on {seen} of these images" in done.stderr
    )
    for label in ("left", "right"):
        (tmp_path / "later" / label).mkdir(parents=True)
        shutil.copy(photos / label / "000.png", tmp_path / "later" / label)
    other = graft("evaluate", run / "model.graft", tmp_path / "later", "--json")
    assert json.loads(other.stdout)["fitted_on"] == 0 and "fitted on" not in other.stderr


def test_an_empty_folder_does_not_stop_the_others(run: Path, tmp_path: Path) -> None:
    photos, empty = run.parent / "photos", tmp_path / "empty"
    empty.mkdir()
    done = graft("predict", run / "model.graft", empty, photos / "right")
    assert done.returncode == 2 and len(done.stdout.splitlines()) == 12
    assert f"{empty}: It is a folder, and holds no image files." in done.stderr and "1 of 13" in done.stderr
    alone = graft("predict", run / "model.graft", empty)
    assert alone.returncode == 2 and not alone.stdout and "holds no image files" in alone.stderr


def test_a_frozen_study_of_known_features_does_without_torch(run: Path, tmp_path: Path) -> None:
    """Its import takes as long as everything else together."""
    given = ["study", run.parent / "photos", "--out", tmp_path / "again", "--weights", run.parent / "weights"]
    typed = [str(word) for word in [*given, "--only", "frozen", "--folds", "3"]]
    code = f"import sys; from graft.cli import main; print(main({typed}), 'torch' in sys.modules)"
    environment = {**os.environ, "GRAFT_CACHE": str(run.parent / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, env=environment
    )
    assert done.stdout.splitlines()[-1] == "0 False", done.stderr


def test_the_report_can_be_written_again(run: Path, tmp_path: Path) -> None:
    done = graft("report", run, "--out", tmp_path / "again.html")
    assert done.returncode == 0 and (tmp_path / "again.html").read_text().lower().startswith(
        "<!doctype html>"
    )


def test_check_lists_what_is_wrong(run: Path, tmp_path: Path) -> None:
    done = graft("check", run.parent / "photos", "--json", "--out", tmp_path / "check.csv")
    facts = json.loads(done.stdout)
    assert facts["images"] == 24 and facts["excluded"] == 1 and facts["classes"] == {"left": 12, "right": 12}
    assert "broken.jpg" in (tmp_path / "check.csv").read_text()
    assert "broken.jpg" in graft("check", run.parent / "photos").stdout


def test_models_and_doctor(run: Path) -> None:
    weights = run.parent / "weights"
    listed = json.loads(
        graft("models", "--weights", weights, "--sort", "size", "--max-params", "5M", "--json").stdout
    )
    sizes = [row["parameters"] for row in listed]
    assert sizes == sorted(sizes) and max(sizes) <= 5_000_000
    assert next(row for row in listed if row["name"] == "test_resnet.made")["weights"] == "here"
    assert {row["name"] for row in listed if row["weights"] == "embedded"} == {"graft_small.distilled"}
    assert all(row["weights"] in ("here", "embedded", "hub", "unreachable") for row in listed)
    facts = json.loads(graft("doctor", "--weights", weights, "--json").stdout)
    assert "test_resnet.made" in facts["here"] and facts["cache"]["bytes"] > 0
    assert "openvino" in graft("doctor").stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("study", "nowhere"), "nowhere"),
        (("study", ".", "--metric", "beauty"), "macro_f1"),
        (("study", ".", "--budget", "soon"), "5m"),
        (("study", ".", "--only", "some"), "frozen"),
        (("study", ".", "--max-size", "big"), "5MB"),
        (("study", ".", "--device", "abacus"), "cpu"),
        (("study", ".", "--out", "../elsewhere", "--weights", "nowhere"), "weights.json"),
        (("predict", "nowhere", "a.jpg"), "bundle"),
        (("report", "nowhere"), "nowhere"),
        (("models", "--sort", "taste"), "size"),
        (("models", "--max-params", "few"), "5M"),
        (("check", "nowhere"), "nowhere"),
        (("study", ".", "--budget", "-5s"), "--budget -5s: give a duration"),
        (("study", ".", "--max-latency", "-1ms"), "--max-latency -1ms"),
        (("study", ".", "--backbones", ","), "--backbones: give auto"),
        (("study", ".", "--bogus"), "--bogus. See graft"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(arguments: tuple[str, ...], said: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "graft", *arguments],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=120,
    )
    assert done.returncode == 2
    assert said in done.stderr and done.stderr.startswith("graft: ") and "Traceback" not in done.stderr
    assert done.stderr.count("\n") == 1 and "usage" not in done.stderr


def test_an_unknown_backbone_is_answered_with_the_nearest(run: Path, tmp_path: Path) -> None:
    done = graft("study", run.parent / "photos", "--out", tmp_path / "r", "--backbones", "resnet5O")
    assert done.returncode == 2 and "resnet50" in done.stderr


def test_a_named_backbone_out_of_reach_is_said(run: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "graft.cli",
            "study",
            str(run.parent / "photos"),
            "--out",
            str(tmp_path / "r"),
            "--backbones",
            "vgg16",
        ],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        timeout=120,
    )
    assert done.returncode == 2 and "--weights" in done.stderr


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")]
)
def test_too_little_memory_is_a_sentence(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def without_memory(*_: object) -> int:
        raise error

    monkeypatch.setattr("graft.commands.doctor.run", without_memory)
    assert main(["doctor"]) == 2
    assert capsys.readouterr().err.startswith("graft: Memory ran out. Ask for less at a time")


def test_a_fault_of_the_program_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def faulty(*_: object) -> int:
        raise RuntimeError("a fault")

    monkeypatch.setattr("graft.commands.doctor.run", faulty)
    with pytest.raises(RuntimeError, match="a fault"):
        main(["doctor"])
