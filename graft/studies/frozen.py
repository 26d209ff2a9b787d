"""The first rung of a study: every backbone frozen, at every depth.

In: the planned backbones. Out: a trial for each tap of each. One backbone, the pilot, is shown the images cropped and squashed
first; what is better for it holds for the others, and the best of those are asked themselves, as long as they see it the other
way. Where there is nothing to transfer from, the features of an untrained network are measured.

Cost: a pass of each network through the images, and a head for each tap and fold.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
from jaxtyping import UInt8

from graft.backbones.ahead import Ahead
from graft.backbones.catalogue import Entry
from graft.backbones.trunks import untrained_trunk
from graft.errors import BackboneError
from graft.images.dataset import Preprocess
from graft.images.pixels import decoded, open_pixels
from graft.judging.metrics import METRICS
from graft.studies.board import board
from graft.studies.frame import Event, Frame, Trial, criterion
from graft.studies.plan import NAMED, Plan, geometry_of, pilot
from graft.studies.probe import check_rows, heads_on_taps, priced, probing, samples_of
from graft.studies.rungs import (
    ALONE_TUNING_SHARE,
    TUNING_SHARE,
    Progress,
    Working,
    first_answer,
    prepare,
    tell,
    training_settings,
    training_speed,
)
from graft.studies.schedule import intended, scheduled

AFTER_PROBE_SHARE = 0.8  # is kept for all that follows the probe
REFRAMED_SHARE = 0.06  # of that, for the best networks with images framed in the other way
HARDLY = 0.03  # of the metric behind the best


def probe_rung(frame: Frame, planned: Plan, done: Progress, ahead: Ahead) -> Working:
    """Measure them one after the other, the cheapest first, as long as the budget is not kept for what follows."""
    if frame.settings.only == "scratch":
        return
    if not planned.backbones:
        yield from _untrained(frame, done)
        return
    yield Event("stage", f"Probing {len(planned.backbones)} backbones at every depth")
    done.reasons |= {entry.name: why for entry, why in planned.backbones}
    fit = yield from _pilot(frame, planned, done, ahead)
    if done.trials:
        yield from _intended(frame, planned, done)
    yield from prepare(frame, [geometry_of(entry, frame.dataset, fit) for entry, _ in planned.backbones])
    reserve = _kept_share(frame) * frame.settings.budget_seconds
    for place, (entry, why) in enumerate(planned.order):
        geometry = geometry_of(entry, frame.dataset, fit)
        if any(
            trial.recipe.backbone == entry.name and trial.recipe.geometry == geometry for trial in done.trials
        ):
            continue
        wanted = why == NAMED or _known(frame, entry)
        if done.trials and frame.remaining_seconds() < reserve and not wanted:
            yield from tell(done, f"{entry.name} was not probed: the budget is kept for what follows.")
            continue
        for near, _ in planned.order[place : place + 2]:
            wide = geometry_of(near, frame.dataset, fit)
            ahead.open(near, wide, samples_of(frame, wide))
        patience = -math.inf if wanted or not done.trials else reserve
        samples = samples_of(frame, geometry)
        yield from _probed(frame, entry, geometry, done, ahead, samples=samples, patience=patience)
    if not done.trials:
        raise BackboneError("No backbone could be opened. " + " ".join(done.notices[-2:]))
    if frame.settings.fit == "auto":
        kept = reserve - REFRAMED_SHARE * frame.settings.budget_seconds
        yield from _reframed(frame, planned, done, ahead, fit, kept_seconds=kept)
    yield Event("board", "all backbones probed", board=board(frame, done.trials))


def _reframed(
    frame: Frame,
    planned: Plan,
    done: Progress,
    ahead: Ahead,
    fit: Literal["crop", "squash", "pad"],
    *,
    kept_seconds: float,
) -> Working:
    """The best networks in the other fit, as long as that is better for them: the pilot speaks for itself alone.

    Of 1,919 drawings the pilot, MobileNetV1 at half width, was better cropped; the best one, MobileNetV2, squashed: macro-F1
    0.538 and 0.561, read at several depths 0.582 and 0.626.
    """
    other: Literal["crop", "squash"] = "squash" if fit == "crop" else "crop"
    words = {"crop": "cropped at the centre", "squash": "squashed to a square"}[other]
    entries = {entry.name: entry for entry, _ in planned.order}
    for name in _near_the_best(frame, done.trials):
        entry = entries.get(name)
        if entry is None or entry == pilot(planned.backbones):
            continue
        if frame.remaining_seconds() < kept_seconds and not _known(frame, entry, ending=f"@{other}"):
            return
        geometry, before = geometry_of(entry, frame.dataset, other), list(done.trials)
        yield from prepare(frame, [geometry])
        samples = samples_of(frame, geometry)
        yield from _probed(frame, entry, geometry, done, ahead, samples=samples, suffix=f"@{other}")
        one = _log_loss(frame, [trial for trial in before if trial.recipe.backbone == name])
        two = _log_loss(frame, done.trials[len(before) :])
        if two >= one:
            return
        yield from tell(
            done, f"{name} sees images better {words}: log loss {two:.3f}, the other way {one:.3f}."
        )


def _near_the_best(frame: Frame, trials: Sequence[Trial]) -> list[str]:
    """The networks whose best tap is the best one or hardly behind, the best first."""
    score = criterion(frame.settings.metric)
    best: dict[str, float] = {}
    for trial in trials:
        if trial.recipe.strategy == "frozen" and trial.complete:
            found = score(trial.probabilities, frame.targets)
            best[trial.recipe.backbone] = max(best.get(trial.recipe.backbone, found), found)
    least = max(best.values(), default=0.0) - HARDLY
    return sorted((name for name in best if best[name] >= least), key=lambda name: -best[name])


def _log_loss(frame: Frame, trials: Sequence[Trial]) -> float:
    """The lowest among these, in nats."""
    loss = criterion("log_loss")
    whole = [trial for trial in trials if trial.complete]
    return min((-loss(trial.probabilities, frame.targets) for trial in whole), default=math.inf)


def _intended(frame: Frame, planned: Plan, done: Progress) -> Working:
    """The plan of the whole study, calibrated by the first backbone."""
    shares, training = {}, 0.0
    if frame.settings.only is None:
        from graft.backbones.scratch import design
        from graft.learning.scratch_settings import planned_multiply_adds

        shares = {
            "reading several depths": 0.3,
            "measuring other inputs": 0.1,
            "showing larger pictures": 0.2,
            "fine-tuning": TUNING_SHARE,
            "shrinking": 0.1,
        }
        made, _ = design(frame.dataset, development=len(frame.rows))
        settings = training_settings(frame)
        work = frame.folds.count * planned_multiply_adds(made, len(frame.learned_from(0)), settings)
        training = work / training_speed(frame.compute)
    elif frame.settings.only == "finetuned":
        shares = {"fine-tuning": ALONE_TUNING_SHARE}
    schedule = scheduled(frame, planned, done.trials, shares, training)
    yield Event("notice", intended(schedule, frame.settings.budget_seconds))


def _kept_share(frame: Frame) -> float:
    """The share of the budget for what follows the probe."""
    only = frame.settings.only or ""
    return {"frozen": 0.0, "finetuned": ALONE_TUNING_SHARE}.get(only, AFTER_PROBE_SHARE)


def _known(frame: Frame, entry: Entry, *, ending: str = "") -> bool:
    """Whether an earlier session of this study had come to this backbone: its results cost nothing."""
    names = (str(record.get("name", "")) for record in frame.journal.records)
    return any(name.startswith(f"{entry.name}/") and name.endswith(ending) for name in names)


def _probed(
    frame: Frame,
    entry: Entry,
    geometry: Preprocess,
    done: Progress,
    ahead: Ahead,
    *,
    samples: UInt8[np.ndarray, "m h w c"],
    suffix: str = "",
    patience: float = -math.inf,
) -> Working:
    try:
        probed = yield from probing(
            frame, entry, geometry, ahead=ahead, samples=samples, suffix=suffix, patience=patience
        )
    except BackboneError as error:
        yield from tell(done, f"{entry.name} is left out: {error}")
        return
    if not done.trials:
        yield from first_answer(frame, probed.trials)
    trials = priced(frame, probed)
    done.trials += trials
    odd = trials[0].about["notice"]
    if odd and odd not in done.notices:
        yield from tell(done, odd)
    best = board(frame, trials)[0]
    yield Event("result", f"{best['id']}: {METRICS[frame.settings.metric].label} {best['text']}")


def _pilot(
    frame: Frame, planned: Plan, done: Progress, ahead: Ahead
) -> Generator[Event, None, Literal["crop", "squash", "pad"]]:
    """Crop or squash? One backbone tries both; its lower out-of-fold log loss decides for all. Both stay candidates."""
    if frame.settings.fit != "auto":
        return frame.settings.fit
    entry = pilot(planned.backbones)
    fits: tuple[Literal["crop"], Literal["squash"]] = ("crop", "squash")
    geometries = {fit: geometry_of(entry, frame.dataset, fit) for fit in fits}
    samples = np.concatenate(decoded(frame.dataset, check_rows(frame), list(geometries.values())))
    ahead.open(entry, geometries["crop"], samples)
    yield from prepare(frame, list(geometries.values()))
    losses: dict[Literal["crop", "squash", "pad"], float] = {}
    for fit in fits:
        before = len(done.trials)
        yield from _probed(frame, entry, geometries[fit], done, ahead, samples=samples, suffix=f"@{fit}")
        losses[fit] = _log_loss(frame, done.trials[before:])
    better: Literal["crop", "squash"] = "squash" if losses["squash"] < losses["crop"] else "crop"
    done.trials = [
        replace(trial, recipe=replace(trial.recipe, name=trial.recipe.name.removesuffix(f"@{better}")))
        for trial in done.trials
    ]
    if np.isfinite(losses[better]):
        yield from tell(
            done,
            f"Images are {'squashed to a square' if better == 'squash' else 'cropped at the centre'}: on {entry.name} "
            f"this has the lower log loss ({losses[better]:.3f}; crop {losses['crop']:.3f}, squash {losses['squash']:.3f}).",
        )
    return better


def _untrained(frame: Frame, done: Progress) -> Working:
    """Nothing to transfer from: the features of an untrained network show what learning is worth."""
    from graft.backbones.scratch import design

    yield Event("stage", "Measuring the features of an untrained network")
    if frame.journal.find("untrained", {}) is None:
        frame.journal.append("untrained", {})
    made, geometry = design(frame.dataset, development=len(frame.rows))
    yield from prepare(frame, [geometry])
    pixels = open_pixels(frame.dataset, geometry, store=frame.store)
    trunk = untrained_trunk(
        made,
        geometry,
        seed=frame.settings.seed,
        store=frame.store,
        samples=samples_of(frame, geometry),
        compute=frame.compute,
    )
    probed = yield from heads_on_taps(frame, trunk, pixels, suffix="@untrained")
    yield from first_answer(frame, probed.trials)
    done.trials += priced(frame, probed)
