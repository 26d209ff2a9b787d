"""Does a backbone still recognise a mirrored image? Judged on features made here, and on real digits."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from made_sets import stripes, weights_folder

from graft.backbones.activations import extracted
from graft.backbones.catalogue import find
from graft.backbones.trunks import TrunkFile, trunk_of
from graft.backbones.weights import Reach, folder_from, shelf
from graft.compute import Compute
from graft.images.augmentations import STILL, SYMMETRIES, Symmetry, page_of
from graft.images.folds import split
from graft.images.pixels import open_pixels, pixels_key, preparing
from graft.images.scan import scan
from graft.images.views import APPLY, symmetries
from graft.store import Store
from graft.studies.frame import Event, Frame
from graft.studies.journal import Journal
from graft.studies.plan import geometry_of
from graft.studies.settings import resolved
from graft.studies.symmetry import MOST, asking, augmenting, judged, shown, spread


def blocks(pictures: np.ndarray) -> np.ndarray:
    """A stand-in for a backbone: the pictures averaged over blocks of 2 x 2, as features."""
    n, side = len(pictures), pictures.shape[1] // 2
    return pictures.reshape(n, side, 2, side, 2).mean((2, 4)).reshape(n, -1).astype(np.float32)


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits

    found = load_digits()
    grey = np.kron(found.images[:MOST], np.ones((2, 2))) * 15
    return grey.astype(np.uint8)[..., None], found.target[:MOST].astype(np.int64)


@pytest.mark.parametrize("name", ["mirror", "upside_down", "transpose"])
def test_digits_may_not_be_mirrored(digits: tuple[np.ndarray, np.ndarray], name: Symmetry) -> None:
    pixels, targets = digits
    turned = APPLY[name](pixels)
    asked = judged(
        name, blocks(pixels[..., 0]), blocks(turned[..., 0]), targets, parts=np.arange(len(targets)) % 5
    )
    assert not asked.allowed and asked.plain > 0.8 > asked.mirrored
    assert asked.without == (False,) * 5
    assert name not in symmetries(pixels, targets, np.arange(len(targets)))


def made(n: int = 200, *, moved: float = 0.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features of two classes, and those of their mirror images; `moved`: how far these are towards the other class."""
    random = np.random.default_rng(seed)
    targets = np.arange(n) % 2
    centres = np.zeros((n, 16))
    centres[:, 0] = 2.0 * targets - 1.0
    plain, mirrored = (centres * sign + random.normal(0, 0.6, (n, 16)) for sign in (1.0, 1.0 - moved))
    return plain.astype(np.float32), mirrored.astype(np.float32), targets.astype(np.int64)


def test_a_mirrored_image_that_is_recognised_as_well_is_allowed() -> None:
    verdicts = [
        judged("mirror", *made(seed=seed)[:2], made(seed=seed)[2], parts=np.arange(200) % 4)
        for seed in range(4)
    ]
    assert sum(one.allowed for one in verdicts) >= 3
    assert all(len(one.without) == 4 and one.images == 200 for one in verdicts)


def test_classes_that_change_places_are_refused() -> None:
    plain, mirrored, targets = made(moved=2.0)
    asked = judged("mirror", plain, mirrored, targets, parts=np.arange(200) % 5)
    assert not asked.allowed and asked.mirrored < 0.2 and asked.chance < 1e-6


def test_the_same_features_are_allowed_for_certain() -> None:
    plain, _, targets = made(60)
    asked = judged("mirror", plain, plain, targets, parts=np.arange(60) % 2)
    assert asked.allowed and asked.chance == 1.0 and asked.without == ()


def test_a_fold_decides_without_its_own_images() -> None:
    """Only the images of fold 0 are spoilt by mirroring: without them it is allowed."""
    plain, _, targets = made(300)
    mirrored, parts = plain.copy(), np.arange(300) % 3
    mirrored[parts == 0, 0] *= -1
    asked = judged("mirror", plain, mirrored, targets, parts=parts)
    assert not asked.allowed and asked.without == (True, False, False)


def test_at_most_400_rows_evenly_spread() -> None:
    rows = np.arange(10, 2_010)
    chosen = spread(rows)
    assert len(chosen) == MOST and chosen[0] == 10 and chosen[-1] == 2_009
    assert spread(rows[:50]).tolist() == rows[:50].tolist()


@pytest.fixture(scope="module")
def frame(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Frame]:
    """Stripes that lean left or right: mirrored, each is of the other class."""
    place = tmp_path_factory.mktemp("symmetry")
    photos, weights = stripes(place / "photos", each=20), weights_folder(place / "weights")
    settings = resolved(photos, out=place / "run", weights=weights, folds=2, budget="10m")
    store = Store(place / "cache")
    dataset = scan(photos, store=store, threads=1)
    with closing(Journal(settings.out)) as journal:
        folds = split(dataset, count=2, seed=0)
        compute, folder = Compute("cpu", False, 1), folder_from(weights)
        yield Frame(settings, dataset, folds, store, compute, folder, Reach(False, False), journal)


def opened(frame: Frame) -> tuple[TrunkFile, np.ndarray, np.ndarray]:
    """The trunk, the pixels, and the features of its last tap."""
    entry = find("test_resnet.made", shelf(frame.folder))
    geometry = geometry_of(entry, frame.dataset, "squash")
    for _ in preparing(frame.dataset, [geometry], store=frame.store, threads=1):
        pass
    pixels = open_pixels(frame.dataset, geometry, store=frame.store)
    given: dict[str, Any] = {"folder": frame.folder, "reach": frame.reach, "store": frame.store}
    trunk = trunk_of(entry, geometry, samples=np.array(pixels[:4]), compute=frame.compute, **given)
    found = extracted(trunk, pixels, pixels_key(frame.dataset, geometry), compute=frame.compute, **given)
    return trunk, pixels, found.tap(len(trunk.taps) - 1)


def finish(work: Generator[Event, None, Any]) -> tuple[list[Event], Any]:
    told = []
    while True:
        try:
            told.append(next(work))
        except StopIteration as end:
            return told, end.value


def test_pixels_and_backbone_must_both_allow_it(frame: Frame) -> None:
    trunk, pixels, features = opened(frame)
    tap = len(trunk.taps) - 1
    found = symmetries(pixels, frame.dataset.targets, frame.rows)
    _, asked = finish(asking(frame, trunk, pixels, features, tap=tap, found=SYMMETRIES))
    _, made_of = finish(augmenting(frame, trunk, pixels, features, tap=tap, wanted="light"))
    assert [one.symmetry for one in asked] == list(SYMMETRIES)
    assert made_of.symmetries == tuple(one.symmetry for one in asked if one.allowed and one.symmetry in found)
    assert "mirror" not in made_of.symmetries
    assert finish(asking(frame, trunk, pixels, features, tap=tap, found=SYMMETRIES))[1] == asked


def test_nothing_is_asked_where_the_answer_changes_nothing(frame: Frame) -> None:
    trunk, pixels, features = opened(frame)
    given = json.loads(page_of(replace(STILL, symmetries=("mirror",))))
    for wanted, expected in (("none", ()), (json.dumps(given), ("mirror",))):
        told, made_of = finish(augmenting(frame, trunk, pixels, features, tap=0, wanted=wanted))
        assert told == [] and made_of == replace(STILL, symmetries=expected)


def test_what_the_training_sees_is_left_in_the_run_folder(frame: Frame) -> None:
    _, pixels, _ = opened(frame)
    shown(frame, pixels, STILL, title="still")
    assert (frame.settings.out / "preview.jpg").read_bytes().startswith(b"\xff\xd8\xff")
