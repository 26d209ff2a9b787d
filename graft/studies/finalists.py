"""Which frozen candidates are worth fine-tuning, how deep, and what the budget can pay of it.

In: the frozen trials and the seconds that are left. Out: `Option`s, the most promising first, each with what it is
predicted to take from a few calibration steps, and a plan: which of them are tried on the first fold, for how many
epochs. The best by probe and the best by ImageNet accuracy are always finalists (Renggli et al. 2022, arXiv 2010.06402),
then the cheapest of those tied with the best, then the next best. The plan is journalled, so that a killed study goes on with the same one.

Cost: opening each network at each depth (about 2 s) and three training steps.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from graft.backbones.catalogue import Entry
from graft.backbones.taps import CLASSIFIER_INPUT
from graft.backbones.trunks import TrunkFile
from graft.judging.uncertainty import draw_weights, paired
from graft.store import content_key
from graft.studies.frame import Event, Frame, Trial, criterion
from graft.studies.recipe import Recipe

if TYPE_CHECKING:
    from graft.learning.cutting import Cut
    from graft.learning.finetune import TuneSettings
else:
    Cut = TuneSettings = Any

MOST = 4
DRAWS = 400
REFIT = 1.4  # of a fold: the last fit on all images, with packing
# Epochs and cached views; the first that pays two options is taken. On magnetic_tile 12 epochs over one view of each
# image were as good as 16 over four.
TRIED = ((16, 4), (12, 4), (12, 1), (8, 1), (5, 1))
CALIBRATION_STEPS = 2
SLOWEST = 25e9  # forward multiply-adds per second that training surely stays below, unless on a card
PLAN = "tuning_plan"


@dataclass(frozen=True, slots=True)
class Forecast:
    """Seconds per training image and epoch, per view behind the prefix (0 without one), and per image to predict."""

    training: float
    view: float
    predicting: float


@dataclass(frozen=True, slots=True)
class Option:
    """A frozen trial, the depth to tune it at, and the settings of that."""

    trial: Trial
    cut: str
    settings: TuneSettings
    forecast: Forecast | None = None

    @property
    def recipe(self) -> Recipe:
        """`partial` above the input, `full` from there."""
        base = self.trial.recipe
        return replace(
            base,
            name=f"{base.name}+tuned:{self.cut or 'all'}",
            strategy="partial" if self.cut else "full",
            cut=self.cut,
            settings=content_key("tune.v1", base.settings, asdict(self.settings)),
        )

    def fold_seconds(self, images: int, held_out: int) -> float:
        """Predicted for one fold of `images` to learn from."""
        assert self.forecast is not None
        learn = images * (1 - self.settings.validation_share)
        check = images - learn
        per_epoch = learn * self.forecast.training + check * self.forecast.predicting
        return self.settings.epochs * per_epoch + held_out * self.forecast.predicting

    def cache_seconds(self, images: int) -> float:
        """Predicted for the views of all images behind the prefix."""
        assert self.forecast is not None
        return images * (1 + self.settings.views) * self.forecast.view if self.settings.views else 0.0


@dataclass(slots=True)
class TuningPlan:
    """What is tried, in order, with the rows that `study.json` tells about all that was considered."""

    options: list[Option] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)


def finalists(frame: Frame, trials: Sequence[Trial], entries: dict[str, Entry]) -> list[Trial]:
    """Frozen trials of at most four backbones, the best first; of the best one the last tap, too, if another is better.

    What is poor at the last tap while frozen may be the best once it is tuned.
    """
    score = criterion(frame.settings.metric)
    frozen = [t for t in trials if t.recipe.strategy == "frozen" and t.complete and t.model_bytes is not None]
    if not frozen:
        return []
    value = {id(trial): score(trial.probabilities, frame.targets) for trial in frozen}
    best_tap: dict[str, Trial] = {}
    for trial in sorted(frozen, key=lambda t: -value[id(t)]):
        best_tap.setdefault(trial.recipe.backbone, trial)
    ranked = list(best_tap.values())
    best = ranked[0]
    prior = max(ranked, key=lambda t: _prior(entries.get(t.recipe.backbone)))
    draws = draw_weights(
        frame.targets, frame.dataset.groups[frame.rows], draws=DRAWS, seed=frame.settings.seed
    )
    tied = [t for t in ranked if t is best or _ties(frame, t, best, draws)]
    cheap = sorted(tied, key=lambda t: (t.model_bytes or 0, t.latency_ms or 0.0))
    chosen = list({id(t): t for t in (best, prior, *cheap, *ranked)}.values())[:MOST]
    listed = [t for t in ranked if any(t is one for one in chosen)]
    top = max(_same_network(frozen, best), key=lambda t: t.tap_index)
    return listed if top is best else [*listed[:1], top, *listed[1:]]


def _same_network(trials: Sequence[Trial], one: Trial) -> list[Trial]:
    return [
        t
        for t in trials
        if t.recipe.backbone == one.recipe.backbone and t.recipe.geometry == one.recipe.geometry
    ]


def _prior(entry: Entry | None) -> float:
    return entry.top1 if entry is not None and entry.top1 is not None else -1.0


def _ties(frame: Frame, one: Trial, best: Trial, draws: np.ndarray) -> bool:
    difference = paired(frame.settings.metric, one.probabilities, best.probabilities, frame.targets, draws)
    return difference.touches_zero


def cuts_below(names: Sequence[str], tap: str) -> list[str]:
    """Where to cut below a tap: so that the last stage learns, the last two, everything (an empty name)."""
    stages = [name for name in names[: names.index(tap) + 1] if name != CLASSIFIER_INPUT]
    return [*stages[-2:-4:-1], ""]


def options_of(found: Sequence[tuple[Trial, TrunkFile]], settings: TuneSettings) -> list[Option]:
    """Every finalist at every depth: the better finalist and the cheaper depth first."""
    ordered = [
        (rank + depth, rank, Option(trial, cut, replace(settings, cut=cut)))
        for rank, (trial, trunk) in enumerate(found)
        for depth, cut in enumerate(cuts_below([tap.name for tap in trunk.taps], trial.recipe.tap))
    ]
    return [option for _, _, option in sorted(ordered, key=lambda row: row[:2])]


def hopeless(frame: Frame, option: Option, entry: Entry, seconds: float) -> bool:
    """Whether a single fold of the shortest training would surely not fit, by the network's size alone."""
    if frame.compute.device != "cpu" or option.cut or not entry.gmacs:
        return False
    epochs = TRIED[-1][0]
    return epochs * len(frame.rows) * entry.gmacs * 1e9 * frame.folds.count / SLOWEST > seconds


