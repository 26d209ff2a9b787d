"""A tiny network as an ONNX graph, the same in NumPy, and bundles made of it: what the tests of packed models use."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from onnx import ModelProto, TensorProto, helper, numpy_helper

from graft.deploy.assemble import assembled
from graft.deploy.pack import NOTHING_KNOWN, Check, Knowing, pack
from graft.deploy.unknown import held_out_scores, score_graph, upper_quantile
from graft.images.dataset import Preprocess
from graft.learning.ridge import unit

FEATURES = 6
LABELS = ("ant", "bee", "a wasp")
TAP = "tap0"


def kernels(channels: int) -> np.ndarray:
    """The weights of the only convolution, `[6, channels, 3, 3]`."""
    return np.random.default_rng(5).normal(0, 0.4, (FEATURES, channels, 3, 3)).astype(np.float32)


def head(classes: int = len(LABELS)) -> tuple[np.ndarray, np.ndarray]:
    """Weight `[6, classes]` and bias, large enough that probabilities differ between images."""
    generator = np.random.default_rng(6)
    return generator.normal(0, 4, (FEATURES, classes)).astype(np.float32), generator.normal(0, 1, classes)


def trunk(size: int, channels: int) -> ModelProto:
    """uint8 pixels -> 0..1 -> convolution -> ReLU -> mean over positions, with a second output that is not wanted."""
    nodes = [
        helper.make_node("Cast", ["image"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["floats", "most"], ["unit"]),
        helper.make_node("Transpose", ["unit"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["planes", "kernels"], ["maps"]),
        helper.make_node("Relu", ["maps"], ["active"]),
        helper.make_node("GlobalAveragePool", ["active"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], [TAP]),
        helper.make_node("Exp", [TAP], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["n", size, size, channels])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", FEATURES]) for name in (TAP, "logits")],
        [
            numpy_helper.from_array(np.float32(255), "most"),
            numpy_helper.from_array(kernels(channels), "kernels"),
        ],
    )
    return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])


def features_of(pixels: np.ndarray) -> np.ndarray:
    """What the trunk says of uint8 `[n, h, w, c]`, computed in NumPy."""
    planes = pixels.astype(np.float64).transpose(0, 3, 1, 2) / 255
    windows = sliding_window_view(planes, (3, 3), axis=(2, 3))
    maps = np.einsum("ncyxij,ocij->noyx", windows, kernels(pixels.shape[3]))
    return np.maximum(maps, 0).mean(axis=(2, 3))


def probabilities_of(pixels: np.ndarray, *, unit_length: bool = True) -> np.ndarray:
    """What the whole model says of uint8 pixels, computed in NumPy."""
    rows = features_of(pixels)
    if unit_length:
        rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    weight, bias = head()
    logits = rows @ weight + bias
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    return shares / shares.sum(axis=1, keepdims=True)


def model(preprocess: Preprocess, *, unit_length: bool = True) -> bytes:
    """The trunk with the head, serialised."""
    weight, bias = head()
    whole = assembled(
        trunk(preprocess.size, preprocess.channels), TAP, weight=weight, bias=bias, unit_length=unit_length
    )
    return whole.SerializeToString()


def noise(count: int, preprocess: Preprocess, seed: int = 0) -> np.ndarray:
    """Pixels in the network's geometry, from dark to light so that decisions differ."""
    generator = np.random.default_rng(seed)
    side = preprocess.size
    light = generator.integers(20, 236, (count, 1, 1, preprocess.channels))
    return np.clip(
        light + generator.integers(-20, 21, (count, side, side, preprocess.channels)), 0, 255
    ).astype(np.uint8)


def about() -> dict[str, Any]:
    """What a study tells about its model."""
    return {
        "recipe": "r" * 40,
        "strategy": "frozen",
        "backbone": "tiny.random",
        "tap": "stage_0",
        "weights": {"name": "tiny.random", "digest": "d" * 64, "source": "made up", "licence": "Apache-2.0"},
        "headline": "macro-F1 91.0 % (95 % interval 88.0 % to 93.0 %), cross-validated.",
        "reason": "It is the cheapest of 2 tied candidates.",
        "metrics": {"macro_f1": 0.91, "accuracy": 0.92, "log_loss": float("nan"), "auroc": None},
        "per_class": [
            {"class": label, "precision": 0.9, "recall": 0.8, "f1": 0.85, "support": 7} for label in LABELS
        ],
        "data": {"name": "photos", "images": 30, "development": 24, "excluded": 1, "fingerprint": "f" * 40},
    }


def knowing(preprocess: Preprocess, **others: Any) -> Knowing:
    """What a bundle of the tiny network knows of its limits, from pixels as `noise` makes them; `others` are added."""
    pixels = noise(60, preprocess, seed=7)
    rows = unit(features_of(pixels)).astype(np.float32)
    stranger, scores = held_out_scores(
        rows, probabilities_of(pixels).astype(np.float32), np.arange(len(rows)) % 5
    )
    unknown = {
        "threshold": upper_quantile(scores, 0.95),
        "accepted": 0.95,
        "method": "made up",
        "origin": "made up",
        "images": 60,
        "curve": [{"coverage": 1.0, "accuracy": 0.9}, {"coverage": 0.95, "accuracy": 0.92}],
    }
    measured = {"coverage": 0.91, "mean_size": 1.2, "single": 0.8}
    conformal = {"coverage": 0.9, "least_probability": 0.25, "method": "made up", "images": 60}
    return Knowing(
        score_graph(stranger, classes=len(LABELS)).SerializeToString(),
        unknown,
        conformal | {"measured": measured},
        **others,
    )


def packed(folder: Path, preprocess: Preprocess | None = None, *, known: Knowing | None = None) -> Path:
    """A bundle of the tiny network in `folder`."""
    preprocess = preprocess or Preprocess(16)
    pixels = noise(4, preprocess)
    check = Check(pixels, probabilities_of(pixels))
    pack(
        folder,
        model(preprocess),
        labels=LABELS,
        preprocess=preprocess,
        about=about(),
        check=check,
        knowing=known or NOTHING_KNOWN,
    )
    return folder


def packed_two(
    folder: Path, thresholds: dict[str, float], conformal: Mapping[str, Any] | None = None
) -> Path:
    """A bundle of the tiny network with the classes ant and bee, decided by `thresholds`."""
    preprocess = Preprocess(16)
    pixels = noise(6, preprocess)
    weight, bias = head()
    whole = assembled(trunk(16, 3), TAP, weight=weight[:, :2], bias=bias[:2], unit_length=True)
    shares = probabilities_of(pixels)[:, :2]  # of three classes: without the last they are these
    shares /= shares.sum(axis=1, keepdims=True)
    pack(
        folder,
        whole.SerializeToString(),
        labels=LABELS[:2],
        preprocess=preprocess,
        about=about() | {"per_class": []},
        check=Check(pixels, shares),
        knowing=Knowing(thresholds=thresholds, conformal=conformal),
    )
    return folder
