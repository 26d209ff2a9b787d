"""A bundle in other forms: the same answers, nothing overwritten, 8 bits only with photos."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pyarrow
import pyarrow.parquet
import pytest
from made_graphs import OUTPUT, SIZE, images, mobile
from PIL import Image

from graft import cli
from graft.deploy import conversion
from graft.deploy.assemble import assembled
from graft.deploy.bundle import load
from graft.deploy.conversion import Converted, is_int8, to_int8, to_onnx, to_openvino
from graft.deploy.pack import Check, pack
from graft.deploy.quantise import outputs_of
from graft.errors import BundleError, SettingsError
from graft.images.dataset import Preprocess
from graft.studies.photos import photos_beside

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


def test_int8_tells_whose_figures_it_has(bundle: Path, photos: list[Path], tmp_path: Path) -> None:
    made = to_int8(bundle, tmp_path / "small.graft", photos=photos)
    facts = load(tmp_path / "small.graft").facts
    card = (tmp_path / "small.graft" / "card.md").read_text(encoding="utf-8")
    agreement = f"{made.agreement:.1%}"
    assert "calibrated on 16 photos; all scores here are those of the float32 model" in card
    assert f"{100 * made.agreement:.1f} % of cases" in card and f"{made.largest_difference:.4f}" in card
    assert facts["headline"].startswith("none") and f"for {agreement} of 8 photos" in facts["headline"]
    float_bytes = (bundle / "model.onnx").stat().st_size
    assert facts["cost"]["bytes"] < float_bytes and facts["cost"]["latency_ms"] > 0
    parity = facts["parity"]
    assert parity["largest_difference"] == made.largest_difference > 0 and parity["tolerance"] is None
    assert (parity["images"], parity["agreement"]) == (8, made.agreement)
    assert "converted" not in (bundle / "card.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("form", [to_onnx, to_openvino])
@pytest.mark.parametrize("own", [True, False])
def test_8_bits_are_held_to_their_decisions(
    bundle: Path,
    photos: list[Path],
    tmp_path: Path,
    form: Callable[..., Converted],
    own: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("openvino")
    to_int8(bundle, tmp_path / "small.graft", photos=photos)
    monkeypatch.setattr(conversion, "TOLERANCE", 0.0)  # so that rounding would be refused in float32
    made = form(tmp_path / "small.graft", tmp_path / "made", photos=photos if own else [])
    assert made.agreement >= 0.9
    monkeypatch.setattr(conversion, "_checked", lambda *_: conversion._Checked(24, 0.3, 0.5))
    with pytest.raises(BundleError, match="decides 50% of 24 pictures otherwise"):
        form(tmp_path / "small.graft", tmp_path / "other", photos=photos)
    assert not (tmp_path / "other").exists()


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


@pytest.fixture
def run_folder(bundle: Path, photos: list[Path], tmp_path: Path) -> Path:
    """A run folder with the bundle, and `predictions.parquet` of which a photo is the locked test and one is gone."""
    names = [photo.name for photo in photos]
    run = tmp_path / "run"
    shutil.copytree(bundle, run / "model.graft")
    (run / "run.json").write_text(
        json.dumps({"root": str(photos[0].parent), "dataset": {"fingerprint": ""}}), encoding="utf-8"
    )
    files = [*names[1:], *names[1:], "gone.png", names[0]]
    splits = ["development"] * (len(files) - 1) + ["test"]
    table = pyarrow.table({"file": files, "split": splits})
    pyarrow.parquet.write_table(table, run / "predictions.parquet")
    return run


def test_images_of_the_study_calibrate(
    run_folder: Path, photos: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["export", str(run_folder / "model.graft"), "--to"]
    assert cli.main([*given, "onnx-int8"]) == 0
    assert f"calibrated and checked on 23 images of {photos[0].parent}" in capsys.readouterr().out
    facts = load(run_folder / "model-onnx-int8").facts
    assert (facts["conversion"]["calibrated_on"], facts["conversion"]["checked_on"]) == (16, 7)
    assert cli.main([*given, "onnx"]) == 0
    assert f"checked on 23 images of {photos[0].parent}\n" in capsys.readouterr().out


def test_images_of_another_study_do_not(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = json.loads((run_folder / "run.json").read_text(encoding="utf-8"))
    for news in ({"dataset": {"fingerprint": "other"}}, {"root": "/nowhere"}, {"root": None}):
        (run_folder / "run.json").write_text(json.dumps({**told, **news}), encoding="utf-8")
        assert cli.main(["export", str(run_folder / "model.graft"), "--to", "onnx-int8"]) == 2
        assert "Name a folder of them with --calibrate photos/." in capsys.readouterr().err


def test_the_locked_test_is_never_among_the_photos(run_folder: Path, photos: list[Path]) -> None:
    found = photos_beside(run_folder / "model.graft", load(run_folder / "model.graft").facts, most=100)
    assert found is not None and len(found.photos) == 23
    assert photos[0].read_bytes() not in found.photos
    few = photos_beside(run_folder / "model.graft", load(run_folder / "model.graft").facts, most=5)
    assert few is not None and len(few.photos) == 4  # the last of the five is gone
