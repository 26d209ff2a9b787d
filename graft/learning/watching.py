"""How well a network does while it is trained: the accuracy and the study's metric of what it answers.

In: logits and labels, of the part that was kept back or of the batches as they were learned from. Out: two numbers. Cost:
nothing beside a training, and 4 bytes per image and class for the time of an epoch.

Not covered: the losses (`graft.learning.lessons`), and which epoch is kept.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from graft.learning.ridge import Criterion


@dataclass(slots=True)
class Watch:
    """The answers of one epoch, given before each step: of random views, with dropout where there is some."""

    criterion: Criterion | None
    answers: list[Tensor] = field(default_factory=list)
    labels: list[Tensor] = field(default_factory=list)

    def see(self, logits: Float[Tensor, "b k"], wanted: Tensor) -> None:
        """A batch: `wanted` are its labels, or the shares of the classes in mixed images, of which the largest counts."""
        self.answers.append(logits.detach().float().softmax(1).cpu())
        self.labels.append((wanted if wanted.ndim == 1 else wanted.argmax(1)).cpu())

    def judged(self) -> tuple[float, float]:
        """The accuracy (0 to 1) and the score of the epoch, as `judged` says."""
        return judged(torch.cat(self.answers), torch.cat(self.labels), self.criterion)


def judged(
    probabilities: Float[Tensor, "b k"], labels: Int64[Tensor, " b"], criterion: Criterion | None
) -> tuple[float, float]:
    """The accuracy (0 to 1) and what `criterion` says, where higher is better: NaN without one, both without rows."""
    if not len(labels):
        return math.nan, math.nan
    accuracy = float((probabilities.argmax(1) == labels).float().mean())
    return accuracy, math.nan if criterion is None else criterion(probabilities.numpy(), labels.numpy())
