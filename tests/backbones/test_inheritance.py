"""Pruning a teacher: what does nothing goes first, and nothing is taken from a network of another kind."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from graft.backbones.inheritance import importance, inherit
from graft.backbones.students import build_student


def teacher_with_idle_channels(kept: float) -> nn.Module:
    """A MobileNetV2 of which only the share `kept` of each block's hidden channels, chosen at random, does anything."""
    torch.manual_seed(0)
    teacher = timm.create_model("mobilenetv2_100", pad_type="same", num_classes=10).eval()
    for module in teacher.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.running_mean, std=0.1)
        if type(module).__name__ == "InvertedResidual":
            hidden = module.conv_pwl.in_channels
            idle = torch.randperm(hidden)[round(kept * hidden) :]
            module.conv_pwl.weight.data[:, idle] = 0
    return teacher


@torch.inference_mode()
def test_a_student_of_a_teacher_with_idle_channels_is_the_teacher() -> None:
    teacher = teacher_with_idle_channels(4 / 6)
    student = build_student("graft_small", num_classes=10).eval()
    x = torch.randn(2, 3, 64, 64)
    assert not torch.allclose(student(x), teacher(x), rtol=1e-2, atol=1e-3)
    assert inherit(student, teacher) == len(student.state_dict())
    torch.testing.assert_close(student(x), teacher(x), rtol=1e-3, atol=1e-4)


def test_what_has_another_shape_stays() -> None:
    teacher = teacher_with_idle_channels(1.0)
    student = build_student("graft_tiny", num_classes=7)
    head = student.classifier.weight.clone()
    assert inherit(student, teacher) == len(student.state_dict()) - 2
    torch.testing.assert_close(student.classifier.weight, head)
    torch.testing.assert_close(student.conv_stem.weight, teacher.conv_stem.weight)


@pytest.mark.parametrize("other", ["mobilenetv3_small_050", "test_resnet", "mobilenetv2_050"])
def test_other_layouts_give_nothing(other: str) -> None:
    student = build_student("graft_small", num_classes=10)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    assert inherit(student, timm.create_model(other, num_classes=10)) == 0
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())


def test_a_channel_that_never_fires_has_no_importance() -> None:
    block = timm.create_model("mobilenetv2_100").blocks[2][0]
    with torch.no_grad():
        block.bn2.weight.fill_(1.0)
        block.bn2.bias[0] = -50.0
        block.bn2.bias[1] = 50.0
        block.conv_pwl.weight[:, 2] *= 3
        block.conv_pwl.weight[:, 3] = block.conv_pwl.weight[:, 2] / 3
    scores = importance(block)
    assert float(scores[0]) == 0.0 and float(scores[1]) == 0.0
    assert float(scores[2]) == pytest.approx(3 * float(scores[3]))
