"""Every metric equals scikit-learn's, whatever the probabilities, ties and missing classes."""

from __future__ import annotations

import numpy as np
import pytest
import sklearn.metrics as sk
from hypothesis import given, settings
from hypothesis import strategies as st

from graft.judging.metrics import (
    METRICS,
    calibration_error,
    confusion,
    decisions,
    per_class,
    ranking,
    scores,
)


@st.composite
def problems(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities with many ties and targets that miss some classes."""
    rows, classes = draw(st.integers(1, 40)), draw(st.integers(2, 6))
    seed, levels = draw(st.integers(0, 10_000)), draw(st.sampled_from([1, 2, 5, 1000]))
    rng = np.random.default_rng(seed)
    raw = rng.integers(1, levels + 1, size=(rows, classes)).astype(np.float64)
    used = rng.permutation(classes)[: rng.integers(1, classes + 1)]
    return raw / raw.sum(1, keepdims=True), rng.choice(used, rows)


@given(problems())
@settings(max_examples=100, deadline=None)
def test_metrics_of_decisions_equal_sklearn(problem: tuple[np.ndarray, np.ndarray]) -> None:
    p, y = problem
    k, mine, decided, present = p.shape[1], scores(*problem), p.argmax(1), np.unique(y)
    recall = sk.recall_score(y, decided, labels=present, average="macro", zero_division=0)
    expected = {
        "accuracy": sk.accuracy_score(y, decided),
        "balanced_accuracy": recall,
        "macro_f1": sk.f1_score(y, decided, labels=present, average="macro", zero_division=0),
        "weighted_f1": sk.f1_score(y, decided, labels=present, average="weighted", zero_division=0),
    }
    assert {name: mine[name] for name in expected} == pytest.approx(expected)
    assert (confusion(p, y, k) == sk.confusion_matrix(y, decided, labels=np.arange(k))).all()
    table = per_class(p, y, [f"class {c}" for c in range(k)])
    columns = sk.precision_recall_fscore_support(y, decided, labels=np.arange(k), zero_division=0)
    for column, name in zip(columns, ("precision", "recall", "f1", "support"), strict=True):
        assert [row[name] for row in table] == pytest.approx(column.tolist())


@given(problems())
@settings(max_examples=100, deadline=None)
def test_metrics_of_probabilities_equal_sklearn(problem: tuple[np.ndarray, np.ndarray]) -> None:
    p, y = problem
    mine, (auroc, precision) = scores(p, y), ranking(p, y)
    assert mine["log_loss"] == pytest.approx(sk.log_loss(y, p, labels=np.arange(p.shape[1])))
    assert mine["brier"] == pytest.approx(((p - np.eye(p.shape[1])[y]) ** 2).sum(1).mean() / 2)
    for c in range(p.shape[1]):
        truth = y == c
        if truth.any():
            assert precision[c] == pytest.approx(sk.average_precision_score(truth, p[:, c]))
        else:
            assert np.isnan(precision[c])
        if truth.any() and not truth.all():
            assert auroc[c] == pytest.approx(sk.roc_auc_score(truth, p[:, c]))
        else:
            assert np.isnan(auroc[c])
    if len(np.unique(y)) == p.shape[1] > 2:
        assert mine["auroc"] == pytest.approx(sk.roc_auc_score(y, p, multi_class="ovr"))
    if len(np.unique(y)) == 1:
        assert "auroc" not in mine
    assert all(np.isfinite(value) for value in mine.values())


def test_two_classes_follow_the_usual_binary_definitions() -> None:
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 200)
    p1 = np.clip(0.5 + 0.2 * (2 * y - 1) + rng.normal(0, 0.3, 200), 0.01, 0.99)
    mine = scores(np.stack([1 - p1, p1], 1), y)
    assert mine["auroc"] == pytest.approx(sk.roc_auc_score(y, p1))
    assert mine["brier"] == pytest.approx(sk.brier_score_loss(y, p1))


def test_calibration_error_of_a_calibrated_and_an_overconfident_table() -> None:
    rng = np.random.default_rng(1)
    confidence = rng.uniform(0.5, 1, 20_000)
    y = (rng.random(20_000) < confidence).astype(int)
    assert calibration_error(np.stack([1 - confidence, confidence], 1), y) < 0.02
    sure = np.tile([0.05, 0.95], (20_000, 1))
    assert calibration_error(sure, y) == pytest.approx(0.95 - y.mean())


def test_calibration_error_does_not_depend_on_the_order_of_equal_confidences() -> None:
    p = np.tile([0.3, 0.7], (100, 1))
    y = np.repeat([0, 1], 50)
    assert calibration_error(p, y) == pytest.approx(0.2) == calibration_error(p, y[::-1].copy())


def test_ties_go_to_the_lowest_class() -> None:
    assert decisions(np.array([[0.4, 0.4, 0.2], [0.2, 0.4, 0.4]])).tolist() == [0, 1]


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ([0.5, np.nan], "negative number or none"),
        ([1.5, -0.5], "negative number or none"),
        ([0.5, np.inf], "negative number or none"),
        ([0.5, 0.4], "row 1 .* sums to 0.9"),
    ],
)
def test_a_row_that_is_no_distribution_is_refused(row: list[float], what: str) -> None:
    p = np.array([[0.5, 0.5], row])
    for judge in (scores, lambda p, y: confusion(p, y, 2), lambda p, y: per_class(p, y, ["a", "b"])):
        with pytest.raises(ValueError, match=what):
            judge(p, np.array([0, 1]))


def test_wrong_targets_and_names_are_refused() -> None:
    p = np.full((2, 2), 0.5)
    with pytest.raises(ValueError, match="targets run from 0 to 2"):
        scores(p, np.array([0, 2]))
    with pytest.raises(ValueError, match="do not belong to 0 targets"):
        scores(np.zeros((0, 2)), np.zeros(0, np.int64))
    with pytest.raises(ValueError, match="3 class names for 2 columns"):
        per_class(p, np.array([0, 1]), ["a", "b", "c"])
    with pytest.raises(ValueError, match="2 columns, not 3"):
        confusion(p, np.array([0, 1]), 3)


def test_half_precision_probabilities_are_accepted() -> None:
    rng = np.random.default_rng(2)
    p = rng.dirichlet(np.full(100, 0.1), 300)
    y = rng.integers(0, 100, 300)
    assert scores(p.astype(np.float16), y)["brier"] == pytest.approx(scores(p, y)["brier"], rel=1e-3)


def test_leading_metrics_know_their_direction_and_their_text() -> None:
    better, worse = np.array([[0.9, 0.1], [0.2, 0.8]]), np.array([[0.3, 0.7], [0.45, 0.55]])
    y = np.array([0, 1])
    for name, metric in METRICS.items():
        assert metric.name == name
        assert metric.sign * scores(better, y)[name] > metric.sign * scores(worse, y)[name]
    assert METRICS["macro_f1"].text(0.9724) == "97.2 %"
    assert METRICS["accuracy"].difference_text(-0.0124) == "-1.2 points"
    assert METRICS["accuracy"].difference_text(-0.0004) == "+0.0 points"
    assert METRICS["log_loss"].text(0.1126) == "0.113"
    assert METRICS["log_loss"].difference_text(0.0126) == "+0.013"
