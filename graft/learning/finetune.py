"""Fine-tuning from any depth: the head first, then tail and head together, as a generator of epoch records.

In: a `Cut`, a source of batches (`graft.learning.prefix`), the targets, the rows that may be learned from, the frozen
features of every image, and the settings. Out: an `Epoch` after every pass, and at the end (the generator's return
value) a `Tuned`: the changed weights, the head, and how it went. The head starts as the ridge head of the rows; AdamW
with a lower rate for lower stages, warm-up, cosine, clipped gradients and averaged weights do the rest. Statistics of
batch normalisation stay frozen by default, which loses nothing and saves memory (arXiv 2305.11624); their scales and
offsets learn. A part of the rows, grouped and stratified, is kept back to find the best epoch and the temperature; the
ridge head itself is epoch 0, so that tuning which only hurts leaves the frozen network. No row outside `rows` is read.

Cost: three forward passes of the tail per image and epoch: full MobileNetV2 at 224 px about 50 images a second on two
cores with bfloat16, its last stages behind cached maps about 250. The result is a function of the seed, the number of
threads and the processor; a training that was killed and goes on from its checkpoint ends in the same weights.

Not covered: several GPUs.
"""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

from graft.compute import Compute
from graft.errors import GraftError
from graft.learning import checkpoint, ridge
from graft.learning.cutting import Cut
from graft.learning.inner import class_weights, kept_back
from graft.learning.loop import Epoch, Stopped, best_temperature, threads
from graft.learning.prefix import Source
from graft.learning.ridge import Criterion, RidgeHead
from graft.learning.tune_settings import TuneSettings as TuneSettings
from graft.learning.tune_settings import planned_epochs as planned_epochs
from graft.learning.tune_settings import rates_of as rates_of
from graft.learning.tuner import HEAD, Rates, Tuner
from graft.store import content_key

CHECK_BATCH = 64


@dataclass(frozen=True, slots=True, eq=False)
class Tuned:
    """`state`: the weights of the network that changed, by name; `weight`, `bias`: the head's, temperature inside.

    `best_epoch` 0 is the frozen network with its ridge head: `state` is empty then.
    """

    state: dict[str, Tensor]
    weight: Float32[np.ndarray, "d k"]
    bias: Float32[np.ndarray, " k"]
    temperature: float
    best_epoch: int
    epochs_run: int
    stopped: Stopped


@dataclass(frozen=True, slots=True, eq=False)
class _Data:
    source: Source
    targets: Int64[np.ndarray, " n"]
    learn: Int64[np.ndarray, " l"]
    check: Int64[np.ndarray, " b"]
    weights: Float32[np.ndarray, " k"]


@dataclass(slots=True)
class _Best:
    """The best epoch so far: its loss at its temperature, and the averaged tensors (none for epoch 0)."""

    loss: float = math.inf
    epoch: int = 0
    temperature: float = 1.0
    tensors: dict[str, Tensor] = field(default_factory=dict)


def tune(
    cutting: Cut,
    source: Source,
    targets: Int64[np.ndarray, " n"],
    rows: Int64[np.ndarray, " m"],
    *,
    groups: Int64[np.ndarray, " n"],
    features: Float[np.ndarray, "n d"],
    classes: int,
    settings: TuneSettings,
    compute: Compute,
    seed: int,
    criterion: Criterion | None = None,
    deadline_seconds: float | None = None,
    kept_in: Path | None = None,
) -> Generator[Epoch, None, Tuned]:
    """Tune on `rows` and yield a record per epoch; the generator's return value is the result.

    `features`: what the frozen network puts out at the tap. `criterion`: chooses the ridge head's class weighting.
    `kept_in`: the file of the checkpoint; where it holds this very training, it goes on from there, and the epochs that
    are over are yielded again. Stops after `settings.patience` epochs without a lower log loss of the kept-back part,
    after the planned epochs, or at the first batch after `deadline_seconds`. Raises GraftError when the loss is not
    finite even at half the learning rate.
    """
    started = time.monotonic()
    learn, check = kept_back(targets, groups, rows, share=settings.validation_share, seed=seed)
    data = _Data(source, targets, learn, check, class_weights(targets[learn], classes, settings.balance))
    tuner, best = _start(cutting, data, features, classes, settings, compute, criterion)
    planned = planned_epochs(len(learn), settings)
    last = planned if settings.stop_epoch is None else min(settings.stop_epoch, planned)
    total = planned * math.ceil(len(learn) / settings.batch_size)
    identity = content_key("tune.v1", asdict(settings), seed, rows.tolist(), targets[rows].tolist(), total)
    done = _resumed(tuner, best, kept_in, identity)
    yield from done
    number, stopped = len(done), _had_enough(len(done), best, check, settings)
    good = tuner.state(), tuner.step
    while number < last and stopped is None:
        begun = time.monotonic()
        until = math.inf if deadline_seconds is None else started + deadline_seconds
        drawn = seed * 1_000_003 + number
        with threads(compute):
            loss = _epoch(tuner, data, settings, total=total, seed=drawn, until=until)
            if loss is None:
                stopped = "deadline"
                break
            validation, accuracy, temperature = _checked(tuner, data)
        if not math.isfinite(loss) or (len(check) and not math.isfinite(validation)):
            _gentler(tuner, good, number + 1)
            continue
        number, good = number + 1, (tuner.state(), tuner.step)
        if not len(check) or validation < best.loss:
            kept = {name: tensor.clone() for name, tensor in tuner.averaged.items()}
            best = _Best(validation, number, temperature if len(check) else settings.temperature, kept)
        seconds = time.monotonic() - begun
        epoch = Epoch(number, planned, loss, validation, accuracy, tuner.rate, seconds)
        done.append(epoch)
        _keep(kept_in, identity, tuner, best, done)
        yield epoch
        stopped = _had_enough(number, best, check, settings)
    head = _ridge(features, targets, rows, classes, criterion)
    return _tuned(best, head, epochs_run=number, stopped=stopped or "epochs")


