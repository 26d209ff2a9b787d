"""The made image set: repeatable, whole or not there, with the troubles it promises and no give-away but the defects."""

from __future__ import annotations

import hashlib
import io
import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from graft.errors import DatasetError, SettingsError
from graft.images import demo, surfaces


def made(folder: Path, *, seed: int = 0) -> Path:
    for _ in demo.write(folder, good=16, defective=8, seed=seed):
        pass
    return folder


def digests(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("demo") / "set")


def pixels(folder: Path, label: str, number: int) -> np.ndarray:
    (path,) = (folder / label).glob(f"part_{number:04d}.*")
    return np.asarray(Image.open(path))


def where(label: demo.Label, count: int, content: demo.Content) -> demo.Item:
    return next(item for item in demo.plan(label, count) if item.content == content)


def test_the_same_seed_gives_the_same_bytes(small: Path, tmp_path: Path) -> None:
    assert digests(made(tmp_path / "again")) == digests(small)


def test_another_seed_gives_other_pictures(small: Path, tmp_path: Path) -> None:
    other = digests(made(tmp_path / "other", seed=1))
    shared = set(other.values()) & set(digests(small).values())
    unseeded = {hashlib.sha256(content).hexdigest() for content in (b"", demo.TEXT)}
    assert shared == unseeded


def test_a_picture_does_not_depend_on_how_many_are_made() -> None:
    few, many = demo.plan("good", 4), demo.plan("good", 400)
    assert demo.encoded(few[0], 0) == demo.encoded(many[0], 0)


def test_progress_counts_every_file_up_to_the_total(tmp_path: Path) -> None:
    steps = list(demo.write(tmp_path / "set", good=3, defective=2))
    assert steps == [(done, 5) for done in range(1, 6)]
    assert len(list((tmp_path / "set" / "good").iterdir())) == 3
    assert len(list((tmp_path / "set" / "defective").iterdir())) == 2


def test_the_same_set_is_used_again_untouched(small: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in small.rglob("*")}
    assert list(demo.write(small, good=16, defective=8)) == [(24, 24)]
    assert {path: path.stat().st_mtime_ns for path in small.rglob("*")} == before


def test_a_set_of_other_numbers_is_refused_by_name(small: Path) -> None:
    before = digests(small)
    with pytest.raises(DatasetError, match="another demo set"):
        next(demo.write(small, good=16, defective=9))
    assert digests(small) == before


def test_a_folder_of_something_else_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").write_bytes(b"mine")
    with pytest.raises(DatasetError, match="is not a demo set"):
        next(demo.write(tmp_path, good=2, defective=2))
    assert digests(tmp_path).keys() == {"holiday.jpg"}


def test_a_file_in_the_way_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "set").write_text("mine")
    with pytest.raises(DatasetError, match="is not a demo set"):
        next(demo.write(tmp_path / "set", good=2, defective=2))
    assert (tmp_path / "set").read_text() == "mine"


def test_a_set_with_missing_files_is_called_damaged(tmp_path: Path) -> None:
    folder = made(tmp_path / "set")
    next((folder / "good").iterdir()).unlink()
    with pytest.raises(DatasetError, match="good has 15 of 16 files"):
        next(demo.write(folder, good=16, defective=8))


def test_an_empty_folder_and_missing_parents_are_filled(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "empty", tmp_path / "a" / "b" / "set"):
        assert list(demo.write(folder, good=1, defective=1))[-1] == (2, 2)
        assert (folder / demo.MANIFEST).is_file()


def test_a_parent_that_is_a_file_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DatasetError, match="cannot be written"):
        next(demo.write(tmp_path / "file" / "set", good=1, defective=1))


@pytest.mark.parametrize("numbers", [(0, 1, 0), (1, 0, 0), (1, 1, -1)])
def test_impossible_numbers_are_refused(tmp_path: Path, numbers: tuple[int, int, int]) -> None:
    good, defective, seed = numbers
    with pytest.raises(SettingsError, match="at least one file"):
        next(demo.write(tmp_path / "set", good=good, defective=defective, seed=seed))


def test_a_stopped_run_leaves_nothing_behind(tmp_path: Path) -> None:
    run = demo.write(tmp_path / "set", good=16, defective=8)
    assert next(run) == (1, 24)
    assert not (tmp_path / "set").exists()
    assert any(tmp_path.iterdir())
    run.close()
    assert not any(tmp_path.iterdir())


def test_what_appears_meanwhile_is_kept(tmp_path: Path) -> None:
    run = demo.write(tmp_path / "set", good=4, defective=2)
    next(run)
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "note.txt").write_text("mine")
    with pytest.raises(DatasetError, match="cannot be written"):
        list(run)
    assert list(digests(tmp_path)) == ["set/note.txt"]


