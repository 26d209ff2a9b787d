"""The scan finds what is wrong with the images, says it by name, and leaves nothing out in silence."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from graft.errors import DatasetError
from graft.images import scan as scanning
from graft.images.dataset import Dataset, Issue
from graft.images.issues import HEADER, read_check, write_check
from graft.images.readers import find, open_bytes
from graft.images.scan import inspecting, scan
from graft.store import Store


def picture(seed: int, *, grey: bool = False) -> Image.Image:
    """A coarse and a fine random pattern, different for every seed."""
    draw = np.random.default_rng(seed)
    layers = [draw.integers(0, 256, (cells, cells, 3), dtype=np.uint8) for cells in (4, 16)]
    grown = [np.asarray(Image.fromarray(layer).resize((64, 48)), float) for layer in layers]
    image = Image.fromarray((grown[0] * 0.6 + grown[1] * 0.4).astype(np.uint8))
    return image.convert("L").convert("RGB") if grey else image


def encoded(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def write(root: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def plant(root: Path, *names: str) -> Path:
    return write(root, {name: encoded(picture(seed)) for seed, name in enumerate(names)})


def check(source: Path, tmp_path: Path) -> Dataset:
    return scan(source, store=Store(tmp_path / "store"), threads=2)


def remarks(dataset: Dataset) -> dict[str, tuple[str, bool]]:
    return {
        issue.name: (issue.kind, issue.excluded) for issue in dataset.issues if issue.kind != "few_images"
    }


def test_a_dataset_has_sorted_names_sizes_splits_and_digests(tmp_path: Path) -> None:
    root = plant(tmp_path / "p", "val/b/1.png", "train/b/2.png", "train/a/1.png", "train/a/0.png")
    dataset = check(root, tmp_path)
    names = ["train/a/0.png", "train/a/1.png", "train/b/2.png", "val/b/1.png"]
    assert [image.name for image in dataset.images] == names
    assert dataset.classes == ("a", "b") and dataset.targets.tolist() == [0, 0, 1, 1]
    assert dataset.splits == ("train", "train", "train", "val")
    assert set(dataset.widths.tolist()) == {64} and set(dataset.heights.tolist()) == {48}
    assert dataset.groups.tolist() == [0, 1, 2, 3] and dataset.root == root
    for image in dataset.images:
        assert find(root, image.name) == (image.path, None)
        assert open_bytes(image) == image.path.read_bytes()


def test_what_cannot_be_used_is_listed_with_its_reason_and_left_out(tmp_path: Path) -> None:
    root = plant(tmp_path / "p", "a/1.png", "b/1.png", "stray.png")
    whole = encoded(picture(9), "JPEG")
    write(
        root,
        {
            "a/cut.jpg": whole[: len(whole) // 2],
            "a/empty.jpg": b"",
            "a/notes.txt": b"some words",
            "a/dot.png": encoded(Image.new("RGB", (1, 1))),
            "b/named.jpg": b"<!DOCTYPE html><title>404</title>",
            "c/empty.png": b"",
            ".hidden.png": encoded(picture(8)),
        },
    )
    (root / "d").mkdir()
    dataset = check(root, tmp_path)
    assert remarks(dataset) == {
        "stray.png": ("unplaced", True),
        "a/cut.jpg": ("truncated", True),
        "a/empty.jpg": ("empty", True),
        "a/notes.txt": ("not_an_image", True),
        "a/dot.png": ("too_small", True),
        "b/named.jpg": ("not_an_image", True),
        "c/empty.png": ("empty", True),
        ".hidden.png": ("hidden", True),
        "c": ("empty_class", False),
        "d": ("empty_class", False),
    }
    assert [image.name for image in dataset.images] == ["a/1.png", "b/1.png"]
    assert dataset.classes == ("a", "b") and dataset.excluded == 8
    assert all(issue.detail.endswith(".") for issue in dataset.issues)


def test_a_decompression_bomb_is_left_out(tmp_path: Path) -> None:
    root = plant(tmp_path / "p", "a/1.png", "b/1.png")
    write(root, {"a/bomb.png": encoded(Image.new("1", (12_000, 9_000)))})
    assert remarks(check(root, tmp_path)) == {"a/bomb.png": ("too_large", True)}


def test_copies_are_grouped_named_and_kept(tmp_path: Path) -> None:
    root = plant(tmp_path / "p", "a/1.png", "a/2.png", "b/1.png", "b/2.png")
    shutil.copy(root / "a/1.png", root / "a/3.png")
    write(root, {"a/4.jpg": encoded(picture(1), "JPEG", quality=60)})
    mirrored = picture(3).transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    write(root, {"b/3.png": encoded(mirrored)})
    dataset = check(root, tmp_path)
    group = dict(zip((image.name for image in dataset.images), dataset.groups.tolist(), strict=True))
    assert group["a/1.png"] == group["a/3.png"] != group["a/2.png"] == group["a/4.jpg"]
    assert group["b/2.png"] == group["b/3.png"] and len(set(group.values())) == 4
    assert remarks(dataset) == {
        "a/3.png": ("exact_duplicate", False),
        "a/4.jpg": ("near_duplicate", False),
        "b/3.png": ("near_duplicate", False),
    }
    details = {issue.name: issue.detail for issue in dataset.issues}
    assert details["a/3.png"] == "The same bytes as a/1.png."
    assert details["a/4.jpg"].startswith("Nearly the same picture as a/2.png (similarity ")
    assert details["b/3.png"].startswith("The mirror image of b/2.png")


def test_the_same_picture_under_two_classes_is_a_conflict_on_both_sides(tmp_path: Path) -> None:
    root = plant(tmp_path / "p", "a/1.png", "a/2.png", "a/3.png", "b/1.png")
    shutil.copy(root / "a/1.png", root / "b/same.png")
    write(root, {"b/near.jpg": encoded(picture(1), "JPEG", quality=70)})
    mirrored = picture(2).transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    write(root, {"b/turned.png": encoded(mirrored)})
    dataset = check(root, tmp_path)
    conflicts = {issue.name: issue.detail for issue in dataset.issues if issue.kind == "conflict"}
    assert conflicts == {
        "a/1.png": "The same bytes as b/same.png, class 'b'.",
        "b/same.png": "The same bytes as a/1.png, class 'a'.",
        "a/2.png": "Nearly the same picture as b/near.jpg, class 'b'.",
        "b/near.jpg": "Nearly the same picture as a/2.png, class 'a'.",
    }
    assert len(dataset) == 7 and dataset.excluded == 0 and dataset.groups.max() == 3


def test_groups_of_the_user_join_those_of_copies(tmp_path: Path) -> None:
    root = plant(tmp_path / "p", "1.png", "2.png", "3.png", "4.png")
    shutil.copy(root / "3.png", root / "5.png")
    lines = ["path,label,group", "1.png,a,x", "2.png,b,", "3.png,a,x", "4.png,b,", "5.png,a,"]
    (root / "t.csv").write_text("\n".join(lines))
    assert check(root / "t.csv", tmp_path).groups.tolist() == [0, 1, 0, 2, 0]


def test_small_classes_are_named_with_their_different_pictures(tmp_path: Path) -> None:
    root = plant(tmp_path / "p", *(f"a/{k}.png" for k in range(5)), "b/1.png")
    shutil.copy(root / "b/1.png", root / "b/2.png")
    few = [(i.name, i.detail) for i in check(root, tmp_path).issues if i.kind == "few_images"]
    assert few == [("b", "The class has 1 different picture; its scores are uncertain.")]


def test_splits_are_aligned_by_name_or_refused_by_name(tmp_path: Path) -> None:
    root = plant(tmp_path / "p", "train/ant/1.png", "train/bee/1.png", "train/cow/1.png", "val/bee/1.png")
    dataset = check(root, tmp_path)
    assert dataset.classes == ("ant", "bee", "cow") and dataset.targets.tolist() == [0, 1, 2, 1]
    write(root, {"test/bees/1.png": encoded(picture(7))})
    with pytest.raises(
        DatasetError, match=r"the test split has classes that train lacks: 'bees' .*looks like 'bee'"
    ):
        check(root, tmp_path)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("val/a/1.png", "val/b/1.png", "test/a/1.png"), "images for test and val, but none for train"),
        (("a/1.png", "a/2.png"), r"All 2 images of .* are of one class, 'a'\. "),
        (("a/1.png", "b/x/.gitkeep"), r"of one class, 'a'\. 'b' have no readable image"),
    ],
)
def test_what_makes_no_task_is_refused(tmp_path: Path, names: tuple[str, ...], message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        check(plant(tmp_path / "p", *names), tmp_path)


def test_a_folder_without_a_readable_image_is_refused_with_an_example(tmp_path: Path) -> None:
    root = write(tmp_path / "p", {"a/1.jpg": b"", "b/2.jpg": b""})
    with pytest.raises(
        DatasetError, match=r"None of the 2 files .* \(2 empty\).* a/1\.jpg: The file is empty"
    ):
        check(root, tmp_path)
    (root / "only" / "folders").mkdir(parents=True)
    with pytest.raises(DatasetError, match="holds no images"):
        check(root / "only", tmp_path)


def test_a_folder_of_images_beside_a_table_is_told_to_use_the_table(tmp_path: Path) -> None:
    root = plant(tmp_path / "p", "images/1.png", "images/2.png")
    (root / "labels.csv").write_text("path,label\nimages/1.png,a\nimages/2.png,b\nimages/3.png,b\n")
    with pytest.raises(DatasetError, match=r"If the labels are in labels\.csv, give that file instead"):
        check(root, tmp_path)
    dataset = check(root / "labels.csv", tmp_path)
    assert dataset.classes == ("a", "b")
    assert remarks(dataset) == {"images/3.png": ("unreadable", True)}


GREY: dict[str, tuple[Callable[[Image.Image], Image.Image], str, bool]] = {
    "one channel": (lambda image: image.convert("L"), "PNG", True),
    "grey as RGB in a JPEG": (lambda image: image.convert("L").convert("RGB"), "JPEG", True),
    "colour": (lambda image: image, "JPEG", False),
    "faint colour": (lambda image: Image.blend(image.convert("L").convert("RGB"), image, 0.2), "PNG", False),
}


@pytest.mark.parametrize("case", GREY)
def test_grey_means_without_colour_however_it_is_stored(tmp_path: Path, case: str) -> None:
    change, form, expected = GREY[case]
    files = {f"{label}/1.{form.lower()}": encoded(change(picture(k)), form) for k, label in enumerate("ab")}
    dataset = check(write(tmp_path / "p", files), tmp_path)
    assert dataset.grey.tolist() == [expected, expected] and dataset.mostly_grey is expected


def test_a_small_coloured_spot_is_a_colour(tmp_path: Path) -> None:
    spotted = picture(0, grey=True)
    spotted.paste((255, 0, 0), (10, 10, 14, 14))
    root = write(tmp_path / "p", {"a/1.png": encoded(spotted), "b/1.png": encoded(picture(1, grey=True))})
    assert check(root, tmp_path).grey.tolist() == [False, True]


def test_a_second_scan_decodes_nothing_and_finds_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = plant(tmp_path / "p", "a/1.png", "a/2.png", "b/1.png", "b/2.png")
    write(root, {"b/3.jpg": encoded(picture(2), "JPEG"), "b/bad.png": b"nothing"})
    first = check(root, tmp_path)

    def refuse(*_: object) -> None:
        raise AssertionError("decoded again")

    with monkeypatch.context() as without:
        without.setattr(scanning, "_look", refuse)
        second = check(root, tmp_path)
        (root / "a/1.png").rename(root / "a/9.png")
        assert check(root, tmp_path).images[1].name == "a/9.png"
        (root / "a/9.png").rename(root / "a/1.png")
    assert second.fingerprint == first.fingerprint and second.issues == first.issues
    assert (second.widths == first.widths).all() and (second.grey == first.grey).all()
    write(root, {"b/2.png": encoded(picture(50))})
    assert check(root, tmp_path).fingerprint != first.fingerprint


def test_images_beyond_what_is_kept_in_memory_are_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = plant(tmp_path / "p", *(f"{label}/{k}.png" for label in "ab" for k in range(30)))
    whole = check(root, tmp_path / "one")
    monkeypatch.setattr(scanning, "_KEPT_BYTES", 20_000)
    monkeypatch.setattr(scanning, "_ROWS_AT_ONCE", 2)
    assert check(root, tmp_path / "two").fingerprint == whole.fingerprint


def test_the_dataset_does_not_depend_on_the_order_in_which_files_were_written(tmp_path: Path) -> None:
    files = {f"{label}/{k}.png": encoded(picture(ord(label) + k)) for label in "ab" for k in range(4)}
    forth = check(write(tmp_path / "p", files), tmp_path)
    back = check(write(tmp_path / "q", dict(reversed(files.items()))), tmp_path)
    assert forth.fingerprint == back.fingerprint


def test_progress_counts_to_the_end(tmp_path: Path) -> None:
    root = plant(tmp_path / "p", *(f"{label}/{k}.png" for label in "ab" for k in range(5)))
    steps = list(inspecting(root, store=Store(tmp_path / "store"), threads=1))
    assert steps[0] == (0, 10) and steps[-1] == (10, 10) and steps == sorted(steps)


def test_check_csv_holds_every_issue(tmp_path: Path) -> None:
    root = plant(tmp_path / "p", "a,b/1.png", "c 'd'/1.png")
    write(root, {"a,b/bad; one.png": b"nothing"})
    dataset = check(root, tmp_path)
    place = tmp_path / "run" / "check.csv"
    write_check(dataset, place)
    assert (
        place.read_text(encoding="utf-8").splitlines()[0]
        == "file,issue,excluded,class,detail"
        == ",".join(HEADER)
    )
    assert tuple(read_check(place)) == dataset.issues and len(dataset.issues) == 3


TEXT = st.text(st.characters(codec="utf-8"))


@settings(max_examples=100, deadline=None)
@given(
    made=st.lists(
        st.tuples(TEXT, st.sampled_from(["truncated", "conflict", "empty_class"]), TEXT, st.booleans(), TEXT)
    )
)
def test_any_issue_comes_back_from_check_csv(
    made: list[tuple[str, str, str, bool, str]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    issues = tuple(Issue(*fields) for fields in made)
    none = np.empty(0, np.int64)
    dataset = Dataset(Path(), (), (), none, none, (), none, none, np.empty(0, bool), issues)
    place = tmp_path_factory.mktemp("check") / "check.csv"
    write_check(dataset, place)
    assert tuple(read_check(place)) == issues


def test_another_file_is_not_taken_for_check_csv(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("path,label\n1.png,a\n")
    with pytest.raises(DatasetError, match="is not a list of issues"):
        read_check(tmp_path / "x.csv")
    (tmp_path / "x.csv").write_text(",".join(HEADER) + "\na,oddity,no,,\n")
    with pytest.raises(DatasetError, match="a line that Graft did not write"):
        read_check(tmp_path / "x.csv")
    with pytest.raises(DatasetError, match="cannot be read"):
        read_check(tmp_path / "none.csv")


def test_the_views_of_one_tile_are_a_series(shared_data: Path, tmp_path: Path) -> None:
    """Six exposures per tile, slightly shifted: nearly all tiles become a series of six, and no series grows large."""
    dataset = check(shared_data / "magnetic_tile", tmp_path)
    assert dataset.series is not None
    sizes = np.bincount(dataset.series)
    assert len(dataset) == 1344 and dataset.mostly_grey
    assert (sizes == 6).sum() >= 180 and sizes.max() <= 20
    assert len(np.unique(dataset.groups)) > len(np.unique(dataset.series))
    pairs = np.unique(np.stack([dataset.groups, dataset.series]), axis=1)
    assert len(pairs[0]) == len(np.unique(dataset.groups))  # a group of near-duplicates lies in one series


def test_a_few_copies_are_no_series(tmp_path: Path) -> None:
    plant(tmp_path / "set", *(f"{label}/{number}.png" for label in "ab" for number in range(12)))
    assert check(tmp_path / "set", tmp_path).series is None
