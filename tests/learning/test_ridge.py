"""The closed-form head is proved against refitting without each row, scikit-learn and a scalar minimiser."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.special import softmax
from sklearn.linear_model import Ridge

from graft.learning import ridge
from graft.learning.ridge import (
    BALANCES,
    EXPONENTS,
    PENALTIES,
    SCALES,
    Spectrum,
    fit,
    leave_one_out,
    log_loss,
    unit,
)


def made(
    n: int, d: int, classes: int, *, seed: int = 0, kind: str = "plain", dtype: type = np.float64
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of classes that overlap, the first one the most frequent; `kind` is what is odd about them."""
    random = np.random.default_rng(seed)
    targets = np.minimum(random.geometric(0.5, n) - 1, classes - 1)
    rows = random.standard_normal((n, d)) + 1.5 * random.standard_normal((classes, d))[targets]
    if kind == "constant feature":
        rows[:, 0] = 3.0
    elif kind == "constant":
        rows[:] = 3.0
    elif kind == "duplicates":
        rows, targets = np.concatenate([rows[: n - n // 2], rows[: n // 2]]), targets.copy()
        targets[n - n // 2 :] = targets[: n // 2]
    elif kind == "missing class":
        targets[targets == 1] = 0
    return rows.astype(dtype), targets


def class_weights(targets: np.ndarray, balance: float) -> np.ndarray:
    weights = np.array([np.sum(targets == target) for target in targets], float) ** -balance
    return weights / weights.mean()


def solved(
    rows: np.ndarray, one_hot: np.ndarray, weights: np.ndarray, alpha: float
) -> tuple[np.ndarray, np.ndarray]:
    """Weighted ridge with a free intercept from the normal equations of the augmented matrix."""
    augmented = np.concatenate([rows, np.ones((len(rows), 1))], axis=1)
    damping = np.diag([alpha] * rows.shape[1] + [0.0])
    weighted = augmented * weights[:, None]
    both = np.linalg.lstsq(weighted.T @ augmented + damping, weighted.T @ one_hot, rcond=None)[0]
    return both[:-1], both[-1]


def largest_eigenvalue(rows: np.ndarray, weights: np.ndarray) -> float:
    centred = np.sqrt(weights)[:, None] * (rows - np.average(rows, axis=0, weights=weights))
    largest = float(np.linalg.norm(centred, 2)) ** 2
    return largest if largest > 1e-20 else 1.0


def refitted_without_each(
    rows: np.ndarray, targets: np.ndarray, *, classes: int, balance: float, penalty: float
) -> np.ndarray:
    """Brute force: n fits, each asked for the row it has not seen. The penalty stays what it is with all rows."""
    rows, weights = rows.astype(np.float64), class_weights(targets, balance)
    alpha, one_hot = penalty * largest_eigenvalue(rows, weights), np.eye(classes)[targets]
    answers = np.zeros_like(one_hot)
    for index in range(len(rows)):
        others = np.arange(len(rows)) != index
        weight, bias = solved(rows[others], one_hot[others], weights[others], alpha)
        answers[index] = rows[index] @ weight + bias
    return answers


KINDS = ("plain", "constant feature", "constant", "duplicates", "missing class")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("balance", list(EXPONENTS.values()))
@pytest.mark.parametrize(("n", "d"), [(40, 7), (12, 30), (25, 25), (30, 1)])
def test_leave_one_out_is_refitting_without_the_row(n: int, d: int, balance: float, kind: str) -> None:
    rows, targets = made(n, d, 3, kind=kind)
    solution = Spectrum(rows, targets, classes=3, balance=balance)
    for penalty in (1e-4, 1e-2, 3.0):
        expected = refitted_without_each(rows, targets, classes=3, balance=balance, penalty=penalty)
        np.testing.assert_allclose(solution.leave_one_out(penalty), expected, atol=1e-8)


@pytest.mark.parametrize("balance", [0.0, 1.0])
@pytest.mark.parametrize(("n", "d"), [(60, 10), (20, 80), (300, 40)])
def test_leave_one_out_in_float32(n: int, d: int, balance: float) -> None:
    rows, targets = made(n, d, 4, dtype=np.float32)
    solution = Spectrum(unit(rows), targets, classes=4, balance=balance)
    for penalty in (1e-3, 1e-1, 10.0):
        got = solution.leave_one_out(penalty)
        expected = refitted_without_each(unit(rows), targets, classes=4, balance=balance, penalty=penalty)
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, expected, atol=1e-3)


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(3, 30),
    d=st.integers(1, 30),
    classes=st.integers(2, 6),
    seed=st.integers(0, 1000),
    balance=st.sampled_from(list(EXPONENTS.values())),
    penalty=st.sampled_from([float(p) for p in PENALTIES if p >= 1e-4]),
    kind=st.sampled_from(KINDS),
)
def test_leave_one_out_of_any_shape(
    n: int, d: int, classes: int, seed: int, balance: float, penalty: float, kind: str
) -> None:
    rows, targets = made(n, d, classes, seed=seed, kind=kind)
    got = Spectrum(rows, targets, classes=classes, balance=balance).leave_one_out(penalty)
    expected = refitted_without_each(rows, targets, classes=classes, balance=balance, penalty=penalty)
    np.testing.assert_allclose(got, expected, atol=1e-7)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("balance", list(EXPONENTS.values()))
@pytest.mark.parametrize(("n", "d"), [(40, 7), (12, 30), (30, 1)])
def test_coefficients_are_those_of_scikit_learn(n: int, d: int, balance: float, kind: str) -> None:
    rows, targets = made(n, d, 3, kind=kind)
    weights = class_weights(targets, balance)
    for penalty in (1e-3, 1.0):
        weight, bias = Spectrum(rows, targets, classes=3, balance=balance).coefficients(penalty)
        peer = Ridge(alpha=penalty * largest_eigenvalue(rows, weights)).fit(
            rows, np.eye(3)[targets], sample_weight=weights
        )
        np.testing.assert_allclose(weight, peer.coef_.T, atol=1e-8)
        np.testing.assert_allclose(bias, peer.intercept_, atol=1e-8)


@pytest.mark.parametrize("seed", range(4))
def test_the_scale_has_the_lowest_log_loss(seed: int) -> None:
    rows, targets = made(80, 10, 4, seed=seed)
    logits = Spectrum(unit(rows), targets, classes=4, balance=0.0).leave_one_out(0.01)
    loss, scale = ridge._best_scale(logits, targets)

    def doubted(scale: float) -> float:
        """The log loss if one image in n + 1 were of any class."""
        surprise = -np.log(softmax(scale * logits, axis=1))
        own = surprise[np.arange(80), targets]
        return float((80 / 81 * own + 1 / 81 * surprise.mean(axis=1)).mean())

    peer = minimize_scalar(lambda log: doubted(np.exp(log)), bounds=np.log(SCALES), method="bounded")
    assert scale == pytest.approx(np.exp(peer.x), rel=5e-3)
    assert loss == pytest.approx(peer.fun, abs=1e-6)
    assert loss == pytest.approx(doubted(scale), abs=1e-9)


@pytest.mark.parametrize("start", [0.5, 5.0, 200.0])
def test_the_scale_does_not_depend_on_where_its_search_starts(start: float) -> None:
    rows, targets = made(80, 10, 4, dtype=np.float32)
    logits = Spectrum(unit(rows), targets, classes=4, balance=0.0).leave_one_out(0.01)
    assert ridge._best_scale(logits, targets, start=start) == pytest.approx(
        ridge._best_scale(logits, targets), rel=2e-3
    )


def test_a_scale_without_a_minimum_stays_within_its_limits() -> None:
    separated = np.eye(3)[np.arange(30) % 3]
    targets = np.arange(30) % 3
    assert 3 < ridge._best_scale(separated, targets)[1] < 10, "30 images cannot promise more than 30 to 1"
    many = np.arange(30_000) % 3
    assert ridge._best_scale(np.eye(3)[many] / 1e3, many)[1] == pytest.approx(SCALES[1], rel=0.9)
    assert ridge._best_scale(-separated, targets)[1] == SCALES[0]
    assert np.isfinite(ridge._best_scale(1e3 * separated, targets)[0])


def test_the_penalty_has_the_lowest_leave_one_out_log_loss() -> None:
    rows, targets = made(60, 20, 3)
    targets[::4] = 0  # wrong labels: without penalty they would be learned
    head = fit(rows, targets, classes=3, balances=("none",))
    solution = Spectrum(unit(rows), targets, classes=3, balance=0.0)
    losses = {p: ridge._best_scale(solution.leave_one_out(p), targets)[0] for p in map(float, PENALTIES)}
    assert head.penalty == min(losses, key=losses.__getitem__) > ridge.least_penalty_of(60)
    assert PENALTIES[0] < head.penalty < PENALTIES[-1], "the made rows have an optimum inside the grid"
    weight, bias = solution.coefficients(head.penalty)
    np.testing.assert_allclose(head.weight, head.scale * weight, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(head.bias, head.scale * bias, rtol=1e-4, atol=1e-4)
    held_out = leave_one_out(rows, targets, classes=3)
    told = softmax(head.scale * solution.leave_one_out(head.penalty), axis=1)
    np.testing.assert_allclose(held_out, told, atol=1e-9)


def test_the_criterion_chooses_the_class_weighting_from_leave_one_out_probabilities() -> None:
    rows, targets = made(90, 5, 3)
    seen: list[np.ndarray] = []

    def prefer(wanted: int) -> ridge.Criterion:
        def score(probabilities: np.ndarray, given: np.ndarray) -> float:
            assert given is targets
            seen.append(probabilities)
            return float(len(seen) % len(BALANCES) == (wanted + 1) % len(BALANCES))

        return score

    for wanted, balance in enumerate(BALANCES):
        assert fit(rows, targets, classes=3, criterion=prefer(wanted)).balance == balance
    np.testing.assert_array_equal(seen[0], leave_one_out(rows, targets, classes=3))
    assert fit(rows, targets, classes=3, criterion=lambda _p, _t: 0.5).balance == "none", (
        "the plainer one wins a tie"
    )


def test_weighting_is_tried_only_where_classes_are_unbalanced() -> None:
    rows, _ = made(90, 5, 3)
    calls: list[int] = []
    for targets, tried in ((np.arange(90) % 3, 1), ((np.arange(90) % 10 == 0).astype(int), len(BALANCES))):
        calls.clear()
        fit(rows, targets, classes=3, criterion=lambda _p, _t: float(calls.append(1) is None))
        assert len(calls) == tried


def test_weighting_helps_the_rare_class() -> None:
    rows, targets = made(400, 3, 4, seed=3)
    recalls = []
    for balance in ("none", "full", "logit"):
        answers = fit(rows, targets, classes=4, balances=(balance,)).probabilities(rows).argmax(1)
        recalls.append(np.mean([(answers[targets == c] == c).mean() for c in range(4)]))
    assert min(recalls[1:]) > recalls[0] + 0.02


def test_adjusted_logits_are_judged_without_the_row_itself() -> None:
    """The shares that a leave-one-out prediction is adjusted by are those of the other rows."""
    rows, targets = made(90, 5, 3)
    seen: list[np.ndarray] = []

    def keep(probabilities: np.ndarray, _: np.ndarray) -> float:
        seen.append(probabilities)
        return float(len(seen))

    head = fit(rows, targets, classes=3, criterion=keep)
    plain = fit(rows, targets, classes=3, balances=("none",))
    assert (head.balance, head.score) == ("logit", float(len(BALANCES)))
    np.testing.assert_allclose(head.bias, plain.bias - np.log(np.bincount(targets) / 90), atol=1e-6)
    for row in (0, 41, 89):
        others = np.bincount(np.delete(targets, row), minlength=3)
        expected = seen[0][row] / others
        np.testing.assert_allclose(seen[-1][row], expected / expected.sum(), rtol=1e-5)


def test_rows_held_out_do_not_touch_the_head() -> None:
    rows, targets = made(90, 12, 3, dtype=np.float32)
    learned = np.arange(90) % 5 != 0
    head = fit(rows[learned], targets[learned], classes=3)
    rows[~learned], targets[~learned] = np.nan, 2
    again = fit(rows[learned], targets[learned], classes=3)
    np.testing.assert_array_equal(head.weight, again.weight)
    assert (head.penalty, head.balance, head.scale) == (again.penalty, again.balance, again.scale)


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(2, 40),
    d=st.integers(1, 40),
    classes=st.integers(2, 8),
    seed=st.integers(0, 1000),
    kind=st.sampled_from((*KINDS, "zero", "one class")),
    factor=st.sampled_from([1e-6, 1.0, 1e6]),
)
def test_probabilities_are_finite_and_sum_to_one(
    n: int, d: int, classes: int, seed: int, kind: str, factor: float
) -> None:
    rows, targets = made(n, d, classes, seed=seed, kind=kind, dtype=np.float32)
    rows = np.zeros_like(rows) if kind == "zero" else rows * np.float32(factor)
    targets = np.zeros_like(targets) if kind == "one class" else targets
    head = fit(rows, targets, classes=classes)
    for probabilities in (head.probabilities(rows), leave_one_out(rows, targets, classes=classes)):
        assert probabilities.shape == (n, classes)
        assert np.isfinite(probabilities).all() and (probabilities >= 0).all()
        np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-5)


def test_features_that_say_nothing_give_the_frequencies_of_the_classes() -> None:
    targets = np.repeat([0, 1, 2], [40, 20, 10])
    head = fit(np.zeros((70, 6), np.float32), targets, classes=3, balances=("none",))
    probabilities = head.probabilities(np.zeros((1, 6), np.float32))[0]
    assert probabilities[0] > probabilities[1] > probabilities[2] > 0.05
    assert not head.weight.any()


def test_a_class_that_is_missing_from_the_rows_is_not_expected() -> None:
    rows, targets = made(60, 8, 3, kind="missing class", dtype=np.float32)
    probabilities = fit(rows, targets, classes=3).probabilities(rows)
    assert probabilities[:, 1].max() < 0.2
    assert not (probabilities.argmax(1) == 1).any()


def test_the_length_of_a_row_does_not_matter() -> None:
    rows, targets = made(50, 8, 3, dtype=np.float32)
    head = fit(rows, targets, classes=3)
    np.testing.assert_allclose(head.probabilities(rows), head.probabilities(7 * rows), atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(unit(rows), axis=1), 1, atol=1e-6)
    assert not unit(np.zeros((2, 3), np.float32)).any()


def test_small_eigenvalues_count_in_float32_as_in_float64() -> None:
    random = np.random.default_rng(0)
    spread = np.geomspace(
        1, 1e-2, 200
    )  # eigenvalues down to 1e-4 of the largest, about 1000 times their rounding
    rows = (random.standard_normal((400, 200)) * spread).astype(np.float32)
    targets = (rows[:, 150:] / spread[150:]).sum(1).argsort().argsort() * 2 // 400
    exact = Spectrum(rows.astype(np.float64), targets, classes=2, balance=0.0).leave_one_out(1e-5)
    single = Spectrum(rows, targets, classes=2, balance=0.0).leave_one_out(1e-5)
    np.testing.assert_allclose(single, exact, atol=5e-3)
    assert ((single.argmax(1) == targets).mean()) > 0.75


@pytest.mark.parametrize(("n", "d"), [(20, 16), (33, 64), (60, 256)])
def test_leave_one_out_of_few_rows_is_exact_where_float32_is_not(n: int, d: int) -> None:
    random = np.random.default_rng(0)
    targets = np.arange(n) % 2
    rows = (3 * random.random(d) + 0.02 * random.standard_normal((n, d))).astype(
        np.float32
    )  # nearly constant
    prepared = ridge._prepared(rows)
    assert prepared.dtype == np.float64
    for penalty in (1e-5, 1e-3):
        got = Spectrum(prepared, targets, classes=2, balance=0.0).leave_one_out(penalty)
        expected = refitted_without_each(prepared, targets, classes=2, balance=0.0, penalty=penalty)
        np.testing.assert_allclose(got, expected, atol=1e-5)


def test_the_least_penalty_falls_with_the_rows() -> None:
    counts = (2, 30, 100, 1_000, 100_000)
    floors = [ridge.least_penalty_of(count) for count in counts]
    assert floors == pytest.approx([0.1, 0.1, 0.01, 1e-4, PENALTIES[0]])
    rows, targets = made(30, 8, 2)
    assert fit(rows, targets, classes=2).penalty >= floors[1] * 0.999


def test_few_rows_do_not_promise_what_they_cannot_know() -> None:
    losses = []
    for seed in range(30):
        random = np.random.default_rng(seed)
        targets = np.arange(1_000) % 2
        rows = (2 + random.standard_normal((1_000, 32)) + 0.5 * targets[:, None]).astype(np.float32)
        losses.append(
            log_loss(fit(rows[:20], targets[:20], classes=2).probabilities(rows[20:]), targets[20:])
        )
    assert np.mean(losses) < 0.73 and max(losses) < 0.9


def test_log_loss_is_the_mean_surprise() -> None:
    probabilities = np.array([[0.5, 0.5], [0.25, 0.75], [1.0, 0.0]])
    assert log_loss(probabilities, np.array([0, 1, 0])) == pytest.approx(-np.log([0.5, 0.75]).sum() / 3)
    assert log_loss(probabilities, np.array([0, 1, 1])) < 30, (
        "an impossible answer costs much, but not infinitely"
    )
