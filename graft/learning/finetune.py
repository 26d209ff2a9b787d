"""Fine-tuning from any depth: the head first, then tail and head together, as a generator of epoch records.

In: a `Cut`, a source of batches (`graft.learning.prefix`), the targets, the rows that may be learned from, the frozen
features of every image where the head starts from them, and the settings. Out: an `Epoch` after every pass, and at the
end (the generator's return value) a `Tuned`: the changed weights, the head, and how it went. The head starts as the
ridge head of the rows, or fresh (`graft.learning.heads`); AdamW with a lower rate for lower stages, warm-up, cosine,
clipped gradients and averaged weights do the rest. Statistics of batch normalisation stay frozen by default, which
loses nothing and saves memory (arXiv 2305.11624); their scales and offsets learn. A part of the rows, grouped and
stratified, is kept back to find the best epoch and the temperature; the head of the frozen features is epoch 0, so that tuning which
only hurts leaves the frozen network. No row outside `rows` is read. A network of random weights is trained in the same
way: everything learns, the head is fresh.

Cost: three forward passes of the tail per image and epoch: full MobileNetV2 at 224 px about 50 images a second on two
cores with bfloat16, its last stages behind cached maps about 250. The result is a function of the seed, the number of
threads and the processor; a training that was killed and goes on from its checkpoint ends in the same weights.

Not covered: several GPUs.
"""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor, nn

from graft.compute import Compute
from graft.errors import GraftError
from graft.learning import checkpoint
from graft.learning.cutting import Cut
from graft.learning.heads import Head, answering_head, first_head, fresh_head
from graft.learning.inner import for_statistics
from graft.learning.lessons import Lesson, batches, lesson_of, loss_of
from graft.learning.loop import Epoch, Stopped, at_work, best_temperature
from graft.learning.prefix import Source
from graft.learning.ridge import Criterion
from graft.learning.tune_settings import TuneSettings as TuneSettings
from graft.learning.tune_settings import planned_epochs as planned_epochs
from graft.learning.tune_settings import rates_of as rates_of
from graft.learning.tuner import HEAD, HIDDEN, Rates, Tuner, head_of
from graft.learning.watching import Watch, judged
from graft.store import content_key

CHECK_BATCH = 64

Features = Float[np.ndarray, "n d"]


@dataclass(frozen=True, slots=True, eq=False)
class Tuned:
    """`state`: the weights of the network that changed, by name; `head`: the temperature is inside.

    `best_epoch` 0 is the frozen network with its head: `state` is empty then.
    """

    state: dict[str, Tensor]
    head: Head
    temperature: float
    best_epoch: int
    epochs_run: int
    stopped: Stopped


@dataclass(slots=True)
class _Best:
    """The best epoch so far: its loss at its temperature, and the averaged tensors (none for epoch 0)."""

    loss: float = math.inf
    epoch: int = 0
    temperature: float = 1.0
    tensors: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Checked:
    """An epoch on the kept-back rows, the loss at the best temperature; NaN where there are none."""

    loss: float = math.nan
    temperature: float = math.nan
    accuracy: float = math.nan
    score: float = math.nan


