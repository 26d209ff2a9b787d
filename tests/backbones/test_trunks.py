"""A trunk is made once, checked against torch, and found again by what determines it, or torch runs it instead."""

from __future__ import annotations

import dataclasses
import hashlib
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import timm
import torch
from jaxtyping import UInt8
from made_networks import HALF, SIZES, made, made_entry, noise, unsettle
from safetensors.torch import save
from torch import Tensor, nn

from graft.backbones import trunks
from graft.backbones.activations import extracting, openvino_rows
from graft.backbones.catalogue import Entry
from graft.backbones.hub import Reach
from graft.backbones.opening import open_backbone
from graft.backbones.scratch import ScratchDesign
from graft.backbones.trunks import TOLERANCE, TrunkFile, relative_error, reopened, trunk_of, untrained_trunk
from graft.backbones.weights import WeightsFile, WeightsFolder
from graft.compute import Compute, cpu_has_bf16
from graft.errors import BackboneError
from graft.images.dataset import Preprocess
from graft.store import Store

NOWHERE = Reach(False, False, "No answer from anybody.")
PLAIN = Compute("cpu", False, 1)
SMALL = "mobilenetv3_small_050"


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return made(made_entry(SMALL)).state_dict()


def folder_of(place: Path, entry: Entry, state: dict[str, Tensor]) -> WeightsFolder:
    """A weights folder with one file."""
    place.mkdir(parents=True, exist_ok=True)
    content = save({name: part.contiguous() for name, part in state.items()})
    path = place / f"{entry.name}.safetensors"
    path.write_bytes(content)
    return WeightsFolder(place, (WeightsFile(entry, path, "float32", hashlib.sha256(content).hexdigest()),))


def made_trunk(
    folder: WeightsFolder,
    store: Store,
    *,
    compute: Compute = PLAIN,
    channels: int = 3,
    size: int = 64,
    entry: Entry | None = None,
) -> TrunkFile:
    geometry = Preprocess(size=size, fit="squash", channels=channels)
    return trunk_of(
        entry or folder.entries[0],
        geometry,
        folder=folder,
        reach=NOWHERE,
        store=store,
        samples=noise(8, size, channels=channels),
        compute=compute,
    )


def entries_in(store: Store) -> int:
    return sum(1 for _ in store.folder.rglob("manifest.json"))


def test_the_second_time_nothing_is_opened(tmp_path: Path, state: dict[str, Tensor]) -> None:
    folder, store = folder_of(tmp_path / "w", made_entry(SMALL), state), Store(tmp_path / "store")
    first = made_trunk(folder, store)
    before = entries_in(store)
    folder.files[0].path.unlink()  # whoever reads the weights again, fails
    assert made_trunk(folder, store) == first
    assert entries_in(store) == before
    assert (first.runner, first.notice, first.digest) == ("openvino-f32", "", folder.files[0].sha256)
    assert first.outputs == (*(f"tap{tap.index}" for tap in first.taps), "logits")
    assert first.graph is not None
    assert [output.name for output in onnx.load(first.graph).graph.output] == list(first.outputs)


def test_everything_that_determines_a_trunk_is_in_its_key(tmp_path: Path, state: dict[str, Tensor]) -> None:
    entry, store = made_entry(SMALL), Store(tmp_path / "store")
    folder = folder_of(tmp_path / "w", entry, state)
    other = folder_of(tmp_path / "v", entry, {**state, "classifier.bias": state["classifier.bias"] + 1})
    half = dataclasses.replace(entry, input=dataclasses.replace(entry.input, mean=HALF[0], std=HALF[1]))
    same = dataclasses.replace(entry, arguments=(("pad_type", "same"),))
    trunk_files = [
        made_trunk(folder, store),
        made_trunk(other, store),
        made_trunk(folder, store, size=72),
        made_trunk(folder, store, channels=1),
        made_trunk(folder, store, entry=half),
        made_trunk(folder, store, entry=same),
    ]
    assert len({trunk.key for trunk in trunk_files}) == len(trunk_files)


