"""docs/bundle-format.md says all there is: a reader written from it alone agrees, and no key is missing there."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from made_models import LABELS, knowing, noise, packed
from PIL import Image

from graft.deploy.bundle import load
from graft.images.dataset import Preprocess

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "bundle-format.md").read_text(encoding="utf-8")
FREE = (
    "files",
    "opset",
    "metrics",
    "intervals",
    "thresholds",
    "counts",
    "outputs",
    "inputs",
)  # names of files, metrics, classes


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    geometry = Preprocess(16, fit="squash")
    return packed(tmp_path_factory.mktemp("made") / "m", geometry, known=knowing(geometry))


def keys(value: Any) -> Iterator[str]:
    """Every key, at any depth, but those that are names of the user's or of files."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield name
            if name not in FREE:
                yield from keys(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from keys(inner)


def test_every_key_and_every_file_is_named_on_the_page(made: Path) -> None:
    facts = json.loads((made / "bundle.json").read_text(encoding="utf-8"))
    named = set(re.findall(r"`([a-z0-9_.]+)`", PAGE))
    assert sorted(set(keys(facts)) - named) == []
    assert sorted({path.name for path in made.iterdir()} - named) == []
    assert set(facts["model"]["outputs"]) | set(facts["unknown"]["inputs"]) <= named


def test_what_a_study_tells_is_named_too() -> None:
    from graft.studies import ending

    source = Path(ending.__file__).read_text(encoding="utf-8").split("def about_bundle")[1]
    told = set(re.findall(r'^        "([a-z_]+)":', source, re.M))
    assert {"cost", "test", "intervals", "recipe", "data", "per_class"} <= told
    assert {name for name in told if f"`{name}`" not in PAGE} == set()


def compact(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def test_a_reader_written_from_the_page_agrees(made: Path) -> None:
    facts = json.loads((made / "bundle.json").read_text(encoding="utf-8"))
    assert facts["labels_sha256"] == compact(facts["labels"])
    assert facts["preprocess_sha256"] == compact(facts["preprocess"])
    decision = {name: facts[name] for name in ("conformal", "thresholds", "unknown")}
    assert facts["decision_sha256"] == compact(decision)
    told = {name: value for name, value in facts.items() if name != "facts_sha256"}
    assert facts["facts_sha256"] == compact(told)
    sessions = {}
    for name, expected in facts["files"].items():
        content = (made / name).read_bytes()
        assert hashlib.sha256(content).hexdigest() == expected
        if name.endswith(".onnx"):
            sessions[name] = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    picture = np.array(Image.fromarray(noise(1, Preprocess(40), seed=3)[0]).resize((61, 43)))
    (image,) = sessions["preprocess.onnx"].run(None, {"picture": picture})
    names = list(facts["model"]["outputs"])
    answers = dict(zip(names, sessions["model.onnx"].run(names, {"image": image}), strict=True))
    given = {name: answers[name] for name in facts["unknown"]["inputs"]}
    (score,) = sessions["unknown.onnx"].run([facts["unknown"]["output"]], given)
    shares = answers["probabilities"][0]
    likely = {facts["labels"][i] for i in range(3) if shares[i] >= facts["conformal"]["least_probability"]}
    likely.add(facts["labels"][int(shares.argmax())])

    bundle = load(made)
    rows, scores = bundle.answer_pixels(image)
    assert scores is not None and scores[0] == pytest.approx(score[0], abs=1e-5)
    prediction = bundle.prediction(rows[0], float(scores[0]))
    assert set(prediction.labels_90 or ()) == likely
    assert prediction.unknown == (score[0] > facts["unknown"]["threshold"])
    logits = answers["activation"][0].mean(axis=(1, 2))
    contrast = bundle.explain(image[0], LABELS[1])
    assert contrast.mean() == pytest.approx(np.log(shares[1]) - np.log(shares).mean(), abs=1e-4)
    spread = answers["activation"][0, 1] - answers["activation"][0].mean(axis=0)
    np.testing.assert_allclose(contrast - contrast.mean(), spread - (logits[1] - logits.mean()), atol=1e-4)
