"""Where the data stand: few or many images, like or unlike what the network was trained on.

In: numbers that fall out of the probes (accuracies at a quarter, a half and all of the images, scores by tap, the
pre-trained classifier's answers). Out: a `Position` with the four numbers, a sentence and the advice of the quadrant
small/large x similar/different. Pure functions, no cost. The advice is a prior in words: what a study then measures
on the folds overrules it. Not covered: distances between distributions (they saturate between any two image sets).

A missing number is None; the verdict rests on the others and the sentence says what was not measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Size = Literal["small", "medium", "large"]
Similarity = Literal["similar", "between", "different"]

SMALL_ABOVE_POINTS = 3.0
LARGE_BELOW_POINTS = 1.0
# A MobileNetV2 of ImageNet had a familiarity of 1.00 on ants and bees, 0.63 on Caltech-101, 0.60 on dogs and cats,
# 0.43 on magnetic tiles and 0.35 on Fashion-MNIST; the label overlap of these sets ran only from 0.98 to 1.01.
FAMILIARITY_RANGE = (0.4, 0.8)
OVERLAP_RANGE = (0.95, 1.0)
SIMILAR_ABOVE, DIFFERENT_BELOW = 0.75, 0.35

ADVICE: dict[tuple[Size, Similarity], str] = {
    (
        "small",
        "similar",
    ): "Keep the network frozen and train only the ridge head; more images would help most.",
    ("small", "between"): (
        "Keep the network frozen and compare the taps; fine-tune the last stage only if the out-of-fold scores agree."
    ),
    ("small", "different"): (
        "Let the head read several depths at once; fine-tune the first and the last stage only if the out-of-fold "
        "scores agree; more images would help most."
    ),
    (
        "medium",
        "similar",
    ): "Start frozen; fine-tune the last stage and keep it only if the out-of-fold scores agree.",
    (
        "medium",
        "between",
    ): "Start frozen, compare the taps, then fine-tune the last stages head first and compare.",
    (
        "medium",
        "different",
    ): "Let the head read several depths at once, then fine-tune more than the last stage.",
    ("large", "similar"): "Fine-tune the whole network, head first, with a low learning rate.",
    ("large", "between"): "Fine-tune the whole network, head first; try a low and a high learning rate.",
    ("large", "different"): (
        "Fine-tune the whole network, head first, with a high learning rate and batch-norm statistics estimated "
        "again; beyond 20,000 images a network from scratch is a rival."
    ),
}


@dataclass(frozen=True, slots=True)
class Depth:
    """Which of `taps` taps (0 is nearest the image) is best, and by how much.

    `lead`: the last tap's score minus the best earlier one's, in the unit of the scores.
    """

    best: int
    taps: int
    lead: float
    verdict: Similarity


@dataclass(frozen=True, slots=True)
class Position:
    """The place among small/large x similar/different, its numbers (None: not measured), and what follows."""

    size: Size
    similarity: Similarity
    slope: float | None
    depth: Depth | None
    familiarity: float | None
    overlap: float | None
    sentence: str
    advice: str


def size_slope(accuracies: Sequence[float]) -> float:
    """Points of accuracy gained per doubling of the images; above 3 the set is small, below 1 large enough.

    `accuracies`, as shares within 0..1, were measured on successive doublings, such as n/4, n/2 and n. The slope of
    the least-squares line through them over log2(n); with three values the middle one cancels. Raises ValueError for
    fewer than two.
    """
    if len(accuracies) < 2:
        raise ValueError("a slope needs the accuracies of at least two sizes")
    doublings = np.arange(len(accuracies)) - (len(accuracies) - 1) / 2
    return float(100 * (doublings @ np.asarray(accuracies, dtype=np.float64)) / (doublings @ doublings))


def depth_index(scores: Sequence[float], standard_error: float) -> Depth | None:
    """Which depth serves the task best; None for fewer than two taps.

    `scores`: higher is better, one per tap or stage in order of depth. The depth that wins is itself a distance
    between tasks (Yosinski et al. 2014; Evci et al. 2022, Head2Toe): `similar` where the last tap is best (of equal
    ones the last counts), `different` where it trails an earlier one by more than a standard error, else `between`.
    """
    if len(scores) < 2:
        return None
    table = np.asarray(scores, dtype=np.float64)
    best = len(table) - 1 - int(table[::-1].argmax())
    lead = float(table[-1] - table[:-1].max())
    verdict: Similarity = "similar" if lead >= 0 else "different" if -lead > standard_error else "between"
    return Depth(best, len(table), lead, verdict)


def familiarity(mean_confidence: float, published_top1: float) -> float:
    """How much at home a pre-trained classifier is on these images: about 1 on its own kind of image, less elsewhere.

    The mean of its highest probability over the images, divided by its published top-1 accuracy (a share within
    0..1). A calibrated classifier's mean confidence on its own domain equals its accuracy (Guo et al. 2017), so the
    published number stands in for quantiles of the energy on ImageNet's validation images, which need those images.
    Networks trained with label smoothing or with a loss per class are underconfident and look less at home than they
    are. Raises ValueError for an accuracy outside (0, 1].
    """
    if not 0 < published_top1 <= 1:
        raise ValueError(f"the published top-1 accuracy is {published_top1}; give it as a share within 0..1")
    return mean_confidence / published_top1


def label_overlap(logits_score: float, features_score: float) -> float:
    """How much of the task lies within the classes the network already knows: near 1, all of it.

    The accuracy of a head that reads the pre-trained classifier's logits, divided by that of a head on the features
    (0 where the latter is 0). It separates weakly: 1,000 logits are a nearly lossless linear view of the features.
    """
    return logits_score / features_score if features_score > 0 else 0.0


def position(
    *, slope: float | None, depth: Depth | None, familiarity: float | None, overlap: float | None
) -> Position:
    """The verdict from what was measured: `size_slope`, `depth_index`, `familiarity` and `label_overlap`.

    Similarity is the mean of three grades within 0..1: depth (similar 1, between 0.5, different 0), familiarity (0.4
    and less: 0; 0.8 and more: 1) and overlap (0.95: 0; 1: 1); from 0.75 on similar, up to 0.35 different. Without a
    slope the size counts as medium, without any grade the similarity as between.
    """
    size: Size = "medium"
    if slope is not None:
        size = "small" if slope > SMALL_ABOVE_POINTS else "large" if slope < LARGE_BELOW_POINTS else "medium"
    grades = []
    if depth is not None:
        grades.append({"similar": 1.0, "between": 0.5, "different": 0.0}[depth.verdict])
    if familiarity is not None:
        grades.append(float(np.interp(familiarity, FAMILIARITY_RANGE, (0, 1))))
    if overlap is not None:
        grades.append(float(np.interp(overlap, OVERLAP_RANGE, (0, 1))))
    grade = float(np.mean(grades)) if grades else 0.5
    similarity: Similarity = (
        "similar" if grade >= SIMILAR_ABOVE else "different" if grade <= DIFFERENT_BELOW else "between"
    )
    sentence = f"{_about_size(size, slope)} {_about_similarity(similarity, depth, familiarity, overlap)}"
    return Position(size, similarity, slope, depth, familiarity, overlap, sentence, ADVICE[size, similarity])


def _about_size(size: Size, slope: float | None) -> str:
    if slope is None:
        return "How much more images would help was not measured."
    verdict = {
        "small": "The set is small",
        "medium": "The set is of medium size",
        "large": "The set is large enough",
    }
    return f"{verdict[size]}: the last doublings of the images brought {slope:+.1f} points each."


def _about_similarity(
    similarity: Similarity, depth: Depth | None, familiarity: float | None, overlap: float | None
) -> str:
    parts, missing = [], []
    if depth is None:
        missing.append("the best depth")
    elif depth.best == depth.taps - 1 and abs(depth.lead) < 0.0005:
        parts.append(f"the last of {depth.taps} taps is no better than the best of the others")
    elif depth.best == depth.taps - 1:
        parts.append(f"the last of {depth.taps} taps is the best ({100 * depth.lead:+.1f} points)")
    else:
        parts.append(
            f"tap {depth.best + 1} of {depth.taps} is the best, {-100 * depth.lead:.1f} points above the last"
        )
    if familiarity is None:
        missing.append("the classifier's confidence")
    else:
        parts.append(f"the pre-trained classifier is {familiarity:.2f} times as confident as at home")
    if overlap is None:
        missing.append("the overlap of the classes")
    else:
        parts.append(f"its answers alone reach {100 * overlap:.0f} % of the features' accuracy")
    verdict = {
        "similar": "The images are similar to what the network was trained on",
        "between": "The images are neither clearly similar to what the network was trained on nor clearly different",
        "different": "The images are different from what the network was trained on",
    }[similarity]
    text = f"{verdict}: {'; '.join(parts)}." if parts else "How similar the images are is unknown."
    return f"{text} Not measured: {', '.join(missing)}." if missing else text
