"""How to fine-tune: everything that changes the result, in one record.

In: what a user or a study wants. Out: the number of epochs and the rates of the optimiser. Costs nothing.

Not covered: the training itself (`graft.learning.finetune`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from graft.learning.heads import HeadKind
from graft.learning.inner import Balance
from graft.learning.prefix import Strength
from graft.learning.tuner import Rates

BatchNorm = Literal["frozen", "train", "reestimate"]
LEAST_EPOCHS = 2


@dataclass(frozen=True, slots=True)
class TuneSettings:
    """How to fine-tune. `cut`: the stage up to which weights are frozen, or empty: everything learns.

    `head`: what it starts from (`graft.learning.heads`), reading features of length one with `unit_length`; a hidden
    layer forgets `dropout` of its units in each step (Srivastava et al. 2014).
    `epochs` is the upper limit, `steps` another (but at least `least_epochs`); `patience` in epochs. `trunk_rate`,
    `head_rate`: AdamW's; a stage further down learns with `stage_decay` of the rate above it.
    `start_penalty`: the least penalty of the ridge head that training starts from (the best one may lean on directions in
    which the features hardly vary: its norm was 500 on magnetic_tile, and the first steps upset everything). Its logits
    are divided by `start_temperature`: on the very images it was fitted to it is so sure that little is left to learn from
    (docs/log.md, 2026-11-21: sketches). `averaging`: decay of the
    averaged weights per step. `views`: how many views are kept behind a frozen prefix; 0 makes fresh ones each time.
    `validation_share`: the part of the rows kept back; with 0 there are exactly `stop_epoch` epochs of the plan and
    `temperature` is taken as given. `generations`: how many networks learn one after the other, each from the labels and
    from what the one before says (`graft.learning.loop.taught`). `mixup`, `cutmix`: the parameters of their beta distributions; 0 is none, with both each batch has one of them.
    """

    cut: str = ""
    head: HeadKind = "ridge"
    unit_length: bool = True
    dropout: float = 0.2
    epochs: int = 16
    least_epochs: int = LEAST_EPOCHS
    steps: int = 1_500
    patience: int = 4
    batch_size: int = 32
    trunk_rate: float = 6e-4
    start_penalty: float = 0.01
    start_temperature: float = 5.0
    head_rate: float = 1e-3
    stage_decay: float = 0.75
    weight_decay: float = 0.02
    label_smoothing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    averaging: float = 0.99
    balance: Balance = "root"
    batch_norm: BatchNorm = "frozen"
    augment: Strength = "light"
    views: int = 4
    validation_share: float = 0.15
    stop_epoch: int | None = None
    temperature: float = 1.0
    generations: int = 1
    version: int = 1


def planned_epochs(images: int, settings: TuneSettings) -> int:
    """How many epochs the steps allow, `settings.least_epochs` to `settings.epochs`."""
    wanted = settings.steps // math.ceil(max(images, 1) / settings.batch_size)
    return max(min(settings.least_epochs, settings.epochs), min(settings.epochs, wanted))


def rates_of(settings: TuneSettings) -> Rates:
    """What the optimiser wants of the settings, for a head that starts as a ridge head."""
    return Rates(
        settings.trunk_rate,
        settings.head_rate,
        settings.stage_decay,
        settings.weight_decay,
        settings.averaging,
    )
