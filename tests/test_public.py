"""What `import graft` offers: the names, loaded when they are first used, with the same options everywhere."""

from __future__ import annotations

import inspect
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from made_models import LABELS, packed
from PIL import Image

import graft
from graft import api, cli, errors
from graft.pretraining.settings import resolved_pretraining
from graft.studies.settings import Settings, resolved
from graft.studies.single.page import Page
from graft.studies.single.settings import resolved_training


def test_every_public_name_is_there_and_documented() -> None:
    for name in graft.__all__:
        offered = getattr(graft, name)
        assert isinstance(offered, str) or (inspect.getdoc(offered) or "").endswith((".", "`"))
    assert set(graft._HOMES) | {"__version__"} == set(graft.__all__)
    assert dir(graft) == sorted(graft.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'fit'"):
        _ = graft.fit


def test_study_and_settings_take_the_same_options() -> None:
    assert list(inspect.signature(graft.study).parameters.items())[1:] == [
        item for item in inspect.signature(resolved).parameters.items() if item[0] != "source"
    ]
    named = {"max_size": "max_bytes", "max_latency": "max_latency_ms", "budget": "budget_seconds"}
    options = [named.get(name, name) for name in inspect.signature(resolved).parameters]
    assert options == [field.name for field in fields(Settings)]


def test_the_command_line_has_every_option_with_the_same_default() -> None:
    options = vars(cli._parser().parse_args(["study", "photos"]))
    for name, parameter in inspect.signature(graft.study).parameters.items():
        if name != "source":
            assert options[name] == parameter.default, name


def test_pretrain_takes_the_same_options_everywhere() -> None:
    offered = dict(inspect.signature(graft.pretrain).parameters)
    options = vars(cli._parser().parse_args(["pretrain", "photos", "--out", "weights"]))
    settled = dict(inspect.signature(resolved_pretraining).parameters)
    assert set(settled) - set(offered) == {"checkpoint_seconds"} and set(offered) <= set(settled)
    for name, parameter in offered.items():
        assert parameter.default == settled[name].default, name
        assert name in ("source", "out") or options[name] == parameter.default, name


def test_train_takes_the_same_options_everywhere_and_a_page_has_those_of_a_recipe() -> None:
    offered = inspect.signature(graft.train).parameters
    assert offered == inspect.signature(resolved_training).parameters
    options = vars(cli._parser().parse_args(["train", "photos"]))
    for name, parameter in offered.items():
        assert name == "source" or options[name] == parameter.default, name
    around = {"source", "recipe", "save_recipe", "out", "budget", "weights", "device", "preview", "overwrite"}
    assert [name for name in offered if name not in around] == [field.name for field in fields(Page)]


def test_every_error_is_a_graft_error() -> None:
    kinds = [kind for _, kind in inspect.getmembers(errors, inspect.isclass)]
    assert len(kinds) >= 7 and all(issubclass(kind, graft.GraftError) for kind in kinds)


def test_load_and_predict(tmp_path: Path) -> None:
    model = graft.load(packed(tmp_path / "model.graft"))
    assert isinstance(model, graft.Bundle)
    answer = model.predict(Image.new("RGB", (30, 40), "red"))
    assert isinstance(answer, graft.Prediction) and answer.label in LABELS
    assert len(model.embed([np.zeros((9, 9, 3), np.uint8)])) == 1


def test_bad_options_are_refused_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(graft.GraftError, match="--metric"):
        graft.study(tmp_path / "nowhere", metric="luck", out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_check_needs_images(tmp_path: Path) -> None:
    with pytest.raises(errors.DatasetError):
        api.check(tmp_path)
