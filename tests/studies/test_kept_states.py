"""What a fold has learned comes back as it was, or not at all."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from graft.backbones.scratch import ScratchDesign, build
from graft.learning.finetune import Tuned
from graft.learning.heads import Head
from graft.learning.trained import Trained
from graft.studies.tuning import kept_states
from graft.studies.tuning.kept_states import keep_trained, keep_tuned, kept_trained, kept_tuned, place_of

KEY = "0123456789abcdef0123"


def frame(run: Path) -> Any:
    (run / "trials").mkdir(exist_ok=True)
    return SimpleNamespace(settings=SimpleNamespace(out=run))


def tuned(*, hidden: bool = False) -> Tuned:
    random = np.random.default_rng(0)
    weight = np.asfortranarray(random.normal(size=(4, 3)).astype(np.float32))
    more = (np.ones((5, 4), np.float32), np.zeros(4, np.float32)) if hidden else (None, None)
    head = Head(weight, np.zeros(3, np.float32), *more, unit_length=hidden)
    return Tuned({"conv.weight": torch.arange(6.0).reshape(2, 3)}, head, 1.5, 4, 9, "patience")


@pytest.mark.parametrize("hidden", [False, True])
def test_what_was_tuned_comes_back(tmp_path: Path, hidden: bool) -> None:
    kept = tuned(hidden=hidden)
    assert keep_tuned(frame(tmp_path), KEY, 2, kept)
    found = kept_tuned(frame(tmp_path), KEY, 2)
    assert found is not None and (found.temperature, found.best_epoch, found.stopped) == (1.5, 4, "patience")
    assert torch.equal(found.state["conv.weight"], kept.state["conv.weight"]) and set(found.state) == {
        "conv.weight"
    }
    rows = np.random.default_rng(1).normal(size=(6, kept.head.features)).astype(np.float32)
    np.testing.assert_array_equal(found.head.probabilities(rows), kept.head.probabilities(rows))


def test_what_was_trained_comes_back(tmp_path: Path) -> None:
    made = ScratchDesign(8, 1, 32, 2)
    trained = Trained(made, build(made, seed=3).state_dict(), 1.0, 5, 6, "epochs", 5)
    assert keep_trained(frame(tmp_path), KEY, 0, trained)
    found = kept_trained(frame(tmp_path), KEY, 0)
    assert found is not None and found.design == made
    assert torch.equal(found.network().head.weight, trained.network().head.weight)


def test_another_recipe_fold_or_damage_is_none(tmp_path: Path) -> None:
    assert kept_tuned(frame(tmp_path), KEY, 0) is None
    keep_tuned(frame(tmp_path), KEY, 0, tuned())
    assert kept_tuned(frame(tmp_path), KEY, 1) is None
    assert kept_tuned(frame(tmp_path), KEY + "other", 0) is None
    place = place_of(tmp_path, KEY, 0)
    place.write_bytes(place.read_bytes()[:-7])
    assert kept_tuned(frame(tmp_path), KEY, 0) is None


def test_what_is_too_large_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_states, "MOST_BYTES", 10)
    assert not keep_tuned(frame(tmp_path), KEY, 0, tuned())
    assert not place_of(tmp_path, KEY, 0).exists()
