"""The epochs of a training as the journal and `study.json` hold them.

In: an `Epoch`. Out: a dictionary with numbers alone, None for what was not measured. Costs nothing.

Not covered: epochs of runs made before a figure was measured; they lack its name.
"""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from graft.judging.metrics import METRICS

if TYPE_CHECKING:
    from graft.learning.loop import Epoch
else:
    Epoch = Any


def epoch_facts(epoch: Epoch, metric: str) -> dict[str, float | int | None]:
    """The epoch; its scores as `train_metric` and `validation_metric`: the values of `metric`, a loss again a loss."""
    facts = asdict(epoch)
    for part in ("train", "validation"):
        facts[f"{part}_metric"] = METRICS[metric].sign * facts.pop(f"{part}_score")
    return {name: value if math.isfinite(value) else None for name, value in facts.items()}
