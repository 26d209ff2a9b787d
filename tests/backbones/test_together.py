"""Several stages read at once: what the row holds, in torch and in the exported graph, for maps of any layout."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import pytest
import torch
from made_networks import SIZES, made, made_entry, noise
from torch import Tensor

from graft.backbones.export import export
from graft.backbones.graph import tap_output
from graft.backbones.opening import Opened, read_together, tapped
from graft.backbones.taps import CLASSIFIER_INPUT
from graft.backbones.together import TOGETHER, stages_read
from graft.deploy.activation import with_activation
from graft.deploy.assemble import assembled
from graft.deploy.quantise import outputs_of, prepared
from graft.deploy.reading import READING, maps_read, read_at
from graft.studies.shrinking.variants import Variant, small_graph

STAGES = {
    "mobilenetv2_100": ("blocks.4", "blocks.6", CLASSIFIER_INPUT),
    "resnet18": ("layer3", "layer4"),
    "squeezenet1_1": ("features.7", "features.12"),
    "swin_tiny_patch4_window7_224": ("layers.2", "layers.3"),
    "vit_tiny_patch16_224": ("blocks.9", "blocks.11"),
}
STAGES_LAST = {"mobilenetv2_100": -3, "resnet18": -2}  # the last maps, among the taps


def fresh(architecture: str) -> Opened:
    """A trunk that the test may change."""
    entry = made_entry(architecture)
    return tapped(made(entry), entry, channels=3, size=SIZES[architecture])


def pixels(architecture: str, count: int = 3) -> np.ndarray:
    return noise(count, SIZES[architecture])


def maps_of(opened: Opened, stages: Sequence[str], images: Tensor) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    network = opened.trunk.network
    handles = [
        network.get_submodule(name).register_forward_hook(
            lambda _module, _inputs, output, name=name: found.__setitem__(name, output.clone())
        )
        for name in stages
        if name != CLASSIFIER_INPUT
    ]
    opened.trunk(images)
    for handle in handles:
        handle.remove()
    return found


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def expected(architecture: str, maps: dict[str, Tensor], classifier_input: np.ndarray) -> np.ndarray:
    """By the definition, in numpy."""
    parts, last = [], np.zeros(0)
    for name in STAGES[architecture]:
        if name == CLASSIFIER_INPUT:
            parts.append(unit(classifier_input))
            continue
        last = maps[name].numpy()
        if architecture.startswith("vit"):
            parts.append(unit(last[:, 1:].mean(axis=1)))
        else:
            last = last.transpose(0, 3, 1, 2) if architecture.startswith("swin") else last
            parts.append(unit(last.mean(axis=(2, 3))))
    if last.ndim == 4:
        halves = [[slice(0, -(-side // 2)), slice(side // 2, side)] for side in last.shape[2:]]
        quarters = [last[:, :, down, across].mean(axis=(2, 3)) for down in halves[0] for across in halves[1]]
        parts.append(unit(np.stack(quarters, axis=2).reshape(len(last), -1)))
    return np.concatenate(parts, axis=1)


@pytest.mark.parametrize("architecture", STAGES)
def test_the_row_is_what_its_definition_says(architecture: str) -> None:
    opened, images = fresh(architecture), torch.from_numpy(pixels(architecture))
    names = [tap.name for tap in opened.taps]
    with torch.inference_mode():
        maps = maps_of(opened, STAGES[architecture], images)
        before = opened.trunk(images)
        read = read_together(opened, STAGES[architecture], size=SIZES[architecture])
        after = read.trunk(images)
    assert [tap.name for tap in read.taps] == [*names, TOGETHER]
    row = after[read.taps[-1].index].numpy()
    assert row.shape[1] == read.taps[-1].features
    last = before[names.index(CLASSIFIER_INPUT)].numpy() if CLASSIFIER_INPUT in names else np.zeros((3, 1))
    np.testing.assert_allclose(row, expected(architecture, maps, last), rtol=1e-3, atol=1e-5)
    for old, new in zip(before, [*after[: len(names)], *after[len(names) + 1 :]], strict=True):
        torch.testing.assert_close(old, new)


@pytest.mark.parametrize("architecture", ["mobilenetv2_100", "resnet18"])
def test_the_exported_graph_reads_alike_and_shows_what_spoke(architecture: str) -> None:
    read = read_together(fresh(architecture), STAGES[architecture], size=SIZES[architecture])
    images, tap = pixels(architecture), read.taps[-1]
    with torch.inference_mode():
        wanted = read.trunk(torch.from_numpy(images))[tap.index].numpy()
    graph = onnx.load_from_string(export(read, size=SIZES[architecture]))
    np.testing.assert_allclose(outputs_of(graph, images, tap_output(tap.index)), wanted, rtol=1e-3, atol=1e-5)
    weight = np.random.default_rng(0).normal(size=(tap.features, 3)).astype(np.float32)
    model = assembled(
        graph, tap_output(tap.index), weight=weight, bias=np.zeros(3, np.float32), unit_length=True
    )
    shown, reason = with_activation(model)
    assert not reason
    logits = np.log(outputs_of(shown, images, "probabilities"))
    spoken = outputs_of(shown, images, "activation").mean(axis=(2, 3))
    differences = (logits - logits[:, :1]) - (spoken - spoken[:, :1])
    np.testing.assert_allclose(differences, np.zeros_like(logits), atol=1e-3)


@pytest.mark.parametrize("architecture", ["mobilenetv2_100", "resnet18"])
def test_in_8_bits_each_part_keeps_its_own_size(architecture: str) -> None:
    read = read_together(fresh(architecture), STAGES[architecture], size=SIZES[architecture])
    images, tap = pixels(architecture, 16), read.taps[-1]
    graph = onnx.load_from_string(export(read, size=SIZES[architecture]))
    whole = prepared(read_at(graph, tap_output(tap.index)), images)
    assert len(maps_read(whole, READING)) == len(STAGES[architecture])
    small, _ = small_graph(whole, Variant(precision="int8"), images)
    wanted, found = (outputs_of(one, images, READING) for one in (whole, small))
    quarters = slice(-4 * read.taps[STAGES_LAST[architecture]].features, None)
    for part in (slice(None), quarters):
        error = np.linalg.norm(found[:, part] - wanted[:, part]) / np.linalg.norm(wanted[:, part])
        assert 0 < error < 0.3
    last = next(node for node in reversed(small.graph.node) if node.op_type == "Concat")
    made = {name: node.op_type for node in small.graph.node for name in node.output}
    assert {made[name] for name in last.input} == {"Div"}


def test_gradients_reach_every_stage_that_is_read() -> None:
    read = read_together(fresh("resnet18"), STAGES["resnet18"], size=64)
    read.trunk(torch.from_numpy(pixels("resnet18")))[read.taps[-1].index].square().sum().backward()
    network = read.trunk.network
    for name in ("layer3.1.conv2", "layer4.1.conv2"):
        gradient = network.get_submodule(name).weight.grad
        assert isinstance(gradient, Tensor) and bool(gradient.isfinite().all())


@pytest.mark.parametrize(
    ("tap", "cut", "stages"),
    [
        ("head", "s2", ("s3", "s4", "head")),
        ("s4", "s2", ("s3", "s4")),
        ("s4", "s3", ("s4",)),
        ("s3", "", ("s1", "s2", "s3")),
        ("s3", "s3", ("s1", "s2", "s3")),
    ],
)
def test_what_is_read_lies_above_the_cut(tap: str, cut: str, stages: tuple[str, ...]) -> None:
    assert stages_read(["s1", "s2", "s3", "s4", "head"], tap=tap, cut=cut) == stages
