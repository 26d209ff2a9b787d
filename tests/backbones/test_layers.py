"""Layers are counted as a network's summary shows them, and a freeze says exactly which weights stay."""

from __future__ import annotations

import functools
import json

import pytest
import torch
from made_networks import SIZES, opened
from torch import nn

from graft.backbones.layers import Layer, frozen_by, layers_of
from graft.backbones.opening import open_scratch
from graft.backbones.scratch import ScratchDesign, build
from graft.cli import main
from graft.errors import BackboneError, SettingsError

# Counted by hand from the papers: ResNet-18 has 20 convolutions (3 of them shortcuts), each with a normalisation, and
# one linear layer; AlexNet has 5 convolutions and 3 linear layers; a block of a ViT has 6 layers.
COUNTS = {"resnet18": 41, "alexnet": 8, "mobilenetv2_100": 105, "vit_tiny_patch16_224": 76}


@functools.cache
def known(architecture: str) -> tuple[list[Layer], list[str]]:
    backbone = opened(architecture)
    stages = [tap.name for tap in backbone.taps]
    size = SIZES[architecture]
    return layers_of(backbone.trunk.network, stages=stages, size=size, channels=3), stages


@pytest.mark.parametrize("architecture", sorted(COUNTS))
def test_every_parameter_belongs_to_one_layer_and_layers_are_counted_as_in_the_paper(
    architecture: str,
) -> None:
    layers, stages = known(architecture)
    network = opened(architecture).trunk.network
    assert [layer.number for layer in layers] == list(range(1, COUNTS[architecture] + 1))
    assert sum(layer.parameters for layer in layers) == sum(w.numel() for w in network.parameters())
    named = [name for layer in layers for name in layer.tensors]
    assert sorted(named) == sorted(name for name, _ in network.named_parameters())
    places = [(*stages, "").index(layer.stage) for layer in layers]
    assert places == sorted(places)


def test_the_first_seven_layers_of_resnet18() -> None:
    layers, _ = known("resnet18")
    assert [layer.name for layer in layers[:7]] == [
        "conv1",
        "bn1",
        "layer1.0.conv1",
        "layer1.0.bn1",
        "layer1.0.conv2",
        "layer1.0.bn2",
        "layer1.1.conv1",
    ]
    first, last = layers[0], layers[-1]
    assert (first.kind, first.parameters, first.output) == ("Conv2d", 64 * 3 * 49, (64, 32, 32))
    assert (last.name, last.kind, last.stage, last.output) == ("fc", "Linear", "", (1000,))


def test_a_transformers_positions_are_a_layer_and_come_first() -> None:
    layers, _ = known("vit_tiny_patch16_224")
    assert layers[0].name == "" and set(layers[0].tensors) == {"cls_token", "pos_embed"}
    assert layers[1].name == "patch_embed.proj"


@pytest.mark.parametrize(
    ("freeze", "cut", "frozen", "everything"),
    [
        ("none", "", 0, False),
        ("0", "", 0, False),
        ("1", "", 1, False),
        ("2", "act1", 2, False),
        ("7", "act1", 7, False),
        ("10", "layer1", 10, False),
        ("layer2", "layer2", 20, False),
        ("39", "layer3", 39, False),
        ("40", "layer4", 40, True),
        ("layer4", "layer4", 40, True),
        ("all", "layer4", 41, True),
    ],
)
def test_what_is_frozen(freeze: str, cut: str, frozen: int, everything: bool) -> None:
    layers, stages = known("resnet18")
    found = frozen_by(freeze, layers, stages)
    assert (found.cut, found.everything) == (cut, everything)
    assert found.parameters == {name for layer in layers[:frozen] for name in layer.tensors}


def test_with_a_lower_tap_everything_below_it_is_everything() -> None:
    layers, stages = known("resnet18")
    with pytest.raises(SettingsError, match="0 to 20"):
        frozen_by("21", layers, stages[:3])
    assert frozen_by("layer2", layers, stages[:3]).everything
    assert frozen_by("20", layers, stages[:3]).cut == "layer2"


