"""Which mirrorings are used, and what is said of them: on a study of stripes, and on records made here."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_sets import picture, weights_folder
from made_trials import trial
from PIL import ImageOps

from graft.backbones.activations import extracted
from graft.backbones.catalogue import find
from graft.backbones.trunks import TrunkFile, trunk_of
from graft.backbones.weights import Reach, folder_from, shelf
from graft.compute import Compute
from graft.images.augmentations import STILL, SYMMETRIES, page_of
from graft.images.folds import split
from graft.images.pixels import open_pixels, pixels_key, preparing
from graft.images.scan import scan
from graft.images.views import natural
from graft.learning.mirrored import MOST, spread
from graft.learning.orientation import Turning
from graft.store import Store
from graft.studies.frame import Event, Frame
from graft.studies.journal import Journal
from graft.studies.plan import geometry_of
from graft.studies.settings import resolved
from graft.studies.symmetry import (
    MIRRORINGS,
    Asked,
    ask_the_best,
    asking,
    augmenting,
    shown,
    suited_without_backbone,
)


def test_at_most_400_rows_evenly_spread() -> None:
    rows = np.arange(10, 2_010)
    chosen = spread(rows)
    assert len(chosen) == MOST and chosen[0] == 10 and chosen[-1] == 2_009
    assert spread(rows[:50]).tolist() == rows[:50].tolist()


@pytest.fixture
def frame(tmp_path: Path) -> Iterator[Frame]:
    """Stripes that lean left or right: mirrored, each is of the other class, and nothing else tells them apart."""
    photos, weights = tmp_path / "photos", weights_folder(tmp_path / "weights")
    for index in range(40):
        drawn = picture(np.random.default_rng(index), 1)
        file = photos / ("left" if index % 2 else "right") / f"{index}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        (ImageOps.mirror(drawn) if index % 2 else drawn).save(file)
    settings = resolved(photos, out=tmp_path / "run", weights=weights, folds=2, budget="10m")
    store = Store(tmp_path / "cache")
    dataset = scan(photos, store=store, threads=1)
    with closing(Journal(settings.out)) as journal:
        folds = split(dataset, count=2, seed=0)
        compute, folder = Compute("cpu", False, 1), folder_from(weights)
        yield Frame(settings, dataset, folds, store, compute, folder, Reach(False, False), journal)


def opened(frame: Frame) -> tuple[TrunkFile, np.ndarray, np.ndarray]:
    """The trunk, the pixels, and the features of its last tap."""
    entry = find("test_resnet.made", shelf(frame.folder))
    geometry = geometry_of(entry, frame.dataset, "squash")
    for _ in preparing(frame.dataset, [geometry], store=frame.store, threads=1):
        pass
    pixels = open_pixels(frame.dataset, geometry, store=frame.store)
    given: dict[str, Any] = {"folder": frame.folder, "reach": frame.reach, "store": frame.store}
    trunk = trunk_of(entry, geometry, samples=np.array(pixels[:4]), compute=frame.compute, **given)
    found = extracted(trunk, pixels, pixels_key(frame.dataset, geometry), compute=frame.compute, **given)
    return trunk, pixels, found.tap(len(trunk.taps) - 1)


def finish(work: Generator[Event, None, Any]) -> tuple[list[Event], Any]:
    told = []
    while True:
        try:
            told.append(next(work))
        except StopIteration as end:
            return told, end.value


def test_stripes_that_lean_may_not_be_mirrored_and_it_is_said_once(frame: Frame) -> None:
    trunk, pixels, features = opened(frame)
    tap = len(trunk.taps) - 1
    _, asked = finish(asking(frame, trunk, pixels, features, tap=tap, found=SYMMETRIES))
    told, made_of = finish(augmenting(frame, trunk, pixels, features, tap=tap, wanted="light"))
    again, same = finish(augmenting(frame, trunk, pixels, features, tap=tap, wanted="light"))
    assert [one.symmetry for one in asked] == list(SYMMETRIES)
    assert asked[0].found.verdict == "changed" and "mirror" not in made_of.symmetries
    found = natural(pixels, frame.dataset.targets, frame.rows)
    assert made_of.symmetries == tuple(one.symmetry for one in asked if one.allowed and one.symmetry in found)
    notices = [event.text for event in told if event.kind == "notice"]
    kept = [record for record in frame.journal.records if record["kind"] == "symmetry"]
    assert [f"{trunk.entry.name}: {record['sentence']}" for record in kept] == notices
    assert kept[0]["verdict"] == "changed" and kept[0]["chance"] < 0.01
    assert [event for event in again if event.kind == "notice"] == [] and same == made_of
    assert finish(asking(frame, trunk, pixels, features, tap=tap, found=SYMMETRIES))[1] == asked


def test_what_has_no_backbone_of_its_own_follows_the_best_one(frame: Frame) -> None:
    """Stripes that lean may not be mirrored by what has no backbone either."""
    trunk, pixels, _ = opened(frame)
    assert finish(ask_the_best(frame, []))[0] == [] and frame.journal.find(MIRRORINGS, {}) is None
    before = suited_without_backbone(frame, pixels, frame.rows)
    plain = trial("best", np.eye(2, dtype=np.float32)[frame.targets])
    recipe = replace(plain.recipe, backbone=trunk.entry.name, geometry=trunk.geometry)
    best = replace(plain, recipe=recipe, tap_index=len(trunk.taps) - 1)
    finish(ask_the_best(frame, [best]))
    known = frame.journal.find(MIRRORINGS, {})
    assert known is not None and "mirror" not in known["symmetries"]
    after = suited_without_backbone(frame, pixels, frame.rows)
    assert after == replace(before, symmetries=tuple(known["symmetries"]))
    assert finish(ask_the_best(frame, [best]))[0] == []


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (Turning(80, 0.5, 0.9, 0.001, 0.0, (0, 1)), "No view is mirrored: that changes the class"),
        (
            Turning(80, 0.9, 0.9, 0.5, 9.0, ()),
            "Views are mirrored: which way round an image is does not matter",
        ),
        (
            Turning(80, 0.5, 0.5, 0.5, 0.0, (0, 1)),
            "the classes cannot be told apart (balanced accuracy 50.0%)",
        ),
        (Turning(80, 0.8, 0.8, 0.5, 9.0, (0, 2)), "ant and car cannot be told apart in 80 images"),
    ],
)
def test_the_sentence_says_why(found: Turning, said: str) -> None:
    asked = Asked("mirror", found)
    assert said in asked.sentence(["ant", "bee", "car"])
    assert asked.allowed == said.startswith("Views")


def test_nothing_is_asked_where_the_answer_changes_nothing(frame: Frame) -> None:
    trunk, pixels, features = opened(frame)
    given = json.loads(page_of(replace(STILL, symmetries=("mirror",))))
    for wanted, expected in (("none", ()), (json.dumps(given), ("mirror",))):
        told, made_of = finish(augmenting(frame, trunk, pixels, features, tap=0, wanted=wanted))
        assert told == [] and made_of == replace(STILL, symmetries=expected)


def test_what_the_training_sees_is_left_in_the_run_folder(frame: Frame) -> None:
    _, pixels, _ = opened(frame)
    shown(frame, pixels, STILL, title="still")
    assert (frame.settings.out / "preview.jpg").read_bytes().startswith(b"\xff\xd8\xff")
