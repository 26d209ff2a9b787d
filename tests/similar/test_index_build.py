"""`graft index` and `graft similar`: new images are embedded, vanished ones leave, nothing of another's is overwritten."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_models import packed
from made_sets import stripes
from PIL import Image

import graft
from graft.cli import main
from graft.deploy.bundle import Bundle, load
from graft.errors import BundleError, DatasetError
from graft.images.dataset import Preprocess
from graft.similar import build
from graft.similar.build import Indexed, indexing
from graft.similar.folder import MANIFEST, UNFINISHED
from graft.similar.search import open_index


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return stripes(tmp_path / "photos", each=6)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return load(packed(tmp_path_factory.mktemp("model") / "model.graft"), threads=1)


def made(bundle: Bundle, source: Path, out: Path, *, exact_most: int = 100_000) -> Indexed:
    work = indexing(bundle, source, out=out, exact_most=exact_most)
    while True:
        try:
            next(work)
        except StopIteration as finished:
            return finished.value


def counts(done: Indexed) -> tuple[int, int, int, int, int]:
    return done.images, done.added, done.changed, done.removed, done.embedded


def test_the_index_holds_the_bundles_embeddings(bundle: Bundle, photos: Path, tmp_path: Path) -> None:
    (photos / "left" / "broken.png").write_bytes(b"no image")
    (photos / ".hidden.png").write_bytes((photos / "left" / "000.png").read_bytes())
    done = graft.index(bundle, photos, out=tmp_path / "index")
    assert counts(done) == (12, 12, 0, 0, 12) and {one.name for one in done.left_out} == {
        "left/broken.png",
        ".hidden.png",
    }
    index = graft.open_index(tmp_path / "index")
    assert isinstance(index, graft.Index) and index.root == photos.resolve() and index.belongs_to(bundle)
    assert index.names == tuple(sorted(index.names)) and len(index.facts["left_out"]) == 2
    for name in index.names:
        best = index.search(bundle.embed(photos / name), 1)[0][0]
        assert best.name == name and best.similarity == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("exact_most", [100, 5], ids=["exact", "graph"])
def test_only_what_changed_is_embedded(bundle: Bundle, photos: Path, tmp_path: Path, exact_most: int) -> None:
    out = tmp_path / "index"
    first = made(bundle, photos, out, exact_most=exact_most)
    assert counts(first) == (12, 12, 0, 0, 12) and first.exact == (exact_most == 100)
    assert counts(made(bundle, photos, out, exact_most=exact_most)) == (12, 0, 0, 0, 0)
    (photos / "left" / "000.png").unlink()
    (photos / "left" / "001.png").rename(photos / "left" / "renamed.png")
    Image.new("RGB", (40, 40), "navy").save(photos / "right" / "000.png")
    Image.new("RGB", (40, 40), "teal").save(photos / "right" / "new.png")
    assert counts(made(bundle, photos, out, exact_most=exact_most)) == (12, 2, 1, 2, 2)
    index = open_index(out)
    assert len(list(out.iterdir())) == (4 if index.exact else 5)
    for name in index.names:
        assert index.search(bundle.embed(photos / name), 1)[0][0].similarity == pytest.approx(1, abs=1e-3)
    anew = made(bundle, photos, tmp_path / "anew")
    assert anew.images == 12 and open_index(tmp_path / "anew").names == index.names
    np.testing.assert_allclose(
        open_index(tmp_path / "anew").vectors(0, 12), index.vectors(0, 12), rtol=1e-4, atol=1e-5
    )


def test_images_inside_a_parquet_file(bundle: Bundle, photos: Path, tmp_path: Path) -> None:
    files = sorted(photos.rglob("*.png"))
    cells = [{"bytes": file.read_bytes(), "path": None} for file in files]
    table = pa.table({"image": cells, "label": [file.parent.name for file in files]})
    (tmp_path / "cells").mkdir()
    pq.write_table(table, tmp_path / "cells" / "a.parquet")
    assert counts(made(bundle, tmp_path / "cells", tmp_path / "index")) == (12, 12, 0, 0, 12)
    index = open_index(tmp_path / "index")
    assert set(index.names) == {f"a.parquet#{row}" for row in range(12)}
    assert index.search(bundle.embed(files[7]), 1)[0][0].name == "a.parquet#7"
    assert counts(made(bundle, tmp_path / "cells", tmp_path / "index")) == (12, 0, 0, 0, 0)


def test_a_graph_with_many_removed_images_is_built_anew(bundle: Bundle, photos: Path, tmp_path: Path) -> None:
    made(bundle, photos, tmp_path / "index", exact_most=5)
    for place in range(2):
        (photos / "left" / f"00{place}.png").unlink()
    made(bundle, photos, tmp_path / "index", exact_most=5)
    assert open_index(tmp_path / "index").facts["removed"] == 2
    (photos / "left" / "002.png").unlink()
    made(bundle, photos, tmp_path / "index", exact_most=5)
    assert open_index(tmp_path / "index").facts["removed"] == 0


def test_a_graph_that_finds_too_little_is_not_used(
    bundle: Bundle, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build.graphs, "WANTED_RECALL", 1.1)
    done = made(bundle, photos, tmp_path / "index", exact_most=5)
    assert done.exact and done.recall is not None and open_index(tmp_path / "index").exact


def test_a_killed_indexing_continues(
    bundle: Bundle, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "SAVE_SECONDS", 0.0)
    work = indexing(bundle, photos, out=tmp_path / "index")
    for _ in range(8):
        next(work)
    work.close()
    with pytest.raises(BundleError, match="is no index"):
        open_index(tmp_path / "index")
    assert (tmp_path / "index" / UNFINISHED).exists()
    assert counts(made(bundle, photos, tmp_path / "index")) == (12, 12, 0, 0, 12 - 7)
    assert not (tmp_path / "index" / UNFINISHED).exists()


def test_nothing_of_anothers_is_overwritten(bundle: Bundle, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "index"
    made(bundle, photos, out)
    before = (out / MANIFEST).read_bytes()
    other = packed(tmp_path / "other.graft", Preprocess(20))
    elsewhere = stripes(tmp_path / "elsewhere", each=2, seed=5)
    with pytest.raises(BundleError, match="another model"):
        graft.index(other, photos, out=out)
    with pytest.raises(BundleError, match="another place"):
        graft.index(bundle, elsewhere, out=out)
    (out / MANIFEST).write_bytes(before[:-20])
    with pytest.raises(BundleError, match="--overwrite"):
        graft.index(bundle, photos, out=out)
    assert counts(graft.index(bundle, photos, out=out, overwrite=True))[0] == 12
    assert counts(graft.index(other, elsewhere, out=out, overwrite=True)) == (4, 4, 0, 0, 4)
    assert counts(graft.index(other, elsewhere, out=out, rebuild=True))[4] == 4
    with pytest.raises(BundleError, match="no index; choose another"):
        graft.index(bundle, photos, out=photos)
    with pytest.raises(BundleError, match="is a file"):
        graft.index(bundle, photos, out=photos / "left" / "000.png")


def test_nothing_to_index(bundle: Bundle, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.png").write_bytes(b"no image")
    for source, says in (
        (tmp_path / "empty", "holds no image files"),
        (tmp_path / "nowhere", "does not exist"),
        (photos / "left" / "000.png", "single image"),
        (tmp_path / "bad", "no image that can be read"),
    ):
        with pytest.raises(DatasetError, match=says):
            graft.index(bundle, source, out=tmp_path / "index")
    assert not (tmp_path / "index" / MANIFEST).exists()


def test_on_the_command_line(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, out = packed(tmp_path / "model.graft"), tmp_path / "index"
    (photos / "copy.png").write_bytes((photos / "left" / "003.png").read_bytes())
    assert main(["index", str(model), str(photos), "--out", str(out)]) == 0
    assert "13 images: 13 added, 0 changed, 0 removed" in capsys.readouterr().out
    query = str(photos / "left" / "003.png")
    assert main(["similar", str(out), query, "--topk", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["1.000", "1.000"]
    assert main(["similar", str(out), query, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [m["name"] for m in told["similar"][:2]] == ["copy.png", "left/003.png"]
    assert main(["similar", str(out), "--duplicates", "--threshold", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["names"] == ["copy.png", "left/003.png"]
    assert main(["similar", str(out), "--duplicates"]) == 0
    assert "copy.png" in capsys.readouterr().out
    assert main(["similar", str(out), "a.png", "--threshold", "0.9"]) == 2
    assert "--threshold belongs to --duplicates" in capsys.readouterr().err
    assert main(["similar", str(out)]) == 2
    assert "--duplicates" in capsys.readouterr().err
    model.rename(tmp_path / "moved.graft")
    assert main(["similar", str(out), query]) == 2
    assert "--model" in capsys.readouterr().err
    assert main(["similar", str(out), query, "--model", str(tmp_path / "moved.graft")]) == 0
    assert (
        main(["similar", str(out), query, "--model", str(packed(tmp_path / "b.graft", Preprocess(20)))]) == 2
    )
    assert "another model" in capsys.readouterr().err
