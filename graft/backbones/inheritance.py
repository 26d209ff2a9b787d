"""A student that begins as its pruned teacher instead of at random.

In: two networks of one layout, the teacher wider inside its blocks (`graft_small` and a MobileNetV2). Out: the student
holds the teacher's stem, norms and first block as they are, and of each inverted residual the hidden channels that
matter most. Pruning whole channels by what batch normalisation says about them is Network Slimming (Liu et al. 2017,
arXiv 1708.06519); a smaller network that begins with selected weights of a larger one, weight selection (Xu et al.
2024, arXiv 2311.18823). Costs milliseconds. Not covered: other kinds of blocks, and depth.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

QUANTILES = 512
BLOCKS = ("InvertedResidual", "DepthwiseSeparableConv")


@torch.no_grad()
def inherit(student: nn.Module, teacher: nn.Module) -> int:
    """Copy into `student` what fits of `teacher`; returns the number of tensors, 0 where their layouts differ."""
    pairs = _pairs(student, teacher)
    if not pairs:
        return 0
    narrower = {place: (own, other) for place, own, other in pairs if _hidden(own) < _hidden(other)}
    copied = sum(_prune(own, other) for own, other in narrower.values())
    theirs = teacher.state_dict()
    for name, tensor in student.state_dict().items():
        pruned = any(name.startswith(f"{place}.") for place in narrower)
        if not pruned and name in theirs and theirs[name].shape == tensor.shape:
            tensor.copy_(theirs[name])
            copied += 1
    return copied


@torch.no_grad()
def importance(block: nn.Module) -> Float[Tensor, " hidden"]:
    """How much each hidden channel of an inverted residual changes what the block puts out.

    The deviation of `activation(gamma z + beta)` over normal z, gamma and beta being those of the norm after the
    depthwise convolution, times the norm of the channel's column in the projection that follows.
    """
    norm, projection = block.get_submodule("bn2"), block.get_submodule("conv_pwl")
    assert isinstance(norm, nn.BatchNorm2d) and isinstance(projection, nn.Conv2d)
    uniform = (torch.arange(QUANTILES, dtype=torch.float64) + 0.5) / QUANTILES
    z = torch.special.ndtri(uniform).float()[:, None]
    activated = norm.get_submodule("act")(z * norm.weight + norm.bias)
    return activated.std(dim=0) * projection.weight.flatten(1).norm(dim=0)


def _pairs(student: nn.Module, teacher: nn.Module) -> list[tuple[str, nn.Module, nn.Module]]:
    """The blocks of both at their places; none unless each has the same ends and stride in both, and no gate."""
    own, other = _blocks(student), _blocks(teacher)
    if not own or list(own) != list(other):
        return []
    pairs = [(place, own[place], other[place]) for place in own]
    fits = all(_ends(a) == _ends(b) and not _gated(a) and _hidden(a) <= _hidden(b) for _, a, b in pairs)
    return pairs if fits else []


def _blocks(network: nn.Module) -> dict[str, nn.Module]:
    return {name: module for name, module in network.named_modules() if type(module).__name__ in BLOCKS}


def _ends(block: nn.Module) -> tuple[object, ...]:
    """Kind, channels in and out, kernel, stride, and whether a gate (squeeze and excitation) is there."""
    first, *_, last = [module for module in block.modules() if isinstance(module, nn.Conv2d)]
    depthwise = _depthwise(block)
    sides = (first.in_channels, last.out_channels)
    return type(block).__name__, *sides, depthwise.kernel_size, depthwise.stride, _gated(block)


def _gated(block: nn.Module) -> bool:
    return not isinstance(getattr(block, "se", nn.Identity()), nn.Identity)


def _depthwise(block: nn.Module) -> nn.Conv2d:
    module = block.get_submodule("conv_dw")
    assert isinstance(module, nn.Conv2d)
    return module


def _hidden(block: nn.Module) -> int:
    return _depthwise(block).out_channels


def _prune(own: nn.Module, other: nn.Module) -> int:
    """The inverted residual `own` becomes `other` without its least important hidden channels."""
    kept: Int64[Tensor, " k"] = importance(other).topk(_hidden(own)).indices.sort().values
    source, target = other.state_dict(), own.state_dict()
    copied = 0
    for name, tensor in target.items():
        found = source[name]
        if name.startswith("conv_pwl"):
            found = found[:, kept]
        elif not name.startswith("bn3") and found.ndim:
            found = found[kept]
        tensor.copy_(found)
        copied += 1
    return copied
