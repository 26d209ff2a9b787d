"""The mean over seeds: counted, measured on the same folds, fitted with as many seeds, and never for what lags behind."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_sets import stripes, weights_folder
from made_trials import probabilities, trial

import graft
from graft.judging.uncertainty import Difference
from graft.studies.choice import Choice, choose
from graft.studies.ensembles import _usable
from graft.studies.frame import Trial
from graft.studies.journal import read
from graft.studies.predictions import PREDICTIONS
from graft.studies.seeds import mean_of, paid, sentence
from graft.studies.tuning import plan as plans
from graft.studies.tuning.options import MOST_SEEDS
from graft.studies.tuning.plan import Level

TINY = "test_resnet.made"


@pytest.fixture(autouse=True)
def as_many_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("graft.studies.seeds.MOST_SEEDS", MOST_SEEDS)


def tuned(seconds: float = 50.0, folds: int = 5) -> Trial:
    """A last fit takes 13 s."""
    made = trial("net/t+tuned:all", probabilities(0.8, seed=0), strategy="full")
    curves = tuple({"fold": fold} for fold in range(folds))
    return replace(made, train_seconds=seconds, latency_ms=0.0, curves=curves)


@pytest.mark.parametrize(
    ("left", "kept", "seeds"),
    [
        (75.9, 0.0, 1),
        (76.0, 0.0, 2),
        (138.9, 0.0, 2),
        (139.0, 0.0, 3),
        (900.0, 0.0, 3),
        (139.0, 60.0, 2),
        (0.0, 0.0, 1),
    ],
)
def test_the_budget_pays_the_folds_and_the_last_fit_of_every_seed(
    left: float, kept: float, seeds: int
) -> None:
    assert paid(tuned(), left=left, kept=kept) == seeds


def test_the_mean_is_that_of_the_probabilities() -> None:
    members = [trial(f"n{seed}/t", probabilities(0.8, seed=seed)) for seed in range(3)]
    found = mean_of(members)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, sum(member.probabilities / 3 for member in members), atol=1e-6)


def test_a_mean_is_no_member_of_an_ensemble() -> None:
    one = trial("mean/t", probabilities(0.9, seed=9), strategy="ensemble")
    assert _usable([one]) == ([], [{"reason": "it is a mean itself", "ids": ["mean/t"]}])


def test_the_sentence() -> None:
    assert sentence("macro_f1", 3, tuned(), Difference(0.012, -0.001, 0.02)) == (
        "The mean over 3 seeds of net/t+tuned:all gains 1.2 points of macro-F1 against one of them (95 % interval of the "
        "difference: -0.1 points to +2.0 points), which may be nothing, for 3 times the bytes."
    )


@pytest.mark.parametrize("only", ["finetuned", pytest.param("scratch", marks=pytest.mark.slow)])
def test_a_study_measures_packs_and_does_not_train_twice(
    only: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRAFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(plans, "LEVELS", (Level(epochs=6, views=1, folds=0, least=1),))
    monkeypatch.setattr("graft.studies.search.inputs_rung", lambda *_: (event for event in ()))

    def prefer_the_mean(trials: Any, *rest: Any, **more: Any) -> Choice:
        choice = choose(trials, *rest, **more)
        return replace(choice, chosen=next(i for i, t in enumerate(trials) if "seeds of" in t.recipe.name))

    monkeypatch.setattr("graft.studies.ending.choose", prefer_the_mean)
    monkeypatch.setattr("graft.studies.seeds.paid", lambda *_, **__: 2)
    monkeypatch.setattr("graft.studies.rungs.LEAST_TRAINING", 1e10)
    monkeypatch.setattr("graft.studies.rungs.TRAINING_SPEED", 1e8)  # short trainings
    weights = weights_folder(tmp_path / "weights")
    photos = stripes(tmp_path / "photos", each=14)

    def studied() -> graft.StudyResult:
        return graft.study(
            photos, out=tmp_path / "run", weights=weights, only=only, folds=2, backbones=TINY, budget="10m"
        )

    result = studied()
    told, rows = result.facts["seeds"], {row["id"]: row for row in result.facts["candidates"]}
    first, second = told["members"]
    assert second == f"{first}, seed 2" and second not in rows and told["sentence"] in result.facts["notices"]
    mean = rows[told["id"]]
    assert mean["strategy"] == "ensemble" and mean["metrics"]["macro_f1"] == pytest.approx(told["score"])
    folds = [record for record in read(result.run) if record["kind"] == "fold"]
    spent = [record["seconds"] for record in folds if record["name"] in (first, second)]
    assert len(spent) == 4 and mean["cost"]["train_seconds"] == pytest.approx(sum(spent), abs=0.01)
    assert mean["cost"]["bytes"] == 2 * rows[first]["cost"]["bytes"]
    own = [
        np.load(result.run / "trials" / f"{record['recipe'][:16]}-0.npy")
        for record in folds
        if record["fold"] == 0 and record["name"] in (first, second)
    ]
    assert np.abs(own[0] - own[1]).max() > 1e-4, "another seed is another training"
    picture = next((photos / "left").iterdir())
    assert graft.load(result.bundle()).predict(picture).label in ("left", "right")
    assert (result.run / PREDICTIONS).exists()
    again = studied()
    assert [record for record in read(again.run) if record["kind"] == "fold"] == folds
    assert again.facts["seeds"] == told
