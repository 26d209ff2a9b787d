"""Which frozen candidates are worth fine-tuning, how deep, and what the budget can pay of it.

In: the frozen trials and the seconds that fine-tuning may take. Out: a plan: `Option`s, the most promising first, for how
many epochs, and on how many folds the best of them is measured. The best by probe and the best by ImageNet accuracy are
always finalists (Renggli et al. 2022, arXiv 2010.06402), then the cheapest of those tied with the best, then the next
best. What an option costs is counted from the network's layers (`graft.backbones.effort`), never timed, so that two runs
plan alike. The plan is journalled, so that a killed study goes on with the same one.

Cost: building each finalist without weights, about half a second.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int64

from graft.backbones.catalogue import Entry
from graft.backbones.trunks import TrunkFile
from graft.compute import Compute
from graft.judging.uncertainty import draw_weights, paired
from graft.learning.inner import MOST_MEASURED
from graft.learning.ridge import fitting_seconds
from graft.store import content_key
from graft.studies.beside import of_the_better_framing, reads_as_usual
from graft.studies.choice import Limits
from graft.studies.frame import Frame, Trial, criterion
from graft.studies.recipe import Recipe

if TYPE_CHECKING:
    from graft.learning.tune_settings import TuneSettings
else:
    TuneSettings = Any

MOST = 4
MOST_SEEDS = 3  # of one recipe
STATISTICS_PASSES = 2  # over them: to take the statistics, and to read the features behind them
DRAWS = 400
NEAR = 0.03  # of the metric: with few images, networks are tied that are four points behind; two tuned stages gain more
REFIT = 1.3  # of a fold: the last fit on all images
OPENING = 2.0  # seconds to open and cut a network
QUARTERS = 4  # of the last maps, in what is read together
AROUND_A_FOLD = 0.5  # seconds beside its epochs and heads
HEADS = 3.0  # of a fold: to start from, to compare with, and two simpler ones for the statistics
PLAN = "tuning_plan.v4"
GAINED = 0.2  # of the errors of the best frozen candidate may go: MobileNetV2, two stages: drawings 0.19, 0.25, magnetic_tile 0.5
DIFFERENT = 0.6  # images that one of the two gets right and the other wrong, for each error of the frozen one
CLEAR = 2.8  # standard errors: four of five such gains are seen


# Of the images that a fold learns from, so many are kept back to find the best epoch: a seventh, and hardly more than this
# number. With 680 images of 51 classes (sketches), 5 % instead of 15 % brought accuracy from 0.52 to 0.55.
KEPT_BACK, LEAST_KEPT, MOST_KEPT = 80, 0.05, 0.15


def kept_share(images: int) -> float:
    """The share of `images` that is kept back from learning."""
    return round(min(MOST_KEPT, max(LEAST_KEPT, KEPT_BACK / max(images, 1))), 3)


@dataclass(frozen=True, slots=True)
class Level:
    """How thoroughly to tune: `epochs` over `views` kept views; the best option on `folds` folds (0: all of them)."""

    epochs: int
    views: int
    folds: int
    least: int  # so many options must be tried for the level to be worth it


# The first that the seconds pay. On magnetic_tile (mobilenetv1_025, last two stages, one fold) macro-F1 rose from 0.742
# frozen to 0.803 with 8 epochs and 0.846 with 16. Read together (`graft.backbones.together`), five epochs are nearly as good
# as ten: MobileNetV2, last two stages, drawings 0.730 and 0.739 with eight, magnetic_tile 0.951 and 0.955.
LEVELS = (
    Level(24, 4, 0, 3),
    Level(16, 4, 0, 2),
    Level(12, 3, 0, 2),
    Level(12, 3, 0, 1),
    Level(8, 2, 0, 1),
    Level(5, 2, 0, 1),
    Level(12, 3, 3, 1),
    Level(8, 2, 3, 1),
    Level(10, 2, 2, 1),
    Level(5, 2, 2, 1),
    Level(12, 3, 1, 1),
    Level(5, 2, 1, 1),
    Level(5, 1, 1, 1),
)


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds: per training image and epoch, per image to predict, per view behind the prefix (0: views are live), per
    training image, at most `MOST_MEASURED` of them, to measure batch-normalisation statistics (0: there are none), and for
    the closed-form heads of a fold."""

    training: float
    predicting: float
    view: float
    statistics: float = 0.0
    heads: float = 0.0


