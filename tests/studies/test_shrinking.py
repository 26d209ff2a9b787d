"""Shrinking: what is tried, the two gates, the pick, and `graft shrink` from a finished run to a small bundle."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import onnx
import pytest
from made_sets import stripes, weights_folder
from made_trials import probabilities, trial
from study_schema import problems

import graft
from graft import cli
from graft.deploy.conversion import is_int8
from graft.errors import RunError, SettingsError
from graft.studies.choice import Limits
from graft.studies.shrinking import finish, pooled, rung, students, worth
from graft.studies.shrinking.costs import Purse
from graft.studies.shrinking.finish import pick, settings_of
from graft.studies.shrinking.pooled import depths_to_try
from graft.studies.shrinking.variants import Variant, kind_of, shrunk_recipe, variant_of


def made(name: str, size: int, **variant: Any) -> Any:
    base = trial(name, probabilities(0.9, seed=1), size=size)
    if not variant:
        return base
    about = {
        "shrunk": {
            "variant": {"deepest": None, "share": 1.0, "precision": "float32", **variant},
            "from": name,
        }
    }
    return replace(base, recipe=shrunk_recipe(base, Variant(**variant)), about=about)


def point(name: str, score: float, size: int) -> dict[str, Any]:
    return {"id": name, "score": score, "bytes": size, "latency_ms": 1.0, "kind": "8 bits"}


def told(*points: dict[str, Any], refused: tuple[str, ...] = ()) -> dict[str, Any]:
    return {
        "metric": "macro_f1",
        "tolerance": 0.01,
        "reference": {"id": "full/x", "score": 0.9, "bytes": 3},
        "curve": list(points),
        "steps": [{"id": name, "accepted": False} for name in refused],
    }


def test_the_smallest_within_the_tolerance_is_picked() -> None:
    names = {"full/x": 9_000_000, "mid/x": 800_000, "low/x": 100_000}
    trials = {name: made(name, size) for name, size in names.items()}
    points = [point("low/x", 0.7, 1), point("mid/x", 0.895, 2), point("full/x", 0.9, 3)]
    assert pick(told(*points), trials, Limits())[0].recipe.name == "mid/x"
    assert pick(told(*points, refused=("mid/x",)), trials, Limits())[0].recipe.name == "full/x"
    assert pick(told(*points), trials, Limits(max_bytes=1_000_000))[1] == ""


def test_the_tolerance_counts_from_what_is_better_than_the_reference() -> None:
    names = {"full/x": 9_000_000, "deep/x": 900_000, "low/x": 800_000}
    trials = {name: made(name, size) for name, size in names.items()}
    points = [point("low/x", 0.895, 1), point("deep/x", 0.95, 2), point("full/x", 0.9, 3)]
    assert pick(told(*points), trials, Limits())[0].recipe.name == "deep/x"
    assert pick(told(*points), trials, Limits(max_bytes=850_000))[0].recipe.name == "low/x"


def test_what_is_better_but_larger_than_the_reference_does_not_raise_the_bar() -> None:
    names = {"full/x": 9_000_000, "huge/x": 20_000_000, "low/x": 800_000}
    trials = {name: made(name, size) for name, size in names.items()}
    points = [point("low/x", 0.895, 1), point("full/x", 0.9, 3), point("huge/x", 0.95, 9)]
    assert pick(told(*points), trials, Limits())[0].recipe.name == "low/x"


def test_where_nothing_meets_the_limits_the_nearest_is_named() -> None:
    trials = {"full/x": made("full/x", 9_000_000), "mid/x": made("mid/x", 800_000)}
    points = [point("mid/x", 0.895, 2), point("full/x", 0.9, 3)]
    picked, missed = pick(told(*points), trials, Limits(max_bytes=500_000))
    assert picked.recipe.name == "mid/x" and "nearest is mid/x (800 kB" in missed and "--max-size" in missed
    assert "--budget" not in missed
    unpaid = told(*points) | {"unpaid": 3}
    assert "a longer --budget: 3 steps were not paid." in pick(unpaid, trials, Limits(max_bytes=500_000))[1]


def test_kinds_and_names_follow_from_the_variant() -> None:
    assert kind_of(made("a/b", 1)) is None
    assert kind_of(made("a/b@128px", 1)) == "smaller input"
    assert kind_of(made("a/b", 1, precision="int8")) == "8 bits"
    assert kind_of(made("a/b", 1, share=0.5, precision="int8")) == "fewer channels, 8 bits"
    assert kind_of(made("a/b", 1, precision="int4")) == "4-bit weights"
    thin = made("a/b", 1, share=0.5, precision="int4")
    assert kind_of(thin) == "fewer channels, 4-bit weights" and thin.recipe.name == "a/b+thin:50+int4"
    assert variant_of(thin).calibrated
    student = made("a/b", 1, deepest=4, student=8, precision="int8")
    assert kind_of(student) == "student, 8 bits" and student.recipe.backbone == "small_cnn"
    assert student.recipe.name == "a/b+depths:4+student:8+int8" and student.recipe.geometry.size == 32
    deep = made("a/b", 1, deepest=4)
    assert kind_of(deep) == "several depths" and deep.recipe.name == "a/b+depths:4"
    assert variant_of(deep) == Variant(deepest=4) and not variant_of(deep).calibrated
    keys = {
        made("a/b", 1, **v).recipe.key
        for v in ({"deepest": 1}, {"deepest": 2}, {"precision": "int8"}, {"precision": "int4"})
    }
    assert len(keys) == 4


def test_each_depth_has_clearly_fewer_weights() -> None:
    assert depths_to_try([10, 80, 90, 95, 100]) == [4, 0]
    assert depths_to_try([1, 2, 4, 8, 16, 32, 64]) == [6, 5, 4, 3, 2]
    assert depths_to_try([]) == []


def test_the_front_leaves_out_what_something_smaller_beats() -> None:
    sizes = {"a/x": (1, 0.5), "b/x": (2, 0.4), "c/x": (3, 0.6)}
    trials = [made(name, size) for name, (size, _) in sizes.items()]
    found = worth.front_of(trials, lambda one: sizes[one.recipe.name][1])
    assert [one.recipe.name for one in found] == ["a/x", "c/x"]


def test_a_purse_pays_until_it_is_empty() -> None:
    purse = Purse(10.0)
    assert [purse.pays(cost) for cost in (6.0, 6.0, 4.0, 0.1)] == [True, False, True, False]
    assert not Purse(10.0, until=monotonic()).pays(1.0)


def test_a_run_of_an_older_graft_is_told(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"settings": {}}')
    with pytest.raises(RunError, match="Run the study again"):
        settings_of(tmp_path)


@pytest.mark.parametrize("tolerance", [-0.1, 0.6, float("nan")])
def test_a_senseless_tolerance_is_refused(tolerance: float, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="--tolerance"):
        graft.shrink(tmp_path, tolerance=tolerance)


def test_no_study_is_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["shrink", str(tmp_path / "none")]) == 2
    assert "holds no finished study" in capsys.readouterr().err
    assert cli.main(["shrink", str(tmp_path), "--max-size", "small"]) == 2
    assert "--max-size small" in capsys.readouterr().err
    assert cli.main(["shrink", str(tmp_path), "--budget", "soon"]) == 2
    assert "--budget soon" in capsys.readouterr().err


@pytest.mark.slow
def test_a_finished_study_gets_a_small_bundle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(pooled, "MOST_DEPTHS", 2)
    monkeypatch.setattr(rung, "THIN_SHARES", (0.6,))
    monkeypatch.setattr(rung, "SMALLER_INPUTS", (96,))
    monkeypatch.setattr(rung, "WIDTHS", (8,))
    monkeypatch.setattr(students, "STUDENT_VIEWS", 200)
    monkeypatch.setattr(students, "VIEWS", 1)
    photos = stripes(tmp_path / "photos", each=24)
    weights = weights_folder(tmp_path / "weights", ("test_resnet",))
    run = tmp_path / "run"
    graft.study(photos, out=run, weights=weights, only="frozen", folds=2, fit="squash")
    before = (run / "model.graft" / "model.onnx").read_bytes()
    old = {row["id"] for row in json.loads((run / "study.json").read_text())["candidates"]}
    result = graft.shrink(run, tolerance=0.2)
    facts = result.facts["shrink"]
    assert problems(result.facts) == []
    assert {step["kind"] for step in facts["steps"]} >= {"several depths", "8 bits", "student"}
    assert (run / "model.graft" / "model.onnx").read_bytes() == before
    assert old < {row["id"] for row in result.facts["candidates"]}
    small = graft.load(run / "model-small.graft")
    chosen = next(row for row in result.facts["candidates"] if row["id"] == facts["choice"])
    assert small.facts["recipe"] == chosen["recipe"]
    assert is_int8(onnx.load(run / "model-small.graft" / "model.onnx")) == (
        small.facts["precision"] != "float32"
    )
    assert np.mean([p.label == path.parent.name for p, path in _answers(small, photos)]) > 0.6
    lines = (run / "journal.jsonl").read_bytes().count(b'"kind": "fold"')
    again = graft.shrink(run, tolerance=0.2)
    assert again.facts["shrink"]["steps"] == facts["steps"]
    assert (run / "journal.jsonl").read_bytes().count(b'"kind": "fold"') == lines
    packed = (run / "model-small.graft" / "bundle.json").read_bytes()
    assert cli.main(["shrink", str(run), "--max-size", "1kB"]) == 2
    assert "Nothing within the tolerance meets the limits" in capsys.readouterr().err
    assert (run / "model-small.graft" / "bundle.json").read_bytes() == packed
    assert 'id="shrink"' in (run / "report.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_what_was_tuned_gets_8_bits_and_students(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(pooled, "MOST_DEPTHS", 0)
    monkeypatch.setattr(rung, "THIN_SHARES", ())
    monkeypatch.setattr(rung, "SMALLER_INPUTS", ())
    monkeypatch.setattr(rung, "WIDTHS", (8,))
    monkeypatch.setattr(rung, "worth_quantising", lambda *_: ([], []))
    monkeypatch.setattr(students, "STUDENT_VIEWS", 400)
    monkeypatch.setattr(students, "VIEWS", 2)
    photos = stripes(tmp_path / "photos", each=12)
    weights = weights_folder(tmp_path / "weights", ("test_resnet",))
    run = tmp_path / "run"
    graft.study(
        photos, out=run, weights=weights, only="finetuned", folds=2, fit="squash", backbones="test_resnet"
    )
    asked = (run / "run.json").read_bytes()
    tuned = list((run / "trials").glob("*.tuned.safetensors"))
    assert tuned and not list((run / "trials").glob("*.tune.safetensors"))
    result = graft.shrink(run, tolerance=0.5)
    facts = result.facts["shrink"]
    assert problems(result.facts) == [] and json.loads(asked)["settings"]["budget_seconds"] == 600
    assert json.loads((run / "run.json").read_bytes())["settings"] == json.loads(asked)["settings"]
    assert set(tuned) <= set((run / "trials").glob("*.tuned.safetensors"))
    made = {step["kind"]: step for step in facts["steps"]}
    assert set(made) == {"8 bits", "4-bit weights", "student", "student, 8 bits"}
    assert made["8 bits"]["from"] in {
        r["id"] for r in result.facts["candidates"] if r["strategy"] != "frozen"
    }
    assert made["8 bits"]["bytes_share"] < 0.7 and made["student, 8 bits"]["bytes_share"] < 0.7
    assert made["student"]["bytes"] < 300_000
    small = graft.load(run / "model-small.graft")
    chosen = next(row for row in result.facts["candidates"] if row["id"] == facts["choice"])
    assert small.facts["recipe"] == chosen["recipe"] and chosen["strategy"] == "shrunk"
    lines = (run / "journal.jsonl").read_bytes().count(b'"kind": "fold"')
    again = graft.shrink(run, tolerance=0.5)
    assert again.facts["shrink"]["steps"] == facts["steps"]
    assert (run / "journal.jsonl").read_bytes().count(b'"kind": "fold"') == lines


@pytest.mark.slow
def test_what_holds_in_8_bits_gets_4_bit_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pooled, "MOST_DEPTHS", 0)
    monkeypatch.setattr(rung, "THIN_SHARES", ())
    monkeypatch.setattr(rung, "SMALLER_INPUTS", ())
    monkeypatch.setattr(rung, "WIDTHS", ())
    photos = stripes(tmp_path / "photos", each=24)
    weights = weights_folder(tmp_path / "weights", ("test_resnet",))
    run = tmp_path / "run"
    graft.study(photos, out=run, weights=weights, only="frozen", folds=2, fit="squash")

    def pick_4_bits(_: Any, by_name: dict[str, Any], __: Limits) -> tuple[Any, str]:
        return next(one for name, one in by_name.items() if name.endswith("+int4")), ""

    monkeypatch.setattr(finish, "pick", pick_4_bits)
    result = graft.shrink(run, tolerance=0.2)
    facts = result.facts["shrink"]
    assert problems(result.facts) == []
    steps = {step["id"]: step for step in facts["steps"]}
    four = [step for name, step in steps.items() if name.endswith("+int4")]
    assert 1 <= len(four) <= rung.MOST_CODED
    for step in four:
        eight = steps[step["from"]]
        assert eight["id"] == step["id"].replace("+int4", "+int8")
        assert step["bytes"] < 0.9 * eight["bytes"] and step["bytes_share"] < 0.9
        assert eight["score"] >= facts["reference"]["score"] - rung.CODING_LOSS * 0.2
    records = [json.loads(line) for line in (run / "journal.jsonl").read_text().splitlines()]
    measured = [one["name"] for one in records if one["kind"] == "fold" and "+int4" in one["name"]]
    assert sorted(measured) == sorted(2 * [step["id"] for step in four])
    small = graft.load(run / "model-small.graft")
    assert small.facts["precision"] == "int4" and facts["choice"] in {step["id"] for step in four}
    graph = onnx.load(run / "model-small.graft" / "model.onnx").graph
    kinds = [node.op_type for node in graph.node]
    assert kinds.count("Gather") == kinds.count("Cast") - 1 > 0
    fresh = stripes(tmp_path / "fresh", each=24, seed=7)
    right = np.mean([answer.label == path.parent.name for answer, path in _answers(small, fresh)])
    assert right > steps[facts["choice"]]["score"] - 0.15
    again = graft.shrink(run, tolerance=0.2)
    assert again.facts["shrink"]["steps"] == facts["steps"]


def test_students_and_what_is_not_in_8_bits_get_no_4_bit_weights() -> None:
    assert worth.is_eight(made("a/b", 1, precision="int8")) and worth.is_eight(
        made("a/b", 1, share=0.5, precision="int8")
    )
    for variant in ({"student": 8, "precision": "int8"}, {"precision": "int4"}, {"deepest": 2}, {}):
        assert not worth.is_eight(made("a/b", 1, **variant))


def _answers(bundle: Any, photos: Path) -> list[tuple[Any, Path]]:
    paths = sorted(photos.rglob("*.png"))
    return list(zip(bundle.predict(paths), paths, strict=True))