@given(st.sampled_from(["good", "defective"]), st.integers(1, 1200))
def test_a_plan_has_every_number_once_and_copies_only_pictures(label: demo.Label, count: int) -> None:
    items = demo.plan(label, count)
    assert [item.number for item in items] == list(range(count))
    troubled = [item for item in items if item.content != "picture"]
    assert [item.content for item in troubled] == list(demo.TROUBLES[label][: count // 2])
    assert all(items[item.source].content == "picture" for item in troubled)
    assert items[0].content == "picture"


def test_the_bad_files_are_bad_in_their_way(small: Path) -> None:
    _, truncated = demo.encoded(where("good", 16, "truncated"), 0)
    image = Image.open(io.BytesIO(truncated))
    with pytest.raises(OSError, match="truncated"):
        image.load()
    assert demo.encoded(where("good", 16, "empty"), 0)[1] == b""
    suffix, text = demo.encoded(where("good", 16, "text"), 0)
    assert suffix == ".jpg"
    assert text.decode().startswith("This is a note")
    assert (small / "good" / f"part_{where('good', 16, 'text').number:04d}.jpg").read_bytes() == text


def test_the_copies_are_copies(small: Path) -> None:
    copy = where("good", 16, "copy")
    assert np.array_equal(pixels(small, "good", copy.number), pixels(small, "good", copy.source))
    again = where("good", 16, "recompressed")
    one, two = pixels(small, "good", again.number), pixels(small, "good", again.source)
    assert 0 < np.abs(one.astype(float) - two).mean() < 6
    less = where("good", 16, "smaller")
    one, two = pixels(small, "good", less.number), pixels(small, "good", less.source)
    assert one.shape == (two.shape[0] * 4 // 5, two.shape[1] * 4 // 5)
    both = where("good", 16, "other_class")
    assert np.array_equal(pixels(small, "good", both.number), pixels(small, "defective", 0))


@pytest.fixture(scope="module")
def photographs() -> dict[str, list[tuple[str, np.ndarray]]]:
    """Eighty of each class: the suffix and the pixels."""
    return {
        label: [
            (suffix, np.asarray(Image.open(io.BytesIO(content))))
            for suffix, content in (demo.encoded(demo.Item(label, number), 0) for number in range(80))
        ]
        for label in ("good", "defective")
    }


def chance_of_more(photographs, value) -> float:
    """How often `value` is greater for a defective picture than for a good one; 0.5 tells nothing (AUROC)."""
    good, bad = (
        np.array([value(suffix, field) for suffix, field in photographs[label]])
        for label in ("good", "defective")
    )
    return float((bad[:, None] > good).mean() + (bad[:, None] == good).mean() / 2)


@pytest.mark.parametrize(
    "value",
    [
        lambda suffix, field: suffix == ".png",
        lambda suffix, field: field.size,
        lambda suffix, field: field.mean(),
        lambda suffix, field: field.std(),
        lambda suffix, field: np.abs(np.diff(field.astype(float))).mean(),
    ],
    ids=["format", "size", "brightness", "contrast", "noise"],
)
def test_no_single_number_tells_the_class(photographs, value) -> None:
    assert 0.38 < chance_of_more(photographs, value) < 0.62


def test_photographs_are_grey_bytes_of_a_sensible_size_and_exposure(photographs) -> None:
    for _, field in itertools.chain(*photographs.values()):
        assert field.dtype == np.uint8
        assert field.ndim == 2
        assert 160 <= min(field.shape) <= max(field.shape) <= 240
        assert 20 < field.mean() < 235


@pytest.mark.parametrize("texture", surfaces.TEXTURES)
@pytest.mark.parametrize("shape", [(160, 176), (224, 224)])
def test_a_texture_has_mean_0_and_deviation_1(texture, shape: tuple[int, int]) -> None:
    field = texture(np.random.default_rng(3), shape, 0.7)
    assert field.shape == shape
    assert abs(float(field.mean())) < 0.4
    assert 0.6 < float(field.std()) < 1.5


def surface_of(random: np.random.Generator) -> surfaces.Surface:
    grey = np.float32(120) + 10 * random.standard_normal((200, 200), dtype=np.float32)
    return surfaces.Surface(grey, 10.0, 0.3, cloth=False)


@pytest.mark.parametrize(
    "defect", [surfaces.scratch, surfaces.pits, surfaces.crack, surfaces.stain, surfaces.fray]
)
def test_a_defect_is_as_deep_as_asked_and_local(defect) -> None:
    for seed in range(8):
        random = np.random.default_rng(seed)
        change = defect(random, surface_of(random), 40.0)
        assert 15 < np.abs(change).max() < 120
        assert 0.0005 < (np.abs(change) > 5).mean() < 0.3


@pytest.mark.parametrize("mark", surfaces.CHANCE_OF_MARK)
def test_a_harmless_mark_changes_something(mark) -> None:
    random = np.random.default_rng(5)
    change = mark(random, surface_of(random))
    assert change.shape == (200, 200)
    assert 1 < np.abs(change).max() < 150


def test_the_centre_crop_keeps_the_defect() -> None:
    for defect, seed in itertools.product((surfaces.scratch, surfaces.pits, surfaces.stain), range(8)):
        random = np.random.default_rng(seed)
        change = np.abs(defect(random, surface_of(random), 40.0))
        assert change[25:175, 25:175].sum() > 0.3 * change.sum()
