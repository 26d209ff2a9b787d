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
from graft.learning.heads import Head
from graft.learning.inner import even_weights
from graft.learning.lessons import CHECK_BATCH as CHECK_BATCH
from graft.learning.lessons import Lesson, batches, lesson_of, loss_of
from graft.learning.lessons import blocks as blocks
from graft.learning.loop import Epoch, Stopped, at_work, best_temperature
from graft.learning.prefix import Source
from graft.learning.ridge import Criterion
from graft.learning.starting import Features, answering, start
from graft.learning.tune_settings import TuneSettings as TuneSettings
from graft.learning.tune_settings import planned_epochs as planned_epochs
from graft.learning.tune_settings import rates_of as rates_of
from graft.learning.tuner import HEAD, HIDDEN, Rates, Tuner, head_of
from graft.learning.watching import Watch, judged
from graft.store import content_key

APART = 7_919  # between the random seeds of two generations


@dataclass(frozen=True, slots=True, eq=False)
class Tuned:
    """`state`: the weights of the network that changed, by name; `head`: the temperature is inside.

    `best_epoch` 0 is the frozen network with its head: `state` is empty then. It counts through all generations, as
    `epochs_run` does; `needed` are the epochs of the `generation` that was kept.
    """

    state: dict[str, Tensor]
    head: Head
    temperature: float
    best_epoch: int
    epochs_run: int
    stopped: Stopped
    needed: int = 0
    generation: int = 1


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
    head's class weighting, and is told of every epoch. `kept_in`: the file of the checkpoint, later generations beside it
    (`checkpoints`); where they hold this very training, it goes on from there, and the epochs that are over are yielded
    again. A generation stops after `settings.patience` epochs without a lower log
    loss of the kept-back part, after the planned epochs, or at the first batch after `deadline_seconds` (with a fresh
    head not before one epoch). Of several generations the one with the lowest log loss of the kept-back part is kept, the
    last where nothing was kept back. Raises GraftError when the loss is not finite even at half the learning rate.
    """
    until = math.inf if deadline_seconds is None else time.monotonic() + deadline_seconds
    lesson = lesson_of(source, targets, rows, groups=groups, classes=classes, settings=settings, seed=seed)
    kept, lowest, before = None, math.inf, 0
    for generation in range(1, settings.generations + 1):
        own = seed + APART * (generation - 1)
        place = (
            kept_in if kept_in is None or generation == 1 else kept_in.with_name(_later(kept_in, generation))
        )
        work = _generation(
            cutting,
            lesson,
            features,
            classes,
            settings,
            compute,
            criterion,
            rows=rows,
            seed=own,
            until=until,
            kept_in=place,
        )
        found, loss = yield from _counted_on(work, before=before, left=settings.generations - generation)
        if kept is None or (found.epochs_run and (not len(lesson.check) or loss < lowest)):
            needed = found.best_epoch
            best = needed and needed + before
            kept, lowest = replace(found, best_epoch=best, needed=needed, generation=generation), loss
        before += found.epochs_run
        if found.stopped == "deadline" or generation == settings.generations:
            break
        learned = settings.batch_norm == "train"
        lesson = replace(lesson, teacher=_finished(cutting, found, compute, statistics=learned))
    assert kept is not None
    return replace(kept, epochs_run=before, stopped=found.stopped)


def checkpoints(kept_in: Path) -> list[Path]:
    """The files that a training left, of all its generations."""
    return [path for path in (kept_in, *kept_in.parent.glob(_later(kept_in, "*"))) if path.exists()]


def _later(kept_in: Path, generation: int | str) -> str:
    """The name of a later generation's checkpoint."""
    name, dot, ending = kept_in.name.partition(".")
    return f"{name}{dot}generation-{generation}.{ending}"


