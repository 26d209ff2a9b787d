"""The page of a recipe: what is valid, what is told about the rest, and that it reads what it writes."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from graft.backbones.inputs import INPUTS
from graft.errors import SettingsError
from graft.images.augmentations import Augmentation
from graft.images.augmentations import page_of as augmentation_page
from graft.studies.single.page import CHECKS, Page, page_from, page_of, read_page, text_of, write_page
from graft.studies.single.settings import resolved_training

GOLDEN = Path(__file__).parents[1] / "golden" / "recipe-v1.json"


def counted(least: int, most: int) -> some.SearchStrategy[Any]:
    return some.one_of(some.just("auto"), some.integers(least, most))


PAGES = some.builds(
    Page,
    backbone=some.from_regex(r"\A[a-z][a-z0-9_]{2,20}\Z").filter(
        lambda name: name not in ("auto", "scratch")
    ),
    init=some.sampled_from(["auto", "pretrained"]),
    freeze=some.sampled_from(["none", "7", "layer3"]),
    tap=some.sampled_from(["auto", "layer4", "blocks.3"]),
    head=some.sampled_from(["auto", "ridge", "linear", "mlp"]),
    input=some.sampled_from(["auto", *INPUTS]),
    size=counted(16, 1024),
    fit=some.sampled_from(["auto", "crop", "squash", "pad"]),
    augment=some.sampled_from(["auto", "none", "light", "medium", "strong"]),
    balance=some.sampled_from(["none", "weights", "sampler", "logit"]),
    lr=some.one_of(some.sampled_from(["auto", "find"]), some.floats(1e-8, 1)),
    epochs=counted(1, 100_000),
    patience=counted(1, 100_000),
    batch_size=counted(4, 4096),
    batch_norm=some.sampled_from(["auto", "frozen", "train", "reestimate"]),
    mixup=some.floats(0, 10),
    cutmix=some.floats(0, 10),
    ema=some.booleans(),
    ensemble=some.integers(1, 20),
    seeds=some.integers(1, 50),
    folds=some.integers(2, 20),
    metric=some.sampled_from(["macro_f1", "accuracy", "log_loss"]),
    groups=some.sampled_from(["near", "series"]),
    seed=some.integers(0, 2**31 - 1),
)


@given(PAGES)
def test_what_is_written_is_read(page: Page) -> None:
    assert page_of(text_of(page)) == page
    assert page_from(asdict(page)) == page


@given(
    some.dictionaries(
        some.one_of(some.sampled_from([*CHECKS, "format"]), some.text(max_size=8)),
        some.one_of(some.none(), some.booleans(), some.integers(), some.floats(), some.text(max_size=12)),
        max_size=8,
    )
)
@settings(max_examples=200)
def test_any_json_is_a_page_or_a_sentence(fields: dict[str, Any]) -> None:
    try:
        page = page_of(json.dumps({"format": 1, "backbone": "resnet18", **fields}))
    except SettingsError as error:
        assert str(error).endswith((".", "auto."))
    else:
        assert page_of(text_of(page)) == page


@given(some.text())
def test_any_text_is_a_page_or_a_sentence(content: str) -> None:
    with pytest.raises(SettingsError):
        page_of(content)


def test_the_golden_page_is_still_read() -> None:
    page = read_page(GOLDEN)
    assert (page.backbone, page.freeze, page.lr, page.ema) == (
        "mobilenetv1_025.coral_in1k",
        "7",
        0.0003,
        False,
    )
    assert text_of(page) == GOLDEN.read_text(encoding="utf-8")


def test_an_augmentation_stands_in_the_page_as_an_object(tmp_path: Path) -> None:
    file = tmp_path / "views.json"
    file.write_text(augmentation_page(Augmentation(("mirror",), 0.5, 0.1, 0.0)), encoding="utf-8")
    page = page_from({"backbone": "resnet18", "augment": str(file)})
    assert json.loads(text_of(page))["augment"]["symmetries"] == ["mirror"]
    file.unlink()
    assert page_of(text_of(page)) == page


@pytest.mark.parametrize(
    ("option", "value", "valid"),
    [
        ("init", "zeros", "auto, pretrained, random"),
        ("freeze", "", "all, none, how many of the first layers"),
        ("freeze", "-1", "a whole number from 0"),
        ("freeze", -1, "a whole number from 0"),
        ("freeze", "2.5", "a whole number from 0"),
        ("head", "svm", "auto, ridge, linear, mlp"),
        ("input", "depth", "rgb, gray, edges, rgb+edges, thin, rgb+thin"),
        ("size", 8, "a whole number from 16 to 1024"),
        ("fit", "stretch", "auto, crop, squash, pad"),
        ("augment", "wild", "none, light, medium, strong"),
        ("balance", "root", "none, weights, sampler, logit"),
        ("lr", "quick", "auto, find or a number"),
        ("lr", -1.0, "from 1e-08 to 1"),
        ("lr", 10, "from 1e-08 to 1"),
        ("lr", "nan", "a number"),
        ("epochs", 0, "a whole number from 1"),
        ("epochs", "1e400", "a whole number"),
        ("patience", 2.5, "a whole number from 1"),
        ("batch_size", 1, "a whole number from 2"),
        ("batch_norm", "off", "auto, frozen, train, reestimate"),
        ("mixup", -0.1, "from 0 to 10"),
        ("cutmix", "yes", "from 0 to 10"),
        ("generations", 6, "from 1 to 5"),
        ("ensemble", 0, "from 1 to 20"),
        ("seeds", 51, "from 1 to 50"),
        ("folds", 1, "from 2 to 20"),
        ("metric", "luck", "macro_f1, accuracy"),
        ("groups", "all", "near, series"),
        ("seed", -1, "from 0"),
    ],
)
def test_a_bad_value_gets_a_sentence_that_names_the_valid_ones(option: str, value: Any, valid: str) -> None:
    with pytest.raises(SettingsError) as error:
        page_from({"backbone": "resnet18", option: value})
    assert valid in str(error.value) and str(error.value).endswith(".")
    if option != "augment":
        assert "--" + option.replace("_", "-") in str(error.value)


@pytest.mark.parametrize(
    "fields",
    [
        {"backbone": "scratch", "init": "pretrained"},
        {"backbone": "scratch", "tap": "layer3"},
        {"backbone": "scratch", "input": "edges"},
        {"init": "random", "freeze": "all"},
        {"init": "random", "head": "ridge"},
        {"init": "random", "batch_norm": "frozen"},
        {"init": "random", "batch_size": 2},
        {"freeze": "all", "batch_norm": "train"},
        {"freeze": "all", "cutmix": 0.5},
        {"freeze": "all", "ensemble": 3},
    ],
)
def test_contradictions_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match=r"\."):
        page_from({"backbone": "resnet18", **fields})


def test_freezing_no_layer_is_freezing_nothing() -> None:
    assert page_from({"backbone": "resnet18", "init": "random", "freeze": "0"}).freeze == "none"
    assert page_from({"backbone": "resnet18", "freeze": 0}) == page_from({"backbone": "resnet18"})


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("[]", "not a JSON object"),
        ("{", "is no recipe"),
        ('{"backbone": "resnet18"}', "has the format None"),
        ('{"format": 2, "backbone": "resnet18"}', "reads 1"),
        ('{"format": true, "backbone": "resnet18"}', "reads 1"),
        ('{"format": 1}', "name a network"),
        ('{"format": 1, "backbone": "resnet18", "epoch": 3}', "Is epochs meant"),
        ('{"format": 1, "backbone": "resnet18", "epochs": 0}', "epochs is 0: give auto or a whole number"),
        ('{"format": 1, "backbone": "resnet18", "seed": 0, "seed": 1}', "gives seed twice"),
        ('{"format": 1, "backbone": "resnet18", "augment": "views.json"}', "as an object"),
        ('{"format": 1, "backbone": "resnet18", "augment": {"format": 1}}', "lacks"),
        ('{"format": 1, "backbone": "resnet18", "init": "random", "head": "ridge"}', "--head ridge"),
    ],
)
def test_a_bad_page_is_told_with_its_place(tmp_path: Path, content: str, told: str) -> None:
    file = tmp_path / "r.json"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(SettingsError, match=told) as error:
        read_page(file)
    assert "r.json" in str(error.value)


def test_a_page_that_is_not_there_or_no_text(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be read"):
        read_page(tmp_path / "none.json")
    (tmp_path / "b.json").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(SettingsError, match="not text"):
        read_page(tmp_path / "b.json")
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match="cannot be written"):
        write_page(Page("resnet18"), tmp_path / "file" / "r.json")


def test_an_option_beside_a_recipe_overrides_its_field(tmp_path: Path) -> None:
    kept = replace(Page("resnet18"), epochs=7, seed=3, ema=False)
    write_page(kept, tmp_path / "r.json")
    settled = resolved_training(
        "photos", recipe=tmp_path / "r.json", epochs="9", save_recipe=tmp_path / "s.json"
    )
    assert settled.page == replace(kept, epochs=9)
    assert settled.save_recipe == tmp_path / "s.json" and not settled.save_recipe.exists()
    assert settled.study.seed == 3 and settled.study.budget_seconds == float("inf")
    assert resolved_training("photos", recipe=tmp_path / "r.json", ema=True).page.ema


def test_a_backbone_must_be_named_once() -> None:
    with pytest.raises(SettingsError, match="--backbone is missing"):
        resolved_training("photos")
    for name in ("auto", "resnet18,resnet50"):
        with pytest.raises(SettingsError, match="name one network"):
            resolved_training("photos", backbone=name)
