"""A service over the tiny made model, and images for it: what the tests of the service use."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
from made_models import LABELS, TAP, about, features_of, head, trunk
from PIL import Image
from starlette.testclient import TestClient

from graft.deploy.assemble import assembled
from graft.deploy.pack import Check, pack
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


def packed(folder: Path, preprocess: Preprocess | None = None) -> Path:
    """A bundle of the tiny network with a head whose decisions differ between the images made here."""
    preprocess = preprocess or Preprocess(16)
    pixels = np.stack([load_pixels(image_bytes(seed), preprocess) for seed in range(24)])
    features = features_of(pixels)
    weight = head()[0] * 5
    bias = -(features @ weight).mean(axis=0)
    shares = np.exp(features @ weight + bias)
    check = Check(pixels, shares / shares.sum(axis=1, keepdims=True))
    graph = assembled(
        trunk(preprocess.size, preprocess.channels), TAP, weight=weight, bias=bias, unit_length=False
    )
    pack(folder, graph.SerializeToString(), labels=LABELS, preprocess=preprocess, about=about(), check=check)
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
