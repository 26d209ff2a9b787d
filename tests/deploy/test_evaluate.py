"""Evaluating a packed model on labelled images: the numbers, the classes it does not know, the files it cannot read."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from made_models import LABELS, TAP, about, features_of, head, trunk
from PIL import Image
from sklearn.metrics import accuracy_score, classification_report, confusion_matrix, log_loss

import graft
from graft.cli import main
from graft.deploy.assemble import assembled
from graft.deploy.bundle import Bundle, load
from graft.deploy.evaluate import spelling_hint, write_answers
from graft.deploy.pack import Check, pack
from graft.errors import DatasetError
from graft.images.dataset import Preprocess


def pictures(count: int, seed: int) -> np.ndarray:
    """Waves in random colours, uint8 `[n, 16, 16, 3]`."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:16, :16]
    made = []
    for _ in range(count):
        angle, pace = random.uniform(0, np.pi), random.uniform(0.5, 3)
        wave = np.sin(pace * (x * np.cos(angle) + y * np.sin(angle)) + random.uniform(0, 6))
        made.append(128 + wave[..., None] * random.uniform(-127, 127, 3) - random.uniform(0, 128, 3))
    return np.clip(np.stack(made), 0, 255).astype(np.uint8)


def undecided(folder: Path) -> Path:
    """A bundle of the tiny network whose head gives each class its share of pictures."""
    preprocess, pixels = Preprocess(16), pictures(100, seed=99)
    weight, _ = head()
    rows = features_of(pixels)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    bias = -(rows @ weight).mean(axis=0)
    logits = rows @ weight + bias
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    whole = assembled(trunk(16, 3), TAP, weight=weight, bias=bias, unit_length=True)
    check = Check(pixels, shares / shares.sum(axis=1, keepdims=True))
    pack(folder, whole.SerializeToString(), labels=LABELS, preprocess=preprocess, about=about(), check=check)
    return folder


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return load(undecided(tmp_path_factory.mktemp("model") / "model.graft"), threads=1)


def photos(folder: Path, classes: tuple[str, ...], *, each: int = 12) -> Path:
    for kind, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for number, pixels in enumerate(pictures(each, seed=kind)):
            Image.fromarray(pixels).save(folder / name / f"{number:02}.png")
    return folder


def test_the_numbers_are_those_of_scikit_learn(bundle: Bundle, tmp_path: Path) -> None:
    found = graft.evaluate(bundle, photos(tmp_path / "later", LABELS))
    truth = [LABELS.index(name) for name in found.classes]
    decided = found.probabilities.argmax(axis=1)
    report = classification_report(
        truth, decided, labels=[0, 1, 2], target_names=LABELS, output_dict=True, zero_division=0
    )
    assert found.images == 36 and found.truths == LABELS and not found.unknown and not found.left_out
    assert 0.1 < found.scores["accuracy"].value < 0.9
    assert found.scores["accuracy"].value == pytest.approx(accuracy_score(truth, decided))
    assert found.scores["macro_f1"].value == pytest.approx(report["macro avg"]["f1-score"])
    assert found.scores["log_loss"].value == pytest.approx(log_loss(truth, found.probabilities), rel=1e-4)
    for row in found.per_class:
        expected = report[row["class"]]
        assert row["recall"] == pytest.approx(expected["recall"]) and row["support"] == 12
        assert row["precision"] == pytest.approx(expected["precision"])
    assert found.confusion.tolist() == confusion_matrix(truth, decided, labels=[0, 1, 2]).tolist()
    for score in found.scores.values():
        assert score.low <= score.value <= score.high and score.high > score.low
    again = np.concatenate([bundle.probabilities(tmp_path / "later" / name) for name in found.names])
    assert np.array_equal(again, found.probabilities)


def test_classes_are_matched_by_name_not_by_order(bundle: Bundle, tmp_path: Path) -> None:
    """A folder with two of three classes; one row of answers decides each."""
    found = graft.evaluate(bundle, photos(tmp_path / "later", ("a wasp", "bee")))
    assert set(found.classes) == {"a wasp", "bee"} and found.images == 24
    assert found.confusion[LABELS.index("ant")].sum() == 0
    assert found.confusion[LABELS.index("bee")].sum() == 12 == found.confusion[LABELS.index("a wasp")].sum()
    assert {row["class"] for row in found.per_class} >= {"a wasp", "bee"}


