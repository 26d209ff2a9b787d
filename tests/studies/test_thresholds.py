"""The line between two classes: found exactly, scored honestly, adopted only where it is worth it."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score, f1_score
from studies.made_trials import trial

from graft.backbones.weights import Reach
from graft.compute import Compute
from graft.images.dataset import Dataset, ImageReference
from graft.images.folds import Folds
from graft.store import Store
from graft.studies.frame import Frame
from graft.studies.journal import Journal
from graft.studies.settings import resolved
from graft.studies.thresholds import (
    EVEN,
    Threshold,
    adopted_thresholds,
    best_threshold,
    decided,
    found,
    sentence,
    threshold_facts,
)

METRICS = {
    "macro_f1": lambda truth, said: f1_score(truth, said, average="macro", labels=[0, 1], zero_division=0.0),
    "balanced_accuracy": balanced_accuracy_score,
    "accuracy": lambda truth, said: np.mean(truth == said),
}


def drawn(count: int, *, rare: float, shift: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Two overlapping classes, the second one rare; `shift` moves all its log odds."""
    generator = np.random.default_rng(seed)
    targets = (generator.random(count) < rare).astype(np.int64)
    odds = 2 * generator.normal(size=count) + 5 * targets - 2.5 + shift
    share = 1 / (1 + np.exp(-odds))
    return np.stack([1 - share, share], axis=1).astype(np.float32), targets


def of(probabilities: np.ndarray, targets: np.ndarray, *, metric: str = "macro_f1") -> Threshold | None:
    count = len(targets)
    return found(probabilities, targets, np.arange(count) % 5, np.arange(count), metric=metric, seed=0)


@settings(max_examples=40, deadline=None)
@given(
    values=st.lists(st.tuples(st.integers(0, 12), st.booleans()), min_size=2, max_size=30),
    metric=st.sampled_from(sorted(METRICS)),
)
def test_no_threshold_is_better(values: list[tuple[int, bool]], metric: str) -> None:
    probabilities = np.array([value / 12 for value, _ in values])
    truth = np.array([int(positive) for _, positive in values])
    if len(set(truth)) < 2:
        return
    score = METRICS[metric]
    threshold = best_threshold(probabilities, truth, metric=metric)
    tried = [score(truth, probabilities >= step / 24) for step in range(25)]
    assert 0 <= threshold <= 1
    assert score(truth, probabilities >= threshold) == pytest.approx(max(tried))
    if score(truth, probabilities >= EVEN) >= max(tried) - 1e-9:
        assert threshold == EVEN


def test_it_is_the_middle_of_the_best_range() -> None:
    probabilities = np.array([0.05, 0.1, 0.3, 0.4])
    assert best_threshold(probabilities, np.array([0, 0, 1, 1]), metric="accuracy") == pytest.approx(0.2)


def test_probabilities_that_are_too_low_are_put_right() -> None:
    probabilities, targets = drawn(600, rare=0.3, shift=-2.5, seed=0)
    rule = of(probabilities, targets)
    assert rule is not None and rule.adopted and rule.column == 1
    assert 0.02 < rule.value < 0.4
    assert rule.nested.value > rule.usual.value
    fresh, truth = drawn(4000, rare=0.3, shift=-2.5, seed=1)
    plain, moved = (
        f1_score(truth, decided(fresh, 1, at).argmax(axis=1), average="macro") for at in (None, rule.value)
    )
    assert moved - plain == pytest.approx(rule.gain.estimate, abs=0.04)
    assert "crack is the answer from a probability of 0." in sentence(rule, "crack")


def test_probabilities_that_are_right_are_left_alone() -> None:
    adopted = []
    for seed in range(8):
        rule = of(*drawn(300, rare=0.4, shift=0.0, seed=seed), metric="accuracy")
        assert rule is not None
        assert "The more probable class is the answer" in sentence(rule, "crack") or rule.adopted
        adopted.append(rule.adopted)
    assert sum(adopted) == 0


def test_the_score_is_that_of_other_folds() -> None:
    """Noise can be cut well after the fact; thresholds of other folds gain nothing from it."""
    generator = np.random.default_rng(0)
    gains, after = [], []
    for _ in range(20):
        share = generator.random(100).astype(np.float32)
        targets = generator.integers(0, 2, 100)
        table = np.stack([1 - share, share], axis=1)
        rule = of(table, targets, metric="balanced_accuracy")
        assert rule is not None
        gains.append(rule.gain.estimate)
        own = decided(table, rule.column, rule.value).argmax(axis=1)
        after.append(balanced_accuracy_score(targets, own) - rule.usual.value)
    assert np.mean(after) > 0.04 and abs(np.mean(gains)) < 0.03


def test_the_rarer_class_is_the_one_that_is_told() -> None:
    probabilities, targets = drawn(400, rare=0.3, shift=-2.5, seed=0)
    rule = of(probabilities[:, ::-1].copy(), 1 - targets)
    assert rule is not None and rule.column == 0


@pytest.mark.parametrize("metric", ["log_loss", "brier"])
def test_metrics_of_probabilities_have_none(metric: str) -> None:
    assert of(*drawn(400, rare=0.3, shift=0.0, seed=0), metric=metric) is None


def test_few_images_have_none() -> None:
    probabilities, targets = drawn(60, rare=0.2, shift=0.0, seed=0)
    assert of(probabilities, targets) is None


def test_what_is_adopted_goes_into_the_bundle_and_judges_the_test(tmp_path: Path) -> None:
    probabilities, targets = drawn(700, rare=0.3, shift=-2.5, seed=0)
    names = [f"{i}.jpg" for i in range(700)]
    dataset = Dataset(
        tmp_path / "photos",
        tuple(ImageReference(tmp_path / name, name, f"{i:040x}") for i, name in enumerate(names)),
        ("sound", "crack"),
        targets,
        np.arange(700),
        ("train",) * 600 + ("test",) * 100,
        np.full(700, 40),
        np.full(700, 30),
        np.zeros(700, bool),
        (),
    )
    folds = np.concatenate([np.arange(600) % 5, np.full(100, -1)])
    settings = resolved(dataset.root, out=tmp_path / "run")
    with closing(Journal(tmp_path / "run")) as journal:
        frame = Frame(
            settings,
            dataset,
            Folds(folds, 5, "given", ()),
            Store(tmp_path / "cache"),
            Compute("cpu", False, 1),
            None,
            Reach(False, False),
            journal,
        )
        chosen = trial("net/tap", probabilities[:600])
        facts = threshold_facts(frame, chosen, probabilities[600:])
        assert facts is not None and facts["adopted"] and facts["label"] == "crack"
        assert adopted_thresholds(frame, chosen) == {"crack": facts["threshold"]}
        said = probabilities[600:, 1] >= facts["threshold"]
        assert facts["test"]["metrics"]["accuracy"] == pytest.approx(np.mean(said == targets[600:]))
        low, high = facts["test"]["interval"]["macro_f1"]
        assert low <= facts["test"]["metrics"]["macro_f1"] <= high
        json.dumps(facts, allow_nan=False)
        calm = trial("net/tap", drawn(700, rare=0.3, shift=0.0, seed=0)[0][:600])
        assert adopted_thresholds(frame, calm) is None
        told = threshold_facts(frame, calm, probabilities[600:])
        assert told is not None and not told["adopted"] and told["test"] is None
