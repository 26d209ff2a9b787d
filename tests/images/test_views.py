"""Views of training images: what they may change, what they must not, and which mirrorings the images allow."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from graft.images.augmentations import RANGES, SYMMETRIES
from graft.images.views import Augmentation, _transforms, natural, suited, symmetries, views

ALL = Augmentation(("mirror", "upside_down", "transpose"), smallest_crop=0.4, jitter=0.3, erase=0.5)
STILL = Augmentation((), smallest_crop=1.0, jitter=0.0, erase=0.0)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch(n: int = 8, channels: int = 3, size: int = 24) -> torch.Tensor:
    return torch.randint(0, 256, (n, channels, size, size), dtype=torch.uint8, generator=generator(9))


def levels(images: torch.Tensor) -> torch.Tensor:
    return (images * 255).round().to(torch.uint8)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("n", [1, 5, 8])
def test_views_are_images_of_the_same_shape(channels: int, n: int) -> None:
    made = views(batch(n, channels), ALL, generator=generator())
    assert made.shape == (n, channels, 24, 24)
    assert made.dtype == torch.float32
    assert float(made.min()) >= 0 and float(made.max()) <= 1


def test_draws_come_from_the_generator_alone() -> None:
    before = torch.get_rng_state()
    one = views(batch(), ALL, generator=generator(1))
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(5)
    assert torch.equal(one, views(batch(), ALL, generator=generator(1)))
    assert not torch.equal(one, views(batch(), ALL, generator=generator(2)))


def test_a_generator_moves_on() -> None:
    drawn = generator()
    assert not torch.equal(views(batch(), ALL, generator=drawn), views(batch(), ALL, generator=drawn))


def test_every_image_is_cropped_on_its_own() -> None:
    same = batch(1).repeat(6, 1, 1, 1)
    moved = Augmentation((), smallest_crop=0.4, jitter=0.0, erase=0.0)
    made = views(same, moved, generator=generator())
    assert len({one.numpy().tobytes() for one in made}) == 6


def test_mirrorings_are_the_ones_that_were_asked_for() -> None:
    image = batch(1)[0]
    turned = {
        "mirror": image.flip(2),
        "upside_down": image.flip(1),
        "transpose": image.transpose(1, 2),
    }
    for name, expected in turned.items():
        only = Augmentation((name,), 1.0, 0.0, 0.0)  # type: ignore[arg-type]
        crops = torch.stack([image] * 64)
        found = {levels(one).numpy().tobytes() for one in views(crops, only, generator=generator())}
        whole = {picture.contiguous().numpy().tobytes() for picture in (image, expected)}
        assert whole <= found, name


def test_colour_changes_with_jitter_only() -> None:
    flat = torch.full((8, 3, 16, 16), 100, dtype=torch.uint8)
    assert torch.equal(levels(views(flat, STILL, generator=generator())), flat)
    jittered = views(flat, Augmentation((), 1.0, 0.3, 0.0), generator=generator())
    assert len(jittered.mean((1, 2, 3)).unique()) > 1
    erased = views(flat, Augmentation((), 1.0, 0.0, 1.0), generator=generator())
    assert bool((erased == 0.5).any()) and bool((levels(erased) == 100).any())


@settings(max_examples=25, deadline=None)
@given(
    chosen=st.lists(st.sampled_from(SYMMETRIES), unique=True).map(tuple),
    numbers=st.fixed_dictionaries({name: st.floats(*ends) for name, ends in RANGES.items()}),
    trivial=st.booleans(),
    channels=st.sampled_from([1, 3]),
)
def test_every_allowed_augmentation_makes_images(
    chosen: tuple[str, ...], numbers: dict[str, float], trivial: bool, channels: int
) -> None:
    asked = Augmentation(chosen, trivial=trivial, **numbers)  # type: ignore[arg-type]
    made = views(batch(5, channels), asked, generator=generator())
    assert made.shape == (5, channels, 24, 24) and bool(made.isfinite().all())
    assert float(made.min()) >= 0 and float(made.max()) <= 1


@pytest.mark.parametrize("channels", [1, 3])
def test_trivial_augment_works_on_grey_and_colour_and_varies(channels: int) -> None:
    same = batch(1, channels).repeat(64, 1, 1, 1)
    made = views(same, replace(STILL, trivial=True), generator=generator())
    assert len({one.numpy().tobytes() for one in made}) > 8


@pytest.mark.parametrize("allowed", [True, False])
def test_trivial_augment_turns_only_what_has_no_up_and_down(allowed: bool) -> None:
    asked = Augmentation(("upside_down",) if allowed else ("mirror",), 1.0, 0.0, 0.0, trivial=True)
    drawn = _transforms(asked, (3, 24, 24))[1].transforms[0]
    assert ("Rotate" in drawn._AUGMENTATION_SPACE) == allowed
    assert len(drawn._AUGMENTATION_SPACE) == 13 + allowed


def test_degrees_turn_the_picture_about_its_middle() -> None:
    image = torch.zeros((1, 1, 25, 25), dtype=torch.uint8)
    image[..., 12, 12], image[..., 12, 22] = 255, 255
    made = torch.cat([views(image, replace(STILL, degrees=30.0), generator=generator(n)) for n in range(8)])
    assert bool((made[:, 0, 12, 12] > 0.5).all())
    assert float(made[:, 0, 12, 22].min()) < 0.3
    assert bool(((made[:, 0, 0, 0] - 128 / 255).abs() < 0.01).any())


def test_hue_turns_colours_and_leaves_grey_alone() -> None:
    red = torch.zeros((8, 3, 8, 8), dtype=torch.uint8)
    red[:, 0] = 200
    asked = replace(STILL, hue=0.5)
    made = views(red, asked, generator=generator())
    assert len({one.numpy().tobytes() for one in made}) == 2, "drawn for groups of four"
    grey = torch.full((8, 1, 8, 8), 90, dtype=torch.uint8)
    assert torch.equal(levels(views(grey, asked, generator=generator())), grey)


def surfaces(n: int = 80, size: int = 32) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    return random.integers(0, 256, (n, size, size, 1), dtype=np.uint8), np.arange(n) % 2


def test_surfaces_have_every_symmetry() -> None:
    pixels, targets = surfaces(2_000, 24)
    assert suited(pixels, targets, np.arange(len(targets))).symmetries == (
        "mirror",
        "upside_down",
        "transpose",
    )


@pytest.mark.parametrize(
    ("lit", "natural_so"), [("all from above", True), ("each class from a side of its own", False)]
)
def test_grey_is_turned_upside_down_where_only_the_light_betrays_it(lit: str, natural_so: bool) -> None:
    """Nor what has an up and a down: a class that is heavy at the foot, another one at the head."""
    pixels, targets = surfaces(200)
    pixels = pixels // 2
    for picture, label in zip(pixels, targets, strict=True):
        at_the_top = natural_so or label
        picture[slice(0, 12) if at_the_top else slice(-12, None)] += np.uint8(60)
    rows = np.arange(len(targets))
    assert ("upside_down" in natural(pixels, targets, rows)) == natural_so
    coloured = np.repeat(pixels, 3, axis=3)
    assert "upside_down" not in natural(coloured, targets, rows), "in colour no light is forgiven"


def test_photos_of_small_classes_are_not_turned_upside_down() -> None:
    """Brighter above, three of four: within a class of one image nothing is to be seen of it, among all there is."""
    random = np.random.default_rng(4)
    pixels = np.repeat(surfaces(120, 24)[0] // 2, 3, axis=3)
    for picture, above in zip(pixels, random.random(120) < 0.75, strict=True):
        picture[slice(0, 12) if above else slice(12, None)] += np.uint8(20)
    every = np.arange(120)
    assert "upside_down" not in natural(pixels, every, every)


@pytest.mark.parametrize("arrow", ["left or right", "up or down", "across or along"])
def test_a_symmetry_that_changes_the_class_is_not_used(arrow: str) -> None:
    """One class has its bright part on one side, the other class on the other: the mean image tells nothing."""
    pixels, targets = surfaces()
    pixels = pixels // 2
    for picture, label in zip(pixels, targets, strict=True):
        if arrow == "left or right":
            picture[:, :12] += np.uint8(60 * label)
            picture[:, -12:] += np.uint8(60 * (1 - label))
        elif arrow == "up or down":
            picture[:12] += np.uint8(60 * label)
            picture[-12:] += np.uint8(60 * (1 - label))
        elif label:
            picture[::6] += np.uint8(100)
        else:
            picture[:, ::6] += np.uint8(100)
    found = symmetries(pixels, targets, np.arange(len(targets)))
    expected = {"left or right": "mirror", "up or down": "upside_down", "across or along": "transpose"}[arrow]
    assert expected not in found


def test_only_the_given_rows_are_looked_at() -> None:
    pixels, targets = surfaces()
    rows = np.arange(0, 60)
    before = suited(pixels, targets, rows)
    pixels[60:, :10] = 255
    targets[60:] = 7
    assert suited(pixels, targets, rows) == before
