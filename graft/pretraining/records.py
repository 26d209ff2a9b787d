"""What a training tells while it runs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Progress:
    """What goes on; `done` of `total`; `remaining_seconds` until the end of the training, 0 if unknown."""

    text: str
    done: int = 0
    total: int = 0
    remaining_seconds: float = 0.0
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Epoch:
    """One pass, counted from 1. Losses as `graft.pretraining.lessons` defines them; `accuracy`: the share of held-out
    images that get the teacher's, or the labels', class. None where there is no held-out part, or no classifier."""

    number: int
    planned: int
    train_loss: float
    held_loss: float | None
    held_accuracy: float | None
    learning_rate: float
    images_per_second: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Notice:
    """A sentence."""

    text: str


Event = Progress | Epoch | Notice
