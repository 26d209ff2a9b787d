"""The loop: a student, a lesson, and batches; as a generator of records.

In: a learner, the rounds, a lesson, and where the training stands. Out: progress, an `Epoch` after every round, and
checkpoints on the way. The number of epochs is planned once, from the budget and the speed of the first steps, and then
fixed: the cosine really ends, and a resumed training is the same training. Two runs of the same seed on the same
machine, interrupted or not, end in the same bits (on a CPU; a GPU may round differently from run to run).

Cost: that of the student's forward and backward pass; teacher and views take less than a fifth beside it. Not covered:
several GPUs.
"""

from __future__ import annotations

import math
import time
from collections.abc import Generator

import torch

from graft.compute import Compute
from graft.errors import GraftError
from graft.learning.loop import at_work, kept_share
from graft.pretraining import checkpoint
from graft.pretraining.checkpoint import Standing
from graft.pretraining.learner import Learner, rate_at
from graft.pretraining.lessons import Asked, Lesson
from graft.pretraining.records import Epoch, Progress
from graft.pretraining.rounds import Piece, Rounds
from graft.pretraining.settings import PretrainSettings

TRIED_STEPS = 20
UNCOUNTED_STEPS = 4  # the first ones allocate
TOLD_SECONDS = 1.0
HELD_BATCH = 128


