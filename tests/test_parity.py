"""One picture, one answer: the whole network in torch, the cached activations, the exported graph, the packed bundle, the
`graft predict` process, `preprocess.onnx` in front of the bundle's graph, the HTTP service and its page in a browser (where
there is one) say the same of six images.

How far they may differ, in probability: torch and the graph 1e-4; the cached activations 1e-2 (a head fitted on six
rows makes much of float16's rounding); the process, HTTP and the page 1e-6; `preprocess.onnx` 0.15:
0.14 grey levels of one picture moved the head of six rows on a tiny random network by 0.09. The decision may differ nowhere.

8 bits need photos to calibrate on, so that a bundle of a study on real photos stands in for them: nine of ten decisions
the same, probabilities 0.1 apart on average. The folder for browsers, which needs the npm registry, has its own test of the
same kind (`tests/deploy/test_web_folder.py`).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from browser import BROWSER, Browser
from made_models import about
from PIL import Image, ImageOps
from served import served
from starlette.testclient import TestClient

import graft
from graft.backbones.activations import Activations, extracting
from graft.backbones.catalogue import Entry
from graft.backbones.graph import LOGITS, tap_output
from graft.backbones.hub import Reach
from graft.backbones.trunks import TrunkFile, trunk_of
from graft.backbones.weights import WeightsFolder, build, load_state
from graft.compute import Compute
from graft.deploy.assemble import assembled
from graft.deploy.bundle import load
from graft.deploy.conversion import to_int8
from graft.deploy.pack import Check, pack
from graft.images.dataset import Preprocess
from graft.images.decode import read
from graft.images.preprocess import hint_side
from graft.images.preprocess import load as load_pixels
from graft.learning import ridge
from graft.serving.app import create
from graft.serving.settings import resolved
from graft.store import Store

NOWHERE = Reach(False, False)
GOLDEN_WEIGHTS = Path(__file__).parent / "golden" / "weights-v1"
TARGETS = np.array([0, 0, 0, 1, 1, 1])
LABELS = ("ants", "bees")


def made_photos(folder: Path) -> list[Path]:
    """Six photos of several sizes, kinds and orientations."""
    generator = np.random.default_rng(3)
    photos = []
    for number in range(6):
        small = generator.integers(0, 256, (5, 7, 3), dtype=np.uint8)
        size = (60 + 90 * number, 80 + 40 * number)
        image = Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)
        exif = Image.Exif()
        exif[274] = number + 1
        photos.append(folder / f"{number}.{'jpg' if number % 2 else 'png'}")
        image.save(photos[-1], exif=exif)
    return photos


def test_a_tiny_network_with_random_weights(tmp_path: Path) -> None:
    compare(WeightsFolder.open(GOLDEN_WEIGHTS), "mobilenetv1_002.random", made_photos(tmp_path), tmp_path)


@pytest.mark.parametrize(
    "name",
    ["mobilenetv1_025.coral_in1k", pytest.param("mobilenetv2_100.coral_in1k", marks=pytest.mark.slow)],
)
def test_given_weights_on_real_photos(
    name: str, shared_weights: Path, shared_data: Path, tmp_path: Path
) -> None:
    photos = [
        photo
        for label in LABELS
        for photo in sorted((shared_data / "hymenoptera" / "train" / label).glob("*.jpg"))[:3]
    ]
    if len(photos) < 6:
        pytest.skip("the given hymenoptera photos are not beside the checkout")
    compare(WeightsFolder.open(shared_weights), name, photos, tmp_path)


@pytest.mark.slow
def test_8_bits_on_real_photos(shared_weights: Path, shared_data: Path, tmp_path: Path) -> None:
    photos = shared_data / "hymenoptera" / "train"
    asked = sorted(photos.parent.glob("val/*/*.jpg"))[::4]
    if len(asked) < 20:
        pytest.skip("the given hymenoptera photos are not beside the checkout")
    names = ["mobilenetv1_025.coral_in1k"]
    result = graft.study(photos, out=tmp_path / "run", weights=shared_weights, backbones=names, only="frozen")
    calibration = sorted(photos.glob("*/*.jpg"))[::4]
    to_int8(result.bundle(), tmp_path / "int8.graft", photos=calibration)
    whole, small = load(result.bundle()), load(tmp_path / "int8.graft")
    assert (small.folder / "model.onnx").stat().st_size < 0.5 * (whole.folder / "model.onnx").stat().st_size
    expected, found = whole.probabilities(asked), small.probabilities(asked)
    assert (found.argmax(axis=1) == expected.argmax(axis=1)).mean() >= 0.9
    assert np.abs(found - expected).mean() < 0.1
    over_http = said_over_http(tmp_path / "int8.graft", asked[:6])
    np.testing.assert_allclose(over_http, small.probabilities(asked[:6]), atol=1e-6)


def compare(folder: WeightsFolder, name: str, photos: list[Path], place: Path) -> None:
    """Every way from a photo to an answer."""
    entry = next(entry for entry in folder.entries if entry.name == name)
    geometry = Preprocess(entry.input.size, crop_share=entry.input.crop)
    pixels = np.stack([load_pixels(photo, geometry) for photo in photos])
    trunk, activations = prefix(entry, folder, geometry, pixels, Store(place / "cache"))
    features, logits = whole_network(entry, folder, pixels)
    last = len(trunk.taps) - 1

    assert trunk.graph is not None
    session = onnxruntime.InferenceSession(str(trunk.graph), providers=["CPUExecutionProvider"])
    exported = session.run([tap_output(last), LOGITS], {"image": pixels})
    assert relative(exported[0], features) < 1e-4 and relative(exported[1], logits) < 1e-4
    cached = activations.tap(last).astype(np.float32)
    assert relative(cached, features) < 2e-3
    assert activations.logits is not None and relative(activations.logits.astype(np.float32), logits) < 2e-3

    head = ridge.fit(features, TARGETS, classes=2)
    odds = np.log(head.probabilities(features))
    bolder = max(1.0, 4 / np.ptp(odds[:, 0] - odds[:, 1]))  # a head of so few images is careful
    head = replace(head, weight=head.weight * bolder, bias=head.bias * bolder)
    expected = head.probabilities(features)
    assert np.ptp(expected[:, 0]) > 0.05, "the head tells nothing apart, so nothing would be compared"
    # A head fitted on six rows makes much of little: float16's rounding is amplified.
    np.testing.assert_allclose(head.probabilities(cached), expected, atol=1e-2)
    model = assembled(
        onnx.load(str(trunk.graph)), tap_output(last), weight=head.weight, bias=head.bias, unit_length=True
    )
    told = about() | {"per_class": []}
    check = Check(pixels, expected)
    pack(place / "m", model.SerializeToString(), labels=LABELS, preprocess=geometry, about=told, check=check)
    bundled = load(place / "m").probabilities(photos)
    np.testing.assert_allclose(bundled, expected, atol=1e-4)
    assert (bundled.argmax(axis=1) == expected.argmax(axis=1)).all()
    np.testing.assert_allclose(said_by_process(place / "m", photos), bundled, atol=1e-6)
    np.testing.assert_allclose(said_over_http(place / "m", photos), bundled, atol=1e-6)
    if BROWSER is not None and os.name != "nt":
        np.testing.assert_allclose(said_on_the_page(place, place / "m", photos), bundled, atol=1e-6)
    as_graft_decodes = [
        np.array(read(photo, hint_side=hint_side(geometry)).convert("RGB")) for photo in photos
    ]
    np.testing.assert_allclose(said_without_graft(place / "m", as_graft_decodes), bundled, atol=0.15)
    prepared = said_without_graft(place / "m", [decoded(photo) for photo in photos])
    assert (prepared.argmax(axis=1) == bundled.argmax(axis=1)).all()


def prefix(
    entry: Entry, folder: WeightsFolder, geometry: Preprocess, pixels: np.ndarray, store: Store
) -> tuple[TrunkFile, Activations]:
    """The trunk as the study opens it, in float32, and its cached activations."""
    compute = Compute("cpu", False, 2)
    trunk = trunk_of(
        entry, geometry, folder=folder, reach=NOWHERE, store=store, samples=pixels, compute=compute
    )
    assert trunk.runner == "openvino-f32", trunk.notice
    work = extracting(trunk, pixels, "six", store=store, compute=compute, folder=folder, reach=NOWHERE)
    while True:
        try:
            next(work)
        except StopIteration as finished:
            return trunk, finished.value


def whole_network(entry: Entry, folder: WeightsFolder, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What goes into the classifier and what comes out of it, by timm's own forward pass."""
    network = build(entry).eval()
    missing, unknown = network.load_state_dict(
        load_state(entry, folder=folder, reach=NOWHERE).state, strict=False
    )
    assert not unknown and all(key.endswith("num_batches_tracked") for key in missing)
    mean, std = (torch.tensor(part)[:, None, None] for part in (entry.input.mean, entry.input.std))
    with torch.inference_mode():
        images = (torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255 - mean) / std
        features = network.forward_head(network.forward_features(images), pre_logits=True)
        return features.numpy(), network(images).numpy()


