"""The recommendation: a pure function of the trials.

Among the complete candidates within the limits, all that are statistically tied with the best (the 95 % interval of the
paired bootstrap difference touches zero) and no more than a point behind it (few images tie too much) are equally good
for all practical purposes; the cheapest of them, by bytes and then by latency, is the choice, or the best of those that cost nearly as little (`SAME`). The headline is corrected for having picked a winner (BBC-CV), and never above
what the choice itself scored.

A candidate that the budget let finish some folds only may be chosen, too, but not on credit: it must be better than the
best complete one, by the whole interval, on the images that both predicted; then all are compared on those images. Where
none is complete, those that finished most images are compared on these.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float32, Int64

from graft.judging.metrics import METRICS
from graft.judging.uncertainty import (
    Difference,
    Estimate,
    Headline,
    bootstrap,
    corrected,
    draw_weights,
    estimate,
    paired,
    tied,
    too_few,
)
from graft.studies.frame import Trial
from graft.studies.predictions import measured

DRAWS = 2_000
FEWER_DRAWS = 1_000
MANY_IMAGES = 5_000
TOLERANCE = 0.01  # what is tied may be so far behind, where the metric counts decisions: of 400 images, four
WORTH_NAMING = 0.1  # a runner-up may be so much worse than the best, in points of the metric; not more
# Of candidates up to so many times the bytes and the latency of the cheapest, the better is chosen. The latency is timed, and
# on a busy machine not to a tenth. Over 16 splits of hymenoptera, a fifth held out, 1.1 times the bytes chose 7.9 MB with an
# accuracy of 0.968, 1.25 times 9.0 MB with 0.976 (docs/log.md).
SAME = (1.25, 1.5)
NEARLY = 1.001  # as near to the limits as the nearest, give or take the size of a name in the graph


@dataclass(frozen=True, slots=True)
class Limits:
    """What the packed model may cost; None does not bind."""

    max_bytes: int | None = None
    max_latency_ms: float | None = None

    def excess(self, trial: Trial) -> float:
        """How far the trial is over its worst limit, as a factor: at most 1 is within; infinite if it has no model."""
        if trial.model_bytes is None or trial.latency_ms is None:
            return float("inf")
        return max(
            trial.model_bytes / self.max_bytes if self.max_bytes is not None else 0.0,
            trial.latency_ms / self.max_latency_ms if self.max_latency_ms is not None else 0.0,
        )


@dataclass(frozen=True, slots=True)
class Choice:
    """Positions in the list of trials. `differences[i]` says how much better trial i is than the best (mostly negative).

    `rows`: the images that all were compared on; all of them, but where an unfinished trial is the best. `scores`,
    `intervals` and `differences` belong to them and are None for trials that did not predict them all. `eligible`: what was chosen from, see
    `choose`; `within`: what meets the limits. `smallest` and `fastest` are those near the best (`WORTH_NAMING`). `headline` is the corrected score of the choice, from which `optimism` was
    taken off; `missed` names the limits that nothing meets and by how much, or is empty.
    """

    metric: str
    chosen: int
    best: int
    smallest: int
    fastest: int
    scores: tuple[float | None, ...]
    intervals: tuple[Estimate | None, ...]
    differences: tuple[Difference | None, ...]
    eligible: tuple[bool, ...]
    within: tuple[bool, ...]
    headline: Estimate
    optimism: float
    missed: str
    rows: Bool[np.ndarray, " m"] = field(compare=False)

    def is_tied(self, position: int) -> bool:
        """Whether this trial might have been chosen: it cannot be told apart from the best, nor is it a point behind."""
        difference = self.differences[position]
        return self.eligible[position] and difference is not None and _is_level(self.metric, difference)

    @property
    def tied(self) -> tuple[int, ...]:
        """All tied trials; the best and the choice are among them."""
        return tuple(i for i in range(len(self.differences)) if self.is_tied(i))


def choose(
    trials: Sequence[Trial],
    targets: Int64[np.ndarray, " m"],
    groups: Int64[np.ndarray, " m"],
    *,
    metric: str,
    limits: Limits,
    seed: int,
) -> Choice:
    """The choice among `trials`; `targets` and `groups` belong to the rows of their probabilities.

    The same arguments give the same choice. Raises ValueError if no trial has finished a fold and has a model.
    """
    everyone = range(len(trials))
    rows = _compared_on(trials, targets, groups, metric=metric, limits=limits, seed=seed)
    targets, groups = targets[rows], groups[rows]
    said = [trial.probabilities[rows] for trial in trials]
    complete = [i for i in everyone if len(said[i]) and not np.isnan(said[i]).any()]
    eligible = _eligible(trials, complete, limits)
    draws = _draws(targets, groups, seed=seed)
    eligible = _without_needless_ensembles(trials, eligible, said, targets, draws, metric=metric)
    estimates = {i: estimate(metric, said[i], targets, groups, draws) for i in complete}
    tables = [said[i] for i in eligible]
    headline = corrected(metric, tables, targets, groups, draws=len(draws), seed=seed)
    best = eligible[headline.winner]
    differences = dict(zip(eligible, tied(metric, tables, targets, draws), strict=True))
    for i in set(complete) - set(eligible):
        differences[i] = paired(metric, said[i], said[best], targets, draws)
    ties = [i for i in eligible if _is_level(metric, differences[i])]
    sign = METRICS[metric].sign
    cheapest = cost_of(trials[min(ties, key=lambda i: cost_of(trials[i]))])
    cheap = [
        i
        for i in ties
        if all(
            own <= times * least for own, times, least in zip(cost_of(trials[i]), SAME, cheapest, strict=True)
        )
    ]
    chosen = min(cheap, key=lambda i: (-sign * estimates[i].value, cost_of(trials[i]), i))
    near = [i for i in eligible if sign * estimates[i].value >= sign * estimates[best].value - WORTH_NAMING]
    within = tuple(limits.excess(trial) <= 1 for trial in trials)
    return Choice(
        metric=metric,
        chosen=chosen,
        best=best,
        smallest=min(near, key=lambda i: (cost_of(trials[i]), i)),
        fastest=min(near, key=lambda i: (trials[i].latency_ms, i)),
        scores=tuple(estimates[i].value if i in estimates else None for i in everyone),
        intervals=tuple(estimates.get(i) for i in everyone),
        differences=tuple(differences.get(i) for i in everyone),
        eligible=tuple(i in eligible for i in everyone),
        within=within,
        headline=_headline(metric, headline, moved_by=estimates[chosen].value - estimates[best].value),
        optimism=headline.optimism,
        missed="" if within[chosen] else _missed(trials[chosen], limits),
        rows=rows,
    )


def _is_level(metric: str, difference: Difference) -> bool:
    near = not METRICS[metric].from_decisions or difference.estimate >= -TOLERANCE
    return difference.touches_zero and near


def _draws(
    targets: Int64[np.ndarray, " m"], groups: Int64[np.ndarray, " m"], *, seed: int
) -> Float32[np.ndarray, "b m"]:
    return draw_weights(
        targets, groups, draws=DRAWS if len(targets) <= MANY_IMAGES else FEWER_DRAWS, seed=seed
    )


def _compared_on(
    trials: Sequence[Trial],
    targets: Int64[np.ndarray, " m"],
    groups: Int64[np.ndarray, " m"],
    *,
    metric: str,
    limits: Limits,
    seed: int,
) -> Bool[np.ndarray, " m"]:
    """All images; but those of its finished folds where an unfinished trial is better there than the best complete one, or
    where there is no complete one."""
    everything = np.ones(len(targets), bool)
    complete = [i for i, trial in enumerate(trials) if trial.complete]
    unfinished = [
        trial
        for trial in trials
        if not trial.complete and limits.excess(trial) <= 1 and trial.recipe.strategy != "random"
    ]
    if not complete:
        return max((measured(trial) for trial in unfinished), key=np.count_nonzero, default=everything)
    if not unfinished:
        return everything
    sign = METRICS[metric].sign
    once = np.ones((1, len(targets)), np.float32)

    def score(i: int) -> float:
        return sign * float(bootstrap(metric, trials[i].probabilities, targets, once)[0])

    best = trials[max(_eligible(trials, complete, limits), key=score)].probabilities
    found, most = everything, 0.0
    for trial in unfinished:
        rows = measured(trial)
        if not rows.any() or too_few(targets[rows], groups[rows]):
            continue
        draws = _draws(targets[rows], groups[rows], seed=seed)
        ahead = paired(metric, trial.probabilities[rows], best[rows], targets[rows], draws)
        if ahead.low > 0 and ahead.estimate > most:
            found, most = rows, ahead.estimate
    return found


def _without_needless_ensembles(
    trials: Sequence[Trial],
    eligible: Sequence[int],
    said: Sequence[np.ndarray],
    targets: Int64[np.ndarray, " m"],
    draws: Float32[np.ndarray, "b m"],
    *,
    metric: str,
) -> list[int]:
    """An ensemble costs as much as its members together: it takes part where it is better for sure than each single one, and
    by more than a tied candidate may be behind (of 1,919 drawings, 0.6 points were sure, for 4.7 times the bytes).
    """
    single = [i for i in eligible if trials[i].recipe.strategy != "ensemble"]
    if not single or len(single) == len(eligible):
        return list(eligible)
    once = np.ones((1, len(targets)), np.float32)
    best = max(
        single, key=lambda i: METRICS[metric].sign * float(bootstrap(metric, said[i], targets, once)[0])
    )

    def worth_it(i: int) -> bool:
        ahead = paired(metric, said[i], said[best], targets, draws)
        return ahead.low > 0 and (not METRICS[metric].from_decisions or ahead.estimate > TOLERANCE)

    return [i for i in eligible if i in single or worth_it(i)]


def _eligible(trials: Sequence[Trial], complete: Sequence[int], limits: Limits) -> list[int]:
    """The trials that may be chosen: complete, with a model, within the limits (or else those nearest to them)."""
    usable = [i for i in complete if np.isfinite(limits.excess(trials[i]))]
    if not usable:
        raise ValueError("there is no complete trial with a model to choose from")
    # Untrained features are a yardstick; they are handed over only where there is nothing else.
    usable = [i for i in usable if trials[i].recipe.strategy != "random"] or usable
    reach = max(1.0, NEARLY * min(limits.excess(trials[i]) for i in usable))
    return [i for i in usable if limits.excess(trials[i]) <= reach]


def cost_of(trial: Trial) -> tuple[float, float]:
    """What makes one candidate cheaper than another."""
    return float(trial.model_bytes or 0), float(trial.latency_ms or 0.0)


def _headline(metric: str, corrected_winner: Headline, *, moved_by: float) -> Estimate:
    """The corrected score of the winner, moved by how much the choice scored differently."""
    value, low, high = (
        float(np.clip(edge + moved_by, *METRICS[metric].bounds))
        for edge in (corrected_winner.estimate, corrected_winner.low, corrected_winner.high)
    )
    return Estimate(value, min(low, value), max(high, value))


def _missed(nearest: Trial, limits: Limits) -> str:
    parts = []
    size, latency = nearest.model_bytes, nearest.latency_ms
    if size is not None and limits.max_bytes is not None and size > limits.max_bytes:
        parts.append(
            f"--max-size {megabytes(limits.max_bytes)} is missed by {megabytes(size - limits.max_bytes)}"
        )
    if latency is not None and limits.max_latency_ms is not None and latency > limits.max_latency_ms:
        over = latency - limits.max_latency_ms
        parts.append(f"--max-latency {limits.max_latency_ms:g} ms is missed by {over:.2g} ms")
    return f"Nothing meets the limits: the nearest candidate is {nearest.recipe.name}; {' and '.join(parts)}."


def megabytes(size: int | float) -> str:
    """Bytes as people read them: 8.9 MB, 412 kB, 90 bytes."""
    if size >= 1e6:
        return f"{size / 1e6:.1f} MB"
    return f"{size / 1e3:.0f} kB" if size >= 1e3 else f"{size:.0f} bytes"
