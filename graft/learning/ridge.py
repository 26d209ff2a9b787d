"""A closed-form head: ridge regression on one-hot targets, chosen by exact leave-one-out, with one temperature.

In: frozen features `[n, d]` and class numbers. Out: a `RidgeHead`, two small arrays that turn features into logits.
There is no learning rate, no epoch and no seed. One symmetric eigen-decomposition of the smaller of the Gram matrix
`[n, n]` and the covariance `[d, d]` gives the leave-one-out prediction of every image for every penalty (the classical
identity `e_i / (1 - h_i)`: Golub, Heath and Wahba 1979); penalty, temperature and class weighting are chosen on those
predictions (PreVal: Dempster, Webb and Schmidt 2024, arXiv 2401.15610), so nothing outside the given rows is seen.
Drawing every class equally often is, in closed form, the weighting `full`: it needs no name of its own.

Few rows flatter whatever is chosen on them. So the penalty is never below `LEAST / n**2`, and the temperature is fitted as
if each image were of any class with a chance of 1 / (n + 1), which Platt (1999) did for two classes. Learned from
30, 50 and 100 photos of four sets, with the features of the best tap of two MobileNets, the mean log loss on all other
photos falls from 0.75 to 0.65, from 0.64 to 0.56 and from 0.50 to 0.49, and no mean accuracy falls; from 300 photos on
nothing changes.

Not covered: more rows times features than fit in memory several times over.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import scipy.linalg
from jaxtyping import Float, Float32, Int
from scipy.special import softmax

PENALTIES = np.logspace(-5, 1, 19)  # relative to the largest eigenvalue: see Spectrum
UNBALANCED = 1.5  # below this ratio of the largest to the smallest class, weighting is not tried
LEAST = 100.0  # the penalty of n rows is at least LEAST / n**2, or CEILING where that is more
CEILING = 0.1
EXACT_ROWS = (
    1_000  # up to so many rows float64 is used; it takes 1.6 times as long, 0.1 s more for 1,000 x 1,280
)
SPEED, EXACT_SPEED = 65e9, 25e9  # operations a second and thread, about, in float32 and in float64
SCALES = (0.5, 200.0)  # what the logits may be multiplied by

Weighting = Literal["none", "root", "full", "logit"]
"""`root`, `full`: a class counts with the inverse (square root) of its frequency; `logit`: none does, but the logarithm of a
class's share is subtracted from its logit (logit adjustment: Menon et al. 2021, arXiv 2007.07314)."""
WEIGHTS: tuple[Weighting, ...] = ("none", "root", "full")
BALANCES: tuple[Weighting, ...] = (*WEIGHTS, "logit")
EXPONENTS = {"none": 0.0, "root": 0.5, "full": 1.0}

Criterion = Callable[[Float[np.ndarray, "n k"], Int[np.ndarray, " n"]], float]


@dataclass(frozen=True, slots=True, eq=False)
class RidgeHead:
    """`logits = unit(x) @ weight + bias`, with `unit` the division by the row's length; the temperature is inside.

    `penalty` is relative to the largest eigenvalue; `score`: of the leave-one-out probabilities that `balance` was chosen by.
    """

    weight: Float32[np.ndarray, "d k"]
    bias: Float32[np.ndarray, " k"]
    penalty: float
    balance: Weighting
    scale: float
    score: float

    def probabilities(self, features: Float[np.ndarray, "n d"]) -> Float32[np.ndarray, "n k"]:
        """Class probabilities of new rows."""
        logits = unit(features.astype(np.float32)) @ self.weight + self.bias
        return softmax(logits, axis=1).astype(np.float32)


def fitting_seconds(rows: int, features: int, *, weightings: int, threads: int) -> float:
    """What it takes to fit a head, about: for each of the `weightings` that are tried, the products of the features, and the
    eigenvectors of what is smaller."""
    rank = min(rows, features)
    speed = EXACT_SPEED if rows <= EXACT_ROWS else SPEED
    return weightings * (2.0 * rows * features * rank + 10.0 * rank**3) / speed / threads


