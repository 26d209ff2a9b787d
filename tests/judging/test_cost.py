"""Latency of a tiny ONNX model, and refusals that say why."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from graft.errors import BundleError
from graft.judging.cost import Cost, latency_ms


def tiny_model(shape: list[int | str], *, work: int = 1, kind: int = TensorProto.UINT8) -> bytes:
    """An image model: to float, mean over the image, and `work` products of 64 x 64 matrices."""
    nodes = [helper.make_node("Cast", ["image"], ["x0"], to=TensorProto.FLOAT)]
    nodes.append(helper.make_node("ReduceMean", ["x0", "axes"], ["m"], keepdims=0))
    nodes.append(helper.make_node("MatMul", ["m", "lift"], ["y0"]))
    nodes += [helper.make_node("MatMul", [f"y{i}", "square"], [f"y{i + 1}"]) for i in range(work)]
    rng = np.random.default_rng(0)
    constants = [
        onnx.numpy_helper.from_array(np.array([1, 2], np.int64), "axes"),
        onnx.numpy_helper.from_array(rng.normal(size=(3, 512)).astype(np.float32), "lift"),
        onnx.numpy_helper.from_array(rng.normal(size=(512, 512)).astype(np.float32) / 512, "square"),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("image", kind, shape)],
        [helper.make_tensor_value_info(f"y{work}", TensorProto.FLOAT, ["n", 512])],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return model.SerializeToString()


def test_latency_of_bytes_and_of_a_file(tmp_path: Path) -> None:
    model = tiny_model(["n", 32, 32, 3])
    path = tmp_path / "a model's file.onnx"
    path.write_bytes(model)
    for source in (model, path):
        assert 0 < latency_ms(source, seconds=0.02) < 50
    assert latency_ms(model, threads=2, seconds=0.02) > 0


def test_more_work_takes_longer() -> None:
    light, heavy = (latency_ms(tiny_model([1, 8, 8, 3], work=work), seconds=0.05) for work in (1, 60))
    assert heavy > 3 * light


def test_it_ends_when_the_time_or_the_runs_are_spent() -> None:
    model = tiny_model(["n", 32, 32, 3], work=60)
    start = time.perf_counter()
    latency_ms(model, seconds=30.0, most=20)
    latency_ms(model, seconds=0.0, least=5)
    assert time.perf_counter() - start < 10


@pytest.mark.parametrize(
    ("model", "what"),
    [
        (b"no model", "cannot open the model of 8 bytes"),
        (tiny_model(["n", 8, 8, 3], kind=TensorProto.INT32), r"tensor\(int32\)"),
        (tiny_model(["n", "h", "w", 3]), "fixed h, w and c"),
    ],
)
def test_another_kind_of_model_is_refused(model: bytes, what: str) -> None:
    with pytest.raises(BundleError, match=what):
        latency_ms(model)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"missing\.onnx"):
        latency_ms(tmp_path / "missing.onnx")


def test_a_cost_cannot_be_changed() -> None:
    cost = Cost(1000, 4000, 1.5, 1, 0.2, 3.0)
    with pytest.raises(AttributeError):
        cost.bytes = 1  # type: ignore[misc]
