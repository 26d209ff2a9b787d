"""Where the data stand: thresholds, missing numbers, and advice for every quadrant."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graft.judging.position import (
    ADVICE,
    Depth,
    Similarity,
    Size,
    depth_index,
    familiarity,
    label_overlap,
    position,
    size_slope,
)

LAST, NEAR, EARLIER = (depth_index(scores, 0.02) for scores in ([0.5, 0.9], [0.91, 0.9], [0.95, 0.9]))


def test_slope_is_points_per_doubling() -> None:
    assert size_slope([0.80, 0.84, 0.88]) == pytest.approx(4)
    assert size_slope([0.90, 0.91]) == pytest.approx(1)
    assert size_slope([0.6, 0.7, 0.8, 0.9]) == pytest.approx(10)
    with pytest.raises(ValueError, match="at least two"):
        size_slope([0.9])


def test_depth_index_says_which_tap_is_best() -> None:
    for second, best, lead, verdict in [
        (0.7, 2, 0.2, "similar"),
        (0.9, 2, 0.0, "similar"),
        (0.905, 1, -0.005, "between"),
        (0.95, 1, -0.05, "different"),
    ]:
        depth = depth_index([0.5, second, 0.9], 0.01)
        assert depth is not None
        assert (depth.best, depth.taps, depth.verdict) == (best, 3, verdict)
        assert depth.lead == pytest.approx(lead)
    assert depth_index([0.9], 0.01) is None


def test_ratios() -> None:
    assert familiarity(0.36, 0.72) == pytest.approx(0.5)
    assert label_overlap(0.9, 0.95) == pytest.approx(0.947, abs=1e-3)
    assert label_overlap(0.9, 0.0) == 0.0
    with pytest.raises(ValueError, match=r"71\.8"):
        familiarity(0.5, 71.8)


@pytest.mark.parametrize(
    ("slope", "size"), [(3.1, "small"), (3.0, "medium"), (1.0, "medium"), (0.9, "large"), (-0.5, "large")]
)
def test_size_follows_the_slope(slope: float, size: Size) -> None:
    where = position(slope=slope, depth=None, familiarity=None, overlap=None)
    assert where.size == size
    assert f"{slope:+.1f} points" in where.sentence


@pytest.mark.parametrize(
    ("depth", "familiar", "overlap", "similarity"),
    [
        (LAST, 1.0, 1.0, "similar"),
        (EARLIER, 0.3, 0.9, "different"),
        (NEAR, 0.6, 0.98, "between"),
        (LAST, None, None, "similar"),
        (None, 0.3, None, "different"),
        (None, None, None, "between"),
        (LAST, 0.43, 0.998, "between"),
    ],
)
def test_similarity_follows_the_grades(
    depth: Depth | None, familiar: float | None, overlap: float | None, similarity: Similarity
) -> None:
    where = position(slope=2.0, depth=depth, familiarity=familiar, overlap=overlap)
    assert where.similarity == similarity
    assert (where.depth, where.familiarity, where.overlap) == (depth, familiar, overlap)


def test_the_sentence_tells_the_numbers_and_what_is_missing() -> None:
    full = position(slope=0.6, depth=EARLIER, familiarity=0.43, overlap=0.97).sentence
    for part in ("+0.6 points", "tap 1 of 2 is the best, 5.0 points above", "0.43 times", "97 %"):
        assert part in full
    assert "not measured" not in full.lower()
    some = position(slope=None, depth=LAST, familiarity=None, overlap=None).sentence
    assert "How much more images would help was not measured." in some
    assert "Not measured: the classifier's confidence, the overlap of the classes." in some
    level = position(slope=None, depth=replace(LAST, lead=0.0), familiarity=None, overlap=None).sentence
    assert "no better than the best of the others" in level and "+0.0" not in level
    assert "unknown" in position(slope=None, depth=None, familiarity=None, overlap=None).sentence


def test_every_place_has_its_own_advice() -> None:
    assert set(ADVICE) == {
        (size, similarity) for size in get_args(Size) for similarity in get_args(Similarity)
    }
    assert len(set(ADVICE.values())) == 9
    assert "frozen" in position(slope=5.0, depth=LAST, familiarity=1.0, overlap=1.0).advice
    assert "from scratch" in position(slope=0.2, depth=EARLIER, familiarity=0.2, overlap=0.9).advice


@given(
    st.none() | st.floats(-20, 60),
    st.none() | st.lists(st.floats(0, 1), min_size=2, max_size=9),
    st.none() | st.floats(0, 2),
    st.none() | st.floats(0, 2),
)
def test_any_numbers_have_a_place(
    slope: float | None, taps: list[float] | None, familiar: float | None, overlap: float | None
) -> None:
    depth = None if taps is None else depth_index(taps, 0.01)
    where = position(slope=slope, depth=depth, familiarity=familiar, overlap=overlap)
    assert where.advice == ADVICE[where.size, where.similarity]
