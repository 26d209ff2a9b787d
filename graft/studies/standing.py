"""Where the data stand: small or large, similar or different (methods: `graft.judging.position`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from scipy.special import softmax
from threadpoolctl import threadpool_limits

from graft.backbones.activations import Activations
from graft.backbones.trunks import TrunkFile
from graft.judging import position
from graft.judging.metrics import decisions
from graft.learning import ridge
from graft.studies.frame import Frame, Trial

MOST_ROWS = 2_000


def standing(
    frame: Frame, trials: Sequence[Trial], trunk: TrunkFile, activations: Activations, best: Trial
) -> dict[str, Any]:
    """The quadrant of the dataset, seen through the backbone of the best frozen candidate.

    `trials` are all taps of that backbone. Only development images are looked at.
    """
    rows = _some(frame.rows)
    targets = frame.dataset.targets[rows]
    features = activations.tap(best.tap_index)[rows].astype(np.float32)
    full = _accuracy(features, targets, frame.classes)
    random = np.random.default_rng(frame.settings.seed)
    shares = [_accuracy_of_share(features, targets, frame.classes, share, random) for share in (4, 2)]
    taps = sorted((trial for trial in trials if trial.complete), key=lambda trial: trial.tap_index)
    scores = [float((decisions(trial.probabilities) == frame.targets).mean()) for trial in taps]
    error = float(np.sqrt(max(full * (1 - full), 1e-4) / len(frame.rows)))
    familiarity = overlap = None
    if activations.logits is not None:
        logits = activations.logits[rows].astype(np.float32)
        confidence = float(softmax(logits, axis=1).max(axis=1).mean())
        if trunk.entry.top1:
            familiarity = position.familiarity(confidence, trunk.entry.top1 / 100)
        overlap = position.label_overlap(_accuracy(logits, targets, frame.classes), full)
    found = position.position(
        slope=position.size_slope([*shares, full]),
        depth=position.depth_index(scores, error),
        familiarity=familiarity,
        overlap=overlap,
    )
    facts = asdict(found)
    depth = found.depth
    facts["depth"] = None if depth is None else (depth.best + 1) / depth.taps
    facts["backbone"] = trunk.entry.name
    return facts


def _accuracy(features: np.ndarray, targets: np.ndarray, classes: int) -> float:
    with threadpool_limits(1):
        held_out = ridge.leave_one_out(features, targets, classes=classes)
    return float((held_out.argmax(axis=1) == targets).mean())


def _accuracy_of_share(
    features: np.ndarray, targets: np.ndarray, classes: int, share: int, random: np.random.Generator
) -> float:
    """Leave-one-out accuracy on a stratified 1/`share` of the rows; the mean of three draws."""
    values = []
    for _ in range(3):
        kept = [
            random.permutation(np.flatnonzero(targets == label))[
                : max(2, round((targets == label).sum() / share))
            ]
            for label in range(classes)
        ]
        part = np.sort(np.concatenate(kept))
        values.append(_accuracy(features[part], targets[part], classes))
    return float(np.mean(values))


def _some(rows: np.ndarray) -> np.ndarray:
    if len(rows) <= MOST_ROWS:
        return rows
    return rows[np.linspace(0, len(rows) - 1, MOST_ROWS).astype(np.int64)]
