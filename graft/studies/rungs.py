"""The rungs of a study in the order of growing cost: every backbone frozen, then training from scratch."""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Bool, Int64, UInt8

from graft.backbones.ahead import Ahead
from graft.backbones.catalogue import Entry
from graft.backbones.trunks import TrunkFile, untrained_trunk
from graft.compute import Compute
from graft.errors import BackboneError
from graft.images.dataset import Preprocess
from graft.images.pixels import decoded, open_pixels, preparing
from graft.judging.metrics import METRICS
from graft.studies.beside import best_frozen
from graft.studies.board import board
from graft.studies.frame import Event, Frame, Trial, criterion
from graft.studies.knowing import MOST_EMBEDDED
from graft.studies.plan import NAMED, Plan, geometry_of, pilot
from graft.studies.probe import check_rows, heads_on_taps, priced, probing, samples_of
from graft.studies.schedule import intended, scheduled
from graft.studies.scratching import scratching

if TYPE_CHECKING:
    from graft.backbones.scratch import ScratchDesign
    from graft.learning.training import TrainingSettings
else:
    ScratchDesign = TrainingSettings = Any

TUNING_SHARE = 0.5  # of the budget is planned for fine-tuning and the last fit of what is tuned
SCRATCH_SHARE = 0.2  # for training from scratch
AFTER_TUNING_SHARE = 0.35  # is kept for all that follows fine-tuning
AFTER_PROBE_SHARE = 0.8  # is kept for all that follows the probe
REFRAMED_SHARE = 0.06  # of that, for the best network with images framed in the other way
ALONE_SHARE = 0.6  # of the budget for training from scratch where nothing else takes time; the rest is slack
ALONE_TUNING_SHARE = 0.75  # for fine-tuning with --only finetuned
NEAR = 0.05  # of accuracy: what is further behind the best will not be chosen
LAST_FIT = 1.3  # times the seconds of a fold: fitting on all images
AMOUNTS_COST = 0.75  # of a fold: training on a quarter and a half of its images
LEAST_TRAINING = 0.2e12  # multiply-adds of a fold, forward
TRAINING_SPEED = 27e9  # forward multiply-adds per second of training on two cores with bfloat16
WITHOUT_BF16 = 0.4  # of that; bfloat16 trains 2.3 times as fast where the processor multiplies it

Working = Generator[Event, None, None]


@dataclass(slots=True)
class Progress:
    """What has been measured so far."""

    trials: list[Trial] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    reasons: dict[str, str] = field(default_factory=dict)
    trunks: dict[str, TrunkFile] = field(default_factory=dict)
    plan: list[dict[str, Any]] = field(default_factory=list)
    extras: dict[str, Any] = field(default_factory=dict)  # by its name in study.json
    seeds: list[Trial] = field(
        default_factory=list
    )  # members of a mean over seeds, no candidates of their own


def kept_for_the_end(targets: Int64[np.ndarray, " m"], trials: Sequence[Trial]) -> float:
    """Seconds that the last fit of what may still be chosen takes: of what was trained and is not far behind the best.

    Of what was measured on some folds only it must be ahead of the best there: else it will not be chosen.
    """
    complete = [trial for trial in trials if trial.complete]
    everywhere = np.ones(len(targets), bool)
    best = max(complete, key=lambda trial: _accuracy(targets, trial, everywhere), default=None)

    def may_be_chosen(trial: Trial) -> bool:
        known = ~np.isnan(trial.probabilities).any(axis=1)
        if best is None or not known.any():
            return best is None
        ahead = _accuracy(targets, trial, known) - _accuracy(targets, best, known)
        return ahead >= -NEAR if trial.complete else ahead > 0

    return max((last_fit_seconds(trial) for trial in trials if may_be_chosen(trial)), default=0.0)


def _accuracy(targets: Int64[np.ndarray, " m"], trial: Trial, rows: Bool[np.ndarray, " m"]) -> float:
    return float((trial.probabilities[rows].argmax(axis=1) == targets[rows]).mean())


def last_fit_seconds(trial: Trial) -> float:
    """As long as one of its folds, and a third more, and what the packed model has to say of some images (`knowing`); what
    is not trained step by step takes next to nothing."""
    if not trial.curves:
        return 0.0
    embedded = min(len(trial.probabilities), MOST_EMBEDDED) * (trial.latency_ms or 0.0) / 1_000
    return LAST_FIT * trial.train_seconds / len(trial.curves) + embedded


def probe_rung(frame: Frame, planned: Plan, done: Progress, ahead: Ahead) -> Working:
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
    """The best network in the other fit, where the pilot was another one: they do not always agree.

    Of 1,919 drawings the pilot, MobileNetV1 at half width, was better cropped; the best one, MobileNetV2, squashed: macro-F1
    0.538 and 0.561, read at several depths 0.582 and 0.626.
    """
    best = best_frozen(frame, done.trials)
    entry = next((one for one, _ in planned.order if best and one.name == best.recipe.backbone), None)
    other: Literal["crop", "squash"] = "squash" if fit == "crop" else "crop"
    if best is None or entry is None or entry == pilot(planned.backbones):
        return
    geometry, suffix = geometry_of(entry, frame.dataset, other), f"@{other}"
    known = any(
        str(record.get("name", "")).startswith(f"{entry.name}/") and str(record["name"]).endswith(suffix)
        for record in frame.journal.records
    )
    if frame.remaining_seconds() < kept_seconds and not known:
        return
    yield from prepare(frame, [geometry])
    samples, before = samples_of(frame, geometry), len(done.trials)
    yield from _probed(frame, entry, geometry, done, ahead, samples=samples, suffix=suffix)
    loss = criterion("log_loss")
    one, two = (
        min((-loss(t.probabilities, frame.targets) for t in some if t.complete), default=math.inf)
        for some in (
            [t for t in done.trials[:before] if t.recipe.backbone == entry.name],
            done.trials[before:],
        )
    )
    if two < one:
        words = {"crop": "cropped at the centre", "squash": "squashed to a square"}[other]
        yield from tell(
            done,
            f"{entry.name}, the best of them, sees images better {words}: log loss {two:.3f}, the other way {one:.3f}.",
        )


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


