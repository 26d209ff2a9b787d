"""Does turning an image change its class? Asked on features made here, on real digits, and on drawn arrows."""

from __future__ import annotations

import numpy as np
import pytest

from graft.images.augmentations import Symmetry
from graft.images.outlines import outlines
from graft.images.views import APPLY
from graft.learning.orientation import FEWEST, Turning, turning

SIDED, ALIKE = 0, 1


def made(
    targets: np.ndarray, *, sides: np.ndarray, seed: int = 0, noise: float = 0.3
) -> tuple[np.ndarray, np.ndarray]:
    """Features of images and of their mirror images: the class in the one part, the side (-1, 1) in the other.

    `targets`: what an image shows whichever way it is turned.
    """
    random = np.random.default_rng(seed)
    n, classes = len(targets), int(targets.max()) + 1
    shown = np.eye(classes)[targets]
    rest = random.normal(0, noise, (n, 8))
    plain, mirrored = (
        np.concatenate([shown, rest, (way * sides)[:, None]], axis=1)
        + random.normal(0, noise, (n, classes + 9))
        for way in (1, -1)
    )
    return plain.astype(np.float32), mirrored.astype(np.float32)


def asked(plain: np.ndarray, mirrored: np.ndarray, targets: np.ndarray) -> Turning:
    parts = np.random.default_rng(1).integers(0, 5, len(targets))
    return turning([plain], [mirrored], targets, parts=parts)


@pytest.mark.parametrize("n", [40, 80, 300])
def test_left_and_right_of_four_things_change_places(n: int) -> None:
    """The classes are sides; what the images show says nothing about them."""
    targets = np.arange(n) % 2
    found = asked(*made(np.arange(n) // 2 % 4, sides=2.0 * targets - 1), targets)
    assert found.verdict == "changed"
    assert found.sighted > 0.9 and found.blind < 0.75


@pytest.mark.parametrize("n", [40, 80, 300])
def test_classes_that_all_look_to_one_side_may_be_mirrored(n: int) -> None:
    targets = np.arange(n) % 2
    assert asked(*made(targets, sides=np.ones(n)), targets).verdict == "kept"


def test_classes_that_look_to_opposite_sides_but_differ_anyway_may_be_mirrored() -> None:
    """Motorbikes look to the right and aeroplanes to the left: a mirrored motorbike is no aeroplane."""
    targets = np.arange(100) % 2
    assert asked(*made(targets, sides=2.0 * targets - 1, noise=0.15), targets).verdict == "kept"


def test_features_that_tell_mirrored_images_a_little_worse_are_no_reason() -> None:
    targets = np.arange(200) % 2
    plain, mirrored = made(targets, sides=np.zeros(200))
    mirrored += np.random.default_rng(2).normal(0, 0.3, mirrored.shape).astype(np.float32)
    assert asked(plain, mirrored, targets).verdict == "kept"


def test_what_cannot_be_told_apart_at_all_is_unknown() -> None:
    """A few times in a hundred noise looks like knowledge."""
    verdicts = []
    for seed in range(20):
        targets = np.random.default_rng(seed).permutation(np.arange(100) % 2)
        same = np.zeros(100, np.int64)
        verdicts.append(asked(*made(same, sides=np.zeros(100), seed=seed), targets).verdict)
    assert verdicts.count("unknown") >= 17


def test_answering_the_majority_is_no_evidence() -> None:
    """110 against 5, and nothing to tell them by: 96 % are right, but of the five none is."""
    targets = (np.arange(115) >= 5).astype(np.int64)
    found = asked(*made(np.zeros(115, np.int64), sides=np.zeros(115)), targets)
    assert found.verdict == "unknown" and found.blind < 0.7


def test_two_of_ten_classes_that_are_mirror_images_are_found_and_named() -> None:
    """Nine things are told apart, but the first is two classes, by the side it looks to."""
    shown = np.repeat(np.arange(9), 20)
    targets = np.where((shown == 0) & (np.arange(180) % 2 == 1), 9, shown)
    sides = np.where(shown == 0, np.where(targets == 9, 1.0, -1.0), 0.0)
    found = asked(*made(shown, sides=sides, noise=0.1), targets)
    assert found.clear > 10
    assert found.verdict != "kept" and found.confused == (0, 9)


def test_of_many_classes_two_that_are_alike_are_no_reason() -> None:
    """Two of thirty classes look the same, whichever way they are turned."""
    targets = np.repeat(np.arange(30), 10)
    shown = np.where(targets == 29, 28, targets)
    assert asked(*made(shown, sides=np.zeros(300), noise=0.1), targets).verdict == "kept"


def test_of_very_small_classes_no_pair_is_asked_about() -> None:
    targets = np.arange(2 * (FEWEST - 1)) % 2
    assert asked(*made(np.zeros_like(targets), sides=np.zeros(len(targets))), targets).confused == ()


def test_classes_without_images_do_not_count() -> None:
    targets = np.arange(80) % 2
    plain, mirrored = made(targets, sides=np.zeros(80))
    found, later = asked(plain, mirrored, targets), asked(plain, mirrored, targets * 5 + 2)
    assert found == later and found.blind > 0.9


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits

    found = load_digits()
    grey = np.kron(found.images[:400], np.ones((4, 4))) * 15
    return grey.astype(np.uint8)[..., None], found.target[:400].astype(np.int64)


def arrows(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Arrow heads of random place and size that point to the left or to the right."""
    random = np.random.default_rng(0)
    across, down = np.meshgrid(np.arange(64), np.arange(64))
    targets = np.arange(n) % 2
    drawn = np.empty((n, 64, 64, 1))
    for picture, way in zip(drawn, 2 * targets - 1, strict=True):
        x, y, size = *random.uniform(26, 38, 2), random.uniform(14, 22)
        picture[..., 0] = (
            255 * (np.abs(down - y) < way * (across - x) + size / 2) * (np.abs(across - x) < size)
        )
    return np.clip(drawn + random.normal(0, 20, drawn.shape), 0, 255).astype(np.uint8), targets


def seen(pixels: np.ndarray, targets: np.ndarray, name: Symmetry) -> Turning:
    turned = np.ascontiguousarray(APPLY[name](pixels))
    return turning([outlines(pixels)], [outlines(turned)], targets, parts=np.arange(len(targets)) // 2 % 5)


def test_arrows_may_be_turned_upside_down_only_if_something_else_tells_them_apart() -> None:
    """By the edges alone an arrow and its mirror image are one; upside down it is the same arrow."""
    pixels, targets = arrows(60)
    assert seen(pixels, targets, "mirror").verdict == "changed"
    assert seen(pixels, targets, "upside_down").verdict == "kept"


@pytest.mark.parametrize("name", ["mirror", "upside_down"])
def test_real_digits_may_not_be_mirrored(digits: tuple[np.ndarray, np.ndarray], name: Symmetry) -> None:
    """Mirrored digits are none; the heads tell them apart either way, so it is the test proper that says no."""
    found = seen(*digits, name)
    assert found.verdict == "changed" and found.blind > 0.9
