"""Training one recipe by hand: a study of one candidate, whatever the options; resumable, repeatable, verified."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator
from pathlib import Path
from threading import Event as Flag
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
from graft.studies.journal import read
from graft.studies.rungs import Progress
from graft.studies.single.settings import resolved_training
from graft.studies.single.train import _what_training_came_to, training_by_hand


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return weights_folder(tmp_path_factory.mktemp("train_weights"), ("test_resnet",))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stripes(tmp_path_factory.mktemp("train") / "photos", each=14)


@pytest.fixture(scope="module")
def both_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return weights_folder(tmp_path_factory.mktemp("train_both"), ("test_resnet", "test_convnext"))


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


def folds_of(out: Path) -> list[dict[str, Any]]:
    """The folds that the journal of a run holds, in the order in which they were finished."""
    return [record for record in read(out) if record["kind"] == "fold"]


def packed_bytes(result: graft.StudyResult) -> int:
    return (result.bundle() / "model.onnx").stat().st_size


@pytest.mark.parametrize(
    ("options", "strategy", "cut"),
    [
        ({"freeze": "all", "balance": "logit"}, "frozen", "layer4"),
        ({"freeze": "all", "head": "mlp"}, "frozen", "layer4"),
        ({"freeze": "layer3", "lr": "find"}, "partial", "layer3"),
        ({"freeze": 5, "head": "linear"}, "partial", "layer1"),
        ({"freeze": "layer2", "tap": "depths"}, "partial", "layer2"),
        ({"init": "random", "cutmix": 0.5, "ema": False}, "scratch", ""),
        ({"backbone": "scratch", "generations": 2, "epochs": 1}, "scratch", ""),
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
    if "generations" in options:
        assert {curve["epochs"][-1]["number"] for curve in row["curves"]} == {2}
        assert all(curve["best_epoch"] == curve["generation"] for curve in row["curves"])
    if "lr" in options:
        assert len({curve["trunk_rate"] for curve in row["curves"]} - {2e-4}) >= 1


def test_a_frozen_network_with_a_ridge_head(photos: Path, weights: Path, tmp_path: Path) -> None:
    events, result = finish(work(photos, weights, tmp_path / "run", freeze="all", patience=3))
    row = checked(result, photos)
    assert (row["strategy"], row["curves"]) == ("frozen", None)
    assert any("--epochs, --patience changed nothing" in event.text for event in events)
    assert "layers are frozen" in result.facts["training"]["in_words"]


@pytest.mark.parametrize("freeze", ["layer4", 30])
def test_the_last_stage_frozen_is_everything_frozen(
    photos: Path, weights: Path, tmp_path: Path, freeze: str | int
) -> None:
    options = {"freeze": freeze, "cutmix": 1.0, "batch_norm": "train", "seeds": 3, "epochs": None}
    _, result = finish(work(photos, weights, tmp_path / "run", **options))
    row = checked(result, photos)
    (told,) = [notice for notice in result.facts["notices"] if "changed nothing" in notice]
    assert "so --batch-norm, --cutmix, --seeds changed nothing" in told
    assert row["strategy"] == "frozen" and "seeds" not in result.facts
    assert "batch normalisation" not in result.facts["training"]["in_words"]


@pytest.mark.parametrize("freeze", ["all", "layer4"])
def test_equal_ridge_heads_are_no_spread(photos: Path, weights: Path, tmp_path: Path, freeze: str) -> None:
    out = tmp_path / "run"
    _, result = finish(work(photos, weights, out, freeze=freeze, seeds=3, epochs=None))
    assert "so --seeds changed nothing" in " ".join(result.facts["notices"])
    assert "seeds" not in result.facts and len(folds_of(out)) == 2


@pytest.mark.parametrize(
    ("options", "learned"),
    [
        ({"backbone": "test_resnet"}, True),
        ({"backbone": "test_resnet", "freeze": "layer3"}, True),
        ({"backbone": "test_resnet", "freeze": "layer4", "head": "linear"}, False),
        ({"backbone": "test_resnet", "freeze": 29}, True),
        ({"backbone": "test_convnext"}, False),
        ({"backbone": "test_convnext", "freeze": 5}, False),
        ({"backbone": "test_convnext", "init": "random"}, False),
        ({"backbone": "scratch"}, True),
    ],
)
def test_batch_norm_is_said_to_learn_only_where_there_is_some(
    photos: Path, both_weights: Path, tmp_path: Path, options: dict[str, Any], learned: bool
) -> None:
    events = work(photos, both_weights, tmp_path / "run", **options, batch_norm="train")
    said = ""
    for event in events:
        said += event.text + "\n"
        if event.kind == "progress" and "fold 1" in event.text:
            break
    events.close()
    assert ("statistics of batch normalisation are learned" in said) == learned
    assert ("so --batch-norm train changed nothing" in said) != learned


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


FOLD = 100.0  # seconds, by the clock of the tests of seeds
LAST_FIT = 130.0


@pytest.fixture
def after(
    photos: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[float], graft.StudyResult]:
    """Three seeds on two folds of 100 s, in the same run folder every time it is called; the argument is how many
    seconds the first seed leaves."""
    options = {"freeze": "layer3", "epochs": 1, "seeds": 3, "budget": "1h"}

    def finished(seconds: float) -> graft.StudyResult:
        def left(frame: Frame) -> float:
            folds = sum(record["kind"] == "fold" for record in frame.journal.records)
            return seconds - FOLD * (folds - 2)

        with monkeypatch.context() as patch:
            patch.setattr("graft.studies.single.training._seconds", lambda _: FOLD)
            patch.setattr(Frame, "remaining_seconds", left)
            _, result = finish(work(photos, weights, tmp_path / "run", **options))
        assert only(result)["complete"]
        return result

    return finished


def of_seeds(result: graft.StudyResult) -> str:
    """What is told of seeds that the budget did not pay."""
    return " ".join(notice for notice in result.facts["notices"] if "The budget paid for" in notice)


def test_a_seed_is_begun_only_where_the_budget_pays_it_and_the_last_fit(
    after: Callable[[float], graft.StudyResult], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    one = after(2 * FOLD + LAST_FIT - 1)
    assert len(folds_of(out)) == 2 and "seeds" not in one.facts
    assert (
        "1 of 3 seeds, so it is not known how far seeds differ. A further one takes about 200 s, and"
        in of_seeds(one)
    )
    assert "130 s are kept for the last fit; the same command with a longer --budget" in of_seeds(one)
    two = after(2 * FOLD + LAST_FIT + 1)
    assert len(folds_of(out)) == 4 and len(two.facts["seeds"]["values"]) == 2
    assert "over 2 seeds" in two.facts["seeds"]["sentence"]
    assert "The budget paid for 2 of 3 seeds. A further one" in of_seeds(two)
    again = after(0.0)
    assert again.facts["seeds"] == two.facts["seeds"] and of_seeds(again) == of_seeds(two)
    three = after(6 * FOLD + LAST_FIT + 1)
    assert three.facts["seeds"]["values"][:2] == two.facts["seeds"]["values"]
    assert len(three.facts["seeds"]["values"]) == 3 and not of_seeds(three)


def test_a_seed_that_the_clock_cuts_off_is_not_counted(
    after: Callable[[float], graft.StudyResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr("graft.studies.single.training._begun", lambda _work, seed: seed == 1)
        cut = after(FOLD + LAST_FIT + 1e-6)  # a millionth of a second for the second fold of the second seed
    assert len(folds_of(out)) == 3 and "seeds" not in cut.facts
    assert "The budget paid for 1 of 3 seeds" in of_seeds(cut)
    whole = after(6 * FOLD + LAST_FIT + 1)
    assert {record["curve"]["stopped"] for record in folds_of(out)} == {"epochs"}
    assert len(whole.facts["seeds"]["values"]) == 3


def test_where_the_clock_cut_off_the_first_seed_the_others_have_the_same_time(
    photos: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    options = {"freeze": "layer3", "epochs": 100_000, "patience": 100_000, "seeds": 2, "budget": "1h"}
    monkeypatch.setattr(Frame, "remaining_seconds", lambda _: 1.0 if len(folds_of(out)) < 2 else 20.0)
    _, result = finish(work(photos, weights, out, **options))
    folds = folds_of(out)
    assert [record["curve"]["stopped"] for record in folds] == ["deadline"] * 4
    assert all(record["seconds"] < 10 for record in folds)
    assert "cut trainings of all of them off after the same time" in result.facts["seeds"]["sentence"]


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
        ({"tap": "layer9"}, r"has the taps .*layer4.* depths, or auto"),
        ({"tap": "depths", "freeze": "all"}, "--tap depths reads all stages that learn, and none does"),
        ({"freeze": "layer9"}, "--freeze layer9: give all, none"),
        ({"freeze": 999}, "--freeze 999: give all, none, .*0 to 30"),
        ({"freeze": 30, "tap": "layer2"}, r"0 to 1\d\)"),
        ({"freeze": "layer4", "ensemble": 3}, "--ensemble 3: ridge heads on the same features are all equal"),
        ({"freeze": 30, "ensemble": 2}, "--ensemble 2: ridge heads on the same features are all equal"),
        ({"freeze": "layer2", "tap": "layer2", "ensemble": 2}, "--ensemble 2: ridge heads"),
    ):
        with pytest.raises(SettingsError, match=told):
            next(work(photos, weights, out, save_recipe=page, **wrong))
    assert not out.exists() and not page.exists()
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("mine")
    with pytest.raises(RunError, match="other files"):
        finish(work(photos, weights, foreign))


def test_a_training_that_the_budget_ended_is_told_so() -> None:
    def told(*curves: tuple[str, int, int]) -> list[str]:
        facts = [{"stopped": why, "best_epoch": best, "epochs": [{}] * ran} for why, best, ran in curves]
        return [event.text for event in _what_training_came_to(Progress(), facts, freezes=True)]

    assert told(("patience", 2, 5), ("epochs", 0, 5)) == []
    (cut,) = told(("deadline", 1, 2), ("deadline", 0, 1), ("epochs", 3, 3))
    assert cut.startswith("The budget ended 2 of 3 trainings after 1 to 2 epochs")
    both = told(("deadline", 0, 1), ("deadline", 0, 1))
    assert "after 1 epochs" in both[0] and both[1].endswith("so this is the frozen network.")
    (none,) = told(("epochs", 0, 9))
    assert none.endswith("Give more --epochs or --patience, or a lower --freeze.")
    facts = [{"stopped": "epochs", "best_epoch": 0, "epochs": [{}]}]
    (free,) = _what_training_came_to(Progress(), facts, freezes=False)
    assert free.text.endswith("Give more --epochs or --patience."), "nothing is frozen"


def test_stopped_by_hand_after_a_fold_a_training_is_an_unfinished_answer(
    photos: Path, weights: Path, tmp_path: Path
) -> None:
    """The second fold is left at once; the same command goes on and gives what it would have given."""
    options: dict[str, Any] = {"freeze": "layer3", "folds": 3}
    settings = resolved_training(
        photos, out=tmp_path / "run", weights=weights, backbone="test_resnet", epochs=2, size=32, **options
    )
    halt = Flag()
    told: list[Event] = []
    events = training_by_hand(settings, halt=halt)
    while True:
        try:
            told.append(next(events))
        except StopIteration as end:
            result = end.value
            break
        if any(event.kind == "result" for event in told) and "fold 2" in told[-1].text:
            halt.set()
    (curve,) = checked(result, photos)["curves"]
    assert curve["fold"] == 0 and not only(result)["complete"]
    assert "The study was stopped by hand after 1 of 3 folds" in " ".join(result.facts["notices"])
    _, again = finish(work(photos, weights, tmp_path / "run", **options))
    _, whole = finish(work(photos, weights, tmp_path / "whole", **options))
    assert only(again)["metrics"] == only(whole)["metrics"] and only(again)["complete"]
