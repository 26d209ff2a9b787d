"""Training a small network from random weights, as a generator of epoch records.

In: the pixels of all images, the rows that may be learned from, the design and the settings. Out: an `Epoch` after
every pass, and at the end (the generator's return value) a `Trained` with the best weights. Progress, budget and
printing are loops around it. A part of the rows, grouped and stratified, is kept back to find the best epoch and the
temperature; no row outside `rows` is ever read.

Cost: about 600 images of 96 px a second and core with bfloat16, a sixth of it for the views. The number of epochs
follows from a number of multiply-adds and of steps, not from the clock (`planned_epochs`): the cosine really ends, and
the same data get the same training on every machine.

Not covered: starting from pre-trained weights, partial freezing (`graft.learning.finetune`). The result is a function
of the seed, the number of threads and the processor.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Generator
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64, UInt8
from torch import Tensor, nn

from graft.backbones.scratch import ScratchDesign, ScratchNet, build
from graft.compute import Compute
from graft.errors import GraftError
from graft.images.views import Augmentation, suited, views
from graft.learning.inner import class_weights, drawn, even_weights, kept_back, log_prior
from graft.learning.loop import (
    TAUGHT,
    Stopped,
    at_work,
    average,
    best_temperature,
    kept_share,
    laid_out,
    rate_share,
    taught,
)
from graft.learning.loop import Epoch as Epoch
from graft.learning.mixing import mixed
from graft.learning.ridge import Criterion
from graft.learning.scratch_settings import TrainingSettings as TrainingSettings
from graft.learning.scratch_settings import planned_epochs as planned_epochs
from graft.learning.scratch_settings import waiting_epochs
from graft.learning.trained import Trained as Trained
from graft.learning.trained import calibrated, logits_of
from graft.learning.trained import predict as predict
from graft.learning.watching import Watch, judged


@dataclass(frozen=True, slots=True, eq=False)
class _Lesson:
    """What is learned from, and how: `learn` and `check` are rows, `weights` and `prior` the loss's, per class."""

    pixels: UInt8[np.ndarray, "n h w c"]
    targets: Int64[np.ndarray, " n"]
    learn: Int64[np.ndarray, " m"]
    check: Int64[np.ndarray, " b"]
    weights: Float32[Tensor, " k"]
    prior: Float32[Tensor, " k"]
    augmentation: Augmentation
    settings: TrainingSettings
    compute: Compute
    planned: int
    criterion: Criterion | None
    teacher: ScratchNet | None = None

    @property
    def steps(self) -> int:
        """Batches in an epoch."""
        return math.ceil(len(self.learn) / self.settings.batch_size)


@dataclass(slots=True)
class _Run:
    """Everything that changes while training. `scale` multiplies the learning rate; `step` counts the batches."""

    network: ScratchNet
    averaged: ScratchNet
    optimizer: torch.optim.AdamW
    step: int = 0
    scale: float = 1.0


