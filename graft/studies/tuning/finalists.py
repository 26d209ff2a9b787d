"""Which frozen candidates are worth fine-tuning.

In: the frozen trials. Out: `Finalists`, at most four networks. The best by probe and the best by ImageNet accuracy are
always among them (Renggli et al. 2022, arXiv 2010.06402), then the cheapest of those tied with the best, then the next best.

Cost: nothing is run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from graft.backbones.catalogue import Entry
from graft.backbones.trunks import TrunkFile
from graft.judging.uncertainty import draw_weights, paired
from graft.studies.beside import of_the_better_framing, reads_as_usual
from graft.studies.choice import Limits
from graft.studies.frame import Frame, Trial, criterion

MOST = 4
DRAWS = 400
NEAR = 0.03  # of the metric: with few images, networks are tied that are four points behind; two tuned stages gain more


@dataclass(frozen=True, slots=True)
class Finalists:
    """Frozen `trials`, the best first; the backbones that are `leading`: that of the best, and those tied with it and hardly
    behind; and the one that ImageNet accuracy speaks for (None without any trial)."""

    trials: tuple[Trial, ...]
    leading: frozenset[str]
    by_prior: str | None


def finalists(frame: Frame, trials: Sequence[Trial], entries: dict[str, Entry]) -> Finalists:
    """Of at most four backbones; of the best one the last tap, too, if another is better.

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
        return Finalists((), frozenset(), None)
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
    return Finalists(
        tuple(listed if top is best else [*listed[:1], top, *listed[1:]]), leading, prior.recipe.backbone
    )


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
