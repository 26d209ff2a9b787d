"""Fine-tuning: it learns, never hurts on the inner part, never looks where it must not, and goes on after a kill."""

from __future__ import annotations

import json
import math
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from made_cuts import CPU, Made, images, made
from safetensors import safe_open

from graft.errors import GraftError
from graft.images.views import Augmentation
from graft.learning import checkpoint, frozen_head, ridge
from graft.learning.finetune import (
    CHECK_BATCH,
    Tuned,
    TuneSettings,
    _judged,
    blocks,
    checkpoints,
    planned_epochs,
    predict,
    tune,
)
from graft.learning.inner import kept_back
from graft.learning.lessons import lesson_of
from graft.learning.loop import Epoch, taught
from graft.learning.prefix import CachedViews, LiveViews, Source, fixed_view, prefix_maps
from graft.learning.range_test import FARTHEST, find_rate, with_rate
from graft.learning.watching import Watch

STILL = Augmentation((), 0.8, 0.0, 0.0)
ROWS, OTHERS = np.arange(44), np.arange(44, 60)
SHORT = TuneSettings(epochs=3, batch_size=16, patience=10, trunk_rate=3e-3)


def live(part: Made) -> LiveViews:
    return LiveViews(part.pixels, STILL, part.cutting, CPU)


def start(
    part: Made,
    settings: TuneSettings = SHORT,
    *,
    source: Source | None = None,
    rows: np.ndarray = ROWS,
    features: bool = True,
    kept_in: Path | None = None,
    deadline_seconds: float | None = None,
    criterion: ridge.Criterion | None = None,
) -> Generator[Epoch, None, Tuned]:
    return tune(
        part.cutting,
        source or live(part),
        part.targets,
        rows,
        groups=np.arange(len(part.targets)),
        features=part.features if features else None,
        classes=2,
        settings=settings,
        compute=CPU,
        seed=0,
        kept_in=kept_in,
        deadline_seconds=deadline_seconds,
        criterion=criterion,
    )


def finish(work: Generator[Epoch, None, Tuned]) -> tuple[list[Epoch], Tuned]:
    epochs = []
    while True:
        try:
            epochs.append(next(work))
        except StopIteration as end:
            return epochs, end.value


def same(one: Tuned, other: Tuned) -> bool:
    assert one.state.keys() == other.state.keys()
    return np.array_equal(one.head.weight, other.head.weight) and all(
        torch.equal(value, other.state[name]) for name, value in one.state.items()
    )


@pytest.mark.parametrize("cut", ["layer3", ""])
def test_it_learns_where_the_first_head_knows_nothing(cut: str) -> None:
    part = made(cut)
    noise = np.random.default_rng(0).normal(size=part.features.shape).astype(np.float32)
    blind = Made(part.cutting, part.pixels, part.targets, noise)
    settings = replace(SHORT, epochs=10, trunk_rate=1e-3, head_rate=0.1)
    epochs, tuned = finish(start(blind, settings))
    assert tuned.best_epoch > 0 and epochs[-1].train_loss < 0.7 * epochs[0].train_loss
    assert tuned.best_epoch == 1 + int(np.argmin([epoch.validation_loss for epoch in epochs]))
    answers = predict(part.cutting, live(part), tuned, OTHERS, features=noise, compute=CPU)
    np.testing.assert_allclose(answers.sum(1), 1, rtol=1e-5)
    assert (answers.argmax(1) == part.targets[OTHERS]).mean() > 0.85


class PlainOnly:
    """Trains on the images as they are."""

    kept = 0
    notice = ""

    def __init__(self, source: LiveViews) -> None:
        self.source = source

    def training(self, rows: np.ndarray, generator: torch.Generator) -> torch.Tensor:
        return self.source.plain(rows)

    def plain(self, rows: np.ndarray) -> torch.Tensor:
        return self.source.plain(rows)


def test_it_starts_from_the_ridge_head() -> None:
    part = made("layer3")
    learn, _ = kept_back(part.targets, np.arange(60), ROWS, share=0.15, seed=0)
    head = ridge.fit(part.features[learn], part.targets[learn], classes=2)
    own = ridge.log_loss(head.probabilities(part.features[learn]), part.targets[learn])
    settings = replace(SHORT, epochs=1, trunk_rate=1e-12, head_rate=1e-12, balance="none", batch_size=64)
    settings = replace(settings, start_temperature=1.0)
    plain = LiveViews(part.pixels, Augmentation((), 1.0, 0.0, 0.0), part.cutting, CPU)
    unmoved, _ = finish(start(part, settings, source=PlainOnly(plain)))
    assert unmoved[0].train_loss == pytest.approx(own, rel=0.02, abs=0.01)


