"""The estimator keeps scikit-learn's contract, reads every kind of image alike, and answers as its bundle does."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_sets import picture
from PIL import Image
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.svm import LinearSVC
from sklearn.utils.estimator_checks import parametrize_with_checks

import graft
from graft.errors import GraftError
from graft.estimator import FAILED_CHECKS, GraftClassifier
from graft.estimator_input import ParameterError, from_table, is_table, pixels_of, span_of
from graft.images.augmentations import Augmentation
from graft.images.dataset import Preprocess
from graft.learning import finetune, prefix

QUICK: dict[str, Any] = {"size": 32, "framing": "squash", "tap": -1, "threads": 1}
STRIPS = GraftClassifier(size=16, framing="squash", tap=-1, threads=1, image_shape=(1, -1), value_range="fit")
IMAGES = np.stack(
    [
        np.asarray(picture(np.random.default_rng([kind, index]), 2 * kind, size=32))
        for index in range(20)
        for kind in range(2)
    ]
)
LABELS = np.array(["left", "right"] * 20)
LEARNED, ASKED = slice(0, 28), slice(28, 40)


@parametrize_with_checks([STRIPS], expected_failed_checks=lambda _: FAILED_CHECKS)
def test_scikit_learns_own_checks(estimator: Any, check: Callable[[Any], None]) -> None:
    check(estimator)


@pytest.fixture(scope="module")
def fitted() -> GraftClassifier:
    return GraftClassifier(**QUICK).fit(IMAGES[LEARNED], LABELS[LEARNED])


def encoded(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def test_it_learns_and_gives_labels_by_classes(fitted: GraftClassifier) -> None:
    assert fitted.classes_.tolist() == ["left", "right"] and fitted.backbone_ == "graft_small.distilled"
    answers = fitted.predict_proba(IMAGES[ASKED])
    assert answers.shape == (12, 2) and np.allclose(answers.sum(axis=1), 1)
    assert (fitted.predict(IMAGES[ASKED]) == fitted.classes_[answers.argmax(axis=1)]).all()
    assert fitted.score(IMAGES[ASKED], LABELS[ASKED]) > 0.8


def test_every_kind_of_input_gives_the_same_answer(fitted: GraftClassifier, tmp_path: Path) -> None:
    some = IMAGES[ASKED]
    wanted = fitted.predict_proba(some)
    paths = [tmp_path / f"{place}.png" for place in range(len(some))]
    for path, image in zip(paths, some, strict=True):
        path.write_bytes(encoded(image))
    kinds: list[Any] = [
        list(some),
        some.astype(np.float64) / 255,
        some.astype(np.int64),
        paths,
        [str(path) for path in paths],
        np.array([str(path) for path in paths]),
        np.array(paths, object)[:, None],
        [encoded(image) for image in some],
        [Image.fromarray(image) for image in some],
    ]
    for kind in kinds:
        assert np.abs(fitted.predict_proba(kind) - wanted).max() < 1e-6


def test_a_table_of_flattened_images_is_the_same_as_the_images(fitted: GraftClassifier) -> None:
    flat = GraftClassifier(**QUICK, image_shape=(32, 32, -1))
    flat.fit(IMAGES[LEARNED].reshape(28, -1), LABELS[LEARNED])
    assert flat.n_features_in_ == 32 * 32 * 3
    found = flat.predict_proba(IMAGES[ASKED].reshape(12, -1))
    assert np.abs(found - fitted.predict_proba(IMAGES[ASKED])).max() < 1e-6


def test_the_bundle_answers_as_the_estimator_does(fitted: GraftClassifier, tmp_path: Path) -> None:
    bundle = fitted.to_bundle(tmp_path / "model.graft")
    assert bundle.labels == ("left", "right") and bundle.facts["strategy"] == "frozen"
    some = list(IMAGES[ASKED])
    assert np.abs(bundle.probabilities(some) - fitted.predict_proba(some)).max() < 1e-6
    assert np.abs(bundle.embed(some) - fitted.transform(some)).max() < 1e-6


def test_a_pickled_estimator_needs_nothing_else(
    fitted: GraftClassifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = pickle.loads(pickle.dumps(fitted))  # noqa: S301
    monkeypatch.setenv("GRAFT_CACHE", str(tmp_path / "empty"))
    assert (copy.predict_proba(IMAGES[ASKED]) == fitted.predict_proba(IMAGES[ASKED])).all()


def test_it_is_searched_validated_cloned_and_put_into_pipelines() -> None:
    model = GraftClassifier(**QUICK)
    assert clone(model).get_params() == model.get_params()
    assert cross_val_score(model, IMAGES, LABELS, cv=2).shape == (2,)
    search = GridSearchCV(model, {"tap": [0, -1]}, cv=2).fit(IMAGES, LABELS)
    assert search.best_params_["tap"] in (0, -1)
    mirrored = FunctionTransformer(lambda images: images[:, :, ::-1])
    assert make_pipeline(mirrored, model).fit(IMAGES, LABELS).score(IMAGES, LABELS) > 0.8
    embedded = make_pipeline(model, StandardScaler(), LinearSVC())
    assert embedded.fit(IMAGES[LEARNED], LABELS[LEARNED]).score(IMAGES[ASKED], LABELS[ASKED]) > 0.8


def test_nothing_outside_of_fit_changes_the_model(fitted: GraftClassifier) -> None:
    before = fitted.predict_proba(IMAGES[ASKED][:3])
    fitted.predict(IMAGES[ASKED][::-1])
    assert (fitted.predict_proba(IMAGES[ASKED][:3]) == before).all()


def test_auto_takes_the_tap_and_the_framing_of_the_lowest_loss() -> None:
    model = GraftClassifier(size=32, threads=1).fit(IMAGES[LEARNED], LABELS[LEARNED])
    best = min(model.tried_, key=lambda tried: model.tried_[tried])
    assert (model.backbone_, model.geometry_.fit, model.tap_) == best
    assert {fit for _, fit, _ in model.tried_} == {"crop", "squash"} and len(model.tried_) > 4


@pytest.mark.parametrize(("freeze", "strategy"), [("none", "full"), (3, "partial"), ("all", "frozen")])
def test_fine_tuning_from_any_depth(freeze: Any, strategy: str, tmp_path: Path) -> None:
    model = GraftClassifier(**QUICK, strategy="finetuned", freeze=freeze, epochs=2)
    model.fit(IMAGES[LEARNED], LABELS[LEARNED])
    bundle = model.to_bundle(tmp_path / "model.graft")
    assert bundle.facts["strategy"] == strategy
    assert model.score(IMAGES[ASKED], LABELS[ASKED]) > 0.6
    if strategy != "partial":
        return
    again = clone(model).fit(IMAGES[LEARNED], LABELS[LEARNED])
    assert np.abs(again.predict_proba(IMAGES[ASKED]) - model.predict_proba(IMAGES[ASKED])).max() < 1e-5


def test_views_are_mirrored_only_where_the_backbone_allows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stripes that lean are of the other class when mirrored, and nothing else tells them apart."""
    seen: list[Augmentation] = []
    real = prefix.caching
    monkeypatch.setattr(
        prefix,
        "caching",
        lambda *a, augmentation, **k: seen.append(augmentation) or real(*a, augmentation=augmentation, **k),
    )
    leaning = np.stack([np.asarray(picture(np.random.default_rng(index), 1, size=32)) for index in range(40)])
    leaning[1::2] = leaning[1::2, :, ::-1]
    model = GraftClassifier(**QUICK, strategy="finetuned", epochs=1)
    model.fit(leaning, np.arange(40) % 2)
    assert "mirror" not in seen[0].symmetries


