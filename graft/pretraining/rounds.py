"""The order of a training: rounds of batches, cut into pieces that are made, and taught, at once.

In: a source, the settings of its views, a seed. Out: for a round and a batch number the rows of that batch, and for a
piece the views of all its batches. Everything follows from (seed, round, batch number), so that a piece made again
after a crash, or by another student's training, is the same piece. A part of the images is held out and never seen.

Cost: memory for one piece (at most 200 MB), and reading its images from the memory map.
"""

from __future__ import annotations

import functools
from dataclasses import asdict, dataclass

import numpy as np
import torch
from jaxtyping import Float32, Int64, UInt8
from torch import Tensor

from graft.pretraining.source import Source
from graft.pretraining.views import ViewSettings, generator_of, views_of, whole
from graft.store import content_key

PIECE_BYTES = 200_000_000
HELD_SHARE = 0.02
MOST_HELD = 2_000
ORDER, BATCH, HELD = 0, 1, 2  # what a generator is for


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """The batches from `first` to before `last` of a round, one after the other; `partners` is the mixed-in image."""

    pixels: UInt8[Tensor, "m v v 3"]
    mix: Float32[Tensor, " m"]
    labels: Int64[Tensor, " m"]
    partners: Int64[Tensor, " m"]
    first: int
    last: int


@dataclass(frozen=True, eq=False)
class Rounds:
    """`learn` and `held` are rows of the source; a batch has `batch` images, a round `steps` batches."""

    source: Source
    learn: Int64[np.ndarray, " l"]
    held: Int64[np.ndarray, " h"]
    views: ViewSettings
    batch: int
    seed: int

    @property
    def steps(self) -> int:
        """Batches in a round; what is left over is too few for one and has its turn in another round."""
        return len(self.learn) // self.batch

    @property
    def per_piece(self) -> int:
        """Batches in a piece."""
        return max(1, min(self.steps, PIECE_BYTES // (self.batch * self.views.size**2 * 3)))

    @property
    def pieces(self) -> int:
        """Pieces in a round."""
        return -(-self.steps // self.per_piece)

    @functools.cached_property
    def key(self) -> str:
        """What the views of all rounds follow from."""
        held = [len(self.held), self.seed]
        return content_key("rounds.v1", self.source.key, asdict(self.views), self.batch, held)

    def piece(self, number: int, index: int, device: torch.device) -> Piece:
        """Piece `index` of round `number`, its views made on `device`."""
        first = index * self.per_piece
        last = min(self.steps, first + self.per_piece)
        order = self._order(number)
        made, labels, partners = [], [], []
        for step in range(first, last):
            rows = np.sort(order[step * self.batch : (step + 1) * self.batch])
            images = torch.from_numpy(self.source.images(rows)).to(device)
            views = views_of(images, self.views, generator=generator_of(BATCH, self.seed, number, step))
            own = torch.from_numpy(self.source.labels[rows[list(views.order)]])
            made.append(views)
            labels.append(own)
            partners.append(own.flip(0))
        return Piece(
            torch.cat([views.pixels for views in made]),
            torch.cat([views.mix for views in made]),
            torch.cat(labels).to(device),
            torch.cat(partners).to(device),
            first,
            last,
        )

    def held_images(self) -> UInt8[Tensor, "h v v 3"]:
        """The held-out images, whole and at the views' size."""
        return whole(torch.from_numpy(self.source.images(self.held)), self.views.size)

    def held_labels(self) -> Int64[Tensor, " h"]:
        """Their labels, -1 where there are none."""
        return torch.from_numpy(self.source.labels[self.held])

    def _order(self, number: int) -> Int64[np.ndarray, " l"]:
        generator = generator_of(ORDER, self.seed, number)
        return self.learn[torch.randperm(len(self.learn), generator=generator).numpy()]


def rounds_of(source: Source, views: ViewSettings, *, batch: int, seed: int) -> Rounds:
    """The rounds over `source`: 2 % of its images, at most 2,000, are held out, none of fewer than 50."""
    count = min(MOST_HELD, int(HELD_SHARE * len(source)))
    order = torch.randperm(len(source), generator=generator_of(HELD, seed)).numpy()
    learn = np.sort(order[count:])
    return Rounds(source, learn, np.sort(order[:count]), views, min(batch, len(learn)), seed)
