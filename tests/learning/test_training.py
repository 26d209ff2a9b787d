"""Training from scratch: it learns, it is repeatable, it stops when told, and it never looks where it must not."""

from __future__ import annotations

import bisect
import math
from collections.abc import Generator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from graft.backbones.scratch import ScratchDesign, build
from graft.compute import Compute
from graft.errors import GraftError
from graft.images.views import Augmentation
from graft.learning.inner import class_weights, kept_back
from graft.learning.ridge import Criterion
from graft.learning.scratch_settings import ENOUGH_EPOCHS, planned_multiply_adds, settled, waiting_epochs
from graft.learning.training import (
    Epoch,
    Trained,
    TrainingSettings,
    _Generation,
    planned_epochs,
    predict,
    train,
)

CPU = Compute("cpu", False, 1)
DESIGN = ScratchDesign(8, 1, 16, 2)
SHORT = TrainingSettings(epochs=4, batch_size=16, label_smoothing=0.0)
STILL = Augmentation((), 0.8, 0.0, 0.0)


def stripes(n: int = 96) -> tuple[np.ndarray, np.ndarray]:
    """Noisy pictures with lines across (class 0) or along (class 1)."""
    random = np.random.default_rng(0)
    pixels = random.integers(60, 120, (n, 16, 16, 1), dtype=np.uint8)
    targets = np.arange(n) % 2
    for line in (1, 5, 10, 14):  # the same from both sides
        pixels[targets == 0, line] += np.uint8(80)
        pixels[targets == 1, :, line] += np.uint8(80)
    return pixels, targets


def run(
    pixels: np.ndarray,
    targets: np.ndarray,
    rows: np.ndarray,
    settings: TrainingSettings = SHORT,
    **more: float,
) -> tuple[list[Epoch], Trained]:
    return finish(start(pixels, targets, rows, settings, **more))


def start(
    pixels: np.ndarray,
    targets: np.ndarray,
    rows: np.ndarray,
    settings: TrainingSettings = SHORT,
    *,
    seed: int = 0,
    deadline_seconds: float | None = None,
    augmentation: Augmentation | None = STILL,
    criterion: Criterion | None = None,
) -> Generator[Epoch, None, Trained]:
    return train(
        pixels,
        targets,
        rows,
        groups=np.arange(len(targets)),
        design=DESIGN,
        settings=settings,
        compute=CPU,
        seed=seed,
        deadline_seconds=deadline_seconds,
        augmentation=augmentation,
        criterion=criterion,
    )


def finish(training: Generator[Epoch, None, Trained]) -> tuple[list[Epoch], Trained]:
    epochs = []
    while True:
        try:
            epochs.append(next(training))
        except StopIteration as end:
            return epochs, end.value


def same(one: Trained, other: Trained) -> bool:
    return all(torch.equal(value, other.state[name]) for name, value in one.state.items())


def test_it_learns_and_calls_are_calibrated() -> None:
    pixels, targets = stripes()
    rows, others = np.arange(72), np.arange(72, 96)
    epochs, trained = run(pixels, targets, rows, replace(SHORT, epochs=12))
    probabilities = predict(trained, pixels, others, compute=CPU)
    assert probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-5)
    assert (probabilities.argmax(1) == targets[others]).mean() > 0.9
    assert [epoch.number for epoch in epochs] == list(range(1, 13))
    assert epochs[-1].train_loss < epochs[0].train_loss
    assert trained.best_epoch >= 1 + int(np.argmin([epoch.validation_loss for epoch in epochs]))
    assert (trained.stopped, trained.epochs_run) == ("epochs", 12)


def test_an_epoch_tells_the_accuracy_and_the_score_of_both_parts() -> None:
    pixels, targets = stripes()

    def errors(probabilities: np.ndarray, targets: np.ndarray) -> float:
        return -float((probabilities.argmax(1) != targets).sum())

    settings = replace(SHORT, epochs=12, mixup=0.2)
    epochs, _ = finish(start(pixels, targets, np.arange(72), settings, criterion=errors))
    learn, check = kept_back(targets, np.arange(96), np.arange(72), share=settings.validation_share, seed=0)
    for epoch in epochs:
        assert epoch.train_accuracy == pytest.approx(1 + epoch.train_score / len(learn))
        assert epoch.validation_accuracy == pytest.approx(1 + epoch.validation_score / len(check))
    assert epochs[-1].train_accuracy > max(0.8, epochs[0].train_accuracy)
    fixed, _ = run(pixels, targets, np.arange(72), replace(SHORT, validation_share=0.0))
    assert math.isnan(fixed[0].validation_accuracy) and math.isnan(fixed[0].train_score)


def test_the_softmax_of_the_network_is_the_prediction() -> None:
    pixels, targets = stripes()
    _, trained = run(pixels, targets, np.arange(72))
    images = torch.from_numpy(pixels[72:]).permute(0, 3, 1, 2).float() / 255
    with torch.inference_mode():
        expected = torch.softmax(trained.network()(images), dim=1).numpy()
    np.testing.assert_allclose(predict(trained, pixels, np.arange(72, 96), compute=CPU), expected, atol=1e-6)
    assert predict(trained, pixels, np.arange(0), compute=CPU).shape == (0, 2)


