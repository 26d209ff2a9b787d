"""How to train from random weights, and for how long: a record, and a function of the data and of it.

In: a design, a number of images. Out: a number of epochs. Nothing here looks at a clock, so that the same data get the
same training on every machine.

Not covered: what suits the images themselves (`graft.images.views.suited`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from graft.backbones.scratch import ScratchDesign
from graft.learning.inner import Balance

LEAST_EPOCHS = 30  # up to 2,000 images
LONG_EPOCHS = 100  # where the multiply-adds pay them; on small sets the steps ask for more
ENOUGH_EPOCHS = 80  # of each of two generations, rather than more of one
SMALL_SET = 600
LONG_VIEWS = 64_000  # what is worth making of a small set
STRETCH = 3  # how many times the affordable epochs the least may be
TEACHER_SHARE = 1 / 3  # of a step with gradients costs what the teacher says about its batch


@dataclass(frozen=True, slots=True)
class TrainingSettings:
    """How to train. `epochs` is the upper limit; `multiply_adds` (forward, in all epochs) and `steps` are two more.

    `patience`: epochs without a better log loss on the kept-back part before it stops, but at least the share
    `waiting` of the planned ones: an epoch of a small set is only a few steps. `balance`: see `graft.learning.inner`.
    `averaging`: decay of the averaged weights per step. `dropout`: in front of the head. `mixup`, `cutmix`: the
    parameter of the beta distribution that mixed pairs are drawn with, 0 for none. `generations`: with 2, the averaged
    network teaches a second one (born-again networks), which gets as many epochs; `multiply_adds` are those of all
    generations. `validation_share`: the part of the rows kept back; with 0 all rows are learned from for exactly
    `epochs` epochs, and `temperature` is taken as given instead of fitted.
    """

    epochs: int = 300
    multiply_adds: float = 0.9e12
    steps: int = 2_000
    patience: int = 10
    waiting: float = 0.5
    batch_size: int = 32
    learning_rate: float = 2e-3
    weight_decay: float = 0.1
    label_smoothing: float = 0.1
    averaging: float = 0.99
    dropout: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    balance: Balance = "root"
    generations: int = 1
    validation_share: float = 0.15
    temperature: float = 1.0
    version: int = 2


def planned_epochs(design: ScratchDesign, images: int, settings: TrainingSettings) -> int:
    """How many epochs a generation has: what the multiply-adds and the steps allow, 1 to `settings.epochs`.

    At least 30 up to 2,000 images (12 were far too few for 101 classes), fewer by the root of their number beyond, but
    never more than three times what is affordable: a cosine that ends after 7 epochs is worth more than half of one.
    """
    images = max(images, 1)
    affordable = affordable_epochs(design, images, settings)
    wanted = max(LONG_EPOCHS, settings.steps // math.ceil(images / settings.batch_size))
    least = min(LEAST_EPOCHS * min(1.0, math.sqrt(2_000 / images)), STRETCH * affordable)
    return max(1, min(settings.epochs, max(round(least), min(int(affordable), wanted))))


def affordable_epochs(design: ScratchDesign, images: int, settings: TrainingSettings) -> float:
    """How many epochs of each generation the multiply-adds pay."""
    shares = settings.generations + (settings.generations - 1) * TEACHER_SHARE
    return settings.multiply_adds / (design.multiply_adds * max(images, 1) * shares)


def waiting_epochs(planned: int, settings: TrainingSettings) -> int:
    """After how many epochs without a better log loss the training stops."""
    return max(settings.patience, round(settings.waiting * planned))


def planned_multiply_adds(design: ScratchDesign, images: int, settings: TrainingSettings) -> float:
    """The multiply-adds of all planned epochs of all generations, forward, for `images` rows of a training fold."""
    learned = max(1, round((1 - settings.validation_share) * images))
    shares = settings.generations + (settings.generations - 1) * TEACHER_SHARE
    return float(planned_epochs(design, learned, settings) * learned * design.multiply_adds * shares)


def settled(design: ScratchDesign, images: int, *, multiply_adds: float) -> TrainingSettings:
    """The settings for `images` rows of a training fold and a number of multiply-adds: a function of nothing else.

    Below `SMALL_SET` rows the batches are smaller: twice the steps were worth more than their time. Two generations
    where both get `ENOUGH_EPOCHS`, or where one would end before the multiply-adds do.
    """
    learned = round((1 - TrainingSettings().validation_share) * images)
    batch = 16 if learned < SMALL_SET else 32
    once = TrainingSettings(multiply_adds=multiply_adds, batch_size=batch, steps=LONG_VIEWS // batch)
    twice = replace(once, generations=2)
    enough = min(ENOUGH_EPOCHS, planned_epochs(design, learned, once))
    paid = planned_multiply_adds(design, images, twice) <= multiply_adds
    return twice if paid and planned_epochs(design, learned, twice) >= enough else once
