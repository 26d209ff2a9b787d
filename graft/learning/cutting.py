"""A network cut in two at the end of a stage: a frozen prefix, and a tail that learns.

In: an opened backbone, the tap that feeds the head, the stage up to which weights are frozen, and a few real images.
Out: a `Cut`: the prefix (from normalised images to the maps after the stage), the tail (from those maps to the pooled
features of the tap) and which of the tail's weights belong to which stage. The networks are cut without knowing their
code: every module that has ended when the stage ends is replaced, in the tail, by one that repeats what it put out
once, and the stage itself by one that hands in the given maps. Whether `tail(prefix(x))` is the whole network is then
verified on the images; a network that looks back beyond the cut (and so fails) is trained with its prefix inside,
frozen all the same. What lies above the tap never runs.

Cost: two forward passes over the images. Not covered: networks whose stages put out several tensors.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from graft.backbones.opening import Opened
from graft.backbones.taps import CLASSIFIER_INPUT, Trunk, pool, stages_of
from graft.backbones.together import Together
from graft.errors import BackboneError
from graft.learning.calls import Calls

REMEMBERED = "attention_bias_cache"
TOLERANCE = 1e-4  # relative error of the tail behind the prefix against the whole, in float32


class _Reached(Exception):
    """Leaves a forward pass where its result is known."""

    def __init__(self, output: Any) -> None:
        super().__init__()
        self.output = output


@dataclass(slots=True)
class _Handed:
    """The maps that the tail is fed with."""

    maps: Tensor = field(default_factory=lambda: torch.empty(0))


class _Standin(nn.Module):
    """Stands where another module was; whoever asks it for an attribute is answered by that one."""

    def __init__(self, handed: _Handed, instead_of: nn.Module) -> None:
        super().__init__()
        self.handed = handed
        self._instead_of = [instead_of]  # in a list, so that its weights are not the network's any more

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self._instead_of[0], name)


class _Given(_Standin):
    """Stands for the stage at the cut."""

    def forward(self, *_: Any, **__: Any) -> Tensor:
        return self.handed.maps


class _Passed(_Standin):
    """Stands for a module before the cut: something of the right shape, which nothing after the cut reads."""

    stub: Tensor

    def __init__(self, handed: _Handed, instead_of: nn.Module, stub: Tensor) -> None:
        super().__init__(handed, instead_of)
        self.register_buffer("stub", stub.clone(), persistent=False)

    def forward(self, *_: Any, **__: Any) -> Tensor:
        return self.stub.expand(len(self.handed.maps), *self.stub.shape[1:])


class Prefix(nn.Module):
    """The network up to the end of a stage: normalised images `[n c h w]` to its maps, `[n ...]`."""

    def __init__(self, network: nn.Module, stage: str) -> None:
        super().__init__()
        self.network = network
        network.get_submodule(stage).register_forward_hook(_leave_with_output)

    def forward(self, images: Tensor) -> Tensor:
        return _until_left(self.network, images)


class _Features(Prefix):
    """The whole network up to the tap as a prefix: normalised images to pooled features `[n d]`."""

    def __init__(self, whole: Tail) -> None:
        nn.Module.__init__(self)
        self.network = whole

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images)


class Tail(nn.Module):
    """The network from the cut to the tap: maps (or, uncut, normalised images) to pooled features `[n d]`.

    With `stages`, these are read together (`graft.backbones.together`)."""

    def __init__(
        self,
        network: nn.Module,
        tap: str,
        classifier: str | None,
        handed: _Handed | None,
        stages: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.network = network
        # Its hooks come before the one that leaves.
        self.together = Together(network, stages) if stages else None
        self.handed = handed
        self.tokens = getattr(network, "num_prefix_tokens", 0)
        self.channels_last = getattr(network, "output_fmt", None) == "NHWC"
        self.image = torch.empty(0)
        if tap == CLASSIFIER_INPUT and classifier is not None:
            network.get_submodule(classifier).register_forward_pre_hook(_leave_with_input)
        else:
            network.get_submodule(tap).register_forward_hook(_leave_with_output)

    def forward(self, maps: Tensor) -> Tensor:
        images = maps
        if self.handed is not None:
            self.handed.maps = maps
            images = self.image.to(maps.device).expand(len(maps), *self.image.shape[1:])
        output = _until_left(self.network, images)
        if self.together is not None and not self.together.above:
            return self.together.row()
        rows = pool(output, prefix_tokens=self.tokens, channels_last=self.channels_last)
        return rows if self.together is None else self.together.row(rows)


class _Nothing(Tail):
    """What is left above the tap: the head reads the prefix's features as they are."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.network = nn.Module()

    def forward(self, maps: Tensor) -> Tensor:
        return maps


