"""Opening a backbone: from a row of the catalogue and its weights to a trunk in eval mode.

Costs the import of torch and timm (about 3 s) and a second for the network. A study that finds the trunk's graph in
the cache does not come here at all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from graft.backbones.catalogue import Entry
from graft.backbones.filters import spread_of
from graft.backbones.inputs import Look
from graft.backbones.scratch import ScratchDesign, ScratchNet
from graft.backbones.taps import Tap, Trunk, further_channel, grey_first_convolution, stages_of
from graft.backbones.together import TOGETHER, Together
from graft.backbones.weights import build
from graft.errors import BackboneError

PLAIN_CONVOLUTIONS = ("Conv2d", "Conv2dSame")
# Of the mean of the colour kernels reads the edges beside the image. Frozen macro-F1 (log loss) of a MobileNetV1 on
# hymenoptera, without edges 0.950 (0.160): a quarter 0.942 (0.168), half 0.935 (0.193), all 0.909 (0.227), their sum
# 0.877 (0.290); on magnetic_tile, 0.779 (0.764) without: 0.770 (0.756), 0.730 (0.810), 0.743 (0.884), 0.686 (1.083). What
# the network never saw disturbs it while it is frozen; fine-tuning may make more of it.
EDGE_SHARE = 0.25


@dataclass(frozen=True, slots=True)
class Opened:
    """A trunk in eval mode, its taps in the order of the forward pass, and whether logits follow them."""

    trunk: Trunk
    taps: tuple[Tap, ...]
    has_logits: bool


def open_backbone(
    entry: Entry, state: Mapping[str, Tensor], *, channels: int, size: int, look: Look = "plain"
) -> Opened:
    """The network of `entry` with `state`, reading uint8 `[n, size, size, channels]` through the filters of `look`.

    With one channel the first convolution is folded where it can be found; elsewhere grey is repeated inside. Edges
    alone come as grey; beside the image they get a kernel of their own. Raises BackboneError if the weights do not fit,
    the network cannot run at this size, or its first convolution cannot read a further channel.
    """
    network = build(entry)
    _load(network, state, entry.name)
    return tapped(network.eval(), entry, channels=channels, size=size, look=look)


def tapped(network: nn.Module, entry: Entry, *, channels: int, size: int, look: Look = "plain") -> Opened:
    """The trunk of an already loaded network, whose first convolution is adapted to what it will see."""
    modules, classifier_input = stages_of(network, entry.architecture)
    mean, std = _adapted(network, entry, channels=channels, look=look)
    trunk = Trunk(
        network,
        modules,
        classifier_input=classifier_input,
        mean=mean,
        std=std,
        channels=channels,
        classifier=_has_classifier(network, classifier_input),
        look=look,
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


def read_together(opened: Opened, stages: Sequence[str], *, size: int) -> Opened:
    """The same trunk with one tap more behind the others: these stages, read together (`graft.backbones.together`).

    `stages`: names of its taps in order. The trunk is changed by this.
    """
    trunk = opened.trunk
    trunk.together = Together(trunk.network, stages)
    with torch.inference_mode():
        rows = trunk(torch.zeros((1, size, size, trunk.channels), dtype=torch.uint8))[len(opened.taps)]
    return replace(opened, taps=(*opened.taps, Tap(TOGETHER, len(opened.taps), rows.shape[1])))


def _adapted(
    network: nn.Module, entry: Entry, *, channels: int, look: Look
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Adapt the first convolution, and say by what mean and deviation each channel that it reads is normalised.

    Edges alone come as a grey photo does. With the mean and deviation of edges instead, the frozen macro-F1 of a
    MobileNetV1 was lower: 0.831 for 0.844 (hymenoptera), 0.665 for 0.746 (magnetic_tile).
    """
    name = _first_convolution(network)
    mean, std = tuple(entry.input.mean), tuple(entry.input.std)
    alone, beside = look in ("edges", "thin"), look.startswith("plain+")
    if beside and name is None:
        raise BackboneError(
            f"The first layer of {entry.name} cannot read edges beside the image, because it is not one plain "
            "convolution. Use --input edges or thin (edges alone), or choose another backbone (graft models)."
        )
    kernel = None if name is None or not beside else _mean_kernel(network, name)
    if name is not None and (channels == 1 or alone):
        grey_first_convolution(network, name, mean=mean, std=std)
        mean, std = mean[:1], std[:1]
    if name is not None and kernel is not None:
        further_channel(network, name, kernel=EDGE_SHARE * kernel, place=len(mean))
        mean, std = (*mean, spread_of(look).mean), (*std, spread_of(look).std)
    return mean, std


def _mean_kernel(network: nn.Module, name: str) -> Float[Tensor, "o y x"]:
    weight = network.get_submodule(name).weight
    assert isinstance(weight, Tensor)
    return weight.detach().mean(dim=1)


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
