"""The sentences of a study: why this candidate, and whether transfer paid."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from graft.judging.metrics import METRICS, Metric
from graft.judging.uncertainty import Difference
from graft.studies.choice import Choice, cost_of, megabytes
from graft.studies.frame import Trial

RunnerUp = Literal["most_accurate", "smallest", "fastest"]


def reason(trials: Sequence[Trial], choice: Choice, *, metric: str) -> str:
    """Why the choice, in one or two sentences with numbers."""
    chosen, best, shown = trials[choice.chosen], trials[choice.best], METRICS[metric]
    score = choice.scores[choice.chosen]
    assert score is not None
    told = (
        f"{chosen.recipe.name} ({_size(chosen)}, {_latency(chosen)}) scores {shown.text(score)} {shown.label}"
    )
    cheapest = cost_of(chosen) == min(cost_of(trials[position]) for position in choice.tied)
    cheaper = "cheaper" if cheapest else "much cheaper"
    if choice.chosen == choice.best:
        others = len(choice.tied) - 1
        also = f"; none of the {others} others that are tied with it is {cheaper}" if others > 1 else ""
        also = f"; the only one tied with it is not {cheaper}" if others == 1 else also
        told += f", the best out-of-fold score{_of_which(choice, score, shown)}{also}."
    else:
        difference, top = choice.differences[choice.chosen], choice.scores[choice.best]
        assert difference is not None and top is not None
        told += (
            f" and is statistically tied with the best, {best.recipe.name} ({_size(best)}, {shown.text(top)}): the "
            f"difference is {shown.difference_text(difference.estimate)}, 95 % interval {_span(difference, shown)}. "
            + (
                f"It is the cheapest of {len(choice.tied)} tied candidates."
                if cheapest
                else f"Of {len(choice.tied)} tied candidates it is the best of those that cost hardly more than the cheapest."
            )
        )
    if not choice.rows.all():
        told += (
            f" All this is by the {int(choice.rows.sum())} of {len(choice.rows)} images in the folds that it finished; a "
            "longer --budget measures the rest."
        )
    return f"{choice.missed} {told}".strip()


def runner_up_reason(
    kind: RunnerUp, trials: Sequence[Trial], choice: Choice, position: int, *, metric: str
) -> str:
    """Why a runner-up is worth naming."""
    trial, shown, score = trials[position], METRICS[metric], choice.scores[position]
    value = shown.text(score) if score is not None else "not complete"
    if kind == "most_accurate":
        return f"the best {shown.label}, {value}"
    extreme = f"smallest, {_size(trial)}" if kind == "smallest" else f"fastest, {_latency(trial)}"
    return f"of those near the best the {extreme}, {shown.label} {value}"


def scratch_sentence(
    transfer: Trial | None,
    scratch: Trial | None,
    difference: Difference | None,
    *,
    metric: str,
    only: str | None,
    few: int | None = None,
    ended: str = "The budget ended",
) -> str:
    """From scratch against transfer, answered in words in every case.

    `few`: the number of images that both predicted, where they are too few for an interval. `ended`: what ended the
    study, as `Frame.ended` says it.
    """
    shown = METRICS[metric]
    if scratch is None:
        why = (
            f"--only {only}"
            if only in ("frozen", "finetuned")
            else f"{ended[0].lower()}{ended[1:]} before it"
        )
        return f"From scratch against transfer was not measured: no network was trained from scratch ({why})."
    if transfer is None:
        why = "--only scratch" if only == "scratch" else "no pre-trained weights could be had"
        return f"From scratch against transfer could not be compared: nothing was transferred ({why})."
    assert difference is not None
    facts = (
        f"by {shown.difference_text(abs(difference.estimate)).lstrip('+')} of {shown.label} "
        f"(95 % interval of the advantage of transfer: {_span(difference, shown)}) on the same folds"
    )
    names = f"({transfer.recipe.name} against the small CNN)"
    cut_short = ""
    if not scratch.complete:
        cut_short = f" {ended} before every fold was trained from scratch; only finished folds are compared."
    elif any(curve.get("stopped") == "deadline" for curve in scratch.curves):
        cut_short = (
            " Its share of the budget ended the training from scratch early; with more time it may do better."
        )
    if few is not None:
        ahead, behind = ("transfer", "training from scratch")[:: 1 if difference.estimate >= 0 else -1]
        return (
            f"Whether transfer or training from scratch is better cannot be judged from so few images: on the {few} that "
            f"both predicted, most of them the only one of their class, {ahead} is "
            f"{shown.difference_text(abs(difference.estimate)).lstrip('+')} of {shown.label} ahead of {behind} "
            f"{names}.{cut_short}"
        )
    if difference.touches_zero:
        return f"Transfer and training from scratch cannot be told apart: they differ {facts} {names}.{cut_short}"
    winner = (
        "Transfer beats training from scratch"
        if difference.low > 0
        else "Training from scratch beats transfer"
    )
    return f"{winner} {facts} {names}.{cut_short}"


def _of_which(choice: Choice, score: float, shown: Metric) -> str:
    """Among whom the choice is the best, where a limit keeps out what scores better."""
    beyond = [other for other, within in zip(choice.scores, choice.within, strict=True) if not within]
    if all(other is None or shown.sign * other <= shown.sign * score for other in beyond):
        return ""
    return " of those nearest to the limits" if choice.missed else " within the limits"


def _span(difference: Difference, shown: Metric) -> str:
    return f"{shown.difference_text(difference.low)} to {shown.difference_text(difference.high)}"


def _size(trial: Trial) -> str:
    return megabytes(trial.model_bytes) if trial.model_bytes is not None else "not exportable"


def _latency(trial: Trial) -> str:
    return f"{trial.latency_ms:.1f} ms" if trial.latency_ms is not None else "no latency"