@dataclass(frozen=True, slots=True)
class Option:
    """A frozen trial, the depth to tune it at, the settings of that, and what it costs by the count of its layers.

    Each fold has a balance of its own instead of that of the settings (`graft.studies.balancing`). `shallow`: nothing but
    the last stage learns. `leading`: no other frozen network is surely better. `together`: the stages that its head reads
    together; with none it reads the trial's tap. `seed`: 0 for the first training of a fold, more for others of the same
    recipe.
    """

    trial: Trial
    cut: str
    settings: TuneSettings
    cost: Cost
    shallow: bool = False
    leading: bool = True
    together: tuple[str, ...] = ()
    seed: int = 0

    @property
    def recipe(self) -> Recipe:
        """`partial` above the input, `full` from there."""
        base = self.trial.recipe
        read = "+depths+quarters" if self.together else ""
        again = f", seed {self.seed + 1}" if self.seed else ""
        own = [*([list(self.together)] if self.together else []), *([self.seed] if self.seed else [])]
        return replace(
            base,
            name=f"{base.name}{read}+tuned:{self.cut or 'all'}{again}",
            strategy="partial" if self.cut else "full",
            cut=self.cut,
            settings=content_key("tune.v3", base.settings, asdict(self.settings), *own),
        )

    def fold_seconds(self, images: int, held_out: int, cost: Cost | None = None) -> float:
        """For one fold of `images` to learn from; by a measured `cost` where there is one."""
        cost = cost or self.cost
        check = images * self.settings.validation_share
        per_epoch = (images - check) * cost.training + check * cost.predicting
        measuring = min(images, MOST_MEASURED) * cost.statistics
        around = AROUND_A_FOLD + cost.heads + measuring
        return around + self.settings.epochs * per_epoch + held_out * cost.predicting

    def cache_seconds(self, images: int, cost: Cost | None = None) -> float:
        """To open the network, and for the views of all images behind its prefix."""
        views = 1 + self.settings.views if self.cut else 0
        return OPENING + images * views * (cost or self.cost).view


@dataclass(frozen=True, slots=True)
class TuningPlan:
    """What is tried on the first fold, in order; the best goes through `folds` folds."""

    options: tuple[Option, ...]
    folds: int
    left: tuple[Option, ...]


def finalists(
    frame: Frame, trials: Sequence[Trial], entries: dict[str, Entry]
) -> tuple[list[Trial], frozenset[str]]:
    """Frozen trials of at most four backbones, the best first; of the best one the last tap, too, if another is better.
    And the backbones that lead: that of the best, and those tied with it and hardly behind.

    What is poor at the last tap while frozen may be the best once it is tuned. Edges, or grey instead of colour, take part
    only where they are clearly better than the images as they are.
    """
    score = criterion(frame.settings.metric)
    draws = draw_weights(
        frame.targets, frame.dataset.groups[frame.rows], draws=DRAWS, seed=frame.settings.seed
    )
    value = {id(t): score(t.probabilities, frame.targets) for t in trials if t.complete}
    frozen = _worth_tuning(frame, trials, value, draws)
    if not frozen:
        return [], frozenset()
    best_tap: dict[str, Trial] = {}
    for trial in sorted(frozen, key=lambda t: -value[id(t)]):
        best_tap.setdefault(trial.recipe.backbone, trial)
    ranked = list(best_tap.values())
    best = ranked[0]
    prior = max(ranked, key=lambda t: _prior(entries.get(t.recipe.backbone)))
    tied = [t for t in ranked if t is best or _ties(frame, t, best, draws)]
    cheap = sorted(tied, key=lambda t: (t.model_bytes or 0, t.latency_ms or 0.0))
    chosen = list({id(t): t for t in (best, prior, *cheap, *ranked)}.values())[:MOST]
    listed = [t for t in ranked if any(t is one for one in chosen)]
    top = max(_same_network(frozen, best), key=lambda t: t.tap_index)
    leading = frozenset(t.recipe.backbone for t in tied if value[id(t)] >= value[id(best)] - NEAR)
    return listed if top is best else [*listed[:1], top, *listed[1:]], leading


def better_together(targets: Int64[np.ndarray, " m"], trials: Sequence[Trial]) -> frozenset[str]:
    """The backbones that are better read at several depths at once than at their best tap, frozen: lower log loss."""
    loss = criterion("log_loss")
    found: dict[str, dict[tuple[object, ...], float]] = {"frozen": {}, "depths": {}}
    for trial in trials:
        if trial.recipe.strategy in found and trial.complete:
            of_kind = found[trial.recipe.strategy]
            seen = trial.recipe.backbone, trial.recipe.geometry, trial.recipe.look
            of_kind[seen] = max(of_kind.get(seen, -np.inf), loss(trial.probabilities, targets))
    single, several = found["frozen"], found["depths"]
    return frozenset(str(seen[0]) for seen in several if several[seen] > single.get(seen, -np.inf))


