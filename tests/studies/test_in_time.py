"""A rung ends where the time is over, the user wants the answer, or it cannot go on; what was measured stays."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from threading import Event as Flag
from typing import Any

import numpy as np
import pytest
from made_sets import stripes
from made_trials import probabilities, trial

from graft.backbones import scratch
from graft.backbones.catalogue import rows
from graft.backbones.weights import Reach
from graft.compute import Compute
from graft.errors import StoreError
from graft.images.dataset import Dataset
from graft.images.folds import Folds, split
from graft.images.scan import scan
from graft.learning.scratch_settings import TrainingSettings, planned_multiply_adds
from graft.learning.tune_settings import TuneSettings
from graft.store import Store
from graft.studies import rungs, scratching
from graft.studies.frame import Event, Frame, Trial, budget_of
from graft.studies.journal import Journal
from graft.studies.plan import NAMED, Plan
from graft.studies.recipe import Recipe
from graft.studies.rungs import Progress, Working
from graft.studies.schedule import RUNG, SCHEDULE, spent
from graft.studies.search import _in_time
from graft.studies.settings import resolved
from graft.studies.tuning import rung as tuning
from graft.studies.tuning.decided import PLAN, plan_of, rows_of, written
from graft.studies.tuning.finalists import finalists
from graft.studies.tuning.options import Cost, Option
from graft.studies.tuning.plan import TuningPlan

BUDGET = 100.0


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stripes(tmp_path_factory.mktemp("photos") / "photos", each=6)


@pytest.fixture(scope="module")
def looked_at(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Dataset, Folds, Store]:
    store = Store(tmp_path_factory.mktemp("store"))
    dataset = scan(photos, store=store, threads=1)
    return dataset, split(dataset, count=2, seed=0), store


@pytest.fixture
def frame_at(
    looked_at: tuple[Dataset, Folds, Store], photos: Path, tmp_path: Path
) -> Iterator[Callable[[float], Frame]]:
    """A study that has worked for so many of its 100 seconds."""
    dataset, folds, store = looked_at
    opened: list[Journal] = []

    def made(second: float) -> Frame:
        place = tmp_path / str(len(opened))
        opened.append(Journal(place, started=time.monotonic() - second))
        settings = resolved(photos, out=place, budget=BUDGET)
        return Frame(
            settings,
            dataset,
            folds,
            store,
            Compute("cpu", False, 1),
            None,
            Reach(False, False),
            opened[-1],
            Flag(),
        )

    yield made
    for journal in opened:
        journal.close()


def measured(frame: Frame) -> Progress:
    return Progress(trials=[trial("some/tap", probabilities(0.9, seed=1, count=len(frame.rows)))])


def rung(frame: Frame, done: Progress, *, pause: float = 0.0, error: Exception | None = None) -> Working:
    for number in range(3):
        time.sleep(pause)
        done.trials.append(trial(f"more/{number}", probabilities(0.8, seed=number, count=len(frame.rows))))
        yield Event("progress", "working", number, 3)
    if error is not None:
        raise error


def raising(error: Exception) -> Working:
    yield Event("progress", "working", 0, 1)
    raise error


def begun(frame: Frame) -> list[str]:
    return [record["name"] for record in frame.journal.records if record["kind"] == RUNG]


def test_in_time_all_of_it_is_done(frame_at: Callable[[float], Frame]) -> None:
    frame = frame_at(10.0)
    done = measured(frame)
    list(_in_time(frame, done, "some work", rung(frame, done), alone=True))
    assert len(done.trials) == 4 and not done.notices and begun(frame) == ["some work"]


def test_when_time_is_over_nothing_is_begun_or_journalled(frame_at: Callable[[float], Frame]) -> None:
    frame = frame_at(101.0)
    done = measured(frame)
    list(_in_time(frame, done, "some work", rung(frame, done), alone=True))
    assert len(done.trials) == 1 and begun(frame) == []
    assert "some work was not begun or not finished" in done.notices[0]


def test_a_rung_is_left_when_time_runs_out_and_keeps_what_it_measured(
    frame_at: Callable[[float], Frame],
) -> None:
    frame = frame_at(99.8)
    done = measured(frame)
    list(_in_time(frame, done, "slow work", rung(frame, done, pause=0.3), alone=True))
    assert [one.recipe.name for one in done.trials] == ["some/tap", "more/0"]
    assert "slow work" in done.notices[0] and begun(frame) == ["slow work"]


def test_what_an_earlier_session_began_brings_its_results_whatever_the_time(
    frame_at: Callable[[float], Frame],
) -> None:
    frame = frame_at(500.0)
    done = measured(frame)
    frame.journal.append(RUNG, {"name": "some work", "budget": 400.0})
    list(_in_time(frame, done, "some work", rung(frame, done), alone=True))
    assert len(done.trials) == 4 and not done.notices


def test_without_any_answer_the_work_goes_on(frame_at: Callable[[float], Frame]) -> None:
    frame, done = frame_at(500.0), Progress()
    events = _in_time(frame, done, "some work", rung(frame, done), alone=True)
    assert next(events).kind == "progress" and len(done.trials) == 1


def test_whoever_wants_the_answer_gets_it(frame_at: Callable[[float], Frame]) -> None:
    frame = frame_at(1.0)
    done = measured(frame)
    frame.halt.set()
    list(_in_time(frame, done, "some work", rung(frame, done), alone=True))
    assert len(done.trials) == 1 and not done.notices and begun(frame) == []


def test_a_rung_that_fails_does_not_take_the_answer_with_it(frame_at: Callable[[float], Frame]) -> None:
    frame = frame_at(1.0)
    done, error = measured(frame), StoreError("The disk is full.")
    list(_in_time(frame, done, "some work", rung(frame, done, error=error), alone=True))
    assert len(done.trials) == 4 and done.notices[0].startswith("The disk is full. The study goes on")


def test_where_there_is_no_answer_the_failure_is_told(frame_at: Callable[[float], Frame]) -> None:
    def failing() -> Working:
        yield Event("progress", "working")
        raise StoreError("The disk is full.")

    with pytest.raises(StoreError):
        list(_in_time(frame_at(1.0), Progress(), "some work", failing(), alone=True))


def test_the_cheapest_backbone_comes_first_and_the_best_one_next() -> None:
    known = sorted((row for row in rows() if row.gmacs and row.top1), key=lambda row: row.gmacs or 0.0)[:20]
    listed = Plan(tuple((row, NAMED) for row in known), ()).order
    best = max(known, key=lambda row: row.top1 or 0.0)
    assert [row.name for row, _ in listed[:2]] == [known[0].name, best.name]
    assert {row.name for row, _ in listed} == {row.name for row in known} and len(listed) == len(known)
    assert Plan((), ()).order == ()


def test_each_budget_has_its_plan_and_the_seconds_of_all_add_up(frame_at: Callable[[float], Frame]) -> None:
    """A study that went on with twenty minutes plans for twenty, and has fine-tuned in both sessions."""
    short = frame_at(500.0)
    long = replace(short, settings=replace(short.settings, budget_seconds=1_200.0))
    for budget, seconds in ((100.0, 45.0), (1_200.0, 540.0)):
        rows = [{"name": "fine-tuning", "seconds": seconds, "at_most": True}]
        short.journal.append(SCHEDULE, {"budget": budget, "rungs": rows})
    begins = [("fine-tuning", 100.0, 10.0), ("shrinking", 100.0, 60.0)]
    begins += [("fine-tuning", 1_200.0, 80.0), ("shrinking", 1_200.0, 380.0)]
    for name, budget, at in begins:
        short.journal.append(RUNG, {"name": name, "budget": budget})["at"] = at
    for one, predicted in ((short, 45.0), (long, 540.0)):
        row = next(row for row in spent(one) if row["name"] == "fine-tuning")
        assert (row["predicted"], row["seconds"]) == (predicted, 350.0)


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")]
)
def test_a_rung_without_memory_does_not_either(error: Exception, frame_at: Callable[[float], Frame]) -> None:
    frame = frame_at(1.0)
    done = measured(frame)
    list(_in_time(frame, done, "some work", rung(frame, done, error=error), alone=True))
    assert len(done.trials) == 4 and done.notices[0].startswith("Memory ran out.")
    with pytest.raises(type(error)):
        list(_in_time(frame, Progress(), "some work", raising(error), alone=True))


def test_a_fault_of_the_program_is_not_hidden(frame_at: Callable[[float], Frame]) -> None:
    frame = frame_at(1.0)
    done = measured(frame)
    with pytest.raises(RuntimeError, match="shapes"):
        list(_in_time(frame, done, "some work", raising(RuntimeError("shapes differ")), alone=True))


@pytest.mark.parametrize(("planned", "first"), [(0.0, 20.0), (50.0, 25.0), (500.0, 30.0)])
def test_the_first_fold_from_scratch_gets_half_of_its_plan_at_least(
    frame_at: Callable[[float], Frame], monkeypatch: pytest.MonkeyPatch, planned: float, first: float
) -> None:
    """Sixty seconds are left for two folds and a last fit: half of them go to the first fold at most."""
    deadlines: list[float] = []

    def fold(
        frame: Frame, *_: Any, fold: int, deadline_seconds: float, **__: Any
    ) -> Generator[Event, None, tuple[dict[str, Any], np.ndarray]]:
        deadlines.append(deadline_seconds)
        yield Event("progress", "from scratch")
        rows = np.eye(frame.classes, dtype=np.float32)[frame.dataset.targets[frame.held_out(fold)]]
        recipe = scratching.scratch_recipe(frame, design, geometry, settings)
        return frame.journal.add_fold(
            recipe.key, fold, rows, {"seconds": 1.0, "curve": {"stopped": "plan"}}
        ), rows

    monkeypatch.setattr(scratching, "measured_fold", fold)
    frame = frame_at(BUDGET - 60.0)
    design, geometry = scratch.design(frame.dataset, development=len(frame.rows))
    settings = TrainingSettings()
    assert scratching.scratch_trial(frame, design, geometry, settings) is None
    list(scratching.scratching(frame, design, geometry, settings, [], fold_seconds=planned))
    trial = scratching.scratch_trial(frame, design, geometry, settings)
    assert trial is not None and trial.complete
    assert deadlines == pytest.approx([first, 30.0], abs=0.9)


def test_finished_folds_from_scratch_stay_when_the_time_is_over(
    frame_at: Callable[[float], Frame], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second fold is left in its midst; the first is a candidate, as an unfinished one that was tuned is."""

    def fold(
        frame: Frame, recipe: Recipe, *_: Any, fold: int, **__: Any
    ) -> Generator[Event, None, tuple[dict[str, Any], np.ndarray]]:
        yield Event("progress", "from scratch")
        if fold:
            frame.halt.set()
            yield Event("progress", "from scratch")
            raise AssertionError("it goes on")
        rows = np.eye(frame.classes, dtype=np.float32)[frame.dataset.targets[frame.held_out(fold)]]
        return frame.journal.add_fold(
            recipe.key, fold, rows, {"seconds": 1.0, "curve": {"stopped": "plan"}}
        ), rows

    monkeypatch.setattr(scratching, "measured_fold", fold)
    frame = frame_at(10.0)
    done = Progress(
        [trial("some/depths", probabilities(0.9, seed=1, count=len(frame.rows)), strategy="depths")]
    )
    list(_in_time(frame, done, "training from scratch", rungs.scratch_rung(frame, done), alone=True))
    assert [trial.recipe.strategy for trial in done.trials] == ["depths", "scratch"]
    assert [curve["fold"] for curve in done.trials[1].curves] == [0] and not done.trials[1].complete


