"""What `graft train` was asked for: the recipe on its page, and where and with what to run it.

In: the arguments of `graft.train`, each None where it was not given. Out: `TrainSettings`, checked before anything is
read or written. What was given counts before what a recipe says, and that before the defaults of `graft.studies.single.page`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from graft.errors import SettingsError
from graft.studies.settings import Fit, Settings, resolved
from graft.studies.single.page import Page, page_from, read_page


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """`study`: the same as for a study of this one candidate; its budget is infinite unless one was given.

    `save_recipe`: where the page is to be written once it is known that it can be trained, or None.
    """

    study: Settings
    page: Page
    preview: bool
    save_recipe: Path | None = None


def resolved_training(
    source: str | Path,
    *,
    backbone: str | None = None,
    init: str | None = None,
    freeze: str | int | None = None,
    tap: str | None = None,
    head: str | None = None,
    input: str | None = None,
    size: int | str | None = None,
    fit: str | None = None,
    augment: str | Path | None = None,
    balance: str | None = None,
    lr: float | str | None = None,
    epochs: int | str | None = None,
    patience: int | str | None = None,
    batch_size: int | str | None = None,
    batch_norm: str | None = None,
    mixup: float | str | None = None,
    cutmix: float | str | None = None,
    ema: bool | None = None,
    generations: int | str | None = None,
    ensemble: int | str | None = None,
    seeds: int | str | None = None,
    folds: int | str | None = None,
    metric: str | None = None,
    groups: str | None = None,
    seed: int | str | None = None,
    recipe: str | Path | None = None,
    save_recipe: str | Path | None = None,
    out: str | Path | None = None,
    budget: str | int | float | None = None,
    weights: str | Path | None = None,
    device: str = "auto",
    preview: bool = False,
    overwrite: bool = False,
) -> TrainSettings:
    """The settings as records want them; the arguments are those of `graft.train`.

    Writes nothing. Raises SettingsError naming the option, the value and the valid ones.
    """
    given = {
        "backbone": backbone,
        "init": init,
        "freeze": freeze,
        "tap": tap,
        "head": head,
        "input": input,
        "size": size,
        "fit": fit,
        "augment": None if augment is None else str(augment),
        "balance": balance,
        "lr": lr,
        "epochs": epochs,
        "patience": patience,
        "batch_size": batch_size,
        "batch_norm": batch_norm,
        "mixup": mixup,
        "cutmix": cutmix,
        "ema": ema,
        "generations": generations,
        "ensemble": ensemble,
        "seeds": seeds,
        "folds": folds,
        "metric": metric,
        "groups": groups,
        "seed": seed,
    }
    kept = None if recipe is None else read_page(Path(recipe).expanduser())
    page = page_from({name: value for name, value in given.items() if value is not None}, kept=kept)
    study = resolved(
        source,
        out=out,
        budget="10m" if budget is None else budget,
        weights=weights,
        backbones=page.backbone,
        folds=page.folds,
        metric=page.metric,
        fit="auto",
        groups=page.groups,
        device=device,
        seed=page.seed,
        overwrite=overwrite,
    )
    if len(study.backbones) != 1 or study.backbones == ("auto",):
        raise SettingsError(
            f"--backbone {page.backbone}: name one network (graft models lists them), or scratch for the small CNN."
        )
    if budget is None:
        study = replace(study, budget_seconds=math.inf)
    return TrainSettings(
        replace(study, fit=cast("Fit", page.fit)),
        page,
        preview,
        None if save_recipe is None else Path(save_recipe).expanduser(),
    )