def of_the_last_stage(trial: Trial, trunk: TrunkFile, frozen: Sequence[Trial]) -> Trial:
    """What is read together ends with the last stage, where the classifier's input is only a wider projection of it.

    MobileNetV2, last two stages and the last one, five epochs: accuracy 0.979 and 0.980 (magnetic_tile, three folds), 0.662 and
    0.662 (drawings of 101 classes, one fold), without and with the 1,280 channels that take a tenth and a fifth of the time.
    """
    from graft.backbones.taps import CLASSIFIER_INPUT

    if trial.recipe.tap != CLASSIFIER_INPUT or not trial.tap_index:
        return trial
    below, top = trunk.taps[trial.tap_index - 1], trunk.taps[trial.tap_index]
    same = _same_network(frozen, trial) if below.features < top.features else []
    return next((one for one in same if one.complete and one.recipe.tap == below.name), trial)


def _worth_tuning(
    frame: Frame, trials: Sequence[Trial], value: dict[int, float], draws: np.ndarray
) -> list[Trial]:
    """The frozen trials that see the images as they are, and those of other inputs that are clearly better; none on
    larger pictures, on which an epoch takes twice as long.

    Where some are within the limits, only those: what is tuned is as large and as slow as it was.
    """
    frozen = [t for t in trials if t.recipe.strategy == "frozen" and t.complete and t.model_bytes is not None]
    frozen = of_the_better_framing(frame.targets, [t for t in frozen if "enlarged" not in t.about])
    limits = Limits(frame.settings.max_bytes, frame.settings.max_latency_ms)
    frozen = [t for t in frozen if limits.excess(t) <= 1] or frozen
    usual = [t for t in frozen if reads_as_usual(frame, t)]
    if not usual:
        return frozen
    top = max(usual, key=lambda t: value[id(t)])
    better = [t for t in frozen if value[id(t)] > value[id(top)] and not _ties(frame, t, top, draws)]
    return [t for t in frozen if any(t is one for one in (*usual, *better))]


def _same_network(trials: Sequence[Trial], one: Trial) -> list[Trial]:
    return [
        t
        for t in trials
        if (t.recipe.backbone, t.recipe.geometry, t.recipe.look)
        == (one.recipe.backbone, one.recipe.geometry, one.recipe.look)
    ]


def _prior(entry: Entry | None) -> float:
    return entry.top1 if entry is not None and entry.top1 is not None else -1.0


def _ties(frame: Frame, one: Trial, best: Trial, draws: np.ndarray) -> bool:
    difference = paired(frame.settings.metric, one.probabilities, best.probabilities, frame.targets, draws)
    return difference.touches_zero


def cuts_below(names: Sequence[str], tap: str) -> list[str]:
    """Where to cut below a tap: so that the last two stages learn, everything (an empty name), the last stage."""
    from graft.backbones.taps import CLASSIFIER_INPUT

    stages = [name for name in names[: names.index(tap) + 1] if name != CLASSIFIER_INPUT]
    last = stages[-2:-4:-1]
    return [*last[1:], "", *last[:1]]


