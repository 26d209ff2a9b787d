"""Which mirrorings keep the class, as a backbone and the edges in the pictures see it, and the sentence that says so.

In: an opened trunk, its features of the development images, the pixels, and the mirrorings to ask about. Out: an
`Asked` for each (`graft.learning.mirrored`). A mirroring is used only where it was seen to keep the class: too little to
tell by is no permission.

One augmentation serves all folds, because the cached views do, so the verdict is that of all development images: one
bit for each mirroring is all that a fold's training learns about the images held out from it. The locked test images
are never read.

Cost: the features of at most 400 images for each mirroring (2 s for MobileNetV2 at 224 px and all three), once; kept by
content. Not covered: what neither the edges nor the backbone can see.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
from jaxtyping import Float, Int64, UInt8

from graft.backbones.trunks import TrunkFile
from graft.images.augmentations import Augmentation, Symmetry, named
from graft.images.pixels import open_pixels, pixels_key
from graft.images.preview import preview_of
from graft.learning.mirrored import asked, spread
from graft.learning.orientation import CLEARLY, Turning
from graft.studies.frame import Event, Frame, Trial, criterion

MIRRORINGS = "mirrorings"  # a record in the journal
TURNED: dict[Symmetry, str] = {
    "mirror": "mirrored",
    "upside_down": "turned upside down",
    "transpose": "transposed",
}


@dataclass(frozen=True, slots=True)
class Asked:
    """A mirroring, and what was found when images were turned so."""

    symmetry: Symmetry
    found: Turning

    @property
    def allowed(self) -> bool:
        """Whether views may be mirrored so."""
        return self.found.verdict == "kept"

    def sentence(self, classes: Sequence[str]) -> str:
        """Whether views are mirrored so, and why."""
        found, turned = self.found, TURNED[self.symmetry]
        if found.verdict == "kept":
            return (
                f"Views are {turned}: which way round an image is does not matter to its class (balanced accuracy "
                f"{found.blind:.1%} without knowing it, {found.sighted:.1%} with)."
            )
        if found.verdict == "changed":
            return (
                f"No view is {turned}: that changes the class (balanced accuracy {found.sighted:.1%} with knowing "
                f"which way round an image is, {found.blind:.1%} without)."
            )
        if found.confused and found.clear >= CLEARLY:
            first, second = (classes[number] for number in found.confused)
            why = f"{first} and {second} cannot be told apart"
        else:
            why = f"the classes cannot be told apart (balanced accuracy {found.blind:.1%})"
        return (
            f"No view is {turned}: without knowing which way round an image is, {why} in {found.images} images, so "
            "nobody can say that it keeps the class. If you know that it does, name it in the page of --augment."
        )


def asking(
    frame: Frame,
    trunk: TrunkFile,
    pixels: UInt8[np.ndarray, "n h w c"],
    features: Float[np.ndarray, "n d"],
    *,
    tap: int,
    found: Sequence[Symmetry],
) -> Generator[Event, None, list[Asked]]:
    """Ask about each of `found`; `features` are those of the tap number `tap`."""
    rows = spread(frame.rows)
    answers = []
    for name in found:
        yield Event("progress", f"{trunk.entry.name}: {name}?", remaining_seconds=frame.remaining_seconds())
        told = asked(
            trunk,
            pixels,
            features,
            frame.dataset.targets,
            rows=rows,
            parts=frame.folds.assignment[rows],
            tap=tap,
            symmetry=name,
            key=pixels_key(frame.dataset, trunk.geometry),
            store=frame.store,
            compute=frame.compute,
            folder=frame.folder,
            reach=frame.reach,
        )
        answers.append(Asked(name, told))
    return answers


def augmenting(
    frame: Frame,
    trunk: TrunkFile,
    pixels: UInt8[np.ndarray, "n h w c"],
    features: Float[np.ndarray, "n d"],
    *,
    tap: int,
    wanted: str,
) -> Generator[Event, None, Augmentation]:
    """The augmentation `wanted` (see `named`) for the development images, mirrored only where that keeps the class.

    What was found is told and journalled, once for each trunk and tap. Nothing is asked where the answer would change
    nothing. Raises SettingsError as `named` does.
    """
    from graft.images.views import natural, suited

    targets, images = frame.dataset.targets, len(frame.rows)
    plain = replace(suited(pixels, targets, frame.rows), symmetries=natural(pixels, targets, frame.rows))
    bare = replace(plain, symmetries=())
    if named(wanted, suited=plain, images=images) == named(wanted, suited=bare, images=images):
        return named(wanted, suited=bare, images=images)
    answers = yield from asking(frame, trunk, pixels, features, tap=tap, found=plain.symmetries)
    for one in answers:
        sentence = one.sentence(frame.dataset.classes)
        record = {"trunk": trunk.key, "tap": tap, "symmetry": one.symmetry, "sentence": sentence}
        if frame.journal.find("symmetry", record) is None:
            frame.journal.append("symmetry", {**record, "verdict": one.found.verdict, **asdict(one.found)})
            yield Event("notice", f"{trunk.entry.name}: {sentence}")
    allowed = replace(plain, symmetries=tuple(one.symmetry for one in answers if one.allowed))
    return named(wanted, suited=allowed, images=images)


def ask_the_best(frame: Frame, trials: Sequence[Trial]) -> Generator[Event, None, None]:
    """Ask the best frozen candidate which mirrorings keep the class, for everything that the study trains; journalled.

    Where there is none, nobody is asked.
    """
    from graft.studies.beside import activations_of

    frozen = [trial for trial in trials if trial.recipe.strategy == "frozen" and trial.complete]
    if frame.journal.find(MIRRORINGS, {}) is not None or not frozen:
        return
    score = criterion(frame.settings.metric)
    best = max(frozen, key=lambda trial: score(trial.probabilities, frame.targets))
    trunk, activations = activations_of(frame, best)
    found = yield from augmenting(
        frame,
        trunk,
        open_pixels(frame.dataset, trunk.geometry, store=frame.store),
        activations.tap(best.tap_index),
        tap=best.tap_index,
        wanted="medium",
    )
    frame.journal.append(MIRRORINGS, {"symmetries": list(found.symmetries)})


def augmentation_of(frame: Frame, pixels: UInt8[np.ndarray, "n h w c"], wanted: str) -> Augmentation:
    """The augmentation `wanted` (see `named`) for the development images, mirrored as the best one allows; where nobody was
    asked, not at all."""
    from graft.images.views import suited

    plain, known = suited(pixels, frame.dataset.targets, frame.rows), frame.journal.find(MIRRORINGS, {})
    allowed = replace(plain, symmetries=() if known is None else tuple(known["symmetries"]))
    return named(wanted, suited=allowed, images=len(frame.rows))


def suited_without_backbone(
    frame: Frame, pixels: UInt8[np.ndarray, "n h w c"], rows: Int64[np.ndarray, " m"]
) -> Augmentation:
    """The augmentation for what learns from `rows` and has no backbone of its own: mirrored as the best one allows, or
    else as the pixels of these rows do."""
    from graft.images.views import suited

    plain, known = suited(pixels, frame.dataset.targets, rows), frame.journal.find(MIRRORINGS, {})
    return plain if known is None else replace(plain, symmetries=tuple(known["symmetries"]))


def shown(
    frame: Frame, pixels: UInt8[np.ndarray, "n h w c"], augmentation: Augmentation, *, title: str
) -> None:
    """Leave `preview.jpg` in the run folder: what the training that begins now will see."""
    preview_of(
        pixels,
        frame.dataset.targets,
        frame.rows,
        augmentation,
        classes=frame.dataset.classes,
        seed=frame.settings.seed,
        folder=frame.settings.out,
        title=title,
    )
