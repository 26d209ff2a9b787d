"""`graft predict` with all it can tell: unknown pictures, label sets, thresholds, and what spoke for an answer."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_models import about, knowing, model, noise, packed, packed_two, probabilities_of
from PIL import Image

import graft
from graft.cli import main
from graft.deploy.bundle import load
from graft.deploy.explain import MARK, overlay, write_overlay
from graft.deploy.pack import Check, Knowing, pack
from graft.errors import BundleError
from graft.images.dataset import Preprocess

GEOMETRY = Preprocess(16)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packed(tmp_path_factory.mktemp("made") / "m", GEOMETRY, known=knowing(GEOMETRY))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two like those the bundle knows, in two folders under one name, and one that is like nothing."""
    place = tmp_path / "photos"
    for number, folder in enumerate(("a", "b")):
        (place / folder).mkdir(parents=True)
        Image.fromarray(noise(2, Preprocess(40), seed=7)[number]).save(place / folder / "x.png")
    green = np.zeros((40, 40, 3), np.uint8)
    green[..., 1] = 255
    Image.fromarray(green).save(place / "green.png")
    return place


def told() -> dict[str, Any]:
    return about() | {"per_class": []}


def said(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main([str(each) for each in arguments]) == 0
    return capsys.readouterr().out


def test_unknown_and_sets_in_every_form(made: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = load(made)
    lines = said(capsys, "predict", made, photos, "--json", "--unknown", "--sets").splitlines()
    told = {json.loads(line)["file"]: json.loads(line) for line in lines}
    for file, facts in told.items():
        answer = bundle.predict(file)
        assert (facts["label"], facts["unknown"]) == (answer.label, answer.unknown)
        assert facts["labels_90"] == list(answer.labels_90 or ())
        assert facts["score"] == pytest.approx(answer.score, abs=1e-5)
    assert told[str(photos / "green.png")]["unknown"] is True
    assert told[str(photos / "a" / "x.png")]["unknown"] is False
    rows = list(
        csv.DictReader(io.StringIO(said(capsys, "predict", made, photos, "--csv", "--unknown", "--sets")))
    )
    assert {row["file"]: row["unknown"] == "yes" for row in rows} == {
        file: facts["unknown"] for file, facts in told.items()
    }
    assert [json.loads(row["set"]) for row in rows] == [told[row["file"]]["labels_90"] for row in rows]
    plain = said(capsys, "predict", made, photos / "green.png", "--unknown", "--sets")
    assert "unknown: unlike everything" in plain and "set: " in plain
    silent = json.loads(said(capsys, "predict", made, photos, "--json").splitlines()[0])
    assert set(silent) == {"file", "label", "probabilities"}


def test_explain_draws_a_picture_each_and_never_over_anything_else(
    made: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    for _ in range(2):  # its own pictures are replaced
        lines = said(capsys, "predict", made, photos, "--json", "--explain", "--out", out).splitlines()
        places = [Path(json.loads(line)["explained"]) for line in lines]
        assert sorted(places) == sorted(out.iterdir()) and len(set(places)) == 3
    with Image.open(places[0]) as image:
        assert image.size == (40, 40) and image.info["Software"] == MARK
    before = places[0].read_bytes()
    Image.new("RGB", (8, 8)).save(places[0])
    other = places[0].read_bytes()
    assert main(["predict", str(made), str(photos), "--explain", "--out", str(out)]) == 2
    assert places[0].read_bytes() == other != before
    assert "was not made by --explain" in capsys.readouterr().err


def test_what_cannot_be_drawn_is_answered_all_the_same(
    made: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "green.explained.png").write_bytes(b"somebody else's")
    assert main(["predict", str(made), str(photos), "--json", "--explain", "--out", str(out)]) == 2
    printed = capsys.readouterr()
    answers = [json.loads(line) for line in printed.out.splitlines()]
    assert [("explained" in answer) for answer in answers] == [True, True, False]
    assert "1 of 3 answers could not be drawn" in printed.err and "have no answer" not in printed.err
    assert (out / "green.explained.png").read_bytes() == b"somebody else's"


def test_drawings_among_the_photos_are_not_classified_the_next_time(
    made: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ("predict", made, photos, "--explain", "--out", photos / "explained")
    assert said(capsys, *asked) == said(capsys, *asked)
    drawn = photos / "explained" / "green.explained.png"
    assert "green.explained.png:" in said(
        capsys, "predict", made, drawn, "--explain", "--out", photos / "again"
    )


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_whatever_looks_like_an_image_in_a_folder_is_named(
    made: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "a" / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(99))
    shutil.copy(photos / "green.png", photos / "a" / "no suffix")
    (photos / "notes.txt").write_text("no image")
    os.mkfifo(photos / "b" / "pipe.png")
    (photos / "b" / "itself.png").symlink_to(photos / "b" / "itself.png")
    assert main(["predict", str(made), str(photos)]) == 2
    printed = capsys.readouterr()
    assert len(printed.out.splitlines()) == 4 and "no suffix:" in printed.out
    assert "phone.heic: HEIC images are not read" in printed.err
    assert (
        "pipe.png: This is a pipe" in printed.err and "itself.png: The file cannot be opened" in printed.err
    )
    assert "notes.txt" not in printed.err and "3 of 7 files could not be read" in printed.err


def test_an_empty_name_is_not_this_folder(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", str(made), ""]) == 2
    assert "One of the names is empty" in capsys.readouterr().err


def test_a_drawing_is_never_drawn_over_itself(photos: Path) -> None:
    """Its name would be that of the source: another run's drawing, put beside the photos and explained in turn."""
    first = write_overlay(photos / "green.png", np.ones((2, 2)), GEOMETRY, folder=photos)
    second = write_overlay(first, np.ones((2, 2)), GEOMETRY, folder=photos)
    assert first.name == "green.explained.png" and second.name == "green.explained.explained.png"
    before = first.read_bytes()
    source = first.rename(photos / ".explained.png")
    (photos / "inner").mkdir()
    third = write_overlay(source, np.ones((2, 2)), GEOMETRY, folder=photos)
    assert source.read_bytes() == before and third != source


@pytest.mark.parametrize("fit", ["crop", "squash", "pad"])
def test_warm_where_it_spoke_for_the_class_and_cold_where_against(fit: str) -> None:
    grey = Image.new("RGB", (90, 60), (128, 128, 128))
    halves = np.array([[4.0, -4.0]] * 2)
    drawn = np.asarray(overlay(grey, halves, Preprocess(16, fit=fit, crop_share=0.8))).astype(int)  # type: ignore[arg-type]
    assert drawn.shape == (60, 90, 3)
    left, right = drawn[30, 30], drawn[30, 60]
    assert left[0] > left[2] + 20 and right[2] > right[0] + 20
    if fit == "crop":
        assert (drawn[:, 0] == 128).all() and (drawn[1, 45] == 128).all()


def test_bad_values_are_told_in_a_sentence(
    made: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = packed(tmp_path / "plain", GEOMETRY)
    file = tmp_path / "file"
    file.write_text("x")
    for arguments, sentence in (
        (("predict", plain, photos, "--unknown"), "holds no statistics"),
        (("predict", plain, photos, "--sets"), "holds no quantile"),
        (("predict", made, photos, "--out", tmp_path), "--out names the folder for --explain"),
        (("predict", made, photos, "--explain", "--out", file), "name a folder"),
    ):
        assert main([str(each) for each in arguments]) == 2
        assert sentence in capsys.readouterr().err


class TestThresholds:
    def test_the_threshold_decides(self, tmp_path: Path) -> None:
        pixels = noise(40, GEOMETRY, seed=4)
        plain = load(packed_two(tmp_path / "plain", {}))
        shares = plain.predict_pixels(pixels)
        limit = float(np.sort(shares[:, 1])[8])
        bundle = load(packed_two(tmp_path / "decided", {"bee": limit}))
        labels = [bundle.prediction(row).label for row in shares]
        assert labels == ["bee" if row[1] >= np.float32(limit) else "ant" for row in shares]
        assert labels != [plain.prediction(row).label for row in shares]
        answer = bundle.prediction(shares[int(shares[:, 1].argmax())])
        assert answer.probability == answer.probabilities[answer.label]

    def test_it_decides_in_an_evaluation_too(self, tmp_path: Path) -> None:
        plain = load(packed_two(tmp_path / "plain", {}))
        pixels = noise(24, GEOMETRY, seed=4)
        limit = float(np.sort(plain.predict_pixels(pixels)[:, 1])[5])
        bundle = load(packed_two(tmp_path / "decided", {"bee": limit}))
        for number, picture in enumerate(pixels):
            folder = tmp_path / "later" / ("ant", "bee")[number % 2]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(folder / f"{number}.png")
        found, by_most = (graft.evaluate(one, tmp_path / "later") for one in (bundle, plain))
        said = [bundle.predict(tmp_path / "later" / name).label for name in found.names]
        assert [found.labels[place] for place in found.answers] == said
        assert list(found.answers) != list(by_most.answers)
        right = np.mean([label == name for label, name in zip(said, found.classes, strict=True)])
        assert found.scores["accuracy"].value == pytest.approx(right)
        assert found.confusion.sum(axis=0).tolist() == [said.count(label) for label in found.labels]
        assert found.scores["log_loss"] == by_most.scores["log_loss"]

    def test_its_answer_comes_first_and_belongs_to_the_set(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        sets = knowing(GEOMETRY).conformal
        assert sets is not None
        pixels, picture = noise(1, GEOMETRY, seed=4), tmp_path / "a.png"
        Image.fromarray(pixels[0]).save(picture)
        for label, other in (("ant", "bee"), ("bee", "ant")):
            folder = packed_two(tmp_path / label, {label: 0.0}, {**sets, "least_probability": 0.99})
            answer = load(folder).predict(picture)
            surprises = answer.probability < 0.5
            assert list(answer.probabilities) == [label, other] and list(answer.top(1)) == [label]
            assert answer.labels_90 == ((label, other) if surprises else (label,))
            line = said(capsys, "predict", folder, picture, "--topk", "2", "--sets").strip()
            told = f"{label} {100 * answer.probability:.1f} %" + " (by its threshold)" * surprises
            assert line.startswith(f"{picture}: {told}, {other} ")
            assert line.endswith(f"; set: {', '.join(answer.labels_90)}")

    @pytest.mark.parametrize("wrong", [{"wasp": 0.5}, {"ant": 0.5, "bee": 0.5}, {"bee": 1.5}])
    def test_what_makes_no_sense_is_refused(self, wrong: dict[str, float], tmp_path: Path) -> None:
        with pytest.raises(BundleError, match="decides in a way"):
            packed_two(tmp_path / "m", wrong)
        assert not (tmp_path / "m").exists()


@pytest.mark.parametrize("key", ["unknown", "conformal"])
def test_an_altered_decision_is_refused(key: str, made: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(made, tmp_path / "m"))
    facts = json.loads((folder / "bundle.json").read_text(encoding="utf-8"))
    facts[key] |= {"threshold": 99.0, "least_probability": 0.9}
    (folder / "bundle.json").write_text(json.dumps(facts), encoding="utf-8")
    with pytest.raises(BundleError, match="altered where it says how to decide"):
        load(folder)


def test_a_score_that_does_not_fit_the_model_is_refused(made: Path, tmp_path: Path) -> None:
    wrong = knowing(GEOMETRY)
    with pytest.raises(BundleError, match=r"unknown\.onnx is not the graph"):
        pack(
            tmp_path / "m",
            model(GEOMETRY),
            labels=("a", "b", "c"),
            preprocess=GEOMETRY,
            about=told(),
            check=Check(noise(2, GEOMETRY), probabilities_of(noise(2, GEOMETRY))),
            knowing=Knowing(model(GEOMETRY), wrong.unknown, wrong.conformal),
        )
