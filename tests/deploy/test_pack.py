"""A bundle is packed only if it says what torch says; otherwise everything stays as it was."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from made_models import LABELS, TAP, about, features_of, head, model, noise, packed, probabilities_of, trunk
from scipy.special import softmax

from graft.deploy import pack as packing
from graft.deploy.assemble import assembled
from graft.deploy.bundle import Bundle
from graft.deploy.card import card
from graft.deploy.pack import TOLERANCE, Check, pack
from graft.errors import BundleError
from graft.images.dataset import Preprocess
from graft.learning.ridge import unit

GEOMETRY = Preprocess(16)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def attempt(folder: Path, probabilities: np.ndarray, pixels: np.ndarray) -> None:
    pack(
        folder,
        model(GEOMETRY),
        labels=LABELS,
        preprocess=GEOMETRY,
        about=about(),
        check=Check(pixels, probabilities),
    )


def test_the_bundle_says_what_it_is(tmp_path: Path) -> None:
    folder = packed(tmp_path / "model.graft")
    facts = json.loads((folder / "bundle.json").read_text(encoding="utf-8"))
    assert facts["format"] == "1.0" and facts["labels"] == list(LABELS) and facts["backbone"] == "tiny.random"
    assert facts["parity"]["images"] == 4 and facts["parity"]["largest_difference"] <= TOLERANCE
    assert set(facts["files"]) == {"model.onnx", "preprocess.onnx", "labels.txt", "card.md"}
    assert facts["metrics"] == {"macro_f1": 0.91, "accuracy": 0.92, "log_loss": None, "auroc": None}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.graft"]


def test_what_is_told_about_it_cannot_change_what_it_is(tmp_path: Path) -> None:
    pixels = noise(2, GEOMETRY)
    told = about() | {"labels": ["other"], "format": "7.0", "files": {}}
    pack(
        tmp_path / "m",
        model(GEOMETRY),
        labels=LABELS,
        preprocess=GEOMETRY,
        about=told,
        check=Check(pixels, probabilities_of(pixels)),
    )
    assert Bundle(tmp_path / "m").labels == LABELS


@pytest.mark.parametrize(
    "wrong",
    [
        lambda shares: shares + 2 * TOLERANCE * np.array([1, -1, 0]),
        lambda shares: np.full_like(shares, np.nan),
        lambda shares: shares[:, ::-1],
    ],
    ids=["too far", "not a number", "swapped"],
)
def test_a_wrong_answer_is_not_packed_and_the_old_bundle_stays(wrong: object, tmp_path: Path) -> None:
    folder = packed(tmp_path / "model.graft")
    before = content(folder)
    pixels = noise(3, GEOMETRY, seed=2)
    with pytest.raises(BundleError, match="differs from torch"):
        attempt(folder, wrong(probabilities_of(pixels)), pixels)  # type: ignore[operator]
    assert content(folder) == before
    assert [path.name for path in tmp_path.iterdir()] == ["model.graft"]


def test_one_changed_decision_is_too_many_however_small_the_difference(tmp_path: Path) -> None:
    pixels = noise(8, GEOMETRY, seed=3)
    weight, bias = head()
    logits = unit(features_of(pixels)) @ weight + bias
    second, first = np.argsort(logits[0])[-2:]
    bias[second] += logits[0, first] - logits[0, second] - 1e-4  # image 0 is now decided by a hair
    whole = assembled(trunk(16, 3), TAP, weight=weight, bias=bias, unit_length=True)
    reference = softmax(unit(features_of(pixels)) @ weight + bias, axis=1)
    reference[0, [first, second]] = reference[0, [second, first]]
    with pytest.raises(BundleError, match="decides 1 of 8 images differently"):
        pack(
            tmp_path / "m",
            whole.SerializeToString(),
            labels=LABELS,
            preprocess=GEOMETRY,
            about=about(),
            check=Check(pixels, reference),
        )
    assert not (tmp_path / "m").exists()


def test_an_older_bundle_is_replaced_as_a_whole(tmp_path: Path) -> None:
    folder = packed(tmp_path / "model.graft", Preprocess(20, channels=1))
    (folder / "notes.txt").write_text("mine")
    packed(folder)
    assert Bundle(folder).preprocess == Preprocess(16)
    assert not (folder / "notes.txt").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["model.graft"]


def test_if_the_new_one_cannot_be_put_in_place_the_old_one_comes_back(
    tmp_path: Path,
) -> None:
    folder = packed(tmp_path / "model.graft")
    before = content(folder)
    beside = tmp_path / "vanished"  # renaming it fails as a full or forbidden disk would
    with pytest.raises(FileNotFoundError):
        packing.put_in_place(beside, folder)
    assert content(folder) == before
    assert [path.name for path in tmp_path.iterdir()] == ["model.graft"]


def test_a_folder_that_is_no_bundle_is_never_replaced(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "a.jpg").write_bytes(b"x")
    with pytest.raises(BundleError, match="is no bundle, so it is not replaced"):
        packed(photos)
    assert content(photos) == {"a.jpg": b"x"}


def test_the_card_shows_every_name_as_it_is() -> None:
    told = about()
    labels = ["a|b", "`x`", "<script>", "_it_", "snake_case"]
    told["per_class"] = [{**told["per_class"][0], "class": label} for label in labels]
    text = card(labels, GEOMETRY, told, 1_234_567)
    assert "a\\|b" in text and "\\`x\\`" in text and "\\<script\\>" in text and "\\_it\\_" in text
    assert "snake_case" in text and "1.23 MB" in text and "licence: Apache-2.0" in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.replace("\\|", "").count("|") for line in rows} == {3, 6}
