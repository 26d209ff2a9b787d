"""Training a small network from random weights, as a generator of epoch records.

In: the pixels of all images, the rows that may be learned from, the design and the settings. Out: an `Epoch` after
every pass, and at the end (the generator's return value) a `Trained` with the best weights. Progress, budget and
printing are loops around it. A part of the rows, grouped and stratified, is kept back to find the best epoch and the
temperature; no row outside `rows` is ever read.

Cost: about 400 to 600 images of 96 px a second and core with bfloat16, views included. The number of epochs follows
from a number of multiply-adds and of steps, not from the clock (`planned_epochs`): the cosine really ends, about half
a minute per fold of 1,000 images on two cores, and the same data get the same training on every machine.

Not covered: starting from pre-trained weights, partial freezing (`graft.learning.finetune`). The result is a function
of the seed, the number of threads and the processor.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Generator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32, Int64, UInt8
from torch import Tensor, nn

from graft.backbones.scratch import ScratchDesign, ScratchNet, build
from graft.compute import Compute
from graft.errors import GraftError
from graft.images.views import Augmentation, suited, views
from graft.learning.inner import Balance, class_weights, kept_back
from graft.learning.loop import Epoch as Epoch
from graft.learning.loop import Stopped, average, best_temperature, kept_share, rate_share, threads


@dataclass(frozen=True, slots=True)
class TrainingSettings:
    """How to train. `epochs` is the upper limit; `multiply_adds` (forward, in all epochs) and `steps` are two more.

    `patience`: epochs without a better log loss on the kept-back part before it stops. `balance`: `root` weights a
    class with the inverse square root of its frequency. `averaging`: decay of the averaged weights per step.
    `validation_share`: the part of the rows kept back; with 0 all rows are learned from for exactly `epochs` epochs,
    and `temperature` is taken as given instead of fitted.
    """

    epochs: int = 300
    multiply_adds: float = 0.9e12
    steps: int = 1_500
    patience: int = 40
    batch_size: int = 16
    learning_rate: float = 2e-3
    weight_decay: float = 0.02
    label_smoothing: float = 0.1
    averaging: float = 0.99
    balance: Balance = "root"
    validation_share: float = 0.15
    temperature: float = 1.0
    version: int = 1


@dataclass(frozen=True, slots=True, eq=False)
class Trained:
    """The best weights; `network` opens them. The temperature is already part of the head's weights."""

    design: ScratchDesign
    state: dict[str, Tensor]
    temperature: float
    best_epoch: int
    epochs_run: int
    stopped: Stopped

    def network(self) -> ScratchNet:
        """The trained network in eval mode; the softmax of its output is calibrated."""
        network = build(self.design, seed=0)
        network.load_state_dict(self.state)
        return network.eval()


@dataclass(frozen=True, slots=True, eq=False)
class _Data:
    """What is learned from: `learn` are the rows, `weights` the losses' weights per class."""

    pixels: UInt8[np.ndarray, "n h w c"]
    targets: Int64[np.ndarray, " n"]
    learn: Int64[np.ndarray, " m"]
    weights: Float32[np.ndarray, " k"]

    def steps(self, settings: TrainingSettings) -> int:
        """Batches in an epoch."""
        return math.ceil(len(self.learn) / settings.batch_size)


@dataclass(slots=True)
class _Run:
    """Everything that changes while training. `scale` multiplies the learning rate; `step` counts the batches."""

    network: ScratchNet
    averaged: ScratchNet
    optimizer: torch.optim.AdamW
    step: int = 0
    scale: float = 1.0


def planned_epochs(design: ScratchDesign, images: int, settings: TrainingSettings) -> int:
    """How many epochs the multiply-adds and the steps allow, 1 to `settings.epochs`.

    At least 30 up to 2,000 images (12 were far too few for 101 classes), fewer by the root of their number beyond.
    """
    images = max(images, 1)
    affordable = int(settings.multiply_adds / (design.multiply_adds * images))
    wanted = settings.steps // math.ceil(images / settings.batch_size)
    least = round(30 * min(1.0, math.sqrt(2_000 / images)))
    return max(1, min(settings.epochs, max(least, min(affordable, wanted))))


