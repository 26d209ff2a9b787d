"""Reading a network at several depths and by quarters, and on larger pictures: what it finds, its bundle, its limits."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from made_sets import weights_folder
from PIL import Image
from studies.made_trials import probabilities, targets, trial
from test_inputs_rung import measured
from test_study import facts_without_times

import graft
from graft.images.dataset import Preprocess
from graft.report import page
from graft.studies.beside import of_the_better_framing
from graft.studies.frame import Trial, criterion
from graft.studies.larger import larger_size
from graft.studies.shrinking import pooled, rung
from graft.studies.shrinking.told import full_size
from graft.studies.shrinking.variants import Variant, kind_of, shrunk_recipe, variant_of
from graft.studies.tuning import plan as plans


def places(folder: Path, *, side: int = 64) -> Path:
    """One disc on noise, in one of the four corners: averages over the picture hardly tell them apart."""
    for kind, (down, across) in enumerate(product((0.25, 0.75), repeat=2)):
        (folder / f"kind{kind}").mkdir(parents=True)
        for index in range(16):
            random = np.random.default_rng([kind, index])
            y, x = np.mgrid[:side, :side] / side - random.uniform(-0.1, 0.1, 2)[:, None, None]
            pixels = random.normal(120, 30, (side, side, 3))
            pixels[np.hypot(y - down, x - across) < 0.17] = random.uniform(20, 220, 3)
            image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
            image.save(folder / f"kind{kind}" / f"{index:02}.png")
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return weights_folder(tmp_path_factory.mktemp("weights"), ("test_resnet", "test_efficientnet"))


@pytest.fixture(autouse=True)
def nothing_tuned(monkeypatch: pytest.MonkeyPatch) -> None:
    """The readings alone."""
    monkeypatch.setattr(plans, "LEVELS", ())


def killed(run: Path, place: Path, *, after: str) -> Path:
    """A run folder as a kill leaves it, in the middle of a line, three records after the first of a kind."""
    lines = (run / "journal.jsonl").read_text().splitlines(keepends=True)
    cut = next(i for i, line in enumerate(lines) if json.loads(line)["kind"] == after) + 3
    (place / "trials").mkdir(parents=True)
    for name in ("run.json", "check.csv"):
        (place / name).write_bytes((run / name).read_bytes())
    for array in (run / "trials").glob("*.npy"):
        (place / "trials" / array.name).write_bytes(array.read_bytes())
    (place / "journal.jsonl").write_text("".join(lines[:cut]) + '{"kind": "fo')
    return place


@pytest.mark.slow
def test_quarters_tell_places_apart_are_packed_and_go_on_after_a_kill(tmp_path: Path, weights: Path) -> None:
    photos = places(tmp_path / "photos")
    whole = measured(photos, tmp_path / "whole", weights)
    by_id = {row["id"]: row for row in whole.facts["candidates"]}
    score = {name: row["metrics"]["macro_f1"] for name, row in by_id.items()}
    read = "test_resnet.made/layer4+depths"
    assert {read, f"{read}+quarters"} < set(score)
    frozen = max(score[name] for name, row in by_id.items() if row["strategy"] == "frozen")
    assert score[f"{read}+quarters"] > max(frozen, score[read]) + 0.1
    assert by_id[read]["strategy"] == "depths" and by_id[read]["complete"]
    assert by_id[read]["cost"]["bytes"] < by_id[f"{read}+quarters"]["cost"]["bytes"]

    assert whole.choice["id"] == f"{read}+quarters"
    bundle = graft.load(whole.bundle())
    assert (bundle.facts["strategy"], bundle.facts["tap"]) == ("depths", "several depths")
    pictures = sorted(photos.rglob("*.png"))
    answers = bundle.predict(pictures)
    assert np.mean([a.label == p.parent.name for a, p in zip(answers, pictures, strict=True)]) > 0.9
    assert "read at several depths and by quarters" in page.render(whole.run)

    again = measured(photos, killed(whole.run, tmp_path / "killed", after="depths_plan"), weights)
    assert facts_without_times(again.facts) == facts_without_times(whole.facts)


@pytest.mark.slow
def test_what_a_budget_does_not_pay_is_not_read(tmp_path: Path, weights: Path) -> None:
    result = measured(places(tmp_path / "photos"), tmp_path / "run", weights, budget="6s")
    assert not {"depths", "shrunk"} & {row["strategy"] for row in result.facts["candidates"]}


@pytest.mark.slow
def test_larger_pictures_are_shown_where_there_is_more_to_see(tmp_path: Path, weights: Path) -> None:
    photos = places(tmp_path / "photos", side=96)
    result = measured(photos, tmp_path / "run", weights)
    again = measured(photos, killed(result.run, tmp_path / "killed", after="larger_plan"), weights)
    assert facts_without_times(again.facts) == facts_without_times(result.facts)
    large = [row for row in result.facts["candidates"] if row["input"]["size"] == 96]
    assert {row["strategy"] for row in large} == {"frozen", "depths"}
    assert {row["id"] for row in large} >= {
        "test_resnet.made/layer4@96px",
        "test_resnet.made/layer4@96px+depths",
    }
    assert all(row["complete"] and row["cost"]["latency_ms"] > 0 for row in large)
    small = measured(places(tmp_path / "little", side=64), tmp_path / "other", weights)
    assert {row["input"]["size"] for row in small.facts["candidates"]} == {64}


@pytest.mark.slow
def test_a_larger_network_is_no_smaller_one_for_shrink(
    tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was shown larger pictures is brought again from the journal, and is what smaller ones may be made from."""
    result = measured(places(tmp_path / "photos", side=96), tmp_path / "run", weights)
    before = {row["id"]: row for row in result.facts["candidates"]}
    monkeypatch.setattr(pooled, "MOST_DEPTHS", 1)
    for name in ("THIN_SHARES", "SMALLER_INPUTS", "WIDTHS"):
        monkeypatch.setattr(rung, name, ())
    monkeypatch.setattr(rung, "worth_quantising", lambda frame, trials, *_: (best_readings(trials), []))
    smaller = graft.shrink(tmp_path / "run", tolerance=0.3)
    after = {row["id"]: row for row in smaller.facts["candidates"]}
    assert {name: row["metrics"] for name, row in after.items() if name in before} == {
        name: row["metrics"] for name, row in before.items()
    }
    steps = {step["id"]: step for step in smaller.facts["shrink"]["steps"]}
    eight = "test_resnet.made/layer4@96px+depths+quarters+int8"
    assert eight in steps and {step["kind"] for step in steps.values()} <= {"8 bits", "4-bit weights"}
    assert steps[eight]["bytes_share"] < 0.7
    assert abs(steps[eight]["score"] - before[eight.removesuffix("+int8")]["metrics"]["macro_f1"]) < 0.15


