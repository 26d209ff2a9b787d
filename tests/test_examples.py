"""The examples run end to end on tiny made sets, write their tables, and leave the user's images alone."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from made_sets import picture, stripes, weights_folder

from graft.errors import BackboneError

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
NAMES = ("scratch_against_transfer", "freeze_or_tune", "own_cnn_against_features")
TINY = ("--size", "32", "--folds", "2")


@pytest.fixture(autouse=True)
def as_if_run_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The folder of the examples first on the path, no given images beside the checkout, a working folder of its own."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.setattr(importlib.import_module("sets"), "SHARED", tmp_path / "nothing")
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return weights_folder(tmp_path_factory.mktemp("example_weights"), ("test_resnet", "test_efficientnet"))


def example(name: str) -> ModuleType:
    return importlib.import_module(name)


def files(folder: Path) -> list[tuple[Path, int]]:
    return sorted((path, path.stat().st_mtime_ns) for path in folder.rglob("*"))


def cells(page: str, begin: str) -> list[str]:
    """The cells of the first line of a table that begins so."""
    found = [line for line in page.splitlines() if line.startswith(f"| {begin}")]
    return [cell.strip() for cell in found[0].strip("|").split("|")]


@pytest.mark.parametrize("name", NAMES)
def test_without_images_it_says_what_is_missing(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert example(name).main([]) == 2
    told = capsys.readouterr().err
    assert "nothing" in told and "name a folder with one folder of images per class" in told


def test_a_set_without_the_normal_class_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = stripes(tmp_path / "photos", each=3)
    assert example("scratch_against_transfer").main([str(photos), "--normal", "god"]) == 2
    assert "has the classes left, right" in capsys.readouterr().err


def test_a_made_set_keeps_shares_and_stays_out_of_the_source(tmp_path: Path) -> None:
    sets = example("sets")
    photos = stripes(tmp_path / "photos", classes=("a", "b", "c"), each=8)
    for path in (photos / "c").glob("00[2-7].png"):
        path.unlink()
    before = files(photos)
    made = sets.linked(photos, tmp_path / "made", images=9, called={"a": "x", "b": "y", "c": "x"}.get)
    assert {name: len(found) for name, found in sets.by_class(made).items()} == {"x": 6, "y": 4}
    assert files(photos) == before
    (made / "x" / "a-000.png").unlink()
    assert (photos / "a" / "000.png").exists()
    with pytest.raises(sets.Missing, match="lies inside"):
        sets.linked(photos, photos / "made")


def test_another_set_is_not_mixed_with_the_one_before(tmp_path: Path) -> None:
    sets = example("sets")
    first, second = (stripes(tmp_path / name / "photos", each=4, seed=seed) for seed, name in enumerate("ab"))
    made = sets.linked(first, tmp_path / "made")
    assert sets.linked(first, tmp_path / "made") == made
    before = files(made)
    for source, asked in ((second, {}), (first, {"images": 4}), (first, {"called": str.upper})):
        with pytest.raises(sets.Missing, match="name another place with --runs"):
            sets.linked(source, tmp_path / "made", **asked)
    assert files(made) == before


@pytest.mark.parametrize("images", ["0", "1", "-3", "many"])
def test_fewer_images_than_two_are_refused(images: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        example("own_cnn_against_features").main(["photos", f"--images={images}"])
    assert end.value.code == 2 and "a whole number of at least 2" in capsys.readouterr().err


def test_without_a_second_network_one_is_compared_and_an_unknown_one_is_told_before(
    weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    networks = example("own_cnn_against_features").other_of
    assert networks(None, weights) == [] and "name a second one with --other" in capsys.readouterr().err
    assert networks("test_efficientnet", weights) == ["test_efficientnet"]
    with pytest.raises(BackboneError, match="no network called"):
        networks("restnet", weights)


def test_a_part_of_parquet_files(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    import pyarrow
    import pyarrow.parquet

    folder = tmp_path / "small"
    folder.mkdir()
    table = pyarrow.table(
        {"image": [b"%d" % i for i in range(10)], "label": ["a", "b"] * 5, "split": ["t"] * 10}
    )
    pyarrow.parquet.write_table(table, folder / "one.parquet")
    made = example("sets").parquet_part(folder, tmp_path / "made", images=4)
    assert pyarrow.parquet.read_table(made).to_pydict() == {
        "image": [b"0", b"2", b"5", b"7"],
        "label": ["a", "a", "b", "b"],
    }


@pytest.mark.slow
def test_scratch_against_transfer(tmp_path: Path, weights: Path) -> None:
    tiles = tmp_path / "tiles"
    for kind, (name, count) in enumerate({"Free": 16, "Crack": 6, "Break": 6}.items()):
        (tiles / name).mkdir(parents=True)
        for index in range(count):
            random = np.random.default_rng([kind, index])
            picture(random, kind, grey=True).save(tiles / name / f"{index}.png")
    before = files(tiles)
    asked = [str(tiles), "--weights", str(weights), "--backbone", "test_resnet", "--out", "a.md", *TINY]
    asked += ["--freeze", "5", "--epochs", "1", "--scratch-epochs", "1"]
    assert example("scratch_against_transfer").main(asked) == 0
    page = Path("a.md").read_text()
    assert "28 images, 2 folds" in page and page.count("small CNN from scratch") == 2
    assert len(cells(page, "test_resnet, first 5 layers frozen")) == 6
    assert files(tiles) == before
    assert (
        example("scratch_against_transfer").main(asked) == 0
    )  # the rows are there: nothing is trained again
    assert Path("a.md").read_text() == page


@pytest.mark.slow
def test_freeze_or_tune(tmp_path: Path, weights: Path) -> None:
    photos = stripes(tmp_path / "photos", each=8)
    asked = [str(photos), "--weights", str(weights), "--backbone", "test_resnet", "--out", "b.md", *TINY]
    assert example("freeze_or_tune").main([*asked, "--epochs", "1", "--images", "14"]) == 0
    page = Path("b.md").read_text()
    lines = [line for line in page.splitlines() if line.startswith("| photos")]
    assert [line.split("|")[4].strip() for line in lines] == ["colour", "grey"]
    only_tuned, only_frozen = map(int, cells(page, "photos")[6].split(":"))
    tuned, frozen = (float(cells(page, "photos")[i].split()[0]) for i in (5, 4))
    assert only_tuned - only_frozen == round((tuned - frozen) / 100 * 14)
    assert "Published in 2017, not measured here" in page


@pytest.mark.slow
def test_own_cnn_against_features(tmp_path: Path, weights: Path) -> None:
    photos = stripes(tmp_path / "photos", each=8)
    asked = [str(photos), "--weights", str(weights), "--out", "c.md", "--epochs", "1", "--batch-size", "5"]
    networks = ["--backbone", "test_resnet", "--other", "test_efficientnet"]
    assert example("own_cnn_against_features").main([*asked, *networks, *TINY]) == 0
    page = Path("c.md").read_text()
    own, features = cells(page, "own CNN, 1 epochs, batch 5"), cells(page, "features of test_resnet")
    assert own[5:] == ["1", "1"]
    ratio = float(features[1].split()[0]) / float(own[1].split()[0])
    assert float(features[5]) == pytest.approx(ratio, abs=0.011)
    assert cells(page, "features of test_efficientnet")
