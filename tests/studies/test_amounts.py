"""How many images are needed: subsets that are fair, curves that are the candidates' own, and words that follow."""

from __future__ import annotations

import itertools
import json
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from made_sets import stripes, weights_folder
from made_trials import trial

import graft
from graft.backbones.scratch import design
from graft.backbones.weights import Reach
from graft.compute import Compute
from graft.images.dataset import Issue, Preprocess
from graft.images.folds import split
from graft.images.pixels import preparing
from graft.images.scan import scan
from graft.learning import scratch_settings
from graft.learning.scratch_settings import TrainingSettings
from graft.store import Store
from graft.studies.amount_words import Point, amounts_sentence, gain_of_doubling
from graft.studies.amounts import LEAST_IMAGES, SHARES, Curve, _as_long, _told, amounts_rung, subset
from graft.studies.frame import Event, Frame
from graft.studies.journal import Journal
from graft.studies.rungs import Progress
from graft.studies.scratching import scratch_recipe
from graft.studies.search import about_images
from graft.studies.settings import resolved
from graft.studies.tuning import plan as plans


@hypothesis_settings(max_examples=60, deadline=None)
@given(
    labels=st.lists(st.integers(0, 3), min_size=1, max_size=80),
    pairs=st.integers(1, 4),
    seed=st.integers(0, 5),
)
def test_subsets_are_nested_stratified_and_keep_groups(labels: list[int], pairs: int, seed: int) -> None:
    targets = np.array(labels, dtype=np.int64)
    groups = np.arange(len(labels), dtype=np.int64) // pairs
    rows = np.flatnonzero(groups % 3 != 1)
    parts = [subset(targets, groups, rows, share=share, seed=seed) for share in SHARES]
    assert parts[-1].tolist() == rows.tolist()
    for smaller, larger in itertools.pairwise(parts):
        assert set(smaller.tolist()) <= set(larger.tolist())
        assert not set(groups[smaller]) & set(groups[np.setdiff1d(rows, smaller)])
    if pairs == 1:
        for label in np.unique(targets[rows]):
            own, kept = (targets[rows] == label).sum(), (targets[parts[0]] == label).sum()
            assert min(own, LEAST_IMAGES) <= kept <= max(0.25 * own + 1, LEAST_IMAGES)


def test_another_seed_draws_other_images() -> None:
    rows = np.arange(60)
    one, other = (subset(rows % 2, rows, rows, share=0.5, seed=seed) for seed in (0, 1))
    assert one.tolist() != other.tolist()


def points(*values: float) -> list[Point]:
    return [Point(images, value) for images, value in zip((80, 160, 320), values, strict=True)]


def test_the_sentence_names_the_fewest_images_that_suffice() -> None:
    told = amounts_sentence(points(0.60, 0.80, 0.90), points(0.50, 0.60, 0.70), metric="macro_f1")
    assert "Transfer reaches with 160 images what training from scratch reaches with 320" in told
    assert "macro-F1 80.0 % and 70.0 %" in told
    assert "training from scratch would need about 1,300 images for 90.0 %" in told
    assert "+15.0 points (transfer) and +10.0 points (training from scratch)" in told
    assert "more images still pay" in told


def test_where_the_fewest_tried_suffice_it_says_so() -> None:
    told = amounts_sentence(points(0.91, 0.92, 0.93), points(0.50, 0.51, 0.52), metric="macro_f1")
    assert "with 80 images" in told and "fewer were not tried" in told
    assert "more than 16 times the images" in told


def test_from_scratch_may_be_ahead() -> None:
    told = amounts_sentence(points(0.5, 0.55, 0.6), points(0.4, 0.7, 0.9), metric="accuracy")
    assert told.startswith("Training from scratch reaches with 160 images what transfer reaches with 320")


def test_losses_are_better_when_they_are_lower() -> None:
    told = amounts_sentence(points(0.5, 0.4, 0.3), points(0.9, 0.8, 0.7), metric="log_loss")
    assert told.startswith("Transfer reaches with 80 images")
    assert "+0.100 (transfer)" in told


@pytest.mark.parametrize(("values", "advice"), [((0.9, 0.9, 0.9), "hardly"), ((0.8, 0.7, 0.6), "hardly")])
def test_one_strategy_alone(values: tuple[float, ...], advice: str) -> None:
    told = amounts_sentence([], points(*values), metric="macro_f1")
    assert "reaches" not in told and "(training from scratch)" in told and f"images {advice} pay" in told


def test_level_curves_end() -> None:
    told = amounts_sentence(points(0.5, 0.6, 0.7), points(0.5, 0.6, 0.7), metric="macro_f1")
    assert "level" in told


def test_the_gain_is_the_slope_per_doubling() -> None:
    assert gain_of_doubling(points(0.5, 0.6, 0.7)) == pytest.approx(0.1)
    assert gain_of_doubling([Point(80, 0.5)]) == 0.0


def test_a_study_tells_how_many_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(plans, "LEVELS", ())
    weights = weights_folder(tmp_path / "weights", ("test_resnet",))
    result = graft.study(
        stripes(tmp_path / "photos"), out=tmp_path / "run", weights=weights, only="finetuned", folds=3
    )
    amounts = result.facts["amounts"]
    frozen = [row for row in result.facts["candidates"] if row["strategy"] == "frozen"]
    rows = amounts["rows"]
    assert [(row["strategy"], row["share"], row["folds"]) for row in rows] == [
        ("transfer", share, 3) for share in SHARES
    ]
    assert [row["images"] for row in rows] == [8, 16, 32]
    assert rows[-1]["metric"] == pytest.approx(max(row["metrics"]["macro_f1"] for row in frozen))
    assert all(low <= row["metric"] <= high for row in rows for low, high in [row["interval"]])
    assert amounts["sentence"] in result.report().read_text(encoding="utf-8")