def best_readings(trials: Sequence[Trial]) -> list[Trial]:
    return [trial for trial in trials if trial.recipe.name.endswith("@96px+depths+quarters")]


@pytest.mark.slow
def test_what_a_shorter_budget_had_shown_larger_stays(tmp_path: Path, weights: Path) -> None:
    photos, run = places(tmp_path / "photos", side=96), tmp_path / "run"
    both = ("test_resnet.made", "test_efficientnet.made")
    first = measured(photos, run, weights, backbones=both)
    lines = [json.loads(line) for line in (run / "journal.jsonl").read_text().splitlines()]
    shown = next(line for line in lines if line["kind"] == "larger_plan")
    frozen = [row for row in first.facts["candidates"] if row["strategy"] == "frozen"]
    several = {row["backbone"] for row in first.facts["candidates"] if row["strategy"] == "depths"}
    assert len(several) == 1  # the other network is far behind
    assert len({row["backbone"] for row in frozen if row["input"]["size"] == 96}) == 1
    for row in (row for row in frozen if row["input"]["size"] == 64):  # as if each had once been the best
        with (run / "journal.jsonl").open("a") as journal:
            journal.write(json.dumps({**shown, "recipe": row["recipe"], "budget": 1.0}) + "\n")
    again = measured(photos, run, weights, backbones=both, budget="20m")
    rows = [row["id"] for row in again.facts["candidates"]]
    assert {row["backbone"] for row in again.facts["candidates"] if row["input"]["size"] == 96} == set(both)
    assert len(rows) == len(set(rows)) and {row["id"] for row in first.facts["candidates"]} <= set(rows)


def test_of_two_framings_the_one_of_the_lower_log_loss_stays() -> None:
    sure, doubtful = probabilities(0.8, seed=1, sharpness=2.0), probabilities(0.9, seed=2, sharpness=0.9)
    crop, squash = trial("a/b", sure), trial("a/b@squash", doubtful)
    squash = replace(squash, recipe=replace(squash.recipe, geometry=Preprocess(32, "squash")))
    large = replace(squash, recipe=replace(squash.recipe, geometry=Preprocess(64, "squash")))
    tuned = replace(squash, recipe=replace(squash.recipe, strategy="partial"))
    alone = replace(squash, recipe=replace(squash.recipe, backbone="other"))
    assert criterion("macro_f1")(doubtful, targets()) > criterion("macro_f1")(sure, targets())
    kept = of_the_better_framing(targets(), [squash, crop, large, tuned, alone])
    assert kept == [crop, large, tuned, alone]


def test_sides_stay_what_networks_divide() -> None:
    assert [larger_size(size) for size in (64, 128, 160, 224, 299, 384)] == [96, 192, 224, 320, 416, 544]


def test_a_whole_network_read_at_several_depths_is_not_made_smaller() -> None:
    base = trial("a/b", probabilities(0.9, seed=1))
    variant = Variant(deepest=4, whole=True, quarters=True)
    shrunk = {"variant": {"deepest": 4, "whole": True, "quarters": True}, "from": "a/b", "base": "a/b"}
    read = replace(base, recipe=shrunk_recipe(base, variant), about={"shrunk": shrunk})
    assert read.recipe.strategy == "depths" and read.recipe.name == "a/b+depths+quarters"
    assert variant_of(read) == variant and kind_of(read) is None and full_size(read)
    small = shrunk_recipe(base, replace(variant, precision="int8"))
    assert small.strategy == "shrunk" and small.name == "a/b+depths+quarters+int8"
    keys = {
        shrunk_recipe(base, replace(variant, **other)).key
        for other in ({}, {"quarters": False}, {"whole": False})
    }
    assert len(keys) == 3


def test_what_is_shown_larger_is_not_taken_for_smaller() -> None:
    large = trial("a/b@96px", probabilities(0.9, seed=1))
    assert kind_of(large) == "smaller input"
    assert kind_of(replace(large, about={"enlarged": True})) is None
