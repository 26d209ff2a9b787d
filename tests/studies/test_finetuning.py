"""Fine-tuning as a rung: on the same folds, within the plan, resumable, and packed with its new weights."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from threading import Event as Flag
from typing import Any

import numpy as np
import pytest
from made_sets import stripes, weights_folder
from made_trials import probabilities, targets, trial
from study_schema import problems

import graft
from graft.learning.loop import Epoch
from graft.report import page
from graft.studies import results
from graft.studies.choice import Choice, choose
from graft.studies.epochs import epoch_facts
from graft.studies.frame import Event
from graft.studies.rungs import kept_for_the_end, last_fit_seconds
from graft.studies.search import studying
from graft.studies.settings import resolved
from graft.studies.tuning import plan as plans
from graft.studies.tuning import timing
from graft.studies.tuning.options import Cost
from graft.studies.tuning.plan import Level
from graft.studies.tuning.rung import TOO_SLOW

TOGETHER = "+depths+quarters"
SHORT = (Level(epochs=2, views=1, folds=0, least=2),)


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return weights_folder(tmp_path_factory.mktemp("tuned_weights"), ("test_resnet",))


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stripes(tmp_path_factory.mktemp("tuned") / "photos", each=18)


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two epochs are enough to see the machinery."""
    monkeypatch.setattr(plans, "LEVELS", SHORT)


def work(photos: Path, weights: Path, out: Path) -> Generator[Event, None, graft.StudyResult]:
    return studying(
        resolved(photos, out=out, weights=weights, only="finetuned", folds=2, fit="squash", budget="10m")
    )


def finish(events: Generator[Event, None, graft.StudyResult]) -> tuple[list[Event], graft.StudyResult]:
    told = []
    while True:
        try:
            told.append(next(events))
        except StopIteration as end:
            return told, end.value


@pytest.fixture(scope="session")
def study(
    tmp_path_factory: pytest.TempPathFactory, photos: Path, weights: Path
) -> tuple[list[Event], graft.StudyResult]:
    place = tmp_path_factory.mktemp("tuned_run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRAFT_CACHE", str(place / "cache"))
        patch.setattr(plans, "LEVELS", SHORT)
        return finish(work(photos, weights, place / "run"))


def scores(result: graft.StudyResult) -> dict[str, Any]:
    return {row["id"]: row["metrics"] for row in result.facts["candidates"]}


def test_tuned_candidates_are_ordinary_rows(study: tuple[list[Event], graft.StudyResult]) -> None:
    _, result = study
    assert problems(result.facts) == []
    rows = {row["id"]: row for row in result.facts["candidates"]}
    tuned = [row for row in rows.values() if row["strategy"] in ("partial", "full")]
    assert {row["strategy"] for row in tuned if row["complete"]} <= {"partial", "full"} and tuned
    for row in tuned:
        read, _, _ = row["id"].partition("+tuned:")
        frozen = rows[read.removesuffix(TOGETHER)]
        assert (row["strategy"] == "full") == (row["cut"] == "")
        assert (row["cost"]["bytes"] > frozen["cost"]["bytes"]) == read.endswith(TOGETHER)
        assert row["cost"]["bytes"] - frozen["cost"]["bytes"] == 4 * (
            row["cost"]["parameters"] - frozen["cost"]["parameters"]
        )
        assert row["cost"]["latency_ms"] == frozen["cost"]["latency_ms"]
        assert {fold["fold"] for fold in row["curves"]} <= {0, 1}
        for epoch in (epoch for fold in row["curves"] for epoch in fold["epochs"]):
            assert epoch["planned"] == 2
            assert all(0 <= epoch[f"{part}_metric"] <= 1 for part in ("train", "validation"))


def test_the_scores_of_an_epoch_are_told_as_the_metric_itself() -> None:
    epoch = Epoch(1, 2, 0.3, 0.4, math.nan, 1e-3, 0.5, 0.9, -0.3, -0.4)
    facts = epoch_facts(epoch, "log_loss")
    assert (facts["train_metric"], facts["validation_metric"]) == (0.3, 0.4)
    assert facts["validation_accuracy"] is None and "train_score" not in facts


