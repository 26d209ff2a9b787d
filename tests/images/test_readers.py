"""Whatever the layout, the readers yield the same rows; a layout with two readings is refused."""

from __future__ import annotations

import csv
import io
import json
import os
import threading
import unicodedata
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from graft.errors import DatasetError
from graft.images import parquet
from graft.images.dataset import ImageReference
from graft.images.readers import find, open_bytes, read, read_bytes


def png(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def plant(root: Path, *names: str) -> Path:
    """Different small images under the names, folders included."""
    for seed, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(png(seed))
    return root


def found(source: Path) -> list[tuple[str, str | None, str]]:
    listing = read(source)
    return [(listing.name(row), row.label, row.split) for row in listing.rows]


def test_every_folder_is_a_class_and_nested_folders_belong_to_it(tmp_path: Path) -> None:
    plant(tmp_path, "bus/2.png", "bus/old/deep/1.png", "ant/1.png")
    assert found(tmp_path) == [
        ("ant/1.png", "ant", "train"),
        ("bus/2.png", "bus", "train"),
        ("bus/old/deep/1.png", "bus", "train"),
    ]
    assert read(tmp_path).classes == ("ant", "bus")


@pytest.mark.parametrize(
    "names", [("train", "val", "test"), ("training", "validation", "testing"), ("Train", "VALID", "Test")]
)
def test_splits_lie_above_the_classes_under_any_of_their_names(
    tmp_path: Path, names: tuple[str, str, str]
) -> None:
    plant(tmp_path, *(f"{name}/{label}/x/{name}.png" for name in names for label in ("a", "b")))
    assert {(label, split) for _, label, split in found(tmp_path)} == {
        (label, split) for label in ("a", "b") for split in ("train", "val", "test")
    }


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    plant(tmp_path, "train/1.png", "bus/1.png", "train/inside/2.png")
    assert {label for _, label, _ in found(tmp_path)} == {"bus", "train"}


def test_images_directly_in_train_and_test_make_two_classes(tmp_path: Path) -> None:
    plant(tmp_path, "train/1.png", "test/1.png")
    assert {(label, split) for _, label, split in found(tmp_path)} == {("train", "train"), ("test", "train")}


def test_a_stray_image_in_a_split_folder_does_not_turn_splits_into_classes(tmp_path: Path) -> None:
    plant(tmp_path, "train/a/1.png", "train/b/1.png", "train/stray.png", "val/a/1.png")
    assert ("train/stray.png", None, "train") in found(tmp_path)
    assert read(tmp_path).classes == ("a", "b")


def test_splits_mixed_with_other_folders_are_refused_and_the_others_named(tmp_path: Path) -> None:
    plant(tmp_path, "train/a/1.png", "val/a/1.png", "extra/1.png")
    with pytest.raises(DatasetError, match=r"'train' and 'val' hold class folders.*'extra'"):
        read(tmp_path)


def test_a_flat_test_folder_beside_a_train_folder_with_classes_is_refused(tmp_path: Path) -> None:
    plant(tmp_path, "train/a/1.png", "train/b/1.png", "test/1.png")
    with pytest.raises(DatasetError, match=r"'train' holds class folders, but 'test' holds images directly"):
        read(tmp_path)


def test_two_folders_for_one_split_are_refused(tmp_path: Path) -> None:
    plant(tmp_path, "train/a/1.png", "val/a/1.png", "valid/a/1.png")
    with pytest.raises(DatasetError, match=r"'val' and 'valid', which mean the same"):
        read(tmp_path)


def test_images_at_the_root_have_no_label(tmp_path: Path) -> None:
    plant(tmp_path, "a/1.png", "stray.png")
    assert ("stray.png", None, "train") in found(tmp_path)


AWKWARD = ["two words", "it's", 'a "b"', "x=1", "naïve", "日本", "a,b;c", "100%", "#1", "a\nb"]


@pytest.mark.skipif(os.name == "nt", reason="Windows forbids these names")
def test_awkward_class_names_just_work(tmp_path: Path) -> None:
    plant(tmp_path, *(f"{label}/1.png" for label in AWKWARD))
    assert read(tmp_path).classes == tuple(sorted(AWKWARD))
    for row in read(tmp_path).rows:
        assert find(tmp_path, read(tmp_path).name(row)) == (row.path, None)


def test_the_same_letters_are_one_class_however_accents_are_stored(tmp_path: Path) -> None:
    composed, decomposed = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    plant(tmp_path, f"train/{composed}/1.png", "train/tea/1.png", f"val/{decomposed}/1.png")
    assert read(tmp_path).classes == (composed, "tea")


def test_system_files_are_ignored_and_hidden_ones_are_listed(tmp_path: Path) -> None:
    plant(tmp_path, "a/1.png", ".old/a/1.png", "a/.hidden.png")
    for name in (".DS_Store", "Thumbs.db", "desktop.ini", "._1.png"):
        (tmp_path / "a" / name).write_bytes(b"x")
    (tmp_path / "__MACOSX").mkdir()
    listing = read(tmp_path)
    assert [listing.name(row) for row in listing.rows] == ["a/1.png"]
    assert [(issue.name, issue.kind, issue.excluded) for issue in listing.issues] == [
        (".old", "hidden", False),
        ("a/.hidden.png", "hidden", True),
    ]


def test_links_are_followed_and_loops_are_not(tmp_path: Path) -> None:
    plant(tmp_path / "elsewhere", "1.png")
    plant(tmp_path / "set", "a/1.png", "b/1.png")
    try:
        (tmp_path / "set/a/linked.png").symlink_to(tmp_path / "elsewhere/1.png")
        (tmp_path / "set/c").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
        (tmp_path / "set/a/loop").symlink_to(tmp_path / "set", target_is_directory=True)
        (tmp_path / "set/b/gone.png").symlink_to(tmp_path / "nowhere.png")
        (tmp_path / "set/b/itself.png").symlink_to(tmp_path / "set/b/itself.png")
    except OSError:
        pytest.skip("links need a permission here")
    names = [name for name, _, _ in found(tmp_path / "set")]
    assert names == ["a/1.png", "a/linked.png", "b/1.png", "b/gone.png", "b/itself.png", "c/1.png"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_pipe_is_remarked_and_never_opened(tmp_path: Path) -> None:
    plant(tmp_path, "a/1.png")
    os.mkfifo(tmp_path / "a/pipe.png")
    listing = read(tmp_path)
    assert len(listing.rows) == 1 and listing.issues[0].kind == "not_an_image"


def test_sources_that_cannot_be_a_dataset_are_refused_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"nowhere does not exist\. Give a folder"):
        read(tmp_path / "nowhere")
    plant(tmp_path, "one.png")
    with pytest.raises(DatasetError, match="is a single image"):
        read(tmp_path / "one.png")
    with pytest.raises(DatasetError, match="holds 1 images but no class folders"):
        read(tmp_path)
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(DatasetError, match="neither a folder nor a CSV or Parquet file"):
        read(tmp_path / "notes.txt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match="empty holds no images"):
        read(tmp_path / "empty")
    (tmp_path / "empty").rmdir()
    (tmp_path / "labels.csv").write_text("path,label\n")
    with pytest.raises(DatasetError, match=r"give the table itself: .*labels\.csv"):
        read(tmp_path)


def table(folder: Path, lines: list[list[str]], delimiter: str = ",") -> Path:
    place = folder / "labels.csv"
    with place.open("w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file, delimiter=delimiter).writerows(lines)
    return place


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_a_table_names_paths_classes_splits_and_groups(tmp_path: Path, delimiter: str) -> None:
    plant(tmp_path, "i/1.png", "i/2.png", "3.png")
    lines = [["Group", "File", "Class", "split"], ["p", "i/1.png", "b", "Test"], ["p", "i\\2.png", "a", ""]]
    listing = read(table(tmp_path, [*lines, ["", "3.png", "", "valid"]], delimiter))
    assert [(listing.name(r), r.label, r.split, r.group) for r in listing.rows] == [
        ("3.png", None, "val", None),
        ("i/1.png", "b", "test", "p"),
        ("i/2.png", "a", "train", "p"),
    ]
    assert listing.classes == ("a", "b") and listing.root == tmp_path
    assert all(row.path.exists() for row in listing.rows)


def test_a_file_listed_twice_counts_once_and_under_two_labels_not_at_all(tmp_path: Path) -> None:
    plant(tmp_path, "1.png", "2.png")
    lines = [["path", "label", "split"], ["1.png", "a", "train"], ["./1.png", "a", "test"]]
    listing = read(table(tmp_path, [*lines, ["2.png", "a", ""], ["2.png", "b", ""]]))
    assert [(row.path.name, row.split) for row in listing.rows] == [("1.png", "test")]
    assert [(issue.name, issue.kind, issue.excluded) for issue in listing.issues] == [
        ("1.png", "exact_duplicate", False),
        ("2.png", "conflict", True),
    ]


def test_tables_that_cannot_be_understood_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"no column 'label'; its columns are 'path', 'kind'"):
        read(table(tmp_path, [["path", "kind"], ["1.png", "a"]]))
    with pytest.raises(DatasetError, match=r"line 2: the split 'tset' is unknown"):
        read(table(tmp_path, [["path", "label", "split"], ["1.png", "a", "tset"]]))
    with pytest.raises(DatasetError, match="lists no images"):
        read(table(tmp_path, [["path", "label"]]))
    (tmp_path / "labels.csv").write_bytes("path,label\ncafé.png,a\n".encode("latin-1"))
    with pytest.raises(DatasetError, match="not UTF-8"):
        read(tmp_path / "labels.csv")


@settings(max_examples=50, deadline=None)
@given(
    cells=st.lists(
        st.tuples(
            st.text(st.characters(codec="utf-8", exclude_characters="\x00\ufeff"), min_size=1),
            st.text(st.characters(codec="utf-8", exclude_characters="\x00\ufeff")),
        ),
        min_size=1,
    )
)
def test_any_text_survives_a_table(
    cells: list[tuple[str, str]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("table")
    listing = read(table(folder, [["path", "label"], *(["x/" + path, label] for path, label in cells)]))
    labels = {unicodedata.normalize("NFC", label.strip()) for _, label in cells} - {""}
    conflicts = {issue.name for issue in listing.issues if issue.kind == "conflict"}
    assert set(listing.classes) == labels
    assert labels >= {row.label for row in listing.rows if row.label}
    assert len(listing.rows) + len(conflicts) <= len(cells)


def write_parquet(
    place: Path, columns: dict[str, object], *, metadata: object = None, rows: int = 1000
) -> Path:
    place.parent.mkdir(parents=True, exist_ok=True)
    made = pa.table(columns)
    if metadata is not None:
        made = made.replace_schema_metadata({"huggingface": json.dumps(metadata)})
    pq.write_table(made, place, row_group_size=rows)
    return place


def reference(path: Path, row: int) -> ImageReference:
    return ImageReference(path, f"{path.name}#{row}", "", row)


def test_parquet_with_plain_bytes_and_text_labels(tmp_path: Path) -> None:
    columns = {
        "image": [png(k) for k in range(3)],
        "label": ["b", None, "a"],
        "split": ["train", "val", "test"],
    }
    place = write_parquet(tmp_path / "x.parquet", columns | {"group": ["p", None, "p"]})
    listing = read(place)
    assert [(listing.name(r), r.label, r.split, r.group) for r in listing.rows] == [
        ("x.parquet#0", "b", "train", "p"),
        ("x.parquet#1", None, "val", None),
        ("x.parquet#2", "a", "test", "p"),
    ]
    assert [open_bytes(reference(place, k)) for k in (2, 0, 1)] == [png(2), png(0), png(1)]
    assert find(tmp_path, "x.parquet#2") == (place, 2)


def test_parquet_of_hugging_face_names_its_numbers(tmp_path: Path) -> None:
    names = {"info": {"features": {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}}
    images = [{"bytes": png(k), "path": f"{k}.png"} for k in range(3)]
    write_parquet(
        tmp_path / "data/train-00000-of-00001.parquet", {"image": images, "label": [1, 0, -1]}, metadata=names
    )
    place = write_parquet(
        tmp_path / "data/test-00000-of-00001.parquet", {"image": images, "label": [0, 1, 1]}, metadata=names
    )
    listing = read(tmp_path)
    assert listing.classes == ("cat", "dog")
    assert [(row.path.name[:5], row.row, row.label, row.split) for row in listing.rows] == [
        ("test-", 0, "cat", "test"),
        ("test-", 1, "dog", "test"),
        ("test-", 2, "dog", "test"),
        ("train", 0, "dog", "train"),
        ("train", 1, "cat", "train"),
        ("train", 2, None, "train"),
    ]
    assert open_bytes(reference(place, 1)) == png(1)


def test_whole_numbers_without_names_are_sorted_as_numbers(tmp_path: Path) -> None:
    write_parquet(tmp_path / "x.parquet", {"image": [png(0)] * 3, "target": [10, 2, 1]})
    assert read(tmp_path).classes == ("1", "2", "10")


def test_parquet_without_the_columns_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"no column label, class or target; its columns are 'image'"):
        read(write_parquet(tmp_path / "x.parquet", {"image": [png(0)]}))
    with pytest.raises(DatasetError, match="no column of encoded images"):
        read(write_parquet(tmp_path / "x.parquet", {"image": ["a.png"], "label": ["a"]}))
    with pytest.raises(DatasetError, match="holds double; a class must be text or a whole number"):
        read(write_parquet(tmp_path / "x.parquet", {"image": [png(0)], "label": [0.5]}))
    (tmp_path / "x.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(DatasetError, match="cannot be read as a Parquet file"):
        read(tmp_path / "x.parquet")


def test_an_empty_cell_is_no_bytes_and_a_line_too_far_is_refused(tmp_path: Path) -> None:
    place = write_parquet(tmp_path / "x.parquet", {"image": [png(0), None], "label": ["a", "b"]})
    assert read_bytes(place, 1) == b""
    with pytest.raises(DatasetError, match="no line 2"):
        read_bytes(place, 2)


@pytest.mark.parametrize("rows", [7, 1000])
def test_cells_are_right_in_any_order_from_many_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    """Pieces of a few rows, so that row groups are both read whole and streamed in parts."""
    monkeypatch.setattr(parquet, "_PIECE_BYTES", 600)
    cells = [bytes([k]) * 100 for k in range(100)]
    place = write_parquet(tmp_path / f"{rows}.parquet", {"image": cells, "label": ["a"] * 100}, rows=rows)
    wrong: list[int] = []

    def visit(seed: int) -> None:
        order = np.arange(100) if seed == 0 else np.random.default_rng(seed).permutation(100)
        wrong.extend(int(k) for k in order if read_bytes(place, int(k)) != cells[k])

    threads = [threading.Thread(target=visit, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_parquet_file_written_anew_is_read_anew(tmp_path: Path) -> None:
    place = write_parquet(tmp_path / "x.parquet", {"image": [png(0)], "label": ["a"]})
    assert read_bytes(place, 0) == png(0)
    write_parquet(place, {"image": [png(1), png(2)], "label": ["a", "b"]})
    assert read_bytes(place, 0) == png(1)


def test_the_given_parquet_file_is_read_in_order_quickly(shared_data: Path) -> None:
    listing = read(shared_data / "fashion_mnist")
    assert len(listing.rows) == 20_000 and listing.classes == tuple("0123456789")
    assert all(read_bytes(row.path, row.row).startswith(b"\x89PNG") for row in listing.rows)
