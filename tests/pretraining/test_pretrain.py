"""`graft pretrain` from end to end: it learns, is repeatable, survives a kill, refuses, and its weights are used."""

from __future__ import annotations

import hashlib
import json
import math
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from made_sets import stripes, weights_folder

from graft.backbones.hub import Reach
from graft.backbones.opening import open_backbone
from graft.backbones.weights import WeightsFolder, load_state
from graft.compute import Compute
from graft.errors import BackboneError, RunError, SettingsError
from graft.pretraining import checkpoint, pretrain
from graft.pretraining.pretrain import pretraining
from graft.pretraining.publishing import Published
from graft.pretraining.records import Epoch, Event
from graft.pretraining.settings import PretrainSettings, resolved_pretraining
from graft.pretraining.training import affordable_epochs
from graft.store import Store

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a source, a teacher with random weights, and a cache that the tests share."""
    place = tmp_path_factory.mktemp("pretrain")
    stripes(place / "photos", each=30)
    weights_folder(place / "teachers")
    return place


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrain, "choose", lambda device: Compute("cpu", False, 1))


def asked(place: Path, out: Path, **given: Any) -> PretrainSettings:
    """A short training of the smallest student from the teacher."""
    usual = {"name": "mine", "student": "tiny", "size": 64, "epochs": 2, "batch_size": 16}
    taught = {"teacher": "test_resnet.made", "weights": place / "teachers", "made": 0.25}
    return resolved_pretraining(place / "photos", out=out, **{**usual, **taught, **given})


def run(settings: PretrainSettings, place: Path) -> tuple[Published, list[Event]]:
    work, events = pretraining(settings, store=Store(place / "cache")), []
    while True:
        try:
            events.append(next(work))
        except StopIteration as finished:
            return finished.value, events


def labelled(place: Path, out: Path, **given: Any) -> PretrainSettings:
    return asked(place, out, **{"teacher": None, "made": 0.0, **given})


@pytest.fixture(scope="module")
def finished(place: Path) -> Iterator[tuple[Path, list[Event]]]:
    """A training that nobody interrupted."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretrain, "choose", lambda device: Compute("cpu", False, 1))
        yield place / "whole", run(asked(place, place / "whole"), place)[1]


def test_what_is_published(finished: tuple[Path, list[Event]]) -> None:
    out, events = finished
    assert sorted(path.name for path in out.iterdir()) == [
        "mine.curve.json",
        "mine.md",
        "mine.safetensors",
        "weights.json",
    ]
    (row,) = json.loads((out / "weights.json").read_text())["weights"]
    assert row["teacher"]["name"] == "test_resnet.made" and len(row["teacher"]["sha256"]) == 64
    assert row["sha256"] == hashlib.sha256((out / "mine.safetensors").read_bytes()).hexdigest()
    assert {"student", "settings", "seed", "metrics", "licence_note", "trained_on", "dtype", "bytes"} <= set(
        row
    )
    assert "distilled from test_resnet.made" in (out / "mine.md").read_text()
    epochs = [event for event in events if isinstance(event, Epoch)]
    assert [epoch.number for epoch in epochs] == [1, 2]
    assert len(json.loads((out / "mine.curve.json").read_text())["epochs"]) == 2


def test_a_study_can_open_it(finished: tuple[Path, list[Event]]) -> None:
    folder = WeightsFolder.open(finished[0])
    (entry,) = folder.entries
    assert entry.family == "graft" and entry.gmacs and len(entry.stages) == 5
    loaded = load_state(entry, folder=folder, reach=Reach(False, False))
    opened = open_backbone(entry, loaded.state, channels=1, size=96)
    rows = opened.trunk(torch.randint(0, 256, (2, 96, 96, 1), dtype=torch.uint8))
    assert rows[-1].shape == (2, 320)


def test_killed_and_resumed_it_ends_in_the_same_bits(
    place: Path, tmp_path: Path, finished: tuple[Path, list[Event]]
) -> None:
    program = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from pathlib import Path