def test_how_it_is_trained_can_be_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[Any, ...]] = []
    real = finetune.tune

    def watched(*given: Any, settings: Any, **more: Any) -> Any:
        rates = settings.trunk_rate, round(settings.head_rate / settings.trunk_rate, 6)
        seen.append((settings.head, settings.batch_size, settings.patience, settings.batch_norm, *rates))
        seen[-1] += settings.augment, settings.mixup, settings.epochs
        return real(*given, settings=settings, **more)

    monkeypatch.setattr(finetune, "tune", watched)
    model = GraftClassifier(**QUICK, strategy="finetuned", epochs=1, batch_size=8, patience=3, mixup=0.2)
    grid = {"head": ["mlp"], "lr": [1e-3, 3e-3], "batch_norm": ["train"], "augment": ["medium"]}
    search = GridSearchCV(model, grid, cv=2, refit=False).fit(IMAGES, LABELS)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    rates = {one[4] for one in seen}
    assert rates == {1e-3, 3e-3} and len(seen) == 4 and len({one[5] for one in seen}) == 1
    assert {one[:4] + one[6:] for one in seen} == {("mlp", 8, 3, "train", "medium", 0.2, 1)}


def test_a_search_over_what_is_frozen_reads_above_it() -> None:
    model = GraftClassifier(size=32, framing="squash", threads=1, strategy="finetuned", epochs=1)
    grid = {"freeze": ["blocks.1", "blocks.4", 12, "none"]}
    search = GridSearchCV(model, grid, cv=2, refit=False, error_score="raise").fit(IMAGES, LABELS)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()


