"""The weighted bootstrap equals repeating rows; intervals are honest; picking a winner is corrected for."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from graft.judging.metrics import METRICS, influence, scores
from graft.judging.uncertainty import (
    Difference,
    bootstrap,
    clopper_pearson,
    corrected,
    draw_weights,
    estimate,
    interval,
    paired,
    tied,
    too_few,
    wilson,
)


def problem(rows: int, classes: int, seed: int, *, skill: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities of a middling classifier and the targets."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes, rows)
    logits = rng.normal(size=(rows, classes))
    logits[np.arange(rows), y] += skill
    p = np.exp(logits)
    return p / p.sum(1, keepdims=True), y


def decided(y: np.ndarray, right: np.ndarray) -> np.ndarray:
    """A table of two classes that decides rightly where `right`."""
    made = np.where(right, y, 1 - y)
    p = np.full((len(y), 2), 0.1)
    p[np.arange(len(y)), made] = 0.9
    return p


@given(st.integers(2, 30), st.integers(2, 5), st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_weights_equal_repeated_rows(rows: int, classes: int, seed: int) -> None:
    p, y = problem(rows, classes, seed)
    weights = np.random.default_rng(seed).integers(0, 3, size=(4, rows)).astype(np.float32)
    weights[:, 0] += 1
    for metric in METRICS:
        samples = bootstrap(metric, p, y, weights)
        for row, sample in zip(weights.astype(int), samples, strict=True):
            again = scores(np.repeat(p, row, axis=0), np.repeat(y, row))[metric]
            assert sample == pytest.approx(again, rel=1e-5, abs=1e-7)  # float32
        ones = bootstrap(metric, p, y, np.ones((1, rows), np.float32))
        assert ones[0] == pytest.approx(scores(p, y)[metric], rel=1e-6)


def test_nothing_drawn_is_no_score() -> None:
    p, y = problem(10, 2, 0)
    for metric in METRICS:
        assert np.isnan(bootstrap(metric, p, y, np.zeros((1, 10), np.float32))).all()


def test_an_unknown_metric_is_refused() -> None:
    p, y = problem(10, 2, 0)
    with pytest.raises(KeyError):
        bootstrap("auroc", p, y, np.ones((1, 10), np.float32))


def test_groups_travel_together_and_classes_keep_their_number_of_groups() -> None:
    rng = np.random.default_rng(0)
    groups = rng.permutation(np.concatenate([np.arange(30), np.arange(10), np.arange(5)])) * 7 - 3
    y = ((groups + 3) // 7 % 3).astype(np.int64)
    weights = draw_weights(y, groups, draws=200, seed=1)
    assert weights.shape == (200, 45)
    assert (weights == np.round(weights)).all()
    _, first, member = np.unique(groups, return_index=True, return_inverse=True)
    assert (weights == weights[:, first][:, member]).all()
    for c in range(3):
        inside = first[y[first] == c]
        assert (weights[:, inside].sum(1) == len(inside)).all()
        assert weights[:, inside].mean() == pytest.approx(1)
    assert weights.var() == pytest.approx(1, abs=0.2)
    assert (weights == draw_weights(y, groups, draws=200, seed=1)).all()
    assert (weights != draw_weights(y, groups, draws=200, seed=2)).any()


def test_duplicates_do_not_make_an_interval_narrower() -> None:
    p, y = problem(80, 2, 3)
    twice, y_twice = np.repeat(p, 4, axis=0), np.repeat(y, 4)
    groups = np.repeat(np.arange(80), 4)

    def width(table: np.ndarray, truth: np.ndarray, group: np.ndarray) -> float:
        found = estimate("macro_f1", table, truth, group, draw_weights(truth, group, draws=1000, seed=0))
        return found.high - found.low

    single = width(p, y, np.arange(80))
    assert width(twice, y_twice, groups) == pytest.approx(single, rel=0.1)
    assert width(twice, y_twice, np.arange(320)) < 0.6 * single


def test_percentile_and_bca_intervals() -> None:
    rng = np.random.default_rng(0)
    samples = rng.normal(0.5, 0.01, 20_000)
    assert interval(samples) == pytest.approx((0.5 - 0.0196, 0.5 + 0.0196), abs=1e-3)
    assert interval(samples, level=0.5) == pytest.approx((0.5 - 0.00674, 0.5 + 0.00674), abs=1e-3)
    assert interval(samples, estimate=0.5) == pytest.approx((0.5 - 0.0196, 0.5 + 0.0196), abs=1e-3)
    low, high = interval(samples, estimate=0.505)
    assert low > 0.485 and high > 0.525, "samples that lie too low are shifted up"
    assert interval(samples, estimate=0.9)[1] == 0.9
    with_gap = np.concatenate([samples, [np.nan]])
    assert interval(with_gap) == interval(samples)
    with pytest.raises(ValueError, match="at least one finite sample"):
        interval(np.array([np.nan]))


def test_bca_equals_scipy_on_a_skewed_mean() -> None:
    rng = np.random.default_rng(4)
    p, _ = problem(40, 2, 4)
    y = np.zeros(40, np.int64)
    losses = -np.log(p[:, 0])
    reference = scipy.stats.bootstrap((losses,), np.mean, n_resamples=20_000, method="BCa", rng=rng)
    weights = draw_weights(y, np.arange(40), draws=20_000, seed=0)
    mine = estimate("log_loss", p, y, np.arange(40), weights)
    expected = reference.confidence_interval
    assert (mine.low, mine.high) == pytest.approx((expected.low, expected.high), abs=0.015)


@pytest.mark.parametrize("metric", METRICS)
def test_influence_is_the_derivative_by_the_weights(metric: str) -> None:
    p, y = problem(30, 3, 5)
    step = 1e-2
    weights = np.ones((30, 30), np.float32) + step * np.eye(30, dtype=np.float32)
    slope = (bootstrap(metric, p, y, weights) - scores(p, y)[metric]) / step
    assert np.corrcoef(slope, influence(metric, p, y))[0, 1] > 0.999


def test_intervals_cover_the_truth() -> None:
    """95 % intervals of accuracy on 150 images hold the true 88 % in 90-100 % of 200 repetitions."""
    rng = np.random.default_rng(0)
    y = np.arange(150) % 2
    covered = 0
    for seed in range(200):
        p = decided(y, rng.random(150) < 0.88)
        weights = draw_weights(y, np.arange(150), draws=300, seed=seed)
        found = estimate("accuracy", p, y, np.arange(150), weights)
        covered += found.low <= 0.88 <= found.high
    assert covered >= 180


@pytest.mark.parametrize("metric", [name for name, metric in METRICS.items() if metric.from_decisions])
def test_a_flawless_score_is_not_certain(metric: str) -> None:
    y = np.repeat([0, 1], 30)
    perfect = decided(y, np.ones(60, bool))
    found = estimate(metric, perfect, y, np.arange(60), draw_weights(y, np.arange(60), draws=50, seed=0))
    assert (found.value, found.high) == (1.0, 1.0)
    assert found.low == pytest.approx(0.94, abs=0.003)
    wrong = decided(y, np.zeros(60, bool))
    found = estimate(metric, wrong, y, np.arange(60), draw_weights(y, np.arange(60), draws=50, seed=0))
    assert (found.value, found.low) == (0.0, 0.0)
    assert found.high == pytest.approx(0.06, abs=0.003)
    pairs = np.repeat(np.arange(30), 2)
    fewer = estimate(metric, perfect, y, pairs, draw_weights(y, pairs, draws=50, seed=0))
    assert fewer.low < 0.9


def test_a_flawless_accuracy_has_the_exact_bound_and_a_rare_class_widens_macro_f1() -> None:
    y = np.repeat([0, 1], [990, 10])
    perfect, groups = decided(y, np.ones(1000, bool)), np.arange(1000)
    weights = draw_weights(y, groups, draws=20, seed=0)
    accuracy = estimate("accuracy", perfect, y, groups, weights)
    assert accuracy.low == pytest.approx(clopper_pearson(1000, 1000)[0])
    macro = estimate("macro_f1", perfect, y, groups, weights)
    hidden = 1000 * (1 - accuracy.low)
    by_hand = (2 * (10 - hidden) / (20 - hidden) + 2 * 990 / (1980 + hidden)) / 2
    assert macro.low == pytest.approx(by_hand)
    one_class = np.full(30, 1)
    alone = estimate(
        "macro_f1", perfect[-30:] * 0 + [0.1, 0.9], one_class, groups[:30], weights[:, :30] * 0 + 1
    )
    assert 0.8 < alone.low < 1


@pytest.mark.parametrize("metric", METRICS)
def test_a_difference_is_positive_where_the_first_is_better(metric: str) -> None:
    good, y = problem(300, 3, 6, skill=4.0)
    bad, _ = problem(300, 3, 6, skill=1.0)
    weights = draw_weights(y, np.arange(300), draws=300, seed=0)
    better = paired(metric, good, bad, y, weights)
    assert 0 < better.low < better.estimate < better.high
    assert not better.touches_zero
    assert paired(metric, bad, good, y, weights).high < 0
    expected = METRICS[metric].sign * (scores(good, y)[metric] - scores(bad, y)[metric])
    assert better.estimate == pytest.approx(expected, rel=1e-6)
    assert paired(metric, good, good, y, weights) == Difference(0.0, 0.0, 0.0)


def test_two_tables_with_equal_decisions_differ_by_what_was_not_seen() -> None:
    y = np.repeat([0, 1], 30)
    a = decided(y, np.ones(60, bool))
    b = 0.5 + (a - 0.5) / 2
    found = paired("accuracy", a, b, y, draw_weights(y, np.arange(60), draws=50, seed=0))
    assert (found.estimate, found.low, found.high) == pytest.approx((0, -0.0596, 0.0596), abs=1e-3)
    assert paired("log_loss", a, b, y, draw_weights(y, np.arange(60), draws=50, seed=0)).low > 0


@pytest.mark.parametrize("metric", METRICS)
def test_tied_compares_with_the_first_of_the_best(metric: str) -> None:
    good, y = problem(400, 3, 7, skill=4.0)
    bad, _ = problem(400, 3, 7, skill=1.0)
    near = good.copy()
    near[:2] = np.roll(near[:2], 1, axis=1)
    weights = draw_weights(y, np.arange(400), draws=500, seed=0)
    differences = tied(metric, [bad, good, near, good.copy()], y, weights)
    assert differences[1] == Difference(0.0, 0.0, 0.0)
    assert not differences[0].touches_zero and differences[0].estimate < 0
    assert differences[2].touches_zero
    assert differences[3] == Difference(0.0, 0.0, 0.0)


def test_equal_models_are_rarely_told_apart() -> None:
    rng = np.random.default_rng(8)
    y = np.arange(100) % 2
    apart = 0
    for seed in range(200):
        a, b = (decided(y, rng.random(100) < 0.9) for _ in range(2))
        weights = draw_weights(y, np.arange(100), draws=300, seed=seed)
        apart += not paired("accuracy", a, b, y, weights).touches_zero
    assert apart <= 20


def equal_models(
    rng: np.random.Generator, rows: int, models: int
) -> tuple[np.ndarray, list[np.ndarray], np.ndarray]:
    """Targets, tables and true accuracies of models around 88 % whose errors come together (correlation 0.6)."""
    y = np.arange(rows) % 2
    accuracy = rng.normal(0.88, 0.01, models)
    shared, own = rng.normal(size=(rows, 1)), rng.normal(size=(rows, models))
    right = scipy.stats.norm.cdf(np.sqrt(0.6) * shared + np.sqrt(0.4) * own) < accuracy
    return y, [decided(y, right[:, m]) for m in range(models)], accuracy


def test_picking_the_best_of_twenty_is_optimistic_and_corrected() -> None:
    """The plain winner of 20 on 250 images is about 2.7 points too good; corrected, within 0.7 points."""
    rng = np.random.default_rng(0)
    naive, left, covered = [], [], 0
    for seed in range(60):
        y, tables, accuracy = equal_models(rng, 250, 20)
        head = corrected("accuracy", tables, y, np.arange(250), draws=200, seed=seed)
        truth = accuracy[head.winner]
        naive.append(scores(tables[head.winner], y)["accuracy"] - truth)
        left.append(head.estimate - truth)
        covered += head.low <= truth <= head.high
        assert head.low < head.estimate < head.high
        assert head.estimate + head.optimism == pytest.approx(scores(tables[head.winner], y)["accuracy"])
    assert 0.015 < np.mean(naive) < 0.04
    assert abs(np.mean(left)) < 0.007
    assert covered >= 54


@pytest.mark.parametrize("metric", METRICS)
def test_one_candidate_keeps_its_score_and_interval(metric: str) -> None:
    p, y = problem(120, 3, 9)
    groups = np.arange(120) // 2
    head = corrected(metric, [p], y, groups, draws=200, seed=3)
    alone = estimate(metric, p, y, groups, draw_weights(y, groups, draws=200, seed=3))
    assert (head.estimate, head.low, head.high) == (alone.value, alone.low, alone.high)
    assert head.estimate == pytest.approx(scores(p, y)[metric], rel=1e-9)
    assert (head.optimism, head.winner) == (0.0, 0)


@pytest.mark.parametrize("metric", METRICS)
def test_copies_of_one_candidate_are_no_reason_for_a_correction(metric: str) -> None:
    p, y = problem(200, 2, 10)
    head = corrected(metric, [p, p.copy(), p.copy()], y, np.arange(200), draws=300, seed=0)
    alone = estimate(metric, p, y, np.arange(200), draw_weights(y, np.arange(200), draws=300, seed=0))
    assert head.optimism == pytest.approx(0, abs=1e-6)
    assert head.high - head.low == pytest.approx(alone.high - alone.low, rel=0.25)


def test_a_loss_is_corrected_upwards() -> None:
    tables = [problem(150, 2, seed)[0] for seed in range(15)]
    y = np.arange(150) % 2
    tables = [
        np.where((y == 1)[:, None] == (np.arange(2) == 1), t.max(1)[:, None], t.min(1)[:, None])
        for t in tables
    ]
    head = corrected("log_loss", tables, y, np.arange(150), draws=200, seed=0)
    assert head.optimism > 0
    assert head.estimate == pytest.approx(scores(tables[head.winner], y)["log_loss"] + head.optimism)


def test_flawless_winners_keep_an_honest_interval() -> None:
    y = np.repeat([0, 1], 30)
    perfect = decided(y, np.ones(60, bool))
    head = corrected("macro_f1", [perfect, perfect * 0.5 + 0.25], y, np.arange(60), draws=50, seed=0)
    assert (head.estimate, head.high) == (1.0, 1.0)
    assert head.low == pytest.approx(0.94, abs=0.003)


def test_classes_of_one_group_leave_nothing_outside() -> None:
    y = np.array([0, 1])
    tables = [np.array([[0.9, 0.1], [0.4, 0.6]]), np.array([[0.2, 0.8], [0.4, 0.6]])]
    head = corrected("accuracy", tables, y, np.arange(2), draws=20, seed=0)
    assert (head.estimate, head.optimism) == (1.0, 0.0)
    assert head.low < 0.2


@given(st.integers(1, 200), st.data())
@settings(max_examples=40, deadline=None)
def test_intervals_of_shares_equal_scipy(n: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(0, n))
    for mine, method in ((wilson(k, n), "wilson"), (clopper_pearson(k, n), "exact")):
        reference = scipy.stats.binomtest(k, n).proportion_ci(0.95, method=method)
        assert mine == pytest.approx((reference.low, reference.high), abs=1e-9)


def test_a_share_of_nothing_can_be_anything() -> None:
    assert wilson(0, 0) == clopper_pearson(0, 0) == (0.0, 1.0)


def test_one_answer_for_every_image_is_not_certain() -> None:
    y = np.repeat([0, 1], [40, 6])
    groups = np.arange(46)
    draws = draw_weights(y, groups, draws=200, seed=0)
    always = np.eye(2, dtype=np.float32)[np.zeros(46, int)]
    for metric in ("macro_f1", "accuracy", "balanced_accuracy"):
        found = estimate(metric, always, y, groups, draws)
        assert found.low < found.value < found.high and found.low >= 0 and found.high <= 1


def test_what_decides_as_the_best_differs_from_it_by_what_was_not_seen() -> None:
    p, y = problem(60, 3, seed=0)
    draws = draw_weights(y, np.arange(60), draws=100, seed=0)
    bolder = p**2 / (p**2).sum(axis=1, keepdims=True)
    first, second = tied("macro_f1", [p, bolder], y, draws)
    assert (first.low, first.high) == (0, 0)
    assert second.estimate == 0 and second.low == -second.high < 0


def test_single_images_of_most_classes_are_too_few() -> None:
    one_each = np.arange(9)
    assert too_few(one_each, one_each)
    assert too_few(np.repeat(np.arange(9), 2), np.repeat(np.arange(9), 2))  # near-duplicates count once
    assert not too_few(np.repeat(np.arange(9), 2), np.arange(18))
    assert not too_few(np.array([0, 0, 0, 1, 2]), np.arange(5))
