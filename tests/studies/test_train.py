"""Training one recipe by hand: a study of one candidate, whatever the options; resumable, repeatable, verified."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from made_sets import stripes, weights_folder
from study_schema import problems

import graft
from graft import console
from graft.errors import BackboneError, RunError, SettingsError
from graft.store import Store
from graft.studies import results
from graft.studies.frame import Event, Frame
from graft.studies.single.settings import resolved_training
from graft.studies.single.train import training_by_hand


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return weights_folder(tmp_path_factory.mktemp("train_weights"), ("test_resnet",))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stripes(tmp_path_factory.mktemp("train") / "photos", each=14)


def work(photos: Path, weights: Path, out: Path, **options: Any) -> Generator[Event, None, graft.StudyResult]:
    given = {"backbone": "test_resnet", "folds": 2, "epochs": 2, "size": 32, **options}
    return training_by_hand(resolved_training(photos, out=out, weights=weights, **given))


def finish(events: Generator[Event, None, graft.StudyResult]) -> tuple[list[Event], graft.StudyResult]:
    told = []
    while True:
        try:
            told.append(next(events))
        except StopIteration as end:
            return told, end.value


def only(result: graft.StudyResult) -> dict[str, Any]:
    (row,) = result.facts["candidates"]
    return row


def checked(result: graft.StudyResult, photos: Path) -> dict[str, Any]:
    """The candidate of a result that is whole, with a bundle that answers."""
    assert problems(result.facts) == []
    bundle = graft.load(result.bundle())
    assert bundle.facts["parity"]["largest_difference"] <= 1e-3
    assert bundle.predict(photos / "left" / "000.png").label in ("left", "right")
    row = only(result)
    return row


def packed_bytes(result: graft.StudyResult) -> int:
    return (result.bundle() / "model.onnx").stat().st_size


@pytest.mark.parametrize(
    ("options", "strategy", "cut"),
    [
        ({"freeze": "all", "balance": "logit"}, "frozen", "layer4"),
        ({"freeze": "all", "head": "mlp"}, "frozen", "layer4"),
        ({"freeze": "layer3", "lr": "find"}, "partial", "layer3"),
        ({"freeze": 5, "head": "linear"}, "partial", "layer1"),
        ({"init": "random", "cutmix": 0.5, "ema": False}, "scratch", ""),
        ({"backbone": "scratch", "input": "gray", "epochs": 1}, "scratch", ""),
    ],
)
@pytest.mark.slow
def test_every_way_to_train_ends_in_a_verified_bundle(
    photos: Path, weights: Path, tmp_path: Path, options: dict[str, Any], strategy: str, cut: str
) -> None:
    _, result = finish(work(photos, weights, tmp_path / "run", **options))
    row = checked(result, photos)
    assert row["strategy"] == strategy and (row["cut"] == cut or options["freeze"] == 5)
    assert result.facts["recipe"]["folds"] == 2
    if row["curves"]:
        assert {curve["batch_norm"] for curve in row["curves"]} <= {"frozen", "train"}
    if "lr" in options:
        assert len({curve["trunk_rate"] for curve in row["curves"]} - {2e-4}) >= 1


def test_a_frozen_network_with_a_ridge_head(photos: Path, weights: Path, tmp_path: Path) -> None:
    events, result = finish(work(photos, weights, tmp_path / "run", freeze="all", patience=3))
    row = checked(result, photos)
    assert (row["strategy"], row["curves"]) == ("frozen", None)
    assert any("--epochs, --patience changed nothing" in event.text for event in events)
    assert "layers are frozen" in result.facts["training"]["in_words"]


def test_killed_at_an_epoch_it_goes_on_and_ends_the_same(photos: Path, weights: Path, tmp_path: Path) -> None:
    options = {"freeze": "layer3", "epochs": 2}
    _, whole = finish(work(photos, weights, tmp_path / "whole", **options))
    events = work(photos, weights, tmp_path / "killed", **options)
    for event in events:
        if "fold 2 of 2" in event.text and event.done == 1:
            break
    events.close()
    assert len(list((tmp_path / "killed" / "trials").glob("*.tune.safetensors"))) == 1
    _, resumed = finish(work(photos, weights, tmp_path / "killed", **options))
    assert only(resumed)["metrics"] == only(whole)["metrics"]
    assert not list((tmp_path / "killed" / "trials").glob("*.tune.safetensors"))
    one, other = (graft.load(result.bundle()) for result in (whole, resumed))
    picture = photos / "left" / "000.png"
    assert one.predict(picture).probabilities == other.predict(picture).probabilities
    with pytest.raises(RunError, match="another study"):
        next(iter_to_claim(work(photos, weights, tmp_path / "killed", **{**options, "epochs": 3})))


def iter_to_claim(events: Generator[Event, None, Any]) -> Generator[Event, None, None]:
    """The events after the images were looked at."""
    for event in events:
        if event.kind == "notice":
            yield event


def test_an_ensemble_is_one_model_and_seeds_are_told(photos: Path, weights: Path, tmp_path: Path) -> None:
    options = {"freeze": "layer3", "head": "linear", "epochs": 1}
    _, single = finish(work(photos, weights, tmp_path / "one", **options))
    _, result = finish(work(photos, weights, tmp_path / "run", **options, ensemble=2, seeds=2))
    row = checked(result, photos)
    assert row["id"].endswith(" x2") and {curve["run"] for curve in row["curves"]} == {0, 1}
    lone = only(single)["cost"]["bytes"]
    assert lone == pytest.approx(packed_bytes(single), rel=0.02)
    assert (
        lone < packed_bytes(result) <= 1.02 * row["cost"]["bytes"] < 2 * lone
    )  # what is frozen is there once
    told = result.facts["seeds"]
    assert len(told["values"]) == 2 and told["least"] <= told["mean"] <= told["most"]
    assert told["values"][0] == pytest.approx(row["metrics"]["macro_f1"])
    assert told["sentence"] in result.facts["notices"]
    session = onnxruntime.InferenceSession(str(result.bundle() / "model.onnx"))
    rows = session.run(["embedding"], {"image": np.zeros((1, 32, 32, 3), np.uint8)})[0]
    assert np.linalg.norm(rows) == pytest.approx(1, abs=1e-3)


def test_a_saved_recipe_repeats_it(photos: Path, weights: Path, tmp_path: Path) -> None:
    page = tmp_path / "r.json"
    options = {"freeze": "all", "head": "linear", "epochs": 3, "save_recipe": page}
    _, first = finish(work(photos, weights, tmp_path / "one", **options))
    again = resolved_training(photos, out=tmp_path / "two", weights=weights, recipe=page)
    _, second = finish(training_by_hand(again))
    assert only(first)["metrics"] == only(second)["metrics"]
    assert json.loads(page.read_text()) == second.facts["recipe"]


def test_a_recipe_may_be_saved_into_the_run_folder(photos: Path, weights: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    options = {"freeze": "all", "save_recipe": out / "r.json"}
    for _ in range(2):
        _, result = finish(work(photos, weights, out, **options))
    assert json.loads((out / "r.json").read_text()) == result.facts["recipe"]
    (out / results.RUN).unlink()
    with pytest.raises(RunError, match=r"other files \(r.json\)"):
        finish(work(photos, weights, out, freeze="all"))
    finish(work(photos, weights, out, **options))


def test_a_budget_that_ends_after_a_fold_leaves_an_unfinished_answer(
    photos: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"freeze": "layer3", "epochs": 1, "budget": "1h"}

    def ending_after(folds: int) -> Callable[[Frame], float]:
        def left(frame: Frame) -> float:
            done = sum(record["kind"] == "fold" for record in frame.journal.records)
            return 3600.0 if done < folds else 0.0

        return left

    with monkeypatch.context() as short:
        short.setattr(Frame, "remaining_seconds", ending_after(0))
        with pytest.raises(RunError, match="before the first fold was done"):
            finish(work(photos, weights, tmp_path / "run", **options))
        short.setattr(Frame, "remaining_seconds", ending_after(1))
        _, part = finish(work(photos, weights, tmp_path / "run", **options))
    row = checked(part, photos)
    assert not row["complete"] and len(row["folds"]) == 1
    assert "after 1 of 2 folds" in " ".join(part.facts["notices"])
    assert "a longer --budget measures the rest" in part.choice["reason"]
    console.show_result(part)
    _, whole = finish(work(photos, weights, tmp_path / "run", **options))
    assert checked(whole, photos)["complete"] and len(only(whole)["folds"]) == 2
    _, straight = finish(work(photos, weights, tmp_path / "straight", **options))
    assert only(whole)["metrics"] == only(straight)["metrics"]
    picture = photos / "left" / "000.png"
    one, other = (graft.load(result.bundle()).predict(picture) for result in (whole, straight))
    assert one.probabilities == other.probabilities


def test_a_killed_study_goes_on_with_the_views_it_began_with(
    photos: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"freeze": "layer3", "epochs": 2, "seed": 7}
    monkeypatch.setattr(Store, "free_bytes", lambda _: 0)
    events, whole = finish(work(photos, weights, tmp_path / "whole", **options))
    assert any("made anew in every epoch" in event.text for event in events)
    killed = work(photos, weights, tmp_path / "killed", **options)
    for event in killed:
        if "fold 2 of 2" in event.text:
            break
    killed.close()
    monkeypatch.undo()
    _, resumed = finish(work(photos, weights, tmp_path / "killed", **options))
    assert only(resumed)["metrics"] == only(whole)["metrics"]


def test_what_cannot_be_is_told_before_anything_is_written(
    photos: Path, weights: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    with pytest.raises(BackboneError, match="--init random"):
        finish(work(photos, weights, out, backbone="resnet50.a1_in1k"))
    with pytest.raises(BackboneError, match="closest names"):
        finish(work(photos, weights, out, backbone="test_resnot"))
    assert not out.exists()
    page = tmp_path / "r.json"
    for wrong, told in (
        ({"tap": "layer9"}, r"has the taps .*layer4"),
        ({"freeze": "layer9"}, "--freeze layer9: give all, none"),
        ({"freeze": 999}, "--freeze 999: give all, none, .*0 to 30"),
        ({"freeze": 30, "tap": "layer2"}, r"0 to 1\d\)"),
    ):
        with pytest.raises(SettingsError, match=told):
            next(work(photos, weights, out, save_recipe=page, **wrong))
    assert not out.exists() and not page.exists()
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("mine")
    with pytest.raises(RunError, match="other files"):
        finish(work(photos, weights, foreign))