def test_same_seed_same_weights() -> None:
    pixels, targets = stripes()
    before = torch.get_rng_state()
    _, one = run(pixels, targets, np.arange(72))
    torch.rand(3)
    _, two = run(pixels, targets, np.arange(72))
    _, other = run(pixels, targets, np.arange(72), seed=1)
    assert same(one, two)
    assert not same(one, other)
    torch.set_rng_state(before)
    run(pixels, targets, np.arange(72))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("poison", ["labels that do not exist", "pictures with a side"])
def test_rows_outside_are_never_read(poison: str) -> None:
    pixels, targets = stripes()
    rows = np.flatnonzero(np.arange(96) % 4 < 2)
    _, clean = run(pixels, targets, rows, augmentation=None)
    outside = np.setdiff1d(np.arange(96), rows)
    pixels[outside] = 0
    if poison == "pictures with a side":
        for row in outside:
            side = slice(0, 5) if targets[row] else slice(-5, None)
            pixels[row, side] = pixels[row, :, side] = 255
    else:
        targets[outside] = -1_000_000
    _, poisoned = run(pixels, targets, rows, augmentation=None)
    assert same(clean, poisoned)


def test_patience_stops_and_the_best_weights_stay() -> None:
    """With labels that say nothing, the kept-back part soon gets no better."""
    pixels, targets = stripes()
    targets = np.random.default_rng(1).permutation(targets)
    epochs, trained = run(pixels, targets, np.arange(96), replace(SHORT, epochs=60, patience=3, waiting=0.0))
    assert trained.stopped == "patience"
    lowest = 1 + int(np.argmin([epoch.validation_loss for epoch in epochs]))
    assert trained.epochs_run == len(epochs) == lowest + 3
    assert lowest <= trained.best_epoch <= lowest + 3


@pytest.mark.parametrize(("rise", "kept"), [(0.01, 2), (0.5, 1)])
def test_a_later_epoch_is_kept_unless_it_is_clearly_worse(rise: float, kept: int) -> None:
    network = build(DESIGN, seed=0)
    found = _Generation(network)
    lowest = np.linspace(0.1, 1.0, 20)
    noise = np.tile([-0.2, 0.2], 10)
    for losses in (lowest, lowest + rise + noise):
        found.epochs_run += 1
        found.seen(network, losses)
    assert (found.lowest_epoch, found.best_epoch) == (1, kept)
    assert found.loss == pytest.approx(lowest.mean() + rise * (kept - 1))


def test_the_deadline_leaves_one_epoch() -> None:
    pixels, targets = stripes()
    epochs, trained = run(pixels, targets, np.arange(96), replace(SHORT, epochs=50), deadline_seconds=0.0)
    assert (trained.stopped, len(epochs), trained.best_epoch) == ("deadline", 1, 1)


def test_refit_uses_everything_for_exactly_the_epochs() -> None:
    pixels, targets = stripes()
    settings = replace(SHORT, epochs=3, validation_share=0.0, temperature=2.0, multiply_adds=1.0)
    epochs, trained = run(pixels, targets, np.arange(96), settings)
    assert len(epochs) == trained.best_epoch == 3
    assert math.isnan(epochs[0].validation_loss)
    assert trained.temperature == 2.0
    _, sharp = run(pixels, targets, np.arange(96), replace(settings, temperature=1.0))
    torch.testing.assert_close(trained.state["head.weight"] * 2, sharp.state["head.weight"])


def test_a_loss_that_is_not_finite_is_a_sentence() -> None:
    pixels, targets = stripes()
    with pytest.raises(GraftError, match=r"not a finite number, even with half the learning rate\. Leave"):
        run(pixels, targets, np.arange(96), replace(SHORT, learning_rate=1e30))


def test_half_the_rate_is_tried_once() -> None:
    """Between a rate that is fine and one that never is lies one that only its half survives."""
    pixels, targets = stripes(32)

    def used(power: int) -> float:
        """The share of the wanted rate with which the epoch ended; 0 if it never did."""
        settings = replace(SHORT, epochs=1, learning_rate=2.0**power)
        try:
            epochs, _ = run(pixels, targets, np.arange(32), settings)
        except GraftError:
            return 0.0
        assert math.isfinite(epochs[0].train_loss)
        return epochs[0].learning_rate / 2.0**power

    whole = used(0)
    first_that_fails = bisect.bisect_left(range(120), True, key=lambda power: used(power) < whole)
    assert used(first_that_fails) == pytest.approx(whole / 2)


