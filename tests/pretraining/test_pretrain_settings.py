"""What may be asked of `graft pretrain`, and the sentence for what may not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from graft.errors import SettingsError
from graft.pretraining.settings import resolved_pretraining


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"size": 100}, r"--size 100: choose a multiple of 16 from 64 to 384"),
        ({"size": 32}, r"--size 32"),
        ({"epochs": 0}, r"--epochs 0: choose a number from 1"),
        ({"batch_size": 1}, r"--batch-size 1: choose a number from 2"),
        ({"lr": float("nan")}, r"--lr nan"),
        ({"lr": 1.0}, r"--lr 1: .* to 0\.1"),
        ({"made": 0.2}, r"--made needs a teacher"),
        ({"teacher": "t", "made": 1.5}, r"--made 1\.5: choose a number from 0 to 0\.9"),
        ({"init": "teacher"}, r"--init teacher needs a teacher"),
        ({"init": "best"}, r"--init best: choose one of auto, random, teacher"),
        ({"device": "tpu"}, r"--device tpu: choose one of auto, cpu"),
        ({"seed": -1}, r"--seed -1"),
        ({"name": "../a"}, r"--name '\.\./a': use letters"),
        ({"target_space": "0"}, r"--target-space"),
    ],
)
def test_what_cannot_be_is_said(given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(SettingsError, match=sentence):
        resolved_pretraining("s", out="w", **given)


def test_defaults_and_names() -> None:
    settings = resolved_pretraining("some photos", out="w", teacher="t")
    assert (settings.student, settings.name, settings.epochs) == ("graft_small", "small-some-photos", 60)
    assert resolved_pretraining("s", out="w", student="tiny").student == "graft_tiny"
    assert resolved_pretraining("s", out="w", budget=60.0).epochs is None
    assert resolved_pretraining("s", out="w", budget=60.0, epochs=3).epochs == 3


def test_where_it_goes_is_no_part_of_what_it_is(tmp_path: Path) -> None:
    one, other = (resolved_pretraining("s", out=tmp_path / out, name=out) for out in ("a", "b"))
    assert one.identity == other.identity
    assert resolved_pretraining("s", out="a", seed=1).identity != one.identity