def tune(
    cutting: Cut,
    source: Source,
    targets: Int64[np.ndarray, " n"],
    rows: Int64[np.ndarray, " m"],
    *,
    groups: Int64[np.ndarray, " n"],
    features: Features | None,
    classes: int,
    settings: TuneSettings,
    compute: Compute,
    seed: int,
    criterion: Criterion | None = None,
    deadline_seconds: float | None = None,
    kept_in: Path | None = None,
) -> Generator[Epoch, None, Tuned]:
    """Tune on `rows` and yield a record per epoch; the generator's return value is the result.

    `features`: what the frozen network puts out at the tap; only a ridge head needs them. `criterion`: chooses the ridge
    head's class weighting, and is told of every epoch. `kept_in`: the file of the checkpoint; where it holds this very training, it goes on from
    there, and the epochs that are over are yielded again. Stops after `settings.patience` epochs without a lower log
    loss of the kept-back part, after the planned epochs, or at the first batch after `deadline_seconds` (with a fresh
    head not before one epoch). Raises GraftError when the loss is not finite even at half the learning rate.
    """
    started = time.monotonic()
    lesson = lesson_of(source, targets, rows, groups=groups, classes=classes, settings=settings, seed=seed)
    tuner = start(cutting, lesson, features, classes, settings, compute, criterion, seed=seed)
    best = _before_any(lesson, features, classes, settings, criterion)
    planned = planned_epochs(len(lesson.learn), settings)
    last = planned if settings.stop_epoch is None else min(settings.stop_epoch, planned)
    total = planned * math.ceil(len(lesson.learn) / settings.batch_size)
    identity = content_key("tune.v2", asdict(settings), seed, rows.tolist(), targets[rows].tolist(), total)
    done = _resumed(tuner, best, kept_in, identity)
    yield from done
    number, stopped = len(done), _had_enough(done, lesson, settings)
    good = tuner.state(), tuner.step
    while number < last and stopped is None:
        begun = time.monotonic()
        unlimited = deadline_seconds is None or (number == 0 and settings.head != "ridge")
        until = math.inf if unlimited or deadline_seconds is None else started + deadline_seconds
        drawn, watch = seed * 1_000_003 + number, Watch(criterion)
        with at_work(compute):
            loss = _epoch(tuner, lesson, settings, watch, total=total, seed=drawn, until=until)
            if loss is None:
                stopped = "deadline"
                break
            checked = _checked(tuner, lesson, criterion)
        validation, temperature = checked.loss, checked.temperature
        if not math.isfinite(loss) or (len(lesson.check) and not math.isfinite(validation)):
            _gentler(tuner, good, number + 1)
            continue
        number, good = number + 1, (tuner.state(), tuner.step)
        if not len(lesson.check) or validation < best.loss:
            kept = {name: tensor.clone() for name, tensor in tuner.averaged.items()}
            chosen = temperature if len(lesson.check) else settings.temperature
            best = _Best(validation, number, chosen, kept)
        train_accuracy, train_score = watch.judged()
        epoch = Epoch(
            number=number,
            planned=planned,
            train_loss=loss,
            validation_loss=validation,
            validation_accuracy=checked.accuracy,
            learning_rate=tuner.rate,
            seconds=time.monotonic() - begun,
            train_accuracy=train_accuracy,
            train_score=train_score,
            validation_score=checked.score,
        )
        done.append(epoch)
        _keep(kept_in, identity, tuner, best, done)
        yield epoch
        stopped = _had_enough(done, lesson, settings)
    if best.epoch:
        return _tuned(best, tuner, epochs_run=number, stopped=stopped or "epochs")
    head = _answering(features, targets, rows, classes, settings, criterion)
    return Tuned({}, head, 1.0, 0, number, stopped or "epochs")


def predict(
    cutting: Cut,
    source: Source,
    tuned: Tuned,
    rows: Int64[np.ndarray, " m"],
    *,
    features: Features | None,
    compute: Compute,
) -> Float32[np.ndarray, "m k"]:
    """Calibrated probabilities of the classes for `rows`; `features` serve where nothing but the head was fitted."""
    if not tuned.best_epoch:
        assert features is not None
        return tuned.head.probabilities(np.asarray(features[rows], np.float32))
    tuner = _finished(cutting, tuned, compute)
    with at_work(compute):
        logits = _answers(tuner, source, rows)
    return torch.softmax(logits, dim=1).numpy()


def embed(
    cutting: Cut,
    source: Source,
    tuned: Tuned,
    rows: Int64[np.ndarray, " m"],
    *,
    features: Features | None,
    compute: Compute,
) -> Float32[np.ndarray, "m d"]:
    """The tuned features of `rows` at the tap; `features` serve where nothing but the head was fitted."""
    if not tuned.best_epoch:
        assert features is not None
        return np.asarray(features[rows], np.float32)
    tuner = _finished(cutting, tuned, compute)
    with at_work(compute), torch.no_grad():
        parts = [tuner.embeddings(source.plain(some)).cpu().numpy() for some in blocks(rows)]
    return np.concatenate(parts)


