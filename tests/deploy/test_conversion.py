"""A bundle in other forms: the same answers, nothing overwritten, 8 bits only with photos."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from made_graphs import OUTPUT, SIZE, images, mobile
from PIL import Image

from graft import cli
from graft.deploy.assemble import assembled
from graft.deploy.bundle import load
from graft.deploy.conversion import is_int8, to_int8, to_onnx, to_openvino
from graft.deploy.pack import Check, pack
from graft.deploy.quantise import outputs_of
from graft.errors import BundleError, SettingsError
from graft.images.dataset import Preprocess

LABELS = ("ant", "bee", "wasp")
ABOUT = {
    "backbone": "made",
    "strategy": "frozen",
    "tap": "last",
    "weights": {"name": "made", "digest": "0", "source": "made here", "licence": "Apache-2.0"},
    "headline": "none",
    "reason": "none",
    "metrics": {},
    "intervals": {},
    "per_class": [],
    "cost": {},
    "test": None,
    "data": {"name": "made", "images": 0, "development": 0, "excluded": 0, "fingerprint": "", "counts": {}},
}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("bundle") / "model.graft"
    random = np.random.default_rng(1)
    weight, bias = random.normal(0, 6, (24, 3)).astype(np.float32), np.zeros(3, np.float32)
    model = assembled(mobile(), OUTPUT, weight=weight, bias=bias, unit_length=True)
    pixels = images(8)
    check = Check(pixels, outputs_of(model, pixels, "probabilities"))
    geometry = Preprocess(SIZE, fit="squash")
    pack(place, model.SerializeToString(), labels=LABELS, preprocess=geometry, about=ABOUT, check=check)
    return place


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    place = tmp_path_factory.mktemp("photos")
    paths = []
    for number, pixels in enumerate(images(24, seed=7)):
        paths.append(place / f"{number:02}.png")
        Image.fromarray(pixels).save(paths[-1])
    return paths


def test_plain_onnx_answers_as_the_bundle(bundle: Path, photos: list[Path], tmp_path: Path) -> None:
    made = to_onnx(bundle, tmp_path / "plain", photos=photos)
    assert made.agreement == 1.0 and made.images == 24
    session = onnxruntime.InferenceSession(
        tmp_path / "plain" / "model.onnx", providers=["CPUExecutionProvider"]
    )
    pixels = images(3, seed=7)
    found = session.run(["probabilities"], {"image": pixels})[0]
    np.testing.assert_allclose(found, load(bundle).predict_pixels(pixels), atol=1e-5)
    about = json.loads((tmp_path / "plain" / "about.json").read_text())
    assert about["labels"] == list(LABELS) and (tmp_path / "plain" / "labels.txt").is_file()


def test_int8_is_a_bundle_that_opens_and_says_so(bundle: Path, photos: list[Path], tmp_path: Path) -> None:
    made = to_int8(bundle, tmp_path / "small.graft", photos=photos)
    small = load(tmp_path / "small.graft")
    assert small.facts["precision"] == "int8" and small.facts["conversion"]["agreement"] >= 0.9
    assert is_int8(onnx.load(tmp_path / "small.graft" / "model.onnx"))
    assert made.images == 8
    same = [
        a.label == b.label for a, b in zip(small.predict(photos), load(bundle).predict(photos), strict=True)
    ]
    assert np.mean(same) >= 0.9
    with pytest.raises(BundleError, match="8 bits already"):
        to_int8(tmp_path / "small.graft", tmp_path / "again.graft", photos=photos)


def test_openvino_answers_as_the_bundle(bundle: Path, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    made = to_openvino(bundle, tmp_path / "ov")
    assert made.largest_difference < 1e-3 and (tmp_path / "ov" / "model.xml").is_file()
    assert not (tmp_path / "ov" / "model.onnx").exists()


def test_int8_without_photos_is_refused_with_a_sentence(
    bundle: Path, photos: list[Path], tmp_path: Path
) -> None:
    with pytest.raises(SettingsError, match="--calibrate photos/"):
        to_int8(bundle, tmp_path / "no", photos=photos[:3])
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize("form", [to_onnx, to_int8, to_openvino])
def test_nothing_is_overwritten(bundle: Path, photos: list[Path], tmp_path: Path, form: object) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("mine")
    assert callable(form)
    with pytest.raises(BundleError, match="not overwritten"):
        form(bundle, tmp_path / "mine", photos=photos)
    assert [file.name for file in (tmp_path / "mine").iterdir()] == ["file"]


def test_a_damaged_bundle_leaves_nothing_behind(bundle: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.graft"
    broken.mkdir()
    for file in bundle.iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    (broken / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(BundleError, match="altered"):
        to_onnx(broken, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command(
    bundle: Path, photos: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["export", str(bundle), "--to", "onnx-int8", "--out", str(tmp_path / "x.graft")]
    assert cli.main(given) == 2
    assert "--calibrate" in capsys.readouterr().err
    assert cli.main([*given, "--calibrate", str(photos[0].parent)]) == 0
    assert "of the decisions" in capsys.readouterr().out
    assert cli.main(["export", str(bundle), "--to", "tflite"]) == 2
    assert "onnx-int8" in capsys.readouterr().err
