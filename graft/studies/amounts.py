"""How many images are needed: transfer and training from scratch, each on a quarter, a half and all of the images.

In: the frozen trials and the trial from scratch. Out: `done.extras["amounts"]`, rows of (images, share, strategy, metric,
interval, folds) and a sentence. The subsets of a fold are nested and stratified; near-duplicates stay together, because
two of them count as one picture. All are tested on the same held-out images, so that only the number of images differs.

Cost: for transfer a head per (share, fold) from cached features; from scratch three quarters of a fold for
every fold that takes part, which is one, or more where the plan of the training leaves room (`amount_folds`). Every
finished (strategy, share, fold) is in the journal.

Not covered: fine-tuning on subsets; other designs for the smaller ones.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Float32, Int64

from graft.judging.uncertainty import draw_weights, estimate
from graft.learning.inner import Balance
from graft.store import content_key
from graft.studies.amount_words import Point, amounts_sentence
from graft.studies.balancing import UNASKED
from graft.studies.depths import best_read, features_of
from graft.studies.frame import Event, Frame, Trial
from graft.studies.rungs import Progress, Working, amount_folds, kept_for_the_end, training_settings
from graft.studies.scratching import measured_fold
from graft.studies.shrinking.measuring import fitted_head

if TYPE_CHECKING:
    from graft.backbones.scratch import ScratchDesign
    from graft.learning.training import TrainingSettings

SHARES = (0.25, 0.5, 1.0)
DRAWS = 1_000
SLOWER = 1.5  # times as long as its share of the training on all images one on a part of them may take
NOT_MEASURED = "before it was measured how many images are needed."
WITHOUT_SCRATCH = "before training from scratch was measured with fewer images."
ALIKE = 0.8  # of the epochs that it had on all images a training on a part of them must have had, to be held against it
LEAST_IMAGES = 2  # of a class in every subset, where it has two pictures that are different

Strategy = Literal["transfer", "scratch"]


@dataclass(frozen=True, slots=True, eq=False)
class Curve:
    """Held-out probabilities of one strategy: `[share, fold]` to the rows of the fold."""

    strategy: Strategy
    folds: tuple[int, ...]
    measured: dict[tuple[float, int], Float32[np.ndarray, "f k"]]


def amounts_rung(frame: Frame, done: Progress) -> Working:
    """Measure both strategies by number of images; without either, or with too few images, nothing is told."""
    transfer, scratch = best_read(frame, done.trials), _scratch(done)
    if transfer is None and scratch is None:
        return
    yield Event("stage", "How many images are needed")
    curves: list[Curve] = []
    without = ""
    if scratch is not None:
        curve = yield from _from_scratch(
            frame, scratch, kept_seconds=kept_for_the_end(frame.targets, done.trials)
        )
        curves += [curve] if curve is not None else []
        without = "" if curves else f"{frame.ended} {WITHOUT_SCRATCH}"
    if transfer is not None:
        folds = curves[0].folds if curves else tuple(range(frame.folds.count))
        curve = yield from _transferred(frame, transfer, folds)
        curves = [curve, *curves] if curve is not None else curves
    if curves:
        done.extras["amounts"] = _told(frame, curves, without=without)
        yield Event("notice", done.extras["amounts"]["sentence"])


def subset(
    targets: Int64[np.ndarray, " n"],
    groups: Int64[np.ndarray, " n"],
    rows: Int64[np.ndarray, " m"],
    *,
    share: float,
    seed: int,
) -> Int64[np.ndarray, " s"]:
    """About `share` of every class of `rows`, sorted; a smaller share of the same seed is a part of a larger one.

    Groups are taken whole, in an order that is drawn once per class (a group belongs to the class of its first row), until the
    share is reached and there are two images, so that a class is never missing. A share of 1 gives all rows.
    """
    if share >= 1:
        return np.sort(rows)
    random = np.random.default_rng([seed, 25])
    names, first, member = np.unique(groups[rows], return_index=True, return_inverse=True)
    sizes = np.bincount(member, minlength=len(names))
    label = targets[rows][first]
    taken = np.zeros(len(names), dtype=bool)
    for one in np.unique(label):
        own = random.permutation(np.flatnonzero(label == one))
        before = np.cumsum(sizes[own]) - sizes[own]
        wanted = max(share * sizes[own].sum(), LEAST_IMAGES)
        taken[own[before + sizes[own] / 2 <= wanted]] = True
        taken[own[before < LEAST_IMAGES]] = True
    return np.sort(rows[taken[member]])


def _scratch(done: Progress) -> Trial | None:
    return next((trial for trial in done.trials if trial.recipe.strategy == "scratch"), None)


def _rows(frame: Frame, share: float, fold: int) -> Int64[np.ndarray, " s"]:
    return subset(
        frame.dataset.targets,
        frame.dataset.groups,
        frame.learned_from(fold),
        share=share,
        seed=1000 * frame.settings.seed + fold,
    )


def _transferred(frame: Frame, trial: Trial, folds: Sequence[int]) -> Generator[Event, None, Curve | None]:
    """The best frozen candidate with heads fitted on fewer rows; on all rows its predictions are known.

    None where the budget has ended.
    """
    measured = _whole(frame, trial, folds)
    features: Float32[np.ndarray, "n d"] | None = None
    for share in SHARES[:-1]:
        key = _key(trial, share)
        for fold in folds:
            known = frame.journal.fold(key, fold)
            if known is None:
                if frame.remaining_seconds() <= 0:
                    yield Event("notice", f"{frame.ended} {NOT_MEASURED}")
                    return None
                if features is None:
                    features = features_of(frame, trial)
                known = _head(frame, trial, key, features, share, fold)
            measured[share, fold] = known[1]
            yield Event("progress", f"transfer from {share:.0%}", remaining_seconds=frame.remaining_seconds())
    return Curve("transfer", tuple(folds), measured)


def _head(
    frame: Frame, trial: Trial, key: str, features: Float32[np.ndarray, "n d"], share: float, fold: int
) -> tuple[dict[str, Any], np.ndarray]:
    """One head on the share of a fold's rows, in the journal."""
    begun, rows = time.monotonic(), _rows(frame, share, fold)
    found = fitted_head(frame, features, rows).probabilities(features[frame.held_out(fold)])
    facts = {
        "name": f"{trial.recipe.name} from {share:.0%}",
        "seconds": round(time.monotonic() - begun, 4),
        "images": len(rows),
    }
    return frame.journal.add_fold(key, fold, found, facts), found


