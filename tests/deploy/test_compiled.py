"""A bundle by OpenVINO: the answers of ONNX Runtime, for one thread and for several at once, and on the command line."""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from made_models import knowing, noise, packed
from PIL import Image

from graft.cli import main
from graft.commands.runtimes import RUNTIMES
from graft.deploy.bundle import Bundle, load
from graft.deploy.compiled import Runtime
from graft.errors import BundleError
from graft.images.dataset import Preprocess

GEOMETRY = Preprocess(16)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packed(tmp_path_factory.mktemp("made") / "m", GEOMETRY, known=knowing(GEOMETRY))


@pytest.fixture(scope="module")
def compiled(made: Path) -> Bundle:
    return load(made, threads=1, runtime="openvino", abreast=2)


def test_the_answers_of_both_runtimes(made: Path, compiled: Bundle) -> None:
    images, other = list(noise(40, GEOMETRY)), load(made)
    np.testing.assert_allclose(compiled.probabilities(images), other.probabilities(images), atol=1e-5)
    np.testing.assert_allclose(compiled.embed(images), other.embed(images), atol=1e-4)
    np.testing.assert_allclose(compiled.explain(images[0]), other.explain(images[0]), atol=1e-3)
    one, another = compiled.predict(images[0]), other.predict(images[0])
    assert (one.label, one.unknown, one.labels_90) == (another.label, another.unknown, another.labels_90)


def test_threads_that_ask_at_once_get_their_own_answers(compiled: Bundle) -> None:
    images = noise(64, GEOMETRY, seed=3)
    alone = [compiled.predict_pixels(image[None])[0] for image in images]
    assert len({tuple(row) for row in alone}) == len(images)
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda image: compiled.predict_pixels(image[None])[0], images))
    np.testing.assert_array_equal(together, alone)


def test_an_answer_outlives_the_next_question(compiled: Bundle) -> None:
    first, second = noise(2, GEOMETRY, seed=5)
    rows = compiled.predict_pixels(first[None])
    kept = rows.copy()
    compiled.predict_pixels(second[None])
    np.testing.assert_array_equal(rows, kept)


def test_on_the_command_line(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.fromarray(noise(1, Preprocess(40))[0]).save(tmp_path / "x.png")
    told = {}
    for runtime in RUNTIMES:
        question = ["predict", made, tmp_path / "x.png", "--json", "--topk", 9, "--runtime", runtime]
        assert main([str(part) for part in question]) == 0
        told[runtime] = json.loads(capsys.readouterr().out)
    assert told["openvino"]["label"] == told["onnxruntime"]["label"]
    assert told["openvino"]["probabilities"] == pytest.approx(told["onnxruntime"]["probabilities"], abs=1e-5)
    with pytest.raises(SystemExit) as ended:
        main(["predict", str(made), str(tmp_path / "x.png"), "--runtime", "torch"])
    assert ended.value.code == 2
    assert "onnxruntime" in capsys.readouterr().err


def test_every_runtime_is_an_option() -> None:
    assert get_args(Runtime) == RUNTIMES


def test_without_openvino_a_sentence(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(BundleError, match="pip install openvino"):
        load(made, runtime="openvino")