def test_a_rung_that_ended_with_the_time_was_finished(frame_at: Callable[[float], Frame]) -> None:
    frame = frame_at(10.0)
    done = measured(frame)

    def last() -> Working:
        yield Event("progress", "working", 1, 1)
        frame.journal._opened -= BUDGET
        yield Event("board", "measured")

    list(_in_time(frame, done, "something", last(), alone=True))
    assert not done.notices


def test_a_fold_from_scratch_is_planned_by_its_multiply_adds(
    frame_at: Callable[[float], Frame], monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, float] = {}

    def nothing(*_: Any, **facts: float) -> Working:
        given.update(facts)
        yield from ()

    monkeypatch.setattr(rungs, "scratching", nothing)
    frame = frame_at(10.0)
    list(rungs.scratch_rung(frame, Progress()))
    design, _ = scratch.design(frame.dataset, development=len(frame.rows))
    work = planned_multiply_adds(design, len(frame.learned_from(0)), rungs.training_settings(frame))
    assert given["fold_seconds"] == pytest.approx(work / rungs.training_speed(frame.compute))


@pytest.mark.parametrize(("second", "paid", "kept"), [(5.0, 50.0, 0.0), (60.0, 5.0, 17.5)])
def test_where_tuning_begins_late_half_of_what_follows_may_pay_the_last_fit(
    frame_at: Callable[[float], Frame],
    monkeypatch: pytest.MonkeyPatch,
    second: float,
    paid: float,
    kept: float,
) -> None:
    given: list[float] = []

    def no_plan(frame: Frame, trials: Sequence[Trial], seconds: float, *, kept: float) -> TuningPlan:
        given.extend((seconds, kept))
        return TuningPlan((), 0, ())

    monkeypatch.setattr(tuning, "plan_of", no_plan)
    list(tuning.finetuning(frame_at(second), [], [], seconds=50.0, reserve=35.0))
    assert given == pytest.approx([paid, kept], abs=0.9)