def test_behind_a_frozen_network_the_head_that_was_asked_for_is_trained() -> None:
    answers = {}
    for head, lr in (("ridge", None), ("linear", 1e-5), ("linear", 1e-2), ("mlp", 1e-2)):
        model = GraftClassifier(**QUICK, strategy="finetuned", freeze="all", head=head, lr=lr, epochs=2)
        answers[head, lr] = model.fit(IMAGES[LEARNED], LABELS[LEARNED]).predict_proba(IMAGES[ASKED])
    known = list(answers.values())
    assert all(np.abs(a - b).max() > 1e-4 for place, a in enumerate(known) for b in known[:place])


def test_above_a_frozen_stage_something_learns() -> None:
    """The stage itself may not be read: nothing would be left to learn."""
    model = GraftClassifier(
        size=32, framing="squash", threads=1, strategy="finetuned", freeze="blocks.1", epochs=1
    )
    model.fit(IMAGES[LEARNED], LABELS[LEARNED])
    assert {tap for _, _, tap in model.tried_}.isdisjoint({"blocks.0", "blocks.1"})
    assert model._model.strategy == "partial"


def test_whether_a_freeze_can_be_does_not_depend_on_the_tap_that_was_chosen() -> None:
    model = GraftClassifier(size=32, framing="squash", threads=1, tap=0, freeze="blocks.4")
    assert model.fit(IMAGES[LEARNED], LABELS[LEARNED]).tap_ != "blocks.4"


def test_two_images_are_enough_to_be_trained_on() -> None:
    model = GraftClassifier(**QUICK, strategy="finetuned", epochs=1).fit(IMAGES[:2], LABELS[:2])
    assert set(model.predict(IMAGES[:2])) <= {"left", "right"}


def test_from_scratch(tmp_path: Path) -> None:
    model = GraftClassifier(strategy="scratch", epochs=2, size=32, threads=1)
    model.fit(IMAGES[LEARNED], LABELS[LEARNED])
    assert model.backbone_ == "small_cnn" and model.predict_proba(IMAGES[ASKED]).shape == (12, 2)
    assert model.to_bundle(tmp_path / "model.graft").facts["strategy"] == "scratch"


