"""What may be fine-tuned: a finalist at a depth, with its settings and what it costs.

In: the finalists. Out: `Option`s, the most promising first. What one costs is counted from the network's layers
(`graft.backbones.effort`), never timed, so that two runs plan alike.

Cost: building each finalist without weights, about half a second.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from graft.backbones.trunks import TrunkFile
from graft.compute import Compute
from graft.learning.inner import MOST_MEASURED
from graft.learning.ridge import fitting_seconds
from graft.store import content_key
from graft.studies.frame import Trial
from graft.studies.recipe import Recipe

if TYPE_CHECKING:
    from graft.learning.tune_settings import TuneSettings
else:
    TuneSettings = Any

MOST_SEEDS = 3  # of one recipe
STATISTICS_PASSES = 2  # over them: to take the statistics, and to read the features behind them
OPENING = 2.0  # seconds to open and cut a network
QUARTERS = 4  # of the last maps, in what is read together
AROUND_A_FOLD = 0.5  # seconds beside its epochs and heads
HEADS = 3.0  # of a fold: to start from, to compare with, and two simpler ones for the statistics
SECOND = 0.5  # the rank of the best by ImageNet accuracy: after the best by probe, before all others


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
    the last stage learns. `leading`: no other frozen network is surely better. `by_prior`: of the network that
    ImageNet accuracy speaks for. `together`: the stages that its head reads
    together; with none it reads the trial's tap. `seed`: 0 for the first training of a fold, more for others of the same
    recipe.
    """

    trial: Trial
    cut: str
    settings: TuneSettings
    cost: Cost
    shallow: bool = False
    leading: bool = True
    by_prior: bool = False
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
    by_prior: str | None,
    together: frozenset[str],
    learned: int,
    weightings: int,
    compute: Compute,
) -> list[Option]:
    """Every finalist at every depth: those of leading networks and of the one `by_prior` first, and of each kind the better
    finalist and the likelier depth, the last stages alone at the end.

    The one by prior comes second: the best while frozen need not be the best once tuned (drawings in false colours, two
    stages, accuracy: MobileNetV1 0.357 and 0.342, MobileNetV2 0.328 and 0.445).

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
                trial,
                cut,
                replace(settings, cut=cut),
                cost,
                shallow,
                leading=backbone in leading,
                by_prior=backbone == by_prior,
                together=tuple(read),
            )
            place = min(rank, SECOND) if option.by_prior else rank
            first = option.leading or option.by_prior
            ordered.append((not first, shallow, place + depth, rank, option))
    return [option for *_, option in sorted(ordered, key=lambda row: row[:4])]
