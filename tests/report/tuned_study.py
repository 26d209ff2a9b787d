"""A small study with everything that the sections on training read: frozen, tuned (one on some folds only), from scratch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

TAPS = ("b0", "b1", "b2", "head")


def tuned_study() -> dict[str, Any]:
    """Five folds; `net` was tuned in its last stage on all of them, in its last two on two, and not in full."""
    frozen = [_frozen(tap, index) for index, tap in enumerate(TAPS)]
    tuned = [
        _tuned("b1", "partial", folds=5, score=0.93, seconds=20.0),
        _tuned("b0", "partial", folds=2, score=0.95, seconds=9.0),
    ]
    scratch = {
        **_candidate("cnn/scratch", "scratch", "head", 0.7, 30.0),
        "backbone": "cnn",
        "cut": "",
        "curves": [curve(fold, epochs=6, best=4, stopped="deadline") for fold in range(5)],
    }
    return {
        "settings": {"metric": "macro_f1", "folds": 5},
        "choice": {"id": "net/head+tuned:b1"},
        "candidates": [*frozen, *tuned, scratch],
        "plan": [
            _planned("b1", "tried", folds_done=5, predicted=30.0, real=33.0),
            _planned("b0", "tried", folds_done=2, predicted=15.0, real=12.0),
            _planned("", "the budget does not pay it", folds_done=0, predicted=0.0, real=0.0),
        ],
    }


def curve(fold: int, *, epochs: int, best: int, stopped: str = "epochs") -> dict[str, Any]:
    rows = [
        {
            "number": number,
            "planned": 8,
            "train_loss": 1 / number,
            "validation_loss": 0.3 + 1 / number + 0.01 * fold,
            "validation_accuracy": 0.9 - 0.3 / number,
            "train_metric": 0.95 - 0.4 / number,
            "validation_metric": 0.88 - 0.3 / number,
        }
        for number in range(1, epochs + 1)
    ]
    return {"fold": fold, "epochs": rows, "best_epoch": best, "stopped": stopped}


def write(folder: Path, study: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "study.json").write_text(json.dumps(study), encoding="utf-8")
    return folder


def _candidate(name: str, strategy: str, tap: str, score: float, seconds: float) -> dict[str, Any]:
    return {
        "id": name,
        "backbone": "net",
        "strategy": strategy,
        "tap": tap,
        "tap_index": TAPS.index(tap),
        "taps": len(TAPS),
        "metrics": {"macro_f1": score},
        "interval": {"macro_f1": [score - 0.03, score + 0.02]},
        "folds": [score - 0.02, score - 0.01, score, score + 0.01, score + 0.02],
        "cost": {"train_seconds": seconds, "extract_seconds": 0.5},
        "complete": True,
        "curves": None,
    }


def _frozen(tap: str, index: int) -> dict[str, Any]:
    return {**_candidate(f"net/{tap}", "frozen", tap, 0.6 + 0.1 * index, 0.1 + 0.1 * index), "cut": tap}


def _tuned(cut: str, strategy: str, *, folds: int, score: float, seconds: float) -> dict[str, Any]:
    made = _candidate(f"net/head+tuned:{cut or 'all'}", strategy, "head", score, seconds)
    curves = [curve(fold, epochs=8, best=fold) for fold in range(folds)]
    return {**made, "cut": cut, "folds": made["folds"][:folds], "complete": folds == 5, "curves": curves}


def _planned(cut: str, decision: str, *, folds_done: int, predicted: float, real: float) -> dict[str, Any]:
    return {
        "id": f"net/head+tuned:{cut or 'all'}",
        "cut": cut,
        "decision": decision,
        "epochs": 8,
        "views": 4,
        "batch_norm": "frozen",
        "fold_seconds": 5.0,
        "cache_seconds": 5.0,
        "predicted_seconds": predicted,
        "folds_done": folds_done,
        "real_seconds": real,
    }