@pytest.mark.parametrize("architecture", [SMALL, "vit_tiny_patch16_224"])
def test_openvino_agrees_with_torch(architecture: str, tmp_path: Path) -> None:
    entry = made_entry(architecture)
    folder = folder_of(tmp_path / "w", entry, made(entry).state_dict())
    trunk = made_trunk(folder, Store(tmp_path / "store"))
    assert trunk.graph is not None
    images = noise(19, SIZES[architecture])
    rows = openvino_rows(trunk.graph, images, runner="openvino-f32", threads=1)
    with torch.no_grad():
        expected = reopened(trunk, folder=folder, reach=NOWHERE).trunk(torch.from_numpy(images))
    assert len(rows) == len(trunk.outputs)
    for got, wanted in zip(rows, expected, strict=True):
        assert got.shape == wanted.shape
        assert relative_error(got, wanted.numpy()) < 1e-3


@pytest.mark.skipif(not cpu_has_bf16(), reason="this processor has no bfloat16 products")
def test_bfloat16_is_used_where_it_agrees(tmp_path: Path, state: dict[str, Tensor]) -> None:
    folder, store = folder_of(tmp_path / "w", made_entry(SMALL), state), Store(tmp_path / "store")
    trunk = made_trunk(folder, store, compute=Compute("cpu", True, 1))
    assert trunk.graph is not None
    images = noise(8, 64)
    exact, rough = (
        openvino_rows(trunk.graph, images, runner=runner, threads=1)
        for runner in ("openvino-f32", "openvino-bf16")
    )
    worst = max(relative_error(a, b) for a, b in zip(rough, exact, strict=True))
    assert worst > 1e-5, "bfloat16 was really used"
    assert trunk.runner == ("openvino-bf16" if worst <= TOLERANCE["openvino-bf16"] else "openvino-f32")


@pytest.mark.skipif(not cpu_has_bf16(), reason="this processor has no bfloat16 products")
def test_float32_is_used_where_bfloat16_differs_too_much(tmp_path: Path, state: dict[str, Tensor]) -> None:
    """A classifier that takes the difference of nearly equal numbers has none of bfloat16's 8 bits left."""
    weight = state["classifier.weight"].clone()
    weight[:, 0::2], weight[:, 1::2] = 1000.0, -1000.0
    odd = {**state, "classifier.weight": weight, "classifier.bias": torch.zeros(1000)}
    for name in ("conv_head.weight", "conv_head.bias"):
        odd[name] = state[name].clone()
        odd[name][1::2] = odd[name][0::2] + 1e-6
    folder = folder_of(tmp_path / "w", made_entry(SMALL), odd)
    trunk = made_trunk(folder, Store(tmp_path / "store"), compute=Compute("cpu", True, 1))
    assert trunk.runner != "openvino-bf16"
    assert "float32" in trunk.notice or "differs from torch" in trunk.notice


def test_a_runner_whose_output_is_undefined_agrees_with_nothing(tmp_path: Path) -> None:
    """The undefined tap is not the first one, so a plain maximum would pass over it."""
    image = onnx.helper.make_tensor_value_info("image", onnx.TensorProto.UINT8, ["n", 4, 4, 1])
    outputs = [
        onnx.helper.make_tensor_value_info(f"tap{i}", onnx.TensorProto.FLOAT, ["n", 1]) for i in (0, 1)
    ]
    nodes = [
        onnx.helper.make_node("Cast", ["image"], ["float"], to=onnx.TensorProto.FLOAT),
        onnx.helper.make_node("ReduceMean", ["float"], ["tap0"], axes=[1, 2], keepdims=0),
        onnx.helper.make_node("Sub", ["tap0", "tap0"], ["zero"]),
        onnx.helper.make_node("Div", ["zero", "zero"], ["tap1"]),
    ]
    opset = [onnx.helper.make_opsetid("", 17)]
    graph = onnx.helper.make_graph(nodes, "odd", [image], outputs)
    path = tmp_path / "odd.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=8), path)
    images = noise(2, 8, channels=1)[:, :4, :4]
    reference = [images.astype(np.float32).mean((1, 2)), np.ones((2, 1), np.float32)]
    first, second = openvino_rows(path, images, runner="openvino-f32", threads=1)
    np.testing.assert_allclose(first, reference[0], rtol=1e-5)
    assert np.isnan(second).all()
    runner, notice = trunks._agreeing_runner(path, images, reference, "odd", PLAIN)
    assert runner == "torch"
    assert "differs from torch" in notice