def test_an_unknown_class_is_counted_beside_the_scores(bundle: Bundle, tmp_path: Path) -> None:
    known = graft.evaluate(bundle, photos(tmp_path / "known", LABELS))
    photos(tmp_path / "more", (*LABELS, "hornet"))
    more = graft.evaluate(bundle, tmp_path / "more")
    assert more.scores == known.scores and more.images == 36
    assert more.unknown == {"hornet": 12} and more.truths == (*LABELS, "hornet")
    assert more.confusion.shape == (4, 3) and more.confusion[3].sum() == 12
    assert more.accuracy_with_unknown == pytest.approx(known.scores["accuracy"].value * 36 / 48)


def test_what_cannot_be_read_is_named(bundle: Bundle, tmp_path: Path) -> None:
    folder = photos(tmp_path / "later", LABELS)
    (folder / "ant" / "broken.png").write_bytes(b"no image")
    (folder / "stray.png").write_bytes((folder / "ant" / "00.png").read_bytes())
    found = graft.evaluate(bundle, folder)
    assert {one.name for one in found.left_out} == {"ant/broken.png", "stray.png"} and found.images == 36


def test_nothing_to_evaluate(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="none of the classes"):
        graft.evaluate(bundle, photos(tmp_path / "others", ("cat", "dog")))
    (tmp_path / "broken" / "ant").mkdir(parents=True)
    (tmp_path / "broken" / "ant" / "a.png").write_bytes(b"no image")
    with pytest.raises(DatasetError, match=r"can be read \(ant/a.png"):
        graft.evaluate(bundle, tmp_path / "broken")


def test_the_same_bytes_are_drawn_together(bundle: Bundle, tmp_path: Path) -> None:
    """Twenty copies of each image say no more than one: the interval must not shrink."""
    once = graft.evaluate(bundle, photos(tmp_path / "once", LABELS, each=6))
    for file in sorted((tmp_path / "once").rglob("*.png")):
        place = tmp_path / "often" / file.parent.name
        place.mkdir(parents=True, exist_ok=True)
        for number in range(20):
            (place / f"{file.stem}-{number}.png").write_bytes(file.read_bytes())
    often = graft.evaluate(bundle, tmp_path / "often")
    widths = [found.scores["accuracy"].high - found.scores["accuracy"].low for found in (once, often)]
    assert often.images == 360 and widths[1] > 0.7 * widths[0]


def test_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = undecided(tmp_path / "model.graft")
    folder = photos(tmp_path / "later", ("ant", "Bee", "a wasp"))
    table = tmp_path / "answers.csv"
    assert main(["evaluate", str(model), str(folder), "--csv", str(table)]) == 0
    told = capsys.readouterr().out
    assert "24 images of known classes" in told and "'Bee' (is 'bee' meant?" in told and "macro f1" in told
    lines = list(csv.DictReader(table.read_text(encoding="utf-8").splitlines()))
    assert len(lines) == 36 and {line["right"] for line in lines if line["class"] == "Bee"} == {"no"}
    assert all(sum(float(line[label]) for label in LABELS) == pytest.approx(1, abs=1e-4) for line in lines)
    assert main(["evaluate", str(model), str(folder), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["unknown_classes"] == {"Bee": 12} and facts["images"] == 24
    assert len(facts["confusion"]["counts"]) == 4
    assert main(["evaluate", str(model), str(tmp_path / "nowhere")]) == 2


def test_no_file_in_the_table_is_a_formula_and_every_class_is_itself(tmp_path: Path) -> None:
    folder, table = photos(tmp_path / "later", ("ant", "=1+1"), each=2), tmp_path / "answers.csv"
    write_answers(graft.evaluate(undecided(tmp_path / "model.graft"), folder), table)
    lines = list(csv.DictReader(table.read_text(encoding="utf-8").splitlines()))
    assert [line["file"] for line in lines[:2]] == ["./=1+1/00.png", "./=1+1/01.png"]
    assert lines[0]["class"] == "=1+1" and lines[2]["file"] == "ant/00.png"
    assert all((folder / line["file"]).is_file() for line in lines)


def test_a_folder_as_csv_is_refused_before_the_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(tmp_path / "no.graft"), str(tmp_path), "--csv", str(tmp_path)]) == 2
    assert f"--csv {tmp_path} is a folder" in capsys.readouterr().err


def test_spelling() -> None:
    assert spelling_hint("Bee", LABELS) == "bee" and spelling_hint("wasp", LABELS) == "a wasp"
    assert spelling_hint("zebra", LABELS) == ""