def train(
    pixels: UInt8[np.ndarray, "n h w c"],
    targets: Int64[np.ndarray, " n"],
    rows: Int64[np.ndarray, " m"],
    *,
    groups: Int64[np.ndarray, " n"],
    design: ScratchDesign,
    settings: TrainingSettings,
    compute: Compute,
    seed: int,
    deadline_seconds: float | None = None,
    augmentation: Augmentation | None = None,
) -> Generator[Epoch, None, Trained]:
    """Train on `rows` and yield a record per epoch; the generator's return value is the result.

    Stops when the log loss of the kept-back part has not improved for `settings.patience` epochs, when the planned
    epochs are over, or at the first batch after `deadline_seconds` (from the first `next`), but never before one epoch.
    Raises GraftError when the loss is not finite even at half the learning rate.
    """
    started = time.monotonic()
    learn, check = kept_back(targets, groups, rows, share=settings.validation_share, seed=seed)
    augmentation = augmentation or suited(pixels, targets, learn)
    data = _Data(pixels, targets, learn, class_weights(targets[learn], design.classes, settings.balance))
    fixed = settings.validation_share == 0
    planned = settings.epochs if fixed else planned_epochs(design, len(learn), settings)
    run = _start(design, settings, compute, seed)
    good = best = copy.deepcopy(run)
    best_loss, best_epoch, number = math.inf, 0, 0
    stopped: Stopped = "epochs"
    while number < planned:
        begun = time.monotonic()
        until = math.inf if deadline_seconds is None or number == 0 else started + deadline_seconds
        total, drawn = planned * data.steps(settings), seed * 1_000_003 + number
        with threads(compute):
            loss = _epoch(run, data, augmentation, settings, compute, total=total, seed=drawn, until=until)
        if loss is None:
            stopped = "deadline"
            break
        validation_loss, accuracy = _check(run.averaged, data, check, compute)
        if not math.isfinite(loss) or (len(check) and not math.isfinite(validation_loss)):
            run = _gentler(good, run, number + 1)
            continue
        number, good = number + 1, copy.deepcopy(run)
        if not len(check) or validation_loss < best_loss:
            best, best_loss, best_epoch = good, validation_loss, number
        rate = run.optimizer.param_groups[0]["lr"]
        yield Epoch(number, planned, loss, validation_loss, accuracy, rate, time.monotonic() - begun)
        if number - best_epoch >= settings.patience:
            stopped = "patience"
            break
    temperature = _temperature(best.averaged, data, check, compute) if len(check) else settings.temperature
    return Trained(design, _calibrated(best.averaged, temperature), temperature, best_epoch, number, stopped)


def predict(
    trained: Trained,
    pixels: UInt8[np.ndarray, "n h w c"],
    rows: Int64[np.ndarray, " m"],
    *,
    compute: Compute,
) -> Float32[np.ndarray, "m k"]:
    """Calibrated probabilities of the classes for `rows`, in float32."""
    network = trained.network().to(compute.device)
    return torch.softmax(_logits(network, pixels, rows, compute), dim=1).numpy()