def _counted_on(
    work: Generator[Epoch, None, tuple[Tuned, float]], *, before: int, left: int
) -> Generator[Epoch, None, tuple[Tuned, float]]:
    """The epochs of a generation, numbered after those `before`; so many generations are `left`."""
    while True:
        try:
            epoch = next(work)
        except StopIteration as finished:
            result: tuple[Tuned, float] = finished.value
            return result
        yield replace(epoch, number=epoch.number + before, planned=before + epoch.planned * (1 + left))


def _generation(
    cutting: Cut,
    lesson: Lesson,
    features: Features | None,
    classes: int,
    settings: TuneSettings,
    compute: Compute,
    criterion: Criterion | None,
    *,
    rows: Int64[np.ndarray, " m"],
    seed: int,
    until: float,
    kept_in: Path | None,
) -> Generator[Epoch, None, tuple[Tuned, float]]:
    """Train one network; returns it with its log loss on the kept-back part."""
    targets = lesson.targets
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
        needed = number == 0 and settings.head != "ridge" and lesson.teacher is None
        drawn, watch = seed * 1_000_003 + number, Watch(criterion)
        with at_work(compute):
            end = math.inf if needed else until
            loss = _epoch(tuner, lesson, settings, watch, total=total, seed=drawn, until=end)
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
        return _tuned(best, tuner, epochs_run=number, stopped=stopped or "epochs"), best.loss
    if settings.head != "ridge":  # a fresh head that the clock gave no epoch
        nothing = head_of(tuner.averaged, unit_length=tuner.unit_length)
        return Tuned({}, nothing, 1.0, 0, number, stopped or "epochs"), math.inf
    head = answering(features, targets, rows, classes, settings, criterion)
    return Tuned({}, head, 1.0, 0, number, stopped or "epochs"), best.loss


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


def _finished(cutting: Cut, tuned: Tuned, compute: Compute, *, statistics: bool = False) -> Tuner:
    """A tuner that only answers; with `statistics` beside one that learns them."""
    tuner = Tuner(cutting, tuned.head, Rates(0.0, 0.0, 1.0, 0.0, 0.0), compute, statistics=statistics)
    for name, value in tuned.state.items():
        # As the tail is laid out, also what came out of a file: kernels of another order round differently.
        order = torch.channels_last if value.ndim == 4 else torch.contiguous_format
        tuner.averaged[name] = value.to(compute.device).contiguous(memory_format=order)
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
        head = answering(features, lesson.targets, lesson.learn, classes, settings, criterion)
        rows = np.asarray(features[lesson.check], np.float32)
        labels = torch.from_numpy(lesson.targets[lesson.check])
        best.loss = _judged(torch.from_numpy(head.logits(rows)), labels, lesson)[0]
    return best


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


def _answers(tuner: Tuner, source: Source, rows: Int64[np.ndarray, " m"]) -> Float32[Tensor, "m k"]:
    parts = [torch.empty(0, tuner.averaged[HEAD[0]].shape[1])]
    parts += [tuner.answers(source.plain(some)).cpu() for some in blocks(rows)]
    return torch.cat(parts)


def _checked(tuner: Tuner, lesson: Lesson, criterion: Criterion | None) -> _Checked:
    """How the averaged weights do on the kept-back rows."""
    if not len(lesson.check):
        return _Checked()
    logits = _answers(tuner, lesson.source, lesson.check)
    labels = torch.from_numpy(lesson.targets[lesson.check])
    if not bool(logits.isfinite().all()):
        return _Checked()
    loss, temperature = _judged(logits, labels, lesson)
    return _Checked(loss, temperature, *judged((logits / temperature).softmax(1), labels, criterion))


def _judged(logits: Float[Tensor, "b k"], labels: Int64[Tensor, " b"], lesson: Lesson) -> tuple[float, float]:
    """The log loss at the best temperature, and that temperature. Adjusted answers are judged with every class weighing the
    same: with the shares put back, those that never name a common class may have the lower loss."""
    weights = even_weights(lesson.prior)
    temperature = best_temperature(logits, labels, weights)
    counts = None if weights is None else torch.from_numpy(weights)
    return float(nn.functional.cross_entropy(logits.double() / temperature, labels, counts)), temperature


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