def _finished(cutting: Cut, tuned: Tuned, compute: Compute) -> Tuner:
    """A tuner that only answers."""
    tuner = Tuner(cutting, tuned.head, Rates(0.0, 0.0, 1.0, 0.0, 0.0), compute, statistics=False)
    tuner.averaged |= {name: value.to(compute.device) for name, value in tuned.state.items()}
    return tuner


def start(
    cutting: Cut,
    lesson: Lesson,
    features: Features | None,
    classes: int,
    settings: TuneSettings,
    compute: Compute,
    criterion: Criterion | None,
    *,
    seed: int,
) -> Tuner:
    """The tuner before its first step: with a ridge head of the rows to learn from, or a fresh one."""
    rates, statistics = rates_of(settings), settings.batch_norm == "train"
    if settings.head == "ridge":
        head = _first(features, lesson.targets, lesson.learn, classes, settings, criterion)
    else:
        width = _width(cutting, lesson.source.plain(lesson.learn[:2]), compute)
        unit, decay = settings.unit_length, settings.weight_decay
        head = fresh_head(settings.head, width, classes=classes, unit_length=unit, seed=seed)
        rates = replace(rates, first_layer=math.sqrt(width) if unit else 1.0, head_decay=decay)
    tuner = Tuner(cutting, head, rates, compute, statistics=statistics, dropout=settings.dropout)
    if settings.batch_norm == "reestimate":
        with at_work(compute):
            plain = lesson.source.plain
            measured = blocks(for_statistics(lesson.learn))
            tuner.reestimate((plain(rows) for rows in measured), cutting.batch_norms())
            read = np.concatenate(
                [tuner.features(plain(rows)).cpu().numpy() for rows in blocks(lesson.learn)]
            )
        if settings.head == "ridge":
            labels, every = lesson.targets[lesson.learn], np.arange(len(lesson.learn))
            tuner.begin_with(_first(read, labels, every, classes, settings, criterion))
    return tuner


def _before_any(
    lesson: Lesson,
    features: Features | None,
    classes: int,
    settings: TuneSettings,
    criterion: Criterion | None,
) -> _Best:
    """Epoch 0: what the head of the frozen features is worth; infinitely bad where the head is a fresh one."""
    best = _Best(temperature=settings.temperature)
    if features is not None and settings.head == "ridge" and len(lesson.check):
        head = _answering(features, lesson.targets, lesson.learn, classes, settings, criterion)
        rows = np.asarray(features[lesson.check], np.float32)
        logits = torch.from_numpy(head.logits(rows) + lesson.prior)
        best.loss = _judged(logits, torch.from_numpy(lesson.targets[lesson.check]))[0]
    return best


def _answering(
    features: Features | None,
    targets: Int64[np.ndarray, " n"],
    rows: Int64[np.ndarray, " m"],
    classes: int,
    settings: TuneSettings,
    criterion: Criterion | None,
) -> Head:
    """The head of the frozen network, where nothing that was tuned is better."""
    assert features is not None, "this head needs the features of the frozen network"
    return answering_head(
        features[rows], targets[rows], classes=classes, balance=settings.balance, criterion=criterion
    )


def _first(
    features: Features | None,
    targets: Int64[np.ndarray, " n"],
    rows: Int64[np.ndarray, " m"],
    classes: int,
    settings: TuneSettings,
    criterion: Criterion | None,
) -> Head:
    """The head that a training starts from: less bold than one that answers."""
    assert features is not None, "a ridge head needs the features of the frozen network"
    return first_head(
        features[rows],
        targets[rows],
        classes=classes,
        balance=settings.balance,
        criterion=criterion,
        least_penalty=settings.start_penalty,
        temperature=settings.start_temperature,
    )