@pytest.mark.parametrize(
    ("by_prior", "fold_seconds", "paid"), [(True, 10.0, 2), (False, 10.0, 1), (True, 25.0, 1)]
)
def test_of_the_best_by_prior_one_fold_is_paid_where_there_is_time_for_it(
    frame_at: Callable[[float], Frame], by_prior: bool, fold_seconds: float, paid: int
) -> None:
    """Of 50 seconds, 85 % may be planned: two folds of the one, and one of each, but not three in all."""
    frame = frame_at(0.0)
    answers = np.eye(2, dtype=np.float32)[frame.targets]
    first, second = (
        Option(trial(name, answers), "s2", TuneSettings(cut="s2"), Cost(0.1, 0.1, 0.1)) for name in ("a", "b")
    )
    plan = TuningPlan((first, replace(second, by_prior=by_prior)), 2, ())
    rows = rows_of(frame, plan)
    for row, seconds in zip(rows, (20.0, fold_seconds), strict=True):
        row |= {"fold_seconds": seconds, "cache_seconds": 1.0}
    work = tuning.Tuning(frame, plan, 50.0, rows)
    told = list(tuning._paid_by_the_clock(work))
    assert len(work.paid) == paid and len(told) == (paid == 1)
    again = tuning.Tuning(frame, plan, 50.0, rows)
    assert not list(tuning._paid_by_the_clock(again)) or paid == 1
    assert again.paid == work.paid


