"""The main job as plain functions: what `graft study` and `graft check` do, without a terminal."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from pathlib import Path

from graft.images.dataset import Dataset
from graft.studies.frame import Event
from graft.studies.results import StudyResult
from graft.studies.settings import Settings, resolved


def study(
    source: str | Path,
    *,
    out: str | Path | None = None,
    budget: str | int | float = "10m",
    weights: str | Path | None = None,
    backbones: str | Sequence[str] = "auto",
    folds: int = 5,
    metric: str = "macro_f1",
    max_size: str | int | None = None,
    max_latency: str | int | float | None = None,
    only: str | None = None,
    fit: str = "auto",
    groups: str = "near",
    device: str = "auto",
    seed: int = 0,
    overwrite: bool = False,
) -> StudyResult:
    """Measure what to do with the labelled images in `source`, and pack the smallest of the best models.

    `source`: a folder `<class>/...` (or `train|val|test/<class>/...`), a CSV or Parquet file. `out`: the run folder
    (default `runs/<name of source>`); an unfinished study there is continued, another one only replaced with
    `overwrite`. `budget`: seconds, or `"5m"`. `weights`: a folder with `weights.json`. `backbones`: `"auto"`, or names
    as `graft models` lists them. `folds`: 2 to 20. `metric`: what decides (`macro_f1`, `accuracy`,
    `balanced_accuracy`, `weighted_f1`, `log_loss` or `brier`). `max_size`, `max_latency`: limits on the packed model,
    such as `"5MB"` (or bytes) and `"10ms"` (or milliseconds) for one image on one thread. `only`: `"frozen"` or
    `"scratch"`. `fit`: how images become square, `"crop"`, `"squash"` or `"pad"` (`"auto"` measures it). `device`:
    `"auto"`, `"cpu"`, `"cuda"` or `"mps"`. Same seed, same data, same machine: same choice, same numbers.

    Raises GraftError with a sentence for whatever cannot be done.
    """
    settings = resolved(
        source,
        out=out,
        budget=budget,
        weights=weights,
        backbones=backbones,
        folds=folds,
        metric=metric,
        max_size=max_size,
        max_latency=max_latency,
        only=only,
        fit=fit,
        groups=groups,
        device=device,
        seed=seed,
        overwrite=overwrite,
    )
    work = running(settings, command=f"graft.study({str(source)!r}, ...)")
    while True:
        try:
            next(work)
        except StopIteration as finished:
            return finished.value


def running(settings: Settings, *, command: str) -> Generator[Event, None, StudyResult]:
    """The study and then its report, as a generator of events that returns the result."""
    from graft.report.page import write
    from graft.studies.search import studying

    result = yield from studying(settings, command=command)
    yield Event("progress", "writing the report")
    write(result.run)
    return result


def check(source: str | Path) -> Dataset:
    """Only look at the images: the checked dataset with its issues. Raises DatasetError if it makes no task."""
    from graft.compute import cpu_threads
    from graft.images.scan import scan
    from graft.store import Store

    return scan(source, store=Store(), threads=cpu_threads())
