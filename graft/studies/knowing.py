"""What the chosen model knows of its own limits, measured on the folds.

In: the chosen trial with its out-of-fold probabilities, and the embeddings that its packed model gives the development
images. Out: a `Knowing` for the bundle: the score of being unknown with its threshold and its trade-off (coverage
against accuracy of what is accepted), the conformal label sets, and of two classes the threshold if one is worth it.

Probabilities are always out-of-fold. Embeddings of a frozen network are, too, in what matters: it never saw the images,
and the score of each is measured from others alone: without its fold, or of few images without its twentieth. A network that was trained has seen the images whose embeddings
these are; its threshold is then too strict on new images, and the bundle says so (`origin`).

Cost: for trained networks a pass of at most 600 images through the packed model; for frozen ones a principal subspace
per fold of at most 10,000 cached rows, or twenty of at most 400.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float32, Int, Int64
from threadpoolctl import threadpool_limits

from graft.deploy.opening import EMBEDDING, INPUT, MANIFEST
from graft.deploy.pack import Knowing
from graft.deploy.unknown import (
    ACCEPTED,
    METHOD,
    held_out_scores,
    left_out_together,
    score_graph,
    upper_quantile,
)
from graft.images.dataset import Preprocess
from graft.images.pixels import open_pixels
from graft.studies.frame import Frame, Trial
from graft.studies.thresholds import adopted_thresholds

COVERAGE = 0.9  # of the label sets
COVERAGES = (1.0, 0.98, 0.95, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5)
MOST_EMBEDDED, MOST_CACHED = 600, 10_000  # images that the score is made from
MOST_IN_PARTS = 400  # above, a fold left out changes little, and twenty subspaces take a second
LEAST_IMAGES = 20  # below, neither a quantile nor a subspace means anything
BATCH = 16
OUT_OF_FOLD = (
    "out-of-fold: the frozen network saw none of the images, each is scored without those near to it"
)
IN_SAMPLE = (
    "in-sample: the network was trained on these images, only the statistics are without them; on new images "
    "more are called unknown than the threshold says"
)


def knowing(
    frame: Frame,
    trial: Trial,
    *,
    model: bytes,
    geometry: Preprocess,
    features: Callable[[Int64[np.ndarray, " m"]], Float32[np.ndarray, "m d"]] | None,
) -> Knowing:
    """What the bundle of `trial` will know. `features`: the embeddings of rows where the cache holds them."""
    folds = frame.folds.assignment[frame.rows]
    if len(frame.rows) < LEAST_IMAGES or not trial.complete:
        return Knowing()
    chosen = np.arange(len(frame.rows))
    most = MOST_EMBEDDED if features is None else MOST_CACHED
    if len(chosen) > most:
        chosen = np.linspace(0, len(chosen) - 1, most).astype(np.int64)
    rows = frame.rows[chosen]
    if features is not None:
        embeddings = features(rows)
    else:
        embeddings = put_out(model, EMBEDDING, open_pixels(frame.dataset, geometry, store=frame.store), rows)
    probabilities = trial.probabilities[chosen]
    few = len(chosen) <= MOST_IN_PARTS
    parts = left_out_together(frame.dataset.groups[rows]) if few else folds[chosen]
    with threadpool_limits(1):  # threads that wait for each other are slow on a busy machine
        stranger, scores = held_out_scores(embeddings, probabilities, parts)
    right = probabilities.argmax(axis=1) == frame.targets[chosen]
    unknown = {
        "threshold": upper_quantile(scores, ACCEPTED),
        "accepted": ACCEPTED,
        "method": METHOD,
        "origin": IN_SAMPLE if features is None else OUT_OF_FOLD,
        "images": len(scores),
        "curve": trade_off(scores, right),
    }
    return Knowing(
        graph=score_graph(stranger, classes=frame.classes).SerializeToString(),
        unknown=unknown,
        conformal=conformal(trial.probabilities, frame.targets, folds),
        thresholds=adopted_thresholds(frame, trial),
    )


def trade_off(scores: Float[np.ndarray, " n"], right: Bool[np.ndarray, " n"]) -> list[dict[str, float]]:
    """For some shares of the images, those with the lowest scores: the share that was accepted, and its accuracy."""
    order = np.argsort(scores, kind="stable")
    points = []
    for share in COVERAGES:
        count = max(1, round(share * len(scores)))
        accuracy = float(right[order[:count]].mean())
        points.append({"coverage": round(count / len(scores), 4), "accuracy": round(accuracy, 4)})
    return points


def conformal(
    probabilities: Float[np.ndarray, "n k"],
    targets: Int[np.ndarray, " n"],
    folds: Int[np.ndarray, " n"],
) -> dict[str, Any]:
    """Label sets that hold the right class in 90 % of cases: all classes from `least_probability` on, and the answer.

    Split conformal prediction on out-of-fold probabilities with the score `1 - p(true class)` (LAC: Sadinle et al. 2019,
    arXiv 1609.00451; cross-conformal: Vovk 2015). What is told of coverage and size is nested: every fold is covered
    with the threshold of the other folds.
    """
    least = _least_probability(probabilities, targets)
    covered, sizes = [], []
    for fold in np.unique(folds):
        held = folds == fold
        sets = label_sets(probabilities[held], _least_probability(probabilities[~held], targets[~held]))
        covered += sets[np.arange(held.sum()), targets[held]].tolist()
        sizes += sets.sum(axis=1).tolist()
    return {
        "coverage": COVERAGE,
        "least_probability": least,
        "method": "LAC, cross-conformal, the most probable class always included",
        "images": len(targets),
        "measured": {
            "coverage": round(float(np.mean(covered)), 4),
            "mean_size": round(float(np.mean(sizes)), 4),
            "single": round(float(np.mean(np.array(sizes) == 1)), 4),
        },
    }


def label_sets(probabilities: Float[np.ndarray, "n k"], least: float) -> Bool[np.ndarray, "n k"]:
    """Which classes are in each image's set."""
    sets = probabilities >= least
    sets[np.arange(len(sets)), probabilities.argmax(axis=1)] = True
    return sets


