"""Multinomial logistic regression in the coordinates of a ridge head: no learning rate, no epoch and no seed.

In: the decomposition that ridge regression made of frozen features (`graft.learning.ridge.Spectrum`), class numbers, a strength.
Out: weight and bias, as of any linear head.

Minimises `sum_i w_i loss_i + |W|^2 / (2 strength)` over centred rows, scaled to a mean square of one: `strength` is what
scikit-learn calls C, half of it with two classes. Along the eigenvectors of the covariance half of an eigenvalue bounds the
curvature (Boehning 1992, Annals of the Institute of Statistical Mathematics 44), so that L-BFGS (Liu and Nocedal 1989) in
coordinates divided by the root of that bound takes 10 to 30 steps where it takes hundreds without.

Cost on one core: 3 ms for 318 x 512 in two classes, 15 ms for 1,075 x 512 in six, 0.1 s for 1,613 x 512 in 101. Where that would
be more than `WORK`, there are fewer steps: stopped at ten times `NEAR` the gain of `graft.learning.frozen_head` was half as large
with 51 classes and two thirds with 101.

Not covered: how strong to make it (`graft.learning.frozen_head` says why one strength does), and class weights of its own.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Float32, Int
from scipy.optimize import minimize

from graft.learning.ridge import Spectrum

STEPS = (8, 60)
WORK = 1.5e10  # multiply-adds per direction; a step does twice as many. With 20,000 x 1,280 in 100 classes 8 steps are left
NEAR = 1e-3  # of the root of the number of rows: a gradient this small has arrived


def coefficients(
    spectrum: Spectrum, targets: Int[np.ndarray, " n"], *, classes: int, strength: float
) -> tuple[Float32[np.ndarray, "d k"], Float32[np.ndarray, " k"]]:
    """Weight and bias for the rows that `spectrum` is of, weighted as it weights them. Rows and classes: see `Spectrum`."""
    scores = spectrum.scores.astype(np.float32)
    weights = spectrum.weights.astype(np.float32)[:, None]
    one_hot = spectrum.one_hot.astype(np.float32)
    penalty = float(spectrum.eigenvalues.sum()) / len(scores) / strength
    root = np.sqrt(0.5 * spectrum.eigenvalues + penalty).astype(np.float32)[:, None]
    scores = scores / root.T
    shrunk = penalty / (root * root)
    intercept = np.float32(1 / np.sqrt(0.5 * weights.sum()))
    own = np.arange(len(scores)), targets

    def objective(flat: Float[np.ndarray, " p"]) -> tuple[float, Float[np.ndarray, " p"]]:
        unknown = flat.astype(np.float32).reshape(-1, classes)
        weight, bias = unknown[:-1], unknown[-1] * intercept
        logits = scores @ weight + bias
        logits -= logits.max(axis=1, keepdims=True)
        odds = np.exp(logits)
        total = odds.sum(axis=1, keepdims=True)
        losses = weights[:, 0] * (np.log(total[:, 0]) - logits[own])
        value = losses.sum(dtype=np.float64) + 0.5 * (shrunk * weight * weight).sum(dtype=np.float64)
        wrong = weights * (odds / total - one_hot)
        slope = np.vstack([scores.T @ wrong + shrunk * weight, wrong.sum(axis=0) * intercept])
        return float(value), slope.ravel().astype(np.float64)

    start = np.zeros((scores.shape[1] + 1) * classes)
    near = NEAR * float(np.sqrt(len(scores)))
    steps = int(np.clip(WORK / (scores.size * classes), *STEPS))
    found = minimize(
        objective,
        start,
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": steps, "gtol": near, "ftol": NEAR / 100},
    )
    unknown = found.x.reshape(-1, classes)
    return spectrum.back(unknown[:-1] / root, unknown[-1] * intercept)