def test_an_epoch_tells_the_accuracy_and_the_score_of_both_parts() -> None:
    part = made("layer3")
    learn, check = kept_back(part.targets, np.arange(60), ROWS, share=0.15, seed=0)
    head = ridge.fit(part.features[learn], part.targets[learn], classes=2)
    settings = replace(SHORT, epochs=1, trunk_rate=1e-12, head_rate=1e-12, balance="none", batch_size=16)
    plain = LiveViews(part.pixels, Augmentation((), 1.0, 0.0, 0.0), part.cutting, CPU)

    def errors(probabilities: np.ndarray, targets: np.ndarray) -> float:
        return -float((probabilities.argmax(1) != targets).sum())

    (epoch,), _ = finish(start(part, settings, source=PlainOnly(plain), criterion=errors))
    for rows, accuracy, score in (
        (learn, epoch.train_accuracy, epoch.train_score),
        (check, epoch.validation_accuracy, epoch.validation_score),
    ):
        wrong = int((head.probabilities(part.features[rows]).argmax(1) != part.targets[rows]).sum())
        assert score == -wrong and accuracy == pytest.approx(1 - wrong / len(rows))
    (blind,), _ = finish(start(part, settings))
    assert np.isnan(blind.train_score) and np.isnan(blind.validation_score) and blind.train_accuracy > 0.5


def test_a_mixed_pair_counts_as_its_larger_share() -> None:
    watch = Watch(None)
    watch.see(torch.tensor([[2.0, 1.0], [1.0, 2.0]]), torch.tensor([[0.7, 0.3], [0.4, 0.6]]))
    watch.see(torch.tensor([[0.0, 1.0]]), torch.tensor([0]))
    assert watch.judged()[0] == pytest.approx(2 / 3)


def test_epoch_0_is_kept_when_training_only_hurts() -> None:
    part = made("layer3")
    epochs, tuned = finish(start(part, replace(SHORT, trunk_rate=3.0, head_rate=30.0, patience=2)))
    assert tuned.best_epoch == 0 and 2 <= len(epochs) <= 3
    answers = predict(part.cutting, live(part), tuned, OTHERS, features=part.features, compute=CPU)
    head = frozen_head.fit(part.features[ROWS], part.targets[ROWS], classes=2)
    np.testing.assert_array_equal(answers, head.probabilities(part.features[OTHERS]))


def test_cached_and_live_end_in_the_same_weights_on_the_same_views() -> None:
    part = made("layer2")
    maps = np.stack(
        [
            prefix_maps(
                part.cutting,
                torch.cat([fixed_view(image, STILL, seed=0, number=n, view=v) for v in range(3)]),
                CPU,
            )
            for n, image in enumerate(part.pixels)
        ]
    )

    class SameViewsLive(CachedViews):
        def training(self, rows: np.ndarray, generator: torch.Generator) -> torch.Tensor:
            drawn = torch.randint(3, (len(rows),), generator=generator).tolist()
            images = [
                fixed_view(part.pixels[row], STILL, seed=0, number=int(row), view=view)
                for row, view in zip(rows, drawn, strict=True)
            ]
            assert part.cutting.prefix is not None
            with torch.no_grad():
                return part.cutting.prefix(part.cutting.normalised(torch.cat(images)))

        def plain(self, rows: np.ndarray) -> torch.Tensor:
            return live(part).plain(rows)

    _, cached = finish(start(part, source=CachedViews(maps, CPU)))
    _, lived = finish(start(part, source=SameViewsLive(maps, CPU)))
    ours, theirs = (
        predict(part.cutting, live(part), one, OTHERS, features=part.features, compute=CPU)
        for one in (cached, lived)
    )
    np.testing.assert_allclose(ours, theirs, atol=0.02)


def test_nothing_outside_the_rows_is_read() -> None:
    part = made("layer3")
    _, tuned = finish(start(part))
    blind = Made(part.cutting, part.pixels.copy(), part.targets.copy(), part.features.copy())
    blind.pixels[OTHERS] = 255
    blind.targets[OTHERS] = 0
    blind.features[OTHERS] = np.nan
    assert same(tuned, finish(start(blind))[1])