@torch.no_grad()
def _width(cutting: Cut, maps: Tensor, compute: Compute) -> int:
    """How many features the tail puts out."""
    tail = cutting.tail.to(compute.device).eval()
    with torch.autocast(compute.device, torch.bfloat16, enabled=compute.bf16):
        return int(tail(maps).shape[1])


def _epoch(
    tuner: Tuner, lesson: Lesson, settings: TuneSettings, watch: Watch, *, total: int, seed: int, until: float
) -> float | None:
    """One pass over the rows to learn from: the mean loss, not finite if a batch's was not, None if time was over."""
    generator = torch.Generator().manual_seed(seed)
    losses = []
    for maps, labels in batches(lesson, settings, generator):
        if time.monotonic() > until:
            return None
        loss = loss_of(tuner, maps, labels, lesson, settings, generator, watch)
        losses.append(float(loss.detach()))
        if not math.isfinite(losses[-1]):
            return math.nan
        tuner.learn(loss, total=total)
    return float(np.mean(losses))


def blocks(rows: Int64[np.ndarray, " m"]) -> list[Int64[np.ndarray, " b"]]:
    """At most 64 rows each, about equally many: of a single image there are no statistics."""
    return np.array_split(rows, math.ceil(len(rows) / CHECK_BATCH)) if len(rows) else []


def _answers(tuner: Tuner, source: Source, rows: Int64[np.ndarray, " m"]) -> Float32[Tensor, "m k"]:
    parts = [torch.empty(0, tuner.averaged[HEAD[0]].shape[1])]
    parts += [tuner.answers(source.plain(some)).cpu() for some in blocks(rows)]
    return torch.cat(parts)


def _checked(tuner: Tuner, lesson: Lesson, criterion: Criterion | None) -> _Checked:
    """How the averaged weights do on the kept-back rows.

    The loss is that of the training, the classes' shares included where they are; all else is of the answers.
    """
    if not len(lesson.check):
        return _Checked()
    logits = _answers(tuner, lesson.source, lesson.check)
    labels = torch.from_numpy(lesson.targets[lesson.check])
    if not bool(logits.isfinite().all()):
        return _Checked()
    loss, temperature = _judged(logits + torch.from_numpy(lesson.prior), labels)
    return _Checked(loss, temperature, *judged((logits / temperature).softmax(1), labels, criterion))


def _judged(logits: Float[Tensor, "b k"], labels: Int64[Tensor, " b"]) -> tuple[float, float]:
    """The log loss at the best temperature, and that temperature."""
    temperature = best_temperature(logits, labels)
    return float(nn.functional.cross_entropy(logits.double() / temperature, labels)), temperature


def _had_enough(done: Sequence[Epoch], lesson: Lesson, settings: TuneSettings) -> Stopped | None:
    """Patience counts from the best epoch of the training itself: the first ones may lose to the head it began with."""
    if not len(lesson.check) or not done:
        return None
    best = min(done, key=lambda epoch: epoch.validation_loss)
    return "patience" if len(done) - best.number >= settings.patience else None


def _gentler(tuner: Tuner, good: tuple[dict[str, Tensor], int], epoch: int) -> None:
    """Back to the state before the epoch that failed, with half the learning rate; a second failure is an error."""
    if tuner.scale < 1:
        raise GraftError(
            f"Fine-tuning failed: the loss of epoch {epoch} is not a finite number, even with half the learning rate. "
            "Give a lower --lr (graft train), leave fine-tuning out with --only frozen (graft study), or look for "
            "damaged images with graft check."
        )
    tuner.restore(good[0], step=good[1], scale=0.5)


def _tuned(best: _Best, tuner: Tuner, *, epochs_run: int, stopped: Stopped) -> Tuned:
    """The best weights on the CPU, the temperature divided out of the head."""
    head = head_of(best.tensors, unit_length=tuner.unit_length).softened(best.temperature)
    own = (*HEAD, *HIDDEN)
    state = {name: value.detach().cpu().clone() for name, value in best.tensors.items() if name not in own}
    return Tuned(state, head, best.temperature, best.epoch, epochs_run, stopped)


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
