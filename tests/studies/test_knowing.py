"""Label sets hold what they promise, and the trade-off of rejecting is what it says."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from made_models import features_of, model, noise
from scipy.special import softmax

from graft.deploy.bundle import EMBEDDING
from graft.images.dataset import Preprocess
from graft.learning.ridge import unit
from graft.studies.knowing import (
    _least_probability,
    conformal,
    label_sets,
    put_out,
    reject_facts,
    trade_off,
)


def drawn(count: int, *, sharp: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities of five classes, and targets that are drawn from them."""
    generator = np.random.default_rng(seed)
    probabilities = softmax(sharp * generator.normal(size=(count, 5)), axis=1).astype(np.float32)
    targets = np.array([generator.choice(5, p=row / row.sum()) for row in probabilities.astype(float)])
    return probabilities, targets


@pytest.mark.parametrize("sharp", [0.5, 2.0, 6.0])
def test_new_images_are_covered(sharp: float) -> None:
    probabilities, targets = drawn(500, sharp=sharp, seed=0)
    facts = conformal(probabilities, targets, np.arange(500) % 5)
    fresh, truth = drawn(2000, sharp=sharp, seed=1)
    sets = label_sets(fresh, facts["least_probability"])
    covered = sets[np.arange(2000), truth].mean()
    assert covered > 0.87 and sets.any(axis=1).all()
    assert facts["measured"]["coverage"] == pytest.approx(covered, abs=0.06)
    assert facts["measured"]["mean_size"] == pytest.approx(sets.sum(axis=1).mean(), abs=0.35)


def test_the_measured_coverage_is_that_of_other_folds() -> None:
    """A fold of which the others know nothing is not covered, however well it would cover itself."""
    probabilities = np.full((40, 2), 0.5, np.float32)
    probabilities[:, 0], probabilities[:, 1] = 0.99, 0.01
    targets = np.zeros(40, np.int64)
    folds = np.arange(40) % 4
    targets[folds == 3] = 1
    measured = conformal(probabilities, targets, folds)["measured"]
    assert measured["coverage"] == pytest.approx(0.75)


def test_too_few_images_put_every_class_into_the_set() -> None:
    probabilities, targets = drawn(8, sharp=1.0, seed=0)
    assert _least_probability(probabilities, targets) == 0.0


def test_the_trade_off() -> None:
    right = np.array([True] * 80 + [False] * 20)
    points = trade_off(np.arange(100.0), right)
    assert points[0] == {"coverage": 1.0, "accuracy": 0.8}
    assert points[-1] == {"coverage": 0.5, "accuracy": 1.0}
    assert all(a["coverage"] > b["coverage"] for a, b in itertools.pairwise(points))


def test_a_bundle_that_knows_nothing_tells_nothing(tmp_path: Path) -> None:
    (tmp_path / "bundle.json").write_text(json.dumps({"unknown": None}))
    assert reject_facts(tmp_path) is None


def test_embeddings_of_a_trained_network_come_from_the_model_that_is_packed() -> None:
    geometry = Preprocess(16)
    pixels, rows = noise(40, geometry), np.arange(3, 40)
    embeddings = put_out(model(geometry), EMBEDDING, pixels, rows)
    assert embeddings.dtype == np.float32
    np.testing.assert_allclose(embeddings, unit(features_of(pixels[rows])), atol=1e-4)
