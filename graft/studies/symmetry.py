"""Which mirrorings keep the class, as a backbone sees it: is a mirrored image still recognised?

In: an opened trunk, its features of the development images, the pixels, and the mirrorings that the pixels themselves
allow (`graft.images.views.symmetries`). Out: an `Asked` for each. Heads are fitted on plain features of all folds but
one and asked about both the plain and the mirrored images of that one. A mirroring is refused when more answers become
wrong than become right, beyond chance (McNemar's exact test, one-sided; images of one group count as one another's
strangers, which refuses rather too often than too seldom).

One augmentation serves all folds, because the cached views do, so the verdict is that of all development images: one
bit for each mirroring is all that a fold's training learns about the images held out from it. `without` tells whether
the other folds alone, without that one, come to the same verdict. The locked test images are never read.

Cost: the features of at most 400 images for each mirroring (2 s for MobileNetV2 at 224 px and all three), once; kept by
content. Not covered: what neither the pixels nor the backbone can see.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, Int64, UInt8
from scipy.stats import binom
from threadpoolctl import threadpool_limits

from graft.backbones.activations import extracted
from graft.backbones.trunks import TrunkFile
from graft.images.augmentations import Augmentation, Symmetry, named
from graft.images.pixels import pixels_key
from graft.images.preview import preview_of
from graft.learning import ridge
from graft.store import content_key
from graft.studies.frame import Event, Frame

MOST = 400
CHANCE = 0.05


@dataclass(frozen=True, slots=True)
class Asked:
    """What heads on plain features say of plain and of mirrored images: shares that are right, and the chance.

    `without[k]`: whether the images outside fold k alone allow it.
    """

    symmetry: Symmetry
    images: int
    plain: float
    mirrored: float
    chance: float
    without: tuple[bool, ...]

    @property
    def allowed(self) -> bool:
        """Whether views may be mirrored so."""
        return self.chance >= CHANCE


def asking(
    frame: Frame,
    trunk: TrunkFile,
    pixels: UInt8[np.ndarray, "n h w c"],
    features: Float[np.ndarray, "n d"],
    *,
    tap: int,
    found: Sequence[Symmetry],
) -> Generator[Event, None, list[Asked]]:
    """Ask the backbone about each of `found`; `features` are those of the tap number `tap`."""
    from graft.images.views import APPLY

    rows = spread(frame.rows)
    given = pixels_key(frame.dataset, trunk.geometry)
    parts, targets = frame.folds.assignment[rows], frame.dataset.targets[rows]
    answers = []
    for name in found:
        yield Event("progress", f"{trunk.entry.name}: {name}?", remaining_seconds=frame.remaining_seconds())
        key = content_key(
            "symmetry.v1",
            trunk.key,
            trunk.runner,
            given,
            tap,
            name,
            rows.tolist(),
            parts.tolist(),
            targets.tolist(),
        )
        stored = frame.store.get(key)
        if stored is None:
            mirrored = extracted(
                trunk,
                np.ascontiguousarray(APPLY[name](np.array(pixels[rows]))),
                content_key("mirrored.v1", given, name, rows.tolist()),
                store=frame.store,
                compute=frame.compute,
                folder=frame.folder,
                reach=frame.reach,
            ).tap(tap)
            asked = judged(
                name,
                features[rows].astype(np.float32),
                mirrored.astype(np.float32),
                targets,
                parts=parts,
            )
            stored = frame.store.put(key, {**asdict(asked), "without": list(asked.without)})
        answers.append(Asked(**{**stored.facts, "without": tuple(stored.facts["without"])}))
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
    """The augmentation `wanted` (see `named`) for the development images, mirrored only as pixels and backbone allow.

    Nothing is asked where the answer would change nothing. Raises SettingsError as `named` does.
    """
    from graft.images.views import suited

    targets, images = frame.dataset.targets, len(frame.rows)
    plain = suited(pixels, targets, frame.rows)
    bare = replace(plain, symmetries=())
    if named(wanted, suited=plain, images=images) == named(wanted, suited=bare, images=images):
        return named(wanted, suited=bare, images=images)
    asked = yield from asking(frame, trunk, pixels, features, tap=tap, found=plain.symmetries)
    for one in asked:
        if not one.allowed:
            yield Event(
                "notice",
                f"{trunk.entry.name}: no view is turned by {one.symmetry}: it recognises {one.mirrored:.1%} of the "
                f"images then, instead of {one.plain:.1%}.",
            )
    allowed = replace(plain, symmetries=tuple(one.symmetry for one in asked if one.allowed))
    return named(wanted, suited=allowed, images=images)


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


def spread(rows: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " m"]:
    """At most 400 of the rows, evenly spread."""
    return rows if len(rows) <= MOST else rows[np.linspace(0, len(rows) - 1, MOST).astype(np.int64)]


def judged(
    name: Symmetry,
    plain: Float[np.ndarray, "m d"],
    mirrored: Float[np.ndarray, "m d"],
    targets: Int64[np.ndarray, " m"],
    *,
    parts: Int64[np.ndarray, " m"],
) -> Asked:
    """Compare the answers for `mirrored` with those for `plain`, each from heads that never saw its part."""
    right = _answers(plain, mirrored, targets, parts)
    numbers = np.unique(parts)
    without = []
    for number in numbers if len(numbers) > 2 else ():
        others = parts != number
        within = _answers(plain[others], mirrored[others], targets[others], parts[others])
        without.append(_chance(within) >= CHANCE)
    share = right.mean(axis=1)
    return Asked(name, len(plain), float(share[0]), float(share[1]), _chance(right), tuple(without))


def _answers(
    plain: Float[np.ndarray, "m d"],
    mirrored: Float[np.ndarray, "m d"],
    targets: Int64[np.ndarray, " m"],
    parts: Int64[np.ndarray, " m"],
) -> Bool[np.ndarray, "2 m"]:
    """Whether the answers for the plain and for the mirrored images are right."""
    classes = int(targets.max()) + 1
    right = np.zeros((2, len(targets)), dtype=bool)
    with threadpool_limits(1):
        for part in np.unique(parts):
            asked = np.flatnonzero(parts == part)
            learned = np.flatnonzero(parts != part)
            head = ridge.fit(plain[learned], targets[learned], classes=classes, balances=("none",))
            for side, features in enumerate((plain, mirrored)):
                answers = head.probabilities(features[asked]).argmax(axis=1)
                right[side, asked] = answers == targets[asked]
    return right


def _chance(right: Bool[np.ndarray, "2 m"]) -> float:
    """How likely at least so many of the changed answers would be wrong ones if mirroring did not matter."""
    lost = int((right[0] & ~right[1]).sum())
    changed = int((right[0] != right[1]).sum())
    return float(binom.sf(lost - 1, changed, 0.5))
