"""A rung of the study: how small the model can be for (nearly) the same score.

In: all trials so far. Out: trials of smaller models on the same folds, candidates like any other, and for the report
`extras["shrink"]` (`graft.studies.shrinking.told`): every step with its gates, and the curve of the score against bytes
and latency. The steps, in the order in which a small budget pays them:

1. lower taps: measured by the probe already;
2. a smaller input for the best network, frozen at all its taps;
3. networks cut at any waist and read at several depths at once (`graft.deploy.reading`; those that are not cut are no
   smaller: `graft.studies.depths`);
4. the most promising of all these in 8 bits (`graft.deploy.quantise`);
5. those of them that hold, or nearly, with 4-bit weights (`graft.deploy.codebook`);
6. the best of what was fine-tuned, and the small CNN from scratch, in 8 bits;
7. the best frozen network with fewer inner channels (`graft.deploy.thinning`), in 8 bits;
8. the rest of the curve in 8 bits, and what else nearly holds with 4-bit weights;
9. students of the best network (`graft.studies.shrinking.students`), and they in 8 bits.

What is tried is a function of the scores and of a share of the budget, which pays by the size of networks and not by the
clock, so that two studies with one seed try the same. Every finished (recipe, fold) is in the journal.

Not covered: fine-tuned networks with fewer channels; students that start from ImageNet.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from time import monotonic

from graft.backbones.catalogue import find
from graft.backbones.trunks import trunk_of
from graft.backbones.weights import shelf
from graft.deploy.reading import waists
from graft.errors import BackboneError, BundleError
from graft.images.pixels import open_pixels
from graft.judging.metrics import METRICS
from graft.studies.beside import best_frozen
from graft.studies.board import board
from graft.studies.choice import megabytes
from graft.studies.frame import Event, Frame, Trial
from graft.studies.probe import heads_on_taps, priced, samples_of
from graft.studies.rungs import Progress, Working, kept_for_the_end, prepare, tell
from graft.studies.shrinking.costs import (
    Purse,
    calibrated_cost,
    coded_cost,
    depths_cost,
    smaller_input_cost,
    student_cost,
)
from graft.studies.shrinking.measuring import measuring
from graft.studies.shrinking.networks import prepared_trunk
from graft.studies.shrinking.pooled import depths_to_try
from graft.studies.shrinking.students import WIDTHS, student_geometry
from graft.studies.shrinking.told import full_size, score_of, signed, told_of
from graft.studies.shrinking.variants import Variant, kind_of, shrunk_recipe, variant_of
from graft.studies.shrinking.worth import (
    is_eight,
    is_float,
    is_frozen,
    is_trained,
    same_network,
    trained_candidates,
    worth_quantising,
    worth_thinning,
)
from graft.studies.symmetry import ask_the_best

TOLERANCE = 0.01
TELLING = 1.0  # seconds to hold the steps against their gates
SHARE = 0.1  # of the budget
SCREENING = 0.5  # of that at most for what is not yet in 8 bits
SMALLER_INPUTS = (160, 128, 96)
THIN_SHARES = (0.65, 0.45)
MOST_CODED = 3  # of those in 8 bits get 4-bit weights, each time
CODING_LOSS = 2.0  # tolerances below the best full-size candidate, 8 bits are worth 4-bit weights


def shrink_rung(
    frame: Frame, done: Progress, *, tolerance: float = TOLERANCE, seconds: float | None = None
) -> Working:
    """Measure smaller models in `seconds` (default: a share of the budget), and tell of each step whether it holds."""
    if not any(full_size(trial) for trial in done.trials):
        return
    if seconds is None:
        whole = SHARE * frame.settings.budget_seconds
        spare = frame.remaining_seconds() - kept_for_the_end(frame.targets, done.trials)
        until = monotonic() + spare - TELLING
    else:
        whole, until = seconds, monotonic() + seconds
    yield Event("stage", "Shrinking: smaller models on the same folds")
    screening, purse = Purse(SCREENING * whole, until), Purse((1 - SCREENING) * whole, until)
    try:
        yield from _steps(frame, done, screening, purse, tolerance)
    finally:  # what is measured is told, also where the rung is left half-way
        told = told_of(frame, done.trials, tolerance=tolerance)
        done.extras["shrink"] = told | {"unpaid": screening.refused + purse.refused}
    yield from tell(done, done.extras["shrink"]["sentence"])
    yield Event("board", "shrunk", board=board(frame, done.trials))


def _steps(frame: Frame, done: Progress, screening: Purse, purse: Purse, tolerance: float) -> Working:
    """All steps that are paid: by `screening` before 8 bits, then by `purse` and what was left of it."""
    best = best_frozen(frame, done.trials)
    frozen = best is not None and best.model_bytes is not None
    before = {id(trial) for trial in done.trials}
    if best is not None and frozen:
        yield from _smaller_inputs(frame, done, best, screening)
        yield from _several_depths(frame, done, screening)
    purse.seconds += screening.seconds
    first, later = worth_quantising(frame, done.trials, tolerance) if frozen else ([], [])
    for trial in first:
        yield from _in_8_bits(frame, done, trial, purse)
    yield from _in_4_bits(frame, done, tolerance, purse)
    for trial in trained_candidates(frame, done.trials):
        yield from _in_8_bits(frame, done, trial, purse)
    for share in THIN_SHARES if frozen else ():
        for trial in worth_thinning(frame, done.trials, before):
            variant = replace(variant_of(trial), share=share, precision="int8")
            if _known(frame, done, trial, variant) or purse.pays(calibrated_cost(frame, trial)):
                yield from _measured(frame, done, trial, variant, purse)
    for trial in later:
        yield from _in_8_bits(frame, done, trial, purse)
    yield from _in_4_bits(frame, done, tolerance, purse)
    yield from _students(frame, done, purse)


def _in_8_bits(frame: Frame, done: Progress, trial: Trial, purse: Purse) -> Working:
    variant = replace(variant_of(trial), precision="int8")
    if _known(frame, done, trial, variant) or purse.pays(calibrated_cost(frame, trial)):
        yield from _measured(frame, done, trial, variant, purse)


def _in_4_bits(frame: Frame, done: Progress, tolerance: float, purse: Purse) -> Working:
    """Those in 8 bits that (nearly) hold, the best first, by what they were made from, too: 4 bits cost some more."""
    reference = max(signed(frame, t) for t in done.trials if full_size(t))
    by_name = {trial.recipe.name: trial for trial in done.trials}
    worth = [
        t for t in done.trials if is_eight(t) and signed(frame, t) >= reference - CODING_LOSS * tolerance
    ]

    def promise(trial: Trial) -> float:
        return signed(frame, trial) + signed(frame, by_name[trial.about["shrunk"]["from"]])

    for trial in sorted(worth, key=lambda t: -promise(t))[:MOST_CODED]:
        variant = replace(variant_of(trial), precision="int4")
        if _known(frame, done, trial, variant) or purse.pays(coded_cost(frame, _origin(done.trials, trial))):
            yield from _measured(frame, done, trial, variant, purse)


def _students(frame: Frame, done: Progress, purse: Purse) -> Working:
    """Small CNNs that learn from the best network in float32, each brought to 8 bits, too."""
    teachers = [
        trial
        for trial in done.trials
        if is_frozen(trial) or is_float(trial) or (is_trained(trial) and trial.recipe.strategy != "scratch")
    ]
    teacher = max(teachers, key=lambda trial: signed(frame, trial), default=None)
    if teacher is None:
        return
    for width in WIDTHS:
        variant = replace(variant_of(teacher), student=width)
        if not _known(frame, done, teacher, variant) and not purse.pays(student_cost(frame, teacher, width)):
            continue
        yield from ask_the_best(frame, done.trials)
        yield from prepare(frame, [student_geometry(teacher)])
        yield from _measured(frame, done, teacher, variant, purse)
        recipe = shrunk_recipe(_origin(done.trials, teacher), variant)
        made = next((trial for trial in done.trials if trial.recipe == recipe), None)
        small = replace(variant, precision="int8")
        if made is not None and (
            _known(frame, done, teacher, small) or purse.pays(calibrated_cost(frame, made))
        ):
            yield from _measured(frame, done, made, small, purse)


def _smaller_inputs(frame: Frame, done: Progress, best: Trial, purse: Purse) -> Working:
    """The best network frozen at all its taps, on smaller pictures."""
    entry = find(best.recipe.backbone, shelf(frame.folder))
    for size in (size for size in SMALLER_INPUTS if size < best.recipe.geometry.size):
        geometry = replace(best.recipe.geometry, size=size)
        known = any(trial.recipe.geometry == geometry and same_network(trial, best) for trial in done.trials)
        if known or not (
            _journalled(frame, f"{entry.name}/", f"@{size}px")
            or purse.pays(smaller_input_cost(frame, best, size))
        ):
            continue
        yield Event("progress", f"{entry.name} at {size} px", remaining_seconds=frame.remaining_seconds())
        yield from prepare(frame, [geometry])
        try:
            trunk = trunk_of(
                entry,
                geometry,
                folder=frame.folder,
                reach=frame.reach,
                store=frame.store,
                samples=samples_of(frame, geometry),
                compute=frame.compute,
                look=best.recipe.look,
            )
        except BackboneError as error:
            yield from tell(done, f"{entry.name} cannot be tried at {size} px: {error}")
            continue
        pixels = open_pixels(frame.dataset, geometry, store=frame.store)
        probed = yield from heads_on_taps(frame, trunk, pixels, suffix=f"@{size}px")
        done.trials += priced(frame, probed)


def _several_depths(frame: Frame, done: Progress, purse: Purse) -> Working:
    """Every network cut at some waists, each read together with waists below it: the cheap networks first."""
    deepest: dict[tuple[str, str], Trial] = {}
    for trial in done.trials:
        if is_frozen(trial) and trial.model_bytes is not None:
            key = trial.recipe.backbone, trial.recipe.geometry.key + trial.recipe.look
            known = deepest.get(key)
            if known is None or trial.tap_index > known.tap_index:
                deepest[key] = trial
    for trial in sorted(deepest.values(), key=lambda t: (t.model_bytes or 0, t.recipe.name)):
        read = any(
            is_float(other)
            and other.recipe.strategy == "shrunk"
            and other.about["shrunk"]["base"] == trial.recipe.name
            for other in done.trials
        )
        read = read or _journalled(frame, f"{trial.recipe.name}+depths:")
        if not read and not purse.pays(depths_cost(frame, trial)):
            continue
        text = f"{trial.recipe.name}: looking for depths to read"
        yield Event("progress", text, remaining_seconds=frame.remaining_seconds())
        try:
            found = waists(prepared_trunk(frame, trial))
        except BundleError:
            continue
        full = kind_of(trial) is None
        for number in depths_to_try([waist.weights for waist in found]):
            variant = Variant(deepest=number, whole=full and number == len(found) - 1)
            for quarters in (False, True):
                yield from _measured(frame, done, trial, replace(variant, quarters=quarters), purse)


def _measured(frame: Frame, done: Progress, base: Trial, variant: Variant, purse: Purse) -> Working:
    """One more candidate; nothing where the time is over before its last fold, which an earlier call may have measured."""
    if frame.halt.is_set() or (purse.empty and not _known(frame, done, base, variant)):
        return
    origin = _origin(done.trials, base)
    try:
        with closing(measuring(frame, origin, variant, from_name=base.recipe.name)) as work:
            while True:
                try:
                    yield next(work)
                except StopIteration as finished:
                    trial = finished.value
                    break
                if purse.empty:
                    return
    except BundleError as error:
        yield from tell(done, f"{base.recipe.name}{variant.suffix} could not be made: {error}")
        return
    if trial is None or any(trial.recipe.key == other.recipe.key for other in done.trials):
        return
    done.trials.append(trial)
    score = METRICS[frame.settings.metric].text(score_of(frame, trial))
    size = megabytes(trial.model_bytes or 0)
    yield Event("result", f"{trial.recipe.name}: {METRICS[frame.settings.metric].label} {score}, {size}")


def _known(frame: Frame, done: Progress, base: Trial, variant: Variant) -> bool:
    """Whether this study or an earlier call has measured it already: then it costs nothing more."""
    key = shrunk_recipe(_origin(done.trials, base), variant).key
    if any(trial.recipe.key == key for trial in done.trials):
        return True
    return all(frame.journal.fold(key, fold) is not None for fold in range(frame.folds.count))


def _journalled(frame: Frame, begin: str, end: str = "") -> bool:
    """Whether an earlier call has measured anything of such a name."""
    names = (record.get("name", "") for record in frame.journal.records if record["kind"] == "fold")
    return any(name.startswith(begin) and name.endswith(end) for name in names)


def _origin(trials: Sequence[Trial], trial: Trial) -> Trial:
    """The trial a shrunk one was made from in the end: frozen, or trained."""
    name = trial.about["shrunk"]["base"] if "shrunk" in trial.about else trial.recipe.name
    return next(one for one in trials if one.recipe.name == name)
