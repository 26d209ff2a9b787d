"""`graft pretrain` from end to end: the source decoded, the teacher opened, the student trained, the weights published.

In: settings. Out: a generator of events that returns what was published. Whatever can be refused is refused before
anything is written. Killed at any moment and run again with `--resume`, it continues from the last checkpoint.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import nn

from graft.backbones import catalogue
from graft.backbones.catalogue import Entry
from graft.backbones.hub import Reach, reach_hub
from graft.backbones.opening import open_backbone
from graft.backbones.weights import WeightsFolder, folder_from, load_state, locate, shelf
from graft.compute import Compute, choose
from graft.errors import BackboneError, RunError
from graft.pretraining import checkpoint
from graft.pretraining.checkpoint import Standing
from graft.pretraining.learner import Learner, new_learner, student_entry
from graft.pretraining.lessons import FromLabels, FromTeacher, Lesson
from graft.pretraining.publishing import Published, publish, refuse_taken
from graft.pretraining.records import Event, Notice, Progress
from graft.pretraining.rounds import Rounds, rounds_of
from graft.pretraining.settings import PretrainSettings
from graft.pretraining.source import Source, opening_source
from graft.pretraining.targets import Teacher, affordable_rounds, open_teacher
from graft.pretraining.training import affordable_epochs, held_loss, seconds_of, training
from graft.pretraining.views import ViewSettings, whole
from graft.store import Store

Working = Generator[Event, None, Published]


@dataclass(frozen=True, slots=True, eq=False)
class _Class:
    """Everything that does not change: who learns what from whom."""

    settings: PretrainSettings
    source: Source
    rounds: Rounds
    teacher: Teacher | None
    network: nn.Module | None
    classes: int
    compute: Compute
    store: Store

    def learner(self) -> Learner:
        """The student before its first step; each call gives an equal one."""
        entry = student_entry(self.settings, self.classes, self.teacher.entry if self.teacher else None)
        width = self.teacher.widths[-1] if self.teacher else None
        return new_learner(
            self.settings, entry, teacher_network=self.network, teacher_width=width, compute=self.compute
        )

    def lesson(self, learner: Learner) -> Lesson:
        """What that student is taught."""
        if self.teacher is None:
            return FromLabels(self.rounds, self.settings.label_smoothing, self.compute.device)
        return FromTeacher(
            self.teacher, self.rounds, self.store, learner.bridge, learner.widths, self.settings.hint
        )

    @property
    def cycle(self) -> int:
        """Rounds until the same views come again: with a teacher, as many as there is room for its answers."""
        if self.teacher is None:
            return 10**9
        return affordable_rounds(self.teacher, self.rounds, self.settings.target_bytes, self.classes)

    @property
    def identity(self) -> dict[str, Any]:
        """What a resumed training must have in common with this one."""
        digest = self.teacher.trunk.digest if self.teacher else None
        device = {
            "device": self.compute.device,
            "bfloat16": self.compute.bf16,
        }
        return {**self.settings.identity, "source": self.source.key, "teacher_sha256": digest, **device}


def pretraining(settings: PretrainSettings, *, store: Store | None = None) -> Working:
    """Train and publish. Raises GraftError with a sentence for whatever cannot be done."""
    refuse_taken(settings)
    _refuse_unfinished(settings)
    store, compute = store or Store(), choose(settings.device)
    folder = folder_from(settings.weights)
    entry = _teacher_entry(settings, folder) if settings.teacher else None
    student_entry(settings, 0, entry)
    source = yield from _source(settings, store, compute)
    group = _opened(settings, source, entry, folder, store, compute)
    yield Notice(_about(group))
    learner = group.learner()
    with checkpoint.claimed(settings):
        standing = yield from _begun(group, learner)
        if group.teacher is not None and learner.inherited:
            yield Notice(
                f"The student begins as its pruned teacher: {learner.inherited} tensors are inherited."
            )
        lesson = group.lesson(learner)
        yield from training(
            learner, group.rounds, lesson, standing, cycle=group.cycle, settings=settings, compute=compute
        )
        published = _publish(group, learner, lesson, standing)
        checkpoint.discard(settings)
    return published


def _refuse_unfinished(settings: PretrainSettings) -> None:
    place = checkpoint.folder_of(settings)
    if place.exists() and not settings.resume and not settings.overwrite:
        raise RunError(
            f"{place} holds an unfinished training of {settings.name}. Go on with --resume, start over with --overwrite, "
            "or choose another --name."
        )


def _teacher_entry(settings: PretrainSettings, folder: WeightsFolder | None) -> Entry:
    """The teacher's row. Raises BackboneError if it is unknown or its weights cannot be had."""
    assert settings.teacher is not None
    entry = catalogue.find(settings.teacher, shelf(folder))
    reach = _reach(entry, folder)
    if locate([entry], folder=folder, reach=reach)[entry.name] == "unreachable":
        raise BackboneError(
            f"The weights of the teacher {entry.name} are not here. {reach.reason} Name a folder that holds them with "
            "--weights DIR."
        )
    return entry


def _reach(entry: Entry, folder: WeightsFolder | None) -> Reach:
    """Whether hosts answer, asked only where the weights are not here."""
    nowhere = Reach(False, False)
    here = locate([entry], folder=folder, reach=nowhere)[entry.name] != "unreachable"
    return nowhere if here else reach_hub()