def _start(design: ScratchDesign, settings: TrainingSettings, compute: Compute, seed: int) -> _Run:
    """The untrained network, its average and the optimiser (no decay for biases and normalisation)."""
    network = build(design, seed=seed).to(compute.device)
    decayed = [weight for weight in network.parameters() if weight.ndim > 1]
    others = [weight for weight in network.parameters() if weight.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [
            {"params": decayed, "weight_decay": settings.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ],
        lr=settings.learning_rate,
    )
    return _Run(network, copy.deepcopy(network).eval(), optimizer)


def _epoch(
    run: _Run,
    data: _Data,
    augmentation: Augmentation,
    settings: TrainingSettings,
    compute: Compute,
    *,
    total: int,
    seed: int,
    until: float,
) -> float | None:
    """One pass over the rows to learn from: the mean loss, not finite if a batch's was not, None if time was over."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.from_numpy(data.weights).to(compute.device)
    order = data.learn[torch.randperm(len(data.learn), generator=generator).numpy()]
    run.network.train()
    losses = []
    for rows in np.array_split(order, data.steps(settings)):
        if time.monotonic() > until:
            return None
        _set_rate(run, settings, total)
        images = torch.from_numpy(data.pixels[rows]).permute(0, 3, 1, 2)
        batch = views(images, augmentation, generator=generator).to(
            compute.device, memory_format=torch.channels_last
        )
        labels = torch.from_numpy(data.targets[rows]).to(compute.device)
        with torch.autocast(compute.device, torch.bfloat16, enabled=compute.bf16):
            logits = run.network(batch)
        loss = nn.functional.cross_entropy(
            logits.float(), labels, weights, label_smoothing=settings.label_smoothing
        )
        losses.append(float(loss.detach()))
        if not math.isfinite(losses[-1]):
            return math.nan
        _step(run, loss, settings)
    return float(np.mean(losses))


def _set_rate(run: _Run, settings: TrainingSettings, total: int) -> None:
    for group in run.optimizer.param_groups:
        group["lr"] = settings.learning_rate * run.scale * rate_share(run.step, total)


def _step(run: _Run, loss: Tensor, settings: TrainingSettings) -> None:
    """One step of the optimiser and of the average, which forgets faster at the beginning."""
    run.optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(run.network.parameters(), 1.0)
    run.optimizer.step()
    run.step += 1
    keep = kept_share(run.step, settings.averaging)
    average(run.averaged.state_dict().values(), run.network.state_dict().values(), keep=keep)


def _gentler(good: _Run, run: _Run, epoch: int) -> _Run:
    """The state before the epoch that failed, with half the learning rate; a second failure is an error."""
    if run.scale < 1:
        raise GraftError(
            f"Training from scratch failed: the loss of epoch {epoch} is not a finite number, even with half the "
            "learning rate. Leave this candidate out with --only frozen, or look for damaged images with graft check."
        )
    again = copy.deepcopy(good)
    again.scale = 0.5
    return again


def _logits(
    network: ScratchNet,
    pixels: UInt8[np.ndarray, "n h w c"],
    rows: Int64[np.ndarray, " m"],
    compute: Compute,
) -> Float32[Tensor, "m k"]:
    """What the network says about `rows` in eval mode and float32."""
    parts = [torch.empty(0, network.head.out_features)]
    with torch.inference_mode(), threads(compute):
        for some in np.array_split(rows, max(1, math.ceil(len(rows) / 64))):
            images = torch.from_numpy(pixels[some]).permute(0, 3, 1, 2).to(compute.device)
            parts.append(network(images.float() / 255).cpu())
    return torch.cat(parts)


def _check(
    network: ScratchNet, data: _Data, check: Int64[np.ndarray, " b"], compute: Compute
) -> tuple[float, float]:
    """Log loss and accuracy on the rows that were kept back; NaN where there are none."""
    if not len(check):
        return math.nan, math.nan
    logits = _logits(network, data.pixels, check, compute)
    labels = torch.from_numpy(data.targets[check])
    loss = nn.functional.cross_entropy(logits, labels)
    return float(loss), float((logits.argmax(1) == labels).float().mean())


def _temperature(network: ScratchNet, data: _Data, check: Int64[np.ndarray, " b"], compute: Compute) -> float:
    """What the logits are divided by, from the kept-back rows."""
    logits = _logits(network, data.pixels, check, compute)
    return best_temperature(logits, torch.from_numpy(data.targets[check]))


def _calibrated(network: ScratchNet, temperature: float) -> dict[str, Tensor]:
    """The weights on the CPU, with the temperature divided out of the head."""
    state = {name: value.detach().cpu().clone() for name, value in network.state_dict().items()}
    state["head.weight"] /= temperature
    state["head.bias"] /= temperature
    return state
