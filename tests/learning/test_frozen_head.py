"""The head on frozen features against scikit-learn's logistic regression, and what it is made of."""

import numpy as np
import pytest
from scipy.special import log_softmax, softmax
from sklearn.linear_model import LogisticRegression

from graft.learning import frozen_head, logistic, ridge


def blobs(count: int, features: int, classes: int, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Overlapping clouds around a centre per class, of unequal spread along the features."""
    random = np.random.default_rng(seed)
    targets = np.arange(count) % classes
    centres = random.standard_normal((classes, features))
    spread = np.geomspace(1, 0.05, features)
    rows = (centres[targets] + 2 * random.standard_normal((count, features))) * spread + 3 * spread
    return rows.astype(np.float32), targets.astype(np.int64)


def ours(
    rows: np.ndarray, targets: np.ndarray, *, classes: int, strength: float, balance: float = 0.0
) -> np.ndarray:
    spectrum = ridge.Spectrum(rows, targets, classes=classes, balance=balance)
    weight, bias = logistic.coefficients(spectrum, targets, classes=classes, strength=strength)
    return rows @ weight + bias


@pytest.mark.parametrize(("count", "features", "classes"), [(200, 24, 2), (150, 300, 3), (400, 60, 12)])
@pytest.mark.parametrize("strength", [3.0, 50.0])
def test_logistic_regression_is_that_of_scikit_learn(
    count: int, features: int, classes: int, strength: float
) -> None:
    rows, targets = blobs(count, features, classes)
    centred = rows - rows.mean(axis=0)
    size = float((centred**2).sum(axis=1).mean())
    # Two classes share one column there, whose square counts as much as those of our two together.
    own = strength * (2 if classes == 2 else 1) / size
    peer = LogisticRegression(C=own, tol=1e-6, max_iter=5_000).fit(centred, targets)

    said = softmax(ours(rows, targets, classes=classes, strength=strength), axis=1)

    assert np.abs(said - peer.predict_proba(centred)).max() < 0.02


def test_rows_count_as_the_decomposition_weights_them() -> None:
    rows, targets = blobs(300, 20, 3)
    few = np.flatnonzero((targets != 2) | (np.arange(300) % 10 == 2))
    rows, targets = rows[few], targets[few]
    counts = np.bincount(targets)
    weights = 1 / counts[targets]
    weights = weights / weights.mean()
    centre = np.average(rows, axis=0, weights=weights)
    size = float((weights * ((rows - centre) ** 2).sum(axis=1)).mean())
    peer = LogisticRegression(C=50 / size, tol=1e-6, max_iter=5_000)
    peer.fit(rows - centre, targets, sample_weight=weights)

    said = softmax(ours(rows, targets, classes=3, strength=50.0, balance=1.0), axis=1)

    assert np.abs(said - peer.predict_proba(rows - centre)).max() < 0.01


def test_the_logits_are_the_mean_of_both_heads() -> None:
    rows, targets = blobs(120, 30, 4)
    lengths = ridge.unit(rows)
    spectrum = ridge.Spectrum(lengths.astype(np.float64), targets, classes=4, balance=0.0)
    weight, bias = logistic.coefficients(spectrum, targets, classes=4, strength=frozen_head.STRENGTH)
    closed = ridge.fit(rows, targets, classes=4)

    both = frozen_head.fit(rows, targets, classes=4)

    new, _ = blobs(40, 30, 4, seed=1)
    new = ridge.unit(new)
    wanted = (new @ closed.weight + closed.bias + new @ weight + bias) / 2
    assert np.allclose(
        log_softmax(new @ both.weight + both.bias, axis=1), log_softmax(wanted, axis=1), atol=1e-3
    )
    assert (both.balance, both.penalty, both.score) == (closed.balance, closed.penalty, closed.score)


def test_a_rare_class_gains_from_adjusted_logits_in_both_heads() -> None:
    rows, targets = blobs(400, 20, 2)
    kept = np.flatnonzero((targets == 0) | (np.arange(400) % 16 == 1))

    plain = frozen_head.fit(rows[kept], targets[kept], classes=2, balances=("none",))
    fair = frozen_head.fit(rows[kept], targets[kept], classes=2, balances=("logit",))

    shares = np.bincount(targets[kept]) / len(kept)
    gained = (fair.bias - plain.bias) + np.log(shares)
    assert np.allclose(fair.weight, plain.weight)
    assert gained == pytest.approx([gained[0]] * 2, abs=1e-4)


@pytest.mark.parametrize("rows", [np.zeros((6, 4), np.float32), np.ones((6, 4), np.float32)])
def test_features_that_tell_nothing_give_the_shares(rows: np.ndarray) -> None:
    head = frozen_head.fit(rows, np.array([0, 0, 0, 0, 1, 1]), classes=2, balances=("none",))

    said = head.probabilities(rows)

    assert np.isfinite(said).all()
    assert (said[:, 0] > 0.5).all()


def test_a_class_without_images_is_never_said() -> None:
    rows, targets = blobs(60, 8, 2)

    head = frozen_head.fit(rows, 2 * targets, classes=3)

    assert np.isfinite(head.probabilities(rows)).all()
    assert set(head.probabilities(rows).argmax(axis=1)) <= {0, 2}


def test_much_work_is_cut_short_and_still_a_head(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, targets = blobs(400, 60, 12)
    far = ours(rows, targets, classes=12, strength=50.0)

    monkeypatch.setattr(logistic, "WORK", 1.0)
    short = ours(rows, targets, classes=12, strength=50.0)

    def loss(logits: np.ndarray) -> float:
        return float(-log_softmax(logits, axis=1)[np.arange(400), targets].mean())

    assert loss(far) < loss(short) < 0.7 * np.log(12)
