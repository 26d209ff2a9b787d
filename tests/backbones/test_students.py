"""Our own networks: their cost is what is said, their stages are found, and they read what they must."""

from __future__ import annotations

import pytest
import torch
from made_networks import HALF
from torch import nn

from graft.backbones.catalogue import Entry, InputSpec
from graft.backbones.opening import tapped
from graft.backbones.students import STUDENTS, build_student, student_cost
from graft.backbones.weights import build, build_network
from graft.errors import BackboneError


def entry_of(architecture: str, **arguments: int) -> Entry:
    return Entry(
        name=architecture,
        library="graft",
        architecture=architecture,
        arguments=tuple(arguments.items()),
        family="graft",
        pretraining="none",
        source="random weights",
        licence="Apache-2.0",
        parameters=None,
        bytes=None,
        gmacs=None,
        input=InputSpec(64, *HALF, "bicubic", 0.875),
        top1=None,
        top5=None,
        published="",
        stages=(),
    )


def counted_adds(network: nn.Module, size: int, channels: int) -> int:
    """Multiply-adds of all convolutions and the classifier, counted while they run."""
    counts: list[int] = []
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.register_forward_hook(lambda m, _, out: counts.append(out.numel() * m.weight[0].numel()))
    with torch.inference_mode():
        network.eval()(torch.zeros(1, channels, size, size))
    return sum(counts)


@pytest.mark.parametrize(("size", "channels", "classes"), [(64, 3, 1000), (96, 1, 5), (224, 3, 0)])
@pytest.mark.parametrize("architecture", STUDENTS)
def test_the_cost_is_what_runs(architecture: str, size: int, channels: int, classes: int) -> None:
    arguments = {"num_classes": classes, "in_chans": channels}
    network = build_network("graft", architecture, arguments)
    gmacs, stages = student_cost(architecture, arguments, size)
    assert gmacs is not None and round(gmacs * 1e9) == counted_adds(network, size, channels)
    info = network.feature_info
    assert [(s.channels, s.reduction) for s in stages] == [(row["num_chs"], row["reduction"]) for row in info]


@pytest.mark.parametrize(
    ("architecture", "least", "most"), [("graft_small", 1.2e6, 1.5e6), ("graft_tiny", 0.3e6, 0.7e6)]
)
def test_trunks_are_small(architecture: str, least: float, most: float) -> None:
    parameters = sum(
        weight.numel() for weight in build_student(architecture, num_classes=0, head=0).parameters()
    )
    assert least < parameters < most


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("architecture", "arguments", "widths"),
    [
        ("graft_small", {}, [16, 24, 32, 96, 320, 1280]),
        ("graft_small", {"head": 0}, [16, 24, 32, 96, 320]),
        ("graft_tiny", {"head": 0}, [16, 24, 32, 96, 320]),
    ],
)
def test_taps_are_found(
    architecture: str, arguments: dict[str, int], widths: list[int], channels: int
) -> None:
    entry = entry_of(architecture, num_classes=0, **arguments)
    opened = tapped(build(entry).eval(), entry, channels=channels, size=64)
    assert [tap.features for tap in opened.taps] == widths and not opened.has_logits
    pixels = torch.randint(0, 256, (2, 64, 64, channels), dtype=torch.uint8)
    assert all(bool(rows.isfinite().all()) for rows in opened.trunk(pixels))


def test_an_unknown_student_is_named() -> None:
    with pytest.raises(BackboneError, match=r"graft_huge.*graft_small, graft_tiny"):
        build_network("graft", "graft_huge", {})
