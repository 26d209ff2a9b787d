"""A rung of the study: what the mean of several finished candidates would be worth, as a candidate of its own.

In: all trials so far. Out: at most one trial more (`strategy` "ensemble") with what its members cost together, and for
the report `extras["ensembles"]`. Members are found by greedy selection with replacement on out-of-fold predictions
(Caruana et al. 2004), by the log loss, of which few images say more than of decisions; how often one was taken is its
weight. They must want the images decoded in the same way, so that one graph with one input packs them: the groups of the
best candidates that have company are looked at, and the one whose ensemble is best is taken.

A selection scored on the predictions it was made on looks better than it is. So the trial's probabilities are nested:
those of a fold come from members and weights selected on the other folds only. The members that are packed are those
selected on all folds. The best single candidate that it is held against was picked on all folds, which favours that one.

Everything is a function of the trials: nothing is journalled, and a study that goes on finds the same. Cost: some
thousand means of a column. Fitting on all images costs what its members cost; of those that are trained step by step
there are at most two, and where the budget has no time left for both the ensemble is told of but is no candidate.

Not covered: the mean of the models of the folds of one recipe (every image was seen by all of them but one, so that it
has no out-of-fold score), the mean over seeds of one recipe (`graft.studies.seeds`), and members that want their images
decoded in different ways.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32, Int, Int64

from graft.images.dataset import Preprocess
from graft.judging.metrics import METRICS
from graft.judging.uncertainty import Difference, draw_weights, estimate, paired
from graft.store import content_key
from graft.studies.branches import ModelCosts, joined, together_costs
from graft.studies.finish import Fitted
from graft.studies.frame import Event, Frame, Trial, criterion
from graft.studies.recipe import Recipe
from graft.studies.rungs import Progress, Working, kept_for_the_end, last_fit_seconds, tell

MOST_MEMBERS = 4
MOST_GROUPS = 3  # of candidates whose images are decoded alike
MOST_TRAINED = 2
OVERTIME = 0.03  # of the budget
PICKS = 16
LEAST = 1e-12  # what a probability counts at least
DRAWS = 1_000
TRAINED = ("partial", "full", "scratch")  # step by step
FITTED_AGAIN = ("frozen", "depths", "shrunk", *TRAINED)
METHOD = (
    "greedy selection with replacement by the log loss (Caruana et al. 2004); the predictions of each fold come from members and weights "
    "selected on the other folds, the packed members are those selected on all"
)

Fit = Callable[[Trial], Generator[Event, None, Fitted]]


@dataclass(frozen=True, slots=True, eq=False)
class Ensemble:
    """`picks[i]`: how often candidate i was taken on all folds; `folds`: the same on all folds but one.

    `probabilities`: nested, see above.
    """

    picks: dict[int, int]
    folds: tuple[dict[int, int], ...]
    probabilities: Float32[np.ndarray, "m k"]


def ensembles_rung(frame: Frame, done: Progress) -> Working:
    """Select an ensemble among the finished candidates, and add it to them where it has more than one member."""
    usable, left_out = _usable(done.trials)
    score = criterion(frame.settings.metric)
    usable = sorted(usable, key=lambda trial: score(trial.probabilities, frame.targets), reverse=True)
    pools = _by_geometry(usable)
    if not pools:
        return
    yield Event("stage", f"Selecting an ensemble among {sum(map(len, pools))} candidates")
    assignment = frame.folds.assignment[frame.rows]
    selected = [(pool, ensemble_of(pool, frame.targets, assignment)) for pool in pools]
    pool, found = max(selected, key=lambda pair: score(pair[1].probabilities, frame.targets))
    keys = {trial.recipe.key for trial in pool}
    others = [trial.recipe.name for trial in usable if trial.recipe.key not in keys]
    if others:
        left_out.append({"reason": "its images are decoded in another way", "ids": others})
    members = [pool[i] for i in found.picks]
    trial = trial_of(pool, found, together_costs(frame, members)) if len(members) > 1 else None
    told = _told(frame, pool, found, trial, single=usable[0])
    left, budget = frame.remaining_seconds(), frame.settings.budget_seconds
    kept = kept_for_the_end(frame.targets, done.trials)
    if trial is not None and in_time(members, left=left, kept=kept, budget=budget):
        done.trials.append(trial)
    elif trial is not None:
        told["sentence"] += (
            " It is not handed over: the budget has no time left to fit its members on all images."
        )
    done.extras["ensembles"] = {**told, "left_out": left_out}
    yield from tell(done, told["sentence"])


def in_time(members: Sequence[Trial], *, left: float, kept: float, budget: float) -> bool:
    """Whether all members can be fitted again, in the seconds `left` and a little more; `kept` seconds there always are."""
    return sum(map(last_fit_seconds, members)) <= max(left + OVERTIME * budget, kept)


def ensemble_of(
    pool: Sequence[Trial], targets: Int64[np.ndarray, " m"], folds: Int[np.ndarray, " m"]
) -> Ensemble:
    """The ensemble of complete trials; `targets` and `folds` belong to the rows of their probabilities."""
    tables = np.stack([trial.probabilities for trial in pool])
    trained = [trial.recipe.strategy in TRAINED for trial in pool]
    nested = np.empty_like(tables[0])
    by_fold = []
    for fold in np.unique(folds):
        held = folds == fold
        picks = select(tables[:, ~held], targets[~held], trained=trained)
        nested[held] = _mean(tables[:, held], picks)
        by_fold.append(picks)
    return Ensemble(select(tables, targets, trained=trained), tuple(by_fold), nested)


def select(
    tables: Float32[np.ndarray, "c n k"], targets: Int64[np.ndarray, " n"], *, trained: Sequence[bool]
) -> dict[int, int]:
    """How often each candidate is taken, by its position, the best single one first.

    Each pick is the one that gives the mean the lowest log loss, of equal ones the first; what the best of the `PICKS`
    means is made of counts. At most `MOST_MEMBERS` different ones, `MOST_TRAINED` of them `trained` step by step.
    """
    said = tables[:, np.arange(len(targets)), targets].astype(
        np.float64
    )  # of the true classes: all that counts
    total = np.zeros(len(targets))
    taken: Counter[int] = Counter()
    best, kept = np.inf, dict[int, int]()
    for count in range(1, PICKS + 1):
        offered = [i for i in range(len(said)) if _allowed(i, taken, trained)]
        losses = [-np.log(np.maximum((total + said[i]) / count, LEAST)).mean() for i in offered]
        pick = offered[int(np.argmin(losses))]
        total += said[pick]
        taken[pick] += 1
        if min(losses) < best:
            best, kept = min(losses), dict(taken)
    return kept


def _allowed(candidate: int, taken: Mapping[int, int], trained: Sequence[bool]) -> bool:
    if candidate in taken:
        return True
    room = sum(trained[i] for i in taken) < MOST_TRAINED or not trained[candidate]
    return room and len(taken) < MOST_MEMBERS


def _mean(tables: Float32[np.ndarray, "c n k"], picks: Mapping[int, int]) -> Float32[np.ndarray, "n k"]:
    shares = np.array(list(picks.values()), np.float32) / np.float32(sum(picks.values()))
    return np.tensordot(shares, tables[list(picks)], axes=1).astype(np.float32)


def _usable(trials: Sequence[Trial]) -> tuple[list[Trial], list[dict[str, Any]]]:
    """The trials that can be members, and why the others cannot."""
    names = {trial.recipe.name for trial in trials}
    usable, left_out = [], dict[str, list[str]]()
    for trial in trials:
        why = ""
        if not trial.complete:
            why = "it was not measured on every fold"
        elif trial.model_bytes is None:
            why = "it cannot be packed"
        elif trial.recipe.strategy == "random":
            why = "its weights are random: it is a yardstick only"
        elif trial.recipe.strategy == "ensemble":
            why = "it is a mean itself"
        elif trial.recipe.strategy not in FITTED_AGAIN:
            why = "it cannot be fitted again on all images"
        elif "shrunk" in trial.about and trial.about["shrunk"]["base"] not in names:
            why = "what it was made from was not measured"
        if why:
            left_out.setdefault(why, []).append(trial.recipe.name)
        else:
            usable.append(trial)
    return usable, [{"reason": why, "ids": ids} for why, ids in left_out.items()]


def _by_geometry(ranked: Sequence[Trial]) -> list[list[Trial]]:
    """Groups of several that want their images decoded alike, those with the first (best) trials first."""
    groups: dict[Preprocess, list[Trial]] = {}
    for trial in ranked:
        groups.setdefault(trial.recipe.geometry, []).append(trial)
    return [group for group in groups.values() if len(group) > 1][:MOST_GROUPS]


def trial_of(pool: Sequence[Trial], found: Ensemble, costs: ModelCosts) -> Trial:
    """The ensemble as a candidate: nested probabilities, the seconds that its members took, and what they cost as one."""
    members = [pool[i] for i in found.picks]
    shares = [
        {"id": pool[i].recipe.name, "key": pool[i].recipe.key, "weight": count / sum(found.picks.values())}
        for i, count in found.picks.items()
    ]
    recipe = Recipe(
        name=f"ensemble of {len(members)}",
        strategy="ensemble",
        backbone="ensemble",
        weights=content_key("ensemble-weights.v1", [trial.recipe.weights for trial in members]),
        geometry=members[0].recipe.geometry,
        tap="",
        cut="",
        settings=content_key("ensemble.v1", [[share["key"], share["weight"]] for share in shares]),
    )
    passes = {
        (trial.recipe.weights, trial.recipe.look): trial.extract_seconds for trial in members
    }  # of one network through the images, whatever is read of it
    return Trial(
        recipe=recipe,
        probabilities=found.probabilities,
        train_seconds=float(sum(trial.train_seconds for trial in members)),
        extract_seconds=float(sum(passes.values())),
        model_bytes=costs.bytes,
        parameters=costs.parameters,
        latency_ms=costs.latency_ms,
        tap_index=0,
        taps=1,
        about={
            "source": _each(members, "source"),
            "licence": _each(members, "licence"),
            "runner": "onnxruntime",
            "ensemble": shares,
        },
    )


def _each(members: Sequence[Trial], name: str) -> str | None:
    return (
        "; ".join(dict.fromkeys(str(trial.about[name]) for trial in members if trial.about.get(name))) or None
    )


def in_words(trial: Trial) -> str:
    """The backbone of a trial; of an ensemble, its members with their weights."""
    shares = trial.about.get("ensemble")
    if not shares:
        return trial.recipe.backbone
    members = ", ".join(f"{share['weight']:.3g} of {share['id']}" for share in shares)
    return f"{trial.recipe.name} ({members})"


def fitting_ensemble(trial: Trial, trials: Sequence[Trial], *, fit: Fit) -> Generator[Event, None, Fitted]:
    """Every member fitted on all development images by `fit`, as one model that answers with their weighted mean."""
    by_key = {one.recipe.key: one for one in trials}
    fitted = []
    for share in trial.about["ensemble"]:
        fitted.append((yield from fit(by_key[share["key"]])))
    return joined(fitted, weights=[share["weight"] for share in trial.about["ensemble"]])


def _told(
    frame: Frame, pool: Sequence[Trial], found: Ensemble, trial: Trial | None, *, single: Trial
) -> dict[str, Any]:
    """`extras["ensembles"]`. `single`: the best candidate that is no ensemble."""
    metric, targets = METRICS[frame.settings.metric], frame.targets
    groups = frame.dataset.groups[frame.rows]
    draws = draw_weights(targets, groups, draws=DRAWS, seed=frame.settings.seed)
    nested = estimate(metric.name, found.probabilities, targets, groups, draws)
    ahead = paired(metric.name, found.probabilities, single.probabilities, targets, draws)

    def shares(picks: Mapping[int, int]) -> list[dict[str, Any]]:
        return [
            {"id": pool[i].recipe.name, "weight": round(count / sum(picks.values()), 4)}
            for i, count in picks.items()
        ]

    return {
        "id": None if trial is None else trial.recipe.name,
        "metric": metric.name,
        "method": METHOD,
        "candidates": len(pool),
        "members": shares(found.picks),
        "folds": [shares(picks) for picks in found.folds],
        "score": nested.value,
        "interval": [nested.low, nested.high],
        "single": {
            "id": single.recipe.name,
            "score": estimate(metric.name, single.probabilities, targets, groups, draws[:1]).value,
        },
        "difference": ahead.estimate,
        "difference_interval": [ahead.low, ahead.high],
        "times_bytes": None if trial is None else _times(trial.model_bytes, single.model_bytes),
        "times_latency": None if trial is None else _times(trial.latency_ms, single.latency_ms),
        "sentence": sentence(metric.name, trial, single, ahead, candidates=len(pool)),
    }


def sentence(metric: str, trial: Trial | None, single: Trial, ahead: Difference, *, candidates: int) -> str:
    """What an ensemble is worth, for people. `ahead`: how much better it is than `single`."""
    name = single.recipe.name
    if trial is None:
        return f"No ensemble is worth it: greedy selection among {candidates} candidates takes one of them alone."
    shown = METRICS[metric]
    worth = shown.difference_text(abs(ahead.estimate)).lstrip("+")
    nothing = shown.difference_text(0.0).lstrip("+")
    span = f"95 % interval of the difference: {shown.difference_text(ahead.low)} to {shown.difference_text(ahead.high)}"
    if worth == nothing or ahead.estimate < 0:
        does = "scores the same" if worth == nothing else f"loses {worth} of {shown.label}"
        return f"No ensemble gains anything: the one selected, of {len(trial.about['ensemble'])}, {does} against {name} ({span})."
    doubt = ", which may be nothing" if ahead.touches_zero else ""
    return (
        f"An {trial.recipe.name} would gain {worth} of {shown.label} against {name} ({span}){doubt}, for "
        f"{_times(trial.model_bytes, single.model_bytes):.1f} times the bytes."
    )


def _times(value: int | float | None, of: int | float | None) -> float:
    return round(float(value or 0) / max(float(of or 0), 1e-9), 3)
