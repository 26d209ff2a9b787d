"""A service over the tiny made model, and images for it: what the tests of the service use."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from made_models import LABELS, TAP, about, features_of, head, trunk
from onnx import TensorProto, helper
from PIL import Image
from starlette.testclient import TestClient

from graft.deploy.assemble import assembled
from graft.deploy.pack import NOTHING_KNOWN, Check, Knowing, pack
from graft.images.dataset import Preprocess
from graft.images.preprocess import load as load_pixels
from graft.serving.app import create
from graft.serving.settings import Limits, Settings, resolved


def image_bytes(seed: int = 0, *, side: int = 24, form: str = "PNG") -> bytes:
    """An image of one colour with noise, encoded; decisions differ between seeds."""
    generator = np.random.default_rng(seed)
    light = generator.choice((20, 80, 230), 3)
    pixels = np.clip(light + generator.integers(-20, 21, (side, side, 3)), 0, 255).astype(np.uint8)
    written = io.BytesIO()
    Image.fromarray(pixels).save(written, form)
    return written.getvalue()


def base64_of(data: bytes) -> str:
    return base64.b64encode(data).decode()


def knowing() -> Knowing:
    """Limits of the made model: unknown is what it is least sure of, one image in three."""
    score = helper.make_graph(
        [
            helper.make_node("ReduceMax", ["probabilities"], ["most"], axes=[1], keepdims=0),
            helper.make_node("Neg", ["most"], ["score"]),
        ],
        "score",
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["n", len(LABELS)])],
        [helper.make_tensor_value_info("score", TensorProto.FLOAT, ["n"])],
    )
    graph = helper.make_model(score, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
    return Knowing(
        graph=graph.SerializeToString(),
        unknown={"threshold": -0.9, "accepted": 0.7, "images": 24, "origin": "made", "curve": []},
        conformal={
            "least_probability": 0.2,
            "coverage": 0.9,
            "images": 24,
            "measured": {"coverage": 0.92, "mean_size": 1.2},
        },
    )


def packed(
    folder: Path,
    preprocess: Preprocess | None = None,
    *,
    labels: Sequence[str] = LABELS,
    knowing: Knowing = NOTHING_KNOWN,
) -> Path:
    """A bundle of the tiny network with a head whose decisions differ between the images made here."""
    preprocess = preprocess or Preprocess(16)
    pixels = np.stack([load_pixels(image_bytes(seed), preprocess) for seed in range(24)])
    features = features_of(pixels)
    weight = head(len(labels))[0] * 5
    bias = -(features @ weight).mean(axis=0)
    shares = np.exp(features @ weight + bias)
    check = Check(pixels, shares / shares.sum(axis=1, keepdims=True))
    graph = assembled(
        trunk(preprocess.size, preprocess.channels), TAP, weight=weight, bias=bias, unit_length=False
    )
    told = {"labels": labels, "preprocess": preprocess, "about": about(), "check": check}
    pack(folder, graph.SerializeToString(), knowing=knowing, **told)
    return folder


def settings_of(place: Path, *, limits: Limits | None = None, **options: Any) -> Settings:
    """Settings of a service with the made model under the name `tiny`."""
    folder = place / "tiny.graft"
    if not folder.exists():
        packed(folder)
    return resolved([folder], limits=limits, **options)


def client_of(settings: Settings) -> TestClient:
    """A client that sees a 500 as an answer, as a real one would."""
    return TestClient(create(settings), raise_server_exceptions=False)
