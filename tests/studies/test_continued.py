"""A study that goes on: its bundle tells what study.json tells, and how often the locked test was opened is said."""

from __future__ import annotations

import json
from collections.abc import Generator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
from made_models import FEATURES, TAP, about, packed, trunk
from made_sets import stripes, weights_folder
from study_schema import problems

import graft
from graft.deploy.assemble import assembled
from graft.deploy.bundle import Bundle
from graft.deploy.pack import retell
from graft.errors import BundleError
from graft.images.dataset import Preprocess
from graft.judging.metrics import METRICS
from graft.report import wording
from graft.studies import ending
from graft.studies.ending import finishing, fitted_on_all
from graft.studies.finish import Fitted, times_opened
from graft.studies.finish import test_probabilities as probabilities_of_test
from graft.studies.frame import Event, Frame, Trial
from graft.studies.rungs import Progress
from graft.studies.search import studying
from graft.studies.settings import resolved


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return weights_folder(tmp_path_factory.mktemp("weights"), ("test_resnet",))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stripes(tmp_path_factory.mktemp("photos") / "photos", each=12)


@pytest.fixture(scope="module")
def with_a_test(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("tested") / "photos"
    stripes(place / "train", each=12)
    stripes(place / "test", each=6, seed=7)
    return place


@pytest.fixture
def fits(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the candidates that were fitted on all images, one more for every last fit."""
    names = []

    def counted(frame: Frame, trial: Trial, trunk: Any) -> Generator[Event, None, Fitted]:
        names.append(trial.recipe.name)
        return (yield from fitting(frame, trial, trunk))

    fitting = ending.fitting_frozen
    monkeypatch.setattr(ending, "fitting_frozen", counted)
    return names


def session(
    photos: Path, weights: Path, out: Path, *, taps: tuple[str, ...] = (), folds: int = 3
) -> graft.StudyResult:
    """One session of the study in `out` that came only as far as these taps (default: all) and so many folds."""

    def as_far(frame: Frame, done: Progress, command: str) -> Generator[Event, None, graft.StudyResult]:
        done.trials[:] = [trial for trial in done.trials if trial.recipe.tap in taps or not taps]
        for trial in done.trials:
            trial.probabilities[frame.folds.assignment[frame.rows] >= folds] = np.nan
        fit = None if folds == 3 else partial(fitted_on_all, frame, done)
        return (yield from finishing(frame, done, command, fit=fit))

    events = studying(resolved(photos, out=out, weights=weights, only="frozen", folds=3), ending=as_far)
    while True:
        try:
            next(events)
        except StopIteration as end:
            assert problems(end.value.facts) == []
            return end.value


def content(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Every file there, and when it was written."""
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}


def packings(run: Path) -> list[dict[str, Any]]:
    lines = (run / "journal.jsonl").read_text(encoding="utf-8").splitlines()
    return [record for record in map(json.loads, lines) if record["kind"] == "packed"]


def tells_the_same(result: graft.StudyResult) -> bool:
    """Whether the bundle, which must be sound, has the reason, the score and the interval of study.json."""
    facts, choice = Bundle(result.bundle()).facts, result.choice
    headline = choice["headline"]
    metric, (low, high) = METRICS[headline["metric"]], headline["interval"]
    score = f"{metric.text(headline[metric.name])} (95 % interval {metric.text(low)} to {metric.text(high)})"
    card = (result.bundle() / "card.md").read_text(encoding="utf-8")
    return (
        facts["reason"] == choice["reason"]
        and score in facts["headline"]
        and facts["headline"] in card
        and facts["test"] == choice["test"]
    )


def test_more_candidates_and_the_same_choice_are_told_without_a_new_fit(
    photos: Path, weights: Path, tmp_path: Path, fits: list[str]
) -> None:
    whole = session(photos, weights, tmp_path / "whole")
    row = next(row for row in whole.facts["candidates"] if row["id"] == whole.choice["id"])
    fits.clear()
    first = session(photos, weights, tmp_path / "run", taps=(row["tap"],))
    assert tells_the_same(first)
    before = content(first.bundle())
    second = session(photos, weights, tmp_path / "run")
    assert second.choice["id"] == first.choice["id"] and second.choice["reason"] != first.choice["reason"]
    assert tells_the_same(second) and fits == [first.choice["id"]]
    after = content(second.bundle())
    assert set(after) == set(before)
    assert {name for name in after if after[name][0] != before[name][0]} == {"bundle.json", "card.md"}
    assert Bundle(second.bundle()).facts["reason"] == Bundle(whole.bundle()).facts["reason"]
    assert len(packings(second.run)) == 2


def test_a_finished_study_that_is_run_again_leaves_its_bundle_alone(
    photos: Path, weights: Path, tmp_path: Path, fits: list[str]
) -> None:
    before = content(session(photos, weights, tmp_path / "run").bundle())
    result = session(photos, weights, tmp_path / "run")
    assert content(result.bundle()) == before
    assert len(fits) == len(packings(result.run)) == 1


def test_a_choice_that_gained_folds_is_fitted_again(
    with_a_test: Path, weights: Path, tmp_path: Path, fits: list[str]
) -> None:
    counts = []
    for folds in (1, 2, 2, 3, 3):
        result = session(with_a_test, weights, tmp_path / "run", taps=("layer4",), folds=folds)
        assert tells_the_same(result)
        assert (Bundle(result.bundle()).facts["unknown"] is not None) == (folds == 3)
        assert (result.choice["test"] is not None) == (folds == 3)
        counts.append(len(fits))
    assert counts == [1, 2, 2, 3, 3]


@pytest.mark.parametrize(("complete", "folds", "fitted"), [(True, 3, 1), (None, 3, 1), (False, 2, 2)])
def test_what_an_older_journal_does_not_say_is_told_again_and_fitted_only_if_unfinished(
    photos: Path,
    weights: Path,
    tmp_path: Path,
    fits: list[str],
    complete: bool | None,
    folds: int,
    fitted: int,
) -> None:
    result = session(photos, weights, tmp_path / "run", taps=("layer4",), folds=folds)
    (new,) = packings(result.run)
    old = {name: new[name] for name in ("kind", "at", "recipe", "command")}
    old |= {} if complete is None else {"complete": complete}
    place = result.run / "journal.jsonl"
    lines = place.read_text(encoding="utf-8").splitlines()
    place.write_text(
        "".join(json.dumps(old if json.loads(line) == new else json.loads(line)) + "\n" for line in lines)
    )
    assert packings(result.run) == [old]
    again = session(photos, weights, tmp_path / "run", taps=("layer4",), folds=folds)
    assert len(fits) == fitted and tells_the_same(again)
    assert {"told", "measured"} <= set(packings(again.run)[-1])


def test_a_test_that_was_opened_for_two_candidates_is_said_to_be(
    with_a_test: Path, weights: Path, tmp_path: Path
) -> None:
    first = session(with_a_test, weights, tmp_path / "run", taps=("layer4",))
    assert first.choice["test"]["opened"] == 1
    assert "opened once" in Bundle(first.bundle()).facts["headline"] and tells_the_same(first)
    second = session(with_a_test, weights, tmp_path / "run", taps=("layer3",))
    assert second.choice["id"] != first.choice["id"] and second.choice["test"]["opened"] == 2
    headline = Bundle(second.bundle()).facts["headline"]
    assert "opened 2 times, for earlier choices of this study, too" in headline and "once" not in headline
    assert tells_the_same(second)
    same = session(with_a_test, weights, tmp_path / "run", taps=("layer3",))
    assert same.choice["test"]["opened"] == 2 and len(packings(same.run)) == 2


def test_the_locked_test_is_answered_by_the_model_that_is_packed(
    with_a_test: Path, weights: Path, tmp_path: Path
) -> None:
    """Not by the features that it was chosen by, which may be of bfloat16."""
    result = session(with_a_test, weights, tmp_path / "run", taps=("layer4",))
    table = pyarrow.parquet.read_table(result.run / "predictions.parquet")
    classes = json.loads(table.schema.metadata[b"classes"])
    told = {row["file"]: row["probabilities"] for row in table.to_pylist() if row["split"] == "test"}
    assert len(told) == 12
    answers = graft.load(result.bundle()).predict([with_a_test / file for file in told])
    for said, answer in zip(told.values(), answers, strict=True):
        assert [answer.probabilities[name] for name in classes] == pytest.approx(said, abs=1e-6)


def test_the_same_candidate_on_more_folds_is_another_model(
    with_a_test: Path, weights: Path, tmp_path: Path
) -> None:
    """Its last fit depends on its folds, so the test says nothing of it until it is opened again, which is counted."""

    def saying(geometry: Preprocess, share: float) -> Fitted:
        """A model that says the same of every image."""
        weight, bias = np.zeros((FEATURES, 2), np.float32), np.log(np.float32([share, 1 - share]))
        graph = trunk(geometry.size, geometry.channels)
        model = assembled(graph, TAP, weight=weight, bias=bias, unit_length=True)
        return Fitted(model.SerializeToString(), geometry, lambda images: np.zeros((len(images), 2)))

    def ending(frame: Frame, done: Progress, _: str) -> Generator[Event, None, list[float]]:
        whole = done.trials[0]
        known = whole.probabilities.copy()
        known[frame.folds.assignment[frame.rows] == 2] = np.nan
        asked = (
            (replace(whole, probabilities=known), 0.25),
            (replace(whole, probabilities=known), 0.5),
            (whole, 0.75),
            (whole, 0.875),
        )
        yield Event("progress")
        said = [
            probabilities_of_test(frame, trial, saying(trial.recipe.geometry, share))
            for trial, share in asked
        ]
        return [float(rows[0, 0]) for rows in said if rows is not None] + [times_opened(frame)]

    settings = resolved(with_a_test, out=tmp_path / "run", weights=weights, only="frozen", folds=3)
    events: Any = studying(settings, ending=ending)  # type: ignore[arg-type]
    with pytest.raises(StopIteration) as end:
        while True:
            next(events)
    assert end.value.value == pytest.approx([0.25, 0.25, 0.75, 0.75, 2])


def test_the_words_of_a_headline() -> None:
    once = "on the test images, which were opened once, for this candidate only"
    assert wording.headline("test") == wording.headline("test", 1) == once
    assert "were opened 3 times" in wording.headline("test", 3) and "once" not in wording.headline("test", 3)
    assert wording.headline("bbc-cv", 3) == wording.HEADLINES["bbc-cv"]
    assert wording.headline("something new") == ""


def test_told_anew_a_bundle_answers_as_before(tmp_path: Path) -> None:
    folder = packed(tmp_path / "model.graft")
    old = json.loads((folder / "bundle.json").read_text(encoding="utf-8"))
    retell(folder, {**about(), "reason": "It is another one."})
    bundle = Bundle(folder)
    assert "It is another one." in (folder / "card.md").read_text(encoding="utf-8")
    changed = {name for name in old if bundle.facts[name] != old[name]}
    assert changed == {"reason", "files", "facts_sha256"} and set(bundle.facts) == set(old)
    assert [path.name for path in tmp_path.iterdir()] == ["model.graft"]


def test_what_cannot_be_told_leaves_the_bundle_as_it_was(tmp_path: Path) -> None:
    folder = packed(tmp_path / "model.graft")
    before = content(folder)
    with pytest.raises(BundleError, match="labels"):
        retell(folder, {**about(), "labels": ["other", "names"]})
    assert content(folder) == before
    (folder / "model.onnx").write_bytes(b"another one")
    with pytest.raises(BundleError, match="was altered"):
        retell(folder, about())
    assert [path.name for path in tmp_path.iterdir()] == ["model.graft"]
