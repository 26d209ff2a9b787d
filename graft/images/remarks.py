"""What there is to remark about images that take part: twins, conflicts, classes that are empty or small."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32, Int64, UInt8

from graft.images.dataset import ImageReference, Issue

# Fewer different pictures than the usual number of folds leave some fold without the class.
FEW_PICTURES = 5
# The same picture under two classes is an accusation; it takes more than grouping two images does.
_CONFLICT_LEAST = 0.85


def twin_issues(
    images: Sequence[ImageReference],
    labels: Sequence[str],
    near: Int64[np.ndarray, "m 2"],
    scores: Float32[np.ndarray, " m"],
    mirrored: UInt8[np.ndarray, " m"],
) -> list[Issue]:
    """Every image that is a copy of an earlier one, and every image that has a copy under another class.

    A mirror image under another class is no conflict: turning left may be what makes the class.
    """
    conflicts: dict[int, str] = {}
    issues = _exact(images, labels, conflicts)
    told: set[int] = set()
    for k in np.argsort(-scores, kind="stable"):
        one, two = int(near[k, 0]), int(near[k, 1])
        what = "The mirror image of" if mirrored[k] else "Nearly the same picture as"
        if two not in told:
            told.add(two)
            detail = f"{what} {images[one].name} (similarity {scores[k]:.2f})."
            issues.append(Issue(images[two].name, "near_duplicate", detail, False, labels[two]))
        if labels[one] != labels[two] and scores[k] >= _CONFLICT_LEAST and not mirrored[k]:
            for here, there in ((one, two), (two, one)):
                conflicts.setdefault(here, f"{what} {images[there].name}, class {labels[there]!r}.")
    issues += [Issue(images[k].name, "conflict", detail, False, labels[k]) for k, detail in conflicts.items()]
    return issues


def _exact(images: Sequence[ImageReference], labels: Sequence[str], conflicts: dict[int, str]) -> list[Issue]:
    """An issue for every image whose bytes were there before; `conflicts` gains those under another class."""
    issues: list[Issue] = []
    copies: dict[str, list[int]] = {}
    for place, image in enumerate(images):
        same = copies.setdefault(image.digest, [])
        if same:
            detail = f"The same bytes as {images[same[0]].name}."
            issues.append(Issue(image.name, "exact_duplicate", detail, False, labels[place]))
        if (other := next((k for k in same if labels[k] != labels[place]), None)) is not None:
            conflicts.setdefault(place, f"The same bytes as {images[other].name}, class {labels[other]!r}.")
            conflicts.setdefault(other, f"The same bytes as {image.name}, class {labels[place]!r}.")
        same.append(place)
    return issues


def class_issues(
    declared: Sequence[str], labels: Sequence[str], groups: Int64[np.ndarray, " n"]
) -> list[Issue]:
    """Declared classes without a readable image, and classes with few different pictures. Named by the class."""
    issues = []
    pictures: dict[str, set[int]] = {name: set() for name in declared}
    for label, group in zip(labels, groups.tolist(), strict=True):
        pictures[label].add(group)
    for name, different in pictures.items():
        if not different:
            detail = "The class has no readable image and is left out."
            issues.append(Issue(name, "empty_class", detail, False, name))
        elif len(different) < FEW_PICTURES:
            detail = f"The class has {len(different)} different picture{'s' * (len(different) > 1)}; its scores are uncertain."
            issues.append(Issue(name, "few_images", detail, False, name))
    return issues
