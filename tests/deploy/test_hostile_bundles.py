"""Altered bundles by the hundred: refused by name, or opened with the very answers they were packed with."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hostile import counted
from made_models import model, noise, packed
from onnx import helper, numpy_helper

from graft.deploy.bundle import load
from graft.deploy.preprocess_graph import preprocess_graph
from graft.errors import BundleError
from graft.images.dataset import Preprocess
from graft.store import file_digest

PIXELS = noise(4, Preprocess(16))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packed(tmp_path_factory.mktemp("hostile") / "m.graft")


@pytest.fixture(scope="module")
def right(made: Path) -> list[dict[str, float]]:
    return said(made)


def said(folder: Path) -> list[dict[str, float]]:
    bundle = load(folder, threads=1)
    return [bundle.prediction(row).probabilities for row in bundle.predict_pixels(PIXELS)]


def assert_refused_or_right(folder: Path, right: list[dict[str, float]]) -> None:
    try:
        found = said(folder)
    except BundleError as error:
        assert str(folder) in str(error) and str(error).endswith(".")
        return
    assert found == right


def with_file(made: Path, place: Path, name: str, content: bytes) -> Path:
    """A copy with one file replaced, and nothing else done about it."""
    shutil.copytree(made, place, dirs_exist_ok=True)
    (place / name).write_bytes(content)
    return place


FILES = ("model.onnx", "preprocess.onnx", "labels.txt", "card.md", "bundle.json")


def test_altered_bytes(made: Path, right: list[dict[str, float]], tmp_path: Path) -> None:
    generator = np.random.default_rng(1)
    with counted("bundles with altered bytes") as case:
        for name in FILES:
            content = (made / name).read_bytes()
            for _ in range(60):
                case()
                altered = bytearray(content)
                altered[int(generator.integers(len(content)))] ^= int(generator.integers(1, 256))
                assert_refused_or_right(with_file(made, tmp_path / "m", name, bytes(altered)), right)
            (tmp_path / "m" / name).write_bytes(content)


def test_cut_off(made: Path, tmp_path: Path) -> None:
    with counted("bundles cut off") as case:
        for name in FILES:
            content = (made / name).read_bytes()
            # The last byte of bundle.json is a line end, without which it says the same.
            for end in np.linspace(0, len(content.rstrip()) - 1, 40).astype(int):
                case()
                with pytest.raises(BundleError):
                    said(with_file(made, tmp_path / "m", name, content[:end]))
            (tmp_path / "m" / name).write_bytes(content)


ODD = (None, 0, -1, 1e308, "", "x" * 5000, "../../x", [], {}, ["ant"], {"a": 1}, True)


def test_altered_labels_and_facts(made: Path, right: list[dict[str, float]], tmp_path: Path) -> None:
    """Each fact that an answer depends on replaced by each of these, and taken away."""
    facts = json.loads((made / "bundle.json").read_text())
    names = (
        "format",
        "task",
        "labels",
        "labels_sha256",
        "preprocess",
        "preprocess_sha256",
        "files",
        "decision_sha256",
    )
    with counted("bundles with altered labels and facts") as case:
        for name in names:
            for value in ODD:
                case()
                changed = json.dumps({**facts, name: value}).encode()
                assert_refused_or_right(with_file(made, tmp_path / "m", "bundle.json", changed), right)
        labels: list[Any] = [
            [*facts["labels"][1:], facts["labels"][0]],
            facts["labels"][:2],
            [*facts["labels"], "d"],
        ]
        labels += [[label.upper() for label in facts["labels"]], facts["labels"][::-1], ["ant", "ant", "bee"]]
        for value in labels:
            for more in (
                {},
                {"labels_sha256": "0" * 64},
                {"labels_sha256": facts["preprocess_sha256"]},
                {"format": "1.9"},
            ):
                case()
                with pytest.raises(BundleError):
                    said(
                        with_file(
                            made,
                            tmp_path / "m",
                            "bundle.json",
                            json.dumps({**facts, "labels": value, **more}).encode(),
                        )
                    )


def changed(change: Callable[[onnx.ModelProto], None]) -> bytes:
    graph = onnx.load_from_string(model(Preprocess(16)))
    change(graph)
    return graph.SerializeToString()


def renamed(graph: onnx.ModelProto) -> None:
    graph.graph.output[0].name = "shares"
    graph.graph.node[-1].output[0] = "shares"


def outside(graph: onnx.ModelProto) -> None:
    """A weight that lies in another file, outside of the folder."""
    tensor = graph.graph.initializer[1]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", "../../outside.bin"), ("offset", "0"), ("length", "648")):
        tensor.external_data.add(key=key, value=value)


def endless(graph: onnx.ModelProto) -> None:
    graph.graph.node[0].input[0] = graph.graph.node[-1].output[0]


def foreign(graph: onnx.ModelProto) -> None:
    graph.graph.node[0].domain, graph.graph.node[0].op_type = "somebody", "Run"
    graph.opset_import.append(helper.make_opsetid("somebody", 1))


def future(graph: onnx.ModelProto) -> None:
    graph.opset_import[0].version = 9999


def smaller(graph: onnx.ModelProto) -> None:
    head = next(one for one in graph.graph.initializer if one.name == "graft_head_weight")
    head.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(head)[:, :2], head.name))


def test_another_graph_under_a_right_hash(made: Path, tmp_path: Path) -> None:
    """Who can compute hashes still finds no graph accepted that is not of the contract, and no file outside read."""
    graphs = [b"", b"nothing", preprocess_graph(Preprocess(16)).SerializeToString()]
    graphs += [changed(one) for one in (renamed, outside, endless, foreign, future, smaller)]
    graphs += [model(Preprocess(20))]
    (tmp_path / "outside.bin").write_bytes(bytes(648))
    facts = json.loads((made / "bundle.json").read_text())
    with counted("bundles with another graph") as case:
        for content in graphs:
            case()
            folder = with_file(made, tmp_path / "in" / "m", "model.onnx", content)
            told = copy.deepcopy(facts)
            told["files"]["model.onnx"] = file_digest(folder / "model.onnx")
            del told["facts_sha256"]
            (folder / "bundle.json").write_text(json.dumps(told))
            with pytest.raises(BundleError):
                said(folder)
