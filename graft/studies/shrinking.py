"""A rung of the study: how small the model can be for (nearly) the same score.

In: all trials so far. Out: trials of smaller models on the same folds, candidates like any other, and for the report
`extras["shrink"]`: every step with its two gates (is the score within the tolerance of the best full-size candidate, is
it really smaller or faster than what it was made from), and the curve of the score against bytes and latency over all
candidates. The steps, in the order of what they cost:

1. lower taps: measured by the probe already;
2. a smaller input for the best network, frozen at all its taps;
3. networks cut at any waist and read at several depths at once (`graft.deploy.reading`);
4. the most promising of all these in 8 bits (`graft.deploy.quantise`);
5. the best network with fewer inner channels (`graft.deploy.thinning`), in 8 bits.

What is tried is a function of the scores and of a share of the budget, which pays by the size of networks and not by the
clock, so that two studies with one seed try the same. Every finished (recipe, fold) is in the journal.

Not covered: smaller models of networks that were fine-tuned, and of the small CNN from scratch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from graft.backbones.catalogue import find
from graft.backbones.trunks import trunk_of
from graft.backbones.weights import shelf
from graft.deploy.reading import waists
from graft.errors import BackboneError, BundleError
from graft.images.pixels import open_pixels
from graft.judging.metrics import METRICS
from graft.judging.uncertainty import draw_weights, paired
from graft.studies.beside import best_frozen
from graft.studies.board import board
from graft.studies.choice import megabytes
from graft.studies.frame import Event, Frame, Trial, criterion
from graft.studies.probe import heads_on_taps, priced, samples_of
from graft.studies.rungs import Progress, Working, prepare, tell
from graft.studies.shrinking_variants import Variant, kind_of, measuring, prepared_trunk, variant_of

TOLERANCE = 0.01
SHARE = 0.1  # of the budget
SCREENING = 0.5  # of that at most for what is not yet in 8 bits
SMALLER_INPUTS = (160, 128, 96)
MOST_DEPTHS = 5
DEPTH_STEP = 0.75  # each next waist has at most this share of the weights of the one before
THIN_SHARES = (0.65, 0.45)
LEAST_SMALLER, LEAST_FASTER = 0.97, 0.95  # of the bytes or of the latency of what a step was made from
DRAWS = 1_000
# Seconds to plan with, on one thread of any machine: 10^9 multiply-adds, quantising, a head on 1,000 images.
SECONDS_PER_GMAC, QUANTISING, HEAD = 0.015, 7.0, 0.5


@dataclass(slots=True)
class Purse:
    """Seconds to spend, as far as steps are predicted to cost; None does not end."""

    seconds: float | None

    def pays(self, cost: float) -> bool:
        """Whether the step is affordable; if so, it is paid."""
        if self.seconds is None:
            return True
        if cost > self.seconds:
            return False
        self.seconds -= cost
        return True


def shrink_rung(
    frame: Frame, done: Progress, *, tolerance: float = TOLERANCE, limited: bool = True
) -> Working:
    """Measure smaller models, and tell of each step whether it holds. With `limited`, within a share of the budget."""
    best = best_frozen(frame, done.trials)
    if best is None or best.model_bytes is None:
        return
    whole = SHARE * frame.settings.budget_seconds
    screening = Purse(SCREENING * whole if limited else None)
    before = {id(trial) for trial in done.trials}
    yield Event("stage", "Shrinking: smaller models on the same folds")
    yield from _smaller_inputs(frame, done, best, screening)
    yield from _several_depths(frame, done, screening)
    purse = Purse(None if screening.seconds is None else (1 - SCREENING) * whole + screening.seconds)
    for trial in _worth_quantising(frame, done.trials, tolerance):
        if purse.pays(_calibrated_cost(frame, trial)):
            yield from _measured(frame, done, trial, replace(variant_of(trial), precision="int8"))
    for share in THIN_SHARES:
        for trial in _worth_thinning(frame, done.trials, before):
            if purse.pays(_calibrated_cost(frame, trial)):
                variant = replace(variant_of(trial), share=share, precision="int8")
                yield from _measured(frame, done, trial, variant)
    told = told_of(frame, done.trials, tolerance=tolerance)
    done.extras["shrink"] = told
    yield from tell(done, told["sentence"])
    yield Event("board", "shrunk", board=board(frame, done.trials))


def _smaller_inputs(frame: Frame, done: Progress, best: Trial, purse: Purse) -> Working:
    """The best network frozen at all its taps, on smaller pictures."""
    entry = find(best.recipe.backbone, shelf(frame.folder))
    for size in SMALLER_INPUTS:
        geometry = replace(best.recipe.geometry, size=size)
        gmacs = _gmacs(frame, best) * (size / best.recipe.geometry.size) ** 2
        cost = (
            5.0 + len(frame.dataset) * gmacs * SECONDS_PER_GMAC / 4 + best.taps * frame.folds.count * HEAD / 4
        )
        known = any(trial.recipe.geometry == geometry and _same_network(trial, best) for trial in done.trials)
        if size >= best.recipe.geometry.size or known or not purse.pays(cost):
            continue
        yield Event("progress", f"{entry.name} at {size} px", remaining_seconds=frame.remaining_seconds())
        yield from prepare(frame, [geometry])
        try:
            trunk = trunk_of(
                entry,
                geometry,
                folder=frame.folder,
                reach=frame.reach,
                store=frame.store,
                samples=samples_of(frame, geometry),
                compute=frame.compute,
                look=best.recipe.look,
            )
        except BackboneError as error:
            yield from tell(done, f"{entry.name} cannot be tried at {size} px: {error}")
            continue
        pixels = open_pixels(frame.dataset, geometry, store=frame.store)
        probed = yield from heads_on_taps(frame, trunk, pixels, suffix=f"@{size}px")
        done.trials += priced(frame, probed)


def _several_depths(frame: Frame, done: Progress, purse: Purse) -> Working:
    """Every network cut at some waists, each read together with waists below it: the cheap networks first."""
    deepest: dict[tuple[str, str], Trial] = {}
    for trial in done.trials:
        if _frozen(trial) and trial.model_bytes is not None:
            key = trial.recipe.backbone, trial.recipe.geometry.key + trial.recipe.look
            known = deepest.get(key)
            if known is None or trial.tap_index > known.tap_index:
                deepest[key] = trial
    heads = MOST_DEPTHS * frame.folds.count * HEAD * (len(frame.rows) / 1_000) ** 2
    for trial in sorted(deepest.values(), key=lambda t: (t.model_bytes or 0, t.recipe.name)):
        if not purse.pays(len(frame.dataset) * _gmacs(frame, trial) * SECONDS_PER_GMAC + heads):
            continue
        try:
            numbers = _depths_to_try([waist.weights for waist in waists(prepared_trunk(frame, trial))])
        except BundleError:
            continue
        for number in numbers:
            yield from _measured(frame, done, trial, Variant(deepest=number))


def _depths_to_try(weights: Sequence[int]) -> list[int]:
    """Which waists to cut at, the last one first, each next one with clearly fewer weights."""
    chosen: list[int] = []
    for number in range(len(weights) - 1, -1, -1):
        if not chosen or weights[number] <= DEPTH_STEP * weights[chosen[-1]]:
            chosen.append(number)
    return chosen[:MOST_DEPTHS]


def _measured(frame: Frame, done: Progress, base: Trial, variant: Variant) -> Working:
    if frame.halt.is_set():
        return
    frozen = _origin(done.trials, base)
    try:
        trial = yield from measuring(frame, frozen, variant, from_name=base.recipe.name)
    except BundleError as error:
        yield from tell(done, f"{base.recipe.name}{variant.suffix} could not be made: {error}")
        return
    if trial is None or any(trial.recipe.key == other.recipe.key for other in done.trials):
        return
    done.trials.append(trial)
    score = METRICS[frame.settings.metric].text(_score(frame, trial))
    size = megabytes(trial.model_bytes or 0)
    yield Event("result", f"{trial.recipe.name}: {METRICS[frame.settings.metric].label} {score}, {size}")


def _worth_quantising(frame: Frame, trials: Sequence[Trial], tolerance: float) -> list[Trial]:
    """What is likely to be the smallest within the tolerance, the best, and those on the curve below, in this order."""
    usable = [t for t in trials if _frozen(t) or _float(t)]
    front = _front(usable, lambda trial: _signed(frame, trial))
    reference = max(_signed(frame, t) for t in trials if _full_size(t))
    within = [t for t in front if _signed(frame, t) >= reference - tolerance]
    below = sorted((t for t in front if t not in within), key=lambda t: -_signed(frame, t))
    best = max(usable, key=lambda t: _signed(frame, t))
    ordered = [*within[:2], *below[:1], best, *below[1:]]
    return list({trial.recipe.key: trial for trial in ordered}.values())


def _worth_thinning(frame: Frame, trials: Sequence[Trial], before: set[int]) -> list[Trial]:
    """The best frozen tap, and the best network read at several depths."""
    frozen = [t for t in trials if id(t) in before and _frozen(t) and t.model_bytes is not None]
    read = [t for t in trials if _float(t)]
    found = [max(kind, key=lambda t: _signed(frame, t)) for kind in (frozen, read) if kind]
    lower = [t for t in frozen if _same_network(t, found[0]) and t.tap_index == found[0].tap_index - 1]
    return [*found[:1], *lower, *found[1:]]


def _front(trials: Sequence[Trial], score: Callable[[Trial], float]) -> list[Trial]:
    """Those that nothing smaller is better than, the smallest first."""
    front: list[Trial] = []
    for trial in sorted(trials, key=lambda t: (t.model_bytes or 0, -score(t))):
        if not front or score(trial) > score(front[-1]):
            front.append(trial)
    return front


def told_of(frame: Frame, trials: Sequence[Trial], *, tolerance: float) -> dict[str, Any]:
    """`extras["shrink"]`: the steps with their gates, the curve, and one sentence."""
    reference = max(
        (t for t in trials if _full_size(t)), key=lambda t: (_signed(frame, t), -(t.model_bytes or 0))
    )
    steps = [dict(step) for step in _steps(frame, trials, reference, tolerance)]
    accepted = [step for step in steps if step["accepted"]]
    smallest = min(accepted, key=lambda step: step["bytes"], default=None)
    return {
        "metric": frame.settings.metric,
        "tolerance": tolerance,
        "reference": {
            "id": reference.recipe.name,
            "score": _score(frame, reference),
            "bytes": reference.model_bytes,
            "latency_ms": reference.latency_ms,
        },
        "steps": steps,
        "smallest": None if smallest is None else smallest["id"],
        "curve": [
            {
                "id": trial.recipe.name,
                "score": _score(frame, trial),
                "bytes": trial.model_bytes,
                "latency_ms": trial.latency_ms,
                "kind": kind_of(trial) or trial.recipe.strategy,
            }
            for trial in sorted(trials, key=lambda t: t.model_bytes or 0)
            if trial.complete and trial.model_bytes is not None and trial.recipe.strategy != "random"
        ],
        "sentence": _sentence(frame, reference, smallest, len(steps), tolerance),
    }


def _steps(
    frame: Frame, trials: Sequence[Trial], reference: Trial, tolerance: float
) -> Iterator[dict[str, Any]]:
    metric, by_name = METRICS[frame.settings.metric], {t.recipe.name: t for t in trials}
    draws = draw_weights(
        frame.targets, frame.dataset.groups[frame.rows], draws=DRAWS, seed=frame.settings.seed
    )
    for trial in trials:
        kind = kind_of(trial)
        if kind is None or not trial.complete:
            continue
        source = by_name.get(trial.about.get("shrunk", {}).get("from", ""), reference)
        difference = paired(
            frame.settings.metric, trial.probabilities, reference.probabilities, frame.targets, draws
        )
        lost = -metric.sign * difference.estimate if metric.sign < 0 else -difference.estimate
        worse = difference.high < 0
        bytes_share = (trial.model_bytes or 0) / max(1, source.model_bytes or 1)
        time_share = (trial.latency_ms or 0.0) / max(1e-9, source.latency_ms or 1e-9)
        cheaper = bytes_share <= LEAST_SMALLER or time_share <= LEAST_FASTER
        reasons = []
        if lost > tolerance:
            reasons.append(f"it loses {metric.text(lost)} of {metric.label}, more than the tolerance")
        elif worse:
            reasons.append("it is significantly worse than the best full-size candidate")
        if not cheaper:
            reasons.append(
                f"it is neither smaller nor faster than {source.recipe.name} ({bytes_share:.0%} of the bytes, "
                f"{time_share:.0%} of the time)"
            )
        yield {
            "id": trial.recipe.name,
            "kind": kind,
            "from": source.recipe.name,
            "score": _score(frame, trial),
            "difference": difference.estimate,
            "interval": [difference.low, difference.high],
            "bytes": trial.model_bytes,
            "bytes_share": round(bytes_share, 4),
            "latency_ms": trial.latency_ms,
            "latency_share": round(time_share, 4),
            "accepted": not reasons,
            "reason": " and ".join(reasons) or "within the tolerance, and cheaper",
        }


def _sentence(
    frame: Frame, reference: Trial, smallest: dict[str, Any] | None, steps: int, tolerance: float
) -> str:
    metric = METRICS[frame.settings.metric]
    full = f"{reference.recipe.name} ({megabytes(reference.model_bytes or 0)}, {metric.text(_score(frame, reference))})"
    if smallest is None:
        return (
            f"None of {steps} smaller models comes within {metric.text(tolerance)} of {metric.label} of the best "
            f"full-size candidate, {full}, and is cheaper than what it was made from."
        )
    return (
        f"The smallest model within {metric.text(tolerance)} of {metric.label} of {full} is {smallest['id']}: "
        f"{megabytes(smallest['bytes'])}, {metric.text(smallest['score'])}."
    )


def _origin(trials: Sequence[Trial], trial: Trial) -> Trial:
    """The frozen trial a shrunk one was made from."""
    name = trial.about["shrunk"]["base"] if "shrunk" in trial.about else trial.recipe.name
    return next(one for one in trials if one.recipe.name == name)


def _calibrated_cost(frame: Frame, trial: Trial) -> float:
    per_fold = QUANTISING + HEAD + len(frame.dataset) * _gmacs(frame, trial) * SECONDS_PER_GMAC
    return frame.folds.count * per_fold


def _gmacs(frame: Frame, trial: Trial) -> float:
    """10^9 multiply-adds of the whole network at the trial's input size."""
    entry = find(trial.recipe.backbone, shelf(frame.folder))
    return (entry.gmacs or 0.5) * (trial.recipe.geometry.size / entry.input.size) ** 2


def _score(frame: Frame, trial: Trial) -> float:
    return METRICS[frame.settings.metric].sign * _signed(frame, trial)


def _signed(frame: Frame, trial: Trial) -> float:
    """The score, higher is better."""
    return criterion(frame.settings.metric)(trial.probabilities, frame.targets)


def _frozen(trial: Trial) -> bool:
    return trial.recipe.strategy == "frozen" and trial.complete and trial.model_bytes is not None


def _float(trial: Trial) -> bool:
    return trial.recipe.strategy == "shrunk" and trial.complete and not variant_of(trial).calibrated


def _full_size(trial: Trial) -> bool:
    return (
        trial.recipe.strategy not in ("shrunk", "random") and trial.complete and trial.model_bytes is not None
    )


def _same_network(one: Trial, other: Trial) -> bool:
    return one.recipe.backbone == other.recipe.backbone and one.recipe.look == other.recipe.look