def _source(settings: PretrainSettings, store: Store, compute: Compute) -> Generator[Event, None, Source]:
    labelled = settings.teacher is None
    work = opening_source(
        settings.source, size=settings.size, labelled=labelled, store=store, threads=compute.threads
    )
    while True:
        try:
            done, total = next(work)
        except StopIteration as finished:
            source: Source = finished.value
            break
        yield Progress("decoding the source", done, total)
    if source.left_out:
        named = "; ".join(source.failures[:5])
        yield Notice(f"{source.left_out} images could not be read and are left out: {named}")
    return source


def _opened(
    settings: PretrainSettings,
    source: Source,
    entry: Entry | None,
    folder: WeightsFolder | None,
    store: Store,
    compute: Compute,
) -> _Class:
    mosaic = settings.mosaic if entry else 0.0  # four labels in one square would be one too many
    views = ViewSettings(settings.size, mosaic=mosaic, made=settings.made)
    rounds = rounds_of(source, views, batch=settings.batch_size, seed=settings.seed)
    if entry is None:
        return _Class(settings, source, rounds, None, None, len(source.classes), compute, store)
    reach = _reach(entry, folder)
    samples = whole(torch.from_numpy(np.array(source.pixels[:8])), settings.size).numpy()
    teacher = open_teacher(entry, samples, folder=folder, reach=reach, store=store, compute=compute)
    state = load_state(entry, folder=folder, reach=reach).state
    network = open_backbone(entry, state, channels=3, size=settings.size).trunk.network
    classes = _classes(teacher, samples)
    return _Class(settings, source, rounds, teacher, network, classes, compute, store)


def _classes(teacher: Teacher, samples: UInt8[np.ndarray, "m v v 3"]) -> int:
    """How many classes the teacher's classifier tells apart; 0 if it has none."""
    if not teacher.has_logits:
        return 0
    return teacher.answers(torch.from_numpy(samples[:2]).to(teacher.compute.device))[-1].shape[1]


def _begun(group: _Class, learner: Learner) -> Generator[Event, None, Standing]:
    """Where the training stands: from the checkpoint, which the learner gets, or planned anew."""
    settings = group.settings
    found = checkpoint.load(settings) if settings.resume else None
    if found is not None:
        standing, tensors = found
        checkpoint.refuse_other(settings, standing.identity, group.identity)
        try:
            learner.load(tensors)
        except (RuntimeError, KeyError) as error:
            raise RunError(
                f"The checkpoint in {checkpoint.folder_of(settings)} does not fit the student. Start over with --overwrite."
            ) from error
        yield Notice(f"Resumed at step {standing.step} of {standing.epochs * standing.steps}.")
        return standing
    checkpoint.discard(settings)
    epochs = settings.epochs or 10**9
    if settings.budget_seconds is not None:
        yield Progress("measuring the speed")
        tried = group.learner()
        step, prepared = seconds_of(tried, group.rounds, group.lesson(tried), group.compute)
        fitting = affordable_epochs(
            settings.budget_seconds,
            step=step,
            prepared=prepared,
            steps=group.rounds.steps,
            cycle=group.cycle,
        )
        epochs = min(epochs, fitting)
        yield Notice(
            f"A step takes {step:.2f} s, views and teacher {prepared:.2f} s: {epochs} epochs are planned, about "
            f"{group.rounds.steps * epochs * (step + prepared) / 60:.0f} minutes."
        )
    standing = Standing(group.identity, epochs, group.rounds.steps, 0, (0.0, 0.0, 0), 0.0, [])
    checkpoint.save(settings, standing, learner.state())
    return standing


def _about(group: _Class) -> str:
    source, rounds = group.source, group.rounds
    lesson = (
        f"taught by {group.teacher.entry.name}" if group.teacher else f"labels of {group.classes} classes"
    )
    side = source.pixels.shape[1]
    return (
        f"{len(source)} images of {side} px ({len(rounds.held)} held out), {lesson}; {rounds.steps} batches of "
        f"{rounds.batch} a round."
    )


def _publish(group: _Class, learner: Learner, lesson: Lesson, standing: Standing) -> Published:
    loss, accuracy = held_loss(learner, group.rounds, lesson, group.compute)
    teacher = group.teacher
    metrics: dict[str, Any] = {
        "held_images": len(group.rounds.held),
        "held_loss": loss,
        "agreement_with_teacher" if teacher else "accuracy": accuracy,
        "first_held_loss": standing.curve[0].held_loss if standing.curve else None,
        "epochs": standing.epochs,
        "images_seen": standing.epochs * standing.steps * group.rounds.batch,
        "training_seconds": standing.seconds,
    }
    about = {
        "trained_on": group.settings.source.resolve().name,
        "source_images": len(group.source),
        "source": f"graft pretrain, {'distilled from ' + teacher.entry.name if teacher else 'from labels'}",
        "licence": teacher.entry.licence if teacher else "unknown",
        "licence_note": _licence_note(teacher),
        "student": group.settings.student,
        "teacher": None
        if teacher is None
        else {"name": teacher.entry.name, "sha256": teacher.trunk.digest, "licence": teacher.entry.licence},
        "settings": _shown(group),
        "seed": group.settings.seed,
        "metrics": metrics,
    }
    return publish(
        group.settings, learner.entry, learner.average.network.state_dict(), facts=about, curve=standing.curve
    )


def _shown(group: _Class) -> dict[str, Any]:
    identity = {name: value for name, value in group.identity.items() if value is not None}
    return {**identity, "source": group.settings.source.name, "threads": group.compute.threads}


def _licence_note(teacher: Teacher | None) -> str:
    if teacher is None:
        return "that of the images of the source, which Graft does not know."
    return (
        f"the teacher's weights are under {teacher.entry.licence}; the images of the source have terms of their own, "
        "which Graft does not know."
    )
