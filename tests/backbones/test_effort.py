"""What a network costs, counted: sums over its layers, and seconds that follow from the kind of machine alone."""

from __future__ import annotations

import pytest

from graft.backbones.catalogue import find
from graft.backbones.effort import Effort, efforts, view_seconds
from graft.compute import Compute

TWO_CORES = Compute("cpu", True, 2)
MEASURED = {
    "mobilenetv2_100.ra_in1k": 97,
    "mobilenetv3_large_100.ra_in1k": 88,
    "efficientnet_b0.ra_in1k": 41,
    "resnet18.a1_in1k": 65,
    "resnet50.a1_in1k": 24,
}


def test_resnet18_has_its_known_multiply_adds() -> None:
    stages = ("layer1", "layer2", "layer3", "layer4")
    counted = efforts(find("resnet18.a1_in1k", None), size=224, ends=stages)
    assert counted["head"].multiply_adds == pytest.approx(1.814e9, rel=0.01)
    rising = [counted[name].multiply_adds for name in (*stages, "head")]
    assert rising == sorted(rising) and len(set(rising)) == 5
    # Each of the four stages costs about the same (He et al. 2016).
    assert counted["layer4"].minus(counted["layer3"]).multiply_adds == pytest.approx(0.41e9, rel=0.05)


@pytest.mark.parametrize(("name", "images"), MEASURED.items())
def test_training_takes_about_as_long_as_was_measured(name: str, images: int) -> None:
    whole = efforts(find(name, None), size=224, ends=())["head"]
    assert 1 / whole.training_seconds(TWO_CORES) == pytest.approx(images, rel=0.25)


def test_slower_machines_take_longer_and_cards_shorter() -> None:
    one = Effort(1e6, 1e9)
    machines = [Compute("cpu", False, 1), Compute("cpu", False, 2), TWO_CORES, Compute("cuda", True, 2)]
    seconds = [one.training_seconds(machine) for machine in machines]
    assert seconds == sorted(seconds, reverse=True)
    assert one.forward_seconds(TWO_CORES) < one.training_seconds(TWO_CORES)
    assert view_seconds(112, TWO_CORES) == pytest.approx(view_seconds(224, TWO_CORES) / 4)
