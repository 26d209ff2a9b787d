"""Every sentence that a study may say about its choice, with the right numbers in it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from made_trials import chosen_from, incomplete, probabilities, trial

from graft.judging.uncertainty import Difference
from graft.studies.choice import Limits
from graft.studies.words import reason, runner_up_reason, scratch_sentence

GOOD, EQUAL, BAD = (probabilities(share, seed=i) for i, share in enumerate((0.95, 0.945, 0.7)))
LARGE = trial("large/last", GOOD, size=9_000_000, latency=4.0)
SMALL = trial("small/last", EQUAL, size=412_000, latency=0.5)
WORSE = trial("tiny/last", BAD, size=1_000)
SCRATCH = trial("small_cnn/scratch", BAD, size=1_200_000, strategy="scratch")


class TestReason:
    def test_tied_with_the_best(self) -> None:
        trials = [LARGE, SMALL, WORSE]
        choice = chosen_from(trials)
        text = reason(trials, choice, metric="macro_f1")
        score, best, difference = choice.scores[1], choice.scores[0], choice.differences[1]
        assert score is not None and best is not None and difference is not None
        assert text == (
            f"small/last (412 kB, 0.5 ms) scores {100 * score:.1f} % macro-F1 and is statistically tied with the "
            f"best, large/last (9.0 MB, {100 * best:.1f} %): the difference is {100 * difference.estimate:+.1f} "
            f"points, 95 % interval {100 * difference.low:+.1f} points to {100 * difference.high:+.1f} points. "
            "It is the cheapest of 2 tied candidates."
        )

    def test_better_than_a_tied_one_that_costs_a_little_less(self) -> None:
        a_little_less = replace(
            LARGE, model_bytes=390_000, latency_ms=0.5, probabilities=probabilities(0.941, seed=1)
        )
        trials = [LARGE, SMALL, a_little_less]
        choice = chosen_from(trials)
        assert choice.chosen == 1 and 2 in choice.tied
        assert reason(trials, choice, metric="macro_f1").endswith(
            "Of 3 tied candidates it is the best of those that cost hardly more than the cheapest."
        )

    def test_the_best_alone(self) -> None:
        trials = [LARGE, WORSE]
        text = reason(trials, chosen_from(trials), metric="accuracy")
        assert text.endswith("% accuracy, the best out-of-fold score.")

    def test_the_best_and_one_or_more_that_are_tied_but_larger(self) -> None:
        trials = [replace(LARGE, model_bytes=1_000), SMALL, WORSE]
        assert reason(trials, chosen_from(trials), metric="macro_f1").endswith(
            "the best out-of-fold score; the only one tied with it is not cheaper."
        )
        trials.append(trial("third/last", EQUAL, size=10**7))
        assert reason(trials, chosen_from(trials), metric="macro_f1").endswith(
            "the best out-of-fold score; none of the 2 others that are tied with it is cheaper."
        )

    def test_a_loss_is_told_as_a_number_not_in_percent(self) -> None:
        trials = [LARGE, SMALL]
        text = reason(trials, chosen_from(trials, metric="log_loss"), metric="log_loss")
        assert "log loss" in text and "points" not in text

    @pytest.mark.parametrize(
        ("most", "of"), [(2_000, " within the limits"), (10, " of those nearest to the limits")]
    )
    def test_the_best_of_those_that_a_limit_allows(self, most: int, of: str) -> None:
        trials = [LARGE, replace(WORSE, model_bytes=1_000)]
        text = reason(trials, chosen_from(trials, limits=Limits(max_bytes=most)), metric="macro_f1")
        assert WORSE.recipe.name in text and text.endswith(f"the best out-of-fold score{of}.")

    def test_nothing_meets_the_limits(self) -> None:
        trials = [LARGE, SMALL]
        choice = chosen_from(trials, limits=Limits(max_bytes=400_000))
        text = reason(trials, choice, metric="macro_f1")
        assert text.startswith(
            "Nothing meets the limits: the nearest candidate is small/last; --max-size 400 kB"
        )
        assert "missed by 12 kB. small/last (412 kB" in text and "0 tied" not in text


def test_runners_up() -> None:
    trials = [LARGE, SMALL]
    choice = chosen_from(trials)
    said = [
        runner_up_reason(kind, trials, choice, place, metric="macro_f1")
        for kind, place in (("most_accurate", 0), ("smallest", 1), ("fastest", 1))  # type: ignore[arg-type]
    ]
    assert said[0].startswith("the best macro-F1, ") and said[0].endswith(" %")
    assert said[1].startswith("of those near the best the smallest, 412 kB, macro-F1 ")
    assert said[2].startswith("of those near the best the fastest, 0.5 ms, macro-F1 ")


class TestScratchAgainstTransfer:
    AHEAD = Difference(0.25, 0.2, 0.31)

    def say(self, difference: Difference | None, metric: str = "macro_f1", scratch: object = SCRATCH) -> str:
        return scratch_sentence(LARGE, scratch, difference, metric=metric, only=None)  # type: ignore[arg-type]

    def test_transfer_wins(self) -> None:
        assert self.say(self.AHEAD) == (
            "Transfer beats training from scratch by 25.0 points of macro-F1 (95 % interval of the advantage of "
            "transfer: +20.0 points to +31.0 points) on the same folds (large/last against the small CNN)."
        )

    def test_scratch_wins(self) -> None:
        text = self.say(Difference(-0.25, -0.31, -0.2))
        assert text.startswith("Training from scratch beats transfer by 25.0 points of macro-F1 (95 %")
        assert "-31.0 points to -20.0 points" in text

    @pytest.mark.parametrize("low_high", [(-0.01, 0.03), (0.0, 0.03), (-0.01, 0.0)])
    def test_they_cannot_be_told_apart(self, low_high: tuple[float, float]) -> None:
        text = self.say(Difference(0.0, *low_high))
        assert text.startswith(
            "Transfer and training from scratch cannot be told apart: they differ by 0.0 points"
        )

    def test_a_loss_has_the_same_direction(self) -> None:
        """A difference is positive where transfer is better, also where less is better."""
        assert self.say(Difference(0.2, 0.1, 0.3), "log_loss").startswith(
            "Transfer beats training from scratch by 0.200 of log loss (95 % interval of the advantage of transfer: "
            "+0.100 to +0.300)"
        )

    def test_from_too_few_images_nothing_is_judged(self) -> None:
        text = scratch_sentence(
            LARGE, incomplete(SCRATCH), Difference(0.609, 0.609, 0.609), metric="macro_f1", only=None, few=30
        )
        assert text.startswith(
            "Whether transfer or training from scratch is better cannot be judged from so few images: on the 30 that both "
            "predicted, most of them the only one of their class, transfer is 60.9 points of macro-F1 ahead of training"
        )
        assert "interval" not in text and "beats" not in text

    def test_stopped_by_hand(self) -> None:
        hand = "The study was stopped by hand"
        text = scratch_sentence(
            LARGE, incomplete(SCRATCH), self.AHEAD, metric="macro_f1", only=None, ended=hand
        )
        assert f"{hand} before every fold" in text and "budget" not in text
        text = scratch_sentence(LARGE, None, None, metric="macro_f1", only=None, ended=hand)
        assert text.endswith("(the study was stopped by hand before it).")

    def test_cut_short_by_the_budget(self) -> None:
        assert self.say(self.AHEAD, scratch=incomplete(SCRATCH)).endswith("only finished folds are compared.")
        hurried = replace(SCRATCH, curves=({"stopped": "patience"}, {"stopped": "deadline"}))
        assert self.say(self.AHEAD, scratch=hurried).endswith("with more time it may do better.")
        calm = replace(SCRATCH, curves=({"stopped": "patience"},))
        assert self.say(self.AHEAD, scratch=calm).endswith("(large/last against the small CNN).")

    @pytest.mark.parametrize(
        ("transfer", "scratch", "only", "told"),
        [
            (LARGE, None, "frozen", "was not measured: no network was trained from scratch (--only frozen)."),
            (
                LARGE,
                None,
                None,
                "was not measured: no network was trained from scratch (the budget ended before it).",
            ),
            (None, SCRATCH, "scratch", "could not be compared: nothing was transferred (--only scratch)."),
            (
                None,
                SCRATCH,
                None,
                "could not be compared: nothing was transferred (no pre-trained weights could be had).",
            ),
        ],
    )
    def test_one_of_the_two_is_missing(
        self, transfer: object, scratch: object, only: str | None, told: str
    ) -> None:
        text = scratch_sentence(transfer, scratch, None, metric="macro_f1", only=only)  # type: ignore[arg-type]
        assert text == f"From scratch against transfer {told}"