def test_weights_that_give_undefined_features_are_refused(tmp_path: Path, state: dict[str, Tensor]) -> None:
    bad = {**state, "conv_head.bias": torch.full_like(state["conv_head.bias"], torch.nan)}
    folder, store = folder_of(tmp_path / "w", made_entry(SMALL), bad), Store(tmp_path / "store")
    with pytest.raises(BackboneError, match="infinite or undefined features"):
        made_trunk(folder, store)
    assert entries_in(store) == 0


class Spectral(nn.Module):
    """A network with a Fourier transform, which ONNX has only for other layouts."""

    feature_info = ({"num_chs": 6, "reduction": 2, "module": "stem"},)

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, stride=2)
        self.head = nn.Linear(6, 5)

    def get_classifier(self) -> nn.Module:
        return self.head

    def forward(self, images: Tensor) -> Tensor:
        return self.head(torch.fft.rfft2(self.stem(images)).abs().mean((2, 3)))


@pytest.fixture
def spectral(monkeypatch: pytest.MonkeyPatch) -> Entry:
    """A row for it, known to timm by its name."""

    def made_spectral(pretrained: bool = False, **arguments: object) -> Spectral:
        return Spectral()

    module = sys.modules[__name__]
    monkeypatch.setattr(module, "__all__", [], raising=False)
    made_spectral.__module__ = __name__
    timm.models.register_model(made_spectral)
    return dataclasses.replace(made_entry(SMALL), name="spectral.made", architecture="made_spectral")


def test_what_cannot_be_exported_is_run_by_torch_with_one_notice(tmp_path: Path, spectral: Entry) -> None:
    network = Spectral().eval()
    unsettle(network)
    folder, store = folder_of(tmp_path / "w", spectral, network.state_dict()), Store(tmp_path / "store")
    trunk = made_trunk(folder, store)
    assert (trunk.runner, trunk.graph) == ("torch", None)
    assert trunk.notice.startswith("spectral.made could not be exported (")
    assert trunk.notice.endswith("it is measured by torch only.") and "\n" not in trunk.notice
    assert made_trunk(folder, store) == trunk, "and that is remembered"
    images: UInt8[np.ndarray, "n y x c"] = noise(37, 64)
    steps = []
    work = extracting(trunk, images, "images", store=store, compute=PLAIN, folder=folder, reach=NOWHERE)
    while True:
        try:
            steps.append(next(work))
        except StopIteration as finished:
            activations = finished.value
            break
    assert steps == [(16, 37), (32, 37), (37, 37)]
    opened = open_backbone(spectral, network.state_dict(), channels=3, size=64)
    with torch.no_grad():
        expected = opened.trunk(torch.from_numpy(images))
    assert [tap.name for tap in trunk.taps] == ["stem", "head"]
    for index in range(2):
        assert relative_error(activations.tap(index).astype(np.float32), expected[index].numpy()) < 1e-3


def test_the_untrained_cnn_has_a_trunk_of_its_own(tmp_path: Path) -> None:
    store, images = Store(tmp_path / "store"), noise(8, 32, channels=1)
    geometry = Preprocess(size=32, fit="squash", channels=1)
    design = ScratchDesign(8, 1, 32, 4)
    first, again, other = (
        untrained_trunk(design, geometry, seed=seed, store=store, samples=images, compute=PLAIN)
        for seed in (0, 0, 1)
    )
    assert first == again
    assert (first.key != other.key, first.has_logits, first.runner) == (True, False, "openvino-f32")
    assert first.graph is not None
    rows = openvino_rows(first.graph, images, runner=first.runner, threads=1)
    with torch.no_grad():
        expected = reopened(first, folder=None, reach=NOWHERE).trunk(torch.from_numpy(images))
    for got, wanted in zip(rows, expected, strict=True):
        assert relative_error(got, wanted.numpy()) < 1e-3


def test_relative_error_is_relative() -> None:
    ones = np.ones((2, 3), np.float32)
    assert relative_error(1.01 * ones, ones) == pytest.approx(0.01, rel=1e-4)
    assert relative_error(1e6 * 1.01 * ones, 1e6 * ones) == pytest.approx(0.01, rel=1e-4)
    assert relative_error(ones * 0, ones * 0) == 0
    assert np.isnan(relative_error(ones * np.nan, ones))
