"""A small CNN that learns from what a larger network says, as a generator of epoch records.

In: views of the training images, kept in uint8, and what the teacher said of exactly these views (Beyer et al. 2022,
arXiv 2106.05237: the same view for both), the labels, a design of `graft.backbones.scratch`. Out: an `Epoch` after every
pass, and a `Trained` as the generator's return value. The loss is a blend of the cross entropy with the teacher's
softened answers (temperature T, Hinton et al. 2015, arXiv 1503.02531) and with the labels, rare classes counting more. Only mirrorings that keep the
class are made on top of the kept views. AdamW, warm-up, cosine and averaged weights; no row is kept back, because the
teacher's answers leave little to learn by heart. How long it learns is a number of views, not a time.

Cost: three forward passes per view: at least 900 views of 96 px a second and core at width 16 with bfloat16.
Not covered: a teacher asked while the student learns; students that start from ImageNet.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32, Int64, UInt8
from torch import Tensor, nn

from graft.backbones.scratch import ScratchDesign, ScratchNet, build
from graft.compute import Compute
from graft.errors import GraftError
from graft.images.augmentations import Symmetry
from graft.learning.inner import class_weights
from graft.learning.loop import Epoch, at_work, average, kept_share, laid_out, rate_share
from graft.learning.ridge import Criterion
from graft.learning.trained import Trained, calibrated
from graft.learning.watching import Watch


@dataclass(frozen=True, slots=True)
class DistilSettings:
    """`views`: how many are learned from in all; `temperature`: T; `taught`: the teacher's share of the loss, 0 to 1.

    `averaging`: the decay of the averaged weights per step.
    """

    views: int = 40_000
    batch_size: int = 32
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    temperature: float = 2.0
    taught: float = 0.7
    averaging: float = 0.99
    version: int = 1


@dataclass(frozen=True, slots=True, eq=False)
class Taught:
    """What a student learns from: V views of m images and, aligned with them, the teacher's logits and the labels.

    `symmetries`: the mirrorings that change no class.
    """

    views: UInt8[np.ndarray, "m v h w c"]
    said: Float32[np.ndarray, "m v k"]
    targets: Int64[np.ndarray, " m"]
    symmetries: tuple[Symmetry, ...] = ()


def distil(
    taught: Taught,
    *,
    design: ScratchDesign,
    settings: DistilSettings,
    compute: Compute,
    seed: int,
    criterion: Criterion | None = None,
) -> Generator[Epoch, None, Trained]:
    """Train a student and yield a record per epoch, with the score by `criterion`. Raises GraftError when the loss is not finite."""
    images = len(taught.targets)
    epochs = max(1, settings.views // images)
    steps = max(1, round(images / settings.batch_size))
    network = build(design, seed=seed).to(compute.device)
    averaged = copy.deepcopy(network).eval()
    optimizer = _optimizer(network, settings, compute)
    weights = torch.from_numpy(class_weights(taught.targets, design.classes, "root")).to(compute.device)
    step = 0
    for number in range(1, epochs + 1):
        begun = time.monotonic()
        random = np.random.default_rng([seed, number])
        losses, watch = [], Watch(criterion)
        network.train()
        with at_work(compute):
            for rows in np.array_split(random.permutation(images), steps):
                for group in optimizer.param_groups:
                    group["lr"] = settings.learning_rate * rate_share(step, epochs * steps)
                loss = _loss(network, taught, rows, weights, settings, compute, random, watch)
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(network.parameters(), 1.0)
                optimizer.step()
                step += 1
                keep = kept_share(step, settings.averaging)
                average(averaged.state_dict().values(), network.state_dict().values(), keep=keep)
                losses.append(float(loss.detach()))
        if not math.isfinite(sum(losses)):
            raise GraftError(
                f"The student's loss in epoch {number} is not a finite number. Look for damaged images with graft check."
            )
        rate = float(optimizer.param_groups[0]["lr"])
        loss_of_all, seconds = float(np.mean(losses)), time.monotonic() - begun
        yield Epoch(number, epochs, loss_of_all, math.nan, math.nan, rate, seconds, *watch.judged())
    return Trained(design, calibrated(averaged, 1.0), 1.0, epochs, epochs, "epochs", epochs)


def turned(
    images: UInt8[np.ndarray, "b h w c"], symmetries: Sequence[Symmetry], random: np.random.Generator
) -> UInt8[np.ndarray, "b h w c"]:
    """Each of the mirrorings for half of the images."""
    made = images.copy()
    for symmetry in symmetries:
        chosen = random.random(len(made)) < 0.5
        some = made[chosen]
        if symmetry == "mirror":
            made[chosen] = some[:, :, ::-1]
        elif symmetry == "upside_down":
            made[chosen] = some[:, ::-1]
        else:
            made[chosen] = some.swapaxes(1, 2)
    return made


def _optimizer(network: ScratchNet, settings: DistilSettings, compute: Compute) -> torch.optim.AdamW:
    """No decay for biases and normalisation."""
    decayed = [weight for weight in network.parameters() if weight.ndim > 1]
    others = [weight for weight in network.parameters() if weight.ndim <= 1]
    groups = [
        {"params": decayed, "weight_decay": settings.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, fused=compute.device != "mps")


def _loss(
    network: ScratchNet,
    taught: Taught,
    rows: Int64[np.ndarray, " b"],
    weights: Float32[Tensor, " k"],
    settings: DistilSettings,
    compute: Compute,
    random: np.random.Generator,
    watch: Watch,
) -> Tensor:
    """The blend of one batch, each image in one of its views."""
    drawn = random.integers(taught.views.shape[1], size=len(rows))
    batch = turned(np.asarray(taught.views[rows, drawn]), taught.symmetries, random)
    images = torch.from_numpy(batch).permute(0, 3, 1, 2).float() / 255
    images = laid_out(images, compute)
    said = torch.from_numpy(taught.said[rows, drawn]).to(compute.device)
    labels = torch.from_numpy(taught.targets[rows]).to(compute.device)
    with torch.autocast(compute.device, torch.bfloat16, enabled=compute.bf16):
        logits = network(images)
    watch.see(logits, labels)
    logits, softness = logits.float(), settings.temperature
    wanted = torch.softmax(said / softness, dim=1)
    soft = nn.functional.cross_entropy(logits / softness, wanted) * softness**2
    hard = nn.functional.cross_entropy(logits, labels, weights)
    return settings.taught * soft + (1 - settings.taught) * hard
