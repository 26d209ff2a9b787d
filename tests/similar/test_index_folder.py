"""The index folder: what is written is read again, and what was cut off or altered is refused with a sentence."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_indexes import embeddings, made_index

from graft.errors import BundleError
from graft.similar import folder as on_disk
from graft.similar.search import Index, open_index

NASTY = ("a\u2028b.jpg", 'naïve "x".png', "bytes\udcff.jpg", "deep/er/c.tif#3")


@pytest.fixture(scope="module", params=[False, True], ids=["exact", "graph"])
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_index(tmp_path_factory.mktemp("index") / "index", embeddings(40, 16), graph=request.param)


def answers(index: Index) -> list[tuple[str, float]]:
    return [
        (m.name, round(m.similarity, 5)) for one in index.search(embeddings(3, 16, seed=9), 5) for m in one
    ]


def test_every_name_comes_back(tmp_path: Path) -> None:
    made_index(tmp_path / "index", embeddings(4, 16), names=NASTY)
    contents = on_disk.read(tmp_path / "index")
    assert contents.names == NASTY and contents.keys.tolist() == [10, 13, 16, 19]
    assert contents.embeddings.dtype == np.float16
    assert np.allclose(np.linalg.norm(contents.embeddings.astype(np.float64), axis=1), 1, atol=1e-3)


def test_a_new_state_replaces_the_old_one_and_leaves_nothing(tmp_path: Path) -> None:
    made_index(tmp_path / "index", embeddings(4, 16))
    (tmp_path / "index" / ".graft-abc.npy").write_bytes(b"left by a killed process")
    (tmp_path / "index" / "mine.txt").write_text("not ours")
    made_index(tmp_path / "index", embeddings(5, 16))
    on_disk.tidy(tmp_path / "index")
    assert len(list((tmp_path / "index").iterdir())) == 4
    assert (tmp_path / "index" / "mine.txt").exists() and len(open_index(tmp_path / "index")) == 5


def test_a_reader_between_two_states_finds_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`index.json` is read, then another process replaces the index: the reader begins again."""
    place = made_index(tmp_path / "index", embeddings(4, 16))
    read_facts, calls = on_disk.read_facts, []

    def replaced_meanwhile(folder: Path, *, manifest: str) -> dict[str, object]:
        facts = read_facts(folder, manifest=manifest)
        if not calls:
            made_index(place, embeddings(6, 16))
            on_disk.tidy(place)
        calls.append(1)
        return facts

    monkeypatch.setattr(on_disk, "read_facts", replaced_meanwhile)
    assert len(on_disk.read(place).names) == 6 and len(calls) == 3


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_altered_files_give_a_sentence_or_the_same_answers(whole: Path, data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as place:
        copy = Path(shutil.copytree(whole, Path(place) / "index"))
        file = data.draw(st.sampled_from(sorted(copy.iterdir())))
        content = bytearray(file.read_bytes())
        at = data.draw(st.integers(0, len(content) - 1))
        how = data.draw(st.sampled_from(["cut", "flip", "insert", "remove"]))
        if how == "cut":
            content = content[:at]
        elif how == "flip":
            content[at] ^= data.draw(st.integers(1, 255))
        elif how == "insert":
            content[at:at] = data.draw(st.binary(min_size=1, max_size=8))
        else:
            del content[at]
        file.write_bytes(content)
        try:
            index = open_index(copy)
        except BundleError as error:
            assert str(error).endswith(".") and str(copy) in str(error)
        else:
            assert file.name == on_disk.MANIFEST, f"{file.name} was altered and nobody noticed"
            assert index.facts == open_index(whole).facts and answers(index) == answers(open_index(whole))


@pytest.mark.parametrize(
    "change",
    [
        {"format": "2.0"},
        {"format": None},
        {"images": "4"},
        {"width": 17},
        {"images": 5},
        {"files": {}},
        {"files": {"names": 3, "embeddings": 4}},
        {"files": {"names": {"name": "../names"}, "embeddings": {"name": "/etc/passwd"}}},
        {"bundle": None},
    ],
)
def test_a_manifest_that_says_something_else_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    """Even with a hash that fits."""
    place = made_index(tmp_path / "index", embeddings(4, 16)) / on_disk.MANIFEST
    facts = {**json.loads(place.read_text()), **change}
    del facts["sha256"]
    place.write_text(json.dumps({**facts, "sha256": on_disk._own_hash(facts)}))
    with pytest.raises(BundleError, match=r"index.*\."):
        open_index(tmp_path / "index")


@pytest.mark.parametrize("content", ["", "[]", "3", "null", "{", '{"format": 1}', "[" * 100_000])
def test_what_is_no_manifest_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / on_disk.MANIFEST).write_text(content)
    with pytest.raises(BundleError, match="Make it again"):
        open_index(tmp_path)


def test_no_index_at_all(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="Name a folder that `graft index` made"):
        open_index(tmp_path / "nowhere")
    made_index(tmp_path / "index", embeddings(4, 16))
    next((tmp_path / "index").glob("embeddings-*")).unlink()
    with pytest.raises(BundleError, match="lacks its file embeddings-"):
        open_index(tmp_path / "index")