def predict(
    cutting: Cut,
    source: Source,
    tuned: Tuned,
    rows: Int64[np.ndarray, " m"],
    *,
    features: Float[np.ndarray, "n d"],
    compute: Compute,
) -> Float32[np.ndarray, "m k"]:
    """Calibrated probabilities of the classes for `rows`; `features` serve where nothing but the head was fitted."""
    head = RidgeHead(tuned.weight, tuned.bias, 0.0, 0.0, 1.0)
    if not tuned.best_epoch:
        return head.probabilities(np.asarray(features[rows], np.float32))
    tuner = Tuner(cutting, head, Rates(0.0, 0.0, 1.0, 0.0, 0.0), compute, statistics=False)
    tuner.averaged |= {name: value.to(compute.device) for name, value in tuned.state.items()}
    with threads(compute):
        logits = _answers(tuner, source, rows)
    return torch.softmax(logits, dim=1).numpy()


def _start(
    cutting: Cut,
    data: _Data,
    features: Float[np.ndarray, "n d"],
    classes: int,
    settings: TuneSettings,
    compute: Compute,
    criterion: Criterion | None,
) -> tuple[Tuner, _Best]:
    """The tuner with a ridge head of the rows to learn from, and what their best one is worth: epoch 0."""
    rates, stiff = rates_of(settings), settings.start_penalty
    best = _Best(temperature=settings.temperature)
    if len(data.check):
        head = _ridge(features, data.targets, data.learn, classes, criterion)
        rows = ridge.unit(np.asarray(features[data.check], np.float32))
        logits = torch.from_numpy(rows @ head.weight + head.bias)
        best.loss = _judged(logits, torch.from_numpy(data.targets[data.check]))[0]
    start = _ridge(features, data.targets, data.learn, classes, criterion, least_penalty=stiff)
    tuner = Tuner(cutting, start, rates, compute, statistics=settings.batch_norm == "train")
    if settings.batch_norm == "reestimate":
        with threads(compute):
            plain = [data.source.plain(rows) for rows in _batches(data.learn)]
            tuner.reestimate(plain, cutting.batch_norms())
            read = np.concatenate([tuner.features(maps).cpu().numpy() for maps in plain])
        labels = data.targets[data.learn]
        every = np.arange(len(labels))
        tuner.begin_with(_ridge(read, labels, every, classes, criterion, least_penalty=stiff))
    return tuner, best


def _ridge(
    features: Float[np.ndarray, "n d"],
    targets: Int64[np.ndarray, " n"],
    rows: Int64[np.ndarray, " m"],
    classes: int,
    criterion: Criterion | None,
    *,
    least_penalty: float = 0.0,
) -> RidgeHead:
    with threadpool_limits(1):
        return ridge.fit(
            np.asarray(features[rows], np.float32),
            targets[rows],
            classes=classes,
            criterion=criterion,
            least_penalty=least_penalty,
        )


def _epoch(
    tuner: Tuner, data: _Data, settings: TuneSettings, *, total: int, seed: int, until: float
) -> float | None:
    """One pass over the rows to learn from: the mean loss, not finite if a batch's was not, None if time was over."""
    generator = torch.Generator().manual_seed(seed)
    order = data.learn[torch.randperm(len(data.learn), generator=generator).numpy()]
    losses = []
    for rows in np.array_split(order, math.ceil(len(order) / settings.batch_size)):
        if time.monotonic() > until:
            return None
        maps = data.source.training(rows, generator)
        loss = _loss(tuner, maps, torch.from_numpy(data.targets[rows]), data, settings, generator)
        losses.append(float(loss.detach()))
        if not math.isfinite(losses[-1]):
            return math.nan
        tuner.learn(loss, total=total)
    return float(np.mean(losses))