from graft.compute import Compute
from graft.pretraining import pretrain
from graft.store import Store
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_pretrain import asked
pretrain.choose = lambda device: Compute("cpu", False, 1)
settings = asked(Path({str(place)!r}), Path({str(tmp_path)!r}), checkpoint_seconds=0.0)
for event in pretrain.pretraining(settings, store=Store({str(place / "other cache")!r})): pass
"""
    settings = asked(place, tmp_path, resume=True)
    process = subprocess.Popen([sys.executable, "-c", program])
    try:
        step = 0
        while step < 1 and process.poll() is None:
            time.sleep(0.02)
            found = checkpoint.load(settings)
            step = found[0].step if found else 0
    finally:
        process.kill()
        process.wait()
    found = checkpoint.load(settings)
    assert found is not None and 0 < found[0].step < found[0].steps * found[0].epochs
    _, events = run(settings, place)
    assert any("Resumed at step" in getattr(event, "text", "") for event in events)
    assert (tmp_path / "mine.safetensors").read_bytes() == (finished[0] / "mine.safetensors").read_bytes()


def interrupted(settings: PretrainSettings, place: Path, *, epochs: int = 1) -> None:
    """Leave a training after so many epochs."""
    work = pretraining(settings, store=Store(place / "cache"))
    while epochs:
        epochs -= isinstance(next(work), Epoch)
    work.close()


def test_an_unfinished_training_is_neither_lost_nor_mixed_up(place: Path, tmp_path: Path) -> None:
    settings = labelled(place, tmp_path)
    interrupted(settings, place)
    with pytest.raises(RunError, match=r"unfinished training of mine.*--resume.*--overwrite"):
        run(settings, place)
    with pytest.raises(RunError, match=r"has learning rate 0\.001, this command has 0\.002"):
        run(labelled(place, tmp_path, lr=0.002, resume=True), place)
    with pytest.raises(RunError, match="has seed 0, this command has 3"):
        run(labelled(place, tmp_path, seed=3, resume=True), place)
    (checkpoint.folder_of(settings) / checkpoint.FILE).write_bytes(b"damaged")
    with pytest.raises(RunError, match="damaged"):
        run(replace(settings, resume=True), place)
    run(replace(settings, overwrite=True), place)
    with pytest.raises(RunError, match="has mine already"):
        run(settings, place)


def test_others_in_the_folder_stay(place: Path, tmp_path: Path) -> None:
    weights_folder(tmp_path)
    run(labelled(place, tmp_path, epochs=1), place)
    assert [entry.name for entry in WeightsFolder.open(tmp_path).entries] == ["test_resnet.made", "mine"]


def test_a_second_student_asks_the_teacher_nothing(
    place: Path, tmp_path: Path, finished: tuple[Path, list[Event]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def silent(*_: object, **__: object) -> None:
        raise AssertionError("the teacher was asked again")

    from graft.pretraining import targets

    monkeypatch.setattr(targets, "openvino_batches", silent)
    settings = asked(place, tmp_path, student="test_resnet", epochs=1)
    monkeypatch.setattr(pretrain, "_classes", lambda teacher, samples: 1000)
    run(settings, place)


def test_it_learns_from_labels(place: Path, tmp_path: Path) -> None:
    settings = labelled(place, tmp_path, student="test_resnet", epochs=12, batch_size=10, lr=0.004)
    _, events = run(settings, place)
    losses = [event.train_loss for event in events if isinstance(event, Epoch)]
    assert losses[0] > 0.6 and losses[-1] < losses[0] - 0.1, losses


def test_it_learns_from_the_teacher(place: Path, tmp_path: Path) -> None:
    settings = asked(place, tmp_path, student="test_resnet", epochs=12, batch_size=10, lr=0.004)
    _, events = run(settings, place)
    held = [event.held_loss for event in events if isinstance(event, Epoch)]
    assert held[0] is not None and held[-1] is not None and held[-1] < 0.8 * held[0], held


def test_a_budget_plans_the_epochs(place: Path, tmp_path: Path) -> None:
    _, events = run(labelled(place, tmp_path, budget=0.1, epochs=None), place)
    epochs = [event for event in events if isinstance(event, Epoch)]
    assert len(epochs) == 1 and epochs[0].planned == 1


def test_how_many_epochs_a_budget_pays() -> None:
    costs = {"step": 0.3, "prepared": 0.1, "steps": 100}
    assert affordable_epochs(80.0, **costs, cycle=5) == 2
    assert affordable_epochs(200.0 + 90.0, **costs, cycle=5) == 5 + 3
    assert affordable_epochs(1.0, **costs, cycle=5) == 1


@pytest.mark.parametrize(
    ("given", "kind", "sentence"),
    [
        ({"teacher": "no_such_network"}, BackboneError, "no network called 'no_such_network'"),
        ({"student": "mobilnetv2_100"}, SettingsError, "--student mobilnetv2_100.*mobilenetv2_100"),
        ({"init": "teacher"}, BackboneError, "--init teacher: graft_tiny has not the layout"),
    ],
)
def test_what_cannot_be_done_is_said(
    place: Path, tmp_path: Path, given: dict[str, Any], kind: type[Exception], sentence: str
) -> None:
    with pytest.raises(kind, match=f"(?s){sentence}"):
        run(asked(place, tmp_path / "w", **given), place)
    assert not (tmp_path / "w").exists()


def test_a_full_disk_is_a_sentence(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "write_atomically", full)
    with pytest.raises(RunError, match=r"No space left on device.*--resume"):
        run(labelled(place, tmp_path), place)


def test_a_loss_that_is_no_number_ends_with_a_sentence(place: Path, tmp_path: Path) -> None:
    settings = replace(labelled(place, tmp_path), learning_rate=math.inf)
    with pytest.raises(Exception, match=r"no finite number.*--lr"):
        run(settings, place)
