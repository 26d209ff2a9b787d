"""Searching: exact search is the truth, the graph finds it, duplicates are grouped."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from made_indexes import embeddings, made_index

from graft.errors import BundleError, SettingsError
from graft.similar.duplicates import groups, usual_threshold
from graft.similar.search import Index, matching_bundle, open_index, unit_length


def test_exact_search_equals_sorting_by_cosine(tmp_path: Path) -> None:
    rows, queries = embeddings(300), embeddings(7, seed=3) * 100
    found = open_index(made_index(tmp_path, rows)).search(queries, 12)
    for query, matches in zip(queries.astype(np.float64), found, strict=True):
        cosine = rows @ query / np.linalg.norm(rows, axis=1) / np.linalg.norm(query)
        assert [int(m.name[:-4]) for m in matches][:5] == np.argsort(-cosine)[:5].tolist()
        assert [m.similarity for m in matches] == pytest.approx(np.sort(cosine)[::-1][:12].tolist(), abs=1e-3)


def test_one_query_equals_many_and_ties_go_to_the_earlier_name(tmp_path: Path) -> None:
    rows = np.repeat(embeddings(5), 4, axis=0)
    index, queries = open_index(made_index(tmp_path, rows)), embeddings(5)
    together = index.search(queries, 6)
    for place, query in enumerate(queries):
        alone = index.search(query[None], 6)[0]
        assert [m.name for m in alone[:4]] == [f"{4 * place + i}.jpg" for i in range(4)]
        assert [m.name for m in alone] == [m.name for m in together[place]]
    assert alone[0].similarity == pytest.approx(1, abs=1e-5)


def test_more_than_there_are(tmp_path: Path) -> None:
    index = open_index(made_index(tmp_path, embeddings(3)))
    assert len(index.search(embeddings(1), 100)[0]) == 3 == len(index)
    assert index.search(np.zeros((0, 32), np.float32), 3) == []


@pytest.mark.parametrize("graph", [False, True])
def test_what_cannot_be_searched_for(tmp_path: Path, graph: bool) -> None:
    index = open_index(made_index(tmp_path, embeddings(30), graph=graph))
    with pytest.raises(SettingsError, match="another model"):
        index.search(np.ones((1, 31), np.float32))
    with pytest.raises(SettingsError, match="from 1 up"):
        index.search(embeddings(1), 0)
    with pytest.raises(SettingsError, match="not a number"):
        index.search(np.full((1, 32), np.nan, np.float32))


def test_the_graph_finds_what_exact_search_finds(tmp_path: Path) -> None:
    rows, queries = embeddings(5000, 64), embeddings(200, 64, seed=4)
    exact = open_index(made_index(tmp_path / "exact", rows))
    graph = open_index(made_index(tmp_path / "graph", rows, graph=True))
    assert exact.exact and not graph.exact and graph.facts["recall"] >= 0.98
    truth, found = exact.search(queries, 10), graph.search(queries, 10)
    hits = sum(len({m.name for m in a} & {m.name for m in b}) for a, b in zip(truth, found, strict=True))
    assert hits / 2000 >= 0.98
    similar = {(i, m.name): m.similarity for i, one in enumerate(truth) for m in one}
    for i, one in enumerate(found):
        for match in one:
            assert match.similarity == pytest.approx(similar.get((i, match.name), match.similarity), abs=1e-3)


def test_unit_length_of_any_numbers() -> None:
    rows = np.array([[3e30, 4e30], [3e-30, 4e-30], [0, 0], [-3, 4]], np.float32)
    assert unit_length(rows) == pytest.approx(
        np.array([[0.6, 0.8], [0.6, 0.8], [0, 0], [-0.6, 0.8]]), abs=1e-6
    )


def near(rows: np.ndarray, seed: int) -> np.ndarray:
    """Nearly the same rows."""
    return rows * (1 + np.random.default_rng(seed).normal(0, 0.05, rows.shape)).astype(np.float32)


@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("offset", [0, 9])
def test_duplicates_are_grouped_whatever_similarities_are_usual(
    tmp_path: Path, graph: bool, offset: int
) -> None:
    """With an offset all similarities are about 0.99, as with some networks; the usual threshold follows."""
    rows = np.random.default_rng(0).normal(size=(60, 48)).astype(np.float32)
    both = np.concatenate([rows, near(rows[[3, 3, 8]], 5)]) + np.float32(offset)
    index = open_index(made_index(tmp_path, both, graph=graph))
    found = groups(index)
    assert {group.names for group in found} == {("3.jpg", "60.jpg", "61.jpg"), ("8.jpg", "62.jpg")}
    assert all(group.least >= usual_threshold(index) - 1e-3 for group in found)
    assert offset or groups(index, threshold=1.0) == []


def test_chains_and_extremes(tmp_path: Path) -> None:
    turns = np.deg2rad([0, 10, 20, 90, 180])
    index = open_index(made_index(tmp_path, np.stack([np.cos(turns), np.sin(turns)], 1).astype(np.float32)))
    (group,) = groups(index, threshold=float(np.cos(np.deg2rad(11))))
    assert group.names == ("0.jpg", "1.jpg", "2.jpg")
    assert group.least == pytest.approx(np.cos(np.deg2rad(20)), abs=1e-3)
    with pytest.raises(SettingsError, match="no similarity"):
        groups(index, threshold=1.5)


def test_all_the_same_and_only_one(tmp_path: Path) -> None:
    same = open_index(made_index(tmp_path / "same", np.repeat(embeddings(1), 3, axis=0)))
    assert [group.names for group in groups(same)] == [("0.jpg", "1.jpg", "2.jpg")]
    assert groups(open_index(made_index(tmp_path / "one", embeddings(1)))) == []


def test_the_model_must_be_found(tmp_path: Path) -> None:
    index: Index = open_index(made_index(tmp_path, embeddings(3)))
    with pytest.raises(BundleError, match="--model"):
        matching_bundle(index)
