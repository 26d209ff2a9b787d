"""`study.json` keeps its promises for every kind of study, and a finished run folder opens as an object."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from made_trials import chosen_from, incomplete, probabilities, targets, trial
from study_schema import problems, read_strictly

from graft.backbones.weights import Reach
from graft.compute import Compute
from graft.errors import RunError
from graft.images.dataset import Dataset, ImageReference
from graft.images.folds import Folds
from graft.store import Store
from graft.studies import results
from graft.studies.choice import Choice, Limits
from graft.studies.frame import Frame, Trial
from graft.studies.journal import Journal
from graft.studies.settings import resolved

COUNT, TEST = 60, 12
NAMES = ("ant", "bee", 'größe = "5" \udcff')
FROZEN = trial("large/last", probabilities(0.95, seed=0, count=COUNT), size=9_000_000)
SMALL = trial("small/last", probabilities(0.93, seed=1, count=COUNT), size=400_000)
TORCH = trial("odd/last", probabilities(0.9, seed=2, count=COUNT), size=None, latency=None)
SCRATCH = trial("small_cnn/scratch", probabilities(0.6, seed=3, count=COUNT), strategy="scratch")


@pytest.fixture
def frame(tmp_path: Path) -> Iterator[Frame]:
    """Sixty images on three folds and twelve of a locked test."""
    yield from opened(tmp_path)


def opened(place: Path, **options: Any) -> Iterator[Frame]:
    count = COUNT + TEST
    names = [f"{i}.jpg" for i in range(count - 1)] + [os.fsdecode(b"\xff.jpg")]
    dataset = Dataset(
        place / "photos",
        tuple(ImageReference(place / name, name, f"{i:040x}") for i, name in enumerate(names)),
        NAMES,
        np.concatenate([targets(COUNT), targets(TEST)]),
        np.arange(count),
        ("train",) * COUNT + ("test",) * TEST,
        np.full(count, 40),
        np.full(count, 30),
        np.zeros(count, bool),
        (),
    )
    folds = np.concatenate([np.repeat(np.arange(3), 20), np.full(TEST, -1)])
    journal = Journal(place / "run")
    settings = resolved(dataset.root, out=place / "run", **options)
    compute = Compute("cpu", False, 2)
    store, reach = Store(place / "cache"), Reach(False, False)
    yield Frame(settings, dataset, Folds(folds, 3, "given", ()), store, compute, None, reach, journal)
    journal.close()


def written(frame: Frame, trials: list[Trial], choice: Choice, tested: np.ndarray | None) -> dict[str, Any]:
    """As the study does it: put together, written and read again."""
    facts = {
        "format": results.FORMAT,
        "dataset": results.dataset_facts(frame),
        "settings": results.settings_facts(frame, "graft study photos"),
        "candidates": results.candidate_rows(frame, trials, choice),
        "choice": results.choice_facts(frame, trials, choice, tested),
        "scratch_versus_transfer": results.scratch_against_transfer(frame, trials, choice),
        "seconds": {"total": 9.5, "first_answer": 2.25},
    }
    results.write_json(frame.settings.out / results.STUDY, facts)
    return read_strictly(frame.settings.out / results.STUDY)


@pytest.mark.parametrize("metric", ["macro_f1", "log_loss", "brier"])
@pytest.mark.parametrize("with_test", [True, False])
@pytest.mark.parametrize(
    "trials",
    [
        [FROZEN],
        [FROZEN, SMALL, TORCH, SCRATCH],
        [SCRATCH],
        [FROZEN, incomplete(SCRATCH)],
        [trial("untrained/last", SMALL.probabilities, strategy="random")],
    ],
    ids=["alone", "all", "scratch", "cut short", "untrained"],
)
def test_every_field_is_there(trials: list[Trial], with_test: bool, metric: str, tmp_path: Path) -> None:
    for frame in opened(tmp_path, metric=metric):
        choice = chosen_from(trials, metric=metric)
        facts = written(frame, trials, choice, probabilities(0.9, seed=9, count=TEST) if with_test else None)
        assert problems(facts) == []
        assert facts["choice"]["headline"]["kind"] == ("test" if with_test else "bbc-cv")
        assert facts["choice"]["headline"]["metric"] == metric
        assert facts["dataset"]["class_names"] == list(NAMES)
        rank = [row["metrics"][metric] for row in facts["candidates"] if row["complete"]]
        assert rank == sorted(rank, reverse=metric == "macro_f1")


def test_the_checker_finds_what_is_wrong(frame: Frame) -> None:
    facts = written(frame, [FROZEN, SCRATCH], chosen_from([FROZEN, SCRATCH]), None)
    assert problems(facts) == []

    def broken(*path: Any, value: Any = None) -> int:
        changed = copy.deepcopy(facts)
        place: Any = changed
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value
        return len(problems(changed))

    assert broken("dataset", "images", value="60") and broken("dataset") and broken("seconds", "first_answer")
    assert broken("candidates", 0, "cost", "bytes", value=1.5) and broken("candidates", value=[])
    assert broken("candidates", 0, "interval", "macro_f1", value=[0.0, 0.1])
    assert broken("candidates", 0, "tied", value=1) and broken("candidates", 0, "metrics", "log_loss")
    assert broken("choice", "id", value="other") and broken("choice", "headline", "interval", value=[1])
    assert broken("choice", "headline", "kind", value="test") and broken(
        "scratch_versus_transfer", "sentence"
    )
    assert broken("candidates", 1, "id", value=facts["candidates"][0]["id"])


def test_outside_the_limits_nothing_is_tied_but_the_nearest(frame: Frame) -> None:
    trials = [FROZEN, SMALL]
    facts = written(frame, trials, chosen_from(trials, limits=Limits(max_bytes=100)), None)
    assert problems(facts) == []
    assert {row["id"]: (row["tied"], row["within_limits"]) for row in facts["candidates"]} == {
        "large/last": (False, False),
        "small/last": (True, False),
    }
    assert facts["choice"]["limits_met"] is False and "--max-size" in facts["choice"]["missed"]


def test_scratch_against_transfer_is_compared_on_the_images_both_predicted(frame: Frame) -> None:
    trials = [FROZEN, SMALL, incomplete(SCRATCH)]
    told = results.scratch_against_transfer(frame, trials, chosen_from(trials))
    assert told["transfer"] == "large/last" and told["scratch"] == "small_cnn/scratch"
    assert told["difference"] > 0.2 and told["interval"][0] <= told["difference"] <= told["interval"][1]
    alone = results.scratch_against_transfer(frame, [SCRATCH], chosen_from([SCRATCH]))
    assert (
        alone["difference"] is None
        and alone["transfer"] is None
        and "could not be compared" in alone["sentence"]
    )


def test_where_transfer_is_unfinished_its_missing_folds_are_no_mistakes(frame: Frame) -> None:
    count = len(frame.rows)
    learned = [
        trial(name, probabilities(share, seed=1, count=count)) for name, share in (("a/b", 0.3), ("cnn", 0.4))
    ]
    poor, scratch = learned[0], replace(learned[1], recipe=replace(learned[1].recipe, strategy="scratch"))
    some = probabilities(1.0, seed=2, count=count)
    some[count // 2 :] = np.nan
    trials = [poor, scratch, trial("net/tap", some)]
    told = results.scratch_against_transfer(frame, trials, chosen_from(trials))
    assert told["transfer"] == "net/tap" and told["difference"] > 0.5
    assert told["sentence"].startswith("Transfer beats")


def test_values_per_fold_and_of_unfinished_trials(frame: Frame) -> None:
    trials = [FROZEN, incomplete(SCRATCH)]
    rows = results.candidate_rows(frame, trials, chosen_from(trials))
    assert [len(row["folds"]) for row in rows] == [3, 2]
    assert rows[1]["complete"] is False and rows[1]["tied"] is False
    low, high = rows[1]["interval"]["macro_f1"]
    assert low <= rows[1]["metrics"]["macro_f1"] <= high
    assert sum(entry["support"] for entry in rows[1]["per_class"]) == COUNT - 20


def test_what_json_cannot_say_becomes_null(tmp_path: Path) -> None:
    facts = {
        "a": [float("nan"), np.float32("inf"), np.int64(3), np.bool_(True), (1, None)],
        "b\udcff": "\udcff",
    }
    results.write_json(tmp_path / "x.json", facts)
    assert read_strictly(tmp_path / "x.json") == {"a": [None, None, 3, True, [1, None]], "b\udcff": "\udcff"}
    with pytest.raises(ValueError, match="NaN"):
        (tmp_path / "y.json").write_text('{"a": NaN}')
        read_strictly(tmp_path / "y.json")


def test_predictions_hold_every_candidate_and_the_test(frame: Frame) -> None:
    tested = probabilities(0.9, seed=9, count=TEST)
    trials = [FROZEN, incomplete(SCRATCH)]
    results.write_predictions(frame.settings.out, frame, trials, chosen=FROZEN, tested=tested)
    table = pq.read_table(frame.settings.out / results.PREDICTIONS)
    rows = table.to_pylist()
    assert len(rows) == COUNT + (COUNT - 20) + TEST
    first, last = rows[0], rows[-1]
    assert (first["candidate"], first["split"], first["fold"], first["label"]) == (
        "large/last",
        "development",
        0,
        "ant",
    )
    np.testing.assert_array_equal(np.float32(first["probabilities"]), FROZEN.probabilities[0])
    assert (last["candidate"], last["split"], last["fold"]) == ("large/last", "test", -1)
    assert last["file"] == "\\udcff.jpg"
    names = json.loads(table.schema.metadata[b"classes"])
    assert all(row["predicted"] == names[int(np.argmax(row["probabilities"]))] for row in rows)
    assert {row["label"] for row in rows} == set(names)


class TestStudyResult:
    @pytest.fixture
    def run(self, frame: Frame) -> Path:
        trials = [FROZEN, replace(SMALL, latency_ms=None, model_bytes=None)]
        written(frame, trials, chosen_from(trials), None)
        run = frame.settings.out
        (run / "report.html").write_text("<p>report</p>")
        (run / "model.graft").mkdir()
        (run / "model.graft" / "bundle.json").write_text("{}")
        return run

    def test_choice_and_candidates(self, run: Path) -> None:
        result = results.read(run)
        assert result.choice["id"] == "large/last"
        table = result.candidates
        assert table.column("id").to_pylist() == ["large/last", "small/last"]
        assert table.column("bytes").to_pylist() == [9_000_000, None]

    def test_report_and_bundle_are_copied(self, run: Path, tmp_path: Path) -> None:
        result = results.read(str(run))
        assert result.report() == run / "report.html" and result.bundle() == run / "model.graft"
        assert result.report(tmp_path / "new" / "r.html").read_text() == "<p>report</p>"
        assert result.report(tmp_path / "new" / "r.html").read_text() == "<p>report</p>"
        copied = result.bundle(str(tmp_path / "copy.graft"))
        assert (copied / "bundle.json").read_text() == "{}"

    def test_nothing_is_overwritten(self, run: Path, tmp_path: Path) -> None:
        result = results.read(run)
        (tmp_path / "taken").mkdir()
        (tmp_path / "file").write_text("mine")
        for place in (tmp_path / "taken", tmp_path / "file"):
            with pytest.raises(RunError, match="exists already"):
                result.bundle(place)
        with pytest.raises(RunError, match="exists already"):
            result.report(tmp_path / "taken")
        with pytest.raises(RunError, match="cannot be written"):
            result.report(tmp_path / "file" / "r.html")
        assert (tmp_path / "file").read_text() == "mine"

    def test_an_unfinished_study_has_no_bundle_yet(self, run: Path) -> None:
        (run / "report.html").unlink()
        with pytest.raises(RunError, match="has not ended"):
            results.read(run).report()

    @pytest.mark.parametrize("text", ["", "{", "[]", "{}", "[" * 100_000, '{"choice": {}}'])
    def test_a_damaged_file_is_said(self, text: str, run: Path) -> None:
        (run / "study.json").write_text(text)
        with pytest.raises(RunError, match="damaged"):
            results.read(run)

    def test_a_place_without_a_study(self, tmp_path: Path) -> None:
        for place in (tmp_path / "nowhere", tmp_path):
            with pytest.raises(RunError, match=r"no finished study \(no study\.json\)"):
                results.read(place)