def test_a_measured_fold_corrects_the_forecast(frame_at: Callable[[float], Frame]) -> None:
    """Timing that fell into a busy moment must not end what then goes fast; a resumed fold is told by its epochs."""
    frame = frame_at(0.0)
    option = Option(
        trial("a", np.eye(2, dtype=np.float32)[frame.targets]),
        "s2",
        TuneSettings(cut="s2"),
        Cost(0.1, 0.1, 0.1),
    )
    plan = TuningPlan((option,), 2, ())
    rows = rows_of(frame, plan)
    work = tuning.Tuning(frame, plan, 50.0, rows)
    assert work.fold_seconds(option) is None
    rows[0] |= {"fold_seconds": 300.0}
    assert work.fold_seconds(option) == 300.0 and not work.pays(300.0)
    for fold, (seconds, epochs) in enumerate(((2.0, 1.0), (1.0, 4.0))):
        curve = {"epochs": [{"seconds": epochs / 2}] * 2}
        frame.journal.append(
            "fold", {"recipe": option.recipe.key, "fold": fold, "seconds": seconds, "curve": curve}
        )
    assert work.fold_seconds(option) == 3.0 and work.pays(3.0)


def test_a_busy_moment_does_not_keep_the_first_fold_from_being_tried(
    frame_at: Callable[[float], Frame],
) -> None:
    """By the count of layers there is time for it; only where there is none either, or something is known, timing decides."""
    frame = frame_at(0.0)
    answers = np.eye(2, dtype=np.float32)[frame.targets]
    first, second, dear = (
        Option(trial(name, answers), "s2", TuneSettings(cut="s2"), Cost(step, 0.1, 0.1))
        for name, step in (("a", 0.1), ("b", 0.1), ("c", 60.0))
    )
    work = tuning.Tuning(frame, TuningPlan((first, second), 2, ()), 50.0, [])
    assert not work.pays(300.0) and work.worth_a_try(first) and not work.worth_a_try(second)
    assert not tuning.Tuning(frame, TuningPlan((dear,), 2, ()), 50.0, []).worth_a_try(dear)
    work.trials[first.recipe.key] = first.trial
    assert not work.worth_a_try(first)