def _loss(
    tuner: Tuner,
    maps: Tensor,
    labels: Int64[Tensor, " b"],
    data: _Data,
    settings: TuneSettings,
    generator: torch.Generator,
) -> Tensor:
    """Weighted cross-entropy, of mixed pairs with MixUp (Zhang et al. 2018; behind a prefix, of mixed maps)."""
    device = tuner.compute.device
    weights = torch.from_numpy(data.weights).to(device)
    labels = labels.to(device)

    def against(logits: Tensor, wanted: Tensor) -> Tensor:
        return nn.functional.cross_entropy(logits, wanted, weights, label_smoothing=settings.label_smoothing)

    if settings.mixup <= 0:
        return against(tuner.logits(maps), labels)
    random = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
    share = float(random.beta(settings.mixup, settings.mixup))
    other = torch.randperm(len(labels), generator=generator).to(device)
    logits = tuner.logits(share * maps + (1 - share) * maps[other])
    return share * against(logits, labels) + (1 - share) * against(logits, labels[other])


def _batches(rows: Int64[np.ndarray, " m"]) -> Iterator[Int64[np.ndarray, " b"]]:
    for begin in range(0, len(rows), CHECK_BATCH):
        yield rows[begin : begin + CHECK_BATCH]


def _answers(tuner: Tuner, source: Source, rows: Int64[np.ndarray, " m"]) -> Float32[Tensor, "m k"]:
    parts = [torch.empty(0, tuner.averaged[HEAD[0]].shape[1])]
    parts += [tuner.answers(source.plain(some)).cpu() for some in _batches(rows)]
    return torch.cat(parts)


def _checked(tuner: Tuner, data: _Data) -> tuple[float, float, float]:
    """Log loss at the best temperature, accuracy and that temperature on the kept-back rows; NaN where there are none."""
    if not len(data.check):
        return math.nan, math.nan, math.nan
    logits, labels = _answers(tuner, data.source, data.check), torch.from_numpy(data.targets[data.check])
    if not bool(logits.isfinite().all()):
        return math.nan, math.nan, math.nan
    loss, temperature = _judged(logits, labels)
    return loss, float((logits.argmax(1) == labels).float().mean()), temperature


def _judged(logits: Float[Tensor, "b k"], labels: Int64[Tensor, " b"]) -> tuple[float, float]:
    """The log loss at the best temperature, and that temperature."""
    temperature = best_temperature(logits, labels)
    return float(nn.functional.cross_entropy(logits.double() / temperature, labels)), temperature


def _had_enough(
    number: int, best: _Best, check: Int64[np.ndarray, " b"], settings: TuneSettings
) -> Stopped | None:
    return "patience" if len(check) and number - best.epoch >= settings.patience else None


def _gentler(tuner: Tuner, good: tuple[dict[str, Tensor], int], epoch: int) -> None:
    """Back to the state before the epoch that failed, with half the learning rate; a second failure is an error."""
    if tuner.scale < 1:
        raise GraftError(
            f"Fine-tuning failed: the loss of epoch {epoch} is not a finite number, even with half the learning rate. "
            "Leave fine-tuning out with --only frozen, or look for damaged images with graft check."
        )
    tuner.restore(good[0], step=good[1], scale=0.5)


def _tuned(best: _Best, head: RidgeHead, *, epochs_run: int, stopped: Stopped) -> Tuned:
    """The best weights on the CPU, the temperature divided out of the head."""
    if not best.epoch:
        return Tuned({}, head.weight, head.bias, 1.0, 0, epochs_run, stopped)
    state = {name: value.detach().cpu().clone() for name, value in best.tensors.items()}
    weight, bias = (state.pop(name).numpy() / np.float32(best.temperature) for name in HEAD)
    return Tuned(state, weight, bias, best.temperature, best.epoch, epochs_run, stopped)


def _keep(path: Path | None, identity: str, tuner: Tuner, best: _Best, done: list[Epoch]) -> None:
    if path is None:
        return
    facts: dict[str, Any] = {
        "identity": identity,
        "step": tuner.step,
        "scale": tuner.scale,
        "best": [best.loss if math.isfinite(best.loss) else None, best.epoch, best.temperature],
        "epochs": [
            {name: value if math.isfinite(value) else None for name, value in asdict(epoch).items()}
            for epoch in done
        ],
    }
    kept = {f"best.{name}": tensor for name, tensor in best.tensors.items()}
    checkpoint.save(path, facts, {**tuner.state(), **kept})


def _resumed(tuner: Tuner, best: _Best, path: Path | None, identity: str) -> list[Epoch]:
    """The epochs that are over, after putting `tuner` and `best` where the checkpoint says; none without one."""
    found = checkpoint.load(path, identity=identity) if path is not None else None
    if found is None:
        return []
    facts, tensors = found
    tuner.restore(tensors, step=facts["step"], scale=facts["scale"])
    loss, best.epoch, best.temperature = facts["best"]
    best.loss = math.inf if loss is None else loss
    best.tensors = {
        name.removeprefix("best."): tensor for name, tensor in tensors.items() if name.startswith("best.")
    }
    rows: list[dict[str, Any]] = [
        {name: math.nan if value is None else value for name, value in row.items()} for row in facts["epochs"]
    ]
    return [Epoch(**row) for row in rows]
