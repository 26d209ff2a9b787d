"""Is this picture like those the model was made from? A score, as a small graph beside the model.

In: embeddings and probabilities of images that the head did not learn from. Out: `unknown.onnx`, from `embedding` and
`probabilities` to `score` `[n]`, higher for pictures unlike the training images, and the threshold from which on a
picture counts as unknown. Two things are added: the distance of the embedding from the subspace in which the training
images lie (the residual of ViM, Wang et al. 2022, arXiv 2203.10807), and, with a quarter of its weight, the lack of
confidence; both as logarithms, in deviations from their mean over held-out training images.

Why this one: behind two networks on two sets, pictures of other sets were told apart with an AUROC of 0.96 to 1.00 by
the residual, the nearest neighbours, and Mahalanobis' distance alike, by confidence alone with 0.2 to 0.95; the residual
is the smallest to store. Cost: at most 100 kB in the bundle.

Not covered: pictures that differ from the training images in nothing that the network sees.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import scipy.linalg
from jaxtyping import Float, Float32, Int
from onnx import ModelProto, TensorProto, helper, numpy_helper

from graft.deploy.opening import EMBEDDING, PROBABILITIES, SCORE

OPSET, IR_VERSION = 13, 7
STORED_VALUES = 45_000  # of the directions, at two bytes each
MOST_DIRECTIONS = 32
FEATURES_EACH = 16  # with more directions, narrow embeddings leave nothing to measure a distance in
CONFIDENCE = 0.25  # the weight of the lack of confidence beside the distance
LEAST = 1e-12
DOUBT = 1e-6  # what even the surest answer lacks to one
ACCEPTED = 0.95  # of the held-out training images
PARTS = 20
METHOD = "residual outside the principal subspace + 0.25 * lack of confidence"


@dataclass(frozen=True, slots=True, eq=False)
class Subspace:
    """Where embeddings lie: around `mean` along the orthonormal `directions`."""

    mean: Float32[np.ndarray, " d"]
    directions: Float32[np.ndarray, "d r"]

    def log_residual(self, embeddings: Float[np.ndarray, "n d"]) -> Float[np.ndarray, " n"]:
        """The logarithm of the squared distance of each row from the subspace."""
        centred = embeddings - self.mean
        along = centred @ self.directions
        return np.log(np.maximum((centred**2).sum(axis=1) - (along**2).sum(axis=1), LEAST))


@dataclass(frozen=True, slots=True)
class Scale:
    """The mean and deviation of a quantity over held-out training images."""

    mean: float
    deviation: float

    @classmethod
    def of(cls, values: Float[np.ndarray, " n"]) -> Scale:
        """Those of `values`."""
        return cls(float(values.mean()), max(float(values.std()), 1e-6))

    def standard(self, values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """In deviations from the mean."""
        return (values - self.mean) / self.deviation


@dataclass(frozen=True, slots=True, eq=False)
class Stranger:
    """The score: what is measured from, and in which units."""

    subspace: Subspace
    distance: Scale
    doubt: Scale

    def scores(
        self, embeddings: Float[np.ndarray, "n d"], probabilities: Float[np.ndarray, "n k"]
    ) -> Float[np.ndarray, " n"]:
        """What `score_graph` computes."""
        return self.distance.standard(self.subspace.log_residual(embeddings)) + CONFIDENCE * (
            self.doubt.standard(log_doubt(probabilities))
        )


def log_doubt(probabilities: Float[np.ndarray, "n k"]) -> Float[np.ndarray, " n"]:
    """The logarithm of the odds against the most probable class."""
    most = probabilities.max(axis=1)
    return np.log(1 + DOUBT - most) - np.log(most)


def subspace_of(embeddings: Float[np.ndarray, "n d"]) -> Subspace:
    """The principal subspace: at most 32 directions, one for four images and sixteen features, and what 90 kB hold."""
    n, d = embeddings.shape
    mean = embeddings.mean(axis=0)
    count = max(1, min(MOST_DIRECTIONS, n // 4, d // FEATURES_EACH, STORED_VALUES // d))
    centred = embeddings - mean
    square = centred @ centred.T if n < d else centred.T @ centred
    most = [len(square) - count, len(square) - 1]
    values, directions = scipy.linalg.eigh(square, subset_by_index=most, check_finite=False)
    if n < d:
        directions = centred.T @ directions / np.sqrt(np.maximum(values, LEAST))
    stored = directions.astype(np.float16).astype(np.float32)  # as the graph will hold them
    return Subspace(mean.astype(np.float32), np.ascontiguousarray(stored))


def held_out_scores(
    embeddings: Float[np.ndarray, "n d"],
    probabilities: Float[np.ndarray, "n k"],
    parts: Int[np.ndarray, " n"],
) -> tuple[Stranger, Float[np.ndarray, " n"]]:
    """The score made from all rows, and what it gives each of them when measured from the other parts alone."""
    distance = np.zeros(len(embeddings))
    for part in np.unique(parts):
        held = parts == part
        distance[held] = subspace_of(embeddings[~held]).log_residual(embeddings[held])
    doubt = log_doubt(probabilities)
    stranger = Stranger(subspace_of(embeddings), Scale.of(distance), Scale.of(doubt))
    return stranger, stranger.distance.standard(distance) + CONFIDENCE * stranger.doubt.standard(doubt)


def left_out_together(groups: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """Parts of nearly as many groups each, 20 where there are so many, to be left out one after the other.

    A subspace of fewer images lies farther from new ones. With a third of 80 images left out, the threshold was so much
    too high that 10 to 20 points fewer of other sets' pictures were called unknown than with a twentieth.
    """
    names, member = np.unique(groups, return_inverse=True)
    return (np.random.default_rng(0).permutation(len(names)) % PARTS)[member]


def upper_quantile(values: Float[np.ndarray, " n"], share: float) -> float:
    """The smallest value that at least `share` of new ones like these stay below (Vovk et al. 2005): with n values, the
    `ceil((n + 1) * share)`-th; the largest where there are too few."""
    place = min(len(values), math.ceil((len(values) + 1) * share))
    return float(np.sort(values)[place - 1])


def score_graph(stranger: Stranger, *, classes: int) -> ModelProto:
    """The graph of the score. Raises onnx.checker.ValidationError if it is no valid graph."""
    features, _ = stranger.subspace.directions.shape
    constants = {
        "mean": stranger.subspace.mean,
        "stored": stranger.subspace.directions.astype(np.float16),
        "least": np.float32(LEAST),
        "sure": np.float32(1 + DOUBT),
        "distance_mean": np.float32(stranger.distance.mean),
        "distance_deviation": np.float32(stranger.distance.deviation),
        "doubt_mean": np.float32(stranger.doubt.mean),
        "doubt_deviation": np.float32(stranger.doubt.deviation / CONFIDENCE),
    }
    steps: tuple[tuple[str, list[str], str, dict[str, Any]], ...] = (
        ("Cast", ["stored"], "directions", {"to": TensorProto.FLOAT}),
        ("Sub", [EMBEDDING, "mean"], "centred", {}),
        ("MatMul", ["centred", "directions"], "along", {}),
        ("ReduceSumSquare", ["centred"], "whole", {"axes": [1], "keepdims": 0}),
        ("ReduceSumSquare", ["along"], "explained", {"axes": [1], "keepdims": 0}),
        ("Sub", ["whole", "explained"], "residual", {}),
        ("Max", ["residual", "least"], "positive", {}),
        ("Log", ["positive"], "distance", {}),
        ("Sub", ["distance", "distance_mean"], "farther", {}),
        ("Div", ["farther", "distance_deviation"], "far", {}),
        ("ReduceMax", [PROBABILITIES], "most", {"axes": [1], "keepdims": 0}),
        ("Sub", ["sure", "most"], "lacking", {}),
        ("Log", ["lacking"], "log_lacking", {}),
        ("Log", ["most"], "log_most", {}),
        ("Sub", ["log_lacking", "log_most"], "doubt", {}),
        ("Sub", ["doubt", "doubt_mean"], "less_sure", {}),
        ("Div", ["less_sure", "doubt_deviation"], "doubtful", {}),
        ("Add", ["far", "doubtful"], SCORE, {}),
    )
    shapes = {EMBEDDING: ["n", features], PROBABILITIES: ["n", classes]}
    graph = helper.make_graph(
        [helper.make_node(kind, inputs, [output], **how) for kind, inputs, output, how in steps],
        "unknown",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()],
        [helper.make_tensor_value_info(SCORE, TensorProto.FLOAT, ["n"])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(
        graph, ir_version=IR_VERSION, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="graft"
    )
    onnx.checker.check_model(model)
    return model