def test_the_first_fold_is_begun_though_its_timing_says_there_is_no_time(
    frame_at: Callable[[float], Frame], monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[str] = []

    def opened(_: Frame, option: Option) -> Generator[Event, None, None]:
        begun.append(option.recipe.name)
        yield Event("progress", "opening")
        raise StoreError("far enough")

    monkeypatch.setattr(tuning, "bench_of", opened)
    frame = frame_at(0.0)
    answers = np.eye(2, dtype=np.float32)[frame.targets]
    options = tuple(
        Option(trial(name, answers), "s2", TuneSettings(cut="s2"), Cost(0.1, 0.1, 0.1)) for name in "ab"
    )
    plan = TuningPlan(options, 2, ())
    rows = rows_of(frame, plan)
    for row in rows:
        row |= {"fold_seconds": 300.0, "cache_seconds": 1.0}
    work = tuning.Tuning(frame, plan, 50.0, rows)
    told = list(tuning._folds(work, options[1], range(1)))
    assert "the time was over after 0 folds" in told[0].text and not begun
    with pytest.raises(StoreError):
        list(tuning._folds(work, options[0], range(1)))
    assert begun == [options[0].recipe.name]


def test_a_plan_that_was_journalled_comes_back_whole(frame_at: Callable[[float], Frame]) -> None:
    """Of a killed study: who is the best by prior, too, without which a slow machine tunes one network alone."""
    frame = frame_at(0.0)
    answers = np.eye(2, dtype=np.float32)[frame.targets]
    trials = [trial(name, answers) for name in ("probe", "prior")]
    first, second = (
        Option(
            one,
            "s2",
            TuneSettings(cut="s2", epochs=5),
            Cost(0.1, 0.2, 0.3),
            together=("s3", "s4"),
            by_prior=one is trials[1],
        )
        for one in trials
    )
    facts = {"tried": [written(first), written(second)], "left": [], "folds": 2}
    frame.journal.append(PLAN, {"budget": budget_of(frame), **facts})
    plan = plan_of(frame, trials, 0.0)
    assert plan == TuningPlan((first, second), 2, ()) and plan.options[1].by_prior


def test_imagenet_accuracy_speaks_for_another_network_than_the_probe(
    frame_at: Callable[[float], Frame],
) -> None:
    frame = frame_at(0.0)
    right = np.eye(2, dtype=np.float32)[frame.targets]
    wrong = np.where(np.arange(len(right))[:, None] < 4, right[:, ::-1], right)
    row = next(one for one in rows() if one.name.startswith("resnet18"))
    entries = {"probe": replace(row, top1=50.0), "prior": replace(row, top1=80.0)}
    found = finalists(frame, [trial("prior", wrong), trial("probe", right)], entries)
    assert [one.recipe.backbone for one in found.trials] == ["probe", "prior"]
    assert found.by_prior == "prior"
