"""The choice is the cheapest of the tied best within the limits, whatever the trials are."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from made_trials import CLASSES, chosen_from, incomplete, probabilities, targets, trial

from graft.judging.metrics import METRICS
from graft.judging.uncertainty import bootstrap
from graft.studies.choice import Limits, megabytes
from graft.studies.frame import Trial

GOOD, EQUAL, BAD = (probabilities(share, seed=i) for i, share in enumerate((0.95, 0.945, 0.7)))


def score(metric: str, one: Trial) -> float:
    """Higher is better."""
    whole = np.ones((1, len(one.probabilities)), np.float32)
    return METRICS[metric].sign * float(
        bootstrap(metric, one.probabilities, targets(len(one.probabilities)), whole)[0]
    )


def score_on(metric: str, one: Trial, rows: np.ndarray) -> float:
    whole = np.ones((1, int(rows.sum())), np.float32)
    wanted = targets(len(one.probabilities))[rows]
    return float(bootstrap(metric, one.probabilities[rows], wanted, whole)[0])


@pytest.mark.parametrize("metric", list(METRICS))
def test_the_cheapest_of_the_tied_is_chosen(metric: str) -> None:
    trials = [
        trial("large", GOOD, size=9_000_000),
        trial("small", EQUAL, size=2_000_000),
        trial("tiny", BAD, size=1_000),
    ]
    choice = chosen_from(trials, metric=metric)
    assert choice.best == max(range(3), key=lambda i: score(metric, trials[i]))
    assert choice.tied == (0, 1) and choice.chosen == 1
    assert not choice.is_tied(2) and not choice.missed
    difference = choice.differences[2]
    assert difference is not None and difference.high < 0


def test_runners_up_are_near_the_best() -> None:
    """The smallest and the fastest are named only if anybody might want them."""
    fair = trial("fair", probabilities(0.88, seed=5), size=5_000, latency=0.2)
    useless = trial("useless", BAD, size=1_000, latency=0.1)
    choice = chosen_from([trial("good", GOOD), fair, useless])
    assert choice.chosen == choice.best == 0 and not choice.is_tied(1)
    assert choice.smallest == choice.fastest == 1


def test_what_is_worse_for_sure_is_not_chosen_however_small_it_is() -> None:
    choice = chosen_from([trial("tiny", BAD, size=1), trial("large", GOOD, size=10**9)])
    assert choice.chosen == choice.best == 1 and choice.tied == (1,)


def test_of_equal_bytes_the_faster_one_then_the_better_one_then_the_first() -> None:
    rows = [trial("slow", GOOD, latency=2.0), trial("fast", EQUAL, latency=1.0)]
    assert chosen_from(rows).chosen == 1 and chosen_from(rows[::-1]).chosen == 0
    same = [trial("worse", EQUAL), trial("better", GOOD), trial("twin", GOOD)]
    assert chosen_from(same).chosen == 1
    assert chosen_from(same).fastest == 0


def test_limits_bind() -> None:
    trials = [trial("large", GOOD, size=9_000_000), trial("small", BAD, size=2_000_000, latency=7.0)]
    within = chosen_from(trials, limits=Limits(max_bytes=2_000_000))
    assert within.chosen == within.best == 1 and within.within == (False, True) and not within.missed
    assert within.eligible == (False, True) and within.tied == (1,)
    assert chosen_from(trials, limits=Limits(max_latency_ms=6.9)).chosen == 0
    above = within.differences[0]
    assert above is not None and above.low > 0  # what the limit costs is known


def test_if_nothing_meets_the_limits_the_nearest_is_offered_and_the_miss_is_named() -> None:
    trials = [
        trial("far", GOOD, size=9_000_000, latency=1.0),
        trial("near", EQUAL, size=3_000_000, latency=4.5),
        trial("untrained", BAD, size=1_500_000, latency=0.5, strategy="random"),
    ]
    choice = chosen_from(trials, limits=Limits(1_000_000, 3.0))
    assert choice.chosen == choice.best == 1 and choice.within == (False,) * 3
    assert choice.tied == (1,)
    assert choice.missed == (
        "Nothing meets the limits: the nearest candidate is near; --max-size 1.0 MB is missed by 2.0 MB and "
        "--max-latency 3 ms is missed by 1.5 ms."
    )
    only_size = chosen_from(trials, limits=Limits(max_bytes=2_999_500))
    assert only_size.missed.endswith("near; --max-size 3.0 MB is missed by 500 bytes.")


def test_an_unfinished_trial_is_chosen_only_where_it_is_better_for_sure_on_what_it_predicted() -> None:
    whole, unfinished = trial("whole", BAD, size=1), incomplete(trial("cut short", GOOD, size=9_000_000))
    choice = chosen_from([whole, unfinished, trial("other", BAD, size=2)])
    done = ~np.isnan(unfinished.probabilities).any(axis=1)
    assert choice.chosen == choice.best == 1 and (choice.rows == done).all() and not done.all()
    assert choice.scores[0] == pytest.approx(score_on("macro_f1", whole, done))
    worse = choice.differences[0]
    assert worse is not None and worse.high < 0
    level = chosen_from([trial("whole", GOOD, size=9_000_000), incomplete(trial("cut short", EQUAL, size=1))])
    assert level.chosen == 0 and level.rows.all() and level.scores[1] is None
    too_large = chosen_from([whole, unfinished], limits=Limits(max_bytes=10))
    assert too_large.chosen == 0 and too_large.rows.all()


def test_incomplete_and_unexportable_trials_are_never_chosen_but_compared() -> None:
    trials = [
        incomplete(trial("cut short", BAD, size=1)),
        trial("torch only", GOOD, size=None, latency=None),
        trial("whole", BAD, size=9_000_000),
    ]
    choice = chosen_from(trials)
    assert choice.chosen == choice.best == choice.smallest == choice.fastest == 2
    assert choice.scores[0] is None and choice.intervals[0] is None and choice.differences[0] is None
    better = choice.differences[1]
    assert better is not None and better.low > 0 and not choice.is_tied(1)
    assert not choice.missed
    assert choice.within == (True, False, True) and choice.eligible == (False, False, True)


def test_where_nothing_is_complete_the_finished_folds_decide() -> None:
    unfinished = incomplete(trial("cut short", GOOD))
    choice = chosen_from([unfinished])
    assert choice.chosen == 0 and 0 < choice.rows.sum() < len(choice.rows)
    assert choice.scores[0] == pytest.approx(score_on("macro_f1", unfinished, choice.rows))


def test_without_any_candidate_there_is_no_choice() -> None:
    with pytest.raises(ValueError, match="no complete trial"):
        chosen_from([incomplete(trial("a", GOOD)), trial("b", GOOD, size=None, latency=None)])


def test_untrained_features_are_handed_over_only_where_there_is_nothing_else() -> None:
    untrained = trial("untrained", GOOD, size=1, strategy="random")
    assert chosen_from([untrained, trial("learned", BAD)]).chosen == 1
    assert chosen_from([untrained]).chosen == 0


def test_what_is_tied_but_more_than_a_point_behind_is_not_chosen() -> None:
    """Sixty images cannot tell 0.95 from 0.90, and yet nobody wants to lose five points for bytes."""
    good, behind = (probabilities(share, seed=i, count=60) for i, share in enumerate((0.95, 0.9)))
    choice = chosen_from([trial("large", good, size=9_000_000), trial("tiny", behind, size=1)])
    difference = choice.differences[1]
    assert difference is not None and difference.touches_zero and difference.estimate < -0.01
    assert choice.chosen == 0 and choice.tied == (0,)


def test_of_about_equal_cost_the_better_one_is_chosen() -> None:
    """A latency is timed: a third of it is no reason."""
    rows = [trial("timed faster", EQUAL, size=1_000_000, latency=0.7), trial("better", GOOD, size=1_001_000)]
    assert chosen_from(rows).chosen == 1


def test_an_ensemble_is_chosen_only_where_it_is_better_for_sure() -> None:
    single = trial("single", EQUAL, size=1_000_000)
    assert chosen_from([single, trial("both", GOOD, size=2_000_000, strategy="ensemble")]).chosen == 0
    poor = trial("single", BAD, size=1_000_000)
    assert chosen_from([poor, trial("both", GOOD, size=2_000_000, strategy="ensemble")]).chosen == 1


@pytest.mark.parametrize(("gained", "chosen"), [(0.006, 0), (0.02, 1)])
def test_an_ensemble_is_not_chosen_for_less_than_a_point_however_sure(gained: float, chosen: int) -> None:
    """Of many images half a point is sure; it is not worth twice the bytes."""
    alone, both = (probabilities(share, seed=1, count=3_000) for share in (0.9, 0.9 + gained))
    single = trial("single", alone, size=1_000_000)
    choice = chosen_from([single, trial("both", both, size=2_000_000, strategy="ensemble")])
    sure = choice.differences[1 - chosen]
    assert sure is not None and not sure.touches_zero
    assert choice.chosen == chosen


def test_a_single_candidate_keeps_its_score() -> None:
    choice = chosen_from([trial("alone", GOOD)])
    assert choice.chosen == choice.best == choice.smallest == choice.fastest == 0
    assert choice.headline.value == choice.scores[0] and choice.optimism == 0.0
    interval = choice.intervals[0]
    assert interval is not None
    assert (choice.headline.low, choice.headline.high) == pytest.approx((interval.low, interval.high))


def test_flawless_candidates() -> None:
    rows = probabilities(1.0, seed=1, count=60)
    choice = chosen_from([trial("a", rows, size=2), trial("b", rows, size=1)], metric="accuracy")
    assert choice.chosen == 1 and choice.headline.value == 1.0 and choice.headline.low < 1.0


CANDIDATES = st.lists(
    st.tuples(
        st.floats(0.4, 1.0),  # accuracy
        st.integers(1, 5),  # megabytes
        st.integers(1, 4),  # milliseconds
        st.booleans(),  # complete
        st.sampled_from(["frozen", "scratch", "random"]),
        st.floats(0.5, 6),  # sharpness
    ),
    min_size=1,
    max_size=6,
)


@settings(max_examples=40, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(
    candidates=CANDIDATES,
    metric=st.sampled_from(list(METRICS)),
    most=st.none() | st.integers(1, 4),
    slowest=st.none() | st.integers(1, 3),
)
def test_what_holds_for_all_trials(
    candidates: list[tuple], metric: str, most: int | None, slowest: int | None
) -> None:
    trials = []
    for i, (accuracy, size, latency, complete, strategy, sharpness) in enumerate(candidates):
        rows = probabilities(accuracy, seed=i, count=60, sharpness=sharpness)
        one = trial(f"t{i}", rows, size=size * 10**6, latency=float(latency), strategy=strategy)
        trials.append(one if complete or i == 0 else incomplete(one))
    limits = Limits(most * 10**6 if most else None, float(slowest) if slowest else None)
    choice = chosen_from(trials, metric=metric, limits=limits)
    assert choice == chosen_from(trials, metric=metric, limits=limits)
    chosen, sign = trials[choice.chosen], METRICS[metric].sign
    assert chosen.complete or (choice.scores[choice.chosen] is not None and not choice.rows.all())
    assert choice.is_tied(choice.chosen) and choice.is_tied(choice.best)
    for i in choice.tied:
        assert (chosen.model_bytes, chosen.latency_ms) <= (trials[i].model_bytes, trials[i].latency_ms)
        own, best = choice.scores[i], choice.scores[choice.best]
        assert own is not None and best is not None and sign * own <= sign * best
    # The promise is never better than what the choice itself scored.
    own = choice.scores[choice.chosen]
    assert own is not None and sign * choice.headline.value <= sign * own + 1e-12
    assert choice.headline.low <= choice.headline.value <= choice.headline.high
    assert choice.optimism >= 0
    learned = [one for one in trials if one.complete and one.recipe.strategy != "random"]
    if any(limits.excess(one) <= 1 for one in learned):
        assert choice.within[choice.chosen] and not choice.missed
    if chosen.recipe.strategy == "random":
        assert not learned
    assert bool(choice.missed) == (limits.excess(chosen) > 1)


def test_how_far_over_the_limits() -> None:
    one = trial("a", GOOD, size=3_000_000, latency=2.0)
    assert Limits().excess(one) == 0
    assert Limits(2_000_000, 4.0).excess(one) == 1.5
    assert Limits(6_000_000, 1.0).excess(one) == 2.0
    assert math.isinf(Limits().excess(trial("b", GOOD, size=None, latency=None)))


@pytest.mark.parametrize(
    ("size", "text"), [(90, "90 bytes"), (999, "999 bytes"), (412_300, "412 kB"), (8_900_000, "8.9 MB")]
)
def test_bytes_for_people(size: int, text: str) -> None:
    assert megabytes(size) == text


def test_single_images_of_each_class_are_no_reason_to_choose_what_was_not_finished() -> None:
    """Every draw holds each of them once: the interval has no width, however few they are."""
    whole = trial("whole/t", probabilities(0.5, seed=0))
    few = np.full_like(whole.probabilities, np.nan)
    few[:CLASSES] = probabilities(1.0, seed=1)[:CLASSES]
    found = chosen_from(
        [whole, replace(whole, recipe=replace(whole.recipe, name="few/t"), probabilities=few)]
    )
    assert found.chosen == 0 and found.rows.all()