def test_which_mirrorings_keep_the_class_is_asked_once(
    study: tuple[list[Event], graft.StudyResult],
) -> None:
    """Of the best frozen candidate, whatever is tuned."""
    events, result = study
    assert sum(row["folds_done"] > 0 for row in result.facts["plan"]) > 1
    for symmetry in ("mirror", "upside_down", "transpose"):
        assert sum(event.text.endswith(f": {symmetry}?") for event in events) <= 1
    assert any(event.text.endswith("?") for event in events)


def test_the_plan_is_told_before_and_compared_after(study: tuple[list[Event], graft.StudyResult]) -> None:
    events, result = study
    notices = [event.text for event in events if event.kind == "notice"]
    assert any(text.startswith("Plan: ") for text in notices)
    assert any("predicted" in text for text in notices)
    plan = json.loads((result.run / results.STUDY).read_text())["plan"]
    tried = [row for row in plan if row["decision"] == "tried"]
    assert tried and all(row["real_seconds"] > 0 and row["fold_seconds"] > 0 for row in tried)
    assert max(row["folds_done"] for row in tried) == 2


def test_what_is_slow_is_timed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    timing._mean_seconds(lambda: calls.append(1), most=4)
    assert len(calls) == 4
    monkeypatch.setattr(timing, "ENOUGH_SECONDS", 0.0)
    timing._mean_seconds(lambda: calls.append(1), most=4)
    assert len(calls) == 5


