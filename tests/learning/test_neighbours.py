"""The second opinion equals a loop over rows, whatever the block size and however few neighbours there are."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graft.learning.neighbours import BLOCK, NEIGHBOURS, TEMPERATURE, neighbour_probabilities


def by_loop(known: np.ndarray, targets: np.ndarray, asked: np.ndarray, *, classes: int) -> np.ndarray:
    shares = np.zeros((len(asked), classes))
    for row, question in zip(shares, asked.astype(np.float64), strict=True):
        lengths = np.linalg.norm(known, axis=1) * np.linalg.norm(question)
        cosine = (known.astype(np.float64) @ question) / np.maximum(lengths, 1e-12)
        for index in np.argsort(-cosine, kind="stable")[:NEIGHBOURS]:
            row[targets[index]] += np.exp(cosine[index] / TEMPERATURE)
    return shares / shares.sum(1, keepdims=True)


def made(n: int, m: int, d: int, classes: int, *, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    targets = random.integers(0, classes, n)
    centres = random.standard_normal((classes, d))
    known = centres[targets] + random.standard_normal((n, d))
    asked = centres[random.integers(0, classes, m)] + random.standard_normal((m, d))
    return known.astype(np.float32), targets, asked.astype(np.float32)


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 40),
    m=st.integers(1, 10),
    d=st.integers(2, 20),
    classes=st.integers(1, 5),
    seed=st.integers(0, 1000),
)
def test_shares_are_those_of_a_plain_loop(n: int, m: int, d: int, classes: int, seed: int) -> None:
    known, targets, asked = made(n, m, d, classes, seed=seed)
    shares = neighbour_probabilities(known, targets, asked, classes=classes)
    np.testing.assert_allclose(shares, by_loop(known, targets, asked, classes=classes), atol=1e-4)
    np.testing.assert_allclose(shares.sum(1), 1, atol=1e-5)


def test_blocks_do_not_show() -> None:
    known, targets, asked = made(30, BLOCK + 5, 4, 3, seed=0)
    whole = neighbour_probabilities(known, targets, asked, classes=3)
    parts = [
        neighbour_probabilities(known, targets, asked[i : i + 1], classes=3)
        for i in (0, BLOCK - 1, BLOCK, -1)
    ]
    np.testing.assert_allclose(whole[[0, BLOCK - 1, BLOCK]], np.concatenate(parts[:3]), atol=1e-5)
    np.testing.assert_allclose(
        whole[-1:], neighbour_probabilities(known, targets, asked[-1:], classes=3), atol=1e-5
    )


def test_only_the_nearest_are_asked() -> None:
    known = np.array([[1.0, 0.0]] * NEIGHBOURS + [[0.9, 0.4]] * 50, np.float32)
    targets = np.repeat([0, 1], [NEIGHBOURS, 50])
    assert neighbour_probabilities(known, targets, known[:1], classes=2).tolist() == [[1.0, 0.0]]


def test_the_length_of_a_row_does_not_matter() -> None:
    known, targets, asked = made(30, 4, 6, 3, seed=1)
    plain = neighbour_probabilities(known, targets, asked, classes=3)
    np.testing.assert_allclose(
        plain, neighbour_probabilities(5 * known, targets, asked / 9, classes=3), atol=1e-5
    )


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_rows_of_zeros_are_answered(dtype: type) -> None:
    zeros = np.zeros((4, 3), dtype)
    shares = neighbour_probabilities(zeros, np.array([0, 0, 0, 1]), zeros[:2], classes=3)
    np.testing.assert_allclose(shares, [[0.75, 0.25, 0.0]] * 2, atol=1e-6)


def test_points_on_the_opposite_side_still_give_shares_that_sum_to_one() -> None:
    known = -np.ones((3, 5), np.float32)
    shares = neighbour_probabilities(known, np.array([0, 1, 1]), np.ones((1, 5), np.float32), classes=2)
    np.testing.assert_allclose(shares, [[1 / 3, 2 / 3]], atol=1e-5)
