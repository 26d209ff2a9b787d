"""What may be fine-tuned, in which order, and what a budget pays of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from made_trials import incomplete, probabilities, targets, trial

from graft.backbones import catalogue
from graft.backbones.trunks import TapRow, TrunkFile
from graft.compute import Compute
from graft.images.dataset import Preprocess
from graft.learning.tune_settings import TuneSettings
from graft.studies.frame import Trial
from graft.studies.tuning import finalists
from graft.studies.tuning.options import Cost, Option, cuts_below, options_of
from graft.studies.tuning.plan import LEVELS, REFIT, kept_share, plan_seconds, planned


def test_a_network_is_read_together_where_that_is_better_frozen() -> None:
    one, other = trial("a/tap", probabilities(0.8, seed=1)), trial("b/tap", probabilities(0.8, seed=2))
    better = trial("a/tap+depths", probabilities(0.9, seed=3), strategy="depths")
    worse = trial("b/tap+depths", probabilities(0.7, seed=4), strategy="depths")
    assert finalists.better_together(targets(), [one, other, better, worse]) == {"a"}
    assert finalists.better_together(targets(), [one, other]) == frozenset()


@pytest.mark.parametrize(("top", "taken"), [(128, "below"), (64, "head")])
def test_what_is_read_together_leaves_a_wider_projection_out(top: int, taken: str) -> None:
    taps = (TapRow("first", 0, 16), TapRow("below", 1, 64), TapRow("head", 2, top))
    entry, geometry = catalogue.find("resnet18", None), Preprocess(32)
    trunk = TrunkFile("key", entry, geometry, "digest", "here", taps, False, "torch", None, "")

    def at(tap: TapRow) -> Trial:
        one = trial("a/tap", probabilities(0.8, seed=tap.index))
        return replace(one, recipe=replace(one.recipe, tap=tap.name), tap_index=tap.index, taps=3)

    frozen = [at(tap) for tap in taps]
    assert finalists.of_the_last_stage(frozen[2], trunk, frozen).recipe.tap == taken
    assert finalists.of_the_last_stage(frozen[1], trunk, frozen) is frozen[1]
    alone = finalists.of_the_last_stage(frozen[2], trunk, [incomplete(frozen[1]), frozen[2]])
    assert alone is frozen[2]


@pytest.mark.parametrize(
    ("tap", "cuts"),
    [
        ("head", ["s2", "", "s3"]),
        ("s4", ["s2", "", "s3"]),
        ("s2", ["", "s1"]),
        ("s1", [""]),
    ],
)
def test_depths_are_the_last_two_stages_everything_and_the_last_stage(tap: str, cuts: list[str]) -> None:
    assert cuts_below(["s1", "s2", "s3", "s4", "head"], tap) == cuts


def option(cut: str, seconds: float, *, frozen: str = "a") -> Option:
    """A made option whose images take so long."""
    cost = Cost(seconds, seconds / 3, 0.0 if not cut else seconds / 10)
    return Option(trial(frozen, probabilities(0.9, seed=1)), cut, TuneSettings(cut=cut), cost)


def test_the_plan_is_thorough_where_the_seconds_pay_it() -> None:
    options = [option("s2", 1e-3), option("", 4e-3), option("s3", 3e-4)]
    rich = planned(options, images=1_000, folds=5, seconds=3_600.0, errors=0.1)
    assert len(rich.options) == 3 and rich.folds == 5 and not rich.left
    assert rich.options[0].settings.epochs == LEVELS[0].epochs
    assert rich.options[1].settings.views == 0 and rich.options[0].settings.views > 0
    poor = planned(options, images=1_000, folds=5, seconds=60.0, errors=0.1)
    assert poor.options and poor.options[0].settings.epochs <= rich.options[0].settings.epochs
    assert {one.cut for one in (*poor.options, *poor.left)} == {"s2", "", "s3"}
    assert planned(options, images=1_000, folds=5, seconds=1.0, errors=0.1).options == ()


@pytest.mark.parametrize("seconds", [40.0, 80.0, 200.0, 500.0, 2_000.0])
def test_a_plan_never_promises_more_than_the_seconds(seconds: float) -> None:
    options = [option("s2", 1e-3), option("", 4e-3), option("s3", 3e-4)]
    plan = planned(options, images=1_000, folds=5, seconds=seconds, errors=0.1)
    assert plan_seconds(plan.options, images=1_000, folds=5, through=max(1, plan.folds)) <= seconds


def test_two_stages_of_the_cheaper_network_come_before_the_last_of_the_dearer() -> None:
    """Even where the last stage could be tuned for longer."""
    dear, cheap = option("s2", 1e-1), option("s2", 1e-2)
    last = replace(option("s3", 1e-3), shallow=True)
    short = replace(cheap, settings=replace(cheap.settings, epochs=8, views=2))
    seconds = 1.01 * plan_seconds([short], images=1_000, folds=5, through=5)
    first = planned([dear, cheap, last], images=1_000, folds=5, seconds=seconds, errors=0.1).options[0]
    assert (first.cost, first.settings.epochs) == (cheap.cost, 8)
    assert all(
        one.shallow
        for one in planned([dear, last], images=1_000, folds=5, seconds=seconds, errors=0.1).options
    )


def test_a_leading_network_comes_first_if_need_be_on_some_folds() -> None:
    """What is surely behind is tuned only where nothing of a leading network can be, on all folds or on some."""
    leads, behind = option("s2", 2e-2), replace(option("s2", 2e-3, frozen="b"), leading=False)
    last = replace(option("s3", 2e-3), shallow=True)
    five = replace(leads, settings=replace(leads.settings, epochs=5, views=2))
    seconds = 1.01 * plan_seconds([five], images=1_000, folds=5, through=2)
    plan = planned([leads, behind], images=1_000, folds=5, seconds=seconds, errors=0.1)
    assert (plan.folds, plan.options[0].cost) == (2, leads.cost)
    every = planned([leads, behind, last], images=1_000, folds=5, seconds=seconds, errors=0.1)
    assert every.folds == 5 and any(one.leading and one.shallow for one in every.options)
    least = planned([leads, behind], images=1_000, folds=5, seconds=seconds / 2, errors=0.1)
    assert least.folds == 5 and [one.leading for one in least.options] == [False]


def at_every_depth(names: tuple[str, ...], *, leading: set[str], by_prior: str | None) -> list[Option]:
    """The options of networks whose last tap is the best, in the order of `names`."""
    taps = tuple(TapRow(f"layer{number}", number - 1, 32 * 2**number) for number in range(1, 5))
    entry = catalogue.find("resnet18", None)
    trunk = TrunkFile("key", entry, Preprocess(32), "digest", "here", taps, False, "torch", None, "")

    def at_the_top(backbone: str) -> Trial:
        one = trial(f"{backbone}/layer4", probabilities(0.8, seed=1))
        return replace(one, recipe=replace(one.recipe, tap="layer4"), tap_index=3, taps=4)

    return options_of(
        [(at_the_top(name), trunk) for name in names],
        TuneSettings(),
        leading=frozenset(leading),
        by_prior=by_prior,
        together=frozenset(),
        learned=100,
        weightings=1,
        compute=Compute(device="cpu", threads=1, bf16=False),
    )


def test_every_depth_of_leading_networks_comes_before_any_of_the_others() -> None:
    """Of each kind the better network first, two stages and everything before the last stage alone."""
    options = at_every_depth(("best", "behind", "tied"), leading={"best", "tied"}, by_prior=None)
    assert [(one.trial.recipe.backbone, one.cut) for one in options] == [
        ("best", "layer2"),
        ("best", ""),
        ("tied", "layer2"),
        ("tied", ""),
        ("best", "layer3"),
        ("tied", "layer3"),
        ("behind", "layer2"),
        ("behind", ""),
        ("behind", "layer3"),
    ]
    assert [one.leading for one in options] == [True] * 6 + [False] * 3
    assert [one.shallow for one in options] == [False] * 4 + [True] * 2 + [False] * 2 + [True]


def test_a_last_fit_may_be_paid_by_what_is_kept_for_afterwards() -> None:
    leads = option("s2", 2e-2)
    fold = replace(leads, settings=replace(leads.settings, epochs=6, views=1))
    asked: dict[str, Any] = {"images": 1_000, "folds": 5, "through": 1}
    without, fit = (plan_seconds([fold], **asked, kept=kept) for kept in (1e6, 0.0))
    assert fit - without == pytest.approx(REFIT * fold.fold_seconds(800, 200))
    told = [
        planned([leads], images=1_000, folds=5, seconds=1.01 * without, errors=0.1, kept=kept)
        for kept in (fit - without, 0.0)
    ]
    assert [len(plan.options) for plan in told] == [1, 0]


def test_two_stages_on_some_folds_where_the_gain_would_be_clear_there() -> None:
    leads, last = option("s2", 2e-2), replace(option("s3", 2e-3), shallow=True)
    five = replace(leads, settings=replace(leads.settings, epochs=5, views=2))
    seconds = 1.01 * plan_seconds([five], images=2_000, folds=5, through=2)
    told = {
        errors: planned([leads, last], images=2_000, folds=5, seconds=seconds, errors=errors)
        for errors in (0.05, 0.4)
    }
    assert told[0.05].folds == 5 and all(one.shallow for one in told[0.05].options)
    assert told[0.4].folds == 2 and not told[0.4].options[0].shallow


@pytest.mark.parametrize(("images", "share"), [(1, 0.15), (300, 0.15), (800, 0.1), (10_000, 0.05)])
def test_of_few_images_a_seventh_is_kept_back_of_many_a_twentieth(images: int, share: float) -> None:
    assert kept_share(images) == share


def test_the_best_by_prior_comes_second() -> None:
    """After two stages of the best by probe, and before all else; its last stage after that of the best."""
    options = at_every_depth(("best", "tied", "behind", "prior"), leading={"best", "tied"}, by_prior="prior")
    assert [(one.trial.recipe.backbone, one.cut) for one in options[:4]] == [
        ("best", "layer2"),
        ("prior", "layer2"),
        ("best", ""),
        ("tied", "layer2"),
    ]
    assert [one.trial.recipe.backbone for one in options if one.shallow][:3] == ["best", "prior", "tied"]
    assert [one.by_prior for one in options[:4]] == [False, True, False, False]
    same = at_every_depth(("best", "tied"), leading={"best", "tied"}, by_prior="best")
    assert [one.cut for one in same if one.by_prior] == ["layer2", "", "layer3"]


def test_the_best_by_probe_and_the_best_by_prior_are_both_tuned() -> None:
    """With fewer epochs, and where the gain would be clear on some folds; their last stages where the seconds pay no more."""
    best, prior = (
        option("s2", 1e-2),
        replace(option("s2", 5e-3, frozen="prior"), leading=False, by_prior=True),
    )
    lasts = [replace(one, cut="s3", shallow=True, cost=Cost(1e-3, 3e-4, 1e-4)) for one in (best, prior)]
    asked: dict[str, Any] = {"images": 1_000, "folds": 5}

    def tried(seconds: float, errors: float) -> tuple[list[tuple[str, str]], int]:
        plan = planned([best, prior, *lasts], **asked, seconds=seconds, errors=errors)
        return [(one.trial.recipe.backbone, one.cut) for one in plan.options], plan.folds

    five = [replace(one, settings=replace(one.settings, epochs=5, views=2)) for one in (best, prior)]
    every = plan_seconds(five, **asked, through=5)
    both, folds = tried(1.01 * every, 0.05)
    assert folds == 5 and both[:2] == [("a", "s2"), ("prior", "s2")]
    some = 1.01 * plan_seconds(five, **asked, through=2)
    both, folds = tried(some, 0.6)
    assert folds == 2 and both[:2] == [("a", "s2"), ("prior", "s2")]
    last, folds = tried(some / 2, 0.05)
    assert folds == 5 and {("a", "s3"), ("prior", "s3")} <= set(last) and ("a", "s2") not in last


def test_a_prior_that_nothing_pays_does_not_hinder() -> None:
    best, prior = (
        option("s2", 1e-3),
        replace(option("s2", 10.0, frozen="prior"), leading=False, by_prior=True),
    )
    plan = planned([best, prior], images=1_000, folds=5, seconds=200.0, errors=0.1)
    assert [one.trial.recipe.backbone for one in plan.options] == ["a"] and plan.folds == 5


@pytest.mark.parametrize(("epochs", "errors", "folds"), [(8, 0.05, 5), (5, 0.6, 2)])
def test_both_come_before_more_epochs_or_folds_of_one(epochs: int, errors: float, folds: int) -> None:
    """What would pay the best alone, for longer or on every fold, pays both."""
    best = option("s2", 1e-2)
    prior = replace(option("s2", 1e-2, frozen="prior"), leading=False, by_prior=True)
    alone = replace(best, settings=replace(best.settings, epochs=epochs, views=2))
    seconds = 1.01 * plan_seconds([alone], images=1_000, folds=5, through=5)
    plan = planned([best, prior], images=1_000, folds=5, seconds=seconds, errors=errors)
    assert [one.trial.recipe.backbone for one in plan.options] == ["a", "prior"]
    assert plan.folds == folds and {one.settings.epochs for one in plan.options} == {5}


def test_the_last_stages_of_both_come_before_more_epochs_of_one() -> None:
    best = replace(option("s3", 1e-3), shallow=True)
    prior = replace(option("s3", 1e-3, frozen="prior"), shallow=True, leading=False, by_prior=True)
    alone = replace(best, settings=replace(best.settings, epochs=12, views=3))
    seconds = 1.01 * plan_seconds([alone], images=1_000, folds=5, through=5)
    dear = [replace(one, cut="s2", shallow=False, cost=Cost(1.0, 0.3, 0.1)) for one in (best, prior)]
    plan = planned([*dear, best, prior], images=1_000, folds=5, seconds=seconds, errors=0.05)
    assert [(one.trial.recipe.backbone, one.cut) for one in plan.options] == [("a", "s3"), ("prior", "s3")]
