"""The other way to the gradients of strided depthwise convolutions gives the same ones, and leaves the rest alone."""

from __future__ import annotations

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from graft.learning import depthwise
from graft.learning.depthwise import FasterDepthwise
from graft.learning.memory import keep_freed_memory

SIDES = st.integers(1, 9)


def gradients(network: nn.Module, images: Tensor) -> list[Tensor]:
    """Of the images and of every weight."""
    images = images.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        network(images).float().square().sum().backward()
    found = [images.grad, *(weight.grad for weight in network.parameters())]
    for weight in network.parameters():
        weight.grad = None
    assert all(one is not None for one in found)
    return [one for one in found if one is not None]


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 3),
    st.integers(2, 8),
    st.tuples(SIDES, SIDES),
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.sampled_from([1, 3, 5]),
    st.integers(0, 2),
)
def test_the_gradients_are_the_same(
    images: int, channels: int, sides: tuple[int, int], stride: tuple[int, int], kernel: int, padding: int
) -> None:
    height, width = (max(side, kernel) for side in sides)
    torch.manual_seed(0)
    layer = nn.Conv2d(channels, channels, kernel, stride, padding, groups=channels, bias=False)
    batch = torch.randn(images, channels, height, width).to(memory_format=torch.channels_last)
    usual = gradients(layer, batch)
    with FasterDepthwise():
        found = gradients(layer, batch)
    for one, other in zip(found, usual, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize(("name", "expected"), [("mobilenetv2_035", 4), ("resnet10t", 0)])
def test_of_whole_networks_too(name: str, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    ways = []
    real = depthwise._gradient
    monkeypatch.setattr(depthwise, "_gradient", lambda *given: ways.append(given) or real(*given))
    torch.manual_seed(0)
    network = timm.create_model(name, num_classes=3).eval().to(memory_format=torch.channels_last)
    images = torch.rand(2, 3, 64, 64).to(memory_format=torch.channels_last)
    usual = gradients(network, images)
    assert not ways
    with FasterDepthwise():
        found = gradients(network, images)
    assert len(ways) == 2 * expected
    for one, other in zip(found, usual, strict=True):
        assert float((one - other).norm()) <= 1e-2 * float(other.norm()) + 1e-6


@pytest.mark.parametrize(
    ("layer", "side"),
    [
        (nn.Conv2d(4, 4, 3, 2, "valid", groups=4), 8),
        (nn.Conv2d(4, 8, 3, 2, groups=4), 8),
        (nn.Conv2d(4, 4, 5, 2, 2, groups=4, bias=False), 4),
    ],
)
def test_what_it_does_not_cover_is_left_alone(
    layer: nn.Conv2d, side: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(depthwise, "_gradient", lambda *_: pytest.fail("taken"))
    with FasterDepthwise():
        gradients(layer, torch.rand(1, 4, side, side))


def test_keeping_freed_memory_may_be_said_twice() -> None:
    keep_freed_memory()
    keep_freed_memory()
    assert float(torch.ones(20_000_000).sum()) == 2e7
