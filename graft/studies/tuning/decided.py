"""What a study tries to fine-tune: decided once for a budget, and journalled.

In: the frozen trials and the seconds that fine-tuning may take. Out: the `TuningPlan`, of this session or of an earlier one,
so that a killed study goes on with the same; how many folds of an option are known; and the plan's lines for `study.json`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from itertools import takewhile
from typing import Any

from graft.backbones.catalogue import find
from graft.backbones.weights import shelf
from graft.learning.ridge import weightings_tried
from graft.studies.beside import activations_of
from graft.studies.frame import Frame, Trial, budget_of, criterion
from graft.studies.tuning.finalists import better_together, finalists, of_the_last_stage
from graft.studies.tuning.options import Cost, Option, options_of
from graft.studies.tuning.plan import TuningPlan, kept_share, planned

PLAN = "tuning_plan.v5"
UNTIL_THE_END = 1_000  # epochs of patience: with a cosine the gains come late


def plan_of(frame: Frame, trials: Sequence[Trial], seconds: float, *, kept: float = 0.0) -> TuningPlan:
    """The journalled plan, or a new one; `kept` as in `planned`."""
    from graft.learning.tune_settings import TuneSettings

    frozen = {trial.recipe.key: trial for trial in trials if trial.recipe.strategy == "frozen"}
    known = frame.journal.find(PLAN, {"budget": budget_of(frame)})
    if known is None:
        entries = {
            trial.recipe.backbone: find(trial.recipe.backbone, shelf(frame.folder))
            for trial in frozen.values()
        }
        found = finalists(frame, list(frozen.values()), entries)
        together = better_together(frame.targets, trials)
        opened = [(trial, activations_of(frame, trial)[0]) for trial in found.trials]
        read = [
            (of_the_last_stage(trial, trunk, list(frozen.values())), trunk)
            if trial.recipe.backbone in together
            else (trial, trunk)
            for trial, trunk in opened
        ]
        share = kept_share(len(frame.learned_from(0)))
        settings = TuneSettings(patience=UNTIL_THE_END, validation_share=share)
        options = options_of(
            read,
            settings,
            leading=found.leading,
            by_prior=found.by_prior,
            together=together,
            learned=len(frame.learned_from(0)),
            weightings=weightings_tried(frame.targets, frame.classes),
            compute=frame.compute,
        )
        accuracy = criterion("accuracy")
        best = max((accuracy(t.probabilities, frame.targets) for t in trials if t.complete), default=0.0)
        plan = planned(
            options,
            images=len(frame.rows),
            folds=frame.folds.count,
            seconds=seconds,
            errors=1.0 - best,
            kept=kept,
        )
        facts = {
            name: [written(option) for option in listed]
            for name, listed in (("tried", plan.options), ("left", plan.left))
        }
        for row in _begun(frame):
            if not any(_key(row) == _key(other) for other in facts["tried"]):
                facts["tried"].append(row)
        tried = [_key(row) for row in facts["tried"]]
        facts["left"] = [row for row in facts["left"] if _key(row) not in tried]
        known = frame.journal.append(PLAN, {"budget": budget_of(frame), **facts, "folds": plan.folds})

    def back(rows: Sequence[dict[str, Any]]) -> tuple[Option, ...]:
        return tuple(
            Option(
                frozen[row["frozen"]],
                row["cut"],
                TuneSettings(**row["settings"]),
                Cost(**row["cost"]),
                together=tuple(row["together"]),
                by_prior=row["by_prior"],
            )
            for row in rows
            if row["frozen"] in frozen
        )

    return TuningPlan(back(known["tried"]), int(known["folds"]), back(known["left"]))


def written(option: Option) -> dict[str, Any]:
    """An option as the journal keeps it."""
    return {
        "name": option.recipe.name,
        "frozen": option.trial.recipe.key,
        "cut": option.cut,
        "settings": asdict(option.settings),
        "cost": asdict(option.cost),
        "together": list(option.together),
        "by_prior": option.by_prior,
    }


def known_folds(frame: Frame, option: Option) -> int:
    """How many folds, from the first on, an earlier session has measured."""
    measured = (frame.journal.fold(option.recipe.key, fold) for fold in range(frame.folds.count))
    return sum(1 for _ in takewhile(lambda known: known is not None, measured))


def rows_of(frame: Frame, plan: TuningPlan) -> list[dict[str, Any]]:
    """The lines of `plan` in `study.json`, before anything was run."""

    def row(option: Option, decision: str) -> dict[str, Any]:
        return {
            "id": option.recipe.name,
            "cut": option.cut,
            "decision": decision,
            "epochs": option.settings.epochs,
            "views": option.settings.views,
            "batch_norm": option.settings.batch_norm,
            "fold_seconds": None,
            "cache_seconds": None,
            "predicted_seconds": 0.0,
            "folds_done": 0,
            "real_seconds": 0.0,
        }

    reason = "the budget does not pay it" if plan.options else "the budget pays no fine-tuning"
    return [*(row(o, "tried") for o in plan.options), *(row(o, reason) for o in plan.left)]


def _begun(frame: Frame) -> list[dict[str, Any]]:
    """What plans for other budgets have tried, of which something was measured."""
    named = {record.get("name") for record in frame.journal.records if record["kind"] == "fold"}
    return [
        row
        for record in frame.journal.records
        if record["kind"] == PLAN
        for row in record["tried"]
        if row["name"] in named
    ]


def _key(row: dict[str, Any]) -> tuple[str, str]:
    return row["frozen"], row["cut"]