def _least_probability(probabilities: Float[np.ndarray, "n k"], targets: Int[np.ndarray, " n"]) -> float:
    """The finite-sample quantile; with fewer images than it needs (9 at 90 %), every class is in the set."""
    if math.ceil((len(targets) + 1) * COVERAGE) > len(targets):
        return 0.0
    strange = 1 - probabilities[np.arange(len(targets)), targets]
    # A hair below, so that a probability that is exactly there survives being computed again by another runtime.
    return max(0.0, 1 - upper_quantile(strange, COVERAGE) - 1e-6)


def put_out(
    model: bytes, output: str, pixels: np.ndarray, rows: Int64[np.ndarray, " m"]
) -> Float32[np.ndarray, "m d"]:
    """What a packed graph says of these rows of the pixels, in float32 where it is not quantised."""
    import onnxruntime

    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    parts = [
        session.run([output], {INPUT: np.array(pixels[rows[begin : begin + BATCH]])})[0]
        for begin in range(0, len(rows), BATCH)
    ]
    return np.concatenate(parts)


def reject_facts(bundle: Path) -> dict[str, Any] | None:
    """What `study.json` tells of it (`choice.reject`), from the bundle; None where the bundle knows nothing."""
    facts = json.loads((bundle / MANIFEST).read_text(encoding="utf-8"))
    unknown, sets = facts.get("unknown"), facts.get("conformal")
    if not unknown or not sets:
        return None
    accepted = next(point for point in unknown["curve"] if point["coverage"] <= ACCEPTED + 0.005)
    whole = unknown["curve"][0]
    measured = sets["measured"]
    sentence = (
        f"Rejecting the {100 * (1 - accepted['coverage']):.0f} % of the images that look strangest moves the accuracy "
        f"of the rest from {100 * whole['accuracy']:.1f} to {100 * accepted['accuracy']:.1f} %; label sets at "
        f"{100 * sets['coverage']:.0f} % held the right class in {100 * measured['coverage']:.1f} % of the images, "
        f"with {measured['mean_size']:.2f} classes each."
    )
    kept = {name: unknown[name] for name in ("threshold", "accepted", "origin", "images", "curve")}
    return {**kept, "sets": {"coverage": sets["coverage"], **measured}, "sentence": sentence}