@dataclass(slots=True)
class _Generation:
    """What became of one generation: the averaged network that is kept, its log loss, and when it was reached.

    `lowest` are the log losses of the rows in the epoch with the lowest mean, `lowest_epoch`.
    """

    averaged: ScratchNet
    loss: float = math.inf
    best_epoch: int = 0
    lowest: Float[np.ndarray, " b"] | None = None
    lowest_epoch: int = 0
    epochs_run: int = 0
    stopped: Stopped = "epochs"
    before: int = field(default=0, kw_only=True)

    def seen(self, averaged: ScratchNet, losses: Float[np.ndarray, " b"]) -> None:
        """Keep the network of this epoch if no kept-back rows speak against it.

        That is the last one whose log loss is above the lowest by less than a standard error of the difference: the
        rate has fallen and the average is longer then, and a few rows must not end a training by chance.
        """
        lower = self.lowest is None or not len(losses) or losses.mean() < self.lowest.mean()
        if lower:
            self.lowest, self.lowest_epoch = losses, self.epochs_run
        assert self.lowest is not None
        worse = losses - self.lowest
        if lower or worse.mean() <= worse.std() / math.sqrt(len(worse)):
            self.averaged, self.best_epoch = averaged, self.epochs_run
            self.loss = float(losses.mean()) if len(losses) else math.nan


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
    criterion: Criterion | None = None,
) -> Generator[Epoch, None, Trained]:
    """Train on `rows` and yield a record per epoch, with the score by `criterion`; the return value is the result.

    A generation stops when the log loss of the kept-back part has not improved for so many epochs (see
    `waiting_epochs`), when the planned epochs are over, or at the first batch after `deadline_seconds` (from the first
    `next`), but the first one never before one epoch. Of two generations the one with the lower log loss is kept, the
    second where nothing was kept back. Raises GraftError when the loss is not finite even at half the learning rate.
    """
    until = math.inf if deadline_seconds is None else time.monotonic() + deadline_seconds
    learn, check = kept_back(targets, groups, rows, share=settings.validation_share, seed=seed)
    lesson = _lesson(pixels, targets, learn, check, design, settings, compute, augmentation, criterion)
    best: _Generation | None = None
    kept, number = 1, 0
    for generation in range(1, settings.generations + 1):
        left = settings.generations - generation
        work = _generation(
            lesson, design, seed=seed + 7_919 * (generation - 1), until=until, before=number, left=left
        )
        found = yield from work
        number += found.epochs_run
        if best is None or (found.epochs_run and (not len(check) or found.loss < best.loss)):
            best, kept = found, generation
        if found.stopped == "deadline":
            break
        lesson = replace(lesson, teacher=found.averaged)
    assert best is not None
    temperature = _temperature(best.averaged, lesson) if len(check) else settings.temperature
    return Trained(
        design,
        calibrated(best.averaged, temperature),
        temperature,
        best.before + best.best_epoch,
        number,
        found.stopped,
        best.best_epoch,
        kept,
    )


def _lesson(
    pixels: UInt8[np.ndarray, "n h w c"],
    targets: Int64[np.ndarray, " n"],
    learn: Int64[np.ndarray, " m"],
    check: Int64[np.ndarray, " b"],
    design: ScratchDesign,
    settings: TrainingSettings,
    compute: Compute,
    augmentation: Augmentation | None,
    criterion: Criterion | None,
) -> _Lesson:
    labels, classes = targets[learn], design.classes
    fixed = settings.validation_share == 0
    return _Lesson(
        pixels,
        targets,
        learn,
        check,
        torch.from_numpy(class_weights(labels, classes, settings.balance)).to(compute.device),
        torch.from_numpy(log_prior(labels, classes, settings.balance)).to(compute.device),
        augmentation or suited(pixels, targets, learn),
        settings,
        compute,
        settings.epochs if fixed else planned_epochs(design, len(learn), settings),
        criterion,
    )


def _generation(
    lesson: _Lesson, design: ScratchDesign, *, seed: int, until: float, before: int, left: int
) -> Generator[Epoch, None, _Generation]:
    """Train one network; `before`: epochs of earlier generations, `left`: generations still to come."""
    run = _start(design, lesson.settings, lesson.compute, seed)
    good, found = copy.deepcopy(run), _Generation(run.averaged, before=before)
    waiting = waiting_epochs(lesson.planned, lesson.settings)
    while found.epochs_run < lesson.planned:
        begun, first = time.monotonic(), before + found.epochs_run == 0
        drawn, watch = seed * 1_000_003 + found.epochs_run, Watch(lesson.criterion)
        with at_work(lesson.compute):
            loss = _epoch(run, lesson, watch, seed=drawn, until=math.inf if first else until)
        if loss is None:
            found.stopped = "deadline"
            break
        losses, accuracy, score = _check(run.averaged, lesson)
        if not math.isfinite(loss) or not np.isfinite(losses).all():
            run = _gentler(good, run, found.epochs_run + 1)
            continue
        found.epochs_run, good = found.epochs_run + 1, copy.deepcopy(run)
        found.seen(good.averaged, losses)
        validation_loss = float(losses.mean()) if len(losses) else math.nan
        rate, planned = run.optimizer.param_groups[0]["lr"], before + lesson.planned * (1 + left)
        number, seconds = before + found.epochs_run, time.monotonic() - begun
        yield Epoch(
            *(number, planned, loss, validation_loss, accuracy, rate, seconds),
            *watch.judged(),
            validation_score=score,
        )
        if found.epochs_run - found.lowest_epoch >= waiting:
            found.stopped = "patience"
            break
    return found


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
        fused=compute.device != "mps",
    )
    return _Run(network, copy.deepcopy(network).eval(), optimizer)