def relative(a: np.ndarray, b: np.ndarray) -> float:
    """The largest difference in units of the largest value."""
    return float(np.abs(a - b).max() / np.abs(b).max())


def said_by_process(folder: Path, photos: list[Path]) -> np.ndarray:
    """The probabilities that `graft predict --json` prints, in the order of the labels."""
    arguments = [sys.executable, "-m", "graft.cli", "predict", str(folder), *map(str, photos), "--json"]
    done = subprocess.run([*arguments, "--topk", "2"], capture_output=True, text=True, timeout=60, check=True)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["file"] for line in lines] == [str(photo) for photo in photos]
    return np.array([[line["probabilities"][label] for label in LABELS] for line in lines])


def decoded(photo: Path) -> np.ndarray:
    """The whole picture, upright, as any program decodes it."""
    with Image.open(photo) as opened:
        return np.array(ImageOps.exif_transpose(opened).convert("RGB"))


def said_without_graft(folder: Path, pictures: list[np.ndarray]) -> np.ndarray:
    """`preprocess.onnx` and `model.onnx`: what a program in another language does."""
    prepare, model = (
        onnxruntime.InferenceSession(str(folder / name), providers=["CPUExecutionProvider"])
        for name in ("preprocess.onnx", "model.onnx")
    )
    rows = []
    for picture in pictures:
        (image,) = prepare.run(None, {"picture": picture})
        rows.append(model.run(["probabilities"], {"image": image})[0][0])
    return np.array(rows)


def said_on_the_page(place: Path, folder: Path, photos: list[Path]) -> np.ndarray:
    """What the page shows of the files, chosen in a browser."""
    rows = """[...document.querySelectorAll('.answer')].map(card => Object.fromEntries(
      [...card.querySelectorAll('dl > div')].map(row => [row.children[0].textContent, Number(row.children[2].dataset.value)])))"""
    browser = Browser(place / "profile")
    try:
        with served(place, folder) as service:
            browser.open(service.url + "/")
            browser.choose(*photos)
            browser.wait_for(f"document.querySelectorAll('.answer').length === {len(photos)}")
            return np.array([[shown[label] for label in LABELS] for shown in browser.run(rows)])
    finally:
        browser.close()


def said_over_http(folder: Path, photos: list[Path]) -> np.ndarray:
    """What the service answers to the files as they are."""
    rows = []
    with TestClient(create(resolved([folder]))) as client:
        for photo in photos:
            answer = client.post("/predict", params={"topk": len(LABELS)}, content=photo.read_bytes())
            shares = answer.json()["predictions"][0]["probabilities"]
            rows.append([shares[label] for label in LABELS])
    return np.array(rows)