@hypothesis_settings(max_examples=60, deadline=None)
@given(
    labels=st.lists(st.integers(0, 3), min_size=1, max_size=60),
    pairs=st.integers(1, 4),
    share=st.sampled_from([0.0, 0.15, 0.5]),
    seed=st.integers(0, 5),
)
def test_the_kept_back_part_is_grouped_and_stratified(
    labels: list[int], pairs: int, share: float, seed: int
) -> None:
    targets = np.array(labels, dtype=np.int64)
    groups = np.arange(len(labels), dtype=np.int64) // pairs
    rows = np.flatnonzero(np.arange(len(labels)) % 7 != 3)
    learn, check = kept_back(targets, groups, rows, share=share, seed=seed)
    assert sorted([*learn, *check]) == sorted(rows)
    assert not set(groups[learn]) & set(groups[check])
    if pairs == 1:
        assert set(targets[learn]) == set(targets[rows])
        for label in set(labels):
            own, kept = (targets[rows] == label).sum(), (targets[check] == label).sum()
            assert abs(kept - share * own) <= 1
            assert share == 0 or own < 2 or kept >= 1
    if share == 0:
        assert not len(check)


def test_patience_is_a_share_of_a_long_plan() -> None:
    settings = TrainingSettings(patience=10, waiting=0.3)
    assert waiting_epochs(20, settings) == 10
    assert waiting_epochs(200, settings) == 60


def test_a_second_generation_learns_from_the_first() -> None:
    pixels, targets = stripes()
    rows, others = np.arange(72), np.arange(72, 96)
    settings = replace(SHORT, epochs=8, generations=2)
    epochs, trained = run(pixels, targets, rows, settings)
    assert [(epoch.number, epoch.planned) for epoch in epochs] == [(n, 16) for n in range(1, 17)]
    assert trained.epochs_run == 16
    assert trained.generation == 1 + (trained.best_epoch > 8)
    assert trained.needed == trained.best_epoch - 8 * (trained.generation - 1)
    assert (predict(trained, pixels, others, compute=CPU).argmax(1) == targets[others]).mean() > 0.9
    first, _ = run(pixels, targets, rows, replace(settings, generations=1))
    assert [epoch.train_loss for epoch in first] == [epoch.train_loss for epoch in epochs[:8]]


def test_a_refit_ends_with_the_last_generation_and_a_deadline_with_the_first() -> None:
    pixels, targets = stripes()
    settings = replace(SHORT, epochs=2, generations=2, validation_share=0.0)
    _, trained = run(pixels, targets, np.arange(96), settings)
    assert (trained.generation, trained.needed, trained.epochs_run) == (2, 2, 4)
    _, cut = run(pixels, targets, np.arange(96), settings, deadline_seconds=0.0)
    assert (cut.generation, cut.epochs_run, cut.stopped) == (1, 1, "deadline")


@pytest.mark.parametrize(
    "changed",
    [{"mixup": 0.4}, {"cutmix": 1.0}, {"dropout": 0.3}, {"balance": "sampler"}, {"balance": "logit"}],
)
def test_every_regularisation_changes_the_weights_and_is_repeatable(changed: dict[str, Any]) -> None:
    pixels, targets = stripes(32)
    targets[1:9:2] = 0  # unbalanced
    settings = replace(SHORT, epochs=1)
    rows = np.arange(32)
    _, plain = run(pixels, targets, rows, settings)
    before = torch.get_rng_state()
    (_, one), (_, two) = (run(pixels, targets, rows, replace(settings, **changed)) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert same(one, two)
    assert not same(one, plain)


def test_two_generations_only_where_the_plan_pays_both() -> None:
    made = ScratchDesign(32, 3, 96, 2)
    poor, rich = (settled(made, 320, multiply_adds=value) for value in (0.5e12, 5e12))
    assert (poor.generations, rich.generations) == (1, 2)
    assert [settled(made, n, multiply_adds=1e12).batch_size for n in (320, 1_000)] == [16, 32]
    for settings in (poor, rich):
        assert planned_multiply_adds(made, 320, settings) <= settings.multiply_adds
    assert planned_epochs(made, 272, rich) >= ENOUGH_EPOCHS


def test_class_weights_average_to_one() -> None:
    labels = np.array([0] * 90 + [1] * 10)
    assert class_weights(labels, 2, "none").tolist() == [1.0, 1.0]
    weights = class_weights(labels, 3, "root")
    assert weights[labels].mean() == pytest.approx(1)
    assert weights[1] / weights[0] == pytest.approx(3)
    assert weights[2] >= weights[1]


def test_the_plan_shrinks_with_the_data_but_never_below_one_epoch() -> None:
    made = ScratchDesign(32, 3, 96, 2)
    plans = [planned_epochs(made, n, TrainingSettings()) for n in (0, 250, 700, 1_500, 20_000, 10**7)]
    assert plans == sorted(plans, reverse=True)
    assert plans[0] == 300 and plans[3] == 30 and 1 <= plans[5] < plans[4] < 30
    rich = [planned_epochs(made, n, TrainingSettings(multiply_adds=1e15)) for n in (0, 250, 20_000)]
    assert rich == [300, 250, 100]
    assert planned_epochs(DESIGN, 5, TrainingSettings(epochs=40)) == 40