def test_gray_reads_no_colour() -> None:
    model = GraftClassifier(**QUICK, input="gray").fit(IMAGES[LEARNED], LABELS[LEARNED])
    grey = [Image.fromarray(image).convert("L") for image in IMAGES[ASKED]]
    assert np.abs(model.predict_proba(grey) - model.predict_proba(IMAGES[ASKED])).max() < 1e-6
    assert model.geometry_.channels == 1


def test_values_become_grey_levels_by_a_checked_rule() -> None:
    geometry = Preprocess(size=8, fit="squash", channels=1)

    def levels(array: np.ndarray, value_range: Any = None) -> list[int]:
        pixels = pixels_of([array], geometry, span_of([array], value_range), threads=1)
        return sorted(set(pixels.ravel().tolist()))

    ramp = np.repeat(np.repeat([[0, 1], [0, 1]], 4, axis=0), 4, axis=1)
    assert levels(ramp.astype(bool)) == [0, 255] and levels(ramp.astype(float)) == [0, 255]
    assert levels(ramp) == [0, 1] and levels((200 * ramp).astype(np.uint16)) == [0, 200]
    assert levels(16 * ramp - 3, "fit") == [0, 255] and levels(16 * ramp, (0, 32)) == [0, 128]
    assert levels(16 * ramp, (4, 8)) == [0, 255] and levels(ramp * 0, "fit") == [0]


@pytest.mark.parametrize(
    ("images", "told"),
    [
        (np.full((4, 8, 8), 7.0), "from 7 to 7.*value_range"),
        (np.full((4, 8, 8), -1), "from -1 to -1"),
        (np.full((4, 8, 8), np.nan), "value_range"),
        (np.zeros((4, 8, 8, 2), np.uint8), r"\[8, 8, 2\]"),
        (np.zeros((4, 64), np.uint8), "image_shape"),
        (["a.png", "b.png", "c.png", "d.png"], "Image 0 of X.*a.png"),
        ([b"", b"", b"", b""], "Image 0 of X"),
        ("photos", "Give a list"),
        (np.zeros((4, 24, 3), np.uint8), r"one image in colour.*\[1, 4, 24, 3\]"),
        (np.zeros((0, 8, 8, 3), np.uint8), "holds no images"),
        ([], "holds no images"),
        ([Image.new("L", (9, 9)), None, None, None], "Item 1 of X is a NoneType"),
    ],
)
def test_what_is_no_image_is_told_in_a_sentence(images: Any, told: str) -> None:
    with pytest.raises(ValueError, match=told) as caught:
        GraftClassifier(**QUICK).fit(images, ["a", "b", "a", "b"])
    assert isinstance(caught.value, GraftError)


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("strategy", "magic", "frozen, finetuned, scratch"),
        ("framing", "bend", "auto, crop, squash, pad"),
        ("input", "blue", "rgb, gray"),
        ("balance", 0.5, "auto, none, root, full"),
        ("tap", "roof", "'auto' chooses"),
        ("tap", 99, "by number"),
        ("size", 4, "8 to 2048"),
        ("epochs", 0, "1 to 100000"),
        ("threads", 1.5, "1 to 1024"),
        ("backbone", "restnet18", "resnet18"),
        ("device", "tpu", "cuda"),
        ("value_range", (1, 1), "lowest, highest"),
        ("freeze", "roof", "all, none"),
        ("backbone", None, "name of a network"),
        ("tap", True, "number of a stage"),
        ("random_state", -5, "0 to 4294967295"),
        ("random_state", 2**63, "0 to 4294967295"),
        ("lr", 0.0, "1e-08 to 1"),
        ("lr", float("nan"), "1e-08 to 1"),
        ("mixup", None, "0 to 10"),
        ("batch_size", 1, "4 to 4096"),
        ("patience", True, "1 to 100000"),
        ("head", "big", "ridge, linear, mlp"),
        ("batch_norm", "off", "frozen, train, reestimate"),
        ("augment", 3, "none, light, medium, strong"),
        ("weights", 5, "a folder with weights.json"),
        ("weights", "no such folder", "has no weights.json"),
    ],
)
def test_a_bad_parameter_names_the_valid_values(name: str, value: Any, told: str) -> None:
    model = GraftClassifier(**QUICK).set_params(**{name: value})
    if name == "freeze":
        model.set_params(strategy="finetuned")
    with pytest.raises(GraftError, match=told) as caught:
        model.fit(IMAGES[LEARNED], LABELS[LEARNED])
    assert "--" not in str(caught.value), "options are for the command line"


