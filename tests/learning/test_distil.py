"""A student learns what its teacher says, the same every time, and only by mirrorings that are allowed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from graft.backbones.scratch import ScratchDesign
from graft.compute import Compute
from graft.errors import GraftError
from graft.learning.distil import DistilSettings, Taught, distil, turned
from graft.learning.trained import Trained, predict

DESIGN = ScratchDesign(8, 1, 32, 2)
CPU = Compute("cpu", False, 1)
SETTINGS = DistilSettings(views=800, batch_size=16)


def taught(*, contrary: bool = False) -> Taught:
    """Pictures that are brighter at the top or below; a contrary teacher says the other class."""
    random = np.random.default_rng(0)
    targets = np.arange(40) % 2
    views = random.integers(80, 120, size=(40, 2, 32, 32, 1)).astype(np.uint8)
    for row, target in enumerate(targets):
        views[row, :, 16 * target : 16 * target + 16] += 100
    named = 1 - targets if contrary else targets
    said = 6.0 * np.eye(2, dtype=np.float32)[named][:, None].repeat(2, axis=1)
    return Taught(views, said.astype(np.float32), targets)


def learned(lesson: Taught, settings: DistilSettings = SETTINGS) -> Trained:
    work = distil(lesson, design=DESIGN, settings=settings, compute=CPU, seed=1)
    epochs = []
    while True:
        try:
            epochs.append(next(work))
        except StopIteration as finished:
            assert [epoch.number for epoch in epochs] == list(range(1, settings.views // 40 + 1))
            assert all(0 <= epoch.train_accuracy <= 1 for epoch in epochs)
            return finished.value


def test_the_student_says_what_the_teacher_says() -> None:
    for contrary in (False, True):
        lesson = taught(contrary=contrary)
        found = learned(lesson, replace(SETTINGS, taught=1.0))
        said = predict(found, lesson.views[:, 0], np.arange(40), compute=CPU).argmax(axis=1)
        assert (said == lesson.said[:, 0].argmax(axis=1)).mean() > 0.95


def test_the_same_seed_gives_the_same_student() -> None:
    short = replace(SETTINGS, views=80)
    one, other = learned(taught(), short), learned(taught(), short)
    assert all(torch.equal(one.state[name], other.state[name]) for name in one.state)


def test_a_loss_that_is_no_number_is_told() -> None:
    lesson = taught()
    lesson.said[0] = np.nan
    with pytest.raises(GraftError, match="epoch 1"):
        learned(lesson)


def test_only_the_allowed_mirrorings_are_made() -> None:
    images = np.random.default_rng(0).integers(0, 255, size=(32, 6, 6, 1)).astype(np.uint8)
    assert (turned(images, (), np.random.default_rng(0)) == images).all()
    made = turned(images, ("mirror",), np.random.default_rng(0))
    as_it_was, mirrored = (made == images).all((1, 2, 3)), (made == images[:, :, ::-1]).all((1, 2, 3))
    assert (as_it_was | mirrored).all() and 8 <= mirrored.sum() <= 24
    for symmetry in ("upside_down", "transpose"):
        assert (turned(images, (symmetry,), np.random.default_rng(0)) != images).any()
