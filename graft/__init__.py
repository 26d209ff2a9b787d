"""Graft measures whether to transfer or to train from scratch, and hands over the smallest classifier you can trust.

    import graft

    result = graft.study("photos/", budget="5m")   # a StudyResult: .choice, .candidates, .report(), .bundle()
    model = graft.load("runs/photos/model.graft")  # a Bundle: .predict(path | PIL image | array), .embed([...])

The names are loaded on first use, so `import graft` costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from graft.version import VERSION as __version__

if TYPE_CHECKING:
    from graft.api import check, evaluate, index, pretrain, shrink, study, train
    from graft.deploy.bundle import Bundle, Prediction, load
    from graft.errors import GraftError
    from graft.estimator import GraftClassifier
    from graft.similar.search import Index, open_index
    from graft.studies.results import StudyResult

__all__ = [
    "study",
    "train",
    "check",
    "pretrain",
    "shrink",
    "load",
    "evaluate",
    "index",
    "open_index",
    "StudyResult",
    "GraftClassifier",
    "Bundle",
    "Prediction",
    "Index",
    "GraftError",
    "__version__",
]

_HOMES = {
    "study": "graft.api",
    "train": "graft.api",
    "check": "graft.api",
    "pretrain": "graft.api",
    "shrink": "graft.api",
    "load": "graft.deploy.bundle",
    "evaluate": "graft.api",
    "index": "graft.api",
    "open_index": "graft.similar.search",
    "Bundle": "graft.deploy.bundle",
    "Prediction": "graft.deploy.bundle",
    "Index": "graft.similar.search",
    "StudyResult": "graft.studies.results",
    "GraftClassifier": "graft.estimator",
    "GraftError": "graft.errors",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'graft' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
