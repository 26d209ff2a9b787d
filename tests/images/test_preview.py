"""The contact sheet: a small JPEG, always the same, with a picture for every view and a caption that can be drawn."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from graft.images.augmentations import STILL, Augmentation
from graft.images.preview import FILE, MOST_BYTES, contact_sheet, preview_of, spread

MOVING = Augmentation(("mirror",), 0.4, 0.3, 0.5, degrees=10.0, trivial=True)


def noise(n: int = 10, channels: int = 3, size: int = 40) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, size, size, channels), dtype=np.uint8)


def opened(content: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(content))
    assert image.format == "JPEG"
    image.load()
    return image


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("count", [0, 1, 3, 10])
def test_a_line_for_each_image_up_to_eight(channels: int, count: int) -> None:
    rows = np.arange(count)
    names = [f"class {row}" for row in rows]
    sheet = opened(contact_sheet(noise(channels=channels), rows, MOVING, names=names, seed=0))
    empty = opened(contact_sheet(noise(), rows[:0], MOVING, names=[], seed=0))
    line = opened(contact_sheet(noise(), np.arange(1), MOVING, names=["x"], seed=0)).height - empty.height
    assert sheet.height == empty.height + min(8, count) * line
    assert sheet.width == empty.width


def test_the_same_arguments_give_the_same_bytes() -> None:
    def made(seed: int) -> bytes:
        return contact_sheet(noise(), np.array([1, 4]), MOVING, names=["a", "b"], seed=seed)

    assert made(0) == made(0)
    assert made(0) != made(1)


def test_the_original_stands_first_and_without_augmentation_everywhere() -> None:
    flat = np.zeros((1, 40, 40, 3), np.uint8)
    flat[..., 0] = 200
    for augmentation, moved in ((STILL, False), (replace(STILL, jitter=0.9), True)):
        sheet = np.asarray(opened(contact_sheet(flat, np.array([0]), augmentation, names=[""], seed=0)))
        middle = sheet.shape[0] // 2
        reds = sheet[middle, 60::116, 0][:6].astype(int)
        assert len(reds) == 6 and abs(reds[0] - 200) < 12
        assert (np.ptp(reds) > 25) == moved


@pytest.mark.parametrize("name", ["猫 🐜 \u202e\n\x00 ok", "x" * 5_000, "", "<b>"])
def test_any_name_can_be_a_caption(name: str) -> None:
    opened(contact_sheet(noise(), np.array([0]), MOVING, names=[name], seed=0, title=name))


def test_what_the_font_cannot_draw_becomes_a_question_mark() -> None:
    def captioned(name: str) -> bytes:
        return contact_sheet(noise(), np.array([0]), STILL, names=[name], seed=0)

    assert captioned("a 猫\n") == captioned("a ??")
    assert captioned("a ??") != captioned("a b?")


def test_it_stays_small_whatever_the_images() -> None:
    big = noise(8, size=224)
    content = contact_sheet(big, np.arange(8), MOVING, names=["noise"] * 8, seed=0)
    assert len(content) <= MOST_BYTES


def test_rows_are_taken_from_every_class_in_turn() -> None:
    targets = np.repeat(np.arange(3), [50, 2, 1])
    rows = np.arange(1, 53)
    assert spread(targets, rows).tolist() == [1, 2, 3, 4, 5, 50, 51, 52]
    assert spread(np.arange(40) % 20, np.arange(40)).tolist() == list(range(8))
    assert set(spread(targets, np.array([7, 52]))) == {7, 52}


def test_preview_of_writes_into_the_folder(tmp_path: Path) -> None:
    targets = np.arange(10) % 2
    folder = tmp_path / "runs" / "one"
    path = preview_of(
        noise(), targets, np.arange(10), MOVING, classes=["a", "b"], seed=3, folder=folder, title="t"
    )
    assert path == folder / FILE and [one.name for one in folder.iterdir()] == [FILE]
    opened(path.read_bytes())
