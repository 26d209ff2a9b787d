"""Cutting: the tail behind the prefix is the whole network, whatever network; only what lies between learns."""

from __future__ import annotations

import itertools

import pytest
import timm
import torch
from made_cuts import SIZE, entry, images, made, opened, stripes
from torch import Tensor, nn

from graft.backbones.opening import read_together, tapped
from graft.backbones.together import stages_read
from graft.errors import BackboneError
from graft.learning.cutting import _without_memory, cut_at

NETWORKS = ("test_resnet", "test_efficientnet", "test_convnext2", "test_vit2", "test_byobnet")


@pytest.mark.parametrize("architecture", NETWORKS)
def test_prefix_and_tail_are_the_whole_at_every_stage(architecture: str) -> None:
    taps = opened(architecture).taps
    pixels, _ = stripes(8)
    with torch.inference_mode():
        whole = opened(architecture).trunk(torch.from_numpy(pixels))
    for below, tap in [*itertools.pairwise(taps), (taps[0], taps[-1])]:
        cutting = cut_at(
            opened(architecture),
            architecture=architecture,
            tap=tap.name,
            cut=below.name,
            images=images(pixels),
        )
        assert cutting.prefix is not None and not cutting.notice
        with torch.inference_mode():
            found = cutting.tail(cutting.prefix(cutting.normalised(images(pixels, 8))))
        torch.testing.assert_close(found, whole[tap.index], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("cut", ["", "layer2", "layer4"])
def test_stages_that_are_read_together_are_those_of_the_whole(cut: str) -> None:
    whole = opened()
    stages = stages_read([tap.name for tap in whole.taps], tap="layer4", cut=cut)
    pixels, _ = stripes(8)
    read = read_together(whole, stages, size=SIZE)
    with torch.inference_mode():
        wanted = read.trunk(torch.from_numpy(pixels))[read.taps[-1].index]
    cutting = cut_at(
        opened(),
        architecture="test_resnet",
        tap="layer4",
        cut=cut,
        images=images(pixels),
        together=stages,
    )
    maps = cutting.normalised(images(pixels, 8))
    with torch.inference_mode():
        found = cutting.tail(maps if cutting.prefix is None else cutting.prefix(maps))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    assert {name.partition(".")[0] for name in cutting.trained} >= ({"layer3"} if cut == "layer2" else set())


def test_uncut_the_tail_is_the_whole_and_everything_below_the_tap_learns() -> None:
    part = made("", tap="layer3")
    with torch.inference_mode():
        found = part.cutting.tail(part.cutting.normalised(images(part.pixels, 60)))
    torch.testing.assert_close(found.numpy(), part.features, rtol=1e-4, atol=1e-5)
    assert part.cutting.prefix is None and not part.cutting.notice
    names = {name.partition(".")[0] for name in part.cutting.trained}
    assert names == {"conv1", "bn1", "layer1", "layer2", "layer3"}


def test_only_what_lies_between_cut_and_tap_learns_and_the_upper_stage_most() -> None:
    trained = made("layer2").cutting.trained
    assert {name.partition(".")[0] for name in trained} == {"layer3", "layer4"}
    assert {depth for name, depth in trained.items() if name.startswith("layer4")} == {0}
    assert {depth for name, depth in trained.items() if name.startswith("layer3")} == {1}


def test_gradients_reach_what_learns_and_nothing_else() -> None:
    part = made("layer3")
    assert part.cutting.prefix is not None
    maps = part.cutting.prefix(part.cutting.normalised(images(part.pixels)))
    part.cutting.tail(maps).sum().backward()
    moved = {name for name, weight in part.cutting.tail.network.named_parameters() if weight.grad is not None}
    assert moved == set(part.cutting.trained)


def test_a_network_that_remembers_learns_step_by_step() -> None:
    """In eval mode its attention keeps a product of its weights, which belongs to the step before."""
    network = timm.create_model("levit_128s").eval()
    for module in network.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            nn.init.ones_(module.weight)  # some begin with zeros, behind which nothing is learned at first
    _without_memory(network)
    name, biases = next(
        found for found in network.named_parameters() if found[0].endswith("attention_biases")
    )
    given = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    for _ in range(2):
        answer = network(given)
        answer.square().sum().backward()
        assert biases.grad is not None and bool(biases.grad.abs().sum() > 0), name
        biases.grad = None
    with torch.no_grad():
        biases += 1.0 + torch.arange(biases.numel()).reshape(biases.shape) % 3
        assert not torch.equal(network(given), answer)


def test_grey_networks_are_cut_too() -> None:
    pixels = stripes(6)[0][..., :1]
    with torch.inference_mode():
        whole = opened(channels=1).trunk(torch.from_numpy(pixels))[-2]
    cutting = cut_at(
        opened(channels=1), architecture="test_resnet", tap="layer4", cut="layer2", images=images(pixels, 6)
    )
    assert cutting.prefix is not None
    with torch.inference_mode():
        found = cutting.tail(cutting.prefix(cutting.normalised(images(pixels, 6))))
    torch.testing.assert_close(found, whole, rtol=1e-4, atol=1e-5)


class LooksBack(nn.Module):
    """Its last stage adds the mean of the first one's maps, which no cut between them can hand over."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.feature_info = [
            {"module": f"network.{name}"} for name in ("layer1", "layer2", "layer3", "layer4")
        ]

    def forward(self, x: Tensor) -> Tensor:
        one = self.network
        first = one.layer1(one.maxpool(one.act1(one.bn1(one.conv1(x)))))
        return one.layer4(one.layer3(one.layer2(first)) * (1 + first.mean((1, 2, 3))[:, None, None, None]))


def test_a_network_that_looks_back_keeps_its_prefix_inside_frozen() -> None:
    def fresh() -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            return LooksBack(timm.create_model("test_resnet")).eval()

    row = entry("looks_back")
    pixels, _ = stripes(6)
    whole = tapped(fresh(), row, channels=3, size=SIZE)
    with torch.inference_mode():
        expected = whole.trunk(torch.from_numpy(pixels))[-1]
    cutting = cut_at(
        tapped(fresh(), row, channels=3, size=SIZE),
        architecture="looks_back",
        tap="network.layer4",
        cut="network.layer2",
        images=images(pixels, 6),
    )
    assert cutting.prefix is None and "cannot be cut" in cutting.notice
    maps = cutting.tail(cutting.normalised(images(pixels, 6)))
    torch.testing.assert_close(maps.detach(), expected, rtol=1e-4, atol=1e-5)
    maps.sum().backward()
    moved = {name for name, weight in cutting.tail.network.named_parameters() if weight.grad is not None}
    assert moved and all(name.startswith(("network.layer3", "network.layer4")) for name in moved)


def test_a_stage_that_is_not_there_is_told_with_those_that_are() -> None:
    with pytest.raises(
        BackboneError, match="layer9 is no stage below the tap layer3; these are: act1, layer1"
    ):
        made("layer9", tap="layer3")