def _from_scratch(frame: Frame, trial: Trial, *, kept_seconds: float) -> Generator[Event, None, Curve | None]:
    """The same design, trained on fewer rows for as many epochs; on all rows its predictions are known.

    A training that the clock cut off earlier than the one on all images says nothing about the number of images: a fold with
    such a one is left out.
    """
    from graft.backbones.scratch import design

    made, _ = design(frame.dataset, development=len(frame.rows))
    settings = training_settings(frame)
    fold_seconds = trial.train_seconds / max(1, len(trial.curves))
    most = amount_folds(frame, made, settings, fold_seconds=fold_seconds)
    most = max(most, _known_folds(frame, trial))
    finished = [fold for fold in range(most) if _finished(frame, trial, fold)]
    measured: dict[tuple[float, int], np.ndarray] = {}
    folds: list[int] = []
    for fold in finished:
        small: dict[tuple[float, int], np.ndarray] = {}
        for share in SHARES[:-1]:
            seconds = frame.remaining_seconds() - kept_seconds
            found = yield from _trained(
                frame, trial, made, settings, share, fold, seconds=seconds, whole_seconds=fold_seconds
            )
            if found is None:
                break
            small[share, fold] = found
        if len(small) < len(SHARES) - 1:
            yield Event("notice", f"{frame.ended} {NOT_MEASURED}")
            break
        measured |= small
        folds.append(fold)
    return Curve("scratch", tuple(folds), measured | _whole(frame, trial, folds)) if folds else None


def _known_folds(frame: Frame, trial: Trial) -> int:
    """On how many folds, from the first on, an earlier session has trained on every share."""
    keys = [_key(trial, share) for share in SHARES[:-1]]
    known = (all(frame.journal.fold(key, fold) for key in keys) for fold in range(frame.folds.count))
    return sum(1 for _ in takewhile(bool, known))


