"""No group straddles, every class is spread as far as it goes, sizes are balanced, and the test stays locked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graft.errors import DatasetError, SettingsError
from graft.images.dataset import Dataset, ImageReference, Split
from graft.images.folds import LEFT_OUT, LOCKED, split


def dataset(
    targets: list[int], groups: list[int] | None = None, splits: list[Split] | None = None
) -> Dataset:
    count = len(targets)
    return Dataset(
        root=Path("photos"),
        images=tuple(ImageReference(Path(f"{k}.png"), f"{k}.png", f"{k:040x}") for k in range(count)),
        classes=tuple(f"class {k}" for k in range(max(targets) + 1)),
        targets=np.array(targets, np.int64),
        groups=np.array(groups if groups is not None else range(count), np.int64),
        splits=tuple(splits or ["train"] * count),
        widths=np.full(count, 8, np.int64),
        heights=np.full(count, 8, np.int64),
        grey=np.zeros(count, bool),
        issues=(),
    )


@st.composite
def images(draw: st.DrawFn) -> tuple[list[int], list[int]]:
    """Targets and groups: groups of one to six images, most of one class, some of two."""
    classes = draw(st.integers(2, 4))
    targets, groups = list(range(classes)) * 2, list(range(2 * classes))
    for group in range(2 * classes, 2 * classes + draw(st.integers(0, 40))):
        label = draw(st.integers(0, classes - 1))
        for _ in range(draw(st.integers(1, 6))):
            targets.append(label if draw(st.integers(0, 9)) else draw(st.integers(0, classes - 1)))
            groups.append(group)
    return targets, groups


@settings(max_examples=150, deadline=None)
@given(made=images(), count=st.integers(2, 6), seed=st.integers(0, 3))
def test_folds_keep_groups_whole_classes_spread_and_sizes_even(
    made: tuple[list[int], list[int]], count: int, seed: int
) -> None:
    data = dataset(*made)
    folds = split(data, count=count, seed=seed)
    assert folds.test is None
    assert set(folds.assignment.tolist()) <= set(range(folds.count))
    members = [np.flatnonzero(data.groups == group) for group in np.unique(data.groups)]
    assert all(len(set(folds.assignment[rows].tolist())) == 1 for rows in members)
    pure = [int(data.targets[rows[0]]) for rows in members if len(set(data.targets[rows].tolist())) == 1]
    for label in range(len(data.classes)):
        covered = len(set(folds.assignment[data.targets == label].tolist()))
        assert covered >= min(folds.count, pure.count(label))
    mixed = sum(len(rows) for rows in members if len(set(data.targets[rows].tolist())) > 1)
    sizes = np.bincount(folds.assignment, minlength=folds.count)
    assert sizes.max() - sizes.min() <= len(data.classes) * max(map(len, members)) + mixed


@settings(max_examples=30, deadline=None)
@given(counts=st.lists(st.integers(5, 60), min_size=2, max_size=8), seed=st.integers(0, 5))
def test_without_twins_classes_are_even_to_one_image(counts: list[int], seed: int) -> None:
    data = dataset([label for label, count in enumerate(counts) for _ in range(count)])
    folds = split(data, count=5, seed=seed)
    for label in range(len(counts)):
        shares = np.bincount(folds.assignment[data.targets == label], minlength=5)
        assert shares.max() - shares.min() <= 1
    sizes = np.bincount(folds.assignment, minlength=5)
    assert sizes.max() - sizes.min() <= 1


def test_the_same_seed_gives_the_same_folds_and_another_gives_others() -> None:
    data = dataset([0, 1] * 50)
    first, again, other = (split(data, count=5, seed=seed).assignment for seed in (1, 1, 2))
    assert (first == again).all() and (first != other).any()


def test_from_two_thousand_images_a_fifth_is_locked_away() -> None:
    targets = [0] * 1500 + [1] * 490 + [2] * 7 + [3] * 3
    groups = [k // 3 for k in range(2000)]
    folds = split(dataset(targets, groups), count=5, seed=0)
    locked = folds.assignment == LOCKED
    assert folds.test == "locked" and 380 <= locked.sum() <= 420
    assert not set(np.array(groups)[locked]) & set(np.array(groups)[~locked])
    shares = np.bincount(np.array(targets)[locked], minlength=4) / np.bincount(targets)
    assert 0.18 < shares[0] < 0.22 and 0.18 < shares[1] < 0.22
    assert shares[2] == 0 and shares[3] == 0  # too few different pictures to spare any
    assert split(dataset(targets[1:], groups[1:]), count=5, seed=0).test is None


def test_a_given_test_split_stays_and_its_twins_are_left_out() -> None:
    splits: list[Split] = ["train", "val"] * 10 + ["test"] * 4
    groups = [*range(20), 0, 0, 20, 21]
    folds = split(dataset([0, 0, 1, 1] * 6, groups, splits), count=5, seed=0)
    assert folds.test == "given"
    assert (folds.assignment[20:] == LOCKED).all()
    assert folds.assignment[0] == LEFT_OUT and (folds.assignment[1:20] >= 0).all()
    assert folds.notices[0].startswith("1 training image is a copy (or nearly so) of test images")


def test_scarce_classes_are_named() -> None:
    folds = split(dataset([0] * 20 + [1] * 3 + [2]), count=5, seed=0)
    assert folds.count == 5
    assert folds.notices == (
        "Fewer different pictures than the 5 folds: 'class 1'. Their scores are uncertain.",
        "One single picture: 'class 2'. A class that is held out whole cannot be predicted; add images.",
    )


def test_copies_count_once_and_folds_become_fewer_where_they_must() -> None:
    folds = split(dataset([0] * 9 + [1] * 9, [k // 3 for k in range(18)]), count=5, seed=0)
    assert folds.count == 3 and sorted(set(folds.assignment.tolist())) == [0, 1, 2]
    assert folds.notices == (
        "No class has more than 3 different pictures, so there are 3 folds instead of 5.",
    )


def test_what_cannot_be_folded_is_refused_with_what_to_do() -> None:
    with pytest.raises(DatasetError, match="Every class has one single picture"):
        split(dataset([0, 0, 1], [0, 0, 1]), count=5, seed=0)
    with pytest.raises(SettingsError, match="--folds 1"):
        split(dataset([0, 1]), count=1, seed=0)
    splits: list[Split] = ["train", "train", "train", "test"]
    with pytest.raises(DatasetError, match="Nothing is left to learn the class 'class 1' from"):
        split(dataset([0, 0, 1, 1], [0, 1, 2, 2], splits), count=2, seed=0)
