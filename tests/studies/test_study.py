"""The main job on small made sets: everything is there, nothing leaks, and a killed study ends the same."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
from made_sets import NASTY_CLASSES, stripes, weights_folder

import graft
from graft.backbones import weights as embedding
from graft.backbones.hub import probe
from graft.errors import DatasetError, RunError
from graft.images.folds import split
from graft.images.scan import scan
from graft.store import Store
from graft.studies import search


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return weights_folder(tmp_path_factory.mktemp("weights"), ("test_resnet", "test_efficientnet"))


@pytest.fixture(scope="session")
def frozen(tmp_path_factory: pytest.TempPathFactory, weights: Path) -> tuple[Path, graft.StudyResult]:
    """One frozen study of 48 images, shared by the tests that only look at it."""
    place = tmp_path_factory.mktemp("frozen")
    photos = stripes(place / "photos")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRAFT_CACHE", str(place / "cache"))
        return photos, graft.study(photos, out=place / "run", weights=weights, only="frozen", folds=4)


def facts_without_times(facts: dict[str, Any]) -> dict[str, Any]:
    """The result of a study without what a clock says."""
    plain = json.loads(json.dumps(facts))
    for row in plain["candidates"]:
        del row["cost"]
    for key in ("seconds", "environment", "settings"):
        del plain[key]
    plain["choice"] = {
        "id": plain["choice"]["id"],
        "headline": plain["choice"]["headline"],
        "confusion": plain["choice"]["confusion"],
    }
    return plain


def test_the_run_folder_holds_what_is_promised(frozen: tuple[Path, graft.StudyResult]) -> None:
    _, result = frozen
    names = {path.name for path in result.run.iterdir()}
    assert {
        "run.json",
        "check.csv",
        "journal.jsonl",
        "study.json",
        "predictions.parquet",
        "report.html",
    } <= names
    assert {path.name for path in result.bundle().iterdir()} == {
        *("model.onnx", "preprocess.onnx", "unknown.onnx", "bundle.json", "labels.txt", "card.md"),
    }
    assert result.report().stat().st_size < 3_000_000


@pytest.mark.parametrize("place", [0, -1])
def test_the_best_network_is_shown_images_framed_both_ways(
    frozen: tuple[Path, graft.StudyResult],
    weights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    place: int,
) -> None:
    monkeypatch.setattr("graft.studies.frozen.pilot", lambda backbones: backbones[place][0])
    result = graft.study(frozen[0], out=tmp_path / "run", weights=weights, only="frozen", folds=4)
    rows = [row for row in result.facts["candidates"] if row["strategy"] == "frozen"]
    other = {row["backbone"] for row in rows if row["id"].endswith(("@crop", "@squash"))}
    as_all = [row for row in rows if not row["id"].endswith(("@crop", "@squash"))]
    best = max(as_all, key=lambda row: row["metrics"]["macro_f1"])
    assert best["backbone"] in other and {row["backbone"] for row in as_all} > other


def test_predictions_are_out_of_fold_for_every_candidate(frozen: tuple[Path, graft.StudyResult]) -> None:
    photos, result = frozen
    table = pyarrow.parquet.read_table(result.run / "predictions.parquet").to_pylist()
    candidates = {row["id"] for row in result.facts["candidates"]}
    assert {row["candidate"] for row in table} == candidates
    assert len(table) == 48 * len(candidates)
    dataset = scan(photos, store=Store(), threads=2)
    folds = split(dataset, count=4, seed=0)
    expected = dict(zip([image.name for image in dataset.images], folds.assignment.tolist(), strict=True))
    assert all(expected[row["file"]] == row["fold"] for row in table)
    assert all(abs(sum(row["probabilities"]) - 1) < 1e-4 for row in table)


def test_the_score_is_that_of_the_predictions(frozen: tuple[Path, graft.StudyResult]) -> None:
    from sklearn.metrics import f1_score

    result = frozen[1]
    table = pyarrow.parquet.read_table(result.run / "predictions.parquet").to_pylist()
    for candidate in result.facts["candidates"]:
        rows = [row for row in table if row["candidate"] == candidate["id"]]
        truth, said = [row["label"] for row in rows], [row["predicted"] for row in rows]
        assert candidate["metrics"]["macro_f1"] == pytest.approx(f1_score(truth, said, average="macro"))


def test_the_bundle_predicts_and_the_table_is_a_table(frozen: tuple[Path, graft.StudyResult]) -> None:
    photos, result = frozen
    answer = graft.load(result.bundle()).predict(photos / "left" / "000.png")
    assert answer.label in ("left", "right") and sum(answer.probabilities.values()) == pytest.approx(
        1, abs=1e-5
    )
    assert result.candidates.num_rows == len(result.facts["candidates"])


def test_a_second_run_gives_the_same_numbers(
    frozen: tuple[Path, graft.StudyResult], weights: Path, tmp_path: Path
) -> None:
    photos, result = frozen
    again = graft.study(photos, out=tmp_path / "again", weights=weights, only="frozen", folds=4)
    assert facts_without_times(again.facts) == facts_without_times(result.facts)


def test_labels_shuffled_score_no_better_than_chance(tmp_path: Path, weights: Path) -> None:
    """Whatever leaks would show here: heads, penalties, weightings, folds."""
    photos = tmp_path / "photos"
    generator = np.random.default_rng(0)
    made = stripes(tmp_path / "made", each=40)
    for name in ("left", "right"):
        (photos / name).mkdir(parents=True)
    for index, file in enumerate(sorted(made.rglob("*.png"))):
        file.rename(photos / ("left", "right")[int(generator.integers(2))] / f"{index:03}.png")
    result = graft.study(photos, out=tmp_path / "run", weights=weights, only="frozen")
    best = max(row["metrics"]["accuracy"] for row in result.facts["candidates"])
    assert best < 0.70
    low, _high = result.choice["headline"]["interval"]
    assert low < 0.5


def test_a_locked_test_is_scored_for_the_choice_alone(tmp_path: Path, weights: Path) -> None:
    stripes(tmp_path / "photos" / "train", each=20)
    stripes(tmp_path / "photos" / "test", each=8, seed=7)
    result = graft.study(tmp_path / "photos", out=tmp_path / "run", weights=weights, only="frozen", folds=3)
    table = pyarrow.parquet.read_table(result.run / "predictions.parquet").to_pylist()
    tested = [row for row in table if row["split"] == "test"]
    assert {row["candidate"] for row in tested} == {result.choice["id"]} and len(tested) == 16
    assert all(row["file"].startswith("test/") for row in tested)
    assert result.choice["headline"]["kind"] == "test" and result.choice["test"]["images"] == 16


def test_names_of_classes_may_be_nasty(tmp_path: Path, weights: Path) -> None:
    photos = stripes(tmp_path / 'ph "o" tos', classes=NASTY_CLASSES, each=12)
    result = graft.study(photos, out=tmp_path / "run x=1", weights=weights, only="frozen", folds=3)
    assert result.facts["dataset"]["class_names"] == sorted(NASTY_CLASSES)
    assert graft.load(result.bundle()).labels == tuple(sorted(NASTY_CLASSES))


def test_limits_are_held_or_the_nearest_is_offered(
    frozen: tuple[Path, graft.StudyResult], weights: Path, tmp_path: Path
) -> None:
    photos, result = frozen
    sizes = sorted(row["cost"]["bytes"] for row in result.facts["candidates"])
    kept = graft.study(
        photos, out=tmp_path / "kept", weights=weights, only="frozen", folds=4, max_size=sizes[2]
    )
    chosen = next(row for row in kept.facts["candidates"] if row["id"] == kept.choice["id"])
    assert chosen["cost"]["bytes"] <= sizes[2] and kept.choice["limits_met"]
    missed = graft.study(
        photos, out=tmp_path / "missed", weights=weights, only="frozen", folds=4, max_size=1000
    )
    assert not missed.choice["limits_met"] and "max-size" in missed.choice["missed"]


def test_another_study_is_never_touched(
    frozen: tuple[Path, graft.StudyResult], weights: Path, tmp_path: Path
) -> None:
    photos, result = frozen
    before = {path: path.stat().st_mtime_ns for path in result.run.rglob("*") if path.is_file()}
    with pytest.raises(RunError, match="--overwrite"):
        graft.study(photos, out=result.run, weights=weights, only="frozen", folds=3)
    assert before == {path: path.stat().st_mtime_ns for path in result.run.rglob("*") if path.is_file()}
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(RunError, match=r"thesis\.txt"):
        graft.study(photos, out=tmp_path / "mine", weights=weights, overwrite=True)


def test_no_run_folder_among_the_images(tmp_path: Path) -> None:
    photos = stripes(tmp_path / "photos", each=4)
    with pytest.raises(RunError, match="among the images"):
        graft.study(photos, out=photos / "runs" / "x")
    assert not (photos / "runs").exists()


@pytest.mark.parametrize(("each", "folds"), [(2, 5), (3, 2), (5, 10)])
def test_very_few_images_have_an_answer(tmp_path: Path, weights: Path, each: int, folds: int) -> None:
    photos = stripes(tmp_path / "photos", each=each)
    result = graft.study(photos, out=tmp_path / "run", weights=weights, only="frozen", folds=folds)
    assert result.facts["settings"]["folds"] <= folds
    assert result.bundle().is_dir()


def test_one_class_and_no_images_are_refused(tmp_path: Path) -> None:
    stripes(tmp_path / "one", classes=("only",))
    with pytest.raises(DatasetError, match="only"):
        graft.study(tmp_path / "one", out=tmp_path / "run")
    (tmp_path / "none").mkdir()
    with pytest.raises(DatasetError):
        graft.study(tmp_path / "none", out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_from_scratch_learns_and_is_compared_on_the_same_folds(tmp_path: Path, weights: Path) -> None:
    photos = stripes(tmp_path / "photos", each=30)
    result = graft.study(photos, out=tmp_path / "run", weights=weights, folds=3, budget="60s")
    scratch = next(row for row in result.facts["candidates"] if row["strategy"] == "scratch")
    assert scratch["complete"] and scratch["metrics"]["macro_f1"] > 0.8
    assert len(scratch["curves"]) == 3 and all(curve["epochs"] for curve in scratch["curves"])
    versus = result.facts["scratch_versus_transfer"]
    assert versus["interval"][0] <= versus["difference"] <= versus["interval"][1]


def offline(tmp_path: Path, photos: Path, *options: str) -> dict[str, Any]:
    """study.json of a study in a process that cannot reach the hub and finds nothing in its caches."""
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(tmp_path / "hf"),
        "TORCH_HOME": str(tmp_path / "t"),
        "GRAFT_CACHE": str(tmp_path / "cache"),
    }
    command = [sys.executable, "-m", "graft.cli", "study", str(photos), "--out", str(tmp_path / "run")]
    done = subprocess.run(
        [*command, "--folds", "2", "--budget", "60s", "--json", *options],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
def test_without_hub_and_weights_the_embedded_backbone_is_there(tmp_path: Path) -> None:
    facts = offline(tmp_path, stripes(tmp_path / "photos", each=20), "--only", "frozen")
    assert {row["backbone"] for row in facts["candidates"]} == {"graft_small.distilled"}
    assert sum("cannot be had now" in notice for notice in facts["notices"]) == 1
    assert (tmp_path / "run" / "model.graft" / "model.onnx").stat().st_size < 6e6


@pytest.mark.slow
def test_nothing_to_transfer_from_is_said_and_the_study_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedding, "EMBEDDED", tmp_path / "nothing")
    for name in ("HF_HOME", "TORCH_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(search, "reach_hub", probe)  # whose first answer would stay for the tests that follow
    photos = stripes(tmp_path / "photos", each=20, grey=True)
    facts = graft.study(photos, out=tmp_path / "run", folds=2, budget="60s").facts
    assert facts["dataset"]["grey"]
    assert {row["strategy"] for row in facts["candidates"]} == {"random", "scratch"}
    assert any("nothing to transfer from" in notice for notice in facts["notices"])


@pytest.mark.slow
def test_killed_at_random_moments_a_study_ends_the_same(
    frozen: tuple[Path, graft.StudyResult], weights: Path, tmp_path: Path
) -> None:
    photos, expected = frozen
    cache = tmp_path / "cache"
    command = [sys.executable, "-m", "graft.cli", "study", str(photos), "--out", str(tmp_path / "run")]
    command += ["--weights", str(weights), "--only", "frozen", "--folds", "4"]
    environment = {**os.environ, "GRAFT_CACHE": str(cache)}
    moments = random.Random(0)
    finished: set[tuple[str, int]] = set()
    for _ in range(12):
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        time.sleep(moments.uniform(0.3, 7))
        process.send_signal(signal.SIGKILL)
        process.wait()
        now = _finished(tmp_path / "run")
        assert finished <= now
        finished = now
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    facts = json.loads((tmp_path / "run" / "study.json").read_text())
    assert facts_without_times(facts) == facts_without_times(expected.facts)
    left = [
        path.name
        for path in (tmp_path / "run").iterdir()
        if path.name.startswith(".") and path.name != ".lock"
    ]
    assert not left


def _finished(run: Path) -> set[tuple[str, int]]:
    from graft.studies.journal import read

    return {(record["recipe"], record["fold"]) for record in read(run) if record["kind"] == "fold"}
