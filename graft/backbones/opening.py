"""Opening a backbone: from a row of the catalogue and its weights to a trunk in eval mode.

Costs the import of torch and timm (about 3 s) and a second for the network. A study that finds the trunk's graph in
the cache does not come here at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from graft.backbones.catalogue import Entry
from graft.backbones.scratch import ScratchDesign, ScratchNet
from graft.backbones.taps import Tap, Trunk, grey_first_convolution, stages_of
from graft.backbones.weights import build
from graft.errors import BackboneError

PLAIN_CONVOLUTIONS = ("Conv2d", "Conv2dSame")


@dataclass(frozen=True, slots=True)
class Opened:
    """A trunk in eval mode, its taps in the order of the forward pass, and whether logits follow them."""

    trunk: Trunk
    taps: tuple[Tap, ...]
    has_logits: bool


def open_backbone(entry: Entry, state: Mapping[str, Tensor], *, channels: int, size: int) -> Opened:
    """The network of `entry` with `state`, reading uint8 `[n, size, size, channels]`.

    With one channel the first convolution is folded where it can be found; elsewhere grey is repeated inside.
    Raises BackboneError if the weights do not fit or the network cannot run at this size.
    """
    network = build(entry)
    _load(network, state, entry.name)
    return tapped(network.eval(), entry, channels=channels, size=size)


def tapped(network: nn.Module, entry: Entry, *, channels: int, size: int) -> Opened:
    """The trunk of an already loaded network."""
    modules, classifier_input = stages_of(network, entry.architecture)
    mean, std = entry.input.mean, entry.input.std
    if channels == 1 and _fold_grey(network, entry):
        mean, std = mean[:1], std[:1]
    trunk = Trunk(
        network,
        modules,
        classifier_input=classifier_input,
        mean=mean,
        std=std,
        channels=channels,
        classifier=_has_classifier(network, classifier_input),
    ).eval()
    try:
        features = trunk.tap_names(size)
    except (RuntimeError, AssertionError, ValueError) as error:
        raise BackboneError(
            f"{entry.name} cannot read {size} x {size} px: {str(error).splitlines()[0]}. Leave --size out, or "
            "choose another backbone (graft models)."
        ) from error
    if not features:
        raise BackboneError(
            f"{entry.name} shows no place to read features from; choose another (graft models)."
        )
    trunk.kept = tuple(features)
    taps = tuple(Tap(name, index, width) for index, (name, width) in enumerate(features.items()))
    return Opened(trunk, taps, trunk.classifier)


def open_scratch(network: ScratchNet, design: ScratchDesign) -> Opened:
    """The trunk of the small CNN, which reads images in 0..1 and normalises itself; its last tap feeds its head."""
    channels = design.channels
    trunk = Trunk(
        network.eval(),
        [f"stages.{index}" for index in range(len(network.stages))],
        classifier_input="head",
        mean=(0.0,) * channels,
        std=(1.0,) * channels,
        channels=channels,
        classifier=False,
    ).eval()
    features = trunk.tap_names(design.size)
    trunk.kept = tuple(features)
    return Opened(
        trunk, tuple(Tap(name, index, width) for index, (name, width) in enumerate(features.items())), False
    )


def _fold_grey(network: nn.Module, entry: Entry) -> bool:
    name = _first_convolution(network)
    if name is None:
        return False
    grey_first_convolution(network, name, mean=entry.input.mean, std=entry.input.std)
    return True


def _first_convolution(network: nn.Module) -> str | None:
    """The only convolution that reads the image, as timm names it, or for torchvision the first one there is.

    None if it cannot be folded: several read the image, the network mixes the channels before it, or the kernel is
    not what is stored (weight standardisation would be computed over fewer channels).
    """
    if getattr(network, "transform_input", False):
        return None
    known = getattr(network, "pretrained_cfg", None)
    if known is not None:
        name = known.get("first_conv")
        if not isinstance(name, str) or name not in dict(network.named_modules()):
            return None
    else:
        name = next((key for key, module in network.named_modules() if isinstance(module, nn.Conv2d)), None)
    if name is None:
        return None
    module = network.get_submodule(name)
    plain = type(module).__name__ in PLAIN_CONVOLUTIONS and module.in_channels == 3 and module.groups == 1
    return name if plain else None


def _has_classifier(network: nn.Module, classifier: str | None) -> bool:
    if classifier is None:
        return False
    return not isinstance(network.get_submodule(classifier), nn.Identity)


def _load(network: nn.Module, state: Mapping[str, Tensor], name: str) -> None:
    own = network.state_dict()
    missing = sorted(set(own) - set(state))
    extra = sorted(set(state) - set(own))
    odd = sorted(key for key in set(own) & set(state) if own[key].shape != state[key].shape)
    missing = [key for key in missing if not key.endswith("num_batches_tracked")]
    if missing or extra or odd:
        listed = ", ".join((missing + extra + odd)[:4])
        raise BackboneError(
            f"The weights of {name} do not fit its network: {len(missing)} tensors missing, {len(extra)} unknown, "
            f"{len(odd)} of another shape ({listed}). Check the architecture and its arguments in weights.json."
        )
    with torch.no_grad():
        network.load_state_dict(dict(state), strict=False)
