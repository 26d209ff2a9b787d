"""The recommendation: a pure function of the trials.

Among the complete candidates within the limits, all that are statistically tied with the best (the 95 % interval of the
paired bootstrap difference touches zero) are equally good as far as these images can tell; the cheapest of them, by
bytes and then by latency, is the choice. The headline is corrected for having picked a winner (BBC-CV), and never above
what the choice itself scored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from graft.judging.metrics import METRICS
from graft.judging.uncertainty import Difference, Estimate, Headline, corrected, draw_weights, estimate, paired, tied
from graft.studies.frame import Trial

DRAWS = 2_000
FEWER_DRAWS = 1_000
MANY_IMAGES = 5_000


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
            trial.model_bytes / self.max_bytes if self.max_bytes else 0.0,
            trial.latency_ms / self.max_latency_ms if self.max_latency_ms else 0.0,
        )


@dataclass(frozen=True, slots=True)
class Choice:
    """Positions in the list of trials. `differences[i]` is trial i minus the best; None for incomplete ones.

    `headline` is the corrected score of the choice; `missed` names the limit that nothing meets, or is empty.
    """

    chosen: int
    best: int
    smallest: int
    fastest: int
    scores: tuple[float | None, ...]
    intervals: tuple[Estimate | None, ...]
    differences: tuple[Difference | None, ...]
    within: tuple[bool, ...]
    headline: Estimate
    optimism: float
    missed: str

    def is_tied(self, position: int) -> bool:
        """Whether this trial cannot be told apart from the best."""
        difference = self.differences[position]
        return difference is not None and difference.touches_zero


def choose(
    trials: Sequence[Trial],
    targets: Int64[np.ndarray, " m"],
    groups: Int64[np.ndarray, " m"],
    *,
    metric: str,
    limits: Limits,
    seed: int,
) -> Choice:
    """The choice among `trials`, of which at least one is complete and has a model."""
    usable = [i for i, trial in enumerate(trials) if trial.complete and trial.model_bytes is not None]
    # Untrained features are a yardstick; they are handed over only where there is nothing else.
    usable = [i for i in usable if trials[i].recipe.strategy != "random"] or usable
    within = [i for i in usable if limits.excess(trials[i]) <= 1]
    nearest = min((limits.excess(trials[i]) for i in usable), default=1.0)
    eligible = within or [i for i in usable if limits.excess(trials[i]) <= nearest * 1.001]
    draws = draw_weights(targets, groups, draws=DRAWS if len(targets) <= MANY_IMAGES else FEWER_DRAWS, seed=seed)
    complete = [i for i, trial in enumerate(trials) if trial.complete]
    estimates = {i: estimate(metric, trials[i].probabilities, targets, groups, draws) for i in complete}
    sign = METRICS[metric].sign
    best = max(eligible, key=lambda i: (sign * estimates[i].value, -i))
    rows = [trials[i].probabilities for i in eligible]
    differences = dict(zip(eligible, tied(metric, rows, targets, draws), strict=True))
    for i in complete:
        if i not in differences:
            differences[i] = paired(metric, trials[i].probabilities, trials[best].probabilities, targets, draws)
    ties = [i for i in eligible if differences[i].touches_zero or i == best]
    chosen = min(ties, key=lambda i: _cost(trials[i]) + (-sign * estimates[i].value, i))
    headline = corrected(metric, rows, targets, groups, draws=len(draws), seed=seed)
    winner = estimates[eligible[headline.winner]]
    return Choice(
        chosen=chosen,
        best=best,
        smallest=min(eligible, key=lambda i: _cost(trials[i])),
        fastest=min(eligible, key=lambda i: (trials[i].latency_ms or 0.0, i)),
        scores=tuple(estimates[i].value if i in estimates else None for i in range(len(trials))),
        intervals=tuple(estimates.get(i) for i in range(len(trials))),
        differences=tuple(differences.get(i) for i in range(len(trials))),
        within=tuple(i in within for i in range(len(trials))),
        headline=_headline(metric, headline, moved_by=estimates[chosen].value - winner.value),
        optimism=headline.optimism,
        missed="" if within else _missed(trials[chosen], limits),
    )


def _cost(trial: Trial) -> tuple[float, float]:
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
    if limits.max_bytes and nearest.model_bytes and nearest.model_bytes > limits.max_bytes:
        parts.append(
            f"--max-size {megabytes(limits.max_bytes)} is missed by {megabytes(nearest.model_bytes - limits.max_bytes)}"
        )
    if limits.max_latency_ms and nearest.latency_ms and nearest.latency_ms > limits.max_latency_ms:
        over = nearest.latency_ms - limits.max_latency_ms
        parts.append(f"--max-latency {limits.max_latency_ms:g} ms is missed by {over:.2f} ms")
    return f"Nothing meets the limits: the nearest candidate is {nearest.recipe.name}; " + " and ".join(parts) + "."


def megabytes(size: float) -> str:
    """Bytes as people read them: 8.9 MB, 412 kB."""
    return f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.0f} kB"
