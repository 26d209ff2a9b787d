"""Does turning an image change its class? Asked of a head that sees which way it is turned, and of one that cannot.

In: features of images as they are and turned (mirrored, say), and their classes. Out: a `Turning`. With P and M the
features of an image and of its turned copy, the first head reads P + M, which is the same for both; the second reads
P - M besides, which changes its sign. A head that is taught that turned images keep their class gives P - M no weight
(each image pulls it one way, its copy the other), so the first head is what the augmentation would leave of the
second. Hence three answers:

- the second head is right more often: turning changes the class (left and right shoes);
- it is not, and the first one tells the classes, with no two of them that only the second one tells apart: turning keeps
  it, also where all images of a class happen to look to one side;
- else nobody can know, and a view that may lie is not made.

Cost: two ridge heads for each fold, 0.5 s for 400 images. Not covered: two classes of many that are each other's mirror
images and of which there are fewer than eight images each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np
from jaxtyping import Float, Int64
from scipy.special import bdtrc
from threadpoolctl import threadpool_limits

from graft.learning import ridge

CHANCE = 0.01
CLEARLY = 3.0  # standard errors above guessing, for all classes; of noise 9 in 100 sets reach 2
BARELY = 1.0  # for two classes: below it they are guessed between
FEWEST = 8  # images of a class that its pairs are asked about
SHUFFLES = 9_999

Verdict = Literal["changed", "kept", "unknown"]


@dataclass(frozen=True, slots=True)
class Turning:
    """What the two heads say of held-out images.

    `blind`, `sighted`: balanced accuracies, 0 to 1, of the head that cannot see the turning and of the one that can;
    `chance`: how likely the second would be ahead so far if turning did not matter; `clear`: how many standard errors
    the first is above guessing; `confused`: two classes that the second one alone tells apart, or none.
    """

    images: int
    blind: float
    sighted: float
    chance: float
    clear: float
    confused: tuple[int, ...]

    @property
    def verdict(self) -> Verdict:
        """Whether turning changes the class."""
        if self.chance < CHANCE:
            return "changed"
        return "kept" if self.clear >= CLEARLY and not self.confused else "unknown"


def turning(
    plain: Sequence[Float[np.ndarray, "m _"]],
    turned: Sequence[Float[np.ndarray, "m _"]],
    targets: Int64[np.ndarray, " m"],
    *,
    parts: Int64[np.ndarray, " m"],
) -> Turning:
    """Ask both heads about each part, learned from the others; several kinds of features weigh the same.

    `parts`: at least two, near-duplicates in the same one.
    """
    both, difference = [], []
    for as_it_is, other in zip(plain, turned, strict=True):
        middle = (as_it_is.astype(np.float32) + other) / 2
        both.append(_of_one_size(middle - middle.mean(axis=0)))
        difference.append(_of_one_size(as_it_is.astype(np.float32) - other))
    classes, labels, counts = np.unique(targets, return_inverse=True, return_counts=True)
    blind = _answers(np.concatenate(both, axis=1), labels, parts)
    sighted = _answers(np.concatenate(both + difference, axis=1), labels, parts)
    weights = 1 / (len(classes) * counts[labels])
    right = np.stack([answers.argmax(axis=1) == labels for answers in (blind, sighted)]).astype(np.float64)
    found = _confused(blind, sighted, labels, counts)
    return Turning(
        len(labels),
        blind=float(right[0] @ weights),
        sighted=float(right[1] @ weights),
        chance=_chance((right[1] - right[0]) * weights),
        clear=_clear(right[0], labels, counts),
        confused=tuple(int(classes[number]) for number in found),
    )


def _of_one_size(rows: Float[np.ndarray, "m d"]) -> Float[np.ndarray, "m d"]:
    """Scaled so that the mean square of the rows' lengths is one."""
    return rows / max(float(np.sqrt((rows * rows).sum(axis=1).mean())), 1e-12)


def _answers(
    features: Float[np.ndarray, "m d"], labels: Int64[np.ndarray, " m"], parts: Int64[np.ndarray, " m"]
) -> Float[np.ndarray, "m k"]:
    """Probabilities for each part from a head that learned from the others, every class of the same weight."""
    classes = int(labels.max()) + 1
    answers = np.zeros((len(labels), classes), np.float32)
    with threadpool_limits(1):
        for part in np.unique(parts):
            asked = parts == part
            head = ridge.fit(features[~asked], labels[~asked], classes=classes, balances=("full",))
            answers[asked] = head.probabilities(features[asked])
    return answers


def _chance(gains: Float[np.ndarray, " m"]) -> float:
    """How often gains of these sizes come to as much if each may as well be a loss (a sign test with weights)."""
    changed = gains[gains != 0]
    signs = np.random.default_rng(0).integers(0, 2, (SHUFFLES, len(changed))) * 2 - 1
    at_least = (signs @ changed >= changed.sum() - 1e-12).sum()
    return float((1 + at_least) / (1 + SHUFFLES))


def _clear(
    right: Float[np.ndarray, " m"], labels: Int64[np.ndarray, " m"], counts: Int64[np.ndarray, " k"]
) -> float:
    """Standard errors that the mean recall is above guessing; one success and one failure are added to each class."""
    hits = np.bincount(labels, weights=right, minlength=len(counts))
    recall, smooth = hits / counts, (hits + 1) / (counts + 2)
    error = np.sqrt((smooth * (1 - smooth) / counts).sum()) / len(counts)
    return float((recall.mean() - 1 / len(counts)) / error)


def _confused(
    blind: Float[np.ndarray, "m k"],
    sighted: Float[np.ndarray, "m k"],
    labels: Int64[np.ndarray, " m"],
    counts: Int64[np.ndarray, " k"],
) -> tuple[int, ...]:
    """Two classes that the first head guesses between and the second one tells apart: the surest such pair, or none."""
    guessed: list[tuple[float, tuple[int, ...]]] = []
    for pair in combinations(np.flatnonzero(counts >= FEWEST).tolist(), 2):
        own = (labels == pair[0]) | (labels == pair[1])
        side = (labels[own] == pair[1]).astype(np.int64)
        right = [(each[own, pair[1]] > each[own, pair[0]]) == side for each in (blind, sighted)]
        if _clear(right[0].astype(np.float64), side, np.bincount(side)) < BARELY:
            gained, lost = int((right[1] & ~right[0]).sum()), int((right[0] & ~right[1]).sum())
            guessed.append((float(bdtrc(gained - 1, gained + lost, 0.5)), pair))
    chance, surest = min(guessed, default=(1.0, ()))
    return surest if chance < CHANCE / max(1, len(guessed)) else ()
