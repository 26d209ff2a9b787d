"""A rung of the study: the best network on larger pictures than it was trained on.

In: the trials so far. Out: trials of the best network that learns nothing, frozen at all taps and read at several depths, on
pictures of about `LARGER` times the side, with their costs: as many bytes, twice the time. A network that was trained
on random crops has seen things larger than a test shows them; on a larger picture they have the size it knows
(Touvron et al. 2019, arXiv 1906.06423). MobileNetV1 0.5 of 160 px on 224, frozen, accuracy out of fold: hymenoptera
0.931 to 0.941, dogs_vs_cats 0.954 to 0.970, drawings 0.527 to 0.537; magnetic_tile 0.844 to 0.829, caltech101 0.802
to 0.794.

Cost: decoding, opening the network, two passes, and the heads; only where that is predicted to take at most `SHARE` of the
budget, and where half of the images are as large. The prediction is made of counts, not of a clock, and journalled; it
is an upper bound (8.0 s where 2.9 s were measured, 14.2 s for 9.3 s, 15.3 s for 4.6 s, on two cores), so that in truth a
tenth of the budget is spent.

Not covered: fine-tuning on larger pictures (`graft train --size`), and networks that cannot read another size.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from graft.backbones.ahead import Ahead
from graft.backbones.catalogue import find
from graft.backbones.weights import shelf
from graft.errors import BackboneError
from graft.studies.beside import of_the_better_framing, reads_as_usual
from graft.studies.board import board
from graft.studies.depths import against, best_read, read_together, reading_seconds, room_for
from graft.studies.frame import Event, Frame, Trial, budget_of
from graft.studies.inputs import DECODED, HEADS
from graft.studies.probe import priced, probing, samples_of
from graft.studies.rungs import Progress, Working, prepare, tell

LARGER = 1.4
STEP = 32  # what networks divide a side by
SHARE = 0.2  # of the budget
CHANGED = 1.0  # seconds to open the network at another size
DECISION = "larger_plan"


def larger_rung(frame: Frame, done: Progress, ahead: Ahead) -> Working:
    """Measure the best network on larger pictures, if that is cheap; and what was the best one in a shorter budget."""
    usual = of_the_better_framing(frame.targets, [t for t in done.trials if reads_as_usual(frame, t)])
    best = best_read(frame, usual)
    if best is None or frame.halt.is_set():
        return
    _decide(frame, best)
    worth = {r["recipe"] for r in frame.journal.records if r["kind"] == DECISION and r["worth"]}
    chosen = {(t.recipe.backbone, t.recipe.geometry): t for t in [*usual, best] if t.recipe.key in worth}
    for trial in chosen.values():
        yield from _shown_larger(frame, done, ahead, trial)


def _shown_larger(frame: Frame, done: Progress, ahead: Ahead, best: Trial) -> Working:
    """All taps of the network of a trial, and its readings, on larger pictures."""
    geometry = replace(best.recipe.geometry, size=larger_size(best.recipe.geometry.size))
    yield Event("stage", f"Showing {best.recipe.backbone} pictures of {geometry.size} px")
    entry = find(best.recipe.backbone, shelf(frame.folder))
    yield from prepare(frame, [geometry])
    samples, suffix = samples_of(frame, geometry), f"@{geometry.size}px"
    ahead.open(entry, geometry, samples)
    try:
        probed = yield from probing(frame, entry, geometry, ahead=ahead, samples=samples, suffix=suffix)
    except BackboneError as error:
        yield from tell(done, f"{entry.name} cannot be tried at {geometry.size} px: {error}")
        return
    made = [replace(t, about={**t.about, "enlarged": True}) for t in priced(frame, probed)]
    done.trials += made
    if made[-1].model_bytes is not None:
        yield from read_together(frame, done, made[-1])
    yield Event("board", "larger pictures shown", board=board(frame, done.trials))
    shown = [t for t in done.trials if (t.recipe.backbone, t.recipe.geometry) == (entry.name, geometry)]
    found = best_read(frame, shown)
    if found is not None:
        yield from tell(done, f"Shown pictures of {geometry.size} px, {against(frame, found, best)}")


def larger_size(size: int) -> int:
    """The side of the larger pictures."""
    return STEP * round(LARGER * size / STEP)


def _decide(frame: Frame, best: Trial) -> None:
    """Whether there is more to see, and the share of the budget pays it; journalled, so that it is decided once."""
    asked = {"recipe": best.recipe.key, "budget": budget_of(frame)}
    if frame.journal.find(DECISION, asked) is not None:
        return
    before, size = best.recipe.geometry.size, larger_size(best.recipe.geometry.size)
    there = np.median(np.minimum(frame.dataset.widths, frame.dataset.heights)) >= size
    images = len(frame.dataset)
    seconds = CHANGED + images * (1 / (DECODED * frame.compute.threads) + HEADS)
    # The probe makes one pass, the reading at several depths another.
    seconds += reading_seconds(frame, best, times=2 * (size / before) ** 2)
    worth = bool(size > before and there and seconds <= room_for(frame, SHARE))
    frame.journal.append(DECISION, {**asked, "worth": worth, "seconds": round(seconds, 1)})
