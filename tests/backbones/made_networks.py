"""Networks of many families with random weights that leave nothing at its neutral value."""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import nn

from graft.backbones.catalogue import Arguments, Entry, InputSpec
from graft.backbones.opening import Opened, tapped
from graft.backbones.weights import build

Network = str
Normalisation = tuple[tuple[float, ...], tuple[float, ...]]
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
SMALL = (("img_size", 64),)
PLAIN = (("aux_logits", False), ("init_weights", False))
TORCHVISION = ("alexnet", "squeezenet1_1", "googlenet", "inception_v3")

torch.set_num_threads(
    1
)  # threads that wait for each other on a busy machine cost more than they give at this size

# The smallest input that the architecture allows, or nearly so.
SIZES: dict[Network, int] = {
    "alexnet": 64,
    "convnext_atto": 64,
    "edgenext_xx_small": 64,
    "efficientnet_b0": 64,
    "fastvit_t8": 64,
    "googlenet": 64,
    "inception_v3": 80,
    "lcnet_050": 64,
    "levit_128s": 64,
    "mobilenetv2_100": 64,
    "mobilenetv3_small_050": 64,
    "mobilenetv4_conv_small_050": 64,
    "regnetx_002": 64,
    "resnet18": 64,
    "resnetv2_50x1_bit": 64,
    "squeezenet1_1": 64,
    "swin_tiny_patch4_window7_224": 96,
    "vgg11": 64,
    "vit_tiny_patch16_224": 64,
    "xcit_nano_12_p16_224": 64,
}
ARGUMENTS: dict[Network, Arguments] = {
    "googlenet": PLAIN,
    "inception_v3": PLAIN,
    "levit_128s": SMALL,
    "swin_tiny_patch4_window7_224": (("img_size", 96), ("embed_dim", 24)),
    "vit_tiny_patch16_224": SMALL,
}


def made_entry(
    architecture: Network, *, normalisation: Normalisation = IMAGENET, arguments: Arguments = ()
) -> Entry:
    """A row for an architecture, as a weights folder would give it."""
    mean, std = normalisation
    return Entry(
        name=f"{architecture}.made",
        library="torchvision" if architecture in TORCHVISION else "timm",
        architecture=architecture,
        arguments=ARGUMENTS.get(architecture, ()) + arguments,
        family=architecture,
        pretraining="none",
        source="random weights",
        licence="Apache-2.0",
        parameters=None,
        bytes=None,
        gmacs=None,
        input=InputSpec(SIZES[architecture], mean, std, "bicubic", 0.875),
        top1=None,
        top5=None,
        published="",
        stages=(),
    )


@functools.cache
def opened(architecture: Network) -> Opened:
    """The trunk with three channels. The same object for every test, so none may change it."""
    entry = made_entry(architecture)
    return tapped(made(entry), entry, channels=3, size=SIZES[architecture])


def made(entry: Entry) -> nn.Module:
    """The network of a row in eval mode, always with the same weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = build(entry).eval()
    unsettle(network)
    return network


@torch.no_grad()
def unsettle(network: nn.Module) -> None:
    """Statistics, gains and offsets as training leaves them: a fresh norm or a fresh layer scale does nearly nothing."""
    draw = torch.Generator().manual_seed(1)
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_(0.0, 0.1, generator=draw)
            module.running_var.uniform_(0.5, 1.5, generator=draw)
        if isinstance(module, (nn.modules.batchnorm._BatchNorm, nn.LayerNorm)) and module.weight is not None:
            module.weight.uniform_(0.7, 1.3, generator=draw)
            module.bias.normal_(0.0, 0.1, generator=draw)
    for name, parameter in network.named_parameters():
        if name.endswith("bias") and not bool(parameter.any()):
            parameter.normal_(0.0, 0.02, generator=draw)
        if name.rpartition(".")[2].startswith("gamma"):
            parameter.uniform_(0.1, 0.3, generator=draw)


def noise(count: int, size: int, *, channels: int = 3) -> np.ndarray:
    """Images of random blocks, each of another brightness: uint8 `[count, size, size, channels]`."""
    random = np.random.default_rng(count + size + channels)
    blocks = random.integers(0, 256, (count, size // 8, size // 8, channels))
    images = blocks.repeat(8, axis=1).repeat(8, axis=2) + random.integers(
        -20, 21, (count, size, size, channels)
    )
    return np.clip(images * np.linspace(0.4, 1.0, count)[:, None, None, None], 0, 255).astype(np.uint8)