@pytest.mark.parametrize("freeze", ["-1", "41", "1.5", "", "layer9", "half", "٣"])
def test_a_bad_freeze_names_the_valid_values(freeze: str) -> None:
    with pytest.raises(SettingsError, match=r"all, none, .*0 to 40.*act1, layer1, layer2, layer3, layer4"):
        frozen_by(freeze, *known("resnet18"))


def test_the_small_network() -> None:
    design = ScratchDesign(width=8, channels=1, size=32, classes=3)
    backbone = open_scratch(build(design, seed=0), design)
    stages = [tap.name for tap in backbone.taps]
    layers = layers_of(backbone.trunk.network, stages=stages, size=32, channels=1)
    assert layers[0].name == "stem.0" and layers[-1].name == "head" and layers[-1].stage == ""
    assert {layer.stage for layer in layers[:-1]} == {f"stages.{index}" for index in range(4)}
    assert not frozen_by("6", layers, stages).everything
    assert frozen_by("6", layers, stages).cut == "stages.0"


class Odd(nn.Module):
    """A layer that never runs, one that runs twice, one whose weights another one shares."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Linear(2, 2)
        self.last = nn.Conv2d(4, 4, 1)
        self.first = nn.Conv2d(3, 4, 1)
        self.again = nn.Conv2d(4, 4, 1)
        self.twin = nn.Conv2d(4, 4, 1)
        self.twin.weight = self.last.weight

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps = self.again(self.again(self.first(images)))
        return self.last(self.twin(maps))


def test_the_order_is_that_of_the_forward_pass_not_of_the_code() -> None:
    network = Odd().train()
    layers = layers_of(network, stages=["again", "last"], size=8, channels=3)
    assert [layer.name for layer in layers] == ["first", "again", "twin", "last", "unused"]
    assert [layer.stage for layer in layers] == ["again", "again", "last", "last", ""]
    assert sum(layer.parameters for layer in layers) == sum(w.numel() for w in network.parameters())
    assert layers[-1].output == () and network.training and network.last.training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


def test_an_unknown_stage_and_an_impossible_size_are_sentences() -> None:
    with pytest.raises(BackboneError, match="no stage called nowhere"):
        layers_of(Odd(), stages=["nowhere"], size=8, channels=3)
    with pytest.raises(BackboneError, match="cannot read 8 x 8 px of 5 channels"):
        layers_of(Odd(), stages=["last"], size=8, channels=5)


def shown(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(["models", *arguments])
    out, err = capsys.readouterr()
    return code, out, err


def test_the_command_lists_layers_and_totals(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = shown(capsys, "test_resnet", "--layers", "--freeze", "layer1", "--json")
    facts = json.loads(out)
    layers = facts["layers"]
    assert code == 0 and [layer["number"] for layer in layers] == [*range(1, len(layers)), None]
    for given, expected in ((len(layers) - 1, 0), (len(layers), 2)):
        code, out, err = shown(capsys, "test_resnet", "--layers", "--freeze", str(given))
        assert code == expected
        assert (f"0 to {len(layers) - 1}" in err) if expected else (f"{len(layers) - 1} layers" in out)
    assert facts["frozen"] + facts["trainable"] + facts["classifier"] == facts["parameters"]
    assert facts["cut"] == "layer1" and 0 < facts["frozen"] == sum(
        layer["parameters"] for layer in layers if layer["frozen"]
    )
    assert [stage["name"] for stage in facts["stages"]][-1] == layers[-2]["stage"]


def test_the_command_shows_the_small_network_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = shown(capsys, "scratch", "--layers", "--freeze", "7")
    assert code == 0 and "trainable" in out and "replaced by the head" in out
    assert sum(line.rstrip(" │").endswith("yes") for line in out.splitlines()) == 7
    code, out, _ = shown(capsys, "scratch", "--layers")
    assert code == 0 and "trainable" not in out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("restnet18", "--layers"), "resnet18"),
        (("restnet18",), "resnet18"),
        (("--layers",), "NAME --layers"),
        (("test_resnet", "--freeze", "3"), "NAME --layers"),
        (("test_resnet", "--layers", "--freeze", "99"), "all, none"),
        (("test_resnet", "--layers", "--size", "4"), "8 to 2048"),
    ],
)
def test_the_command_refuses_in_sentences(
    arguments: tuple[str, ...], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = shown(capsys, *arguments)
    assert code == 2 and told in err