def options_of(
    found: Sequence[tuple[Trial, TrunkFile]],
    settings: TuneSettings,
    *,
    leading: frozenset[str],
    together: frozenset[str],
    learned: int,
    weightings: int,
    compute: Compute,
) -> list[Option]:
    """Every finalist at every depth: those of leading networks first, and of each kind the better finalist and the likelier
    depth, the last stages alone at the end.

    `leading`: the backbones that no other is surely better than, frozen. `together`: those whose stages are read together.
    `learned`: how many images a fold learns from; `weightings`: for how many of their classes a head is fitted.
    """
    from graft.backbones.effort import efforts, view_seconds
    from graft.backbones.together import stages_read

    ordered, seen = [], set[tuple[str, str]]()
    for rank, (trial, trunk) in enumerate(found):
        widths = {tap.name: tap.features for tap in trunk.taps}
        names = list(widths)
        size = trial.recipe.geometry.size
        until = efforts(trunk.entry, size=size, ends=names)
        top = until[trial.recipe.tap]
        view = view_seconds(size, compute)
        cuts = cuts_below(names, trial.recipe.tap)
        for depth, cut in enumerate(cuts):
            prefix = until[cut].forward_seconds(compute) if cut else 0.0
            tail = top.minus(until[cut]) if cut else top
            live = 0.0 if cut else view
            backbone, tap = trial.recipe.backbone, trial.recipe.tap
            read = stages_read(names, tap=tap, cut=cut) if backbone in together else ()
            if read and (backbone, cut) in seen:
                continue  # one tap more or less makes no difference to what is read together
            seen.add((backbone, cut))
            width = sum(widths[name] for name in read) + QUARTERS * max(
                (widths[name] for name in read), default=0
            )
            heads = fitting_seconds(
                learned, width or widths[tap], weightings=weightings, threads=compute.threads
            )
            cost = Cost(
                training=tail.training_seconds(compute) + live,
                predicting=tail.forward_seconds(compute),
                view=prefix + view if cut else 0.0,
                statistics=STATISTICS_PASSES * tail.forward_seconds(compute),
                heads=HEADS * heads,
            )
            shallow = bool(cut) and cut == cuts[-1]
            option = Option(
                trial, cut, replace(settings, cut=cut), cost, shallow, backbone in leading, tuple(read)
            )
            ordered.append((backbone not in leading, shallow, rank + depth, rank, option))
    return [option for *_, option in sorted(ordered, key=lambda row: row[:4])]


def planned(
    options: Sequence[Option], *, images: int, folds: int, seconds: float, errors: float, kept: float = 0.0
) -> TuningPlan:
    """The most thorough plan that the seconds pay: whichever option wins can be measured and fitted on all images, for which
    `kept` seconds more are there.

    First come plans with at least two stages of a leading network on every fold: to tune what is surely behind costs as
    much and gains less (drawings: a network 3.5 points behind gained 3, which made it the equal of the best frozen one).
    Then the same on some folds, if with the `errors` of the best frozen candidate (a share of the images) the gain to be
    expected would be clear on so few images. Then the last stage of a leading one on every fold, two stages of it on some
    folds, its last stage on some, two stages of another, then whatever is paid.
    """
    levels = [level for level in LEVELS if level.folds <= folds]
    whole = [level for level in levels if not level.folds]
    some = [level for level in levels if level.folds]
    clear = [level for level in levels if level.folds and _shows(errors, images * level.folds / folds)]

    def deep(picked: Sequence[Option]) -> bool:
        return any(not option.shallow for option in picked)

    def leading(picked: Sequence[Option]) -> bool:
        return any(option.leading for option in picked)

    def both(picked: Sequence[Option]) -> bool:
        return any(option.leading and not option.shallow for option in picked)

    for allowed, worth in (
        (whole, both),
        (clear, both),
        (whole, leading),
        (some, both),
        (some, leading),
        (whole, deep),
        (levels, bool),
    ):
        for level in allowed:
            picked = _paid(options, level, images=images, folds=folds, seconds=seconds, kept=kept)
            if picked and len(picked) >= min(level.least, len(options)) and worth(picked):
                taken = {(id(option.trial), option.cut) for option in picked}
                left = tuple(option for option in options if (id(option.trial), option.cut) not in taken)
                return TuningPlan(tuple(picked), level.folds or folds, left)
    return TuningPlan((), 0, tuple(options))


def _shows(errors: float, held_out: float) -> bool:
    """Whether the gain to be expected of tuning two stages would be clear on so many images, answered by both."""
    return GAINED * errors > CLEAR * math.sqrt(DIFFERENT * errors / held_out)


def _paid(
    options: Sequence[Option], level: Level, *, images: int, folds: int, seconds: float, kept: float
) -> list[Option]:
    """Of the options, in order, those that the seconds pay together at this level."""
    picked: list[Option] = []
    for option in options:
        views = level.views if option.cut else 0
        one = replace(option, settings=replace(option.settings, epochs=level.epochs, views=views))
        through = level.folds or folds
        if plan_seconds([*picked, one], images=images, folds=folds, through=through, kept=kept) <= seconds:
            picked.append(one)
    return picked


def plan_seconds(
    options: Sequence[Option], *, images: int, folds: int, through: int, kept: float = 0.0
) -> float:
    """Every option on one fold, the dearest on `through` folds in all, and what a last fit takes beyond `kept` seconds."""
    held_out = images // folds
    fold = [option.fold_seconds(images - held_out, held_out) for option in options]
    caches = sum(option.cache_seconds(images) for option in options)
    longest = max(fold, default=0.0)
    return sum(fold) + caches + longest * (through - 1) + max(0.0, REFIT * longest - kept)