def _epoch(run: _Run, lesson: _Lesson, watch: Watch, *, seed: int, until: float) -> float | None:
    """One pass over the rows to learn from: the mean loss, not finite if a batch's was not, None if time was over."""
    generator = torch.Generator().manual_seed(seed)
    random = np.random.default_rng(seed)
    order = lesson.learn[drawn(lesson.targets[lesson.learn], lesson.settings.balance, random)]
    run.network.train()
    losses = []
    for rows in np.array_split(order, lesson.steps):
        if time.monotonic() > until:
            return None
        loss = _loss(run.network, lesson, rows, generator, watch)
        losses.append(float(loss.detach()))
        if not math.isfinite(losses[-1]):
            return math.nan
        _step(run, loss, lesson.settings, total=lesson.planned * lesson.steps)
    return float(np.mean(losses))


def _loss(
    network: ScratchNet,
    lesson: _Lesson,
    rows: Int64[np.ndarray, " b"],
    generator: torch.Generator,
    watch: Watch,
) -> Tensor:
    """The loss of one batch: on views, mixed in pairs and with the teacher's word where the settings say so."""
    settings, compute = lesson.settings, lesson.compute
    images = torch.from_numpy(lesson.pixels[rows]).permute(0, 3, 1, 2)
    batch = views(images, lesson.augmentation, generator=generator)
    wanted = torch.from_numpy(lesson.targets[rows])
    if settings.mixup > 0 or settings.cutmix > 0:
        batch, wanted = mixed(
            batch,
            wanted,
            classes=len(lesson.weights),
            mixup=settings.mixup,
            cutmix=settings.cutmix,
            generator=generator,
        )
    batch = laid_out(batch, compute)
    wanted, smoothing = wanted.to(compute.device), settings.label_smoothing
    with torch.autocast(compute.device, torch.bfloat16, enabled=compute.bf16):
        logits = network.head(_dropped(network.embed(batch), settings.dropout, generator))
        watch.see(logits, wanted)
        if lesson.teacher is not None:
            with torch.no_grad():
                said = lesson.teacher(batch).float() + lesson.prior
            wanted, smoothing = taught(wanted, said), smoothing * (1 - TAUGHT)
    return nn.functional.cross_entropy(
        logits.float() + lesson.prior, wanted, lesson.weights, label_smoothing=smoothing
    )


def _dropped(features: Tensor, dropout: float, generator: torch.Generator) -> Tensor:
    if dropout == 0:
        return features
    kept = torch.rand(features.shape, generator=generator) >= dropout
    return features * kept.to(features.device) / (1 - dropout)


def _step(run: _Run, loss: Tensor, settings: TrainingSettings, *, total: int) -> None:
    """One step of the optimiser and of the average, which forgets faster at the beginning."""
    for group in run.optimizer.param_groups:
        group["lr"] = settings.learning_rate * run.scale * rate_share(run.step, total)
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


def _check(network: ScratchNet, lesson: _Lesson) -> tuple[Float[np.ndarray, " b"], float, float]:
    """Log loss of each row that was kept back, the accuracy and the score on them; NaN where there are none.

    The log losses are those at the best temperature, because the network will be given one: long before it learns no
    more, it is too sure of itself. Adjusted answers are judged as `graft.learning.finetune` judges them.
    """
    logits = logits_of(network, lesson.pixels, lesson.check, lesson.compute, bf16=lesson.compute.bf16)
    labels = torch.from_numpy(lesson.targets[lesson.check])
    if not len(labels) or not bool(logits.isfinite().all()):
        return np.full(len(labels), np.nan), math.nan, math.nan
    weights = even_weights(lesson.prior.cpu().numpy())
    scaled = logits.double() / best_temperature(logits, labels, weights)
    losses = nn.functional.cross_entropy(scaled, labels, reduction="none").numpy()
    if weights is not None:
        counts = weights[labels.numpy()]
        losses = losses * counts / counts.mean()
    return losses, *judged(scaled.softmax(1), labels, lesson.criterion)


def _temperature(network: ScratchNet, lesson: _Lesson) -> float:
    """What the logits are divided by, from the kept-back rows."""
    logits = logits_of(network, lesson.pixels, lesson.check, lesson.compute)
    labels = torch.from_numpy(lesson.targets[lesson.check])
    return best_temperature(logits, labels, even_weights(lesson.prior.cpu().numpy()))