def test_a_killed_tuning_goes_on_and_ends_the_same(tmp_path: Path) -> None:
    part = made("layer3")
    whole_epochs, whole = finish(start(part))
    place = tmp_path / "one.tune.safetensors"
    work = start(part, kept_in=place)
    next(work), next(work)
    work.close()
    epochs, resumed = finish(start(part, kept_in=place))
    assert same(resumed, whole)
    assert [epoch.train_loss for epoch in epochs] == [epoch.train_loss for epoch in whole_epochs]


def test_a_checkpoint_from_before_an_epoch_told_its_scores_goes_on(tmp_path: Path) -> None:
    part, place = made("layer3"), tmp_path / "one.tune.safetensors"
    whole, _ = finish(start(part))
    work = start(part, kept_in=place)
    next(work)
    work.close()
    with safe_open(place, framework="pt") as file:
        facts = json.loads(file.metadata()["facts"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no iteration)
    for name in ("train_accuracy", "train_score", "validation_score"):
        del facts["epochs"][0][name]
    checkpoint.save(place, facts, tensors)
    (first, *others), _ = finish(start(part, kept_in=place))
    assert np.isnan(first.train_accuracy) and first.train_loss == whole[0].train_loss
    assert [epoch.train_accuracy for epoch in others] == [epoch.train_accuracy for epoch in whole[1:]]


def test_a_checkpoint_of_another_training_or_a_damaged_one_is_not_taken(tmp_path: Path) -> None:
    part = made("layer3")
    place = tmp_path / "one.tune.safetensors"
    finish(start(part, kept_in=place))
    other, _ = finish(start(part, replace(SHORT, epochs=2), kept_in=place))
    assert len(other) == 2
    place.write_bytes(place.read_bytes()[:100])
    assert same(finish(start(part, kept_in=place))[1], finish(start(part))[1])


@pytest.mark.parametrize("policy", ["frozen", "train"])
def test_a_second_generation_learns_from_the_first_and_a_killed_one_goes_on(
    tmp_path: Path, policy: Literal["frozen", "train"]
) -> None:
    known, place = made("layer3"), tmp_path / "one.tune.safetensors"
    noise = np.random.default_rng(0).normal(size=known.features.shape).astype(np.float32)
    part = Made(known.cutting, known.pixels, known.targets, noise)
    twice = replace(SHORT, generations=2, batch_norm=policy, trunk_rate=1e-3, head_rate=0.1)
    epochs, whole = finish(start(part, twice))
    alone, first = finish(start(part, replace(twice, generations=1)))
    assert [epoch.number for epoch in epochs] == [1, 2, 3, 4, 5, 6] and {e.planned for e in epochs} == {6}
    assert [e.train_loss for e in epochs[:3]] == [e.train_loss for e in alone]
    losses = [epoch.validation_loss for epoch in epochs]
    assert whole.best_epoch > 0 and whole.generation == (2 if min(losses[3:]) < min(losses[:3]) else 1)
    assert whole.needed == whole.best_epoch - 3 * (whole.generation - 1) and whole.epochs_run == 6
    assert same(whole, first) == (whole.generation == 1)
    work = start(part, twice, kept_in=place)
    for _ in range(5):
        next(work)
    work.close()
    assert len(checkpoints(place)) == 2 and set(checkpoints(place)) == set(tmp_path.iterdir())
    again, resumed = finish(start(part, twice, kept_in=place))
    assert same(resumed, whole) and [e.train_loss for e in again] == [e.train_loss for e in epochs]


def test_the_last_fit_ends_with_the_last_generation_and_a_deadline_with_the_first() -> None:
    part = made("layer3")
    settings = replace(SHORT, generations=2, validation_share=0.0, stop_epoch=2)
    epochs, tuned = finish(start(part, settings))
    assert (tuned.generation, tuned.needed, tuned.best_epoch, len(epochs)) == (2, 2, 4, 4)
    work = start(part, replace(SHORT, head="linear", generations=2), deadline_seconds=0.0)
    cut = finish(work)[1]
    assert (cut.generation, cut.epochs_run, cut.stopped) == (1, 1, "deadline")


def test_the_second_generation_hears_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    part, twice = made("layer3"), replace(SHORT, epochs=1, generations=2)
    told, _ = finish(start(part, twice))
    monkeypatch.setattr("graft.learning.loop.TAUGHT", 0.0)
    alone, _ = finish(start(part, twice))
    assert told[0].train_loss == alone[0].train_loss and told[1].train_loss != alone[1].train_loss


def test_half_of_what_a_pupil_is_to_say_are_the_labels() -> None:
    logits = torch.tensor([[0.0, 0.0, 50.0], [0.0, 0.0, 0.0]])
    found = taught(torch.tensor([0, 1]), logits)
    torch.testing.assert_close(found, torch.tensor([[0.5, 0.0, 0.5], [1 / 6, 2 / 3, 1 / 6]]))
    torch.testing.assert_close(taught(torch.eye(3)[:2], logits), found)


def test_the_last_fit_uses_all_rows_for_exactly_the_epochs() -> None:
    part = made("layer3")
    settings = replace(SHORT, epochs=5, validation_share=0.0, stop_epoch=2, temperature=2.0)
    epochs, tuned = finish(start(part, settings))
    assert (
        [epoch.planned for epoch in epochs] == [5, 5] and tuned.best_epoch == 2 and tuned.temperature == 2.0
    )
    assert all(np.isnan(epoch.validation_loss) for epoch in epochs)
    frozen = finish(start(part, replace(settings, stop_epoch=0)))[1]
    assert frozen.best_epoch == 0 and not frozen.state


@pytest.mark.parametrize("policy", ["frozen", "train", "reestimate"])
def test_statistics_of_batch_norms_follow_the_policy(policy: str) -> None:
    part = made("layer3")
    settings = replace(SHORT, batch_norm=policy, validation_share=0.0, epochs=2)  # type: ignore[arg-type]
    _, tuned = finish(start(part, settings))
    name = "layer4.0.bn1.running_mean"
    assert torch.equal(tuned.state[name], part.cutting.initial[name]) == (policy == "frozen")
    assert not torch.equal(tuned.state["layer4.0.bn1.weight"], part.cutting.initial["layer4.0.bn1.weight"])


def test_a_loss_that_is_not_finite_is_told_after_one_gentler_try() -> None:
    part = made("layer3")
    with pytest.raises(GraftError, match="even with half the learning rate"):
        finish(start(part, replace(SHORT, trunk_rate=1e30, head_rate=1e30)))


@pytest.mark.parametrize(
    "changed",
    [
        {"mixup": 0.2},
        {"cutmix": 1.0},
        {"mixup": 0.2, "cutmix": 1.0},
        {"label_smoothing": 0.1},
        {"balance": "sampler"},
        {"averaging": 0.0},
        {"head": "linear"},
        {"head": "mlp"},
    ],
)
def test_every_option_learns_in_its_own_way_and_twice_alike(changed: dict[str, Any]) -> None:
    part = made("layer3")
    fixed = replace(SHORT, validation_share=0.0, epochs=2)
    once, again = (finish(start(part, replace(fixed, **changed)))[1] for _ in range(2))
    assert same(once, again)
    assert once.head.weight.shape != (0,) and not np.array_equal(
        once.head.weight, finish(start(part, fixed))[1].head.weight
    )


@pytest.mark.parametrize("head", ["linear", "mlp"])
def test_a_head_alone_learns_from_cached_features(head: Literal["linear", "mlp"]) -> None:
    part = made("layer4")
    assert part.cutting.trained == {} and part.cutting.prefix is not None
    maps = prefix_maps(part.cutting, images(part.pixels, 60), CPU)[:, None]
    source = CachedViews(maps, CPU)
    settings = replace(SHORT, cut="layer4", head=head, epochs=40, trunk_rate=0.0, head_rate=3e-3)
    _, tuned = finish(start(part, settings, source=source, features=False))
    answers = predict(part.cutting, source, tuned, OTHERS, features=None, compute=CPU)
    assert not tuned.state and (tuned.head.hidden is None) == (head == "linear")
    np.testing.assert_allclose(answers, tuned.head.probabilities(maps[OTHERS, 0]), atol=1e-3)
    assert (answers.argmax(1) == part.targets[OTHERS]).mean() > 0.7


def test_frozen_weights_above_the_cut_stay() -> None:
    names = frozenset({"layer4.0.conv1.weight", "layer4.0.bn1.weight", "layer4.0.bn1.bias"})
    part = made("layer3", frozen=names)
    _, tuned = finish(start(part, replace(SHORT, validation_share=0.0)))
    assert names.isdisjoint(tuned.state) and "layer4.0.conv2.weight" in tuned.state
    for name in names:
        assert torch.equal(part.cutting.tail.network.state_dict()[name], part.cutting.initial[name])


def rare_of(part: Made) -> np.ndarray:
    """22 rows of the one class and 5 of the other."""
    first = part.targets[:44]
    return np.r_[np.flatnonzero(first == 0), np.flatnonzero(first == 1)[:5]]


def test_logit_adjustment_starts_at_the_base_rates_and_answers_for_even_classes() -> None:
    part = made("layer3")
    still: dict[str, Any] = {"trunk_rate": 1e-12, "head_rate": 1e-12, "validation_share": 0.0, "epochs": 1}
    ends = []
    for balance in ("none", "logit"):
        (epoch,), tuned = finish(start(part, replace(SHORT, balance=balance, **still), rows=rare_of(part)))
        ends.append((epoch.train_loss, tuned.head.bias))
    assert ends[1][0] < ends[0][0], "softened, the head of no balance has lost most of the shares"
    shares = np.array([22, 5]) / 27
    np.testing.assert_allclose(ends[0][1] - ends[1][1], np.log(shares) / SHORT.start_temperature, atol=1e-4)


def test_adjusted_answers_are_judged_with_even_classes() -> None:
    """Of answers that name the rare class alone the natural loss may be small; the even one is not."""
    part = made("layer3")
    lesson = lesson_of(
        live(part),
        part.targets,
        rare_of(part),
        groups=np.arange(60),
        classes=2,
        settings=replace(SHORT, balance="logit", validation_share=0.4),
        seed=0,
    )
    labels = torch.from_numpy(lesson.targets[lesson.check])
    rare = torch.tensor([[0.0, 1.0]]).repeat(len(labels), 1)
    right = torch.nn.functional.one_hot(labels, 2).float()
    assert _judged(rare, labels, lesson)[0] > math.log(2) > _judged(right, labels, lesson)[0]
    common = rare.flip(1)
    assert _judged(common, labels, lesson)[0] > math.log(2), "four of five are right, and half of the classes"


def test_without_averaging_the_weights_are_the_last_ones() -> None:
    part = made("layer3")
    settings = replace(SHORT, averaging=0.0, validation_share=0.0, epochs=2)
    _, tuned = finish(start(part, settings))
    last = part.cutting.tail.network.state_dict()
    assert all(torch.equal(value, last[name]) for name, value in tuned.state.items())


def test_a_range_test_reads_the_rows_alone_and_stays_near_the_default() -> None:
    part = made("layer3")
    blind = Made(part.cutting, part.pixels.copy(), part.targets.copy(), part.features.copy())
    blind.pixels[OTHERS], blind.targets[OTHERS], blind.features[OTHERS] = 255, 0, np.nan
    found = [
        find_rate(
            one.cutting,
            live(one),
            one.targets,
            ROWS,
            groups=np.arange(60),
            features=one.features,
            classes=2,
            settings=SHORT,
            compute=CPU,
            seed=0,
            criterion=None,
        )
        for one in (part, blind)
    ]
    assert found[0] == found[1] and len(found[0].rates) == len(found[0].losses) > 5
    assert SHORT.trunk_rate / FARTHEST <= found[0].rate <= SHORT.trunk_rate * FARTHEST
    scaled = with_rate(SHORT, 2 * SHORT.trunk_rate, default=SHORT)
    assert scaled.head_rate == pytest.approx(2 * SHORT.head_rate)


def test_the_deadline_ends_it_with_what_there_is() -> None:
    part = made("layer3")
    epochs, tuned = finish(start(part, deadline_seconds=0.0))
    assert (epochs, tuned.best_epoch, tuned.stopped) == ([], 0, "deadline")


def test_the_steps_limit_the_epochs() -> None:
    assert [planned_epochs(n, TuneSettings()) for n in (0, 300, 10_000, 10**6)] == [16, 16, 4, 2]


@given(st.integers(0, 700))
def test_no_block_is_a_single_image(rows: int) -> None:
    """Which has no batch statistics."""
    found = blocks(np.arange(rows))
    assert np.concatenate([np.empty(0, np.int64), *found]).tolist() == list(range(rows))
    assert all(len(block) <= CHECK_BATCH and (len(block) > 1 or rows == 1) for block in found)
