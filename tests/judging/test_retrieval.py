"""Mean average precision against scikit-learn's, and where a class has nothing to find."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from graft.judging.retrieval import mean_average_precision


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), classes=st.integers(2, 5))
def test_it_is_scikit_learns_average_precision(seed: int, classes: int) -> None:
    random = np.random.default_rng(seed)
    gallery, queries = random.normal(size=(40, 6)), random.normal(size=(15, 6))
    labels, wanted = random.integers(0, classes, 40), random.integers(0, classes, 15)
    found = mean_average_precision(gallery, labels, queries, wanted, classes=classes)
    unit = gallery / np.linalg.norm(gallery, axis=1, keepdims=True)
    for target in range(classes):
        asked = np.flatnonzero(wanted == target)
        if not len(asked) or not (labels == target).any():
            assert found[target] is None
            continue
        each = [average_precision_score(labels == target, unit @ queries[row]) for row in asked]
        assert found[target] == pytest.approx(np.mean(each), abs=1e-5)


def test_well_separated_classes_are_found_at_once() -> None:
    gallery = np.repeat(np.eye(3), 4, axis=0)
    labels = np.repeat(np.arange(3), 4)
    assert mean_average_precision(gallery, labels, np.eye(3), np.arange(3), classes=4) == [
        1.0,
        1.0,
        1.0,
        None,
    ]