@pytest.mark.usefixtures("few")
def test_on_a_slow_machine_one_is_finished_and_the_rest_not_begun(
    photos: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = Cost(8.0, 0.1, 0.0)
    monkeypatch.setattr("graft.studies.tuning.rung.timed", lambda *_: slow)
    events, result = finish(work(photos, weights, tmp_path / "run"))
    plan = result.facts["plan"]
    tried = [row for row in plan if row["decision"] == "tried"]
    left = [row for row in plan if row["decision"] == TOO_SLOW]
    assert [row["folds_done"] for row in tried] == [2] and left and not any(row["folds_done"] for row in left)
    told = [event.text for event in events if "By these predictions" in event.text]
    assert len(told) == 1 and all(row["id"] in told[0] for row in left)
    again, _ = finish(work(photos, weights, tmp_path / "run"))
    assert any(event.text == told[0] for event in again)


@pytest.mark.parametrize(("lead", "folds"), [(0.1, 2), (-0.1, 1)])
def test_a_plan_for_some_folds_goes_on_where_the_best_is_ahead(
    photos: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lead: float, folds: int
) -> None:
    monkeypatch.setattr(plans, "LEVELS", (Level(epochs=2, views=1, folds=1, least=1),))
    monkeypatch.setattr("graft.studies.tuning.rung._lead", lambda *_: lead)
    events, result = finish(work(photos, weights, tmp_path / "run"))
    assert max(row["folds_done"] for row in result.facts["plan"]) == folds
    told = [event.text for event in events if "there is time to measure it on all folds" in event.text]
    assert len(told) == (folds == 2)
    again, same = finish(work(photos, weights, tmp_path / "run"))
    assert scores(same).keys() == scores(result).keys() and len(again) < len(events)


@pytest.mark.usefixtures("few")
def test_a_study_killed_while_tuning_goes_on_and_ends_the_same(
    study: tuple[list[Event], graft.StudyResult], photos: Path, weights: Path, tmp_path: Path
) -> None:
    _, whole = study
    out = tmp_path / "run"
    events = work(photos, weights, out)
    for event in events:
        if event.kind == "progress" and ", fold 2 of 2" in event.text and event.done == 1:
            break
    events.close()
    kept = list((out / "trials").glob("*.tune.safetensors"))
    assert len(kept) == 1
    _, result = finish(work(photos, weights, out))
    assert scores(result).keys() == scores(whole).keys()
    for name, metrics in scores(result).items():
        assert metrics["log_loss"] == pytest.approx(scores(whole)[name]["log_loss"], abs=1e-6)
    assert not list((out / "trials").glob("*-[01].tune.safetensors"))


@pytest.mark.usefixtures("few")
def test_a_tuned_choice_is_fitted_packed_and_predicts(
    photos: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def prefer_tuned(trials: Any, *rest: Any, **more: Any) -> Choice:
        choice = choose(trials, *rest, **more)
        tuned = next(i for i, t in enumerate(trials) if t.recipe.strategy == "partial" and t.complete)
        return replace(choice, chosen=tuned)

    monkeypatch.setattr("graft.studies.ending.choose", prefer_tuned)
    _, result = finish(work(photos, weights, tmp_path / "run"))
    bundle = graft.load(result.bundle())
    assert bundle.facts["strategy"] == "partial"
    assert bundle.facts["parity"]["largest_difference"] <= 1e-3
    assert bundle.predict(photos / "left" / "000.png").label in ("left", "right")
    shutil.rmtree(tmp_path / "run")


def test_the_last_fit_of_what_was_trained_is_kept_time_for() -> None:
    frozen = trial("frozen", probabilities(0.9, seed=1))
    tuned = replace(frozen, train_seconds=50.0, curves=({"fold": 0}, {"fold": 1}))
    assert last_fit_seconds(frozen) == 0
    assert last_fit_seconds(tuned) == pytest.approx(1.3 * 25 + 0.3)  # of 300 images, 1 ms each


def test_time_is_kept_for_what_may_be_chosen_alone() -> None:
    good, poor = (trial(str(share), probabilities(share, seed=1)) for share in (0.9, 0.6))
    trained = [replace(one, train_seconds=50.0, curves=({"fold": 0},)) for one in (good, poor)]
    assert kept_for_the_end(targets(), [good, trained[0]]) == pytest.approx(65.3)
    assert kept_for_the_end(targets(), [good, trained[1]]) == 0 == kept_for_the_end(targets(), [])
    some = np.where(np.arange(300)[:, None] < 150, trained[0].probabilities, np.nan)
    assert kept_for_the_end(targets(), [good, replace(trained[0], probabilities=some)]) == 0
    surer = np.where(np.arange(300)[:, None] < 150, np.eye(3, dtype=np.float32)[targets()], np.nan)
    assert kept_for_the_end(targets(), [good, replace(trained[0], probabilities=surer)]) == pytest.approx(
        65.3
    )


def test_halted_after_a_fold_from_scratch_alone_it_ends_with_that_fold(photos: Path, tmp_path: Path) -> None:
    halt = Flag()
    settings = resolved(photos, out=tmp_path / "run", only="scratch", folds=3, budget="10m")
    events = studying(settings, halt=halt)
    for event in events:
        if event.kind == "result":
            assert "fold 1 of 3: macro-F1" in event.text
            halt.set()
            break
    _, result = finish(events)
    (row,) = result.facts["candidates"]
    assert [curve["fold"] for curve in row["curves"]] == [0] and not row["complete"]
    assert "a longer --budget measures the rest" in result.choice["reason"]
    assert list(graft.load(result.bundle()).labels) == ["left", "right"]
    assert "stopped by hand" in page.render(result.run)


@pytest.mark.usefixtures("few")
def test_once_halted_a_study_ends_with_the_answer_so_far(photos: Path, weights: Path, tmp_path: Path) -> None:
    halt = Flag()
    settings = resolved(photos, out=tmp_path / "run", weights=weights, folds=2, fit="squash", budget="10m")
    events = studying(settings, halt=halt)
    for event in events:
        if event.kind == "board" and event.text == "all backbones probed":
            halt.set()
            break
    _, result = finish(events)
    strategies = {row["strategy"] for row in result.facts["candidates"]}
    assert strategies == {"frozen"} and result.facts["plan"] == []
    told = "The study was stopped by hand: what was not measured by then is missing."
    assert result.facts["stopped_by_hand"] is True and result.facts["notices"][-1] == told
    assert "(the study was stopped by hand before it)" in result.facts["scratch_versus_transfer"]["sentence"]
    assert '"kind":"stopped"' in (result.run / "journal.jsonl").read_text().replace(" ", "")
    assert "stopped by hand" in page.render(result.run)
    assert result.bundle().is_dir() and list(graft.load(result.bundle()).labels) == ["left", "right"]