def opened(place: Path) -> Frame:
    """Forty small stripes on two folds."""
    settings = resolved(place / "photos", out=place / "run", only="scratch", folds=2, budget="10m")
    store = Store(place / "cache")
    dataset = scan(place / "photos", store=store, threads=1)
    folds = split(dataset, count=2, seed=0)
    compute = Compute("cpu", False, 1)
    return Frame(settings, dataset, folds, store, compute, None, Reach(False, False), Journal(settings.out))


def measured(place: Path) -> tuple[dict[str, Any], list[str]]:
    """What the rung tells of a trial from scratch whose predictions are known, and the journal afterwards."""
    frame = opened(place)
    made, geometry = design(frame.dataset, development=len(frame.rows))
    for _ in preparing(frame.dataset, [geometry], store=frame.store, threads=1):
        pass
    known = trial("small_cnn/scratch", np.full((40, 2), 0.5, np.float32), strategy="scratch")
    known = replace(known, recipe=scratch_recipe(frame, made, geometry, TrainingSettings()))
    done = Progress([known])
    with closing(frame.journal):
        for _ in amounts_rung(frame, done):
            pass
    return done.extras["amounts"], (place / "run" / "journal.jsonl").read_text().splitlines(keepends=True)


def test_what_only_all_images_reach() -> None:
    told = amounts_sentence(points(0.4, 0.5, 0.9), points(0.5, 0.6, 0.7), metric="macro_f1")
    assert "With half of the images transfer does not yet reach" in told
    assert "reaches with all 320 (macro-F1 70.0 %); with all of them it has 90.0 %" in told


@pytest.mark.parametrize(
    ("stopped", "ran", "whole", "alike"),
    [
        ("deadline", 1, 20, False),
        ("deadline", 18, 20, True),
        ("patience", 1, 20, True),
        ("deadline", 1, None, True),
    ],
)
def test_a_training_that_the_clock_cut_off_early_says_nothing_of_the_number_of_images(
    stopped: str, ran: int, whole: int | None, alike: bool
) -> None:
    curve = {"stopped": stopped, "epochs": [{}] * ran}
    assert _as_long(curve, None if whole is None else {"epochs": [{}] * whole}) == alike


def test_folds_that_the_clock_cut_off_early_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fold(frame: Frame, *_: Any, fold: int, **__: Any) -> Any:
        yield Event("progress", "from scratch")
        rows = np.full((len(frame.held_out(fold)), 2), 0.5, np.float32)
        return {"curve": {"stopped": "deadline", "epochs": [{}]}}, rows

    monkeypatch.setattr("graft.studies.amounts.measured_fold", fold)
    stripes(tmp_path / "photos", each=20)
    frame = opened(tmp_path)
    made, _ = design(frame.dataset, development=len(frame.rows))
    curves = tuple({"fold": fold, "stopped": "epochs", "epochs": [{}] * 20} for fold in range(2))
    known = trial("small_cnn/scratch", np.full((40, 2), 0.5, np.float32), strategy="scratch")
    known = replace(
        known, recipe=scratch_recipe(frame, made, Preprocess(32), TrainingSettings()), curves=curves
    )
    done = Progress([known])
    with closing(frame.journal):
        told = [event.text for event in amounts_rung(frame, done) if event.kind == "notice"]
    assert "amounts" not in done.extras and any("how many images are needed" in text for text in told)


def test_why_one_of_the_two_is_missing_is_told(tmp_path: Path) -> None:
    stripes(tmp_path / "photos", each=20)
    frame = opened(tmp_path)
    rows = np.full((len(frame.held_out(0)), 2), 0.5, np.float32)
    curve = Curve("transfer", (0,), {(share, 0): rows for share in SHARES})
    with closing(frame.journal):
        assert _told(frame, [curve], without="Too late.")["sentence"].endswith(" Too late.")


def test_pictures_of_two_classes_are_counted_before_anything_is_measured(tmp_path: Path) -> None:
    stripes(tmp_path / "photos", each=20)
    frame = opened(tmp_path)
    twice = tuple(Issue(f"{name}.png", "conflict", "the same", False, "left") for name in "ab")
    with closing(frame.journal):
        told = about_images(replace(frame, dataset=replace(frame.dataset, issues=twice)))
        assert "2 of them show a picture that another class has, too" in told
        assert "another class" not in about_images(frame)


def test_after_a_kill_only_what_is_missing_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One epoch is planned of what the budget would pay, so that both folds take part."""
    monkeypatch.setattr(
        scratch_settings,
        "settled",
        lambda *_, multiply_adds: TrainingSettings(1, multiply_adds=multiply_adds),
    )
    stripes(tmp_path / "photos", each=20)
    whole, lines = measured(tmp_path)
    assert [(row["strategy"], row["folds"], row["images"]) for row in whole["rows"]] == [
        ("scratch", 2, images) for images in (6, 10, 20)
    ]
    assert [json.loads(line)["images"] for line in lines] == [6, 10, 6, 10]
    (tmp_path / "run" / "journal.jsonl").write_text("".join(lines[:2]))
    again, then = measured(tmp_path)
    assert again == whole
    assert then[:2] == lines[:2] and len(then) == len(lines)
