"""Copies are found whatever was done to them; look-alikes are left alone."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter

from graft.images.duplicates import equal_pairs, grouped, near_pairs, sketch
from graft.images.readers import read, read_bytes


@functools.cache
def photo(seed: int, size: tuple[int, int] = (160, 120)) -> Image.Image:
    """Something like a photograph: blobs of all sizes in colour."""
    draw = np.random.default_rng(seed)
    layers = np.zeros((size[1], size[0], 3))
    for cells in (3, 6, 12, 24, 48):
        noise = Image.fromarray(draw.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        layers += np.asarray(noise.resize(size, Image.Resampling.BICUBIC), float) * (3 / cells) ** 0.7
    layers = (layers - layers.min()) / (layers.max() - layers.min())
    return Image.fromarray((layers * 255).astype(np.uint8))


def pairs_of(images: Sequence[Image.Image]) -> list[tuple[int, int, int]]:
    sketches = [sketch(image) for image in images]
    thumbnails, tints = (np.stack(part) for part in zip(*sketches, strict=True))
    pairs, scores, mirrored = near_pairs(thumbnails, tints)
    assert len(pairs) == len(scores) == len(mirrored)
    return [(int(one), int(two), int(flip)) for (one, two), flip in zip(pairs, mirrored, strict=True)]


def recompressed(image: Image.Image) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=30)
    return Image.open(io.BytesIO(file.getvalue())).convert(image.mode)


def cropped(image: Image.Image, left: float, upper: float, right: float, lower: float) -> Image.Image:
    wide, high = image.size
    return image.crop((round(wide * left), round(high * upper), round(wide * right), round(high * lower)))


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "recompressed": recompressed,
    "smaller": lambda image: image.resize((70, 50)),
    "larger": lambda image: image.resize((400, 310)),
    "squashed": lambda image: image.resize((96, 96)),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.15),
    "darker": lambda image: ImageEnhance.Brightness(image).enhance(0.7),
    "more contrast": lambda image: ImageEnhance.Contrast(image).enhance(1.3),
    "blurred": lambda image: image.filter(ImageFilter.GaussianBlur(1)),
    "grey": lambda image: image.convert("L"),
    "cropped all round": lambda image: cropped(image, 0.03, 0.03, 0.97, 0.97),
    "cropped on one side": lambda image: cropped(image, 0, 0, 0.95, 1),
    "mirrored": lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_copy_is_found_among_few(change: str) -> None:
    images = [photo(seed) for seed in range(4)]
    assert pairs_of([*images, CHANGES[change](images[1])]) == [(1, 4, int(change == "mirrored"))]


def test_changed_copies_are_found_among_many() -> None:
    images = [photo(seed) for seed in range(60)]
    copies = [change(image) for image, change in zip(images, CHANGES.values(), strict=False)]
    expected = [(k, 60 + k, int(change == "mirrored")) for k, change in enumerate(CHANGES)]
    assert pairs_of([*images, *copies]) == expected


def test_only_copies_and_nothing_else_are_found() -> None:
    image = photo(0)
    assert pairs_of([image, recompressed(image)]) == [(0, 1, 0)]
    assert len(pairs_of([image, recompressed(image), image.resize((90, 90))])) == 3


def test_the_same_picture_in_another_colour_is_another_picture() -> None:
    image = photo(3).convert("L")
    red, blue = (Image.merge("RGB", channels) for channels in (
        (image, image.point(lambda v: v // 3), image.point(lambda v: v // 3)),
        (image.point(lambda v: v // 3), image.point(lambda v: v // 3), image),
    ))  # fmt: skip
    assert pairs_of([photo(1), photo(2), red, blue]) == []


@pytest.mark.parametrize("count", [10, 40, 400])
def test_textures_under_the_same_light_are_not_merged(count: int) -> None:
    """Noise below a strong gradient, which alone correlates them at 0.99."""
    light = np.linspace(40, 200, 96)[None, :] * np.linspace(0.8, 1.2, 96)[:, None]
    draw = np.random.default_rng(0)
    images = []
    for _ in range(count):
        grain = Image.fromarray(draw.integers(0, 256, (48, 48), dtype=np.uint8)).resize((96, 96))
        images.append(Image.fromarray((light + np.asarray(grain, float) / 16).clip(0, 255).astype(np.uint8)))
    assert pairs_of(images) == []


def test_one_part_before_a_fixed_camera_does_not_become_one_group() -> None:
    draw = np.random.default_rng(0)
    part = np.asarray(photo(7, (96, 96)).convert("L"), float)
    images = []
    for _ in range(200):
        shot = Image.fromarray((part + draw.normal(0, 8, part.shape)).clip(0, 255).astype(np.uint8))
        x, y = draw.integers(5, 80, 2).tolist()
        ImageDraw.Draw(shot).ellipse((x, y, x + 9, y + 6), fill=0)
        images.append(shot)
    links = [(one, two) for one, two, _ in pairs_of(images)]
    sizes = np.bincount(grouped(len(images), np.array(links, np.int64).reshape(-1, 2)))
    assert sizes.max() <= 10
    assert (0, 200, 0) in pairs_of([*images, recompressed(images[0])])


def test_in_a_crowd_of_look_alikes_groups_stay_small(shared_data: Path) -> None:
    """Without the comparison with the twentieth neighbour, 93 of these garments become one group."""
    rows = read(shared_data / "fashion_mnist").rows[:3000]
    sketches = [sketch(Image.open(io.BytesIO(read_bytes(row.path, row.row)))) for row in rows]
    thumbnails, tints = (np.stack(part) for part in zip(*sketches, strict=True))
    sizes = np.bincount(grouped(len(rows), near_pairs(thumbnails, tints)[0]))
    assert sizes.max() <= 20 and sizes[sizes > 1].sum() < 500


def test_images_without_contrast_are_not_compared() -> None:
    assert pairs_of([Image.new("RGB", (20, 20), (value, 0, 0)) for value in range(0, 250, 10)]) == []
    assert pairs_of([photo(0)]) == []


def test_groups_are_chains_of_links_numbered_by_first_appearance() -> None:
    near = np.array([[1, 4], [3, 5]], np.int64)
    assert grouped(7, near, equal_pairs([None, None, None, "p", "p", None, None])).tolist() == [
        0,
        1,
        2,
        1,
        1,
        1,
        3,
    ]
    assert grouped(3).tolist() == [0, 1, 2]


@settings(max_examples=100, deadline=None)
@given(values=st.lists(st.one_of(st.none(), st.sampled_from("abcd"))))
def test_equal_values_and_only_they_share_a_group(values: list[str | None]) -> None:
    groups = grouped(len(values), equal_pairs(values))
    for one, first in enumerate(values):
        for two, second in enumerate(values):
            assert (groups[one] == groups[two]) == (one == two or (first is not None and first == second))


def test_blocks_give_what_one_block_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    from graft.images import duplicates

    images = [photo(seed) for seed in range(30)]
    images += [recompressed(image) for image in images[::3]]
    whole = pairs_of(images)
    monkeypatch.setattr(duplicates, "_BLOCK_BYTES", 4 * 40 * 17)
    monkeypatch.setattr(duplicates, "_PAIRS_AT_ONCE", 7)
    assert pairs_of(images) == whole and len(whole) == 10
