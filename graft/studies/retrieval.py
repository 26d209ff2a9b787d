"""How well the features find images of the same class: the backbone's as it is, and as it was tuned.

In: what the journal holds, and the frozen features of the cache. Out: mean average precision by class. The images of the
first fold are the queries, those that the fold learned from the gallery, so that tuned features are asked about images
which they never saw.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from graft.judging.retrieval import mean_average_precision
from graft.studies.beside import activations_of, best_frozen
from graft.studies.frame import Frame, Trial
from graft.studies.rungs import Progress

if TYPE_CHECKING:
    from graft.learning.finetune import Tuned
    from graft.studies.tuning.bench import Bench
else:
    Bench = Tuned = Any

MOST_GALLERY = 20_000


def retrieval_of_tuned(frame: Frame, bench: Bench, tuned: Tuned) -> list[float | None]:
    """By class, of the features that the first fold tuned."""
    from graft.learning.finetune import embed

    def features(rows: np.ndarray) -> np.ndarray:
        return embed(bench.cutting, bench.source, tuned, rows, features=bench.features, compute=frame.compute)

    return _by_class(frame, features(_gallery(frame)), features(frame.held_out(0)))


def retrieval_facts(frame: Frame, done: Progress) -> dict[str, Any] | None:
    """What `study.json` tells under `retrieval`: the best frozen features, and every tuned candidate's."""
    best = best_frozen(frame, done.trials)
    if best is None:
        return None
    features = activations_of(frame, best)[1].tap(best.tap_index)
    frozen = _by_class(frame, features[_gallery(frame)], features[frame.held_out(0)])
    rows = [_row(best, frozen)]
    for trial in done.trials:
        known = frame.journal.fold(trial.recipe.key, 0)
        if trial.recipe.strategy in ("partial", "full") and known is not None and "retrieval" in known[0]:
            unchanged = known[0]["curve"]["best_epoch"] == 0
            rows.append({**_row(trial, known[0]["retrieval"]), "unchanged": unchanged})
    rows = [rows[0], *sorted(rows[1:], key=lambda row: -row["mean"])]
    return {
        "queries": len(frame.held_out(0)),
        "gallery": len(_gallery(frame)),
        "classes": list(frame.dataset.classes),
        "rows": rows,
        "sentence": _sentence(rows),
    }


def _gallery(frame: Frame) -> np.ndarray:
    rows = frame.learned_from(0)
    if len(rows) <= MOST_GALLERY:
        return rows
    return rows[np.linspace(0, len(rows) - 1, MOST_GALLERY).astype(np.int64)]


def _by_class(frame: Frame, gallery: np.ndarray, queries: np.ndarray) -> list[float | None]:
    targets = frame.dataset.targets
    values = mean_average_precision(
        np.asarray(gallery, np.float32),
        targets[_gallery(frame)],
        np.asarray(queries, np.float32),
        targets[frame.held_out(0)],
        classes=frame.classes,
    )
    return [None if value is None else round(value, 4) for value in values]


def _row(trial: Trial, by_class: Sequence[float | None]) -> dict[str, Any]:
    known = [value for value in by_class if value is not None]
    return {
        "id": trial.recipe.name,
        "strategy": trial.recipe.strategy,
        "mean": round(float(np.mean(known)), 4) if known else 0.0,
        "by_class": list(by_class),
    }


def _sentence(rows: Sequence[dict[str, Any]]) -> str:
    frozen = f"Asked for images of the same class, the features of {rows[0]['id']} find them with a mean average precision of {rows[0]['mean']:.3f}"
    if len(rows) == 1:
        return f"{frozen}."
    best = rows[1]
    if best["unchanged"]:
        why = "no epoch of tuning was better than the frozen network"
        return f"{frozen}; those of {best['id']}, with {best['mean']:.3f}, are the backbone's own, because {why}."
    return f"{frozen}; tuned, those of {best['id']} with {best['mean']:.3f}."
