"""Files written by format 1 still open and say the same; they are never written again, only added to.

`bundle-v1` is the tiny network of `made_models`, `bundle-v1-complete` the same with all that format 1.0 has, `bundle-v1-sealed` also
with the hash of all its facts, `weights-v1` a MobileNetV1 of width 0.02 with random weights (seed 0),
`study-v1.json` and `journal-v1.jsonl` come from a study of 80 photos, shortened.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from made_models import LABELS

from graft.backbones.hub import Reach
from graft.backbones.weights import WeightsFolder, load_state
from graft.deploy.bundle import load
from graft.errors import BundleError
from graft.images.dataset import Preprocess
from graft.images.decode import read as read_image
from graft.report.page import render
from graft.studies import results
from graft.studies.journal import Journal, read

GOLDEN = Path(__file__).parent / "golden"


def test_the_bundle_gives_the_same_probabilities() -> None:
    expected = json.loads((GOLDEN / "bundle-v1.expected.json").read_text(encoding="utf-8"))
    bundle = load(GOLDEN / "bundle-v1")
    assert bundle.labels == LABELS and bundle.preprocess == Preprocess(16, crop_share=0.9)
    answer = bundle.predict(GOLDEN / "photo.png").probabilities
    assert answer == pytest.approx(expected["probabilities"], abs=1e-5)
    assert list(answer) == list(expected["probabilities"])
    np.testing.assert_allclose(bundle.embed(GOLDEN / "photo.png")[0], expected["embedding"], atol=1e-5)


def test_the_completed_format_gives_the_same_answers() -> None:
    expected = json.loads((GOLDEN / "bundle-v1-complete.expected.json").read_text(encoding="utf-8"))
    folder, photo = GOLDEN / "bundle-v1-complete", GOLDEN / "photo.png"
    bundle = load(folder)
    answer = bundle.predict(photo)
    assert answer.probabilities == pytest.approx(expected["probabilities"], abs=1e-5)
    assert answer.score == pytest.approx(expected["score"], abs=1e-3)
    assert (answer.unknown, answer.labels_90) == (expected["unknown"], tuple(expected["labels_90"]))
    np.testing.assert_allclose(bundle.embed(photo)[0], expected["embedding"], atol=1e-5)
    np.testing.assert_allclose(bundle.explain(photo).mean(axis=1), expected["explained"], atol=1e-3)
    session = onnxruntime.InferenceSession(
        str(folder / "preprocess.onnx"), providers=["CPUExecutionProvider"]
    )
    (image,) = session.run(None, {"picture": np.array(read_image(photo).convert("RGB"))})
    np.testing.assert_allclose(image.mean(axis=(0, 1, 2)), expected["prepared_mean"], atol=0.1)
    assert (folder / "labels.txt").read_text(encoding="utf-8").splitlines() == list(bundle.labels)


def test_the_sealed_bundle_gives_the_same_answers() -> None:
    expected = json.loads((GOLDEN / "bundle-v1-sealed.expected.json").read_text(encoding="utf-8"))
    folder = GOLDEN / "bundle-v1-sealed"
    bundle = load(folder)
    answer = bundle.predict(GOLDEN / "photo.png")
    assert answer.probabilities == pytest.approx(expected["probabilities"], abs=1e-5)
    assert answer.score == pytest.approx(expected["score"], abs=1e-3)
    assert (answer.unknown, answer.labels_90) == (expected["unknown"], tuple(expected["labels_90"]))
    assert bundle.facts["headline"] == expected["headline"] and "facts_sha256" in bundle.facts


def test_the_older_bundle_knows_nothing_of_its_limits_and_says_so() -> None:
    bundle = load(GOLDEN / "bundle-v1")
    answer = bundle.predict(GOLDEN / "photo.png")
    assert (answer.unknown, answer.score, answer.labels_90) == (None, None, None)
    with pytest.raises(BundleError, match="packed by an older Graft"):
        bundle.explain(GOLDEN / "photo.png")


def test_the_journal_goes_on(tmp_path: Path) -> None:
    shutil.copy(GOLDEN / "journal-v1.jsonl", tmp_path / "journal.jsonl")
    kinds = [record["kind"] for record in read(tmp_path)]
    assert kinds == ["begin", *["fold"] * 5, "first_answer", "packed", "end"]
    opened = Journal(tmp_path)
    assert opened.elapsed_seconds() >= 23.039
    fold = opened.find("fold", {"fold": 3})
    assert (
        fold is not None and opened.fold(fold["recipe"], 3) is None
    )  # its array is not here: measure it again
    opened.add_fold(fold["recipe"], 3, np.ones((2, 1), np.float32), {"seconds": 1.0})
    assert opened.fold(fold["recipe"], 3) is not None
    opened.close()


def test_the_study_opens_and_its_report_can_be_rendered(tmp_path: Path) -> None:
    shutil.copy(GOLDEN / "study-v1.json", tmp_path / "study.json")
    result = results.read(tmp_path)
    assert result.choice["id"] == "mobilenetv1_025.coral_in1k/blocks.3@squash"
    assert result.candidates.num_rows == len(result.facts["candidates"]) >= 2
    assert "mobilenetv1_025" in render(tmp_path)


def test_the_weights_are_read() -> None:
    folder = WeightsFolder.open(GOLDEN / "weights-v1")
    (entry,) = folder.entries
    assert (entry.name, entry.parameters, entry.input.size) == ("mobilenetv1_002.random", 5186, 32)
    loaded = load_state(entry, folder=folder, reach=Reach(False, False))
    assert loaded.digest == folder.files[0].sha256
    assert sum(part.numel() for name, part in loaded.state.items() if name.endswith("weight")) > 4_000