def training(
    learner: Learner,
    rounds: Rounds,
    lesson: Lesson,
    standing: Standing,
    *,
    cycle: int,
    settings: PretrainSettings,
    compute: Compute,
) -> Generator[Progress | Epoch, None, None]:
    """Train from `standing` to the end, which changes `learner` and `standing`. `cycle`: rounds until views come again.

    Raises GraftError when the loss is no finite number, RunError when a checkpoint cannot be written.
    """
    clock = _Clock(standing, settings.checkpoint_seconds)
    while standing.step < standing.epochs * standing.steps:
        number = (standing.step // standing.steps) % cycle
        index = (standing.step % standing.steps) // rounds.per_piece
        with at_work(compute):
            piece = rounds.piece(number, index, torch.device(compute.device))
            asked = lesson.about(number, index, piece)
        end = standing.step - (standing.step % standing.steps - piece.first) + (piece.last - piece.first)
        while standing.step < end:
            with at_work(compute):
                _step(learner, piece, asked, rounds, standing, settings, compute)
            if clock.to_tell():
                yield _progress(standing, clock, rounds.batch)
            if clock.to_save():
                clock.stop(standing)
                checkpoint.save(settings, standing, learner.state())
        if standing.step % standing.steps == 0:
            with at_work(compute):
                epoch = _epoch(learner, rounds, lesson, standing, clock, settings, compute)
            yield epoch


def seconds_of(learner: Learner, rounds: Rounds, lesson: Lesson, compute: Compute) -> tuple[float, float]:
    """What a step takes and what preparing its batch takes (views, teacher), in seconds. Spends the learner.

    20 steps over the first piece; what the teacher says about it is kept for the training itself.
    """
    with at_work(compute):
        begun = time.monotonic()
        piece = rounds.piece(0, 0, torch.device(compute.device))
        asked = lesson.about(0, 0, piece)
        prepared = (time.monotonic() - begun) / (piece.last - piece.first)
        for step in range(TRIED_STEPS):
            if step == UNCOUNTED_STEPS:
                begun = time.monotonic()
            rows = _rows(step % (piece.last - piece.first), rounds.batch)
            loss, _ = _judged(learner, piece, asked, rows, compute)
            learner.learn(loss, rate=0.0, keep=1.0)
            float(loss.detach())
    return (time.monotonic() - begun) / (TRIED_STEPS - UNCOUNTED_STEPS), prepared


def affordable_epochs(budget: float, *, step: float, prepared: float, steps: int, cycle: int) -> int:
    """How many epochs fit into `budget` seconds, the teacher being asked in the first `cycle` of them only."""
    full, again = steps * (step + prepared), steps * step
    if budget <= cycle * full:
        return max(1, int(budget / full))
    return cycle + int((budget - cycle * full) / again)


def _step(
    learner: Learner,
    piece: Piece,
    asked: Asked,
    rounds: Rounds,
    standing: Standing,
    settings: PretrainSettings,
    compute: Compute,
) -> None:
    number = standing.step % standing.steps - piece.first
    loss, same = _judged(learner, piece, asked, _rows(number, rounds.batch), compute)
    total = standing.epochs * standing.steps
    value = float(loss.detach())
    if not math.isfinite(value):
        raise GraftError(
            f"The training failed: the loss of step {standing.step + 1} is no finite number. Start over with --overwrite "
            f"and a lower --lr, such as {settings.learning_rate / 3:.0e}."
        )
    learner.learn(
        loss,
        rate=rate_at(standing.step, total, settings.learning_rate),
        keep=kept_share(standing.step + 1, settings.averaging),
    )
    losses, agreements, count = standing.sums
    standing.sums = (losses + value, agreements + float(same), count + 1)
    standing.step += 1


def _judged(
    learner: Learner, piece: Piece, asked: Asked, rows: slice, compute: Compute
) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.autocast(compute.device, torch.bfloat16, enabled=compute.bf16):
        outputs = learner.student(piece.pixels[rows])
    return asked.judged(outputs, rows)


def _rows(number: int, batch: int) -> slice:
    return slice(number * batch, (number + 1) * batch)


@torch.inference_mode()
def held_loss(
    learner: Learner, rounds: Rounds, lesson: Lesson, compute: Compute
) -> tuple[float | None, float | None]:
    """Loss and accuracy of the averaged weights on the held-out images; None where there is none."""
    if not len(rounds.held):
        return None, None
    views, asked = rounds.held_images(), lesson.about_held()
    losses = agreements = 0.0
    for begin in range(0, len(views), HELD_BATCH):
        rows = slice(begin, min(len(views), begin + HELD_BATCH))
        with torch.autocast(compute.device, torch.bfloat16, enabled=compute.bf16):
            outputs = learner.average(views[rows].to(compute.device))
        loss, same = asked.judged(outputs, rows)
        share = (rows.stop - begin) / len(views)
        losses, agreements = losses + share * float(loss), agreements + share * float(same)
    return losses, None if math.isnan(agreements) else agreements


def _epoch(
    learner: Learner,
    rounds: Rounds,
    lesson: Lesson,
    standing: Standing,
    clock: _Clock,
    settings: PretrainSettings,
    compute: Compute,
) -> Epoch:
    """Look at the held-out part, write the record into the curve, and save."""
    loss, accuracy = held_loss(learner, rounds, lesson, compute)
    clock.stop(standing)
    before = standing.curve[-1].seconds if standing.curve else 0.0
    total = standing.epochs * standing.steps
    epoch = Epoch(
        number=standing.step // standing.steps,
        planned=standing.epochs,
        train_loss=standing.sums[0] / max(1, standing.sums[2]),
        held_loss=loss,
        held_accuracy=accuracy,
        learning_rate=rate_at(standing.step - 1, total, settings.learning_rate),
        images_per_second=standing.steps * rounds.batch / max(1e-9, standing.seconds - before),
        seconds=standing.seconds,
    )
    standing.curve.append(epoch)
    standing.sums = (0.0, 0.0, 0)
    checkpoint.save(settings, standing, learner.state())
    return epoch


class _Clock:
    """When to tell and when to save; how fast it goes."""

    def __init__(self, standing: Standing, save_seconds: float) -> None:
        self.save_seconds = save_seconds
        self.told = self.saved = self.counted = self.begun = time.monotonic()
        self.first = standing.step

    def to_tell(self) -> bool:
        due = time.monotonic() - self.told > TOLD_SECONDS
        self.told = time.monotonic() if due else self.told
        return due

    def to_save(self) -> bool:
        due = time.monotonic() - self.saved > self.save_seconds
        self.saved = time.monotonic() if due else self.saved
        return due

    def stop(self, standing: Standing) -> None:
        """Add the time since the last call to what the training has taken."""
        now = time.monotonic()
        standing.seconds, self.counted = standing.seconds + now - self.counted, now

    def per_step(self, standing: Standing) -> float:
        return (time.monotonic() - self.begun) / max(1, standing.step - self.first)


def _progress(standing: Standing, clock: _Clock, batch: int) -> Progress:
    total, seconds = standing.epochs * standing.steps, clock.per_step(standing)
    loss = standing.sums[0] / max(1, standing.sums[2])
    epoch = min(standing.epochs, standing.step // standing.steps + 1)
    detail = f"epoch {epoch}/{standing.epochs}, loss {loss:.3f}, {batch / seconds:.0f} images/s"
    return Progress("training", standing.step, total, seconds * (total - standing.step), detail)