def _key(trial: Trial, share: float) -> str:
    return content_key("amounts.v2", trial.recipe.key, repr(share))


def _trained(
    frame: Frame,
    trial: Trial,
    made: ScratchDesign,
    settings: TrainingSettings,
    share: float,
    fold: int,
    *,
    seconds: float,
    whole_seconds: float,
) -> Generator[Event, None, np.ndarray | None]:
    """Held-out probabilities after training on the share of a fold's rows. None where `seconds` are too few for it, or the clock
    cut it off; `whole_seconds` is what the training on all of them took."""
    key = _key(trial, share)
    known = frame.journal.fold(key, fold)
    if known is None:
        wanted = share * whole_seconds
        if seconds <= wanted:
            return None
        known = yield from measured_fold(
            frame,
            replace(trial.recipe, name=f"{trial.recipe.name} from {share:.0%}"),
            made,
            replace(settings_for(settings, share), balance=_balance(frame, trial, fold)),
            fold=fold,
            rows=_rows(frame, share, fold),
            key=key,
            seed=fold,
            deadline_seconds=max(1.0, min(seconds, SLOWER * wanted) if wanted else seconds),
            text=f"from scratch on {share:.0%} of the images, fold {fold + 1}",
        )
    whole = next((curve for curve in trial.curves if curve["fold"] == fold), None)
    return known[1] if _as_long(known[0]["curve"], whole) else None


def _as_long(curve: Mapping[str, Any], whole: Mapping[str, Any] | None) -> bool:
    """Whether a training had about as many epochs as the one on all images, where it did not end by itself."""
    if whole is None or curve["stopped"] != "deadline":
        return True
    return len(curve["epochs"]) >= ALIKE * len(whole["epochs"])


def _balance(frame: Frame, trial: Trial, fold: int) -> Balance:
    """That of the training on all images of the fold."""
    known = frame.journal.find("fold", {"recipe": trial.recipe.key, "fold": fold})
    return UNASKED if known is None else known["balance"]


def settings_for(settings: TrainingSettings, share: float) -> TrainingSettings:
    """The same number of epochs on a share of the images."""
    return replace(
        settings, multiply_adds=share * settings.multiply_adds, steps=max(1, round(share * settings.steps))
    )


def _finished(frame: Frame, trial: Trial, fold: int) -> bool:
    held_out = frame.folds.assignment[frame.rows] == fold
    return not bool(np.isnan(trial.probabilities[held_out]).any())


def _whole(frame: Frame, trial: Trial, folds: Sequence[int]) -> dict[tuple[float, int], np.ndarray]:
    """What the trial said about the folds after learning from all rows."""
    assignment = frame.folds.assignment[frame.rows]
    return {(SHARES[-1], fold): trial.probabilities[assignment == fold] for fold in folds}


def _told(frame: Frame, curves: Sequence[Curve], *, without: str) -> dict[str, Any]:
    """The rows and the sentence as `study.json` holds them; `without`: why one of the two is missing."""
    rows = [_row(frame, curve, share) for curve in curves for share in SHARES]
    points = {
        curve.strategy: [
            Point(row["images"], row["metric"]) for row in rows if row["strategy"] == curve.strategy
        ]
        for curve in curves
    }
    sentence = amounts_sentence(
        points.get("transfer", []), points.get("scratch", []), metric=frame.settings.metric
    )
    sentence = f"{sentence} {without}".strip()
    return {"rows": rows, "sentence": sentence, "measure": frame.settings.metric}


def _row(frame: Frame, curve: Curve, share: float) -> dict[str, Any]:
    tested = np.concatenate([frame.held_out(fold) for fold in curve.folds])
    probabilities = np.concatenate([curve.measured[share, fold] for fold in curve.folds])
    targets, groups = frame.dataset.targets[tested], frame.dataset.groups[tested]
    draws = draw_weights(targets, groups, draws=DRAWS, seed=frame.settings.seed)
    found = estimate(frame.settings.metric, probabilities, targets, groups, draws)
    return {
        "images": round(float(np.mean([len(_rows(frame, share, fold)) for fold in curve.folds]))),
        "share": share,
        "strategy": curve.strategy,
        "metric": found.value,
        "interval": [found.low, found.high],
        "folds": len(curve.folds),
    }
