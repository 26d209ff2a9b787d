"""What is trained counts rare classes as the head of the very same fold does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_sets import stripes, weights_folder
from made_trials import probabilities, trial

import graft
from graft.backbones.weights import Reach
from graft.compute import Compute
from graft.images.folds import split
from graft.images.scan import scan
from graft.learning import finetune, frozen_head, ridge, training
from graft.learning.tune_settings import TuneSettings
from graft.store import Store
from graft.studies.balancing import UNASKED, balance_of_best_head, balance_of_head, balance_on_all
from graft.studies.frame import Frame, Trial
from graft.studies.journal import Journal
from graft.studies.settings import resolved
from graft.studies.tuning import plan as plans
from graft.studies.tuning.plan import Level

TINY = "test_resnet.made"


def candidate(number: int) -> Trial:
    made = trial(f"net{number}/t", probabilities(0.9, seed=number))
    return replace(made, recipe=replace(made.recipe, settings=str(number)))


@pytest.fixture
def frame(tmp_path: Path) -> Iterator[Frame]:
    """The head of net0 is the better one inside fold 0, that of net1 inside fold 1."""
    settings = resolved(stripes(tmp_path / "photos", each=6), out=tmp_path / "run", folds=2)
    store = Store(tmp_path / "cache")
    dataset = scan(settings.source, store=store, threads=1)
    folds, compute = split(dataset, count=2, seed=0), Compute("cpu", False, 1)
    with closing(Journal(settings.out)) as journal:
        for fold, facts in enumerate(
            ((("full", 0.9), ("none", 0.8)), (("logit", 0.7), ("root", 0.9))),
        ):
            for number, (balance, score) in enumerate(facts):
                known = {"recipe": candidate(number).recipe.key, "balance": balance, "inner_score": score}
                journal.append("fold", {"fold": fold, **known})
        yield Frame(settings, dataset, folds, store, compute, None, Reach(False, False), journal)


def test_a_network_follows_its_own_head_and_scratch_the_best_one(frame: Frame) -> None:
    both = [candidate(0), candidate(1)]
    assert [balance_of_head(frame, both[0], fold) for fold in (0, 1)] == ["sampler", "logit"]
    assert [balance_of_head(frame, both[1], fold) for fold in (0, 1)] == ["none", "root"]
    assert [balance_of_best_head(frame, both, fold) for fold in (0, 1)] == ["sampler", "root"]


def test_where_no_head_was_fitted(frame: Frame) -> None:
    tuned = replace(candidate(0), recipe=replace(candidate(0).recipe, strategy="full"))
    assert balance_of_head(frame, candidate(0), 2) == UNASKED
    assert balance_of_best_head(frame, [tuned], 0) == balance_on_all(frame, None) == UNASKED


@pytest.mark.parametrize("only", ["finetuned", pytest.param(None, marks=pytest.mark.slow)])
def test_a_study_trains_with_what_its_heads_took(
    only: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The heads are made to choose by the number of training rows, which differs between the two folds."""
    monkeypatch.setenv("GRAFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(plans, "LEVELS", (Level(epochs=2, views=1, folds=0, least=1),))
    monkeypatch.setattr("graft.studies.search.inputs_rung", lambda *_: (event for event in ()))
    monkeypatch.setattr("graft.studies.search.shrink_rung", lambda *_: (event for event in ()))
    monkeypatch.setattr("graft.studies.rungs.LEAST_TRAINING", 1e10)
    monkeypatch.setattr("graft.studies.rungs.TRAINING_SPEED", 1e8)  # short trainings
    trained: list[tuple[int, str]] = []

    def told(features: np.ndarray, targets: np.ndarray, **more: Any) -> ridge.RidgeHead:
        return replace(
            frozen_fit(features, targets, **more), balance="full" if len(targets) == 17 else "logit"
        )

    def spied(learn: Any) -> Any:
        def learning(*given: Any, settings: Any, **more: Any) -> Any:
            rows = given[3] if isinstance(settings, TuneSettings) else given[2]
            trained.append((len(rows), settings.balance))
            return learn(*given, settings=settings, **more)

        return learning

    frozen_fit = frozen_head.fit
    monkeypatch.setattr(frozen_head, "fit", told)
    monkeypatch.setattr(finetune, "tune", spied(finetune.tune))
    monkeypatch.setattr(training, "train", spied(training.train))
    photos = stripes(tmp_path / "photos", classes=("left",), each=24)
    stripes(photos, classes=("left", "right"), each=11)
    weights = weights_folder(tmp_path / "weights")
    result = graft.study(
        photos, out=tmp_path / "run", weights=weights, only=only, folds=2, backbones=TINY, budget="10m"
    )
    expected = {17: "sampler", 18: "logit"}
    assert {(count, expected[count]) for count in expected} <= set(trained)
    assert all(balance == expected[count] for count, balance in trained if count in expected)
    rows = result.facts["candidates"]
    strategies = {row["strategy"] for row in rows if set(row["balance"] or ()) == {"sampler", "logit"}}
    assert {"partial"} <= strategies and (only or "scratch" in strategies)