@dataclass(frozen=True, slots=True, eq=False)
class Normalisation:
    """What the network wants its images to be: the mean and deviation of each channel, and whether grey is repeated.

    `looking`: the edge filter in front of that, `[n c h w]` in 0..1 to `[n j h w]` in 0..1; None for plain images.
    """

    mean: Tensor
    std: Tensor
    repeat_grey: bool
    looking: nn.Module | None = None

    def __call__(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k h w"]:
        """Images in 0..1 as the network wants them."""
        if self.looking is not None:
            images = self.looking.to(images.device)(images)
        if self.repeat_grey:
            images = images.expand(-1, len(self.mean), -1, -1)
        mean, std = (part.to(images.device)[:, None, None] for part in (self.mean, self.std))
        return (images - mean) / std


@dataclass(frozen=True, slots=True, eq=False)
class Cut:
    """`prefix` is None where nothing is frozen, or where it could not be taken out (`notice` says so then).

    `trained`: the names of the tail's weights that learn, each with the number of stages between it and the top.
    `initial`: the tail's tensors before any training.
    """

    prefix: Prefix | None
    tail: Tail
    trained: dict[str, int]
    initial: dict[str, Tensor]
    normalised: Normalisation
    notice: str

    def batch_norms(self) -> list[nn.Module]:
        """The tail's batch normalisations that lie above the cut."""
        learning = {name.rpartition(".")[0] for name in self.trained}
        return [
            module
            for name, module in self.tail.network.named_modules()
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and name in learning
        ]


def cut_at(
    opened: Opened,
    *,
    architecture: str,
    tap: str,
    cut: str,
    images: Float[Tensor, "n c h w"],
    frozen: frozenset[str] = frozenset(),
    together: Sequence[str] = (),
) -> Cut:
    """Cut `opened`, which is used up by this. `cut` is the name of a tap below `tap`, or empty: everything learns.

    With `cut` equal to `tap` the whole network is prefix, and the tail is empty. `frozen`: names of weights above the cut
    that do not learn. `together`: stages above the cut that are read together, the last one being the tap. `images`: at least two different real ones in 0..1. Raises BackboneError if `cut` is no stage
    below the tap.
    """
    trunk = opened.trunk
    network = _without_taps(trunk)
    _without_memory(network)
    classifier = stages_of(network, architecture)[1]
    if classifier is None and tap == CLASSIFIER_INPUT:
        classifier = CLASSIFIER_INPUT  # the small CNN says nothing of its classifier, whose name is this
    looking = None if trunk.looking.filter is None else copy.deepcopy(trunk.looking)
    normalised = Normalisation(trunk.mean.clone(), trunk.std.clone(), trunk.repeat_grey, looking)
    normal = normalised(images)
    if cut == tap:
        features = _Features(Tail(network, tap, classifier, None, together)).eval().requires_grad_(False)
        return Cut(features, _Nothing().eval(), {}, {}, normalised, "")
    calls = Calls(network, normal)
    end = -1 if not cut else _end_of(calls, cut, tap, [one.name for one in opened.taps])
    top = calls.begin[classifier] if tap == CLASSIFIER_INPUT and classifier else calls.end[tap]
    stages = [one.name for one in opened.taps if one.name in calls.end]
    trained = _trained(network, calls, after=end, before=top, stages=stages)
    whole = Tail(copy.deepcopy(network), tap, classifier, None, together)
    prefix, tail, notice = None, None, ""
    if cut:
        prefix, tail = _divided(network, calls, tap, classifier, cut, normal, together)
        if not _agrees(whole, prefix, tail, normal):
            prefix, tail = None, None
            notice = f"{architecture} cannot be cut at {cut}: its frozen part runs with every step, which takes longer."
    tail = tail or whole
    trained = {name: depth for name, depth in trained.items() if name not in frozen}
    for name, weight in tail.network.named_parameters():
        weight.requires_grad_(name in trained)
    trained = {
        name: depth for name, depth in trained.items() if name in dict(tail.network.named_parameters())
    }
    initial = {name: value.detach().clone() for name, value in tail.network.state_dict().items()}
    return Cut(prefix, tail, trained, initial, normalised, notice)


def _without_taps(trunk: Trunk) -> nn.Module:
    """The network of a trunk without the hooks that pool for it."""
    for module in trunk.network.modules():
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            for number, hook in list(hooks.items()):
                cells = getattr(hook, "__closure__", None) or ()
                if any(cell.cell_contents is trunk for cell in cells):
                    del hooks[number]
    return trunk.network


def _without_memory(network: nn.Module) -> None:
    """LeViT, TinyViT and EfficientFormer keep a product of their weights from one answer to the next, which would be that
    of the weights before the last step."""
    for module in network.modules():
        if hasattr(module, REMEMBERED):
            module.register_forward_pre_hook(_forget)


def _forget(module: nn.Module, _inputs: Any) -> None:
    setattr(module, REMEMBERED, {})


def _end_of(calls: Calls, cut: str, tap: str, names: Sequence[str]) -> int:
    below = names[: names.index(tap)] if tap in names else []
    if cut not in below or cut not in calls.end:
        listed = ", ".join(below) or "none"
        raise BackboneError(f"{cut} is no stage below the tap {tap}; these are: {listed}.")
    return calls.end[cut]


def _trained(
    network: nn.Module, calls: Calls, *, after: int, before: int, stages: Sequence[str]
) -> dict[str, int]:
    """The weights between the cut and the tap, each with its number of stages below the topmost."""
    ends = sorted(calls.end[name] for name in stages)
    found: dict[str, int] = {}
    for name, _ in network.named_parameters():
        began = calls.began(name.rpartition(".")[0])
        if after < began < before:
            found[name] = sum(end < began for end in ends)
    top = max(found.values(), default=0)
    return {name: top - stage for name, stage in found.items()}


def _divided(
    network: nn.Module,
    calls: Calls,
    tap: str,
    classifier: str | None,
    cut: str,
    normal: Tensor,
    together: Sequence[str],
) -> tuple[Prefix, Tail]:
    end, handed = calls.end[cut], _Handed()
    below, above = copy.deepcopy(network), network
    around = {cut[:place] for place, letter in enumerate(cut) if letter == "."}
    gone: list[str] = []
    for name in sorted(calls.end, key=lambda name: name.count(".")):
        if not name or name in around or any(name.startswith(f"{other}.") for other in gone):
            continue
        if calls.begin[name] > end:
            _replace(below, name, nn.Identity())
            gone.append(name)
        elif name == cut:
            _replace(above, name, _Given(handed, above.get_submodule(name)))
            gone.append(name)
        elif calls.end[name] <= end and isinstance(calls.outputs[name], Tensor):
            _replace(above, name, _Passed(handed, above.get_submodule(name), calls.outputs[name]))
            gone.append(name)
    tail = Tail(above, tap, classifier, handed, together)
    tail.image = torch.zeros_like(normal[:1])
    for weight in below.parameters():
        weight.requires_grad_(False)
    return Prefix(below, cut).eval(), tail.eval()


@torch.no_grad()
def _agrees(whole: Tail, prefix: Prefix, tail: Tail, images: Tensor) -> bool:
    """Whether the two parts in a row are the whole, up to the rounding of float32."""
    wanted = whole.eval()(images)
    try:
        found = tail(prefix(images))
    except (RuntimeError, ValueError, TypeError, AttributeError, AssertionError, IndexError):
        return False
    if found.shape != wanted.shape:
        return False
    return bool((found - wanted).norm() <= TOLERANCE * wanted.norm())


def _replace(network: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(network.get_submodule(parent), child, module)


def _until_left(network: nn.Module, images: Tensor) -> Tensor:
    try:
        network(images)
    except _Reached as reached:
        output = reached.output
        return output if isinstance(output, Tensor) else output[0]
    raise BackboneError("The forward pass ended before the place where its features are read.")


def _leave_with_output(_module: nn.Module, _inputs: Any, output: Any) -> None:
    raise _Reached(output)


def _leave_with_input(_module: nn.Module, inputs: Any) -> None:
    raise _Reached(inputs[0])
