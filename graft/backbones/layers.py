"""The layers of a network one by one: what "freeze the first N layers" counts.

In: any network, the names of its stages and the size of its input. Out: one `Layer` for each module that holds
parameters of its own, in the order of the forward pass, and from a word (`all`, `none`, a number, a stage) the `Freeze`
that says which parameters stay as they are. Costs one forward pass of one image.

What counts as a layer: a convolution, a linear layer, a normalisation, an embedding: whatever a network's summary
(torchinfo, `model.summary()` of Keras) shows with parameters. A module that holds parameters beside other modules (the
positions of a transformer, the scale of a ConvNeXt block) is a layer where it begins. Activations, pooling, padding and
the input have no parameters and do not count, whereas Keras numbers them, too: "the first 7 layers" of Keras' MobileNet
(input, conv1, conv1_bn, conv1_relu, conv_dw_1, conv_dw_1_bn, conv_dw_1_relu) are the first 4 here. To take a number over
from Keras, count those among its first N that have weights.

Not covered: parameters that two layers share count where they are named first; buffers (the statistics of a batch
normalisation) are no parameters, and whether they move is another setting.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from graft.backbones.taps import CLASSIFIER_INPUT
from graft.errors import BackboneError, SettingsError


@dataclass(frozen=True, slots=True)
class Layer:
    """A module with parameters of its own; `number` counts from 1 in the order of the forward pass, up to the last stage
    those that can be frozen.

    `name`: the module's, empty for the network itself; `kind`: its class; `stage`: the first stage that ends after the
    layer has begun, or empty above the last stage: the old classifier, which a new head replaces. `output`: the shape of
    what it puts out for one image, empty where that is no tensor. `tensors`: the names of its parameters.
    """

    number: int
    name: str
    kind: str
    stage: str
    parameters: int
    output: tuple[int, ...]
    tensors: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Freeze:
    """What stays as it is: `parameters` by name. `cut`: the highest stage that is wholly frozen, or empty.

    `everything`: whether all that leads to the last stage is frozen, so that only the head learns.
    """

    cut: str
    parameters: frozenset[str]
    everything: bool


def layers_of(network: nn.Module, *, stages: Sequence[str], size: int, channels: int) -> list[Layer]:
    """The layers in the order in which one forward pass first comes to them.

    `stages`: names of modules in the order of the forward pass; `head` stands for what goes into the classifier.
    The network reads float images `[n, channels, size, size]`: `channels` is what its first layer wants (3 where a trunk
    repeats grey). Raises BackboneError for a stage that the forward pass does not come to, and for a network that cannot
    run at this size.
    """
    seen = _seen(network, size=size, channels=channels)
    holders = _holders(network)
    order = sorted(holders, key=lambda name: seen.began(name))
    ends = _ends(network, stages, seen, order)
    found = []
    for number, name in enumerate(order, start=1):
        tensors = holders[name]
        found.append(
            Layer(
                number=number,
                name=name,
                kind=type(network.get_submodule(name)).__name__,
                stage=next((stage for stage, end in ends.items() if seen.began(name) < end), ""),
                parameters=sum(weight.numel() for weight in tensors.values()),
                output=seen.shapes.get(name, ()),
                tensors=tuple(tensors),
            )
        )
    return found


def frozen_by(
    freeze: str, layers: Sequence[Layer], stages: Sequence[str], *, given: str | None = None
) -> Freeze:
    """What `--freeze` means: `all`, `none`, the first N layers, or everything up to and including a stage.

    `stages` in the order of the forward pass, those up to the tap: what lies above never runs, and is not counted in N.
    Raises SettingsError for anything else, naming the valid values after what was `given` (default: the option).
    """
    countable = [layer for layer in layers if layer.stage in stages]
    wanted = freeze.strip()
    if wanted in stages:
        below = stages[: stages.index(wanted) + 1]
        frozen = [layer for layer in layers if layer.stage in below]
    elif wanted in ("all", "none"):
        frozen = list(layers) if wanted == "all" else []
    elif wanted.isascii() and wanted.isdigit() and int(wanted) <= len(countable):
        frozen = countable[: int(wanted)]
    else:
        listed = ", ".join(stages) or "it has none"
        where = f"up to {stages[-1]}, which the head reads" if stages else "of this network"
        raise SettingsError(
            f"{given or f'--freeze {freeze}'}: give all, none, how many of the first layers stay as they are (0 to "
            f"{len(countable)}), or a stage {where}: {listed}."
        )
    learning = {layer.stage for layer in layers[len(frozen) :] if layer.stage in stages}
    first = next((place for place, stage in enumerate(stages) if stage in learning), len(stages))
    cut = stages[first - 1] if frozen and first else ""
    names = frozenset(name for layer in frozen for name in layer.tensors)
    return Freeze(cut, names, everything=bool(layers) and not learning)


class _Seen:
    """When each module first began and last ended in one forward pass, and the shape of what it first put out."""

    def __init__(self) -> None:
        self.begin: dict[str, int] = {}
        self.end: dict[str, int] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.clock = 0

    def beginning(self, name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: Any) -> None:
            self.clock += 1
            self.begin.setdefault(name, self.clock)

        return hook

    def ending(self, name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            self.clock += 1
            self.end[name] = self.clock
            first = output[0] if isinstance(output, (tuple, list)) and output else output
            if isinstance(first, Tensor):
                self.shapes.setdefault(name, tuple(first.shape[1:]))

        return hook

    def began(self, name: str) -> int:
        """When the module, or the one around it that is called in its place, first began; late if it never ran."""
        called = name
        while called and called not in self.begin:
            called = called.rpartition(".")[0]
        return self.begin[called] if called or not name else self.clock + 1


def _seen(network: nn.Module, *, size: int, channels: int) -> _Seen:
    seen = _Seen()
    training = [module for module in network.modules() if module.training]
    handles = []
    for name, module in network.named_modules():
        handles.append(module.register_forward_pre_hook(seen.beginning(name)))
        handles.append(module.register_forward_hook(seen.ending(name)))
    weight = next(network.parameters(), torch.empty(0))
    try:
        network.eval()
        with torch.no_grad():
            network(torch.zeros(1, channels, size, size, device=weight.device, dtype=weight.dtype))
    except (RuntimeError, AssertionError, ValueError) as error:
        raise BackboneError(
            f"{type(network).__name__} cannot read {size} x {size} px of {channels} channels: "
            f"{(str(error).splitlines() or ['no reason given'])[0]}. Choose another --size."
        ) from error
    finally:
        for handle in handles:
            handle.remove()
        for module in training:
            module.training = True
    return seen


def _holders(network: nn.Module) -> dict[str, dict[str, Tensor]]:
    """By module, its own parameters by their full names; a shared one where it is named first."""
    holders: dict[str, dict[str, Tensor]] = {}
    for name, weight in network.named_parameters():
        holders.setdefault(name.rpartition(".")[0], {})[name] = weight
    return holders


def _ends(network: nn.Module, stages: Sequence[str], seen: _Seen, order: Sequence[str]) -> dict[str, int]:
    """When each stage is over."""
    ends = {}
    for stage in stages:
        if stage == CLASSIFIER_INPUT:
            ends[stage] = seen.began(_classifier(network, seen, order))
        elif stage in seen.end:
            ends[stage] = seen.end[stage]
        else:
            raise BackboneError(
                f"{type(network).__name__} has no stage called {stage}, or its forward pass does not come to it."
            )
    return ends


def _classifier(network: nn.Module, seen: _Seen, order: Sequence[str]) -> str:
    """What the network itself calls its classifier, or else the last layer that runs."""
    find = getattr(network, "get_classifier", None)
    named = find() if find is not None else None
    candidates = named if isinstance(named, tuple) else (named,)
    ran = [name for name in order if seen.began(name) <= seen.clock]
    known = (name for name, module in network.named_modules() if any(module is one for one in candidates))
    return next((name for name in known if seen.began(name) <= seen.clock), ran[-1] if ran else "")
