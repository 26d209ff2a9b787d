"""What a study means to spend its budget on, told before the long work begins, and what it spent at the end.

In: the first backbone's trials, which are the calibration, and the budget. Out: a row per rung with its name, the seconds
predicted (or the most it may take) and, at the end, those it took: `seconds` of `study.json`, and two sentences.
The fine-tuning that is planned later is predicted on its own, from timed steps (`graft.studies.tuning.timing`).

Cost: nothing is run. Not covered: what the cache knows already, which makes a rung shorter than predicted.
"""

from __future__ import annotations

import math
from typing import Any

from graft.backbones.catalogue import find
from graft.backbones.weights import shelf
from graft.studies.frame import Frame, Trial, budget_of
from graft.studies.plan import Plan

RUNG = "rung"  # a record in the journal: it was begun
SCHEDULE = "schedule"
OPENING = 3.0  # seconds to load, export and check a network
HEADS = 2e-3  # seconds per image for the heads of all taps on all folds
GMACS = 1.0  # of a network whose row does not tell


def scheduled(
    frame: Frame, planned: Plan, trials: list[Trial], shares: dict[str, float], training_seconds: float
) -> dict[str, Any]:
    """The journalled schedule, or a new one: `rungs`, rows of name, seconds and whether that is `at_most`.

    `shares`: of the budget, by rung, what it may take. `training_seconds`: what training from scratch is planned to take.
    """
    known = frame.journal.find(SCHEDULE, {"budget": budget_of(frame)})
    if known is not None:
        return known
    rows: list[dict[str, Any]] = [
        {"name": "probing", "seconds": _probing(frame, planned, trials), "at_most": False}
    ]
    if math.isfinite(frame.settings.budget_seconds):
        rows += [
            {"name": name, "seconds": share * frame.settings.budget_seconds, "at_most": True}
            for name, share in shares.items()
        ]
        rows.append({"name": "training from scratch", "seconds": training_seconds, "at_most": False})
    for row in rows:
        row["seconds"] = round(row["seconds"], 1)
    return frame.journal.append(SCHEDULE, {"budget": budget_of(frame), "rungs": rows})


def _probing(frame: Frame, planned: Plan, trials: list[Trial]) -> float:
    """As long as the first backbone took for its multiply-adds, for all of them."""
    first = trials[0]
    known = find(first.recipe.backbone, shelf(frame.folder)).gmacs or GMACS
    per_gmac = first.extract_seconds / known
    return sum(
        OPENING + (entry.gmacs or GMACS) * per_gmac + HEADS * len(frame.dataset)
        for entry, _ in planned.backbones
    )


def intended(schedule: dict[str, Any], budget_seconds: float) -> str:
    """The schedule in a sentence."""
    parts = [
        f"{row['name']} {'at most' if row['at_most'] else 'about'} {row['seconds']:.0f} s"
        for row in schedule["rungs"]
    ]
    of = f" of {budget_seconds:.0f} s" if math.isfinite(budget_seconds) else ""
    return f"Plan{of}: {', '.join(parts)}."


def spent(frame: Frame) -> list[dict[str, Any]]:
    """Every rung that was begun, with what was predicted for this budget and what it took under all of them, in order."""
    schedule = frame.journal.find(SCHEDULE, {"budget": budget_of(frame)}) or {"rungs": []}
    predicted = {row["name"]: row for row in schedule["rungs"]}
    begun = [
        (str(record["name"]), float(record["at"]))
        for record in frame.journal.records
        if record["kind"] == RUNG
    ]
    ends = [at for _, at in begun[1:]] + [frame.journal.elapsed_seconds()][: len(begun)]
    taken: dict[str, float] = {}
    for (name, at), end in zip(begun, ends, strict=True):
        taken[name] = taken.get(name, 0.0) + end - at
    return [
        {
            "name": name,
            "predicted": predicted.get(name, {}).get("seconds"),
            "at_most": bool(predicted.get(name, {}).get("at_most", True)),
            "seconds": round(seconds, 1),
        }
        for name, seconds in taken.items()
    ]


def told(rows: list[dict[str, Any]]) -> str:
    """What was spent, in a sentence."""
    parts = []
    for row in rows:
        limit = "at most " if row["at_most"] else ""
        wanted = "" if row["predicted"] is None else f" (predicted {limit}{row['predicted']:.0f} s)"
        parts.append(f"{row['name']} {row['seconds']:.0f} s{wanted}")
    return f"Took: {', '.join(parts)}." if parts else ""