def _known(frame: Frame, entry: Entry) -> bool:
    """Whether an earlier session of this study had come to this backbone: its results cost nothing."""
    return any(str(record.get("name", "")).startswith(f"{entry.name}/") for record in frame.journal.records)


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
        yield from _first_answer(frame, probed.trials)
    trials = priced(frame, probed)
    done.trials += trials
    odd = trials[0].about["notice"]
    if odd and odd not in done.notices:
        yield from tell(done, odd)
    best = board(frame, trials)[0]
    yield Event("result", f"{best['id']}: {METRICS[frame.settings.metric].label} {best['text']}")


def _first_answer(frame: Frame, trials: Sequence[Trial]) -> Working:
    """The first leaderboard; sizes and latencies, which take another second, come later."""
    rows = board(frame, trials)
    if not rows:
        return
    if frame.journal.find("first_answer", {}) is None:
        frame.journal.append("first_answer", {})
    yield Event("board", "the first answer", board=rows)


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
    loss = criterion("log_loss")
    for fit in fits:
        before = len(done.trials)
        yield from _probed(frame, entry, geometries[fit], done, ahead, samples=samples, suffix=f"@{fit}")
        losses[fit] = min(
            (-loss(t.probabilities, frame.targets) for t in done.trials[before:]), default=np.inf
        )
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
    yield from _first_answer(frame, probed.trials)
    done.trials += priced(frame, probed)


def scratch_rung(frame: Frame, done: Progress) -> Working:
    from graft.backbones.scratch import design

    yield Event("stage", f"Training a small CNN from scratch on the same {frame.folds.count} folds")
    made, geometry = design(frame.dataset, development=len(frame.rows))
    yield from prepare(frame, [geometry])
    settings, kept = training_settings(frame), kept_for_the_end(frame.targets, done.trials)
    trial = yield from scratching(frame, made, geometry, settings, done.trials, kept_seconds=kept)
    if trial is not None:
        first = not done.trials
        done.trials.append(trial)
        if first:
            yield from _first_answer(frame, done.trials)
            return
    yield Event("board", "trained from scratch", board=board(frame, done.trials))


def tuning_rung(frame: Frame, done: Progress) -> Working:
    """Fine-tuning, where there is something frozen to start from and time for it."""
    from graft.studies.tuning.rung import finetuning

    if not any(trial.recipe.strategy == "frozen" and trial.complete for trial in done.trials):
        return
    yield Event("stage", f"Fine-tuning the finalists on the same {frame.folds.count} folds")
    budget = frame.settings.budget_seconds
    share, after = (ALONE_TUNING_SHARE, 0.05) if frame.settings.only else (TUNING_SHARE, AFTER_TUNING_SHARE)
    yield from finetuning(frame, done.trials, done.plan, seconds=share * budget, reserve=after * budget)
    yield Event("board", "fine-tuned", board=board(frame, done.trials))


def training_settings(frame: Frame) -> TrainingSettings:
    """How long to train is a function of the budget, not of the clock: every fold and the last fit get the same.

    Where the steps of one network leave the budget over, a second one learns from it (`generations`).
    """
    from graft.backbones.scratch import design
    from graft.learning.scratch_settings import settled

    alone = frame.settings.only == "scratch" or frame.journal.find("untrained", {}) is not None
    seconds = frame.settings.budget_seconds * (ALONE_SHARE if alone else SCRATCH_SHARE)
    fits = frame.folds.count + 1 + AMOUNTS_COST
    made, _ = design(frame.dataset, development=len(frame.rows))
    return settled(
        made,
        len(frame.learned_from(0)),
        multiply_adds=max(LEAST_TRAINING, seconds / fits * training_speed(frame.compute)),
    )


def amount_folds(
    frame: Frame, made: ScratchDesign, settings: TrainingSettings, *, fold_seconds: float
) -> int:
    """On how many folds training from scratch on fewer images is measured: one, or more where the plan leaves room.

    Where the plan pays no more than the shortest training, the clock says whether there is time for one; `fold_seconds`
    is what a fold took.
    """
    from graft.learning.scratch_settings import planned_multiply_adds

    planned = planned_multiply_adds(made, len(frame.learned_from(0)), settings)
    if settings.multiply_adds <= LEAST_TRAINING:
        return int(frame.remaining_seconds() > fold_seconds * 2 * AMOUNTS_COST)
    spare = settings.multiply_adds / planned - 1
    return max(1, min(frame.folds.count, 1 + int(spare * (frame.folds.count + 1) / AMOUNTS_COST)))


def training_speed(compute: Compute) -> float:
    """Forward multiply-adds per second to plan with: a function of the kind of machine, never of a clock."""
    if compute.device != "cpu":
        return 10 * TRAINING_SPEED
    return TRAINING_SPEED * (compute.threads / 2) ** 0.7 * (1.0 if compute.bf16 else WITHOUT_BF16)


def prepare(frame: Frame, geometries: Sequence[Preprocess]) -> Working:
    unique = list(dict.fromkeys(geometries))
    for done, total in preparing(frame.dataset, unique, store=frame.store, threads=frame.compute.threads):
        yield Event("progress", "decoding", done, total, frame.remaining_seconds())


def tell(done: Progress, notice: str) -> Working:
    done.notices.append(notice)
    yield Event("notice", notice)