def weightings_tried(targets: Int[np.ndarray, " n"], classes: int) -> int:
    """For how many weightings of such classes `fit` solves its equations."""
    return len(WEIGHTS) if _unbalanced(targets, classes) else 1


def unit(features: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
    """Rows of length one (a row of zeros stays)."""
    length = np.sqrt((features * features).sum(axis=1, keepdims=True))
    return features / np.maximum(length, 1e-12)


def fit(
    features: Float[np.ndarray, "n d"],
    targets: Int[np.ndarray, " n"],
    *,
    classes: int,
    criterion: Criterion | None = None,
    balances: Sequence[Weighting] = BALANCES,
    least_penalty: float = 0.0,
) -> RidgeHead:
    """The head for these rows, with a penalty of at least `least_penalty` (relative, as `PENALTIES` are).

    See `solved`, which also tells what it was made of.
    """
    return solved(
        features,
        targets,
        classes=classes,
        criterion=criterion,
        balances=balances,
        least_penalty=least_penalty,
    )[0]


def solved(
    features: Float[np.ndarray, "n d"],
    targets: Int[np.ndarray, " n"],
    *,
    classes: int,
    criterion: Criterion | None = None,
    balances: Sequence[Weighting] = BALANCES,
    least_penalty: float = 0.0,
) -> tuple[RidgeHead, Spectrum]:
    """The head for these rows, and the decomposition of the rows, weighted as it weights them.

    For each class weighting, penalty and scale are those of the lowest leave-one-out log loss; among the weightings,
    `criterion` (a score of leave-one-out probabilities, higher is better; default: minus the log loss) decides, and the
    plainer one wins a tie. Weightings other than the first are tried only where the classes are unbalanced.
    """
    rows = _prepared(features)
    tried = balances if _unbalanced(targets, classes) else balances[:1]
    found = {
        weighting: _fit_one(rows, targets, classes=classes, weighting=weighting, least_penalty=least_penalty)
        for weighting in dict.fromkeys(map(_weighted, tried))
    }
    best: RidgeHead | None = None
    for balance in tried:
        head, held_out, _ = found[_weighted(balance)]
        if balance == "logit":
            head, held_out = _adjusted(head, held_out, targets)
        score = criterion(held_out, targets) if criterion else -log_loss(held_out, targets)
        if best is None or score > best.score + 1e-9:
            best = replace(head, score=score)
    assert best is not None
    return best, found[_weighted(best.balance)][2]


def _weighted(balance: Weighting) -> Weighting:
    """How the classes are weighted while the head is fitted."""
    return "none" if balance == "logit" else balance


def _adjusted(
    head: RidgeHead, held_out: Float[np.ndarray, "n k"], targets: Int[np.ndarray, " n"]
) -> tuple[RidgeHead, Float[np.ndarray, "n k"]]:
    """The head whose logits are adjusted, and its leave-one-out probabilities: no row is in the shares it is adjusted by."""
    counts = np.bincount(targets, minlength=held_out.shape[1])
    others = np.maximum(counts - np.eye(len(counts))[targets], 1)
    fairer = (held_out / others).astype(held_out.dtype)
    adjusted = replace(head, bias=head.bias - log_shares(targets, held_out.shape[1]), balance="logit")
    return adjusted, fairer / fairer.sum(axis=1, keepdims=True)


def log_shares(targets: Int[np.ndarray, " n"], classes: int) -> Float32[np.ndarray, " k"]:
    """The logarithm of each class's share of the rows; a class without rows counts as one row."""
    return np.log(np.maximum(np.bincount(targets, minlength=classes), 1) / len(targets)).astype(np.float32)


def leave_one_out(
    features: Float[np.ndarray, "n d"], targets: Int[np.ndarray, " n"], *, classes: int
) -> Float[np.ndarray, "n k"]:
    """Leave-one-out probabilities of the unweighted head, its penalty and scale chosen on themselves."""
    return _fit_one(_prepared(features), targets, classes=classes, weighting="none")[1]


def _prepared(features: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
    """Rows of length one; few of them in float64: leave-one-out divides by what is left of an image's own influence."""
    return unit(features.astype(np.float64) if len(features) <= EXACT_ROWS else features)


def least_penalty_of(count: int) -> float:
    """The least penalty that is tried for so many rows, one of `PENALTIES`."""
    return float(PENALTIES[min(CEILING, LEAST / count**2) <= PENALTIES * (1 + 1e-9)][0])


def log_loss(probabilities: Float[np.ndarray, "n k"], targets: Int[np.ndarray, " n"]) -> float:
    """The mean of `-log p(true class)`, in nats."""
    chosen = probabilities[np.arange(len(targets)), targets]
    return float(-np.log(np.maximum(chosen, 1e-12)).mean())


def _unbalanced(targets: Int[np.ndarray, " n"], classes: int) -> bool:
    counts = np.bincount(targets, minlength=classes)
    counts = counts[counts > 0]
    return bool(counts.max() > UNBALANCED * counts.min())


def _fit_one(
    rows: Float[np.ndarray, "n d"],
    targets: Int[np.ndarray, " n"],
    *,
    classes: int,
    weighting: Weighting,
    least_penalty: float = 0.0,
) -> tuple[RidgeHead, Float[np.ndarray, "n k"], Spectrum]:
    solution = Spectrum(rows, targets, classes=classes, balance=EXPONENTS[weighting])
    best: tuple[float, float, float, Float[np.ndarray, "n k"]] | None = None
    scale = 5.0
    for penalty in PENALTIES[max(least_penalty, least_penalty_of(len(rows))) <= PENALTIES]:
        held_out = solution.leave_one_out(float(penalty))
        loss, scale = _best_scale(held_out, targets, start=scale)
        if best is None or loss < best[0]:
            best = (loss, float(penalty), scale, held_out)
    assert best is not None
    loss, penalty, scale, held_out = best
    weight, bias = solution.coefficients(penalty)
    weight, bias = (scale * weight).astype(np.float32), (scale * bias).astype(np.float32)
    head = RidgeHead(weight, bias, penalty, weighting, scale, -loss)
    return head, softmax(scale * held_out, axis=1), solution


class Spectrum:
    """Weighted ridge with a free intercept for any penalty, after one eigen-decomposition.

    Minimises `sum_i w_i |y_i - b - x_i W|^2 + penalty * s_max * |W|^2`, `w_i = n_c ** -balance` scaled to mean one.
    """

    def __init__(
        self, rows: Float[np.ndarray, "n d"], targets: Int[np.ndarray, " n"], *, classes: int, balance: float
    ) -> None:
        self.one_hot = np.eye(classes, dtype=rows.dtype)[targets]
        counts = np.maximum(np.bincount(targets, minlength=classes), 1)
        weights = (counts.astype(rows.dtype) ** -balance)[targets]
        self.weights = weights / weights.mean()
        self.row_mean = np.average(rows, axis=0, weights=self.weights).astype(rows.dtype)
        self.target_mean = np.average(self.one_hot, axis=0, weights=self.weights).astype(rows.dtype)
        self.root = np.sqrt(self.weights)[:, None]
        self.centred = self.root * (rows - self.row_mean)
        # Subtracting the mean leaves its rounding behind, which is all there is of features that are constant.
        rounding = len(rows) * float(16 * np.finfo(rows.dtype).eps ** 2 * (self.row_mean**2).sum())
        self.left, self.eigenvalues = _left_vectors(self.centred, rounding=rounding)
        self.squared_left = self.left * self.left
        self.projected = self.left.T @ (self.root * (self.one_hot - self.target_mean))

    def _shrinkage(self, penalty: float) -> Float[np.ndarray, " r"]:
        return self.eigenvalues / (self.eigenvalues + penalty * self.eigenvalues[0])

    def leave_one_out(self, penalty: float) -> Float[np.ndarray, "n k"]:
        """For each row the prediction of the fit without it."""
        shrinkage = self._shrinkage(penalty)
        fitted = self.left @ (shrinkage[:, None] * self.projected) / self.root + self.target_mean
        leverage = self.squared_left @ shrinkage + self.weights / self.weights.sum()
        leverage = np.minimum(leverage, 1 - 1e-6)
        return self.one_hot - (self.one_hot - fitted) / (1 - leverage)[:, None]

    def coefficients(self, penalty: float) -> tuple[Float[np.ndarray, "d k"], Float[np.ndarray, " k"]]:
        """The weights `[d, k]` and the intercept `[k]`."""
        inverse = 1 / (self.eigenvalues + penalty * self.eigenvalues[0])
        weight = self.centred.T @ (self.left @ (inverse[:, None] * self.projected))
        return weight, self.target_mean - self.row_mean @ weight

    @property
    def scores(self) -> Float[np.ndarray, "n r"]:
        """The centred rows along the eigenvectors of their weighted covariance."""
        return self.left * np.sqrt(self.eigenvalues) / self.root

    def back(
        self, weight: Float[np.ndarray, "r k"], bias: Float[np.ndarray, " k"]
    ) -> tuple[Float32[np.ndarray, "d k"], Float32[np.ndarray, " k"]]:
        """The same linear head of rows as it is of `scores`."""
        own = self.centred.T @ (self.left @ (weight / np.sqrt(self.eigenvalues)[:, None]))
        return own.astype(np.float32), (bias - self.row_mean @ own).astype(np.float32)


def _left_vectors(
    centred: Float[np.ndarray, "n d"], *, rounding: float
) -> tuple[Float[np.ndarray, "n r"], Float[np.ndarray, " r"]]:
    """Left singular vectors and squared singular values, largest first, through the smaller square matrix.

    Squared singular values up to `rounding`, and those that are nothing but the rounding of the largest, are left out.
    """
    n, d = centred.shape
    square = centred @ centred.T if n <= d else centred.T @ centred
    values, vectors = scipy.linalg.eigh(square, driver="evd", check_finite=False, overwrite_a=True)
    values, vectors = values[::-1], vectors[:, ::-1]
    kept = values > max(rounding, 16 * float(np.finfo(values.dtype).eps * values[0]))
    values, vectors = values[kept], vectors[:, kept]
    if not len(values):
        return np.zeros((n, 1), centred.dtype), np.ones(1, centred.dtype)
    if n <= d:
        return vectors, values
    scores = centred @ vectors
    values = (scores * scores).sum(axis=0)  # of the small ones more digits are right than in the eigenvalues
    return scores / np.sqrt(values), values


def _best_scale(
    logits: Float[np.ndarray, "n k"], targets: Int[np.ndarray, " n"], *, start: float = 5.0
) -> tuple[float, float]:
    """The lowest log loss over all factors on the logits, and the factor. Convex in the factor: Newton's method.

    An image counts as one of any class with a chance of 1 / (n + 1): without that, a handful of images that are all
    recognised asks for the largest factor there is.
    """
    below = logits - logits.max(axis=1, keepdims=True)
    doubt = 1 / (len(targets) + 1)
    chosen = (1 - doubt) * below[np.arange(len(targets)), targets] + doubt * below.mean(axis=1)
    scale = start
    for _ in range(30):
        odds = np.exp(scale * below)
        total = odds.sum(axis=1)
        odds *= below
        mean = odds.sum(axis=1) / total
        curvature = float((np.einsum("nk,nk->n", odds, below) / total - mean * mean).mean())
        slope = float((mean - chosen).mean())
        loss = float((np.log(total) - scale * chosen).mean())
        updated = float(np.clip(scale - slope / max(curvature, 1e-9), scale / 4, scale * 4))
        updated = float(np.clip(updated, *SCALES))
        if abs(updated - scale) < 1e-3 * scale:
            return loss, scale
        scale = updated
    return loss, scale
