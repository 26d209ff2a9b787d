"""A rung of the study: what colour is worth, and what edges are worth, where finding out is cheap.

In: the frozen trials. Out: trials of the best backbone so far with grey images, with edges alone and with edges beside
the image (of grey images: edges alone and beside), frozen at all taps on the same folds: candidates like any other,
with their costs; and for the report `extras["inputs"]`: a row per input with its paired difference to the images as
they are (what it costs stands with the candidate), and one sentence. Strips of example images as the filters see them lie in the run folder.

Cost: as much again as the backbone took, per input, plus about 3 s to open the changed network. Only what is predicted
to take at most `SHARE` of the budget is measured. The prediction is made of the number of images, the network's
multiply-adds and the kind of machine, not of a clock, so that two studies decide alike; the decision is journalled.

Not covered: thin edges (`graft train --input thin`), and inputs of other backbones than the best.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from graft.backbones.ahead import Ahead
from graft.backbones.catalogue import find
from graft.backbones.inputs import input_word, read_as, seen_edges
from graft.backbones.weights import shelf
from graft.compute import Compute
from graft.errors import BackboneError
from graft.judging.metrics import METRICS
from graft.judging.uncertainty import Difference, draw_weights, estimate, paired
from graft.store import write_atomically
from graft.studies.beside import best_frozen
from graft.studies.board import board
from graft.studies.frame import Event, Frame, Trial, budget_of, criterion
from graft.studies.journal import TRIALS
from graft.studies.probe import priced, probing, samples_of
from graft.studies.rungs import Progress, Working, prepare, tell

SHARE = 0.1  # of the budget, for all inputs together
OPENING = 3.0  # seconds to change, export and check a network
FORWARD = 60e9  # multiply-adds per second that two cores surely reach
CARD = 3e12  # that an accelerator does
HEADS = 2e-3  # seconds per image for the heads of all taps on all folds
UNKNOWN_GMACS = 1.0  # of a network whose row does not tell
DECODED = 200.0  # images per second that are surely decoded on one thread
DECISION = "inputs_plan"
BESIDE = "edges beside the image"
DRAWS = 1_000
EXAMPLES = 4
SIDE = 160  # of an example, px
QUALITY = 72
LARGEST_STRIP = 60_000  # bytes


def inputs_rung(frame: Frame, done: Progress, ahead: Ahead) -> Working:
    """Measure the other inputs of the best frozen backbone, as many as are cheap."""
    best = best_frozen(frame, done.trials)
    if best is None or best.recipe.look != "plain":
        return
    own = [trial for trial in done.trials if _alike(trial, best)]
    wanted, left_out = _decided(frame, best)
    if wanted:
        yield Event("stage", f"Measuring {', '.join(wanted)} with {best.recipe.backbone}")
    rows = [_best(frame, own)]
    for word in wanted:
        before = len(done.trials)
        yield from _measured(frame, done, ahead, best, word)
        made = done.trials[before:]
        if made:
            rows.append(_best(frame, made))
            _strip(frame, made[0])
    if len(rows) > 1:
        _strip(frame, best)
        yield Event("board", "other inputs measured", board=board(frame, done.trials))
    told = _told(frame, rows, left_out)
    done.extras["inputs"] = told
    for sentence in filter(None, (told["sentence"], told["left_out"])):
        yield from tell(done, sentence)


def _alike(trial: Trial, best: Trial) -> bool:
    """Whether it is another tap of the same network on the same pixels."""
    one, other = trial.recipe, best.recipe
    same = (one.backbone, one.geometry, one.look) == (other.backbone, other.geometry, other.look)
    return same and one.strategy == "frozen" and trial.complete


def _decided(frame: Frame, best: Trial) -> tuple[list[str], str]:
    """The inputs to measure, and a sentence on those that are left out; journalled, so that it is decided once."""
    grey = best.recipe.geometry.channels == 1
    words = ["edges", "gray+edges"] if grey else ["gray", "edges", "rgb+edges"]
    decided = {"recipe": best.recipe.key, "budget": budget_of(frame)}
    known = frame.journal.find(DECISION, decided)
    if known is None:
        each = _predicted(frame, best)
        room = min(SHARE * frame.settings.budget_seconds, frame.remaining_seconds())
        spent, kept = 0.0 if grey else len(frame.dataset) / (DECODED * frame.compute.threads), []
        for word in words:
            spent += each
            if spent <= room:
                kept.append(word)
        known = frame.journal.append(DECISION, {**decided, "inputs": kept, "seconds": round(spent, 1)})
    left = [word for word in words if word not in known["inputs"]]
    if not left:
        return words, ""
    return known["inputs"], (
        f"{_listed(left)} {'was' if len(left) == 1 else 'were'} not measured as input of {best.recipe.backbone}: that "
        f"would take more than is kept for it, {SHARE:.0%} of the budget."
    )


def _predicted(frame: Frame, best: Trial) -> float:
    """Seconds for one more input of the same network."""
    gmacs = find(best.recipe.backbone, shelf(frame.folder)).gmacs or UNKNOWN_GMACS
    return OPENING + len(frame.dataset) * (gmacs * 1e9 / forward_speed(frame.compute) + HEADS)


def forward_speed(compute: Compute) -> float:
    """Multiply-adds a second that a feature pass surely reaches."""
    return CARD if compute.device != "cpu" else FORWARD * (compute.threads / 2) ** 0.7


def _measured(frame: Frame, done: Progress, ahead: Ahead, best: Trial, word: str) -> Working:
    """The taps of the best backbone, shown something else, as trials."""
    entry = find(best.recipe.backbone, shelf(frame.folder))
    geometry, look = read_as(word, best.recipe.geometry)
    yield from prepare(frame, [geometry])
    samples = samples_of(frame, geometry)
    ahead.open(entry, geometry, samples, look=look)
    try:
        probed = yield from probing(
            frame, entry, geometry, ahead=ahead, samples=samples, suffix=f"@{word}", look=look
        )
    except BackboneError as error:
        yield from tell(done, f"{entry.name} with {word} is left out: {error}")
        return
    done.trials += priced(frame, probed)


def _best(frame: Frame, trials: Sequence[Trial]) -> Trial:
    score = criterion(frame.settings.metric)
    return max(trials, key=lambda trial: score(trial.probabilities, frame.targets))


def _told(frame: Frame, trials: Sequence[Trial], left_out: str) -> dict[str, Any]:
    """What the report shows: the images as they are come first."""
    metric = METRICS[frame.settings.metric]
    groups = frame.dataset.groups[frame.rows]
    draws = draw_weights(frame.targets, groups, draws=DRAWS, seed=frame.settings.seed)
    rows: list[dict[str, Any]] = []
    differences: dict[str, Difference] = {}
    for trial in trials:
        word = input_word(trial.recipe.geometry, trial.recipe.look)
        found = estimate(metric.name, trial.probabilities, frame.targets, groups, draws)
        row: dict[str, Any] = {
            "input": word,
            "id": trial.recipe.name,
            "tap": trial.recipe.tap,
            metric.name: found.value,
            "interval": [found.low, found.high],
            "difference": None,
            "difference_interval": None,
        }
        if trial is not trials[0]:
            gap = paired(metric.name, trial.probabilities, trials[0].probabilities, frame.targets, draws)
            differences[word] = gap
            row |= {"difference": gap.estimate, "difference_interval": [gap.low, gap.high]}
        rows.append(row)
    return {
        "backbone": trials[0].recipe.backbone,
        "metric": metric.name,
        "rows": rows,
        "sentence": worth_of_colour(differences, metric=metric.name, backbone=trials[0].recipe.backbone),
        "left_out": left_out,
    }


def worth_of_colour(differences: dict[str, Difference], *, metric: str, backbone: str) -> str:
    """One sentence from the differences of each input to the images as they are; empty if there are none."""
    if not differences:
        return ""
    parts = []
    gray = differences.get("gray")
    if gray is not None:
        worth = Difference(-gray.estimate, -gray.high, -gray.low)
        if worth.touches_zero:
            parts.append(f"Whether colour is worth anything cannot be told: {_amount(worth, metric)}")
        else:
            said = "Colour is worth" if worth.low > 0 else "Colour does harm: it is worth"
            parts.append(f"{said} {_amount(worth, metric)}")
    for word, name in (("edges", "edges alone"), ("rgb+edges", BESIDE), ("gray+edges", BESIDE)):
        if word in differences:
            parts.append(_edges(name, differences[word], metric))
    told = "; ".join(parts)
    return f"{told[0].upper()}{told[1:]}; with {backbone} frozen, the best tap of each, 95 % intervals."


def _edges(name: str, gap: Difference, metric: str) -> str:
    if gap.touches_zero:
        return f"{name} cannot be told from the image as it is: {_amount(gap, metric)}"
    if gap.high < 0:
        return f"{name} cost {_amount(Difference(-gap.estimate, -gap.high, -gap.low), metric)}"
    return f"{name} gain {_amount(gap, metric)}"


def _amount(gap: Difference, metric: str) -> str:
    """`4.3 points of macro-F1 (1.9 to 6.7)`, or `0.043 log loss (0.019 to 0.067)`."""
    kind = METRICS[metric]
    values = (gap.estimate, gap.low, gap.high)
    digits, scale = (1, 100) if kind.from_decisions else (3, 1)
    value, low, high = (
        f"{round(scale * v, digits) + 0.0:.{digits}f}" for v in values
    )  # no minus before zero
    return f"{value} {'points of ' if kind.from_decisions else ''}{kind.label} ({low} to {high})"


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def strip_file(word: str) -> str:
    """Where in the run folder the examples of an input lie."""
    return f"{TRIALS}/seen-{word}.jpg"


def _strip(frame: Frame, trial: Trial) -> None:
    """Four images of the check side by side as this trial's network sees them; edges beside the image are left out."""
    look = trial.recipe.look
    if look.startswith("plain+"):
        return
    images = samples_of(frame, trial.recipe.geometry)
    seen = images if look == "plain" else seen_edges(look, images, store=frame.store)[..., None]
    chosen = seen[np.linspace(0, len(seen) - 1, min(EXAMPLES, len(seen))).round().astype(int)]
    pictures = [Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image) for image in chosen]
    strip = Image.new(pictures[0].mode, (SIDE * len(pictures), SIDE))
    for place, picture in enumerate(pictures):
        strip.paste(picture.resize((SIDE, SIDE), Image.Resampling.BICUBIC), (place * SIDE, 0))
    stream = io.BytesIO()
    strip.save(stream, "JPEG", quality=QUALITY, optimize=True)
    if stream.tell() <= LARGEST_STRIP:
        word = input_word(trial.recipe.geometry, look)
        write_atomically(frame.settings.out / strip_file(word), stream.getvalue())