def calibrated(frame: Frame, option: Option, cutting: Cut, pixels: np.ndarray, features: int) -> Forecast:
    """A few steps of training, of the prefix and of predicting, timed."""
    import torch

    from graft.images.views import suited
    from graft.learning.finetune import rates_of
    from graft.learning.loop import threads
    from graft.learning.prefix import LiveViews
    from graft.learning.ridge import RidgeHead
    from graft.learning.tuner import Tuner

    rows = frame.rows[: option.settings.batch_size]
    zeros = np.zeros((features, frame.classes), np.float32)
    head = RidgeHead(zeros, zeros[0].copy(), 0.0, 0.0, 1.0)
    with threads(frame.compute):
        tuner = Tuner(cutting, head, rates_of(option.settings), frame.compute, statistics=False)
        source = LiveViews(pixels, suited(pixels, frame.dataset.targets, rows), cutting, frame.compute)
        labels = torch.from_numpy(frame.dataset.targets[rows]).to(frame.compute.device)

        def views() -> torch.Tensor:
            return source.training(rows, torch.Generator().manual_seed(0))

        maps = views()

        def step(maps: torch.Tensor) -> None:
            tuner.learn(torch.nn.functional.cross_entropy(tuner.logits(maps), labels), total=100)

        step(maps)
        begun = time.monotonic()
        views()
        viewed = time.monotonic() - begun
        begun = time.monotonic()
        for _ in range(CALIBRATION_STEPS):
            step(maps)
        stepped = (time.monotonic() - begun) / CALIBRATION_STEPS
        begun = time.monotonic()
        float(tuner.answers(maps).sum())
        answered = time.monotonic() - begun
    cached = cutting.prefix is not None and option.settings.views > 0
    live = 0.0 if cached else viewed
    per = 1 / len(rows)
    return Forecast((stepped + live) * per, viewed * per if cached else 0.0, (answered + live / 2) * per)


def affordable(frame: Frame, options: Sequence[Option], seconds: float) -> list[Option]:
    """The options to try on the first fold: whichever of them wins can be finished on all folds and fitted again."""
    best: list[Option] = []
    for epochs, views in TRIED:
        picked: list[Option] = []
        for option in options:
            live = option.forecast is not None and option.forecast.view == 0.0
            shorter = replace(option.settings, epochs=epochs, views=0 if live else views)
            one = replace(option, settings=shorter)
            if cost_of(frame, [*picked, one]) <= seconds:
                picked.append(one)
        best = picked if len(picked) > len(best) else best
        if len(best) >= min(2, len(options)):
            break
    return best


def cost_of(frame: Frame, options: Sequence[Option]) -> float:
    """Predicted seconds: every option on one fold, the dearest on all, and a last fit."""
    learned, held_out = len(frame.learned_from(0)), len(frame.held_out(0))
    folds = [option.fold_seconds(learned, held_out) for option in options]
    caches = [option.cache_seconds(len(frame.dataset)) for option in options]
    return sum(folds) + sum(caches) + max(folds, default=0.0) * (frame.folds.count - 1 + REFIT)


def told(frame: Frame, plan: TuningPlan) -> Generator[Event, None, None]:
    """The plan in words."""
    for option in plan.options:
        seconds = option.fold_seconds(len(frame.learned_from(0)), len(frame.held_out(0)))
        views = option.cache_seconds(len(frame.dataset))
        cached = f", after {views:.0f} s for {option.settings.views} views of each image" if views else ""
        yield Event(
            "notice",
            f"Plan: {option.recipe.name}, {option.settings.epochs} epochs, {seconds:.0f} s per fold{cached}.",
        )
