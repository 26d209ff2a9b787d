"""Pictures of something else: how well a bundle tells them apart, by pairs, by name, and on the command line."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_models import LABELS, knowing, noise, packed
from PIL import Image

import graft
from graft.cli import main
from graft.deploy.apart import told_apart
from graft.images.dataset import Preprocess

SCORES = st.lists(st.integers(-3, 3), min_size=1, max_size=12)


@given(SCORES, SCORES, st.integers(-4, 4))
def test_it_is_the_share_of_pairs(known: list[int], others: list[int], limit: int) -> None:
    found = told_apart(np.array(known, float), np.array(others, float), limit=float(limit))
    pairs = [1.0 if far > near else 0.5 if far == near else 0.0 for near, far in product(known, others)]
    assert found.auroc.value == pytest.approx(np.mean(pairs))
    assert 0 <= found.auroc.low <= found.auroc.value <= found.auroc.high <= 1
    assert found.others_called_unknown == sum(score > limit for score in others)
    assert found.known_called_unknown == sum(score > limit for score in known)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    preprocess = Preprocess(16)
    return packed(tmp_path_factory.mktemp("apart") / "m", preprocess, known=knowing(preprocess))


def later(folder: Path) -> tuple[Path, Path]:
    """Images of the kind the bundle knows, by class, and pictures of one colour each."""
    for number, pixels in enumerate(noise(12, Preprocess(40), seed=7)):
        file = folder / "known" / LABELS[number % 3] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(file)
    (folder / "far" / "deep").mkdir(parents=True)
    for number in range(5):
        Image.new("RGB", (40, 40), (0, 50 * number, 0)).save(folder / "far" / "deep" / f"{number}.png")
    return folder / "known", folder / "far"


def test_pictures_from_elsewhere_change_no_score(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    known, far = later(tmp_path)
    plain = graft.evaluate(model, known)
    (far / "broken.png").write_bytes(b"no image")
    found = graft.evaluate(model, known, elsewhere=sorted(far.rglob("*.png")))
    assert plain.apart is None and plain.facts["told_apart"] is None
    assert found.apart is not None and found.apart.known == 12 and found.apart.others == 5
    assert found.apart.auroc.value > 0.9 and found.apart.others_called_unknown == 5
    assert found.scores == plain.scores and found.names == plain.names
    assert [one.name for one in found.left_out] == [str(far / "broken.png")]
    assert main(["evaluate", str(model), str(known), "--elsewhere", str(far), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["told_apart"] == found.apart.facts
    assert main(["evaluate", str(model), str(known), "--elsewhere", str(far)]) == 0
    assert "5 of 5 are called unknown" in " ".join(capsys.readouterr().out.split())


def test_images_of_unknown_classes_are_from_elsewhere(model: Path, tmp_path: Path) -> None:
    known, far = later(tmp_path)
    expected = graft.evaluate(model, known, elsewhere=sorted(far.rglob("*.png"))).apart
    far.rename(known / "green")
    (known / "green" / "deep").rename(known / "deep")
    (known / "green").rmdir()
    found = graft.evaluate(model, known)
    assert found.unknown == {"deep": 5} and found.apart == expected


def test_a_bundle_that_cannot_tell_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    known, far = later(tmp_path)
    plain = packed(tmp_path / "plain")
    assert main(["evaluate", str(plain), str(known), "--elsewhere", str(far)]) == 2
    assert "Leave --elsewhere away" in capsys.readouterr().err
    assert main(["evaluate", str(plain), str(known), "--elsewhere", str(tmp_path / "plain")]) == 2
    assert "holds no image files" in capsys.readouterr().err
    assert main(["evaluate", str(plain), str(known), "--elsewhere", str(tmp_path / "nowhere")]) == 2
    assert "nowhere does not exist" in capsys.readouterr().err
