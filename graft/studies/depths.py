"""A rung of the study: the best frozen networks read at several depths at once, and by quarters of the picture.

In: the frozen trials. Out: up to two trials more for each of at most `MOST` networks (`strategy` "depths"): average and
maximum of the maps at up to four depths, and the same with the averages of the four quarters of the deepest maps
(`graft.deploy.reading`). They cost the network's own forward pass and a longer head. A head sees at once what one tap
after the other showed the probe: the fine texture of the lower stages and the things of the upper ones (Head2Toe, Evci
et al. 2022, arXiv 2201.03529), and where in the picture they are (spatial pyramids, Lazebnik et al. 2006).

Macro-F1 out of fold, the best tap of the best network against both readings of it (a score of the best of eight
networks in brackets): magnetic_tile 0.930, 0.947, 0.945 (0.950); drawings of 51 classes 0.618, 0.629, 0.655 (0.663);
caltech101 0.887, 0.903, 0.920; dogs_vs_cats 0.983, 0.986, 0.985; hymenoptera 0.975, 0.957, 0.960 (0.972).

Cost: opening the graph, one pass, and two heads per fold, which grow with the square of the number of images. The best
network is read where that is predicted to take at most `FIRST` of the budget, the next ones as far as all of them take
at most `SHARE`. The prediction is made of counts, not of a clock, so that two studies decide alike, and is journalled;
it is an upper bound (2.7 s where 0.8 s were measured, 4.2 s for 2.4 s, 5.1 s for 1.8 s, on two cores).

Not covered: networks whose maps are no `[n, c, y, x]` (transformers), those with most weights behind the last maps (VGG,
AlexNet; `graft.studies.shrinking` reads them, cut there), and other inputs than the best one's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Float32

from graft.backbones.catalogue import find
from graft.backbones.weights import shelf
from graft.deploy.reading import waists, weights_of
from graft.errors import BundleError
from graft.judging.metrics import METRICS
from graft.judging.uncertainty import draw_weights, paired
from graft.learning import ridge
from graft.studies.beside import activations_of, of_the_better_framing
from graft.studies.board import board
from graft.studies.frame import Event, Frame, Trial, budget_of, criterion
from graft.studies.inputs import UNKNOWN_GMACS, forward_speed
from graft.studies.recipe import Strategy
from graft.studies.rungs import Progress, Working, tell
from graft.studies.shrinking.measuring import measuring
from graft.studies.shrinking.networks import prepared_trunk
from graft.studies.shrinking.pooled import float_rows
from graft.studies.shrinking.variants import Variant, variant_of

MOST = 4  # networks
FIRST = 0.3  # of the budget, for the best one: nothing else gains as much in its time
SHARE = 0.15  # for all of them together, beyond the best one
KEPT = 0.45  # of the budget is left to what follows
BEHIND = 0.1  # in accuracy, and a network is not read: no more than 0.07 were ever gained by it
MOST_WEIGHTS = 0.5  # of a network lie below its last maps, or it is not read whole
OPENING = 1.0  # seconds to fold and compile a graph
FEATURES = 8_000  # of a reading, about
DECISION = "depths_plan"
READ: tuple[Strategy, ...] = ("frozen", "depths")  # whose network learns nothing
DRAWS = 1_000


def depths_rung(frame: Frame, done: Progress) -> Working:
    """Measure both readings of the best networks, as many as are cheap."""
    networks = _networks(frame, done.trials)
    least = max((accuracy for accuracy, _ in networks.values()), default=0.0) - BEHIND
    _decide(frame, [last for accuracy, last in networks.values() if accuracy >= least][:MOST])
    wanted = {name for record in _decisions(frame) for name in record["read"]}  # by shorter budgets, too
    if not wanted:
        return
    yield Event("stage", f"Reading {len(wanted)} networks at several depths at once")
    for _, last in (found for name, found in networks.items() if name in wanted):
        yield from read_together(frame, done, last)
    yield Event("board", "several depths read", board=board(frame, done.trials))
    single, several = best_read(frame, done.trials, ("frozen",)), best_read(frame, done.trials, ("depths",))
    if single is not None and several is not None:
        yield from tell(done, f"Read at several depths at once, {against(frame, several, single)}")


def read_together(frame: Frame, done: Progress, trial: Trial) -> Working:
    """Both readings of a network; `trial` is its last tap."""
    yield Event("progress", f"{trial.recipe.name}: opening", remaining_seconds=frame.remaining_seconds())
    try:
        model = prepared_trunk(frame, trial)
    except BundleError as error:
        yield from tell(done, f"{trial.recipe.backbone} cannot be read at several depths: {error}")
        return
    found = waists(model)
    whole = bool(found) and found[-1].weights >= MOST_WEIGHTS * weights_of(model)
    for quarters in (False, True) if whole else ():
        variant = Variant(deepest=len(found) - 1, whole=True, quarters=quarters)
        read = yield from measuring(frame, trial, variant, from_name=trial.recipe.name)
        if read is not None:
            done.trials.append(read)
            score = criterion(frame.settings.metric)(read.probabilities, frame.targets)
            metric = METRICS[frame.settings.metric]
            yield Event("result", f"{read.recipe.name}: {metric.label} {metric.text(metric.sign * score)}")


def against(frame: Frame, one: Trial, other: Trial) -> str:
    """What a candidate scores, and how much better that is than another; the end of a sentence."""
    metric = METRICS[frame.settings.metric]
    groups = frame.dataset.groups[frame.rows]
    draws = draw_weights(frame.targets, groups, draws=DRAWS, seed=frame.settings.seed)
    ahead = paired(metric.name, one.probabilities, other.probabilities, frame.targets, draws)
    score = metric.sign * criterion(metric.name)(one.probabilities, frame.targets)
    by, low, high = (metric.difference_text(value) for value in (ahead.estimate, ahead.low, ahead.high))
    return (
        f"{one.recipe.name} scores {metric.text(score)} {metric.label}: {by} against {other.recipe.name} (95 % interval "
        f"{low} to {high})."
    )


def best_read(frame: Frame, trials: Sequence[Trial], strategies: Sequence[Strategy] = READ) -> Trial | None:
    """The best candidate whose network learns nothing, whether it is read at one depth or at several."""
    score = criterion(frame.settings.metric)
    read = [trial for trial in trials if trial.recipe.strategy in strategies and trial.complete]
    return max(read, key=lambda trial: score(trial.probabilities, frame.targets), default=None)


def features_of(frame: Frame, trial: Trial) -> Float32[np.ndarray, "n d"]:
    """What the head of such a candidate sees of every image; the cache has it."""
    if trial.recipe.strategy == "frozen":
        return activations_of(frame, trial)[1].tap(trial.tap_index).astype(np.float32)
    return float_rows(frame, trial, prepared_trunk(frame, trial), variant_of(trial))


def _networks(frame: Frame, trials: Sequence[Trial]) -> dict[str, tuple[float, Trial]]:
    """By the name of its last tap: the accuracy of every frozen network at its best tap, and that last tap, on its better
    framing; the best network first."""
    score, accuracy = criterion(frame.settings.metric), criterion("accuracy")
    frozen = [t for t in trials if t.recipe.strategy == "frozen" and t.complete and t.model_bytes is not None]
    frozen = of_the_better_framing(frame.targets, frozen)
    best: dict[str, Trial] = {}
    for trial in sorted(frozen, key=lambda t: score(t.probabilities, frame.targets), reverse=True):
        best.setdefault(trial.recipe.backbone, trial)
    networks = {}
    for one in best.values():
        last = max((t for t in frozen if _seen(t) == _seen(one)), key=lambda t: t.tap_index)
        networks[last.recipe.name] = accuracy(one.probabilities, frame.targets), last
    return networks


def _seen(trial: Trial) -> tuple[object, ...]:
    return trial.recipe.backbone, trial.recipe.geometry, trial.recipe.look


def _decide(frame: Frame, networks: Sequence[Trial]) -> None:
    """Which of them the share of the budget pays, in order; journalled, so that it is decided once."""
    asked = {"recipes": [trial.recipe.key for trial in networks], "budget": budget_of(frame)}
    if not networks or frame.halt.is_set() or frame.journal.find(DECISION, asked) is not None:
        return
    spent, names = 0.0, list[str]()
    for trial in networks:
        seconds = reading_seconds(frame, trial)
        if spent + seconds <= room_for(frame, SHARE if trial is not networks[0] else FIRST):
            spent += seconds
            names.append(trial.recipe.name)
    frame.journal.append(DECISION, {**asked, "read": names, "seconds": round(spent, 1)})


def _decisions(frame: Frame) -> list[dict[str, Any]]:
    return [record for record in frame.journal.records if record["kind"] == DECISION]


def room_for(frame: Frame, share: float) -> float:
    """Seconds of a share of the budget, as far as `KEPT` of it is left behind them."""
    budget = frame.settings.budget_seconds
    return budget if math.isinf(budget) else min(share * budget, frame.remaining_seconds() - KEPT * budget)


def reading_seconds(frame: Frame, trial: Trial, *, times: float = 1.0) -> float:
    """Seconds predicted for both readings of a network, whose pass takes so many `times` what it takes at its own size."""
    gmacs = times * (find(trial.recipe.backbone, shelf(frame.folder)).gmacs or UNKNOWN_GMACS)
    one = ridge.fitting_seconds(
        len(frame.learned_from(0)),
        FEATURES,
        weightings=ridge.weightings_tried(frame.targets, frame.classes),
        threads=frame.compute.threads,
    )
    speed = forward_speed(
        replace(frame.compute, device="cpu")
    )  # where torch runs networks, ONNX Runtime reads them
    return OPENING + len(frame.dataset) * gmacs * 1e9 / speed + 2 * frame.folds.count * one
