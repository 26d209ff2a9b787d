"""Pairs of training images mixed into one: MixUp and CutMix, torchvision's, with draws from a generator that is given.

In: a batch of images and their classes. Out: as many mixed images, and the share of every class in each. Cost: one pass
over the batch.

Not covered: maps without height and width; more than two images in one.
"""

from __future__ import annotations

import torch
from jaxtyping import Float32, Int64
from torch import Tensor


def mixed(
    images: Float32[Tensor, "n c h w"],
    labels: Int64[Tensor, " n"],
    *,
    classes: int,
    mixup: float,
    cutmix: float,
    generator: torch.Generator,
) -> tuple[Float32[Tensor, "n c h w"], Float32[Tensor, "n k"]]:
    """MixUp (Zhang et al. 2018) or CutMix (Yun et al. 2019), whichever is drawn where both are above 0.

    `mixup` and `cutmix` are the parameter of the beta distribution of the share; one of them is above 0. Torch's global
    generator stays as it was.
    """
    from torchvision.transforms import v2

    kinds = [v2.MixUp(alpha=mixup, num_classes=classes)] if mixup > 0 else []
    kinds += [v2.CutMix(alpha=cutmix, num_classes=classes)] if cutmix > 0 else []
    seed, choice = torch.randint(2**62, (2,), generator=generator).tolist()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return kinds[choice % len(kinds)](images, labels)
