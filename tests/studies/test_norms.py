"""Statistics of batch normalisation are taken from the images where that was measured to help, and nowhere else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_sets import stripes, weights_folder

import graft
from graft.studies.tuning import norms, rung
from graft.studies.tuning import plan as plans
from graft.studies.tuning.norms import clearly_lower, losses, told
from graft.studies.tuning.plan import Level

TINY = "test_resnet.made"


def test_only_what_is_clear_counts() -> None:
    random = np.random.default_rng(0)
    before = random.gamma(1.0, 0.5, 400)
    assert clearly_lower(before - 0.1, before)
    assert not clearly_lower(before, before)
    assert not clearly_lower(before + random.normal(0, 1, 400), before)
    assert not clearly_lower(before + 0.1, before)


def test_losses_are_those_of_leave_one_out() -> None:
    random = np.random.default_rng(0)
    labels = np.arange(40) % 2
    told_apart = random.normal(size=(40, 3)) + 4 * labels[:, None]
    assert (
        losses(told_apart, labels, classes=2).mean()
        < 0.4
        < losses(random.normal(size=(40, 3)), labels, classes=2).mean()
    )


def test_the_words_say_the_policy_and_why() -> None:
    kept = {"batch_norm": "frozen", "statistics": {"frozen": 0.3, "reestimated": 0.4}}
    taken = {"batch_norm": "reestimate", "statistics": {"frozen": 0.5, "reestimated": 0.2}}
    assert told([{"batch_norm": "frozen"}]) == "frozen"
    assert told([kept]) == (
        "statistics kept, scale and shift learn; taking them from these images was measured and did not clearly help (log "
        "loss of a head on their features 0.400, with those kept 0.300)"
    )
    assert told([kept, taken]).startswith("statistics taken from these images first in 1 of 2 folds")


@pytest.mark.parametrize("helps", [False, True])
def test_a_study_measures_on_the_training_rows_and_follows(
    helps: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRAFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(plans, "LEVELS", (Level(epochs=2, views=1, folds=0, least=1),))
    monkeypatch.setattr("graft.studies.search.inputs_rung", lambda *_: (event for event in ()))
    monkeypatch.setattr("graft.studies.search.seeds_rung", lambda *_: (event for event in ()))
    monkeypatch.setattr(norms, "clearly_lower", lambda *_: helps)
    asked: list[list[int]] = []
    learned: list[tuple[list[int], str]] = []
    measure, train = rung.statistics_for, rung.training

    def measured(frame: Any, bench: Any, settings: Any, rows: np.ndarray) -> Any:
        asked.append(rows.tolist())
        return measure(frame, bench, settings, rows)

    def trained(frame: Any, settings: Any, bench: Any, **more: Any) -> Any:
        learned.append((more["rows"].tolist(), settings.batch_norm))
        return train(frame, settings, bench, **more)

    monkeypatch.setattr(rung, "statistics_for", measured)
    monkeypatch.setattr(rung, "training", trained)
    weights = weights_folder(tmp_path / "weights")
    photos = stripes(tmp_path / "photos", each=14)
    result = graft.study(
        photos, out=tmp_path / "run", weights=weights, only="finetuned", folds=2, backbones=TINY, budget="10m"
    )
    policy = "reestimate" if helps else "frozen"
    assert asked and learned == [(rows, policy) for rows in asked]
    tuned = [row for row in result.facts["candidates"] if row["strategy"] in ("partial", "full")]
    assert tuned and all(curve["batch_norm"] == policy for row in tuned for curve in row["curves"])
    assert all(
        set(curve["statistics"]) == {"frozen", "reestimated"} for row in tuned for curve in row["curves"]
    )
    page = result.report().read_text(encoding="utf-8")
    assert ("taken from these images first in" if helps else "measured and did not clearly help") in page
