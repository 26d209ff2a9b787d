"""Opening checks what it is given, and one grey channel gives the features of grey repeated three times."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import timm
import torch
from made_networks import HALF, IMAGENET, Normalisation, made, made_entry, noise
from torch import Tensor, nn

from graft.backbones.catalogue import Entry
from graft.backbones.opening import Opened, open_backbone, open_scratch, tapped
from graft.backbones.scratch import ScratchDesign, build
from graft.errors import BackboneError

SAME = (("pad_type", "same"),)


def opened_twice(entry: Entry, *, network: Callable[[], nn.Module] | None = None) -> tuple[Opened, Opened]:
    """With three channels and with one."""
    size = entry.input.size
    make = network or (lambda: made(entry))
    return tuple(tapped(make(), entry, channels=channels, size=size) for channels in (3, 1))  # type: ignore[return-value]


@torch.no_grad()
def assert_grey_equals_repeated_grey(colour: Opened, grey: Opened, *, size: int) -> None:
    images = torch.from_numpy(noise(2, size, channels=1))
    assert [(tap.name, tap.features) for tap in colour.taps] == [
        (tap.name, tap.features) for tap in grey.taps
    ]
    expected = colour.trunk(images.expand(-1, -1, -1, 3))
    for rows, wanted in zip(grey.trunk(images), expected, strict=True):
        torch.testing.assert_close(rows, wanted, rtol=1e-4, atol=1e-4)


def stem(opened: Opened) -> nn.Conv2d:
    """The convolution that reads the image."""
    return next(module for module in opened.trunk.modules() if isinstance(module, nn.Conv2d))


@pytest.mark.parametrize(
    ("architecture", "arguments"),
    [
        ("resnet18", ()),
        ("mobilenetv2_100", SAME),
        ("convnext_atto", ()),
        ("vit_tiny_patch16_224", ()),
        ("squeezenet1_1", ()),
        ("swin_tiny_patch4_window7_224", ()),
        ("regnetx_002", ()),
        ("xcit_nano_12_p16_224", ()),
    ],
)
@pytest.mark.parametrize(("normalisation", "channels"), [(HALF, 1), (IMAGENET, 2)])
def test_grey_is_folded_into_the_first_convolution(
    architecture: str, arguments: tuple, normalisation: Normalisation, channels: int
) -> None:
    entry = made_entry(architecture, normalisation=normalisation, arguments=arguments)
    colour, grey = opened_twice(entry)
    assert not grey.trunk.repeat_grey
    assert (stem(colour).in_channels, stem(grey).in_channels) == (3, channels)
    assert stem(grey).weight.shape[1] == channels
    assert_grey_equals_repeated_grey(colour, grey, size=entry.input.size)


@pytest.mark.parametrize(
    ("architecture", "arguments"),
    [
        ("fastvit_t8", ()),  # two convolutions read the image
        ("resnetv2_50x1_bit", ()),  # its kernels are standardised over all input channels
        ("googlenet", (("transform_input", True),)),  # the channels are shifted before the first convolution
    ],
)
def test_grey_is_repeated_where_nothing_can_be_folded(architecture: str, arguments: tuple) -> None:
    entry = made_entry(architecture, arguments=arguments)
    colour, grey = opened_twice(entry)
    assert grey.trunk.repeat_grey
    assert stem(grey).in_channels == 3
    assert_grey_equals_repeated_grey(colour, grey, size=entry.input.size)


@pytest.mark.parametrize("size", [63, 64, 65])
@torch.no_grad()
def test_the_borders_are_equal_too(size: int) -> None:
    """Of the map itself: a mean over all positions would hide a wrong border."""
    entry = made_entry("mobilenetv2_100", arguments=SAME)
    colour, grey = (tapped(made(entry), entry, channels=channels, size=size) for channels in (3, 1))
    images = torch.from_numpy(noise(1, 72, channels=1))[:, :size, :size]
    maps: list[Tensor] = []
    for opened in (colour, grey):
        stem(opened).register_forward_hook(lambda _module, _inputs, output: maps.append(output))
    colour.trunk(images.expand(-1, -1, -1, 3))
    grey.trunk(images)
    torch.testing.assert_close(maps[0], maps[1], rtol=1e-4, atol=1e-4)
    assert maps[0].shape[-1] == (size + 1) // 2


def test_weights_that_do_not_fit_are_refused_by_name() -> None:
    entry = made_entry("resnet18")
    state = made(entry).state_dict()
    del state["layer4.1.conv2.weight"]
    state["conv1.weight"] = state["conv1.weight"][:, :1]
    state["another.weight"] = torch.zeros(3)
    with pytest.raises(BackboneError, match="1 tensors missing, 1 unknown, 1 of another shape") as caught:
        open_backbone(entry, state, channels=3, size=64)
    assert "layer4.1.conv2.weight" in str(caught.value) and "conv1.weight" in str(caught.value)


@torch.no_grad()
def test_the_weights_are_loaded() -> None:
    entry = made_entry("resnet18")
    network = made(entry)
    state = {name: part for name, part in network.state_dict().items() if "num_batches_tracked" not in name}
    images = torch.from_numpy(noise(2, 64))
    loaded = open_backbone(entry, state, channels=3, size=64).trunk(images)
    for rows, expected in zip(loaded, tapped(network, entry, channels=3, size=64).trunk(images), strict=True):
        torch.testing.assert_close(rows, expected)


@pytest.mark.parametrize(("architecture", "size"), [("vit_tiny_patch16_224", 48), ("alexnet", 16)])
def test_a_size_that_the_network_cannot_read_is_refused(architecture: str, size: int) -> None:
    entry = made_entry(architecture)
    with pytest.raises(BackboneError, match=f"{architecture}.made cannot read {size} x {size} px"):
        tapped(made(entry), entry, channels=3, size=size)


def test_a_network_without_stages_or_classifier_is_refused() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten())
    with pytest.raises(BackboneError, match="no place to read features from"):
        tapped(network.eval(), made_entry("resnet18"), channels=3, size=64)


def test_a_network_of_one_channel_of_its_own_is_not_folded() -> None:
    network = timm.create_model("resnet18", in_chans=1).eval()
    entry = made_entry("resnet18")
    one = dataclasses.replace(entry, input=dataclasses.replace(entry.input, mean=(0.5,), std=(0.5,)))
    read = tapped(network, one, channels=1, size=64)
    assert stem(read).in_channels == 1
    with torch.no_grad():
        assert read.trunk(torch.from_numpy(noise(1, 64, channels=1)))[-1].shape == (1, 1000)


@pytest.mark.parametrize("channels", [1, 3])
@torch.no_grad()
def test_the_last_tap_of_the_small_cnn_feeds_its_head(channels: int) -> None:
    design = ScratchDesign(8, channels, 32, 5)  # type: ignore[arg-type]
    network = build(design, seed=0).eval()
    opened = open_scratch(network, design)
    images = torch.from_numpy(noise(3, 32, channels=channels))
    *stages, last = opened.trunk(images)
    assert [rows.shape[1] for rows in stages] == [8, 16, 32, 48]
    assert (len(opened.taps), opened.has_logits) == (5, False)
    torch.testing.assert_close(network.head(last), network(images.permute(0, 3, 1, 2) / 255))
