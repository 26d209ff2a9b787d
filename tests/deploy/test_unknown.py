"""The score of being unknown: what NumPy says is what the graph says, held-out images are accepted, others are not."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax

from graft.deploy.unknown import (
    ACCEPTED,
    PARTS,
    held_out_scores,
    left_out_together,
    score_graph,
    subspace_of,
    upper_quantile,
)


def drawn(count: int, features: int = 64, seed: int = 0, shift: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Rows near a plane through three class means, of length one, and probabilities that go with them."""
    generator = np.random.default_rng(9)
    centres, plane = generator.normal(0, 1, (3, features)), generator.normal(0, 0.5, (3, features))
    generator = np.random.default_rng(seed)
    targets = generator.integers(0, 3, count)
    rows = centres[targets] + generator.normal(0, 1, (count, 3)) @ plane
    rows += generator.normal(0, 0.2, rows.shape) + shift * generator.normal(0, 1, rows.shape)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    probabilities = softmax(6 * rows @ centres.T / np.linalg.norm(centres, axis=1), axis=1)
    return rows.astype(np.float32), probabilities.astype(np.float32)


@pytest.mark.parametrize(("count", "features"), [(40, 64), (300, 64), (60, 3000)])
def test_the_graph_says_what_numpy_says(count: int, features: int) -> None:
    rows, probabilities = drawn(count, features)
    stranger, _ = held_out_scores(rows, probabilities, np.arange(count) % 5)
    content = score_graph(stranger, classes=3).SerializeToString()
    assert len(content) < 110_000
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    (scores,) = session.run(None, {"embedding": rows, "probabilities": probabilities})
    np.testing.assert_allclose(scores, stranger.scores(rows, probabilities), atol=0.02)


def test_new_images_of_the_kind_are_accepted_and_others_are_not() -> None:
    rows, probabilities = drawn(400)
    stranger, held_out = held_out_scores(rows, probabilities, np.arange(400) % 5)
    limit = upper_quantile(held_out, ACCEPTED)
    fresh = stranger.scores(*drawn(1000, seed=1))
    assert 0.92 < (fresh <= limit).mean() < 0.98
    others = stranger.scores(*drawn(300, seed=2, shift=2.0))
    assert (others > limit).mean() > 0.95


def test_the_threshold_of_few_images_is_that_of_the_packed_score() -> None:
    """Thirds of few images are scored from so much smaller subspaces that nothing new is unknown."""

    def images(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        rows = np.random.default_rng(seed).normal(0, 1, (count, 512)) * np.arange(1, 513) ** -0.7
        return rows.astype(np.float32), np.tile(np.float32([0.9, 0.1]), (count, 1))

    accepted: dict[str, list[float]] = {"twentieths": [], "thirds": []}
    for seed in range(12):
        for name, parts in (("twentieths", left_out_together(np.arange(80))), ("thirds", np.arange(80) % 3)):
            stranger, held_out = held_out_scores(*images(80, seed), parts)
            fresh = stranger.scores(*images(400, 1000 + seed))
            accepted[name].append(float((fresh <= upper_quantile(held_out, ACCEPTED)).mean()))
    assert 0.93 < np.mean(accepted["twentieths"]) < 0.985 < np.mean(accepted["thirds"])


def test_groups_are_left_out_whole() -> None:
    groups = np.repeat(np.arange(50) * 7, 3)
    parts = left_out_together(groups)
    assert (parts.reshape(50, 3) == parts[::3, None]).all()
    assert set(parts) == set(range(PARTS))
    assert np.bincount(parts[::3]).max() == 3
    assert len(set(left_out_together(np.arange(4)))) == 4


def test_a_certain_answer_is_no_infinity() -> None:
    rows, probabilities = drawn(40)
    stranger, _ = held_out_scores(rows, probabilities, np.arange(40) % 5)
    sure = np.eye(3, dtype=np.float32)[np.zeros(40, int)]
    assert np.isfinite(stranger.scores(rows, sure)).all()
    inside = np.repeat(stranger.subspace.mean[None], 40, axis=0)
    assert np.isfinite(stranger.scores(inside, sure)).all()


def test_few_images_and_features_have_a_subspace_too() -> None:
    for count, features in ((2, 4), (5, 3000), (30, 1)):
        rows = np.random.default_rng(0).normal(size=(count, features)).astype(np.float32)
        assert subspace_of(rows).directions.shape == (features, max(1, min(count // 4, features // 16, 15)))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-5, 5), min_size=1, max_size=60), st.floats(0.5, 0.99))
def test_the_quantile_leaves_the_share_below(values: list[float], share: float) -> None:
    limit = upper_quantile(np.array(values), share)
    assert limit in values
    assert np.mean(np.array(values) <= limit) >= min(1.0, share)
