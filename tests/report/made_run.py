"""Made run folders: the numbers are drawn, the names are hostile, the photos are noise in the class's colour."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

HOSTILE = (
    "<script>alert(1)</script>",
    'it\'s "quoted" & 100 %',
    "übel & 猫 🐜",
    "a=b",
    "x' onerror='y",
    "plain",
)
BACKBONES = {
    "mobilenetv2_100.coral_in1k": (2.2e6, 8.9e6, 4.1, 0.955),
    "resnet50.a1_in1k": (23.5e6, 94e6, 22.0, 0.962),
    "squeezenet1_1.tv_in1k": (0.72e6, 2.9e6, 3.1, 0.91),
    "mobilenetv3_small_100.lamb_in1k": (1.5e6, 6.2e6, 1.4, 0.935),
    "vgg16.tv_in1k": (134e6, 537e6, 95.0, 0.93),
    "convnext_atto.d2_in1k": (3.4e6, 13.5e6, 7.0, 0.957),
}
METRICS = (
    "macro_f1",
    "accuracy",
    "log_loss",
    "balanced_accuracy",
    "weighted_f1",
    "auroc",
    "average_precision",
)


def class_names(k: int) -> list[str]:
    """`k` class names, the hostile ones first."""
    return sorted([*HOSTILE, *(f"class {index:03d}" for index in range(k))][:k])


def write_run(folder: Path, *, classes: int, images: int, backbones: int, taps: int, photos: bool) -> Path:
    """A finished run folder; the photos lie in `folder/../photos "<b>"`."""
    random = np.random.default_rng(7)
    names = class_names(classes)
    root = folder.parent / 'photos "<b>"'
    labels = np.sort(random.integers(0, classes, images))
    files = [f"{index % 7}/<img src=x>'{index}.jpg" for index in range(images)]
    if photos:
        write_photos(root, files, labels, random)
    folder.mkdir(parents=True)
    candidates = [_candidate(random, names, *spec, taps) for spec in _backbones(backbones) for _ in (0,)]
    rows = [row for group in candidates for row in group] + [_scratch(random, names)]
    study = _study(random, names, labels, rows, root)
    (folder / "study.json").write_text(json.dumps(study), encoding="utf-8")
    run = {"format": 1, "graft": "0.1.0", "root": str(root), "settings": study["settings"], "environment": {}}
    (folder / "run.json").write_text(json.dumps(run), encoding="utf-8")
    write_check(folder / "check.csv")
    (folder / "journal.jsonl").write_text('{"trial": 1}\n', encoding="utf-8")
    write_predictions(folder, study, files, labels, random)
    return folder


def write_photos(root: Path, files: list[str], labels: np.ndarray, random: np.random.Generator) -> None:
    """A noisy photo of 320 x 240 pixels for each file."""
    for file, label in zip(files, labels, strict=True):
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        colour = np.array([(label * 67) % 256, (label * 151) % 256, 130])
        small = random.integers(-40, 40, (6, 8, 3)) + colour
        Image.fromarray(np.clip(small, 0, 255).astype(np.uint8)).resize((320, 240)).save(path, "JPEG")


def write_check(path: Path, rows: int = 70) -> None:
    """Remarks of several kinds, more than the page lists."""
    kinds = ["near_duplicate", "unreadable", "conflict", "truncated", "exact_duplicate"]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "issue", "excluded", "class", "detail"])
        for row in range(rows):
            kind = kinds[(row * row) % 5]
            excluded = "yes" if kind in ("unreadable", "truncated") else "no"
            writer.writerow(
                [f"bad/<b>{row}.png", kind, excluded, HOSTILE[row % 6], f'like "{row}", <i>nearly</i>']
            )


def write_predictions(
    folder: Path, study: dict[str, Any], files: list[str], labels: np.ndarray, random: np.random.Generator
) -> None:
    """Out-of-fold probabilities of the choice and of one other candidate."""
    names = study["dataset"]["class_names"]
    logits = random.normal(0, 1, (len(files), len(names)))
    logits[np.arange(len(files)), labels] += 2.6 + np.log(len(names)) / 2
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    predicted = shares.argmax(axis=1)
    owners = [study["choice"]["id"], study["candidates"][1]["id"]]
    table = pa.table(
        {
            "candidate": pa.array(np.repeat(owners, len(files))).dictionary_encode(),
            "file": files * 2,
            "label": [names[i] for i in labels] * 2,
            "split": ["development"] * (2 * len(files)),
            "fold": pa.array(list(range(len(files))) * 2, pa.int32()),
            "predicted": [names[i] for i in predicted] * 2,
            "probabilities": pa.array([*shares, *shares], pa.list_(pa.float32())),
        }
    ).replace_schema_metadata({b"classes": json.dumps(names).encode()})
    pq.write_table(table, folder / "predictions.parquet", row_group_size=5_000)
    confusion = np.zeros((len(names), len(names)), dtype=int)
    np.add.at(confusion, (labels, predicted), 1)
    study["choice"]["confusion"] = confusion.tolist()
    (folder / "study.json").write_text(json.dumps(study), encoding="utf-8")


def _backbones(count: int) -> list[tuple[str, tuple[float, ...]]]:
    known = list(BACKBONES.items())
    more = [
        (f"net{i}.in1k", (1e6 + i * 4e5, 4e6 + i * 1.6e6, 1.0 + i, 0.9 + 0.001 * i)) for i in range(count)
    ]
    return [*known, *more][:count]


def _candidate(
    random: np.random.Generator, names: list[str], backbone: str, facts: tuple[float, ...], taps: int
) -> list[dict[str, Any]]:
    parameters, size, latency, top = facts
    rows = []
    for tap in range(taps):
        share = (tap + 1) / taps
        score = top - 0.5 * (1 - share) ** 1.6 + random.normal(0, 0.006)
        rows.append(
            {
                "id": f"{backbone}/blocks.{tap}",
                "name": backbone,
                "backbone": backbone,
                "family": backbone.split("_")[0],
                "weights_origin": "weights folder",
                "licence": "Apache-2.0",
                "strategy": "frozen",
                "tap": f"blocks.{tap}",
                "tap_index": tap,
                "taps": taps,
                "cut": f"blocks.{tap}",
                "input": {"size": 224, "channels": 3, "fit": "crop"},
                **_scores(random, names, score),
                "knn": {"accuracy": score - 0.03, "macro_f1": score - 0.04},
                "cost": {
                    "parameters": parameters * share**2,
                    "bytes": size * share**2,
                    "latency_ms": latency * share,
                    "latency_threads": 1,
                    "train_seconds": 0.21,
                    "extract_seconds": 1.4,
                },
                "difference": {
                    "to_best": score - 0.965,
                    "interval": [score - 0.985, min(score - 0.945, 0.0)],
                },
                "tied": score > 0.945,
                "within_limits": size < 5e8,
                "complete": True,
                "curves": None,
            }
        )
    return rows


def _scratch(random: np.random.Generator, names: list[str]) -> dict[str, Any]:
    curves = []
    for fold in range(5):
        epochs = [
            {
                "number": epoch,
                "train_loss": 1.6 * np.exp(-epoch / 25) + random.normal(0, 0.01),
                "validation_loss": 0.6 + 1.1 * np.exp(-epoch / 18) + 0.002 * epoch + random.normal(0, 0.03),
                "validation_accuracy": 0.78 - 0.5 * np.exp(-epoch / 15) + random.normal(0, 0.012),
            }
            for epoch in range(1, 90 + fold)
        ]
        curves.append({"fold": fold, "epochs": epochs, "best_epoch": 60 + fold, "stopped": "patience"})
    return {
        "id": "scratch-small",
        "name": "small CNN",
        "backbone": "scratch",
        "strategy": "scratch",
        "tap": "head",
        "tap_index": 0,
        "taps": 1,
        "cut": "",
        **_scores(random, names, 0.764),
        "knn": None,
        "cost": {
            "parameters": 310_000,
            "bytes": 1.25e6,
            "latency_ms": 0.62,
            "latency_threads": 1,
            "train_seconds": 84,
        },
        "difference": {"to_best": -0.2, "interval": [-0.24, -0.16]},
        "tied": False,
        "within_limits": True,
        "complete": True,
        "curves": curves,
    }


def _scores(random: np.random.Generator, names: list[str], score: float) -> dict[str, Any]:
    metrics = {name: score + 0.002 * index for index, name in enumerate(METRICS)}
    metrics["log_loss"] = 1.2 - score
    f1 = np.clip(score + random.normal(0, 0.04, len(names)), 0, 1)
    return {
        "metrics": metrics,
        "interval": {"macro_f1": [score - 0.014, score + 0.012], "accuracy": [score - 0.012, score + 0.012]},
        "folds": [score + 0.01, score - 0.01, score],
        "per_class": [
            {"class": name, "precision": value, "recall": value, "f1": value, "support": 40}
            for name, value in zip(names, f1.tolist(), strict=True)
        ],
    }


def _study(
    random: np.random.Generator, names: list[str], labels: np.ndarray, rows: list[dict[str, Any]], root: Path
) -> dict[str, Any]:
    frozen = [row for row in rows if row["strategy"] == "frozen"]
    tied = [row for row in frozen if row["tied"]] or frozen
    choice = min(tied, key=lambda row: row["cost"]["bytes"])
    best = max(frozen, key=lambda row: row["metrics"]["macro_f1"])
    smallest = min(rows, key=lambda row: row["cost"]["bytes"])
    score = choice["metrics"]["macro_f1"]
    why = "Ahead by <b>0.006</b>, which this many images cannot tell from chance."
    return {
        "format": 1,
        "graft": "0.1.0",
        "dataset": {
            "name": "leaves <b>&amp; co</b>",
            "root": str(root),
            "images": len(labels),
            "classes": len(names),
            "class_names": names,
            "excluded": 3,
            "counts": {name: int((labels == index).sum()) for index, name in enumerate(names)},
            "grey": True,
            "near_duplicates": 12,
            "exact_duplicates": 2,
            "conflicts": 1,
            "development": len(labels),
            "test": 0,
            "test_origin": None,
            "fingerprint": "f" * 40,
        },
        "settings": {
            "metric": "macro_f1",
            "folds": 5,
            "seed": 0,
            "budget_seconds": 600,
            "limits": {"max_bytes": None, "max_latency_ms": None},
            "device": "cpu",
            "threads": 2,
            "only": None,
            "command": "graft study 'photos \"<b>\"/' --budget 10m",
        },
        "candidates": rows,
        "choice": {
            "id": choice["id"],
            "headline": {
                "macro_f1": score - 0.004,
                "interval": [score - 0.02, score + 0.008],
                "kind": "bbc-cv",
                "metric": "macro_f1",
            },
            "reason": "It is 10 times smaller than the most accurate candidate and tied with it.",
            "test": None,
            "runners_up": {
                "most_accurate": {"id": best["id"], "why": why},
                "smallest": {"id": smallest["id"], "why": "Smaller, but 0.190 behind."},
                "fastest": {"id": smallest["id"], "why": "0.62 ms per image."},
            },
            "confusion": None,
            "limits_met": True,
            "missed": None,
        },
        "scratch_versus_transfer": {
            "difference": 0.19,
            "interval": [0.15, 0.23],
            "sentence": "Transfer is ahead of training from scratch by 0.190 in macro-F1 (0.150 to 0.230).",
            "scratch": "scratch-small",
            "transfer": choice["id"],
        },
        "position": {
            "size": "small",
            "similarity": "similar",
            "slope": 3.2,
            "depth": 1.0,
            "familiarity": 0.7,
            "overlap": 0.95,
            "sentence": "The data set is small and similar to ImageNet.",
            "advice": "A frozen backbone with a new head is the place to start; more images would help.",
        },
        "backbones": {"vgg16.tv_in1k": "named <first>", "resnet50.a1_in1k": "the best of its size"},
        "notices": ["resnet152 was left out: the hub did not answer within 5 s.", "The images are <grey>."],
        "environment": {"python": "3.11.9", "platform": "Linux-6.1", "cpu": "2 cores", "torch": "2.8.0"},
        "seconds": {"total": 132.3, "first_answer": 6.1},
    }