def test_a_freeze_that_cannot_be_is_refused_though_nothing_is_trained() -> None:
    for strategy in ("frozen", "finetuned"):
        model = GraftClassifier(**QUICK, strategy=strategy, freeze="nope")
        with pytest.raises(ParameterError, match=r"^freeze='nope': give all, none, .*0 to "):
            model.fit(IMAGES[LEARNED], LABELS[LEARNED])


def test_the_words_of_the_command_line_balance_a_training_and_nothing_else() -> None:
    frozen = GraftClassifier(**QUICK, balance="logit")
    with pytest.raises(
        ParameterError, match="choose one of auto, none, root, full; the others are for training"
    ):
        frozen.fit(IMAGES[LEARNED], LABELS[LEARNED])
    head_only = GraftClassifier(**QUICK, balance="logit", strategy="finetuned", freeze="all")
    assert head_only.fit(IMAGES[LEARNED], LABELS[LEARNED]).score(IMAGES[ASKED], LABELS[ASKED]) > 0.8
    trained = GraftClassifier(**QUICK, balance="sampler", strategy="finetuned", epochs=1)
    assert trained.fit(IMAGES[LEARNED], LABELS[LEARNED]).predict(IMAGES[:2]).shape == (2,)


def test_labels_that_do_not_fit_are_refused() -> None:
    model = GraftClassifier(**QUICK)
    with pytest.raises(ValueError, match="at least two"):
        model.fit(IMAGES[:4], ["a"] * 4)
    with pytest.raises(ValueError, match="inconsistent numbers"):
        model.fit(IMAGES[:4], ["a", "b", "a"])
    with pytest.raises(ValueError, match="sorted together"):
        model.fit(IMAGES[:4], ["a", "b", None, "a"])
    with pytest.raises(ValueError, match="requires y"):
        model.fit(IMAGES[:4], None)
    with pytest.raises(NotFittedError):
        model.predict(IMAGES[:4])


def test_the_shape_of_a_tables_images() -> None:
    table = np.zeros((5, 12))
    assert from_table(table, (2, -1)).shape == (5, 2, 6) and from_table(table, (2, 2, 3)).shape == (
        5,
        2,
        2,
        3,
    )
    for bad in ((5, 5), (-1, -1), (12,), (0, -1), (2.0, 6)):
        with pytest.raises(ValueError, match=r"shape|image_shape"):
            from_table(table, bad)
    assert (
        is_table([[1, 2], [3, 4]]) and not is_table([np.zeros((2, 2))]) and not is_table(np.zeros((1, 4, 4)))
    )


def test_it_is_public_and_loaded_on_first_use() -> None:
    assert graft.GraftClassifier is GraftClassifier


@pytest.mark.slow
def test_real_photos_and_a_search_over_depth(shared_data: Path, shared_weights: Path) -> None:
    paths = sorted((shared_data / "hymenoptera" / "train").glob("*/*.jpg"))
    labels = [path.parent.name for path in paths]
    model = GraftClassifier("mobilenetv1_050.coral_in1k", weights=shared_weights, framing="crop")
    search = GridSearchCV(model, {"tap": ["blocks.1", "blocks.4"]}, cv=3).fit(paths, labels)
    first, last = search.cv_results_["mean_test_score"]
    assert search.best_params_ == {"tap": "blocks.4"} and last > 0.85 > first
