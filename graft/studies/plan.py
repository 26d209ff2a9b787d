"""Which backbones a study tries, and in which geometry their images come.

In: the user's wish (`auto` or names), the limits and where weights can be had. Out: entries with the reason for each,
cheapest first so that the first answer comes early, and notices in words about whatever could not be had.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from graft.backbones import catalogue
from graft.backbones.catalogue import Entry
from graft.backbones.weights import Reach, WeightsFolder, held, locate, shelf
from graft.errors import BackboneError
from graft.images.dataset import Dataset, Preprocess
from graft.studies.settings import Settings

# int8 and truncation make a network smaller than its float32 file; a lower tap of one four times too large may fit.
SIZE_SLACK = 4
NAMED = "named"


@dataclass(frozen=True, slots=True)
class Plan:
    """The backbones to probe, cheapest first, `(entry, reason)`, and what to tell about the others."""

    backbones: tuple[tuple[Entry, str], ...]
    notices: tuple[str, ...]

    @property
    def order(self) -> tuple[tuple[Entry, str], ...]:
        """In which they are probed: after the cheapest, the best on ImageNet, for which there must be time."""
        first, rest = self.backbones[:1], self.backbones[1:]
        best = max(self.backbones, key=lambda one: one[0].top1 or 0.0, default=None)
        return tuple(dict.fromkeys((*first, *([best] if best else []), *rest)))


def plan(settings: Settings, *, folder: WeightsFolder | None, reach: Reach) -> Plan:
    """The backbones of the study. Raises BackboneError if one that was named is unknown or cannot be had."""
    if settings.only == "scratch":
        return Plan((), ())
    if settings.backbones == ("auto",):
        return _automatic(settings, folder, reach)
    notices: list[str] = []
    chosen: dict[str, tuple[Entry, str]] = {}
    for name in settings.backbones:
        entry, notice = catalogue.resolve(name, shelf(folder))
        notices += [notice] if notice else []
        if locate([entry], folder=folder, reach=reach)[entry.name] == "unreachable":
            raise BackboneError(
                f"The weights of {entry.name} are not here. {reach.reason} Name a folder that holds them with "
                "--weights DIR, or leave --backbones out to use what there is (graft models)."
            )
        chosen[entry.name] = (entry, NAMED)
    return Plan(tuple(sorted(chosen.values(), key=_cost)), tuple(notices))


def _automatic(settings: Settings, folder: WeightsFolder | None, reach: Reach) -> Plan:
    here = held(folder)
    names = {entry.name for entry in here}
    known = [*here, *(row for row in catalogue.rows() if row.name not in names)]
    places = locate(known, folder=folder, reach=reach)
    within = [entry for entry in known if places[entry.name] != "unreachable"]
    missing = len(known) - len(within)
    most = settings.max_bytes * SIZE_SLACK if settings.max_bytes else None
    own = [entry for entry in within if places[entry.name] == "embedded"]
    chosen = _with_own(catalogue.stratified(within, max_bytes=most), own)
    notices = []
    if missing:
        where = _from_where(folder, own, hub=any(places[entry.name] == "hub" for entry in within))
        notices.append(
            f"{missing} networks of the catalogue cannot be had now. {reach.reason} {len(within)} can, from {where}."
        )
    left = [entry.name for entry in within if entry.name not in {one.name for one, _ in chosen}]
    if left:
        notices.append(
            f"auto chose {len(chosen)} of {len(within)} backbones; not tried: {', '.join(left[:12])}."
        )
    if not chosen:
        notices.append(
            "No pre-trained network within the limits can be had, so there is nothing to transfer from: features of an "
            "untrained network stand in for comparison. Name a weights folder with --weights DIR or GRAFT_WEIGHTS."
        )
    return Plan(tuple(sorted(chosen, key=_cost)), tuple(notices))


def _with_own(chosen: list[tuple[Entry, str]], own: Sequence[Entry]) -> list[tuple[Entry, str]]:
    """The choice with every embedded backbone, whatever the limits: it costs little, and its lower taps are tiny."""
    names = {entry.name for entry, _ in chosen}
    missing = [entry for entry in own if entry.name not in names]
    return [*chosen, *((entry, "comes with Graft") for entry in missing)]


def _from_where(folder: WeightsFolder | None, own: Sequence[Entry], *, hub: bool) -> str:
    places = ["the weights folder"] if folder else []
    places += ["Graft itself"] if own else []
    places += ["the hub"] if hub else []
    return " and ".join([", ".join(places), "local caches"] if places else ["local caches"])


def _cost(choice: tuple[Entry, str]) -> tuple[float, int, str]:
    entry = choice[0]
    return entry.gmacs or 1e3, entry.parameters or 0, entry.name


def geometry_of(entry: Entry, dataset: Dataset, fit: Literal["crop", "squash", "pad"]) -> Preprocess:
    """How images come to this backbone: at its own size, one channel if the images are grey."""
    interpolation: Literal["bicubic", "bilinear"] = (
        "bilinear" if entry.input.interpolation == "bilinear" else "bicubic"
    )
    return Preprocess(
        size=entry.input.size,
        fit=fit,
        crop_share=entry.input.crop if fit == "crop" else 1.0,
        interpolation=interpolation,
        channels=1 if dataset.mostly_grey else 3,
    )


def pilot(backbones: Sequence[tuple[Entry, str]]) -> Entry:
    """The backbone that tries both fits first: the cheapest one that sees at least 160 px, or the cheapest."""
    large = [entry for entry, _ in backbones if entry.input.size >= 160]
    return large[0] if large else backbones[0][0]
