"""How good is a packed model on these labelled images: later data, another camera, a set that was kept aside.

In: a bundle, and a folder `<class>/...`, a CSV or a Parquet file. Out: an `Evaluation`: scores with bootstrap intervals,
the table by class, the confusion matrix and every image's answer. The folder's classes are matched with the bundle's
labels by name. What counts as the answer is what `graft predict` says: in a bundle with a threshold, that decides. Images of a class that the model does not know cannot be answered rightly: the scores are those of the
known classes, the others are named and counted beside them, stand in the confusion matrix, and
`accuracy_with_unknown` counts them as wrong. Where the bundle tells unknown pictures, it is measured how well: on those
images, and on pictures of something else (`elsewhere`), which belong to no class. Splits (train, val, test) are not told apart: give the folder of one.

Cost: one pass of every image through the network, and 1,000 bootstrap draws. Not covered: near-duplicates (only images
with the same bytes, or of one group in a CSV, are drawn together, so many near-copies make the intervals too narrow);
whether the model was trained on these very images.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64, Int64

from graft.compute import cpu_threads
from graft.deploy.answers import LeftOut, answers
from graft.deploy.apart import Apart, told_apart
from graft.deploy.bundle import Bundle
from graft.deploy.cells import path_cell
from graft.errors import DatasetError
from graft.images.readers import read
from graft.images.rows import Listing, Row
from graft.judging import metrics
from graft.judging.uncertainty import Estimate, draw_weights, estimate, interval
from graft.store import write_atomically

SCORES = ("macro_f1", "accuracy", "balanced_accuracy", "log_loss", "brier")
DRAWS = 1000
LEAST_DRAWS = 200
WEIGHT_CELLS = 50_000_000  # 200 MB of bootstrap weights
CALIBRATION_DRAWS = 300


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """What a model is worth on labelled images.

    `scores` and `per_class` are over the `images` of known classes: accuracy, macro_f1, balanced_accuracy, log_loss,
    brier and calibration_error with 95 % intervals; class, precision, recall, f1, support, auroc of every label that
    occurs in truth or answers. `confusion[t, c]`: how often truth `truths[t]` was answered with label `labels[c]`;
    `truths` are the labels and then the unknown classes. `apart`: how well pictures of something else are told apart, None
    where there are none or the bundle cannot tell. `names`, `classes`, `answers` (a column of `labels`) and
    `probabilities` go image by image, those of unknown classes included.
    """

    source: str
    bundle: str
    labels: tuple[str, ...]
    truths: tuple[str, ...]
    images: int
    scores: dict[str, Estimate]
    per_class: tuple[dict[str, Any], ...]
    confusion: Int64[np.ndarray, "t k"]
    unknown: dict[str, int]
    accuracy_with_unknown: float
    apart: Apart | None
    left_out: tuple[LeftOut, ...]
    names: tuple[str, ...]
    classes: tuple[str, ...]
    answers: Int64[np.ndarray, " n"]
    probabilities: Float32[np.ndarray, "n k"]

    @property
    def facts(self) -> dict[str, Any]:
        """All of it but the single images, for JSON."""
        return {
            "source": self.source,
            "bundle": self.bundle,
            "images": self.images,
            "scores": {
                name: {"value": score.value, "interval": [score.low, score.high]}
                for name, score in self.scores.items()
            },
            "per_class": list(self.per_class),
            "confusion": {
                "truth": list(self.truths),
                "answer": list(self.labels),
                "counts": self.confusion.tolist(),
            },
            "unknown_classes": self.unknown,
            "accuracy_with_unknown": self.accuracy_with_unknown,
            "told_apart": None if self.apart is None else self.apart.facts,
            "left_out": [{"file": one.name, "reason": one.reason} for one in self.left_out],
        }


@dataclass(frozen=True, slots=True, eq=False)
class _Answered:
    """The rows that could be answered: their names, the digests of their bytes, probabilities, and scores of being
    unknown (NaN where the bundle cannot tell); and those that could not."""

    rows: list[Row]
    names: list[str]
    digests: list[str]
    table: Float32[np.ndarray, "n k"]
    scores: Float64[np.ndarray, " n"]
    left_out: list[LeftOut]


def evaluating(
    bundle: Bundle, source: str | Path, *, elsewhere: Sequence[Path] = ()
) -> Generator[tuple[str, int, int], None, Evaluation]:
    """Answer every labelled image in `source`; yields (what, done, total), returns the `Evaluation`.

    `elsewhere`: files with pictures of something else. Raises DatasetError where nothing is labelled, no class is known
    to the bundle, or no image can be read.
    """
    listing = read(Path(source))
    rows = [row for row in listing.rows if row.label is not None]
    left_out = [
        LeftOut(listing.name(row), "The image belongs to no class: it has no label or class folder.")
        for row in listing.rows
        if row.label is None
    ]
    left_out += [LeftOut(issue.name, issue.detail) for issue in listing.issues if issue.excluded]
    _refuse_strangers(bundle, source, listing)
    found = yield from _answering(bundle, rows, [listing.name(row) for row in rows], "answering")
    strange = [Row(path, None, None) for path in elsewhere]
    others = yield from _answering(bundle, strange, [str(path) for path in elsewhere], "elsewhere")
    classes = tuple(row.label or "" for row in found.rows)
    known = np.array([name in bundle.labels for name in classes], bool)
    evaluation = judged(
        tuple(found.names),
        classes,
        _groups(found.rows, found.digests),
        found.table,
        bundle=bundle,
        source=str(source),
        left_out=[*left_out, *found.left_out, *others.left_out],
    )
    far = np.concatenate([found.scores[~known], others.scores])
    limit = bundle.decision.limit
    if limit is None or not len(far):
        return evaluation
    return replace(evaluation, apart=told_apart(found.scores[known], far, limit=limit))


def _answering(
    bundle: Bundle, rows: Sequence[Row], names: Sequence[str], step: str
) -> Generator[tuple[str, int, int], None, _Answered]:
    found = _Answered([], [], [], np.empty((0, len(bundle.labels)), np.float32), np.empty(0), [])
    numbers = []
    if rows:
        yield step, 0, len(rows)
    work = answers(rows, partial(_numbers, bundle), threads=cpu_threads())
    for done, (row, name, answer) in enumerate(zip(rows, names, work, strict=True), start=1):
        if answer.values is None:
            found.left_out.append(LeftOut(name, answer.reason))
        else:
            found.rows.append(row)
            found.names.append(name)
            found.digests.append(answer.digest)
            numbers.append(answer.values)
        yield step, done, len(rows)
    if not numbers:
        return found
    table, classes = np.stack(numbers), len(bundle.labels)
    told = table.shape[1] > classes
    scores = table[:, classes].astype(np.float64) if told else np.full(len(table), np.nan)
    return replace(found, table=table[:, :classes], scores=scores)


def _numbers(bundle: Bundle, data: bytes, _digest: str) -> Float32[np.ndarray, " d"]:
    """The probabilities and, where the bundle can tell, the score of being unknown."""
    probabilities, score = bundle.scored(data)
    return probabilities if score is None else np.append(probabilities, np.float32(score))


def judged(
    names: Sequence[str],
    classes: Sequence[str],
    groups: Int64[np.ndarray, " n"],
    table: Float32[np.ndarray, "n k"],
    *,
    bundle: Bundle,
    source: str,
    left_out: Sequence[LeftOut],
) -> Evaluation:
    """The evaluation of answers that are there; images with the same number in `groups` are drawn together."""
    labels = bundle.labels
    column = {label: place for place, label in enumerate(labels)}
    known = np.array([name in column for name in classes], bool)
    if not known.any():
        first = f" ({left_out[0].name}: {left_out[0].reason})" if left_out else ""
        raise DatasetError(f"{source} holds no image of a known class that can be read{first}.")
    targets = np.array([column[name] for name in classes if name in column], np.int64)
    probabilities = table[known]
    decided = bundle.decide(table)
    answered = np.eye(len(labels), dtype=np.float32)[decided[known]]
    unknown = dict(sorted(Counter(name for name in classes if name not in column).items()))
    truths = (*labels, *unknown)
    right = int((decided[known] == targets).sum())
    by_class = [
        {**row, "auroc": ranked["auroc"]}
        for row, ranked in zip(
            metrics.per_class(answered, targets, labels),
            metrics.per_class(probabilities, targets, labels),
            strict=True,
        )
    ]
    return Evaluation(
        source=source,
        bundle=str(bundle.folder),
        labels=labels,
        truths=truths,
        images=len(targets),
        scores=_scores(probabilities, answered, targets, groups[known]),
        per_class=tuple(
            row for row, count in zip(by_class, answered.sum(axis=0), strict=True) if row["support"] or count
        ),
        confusion=_confusion(classes, truths, decided, len(labels)),
        unknown=unknown,
        accuracy_with_unknown=right / len(classes),
        apart=None,
        left_out=tuple(left_out),
        names=tuple(names),
        classes=tuple(classes),
        answers=decided,
        probabilities=table,
    )


def write_answers(evaluation: Evaluation, path: Path) -> None:
    """Write a CSV line per image: file, class, label (the answer), right, probability, and all probabilities.

    A file's name that a spreadsheet would compute begins with `./`; see `cells`.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\r\n")
    writer.writerow(["file", "class", "label", "right", "probability", *evaluation.labels])
    for name, truth, place, row in zip(
        evaluation.names, evaluation.classes, evaluation.answers, evaluation.probabilities, strict=True
    ):
        label = evaluation.labels[place]
        verdict = "yes" if label == truth else "no"
        writer.writerow(
            [path_cell(name), truth, label, verdict, f"{row[place]:.6f}", *(f"{share:.6f}" for share in row)]
        )
    # A file name may hold bytes that are no text at all; they are shown as a question mark.
    write_atomically(path, text.getvalue().encode("utf-8", errors="replace"))


def _refuse_strangers(bundle: Bundle, source: str | Path, listing: Listing) -> None:
    if not set(listing.classes) & set(bundle.labels):
        raise DatasetError(
            f"{source} has none of the classes that {bundle.folder} knows. It has {_listed(listing.classes)}; the model "
            f"knows {_listed(bundle.labels)}. Name the folders after the model's labels."
        )


def _listed(names: Sequence[str], most: int = 5) -> str:
    shown = ", ".join(map(repr, names[:most])) or "none"
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown


def spelling_hint(name: str, labels: Sequence[str]) -> str:
    """The label that an unknown class may have been meant as, or an empty string."""
    import difflib

    folded = {label.casefold(): label for label in labels}
    close = difflib.get_close_matches(name.casefold(), sorted(folded), 1)
    return folded[close[0]] if close else ""


def _groups(rows: Sequence[Row], digests: Sequence[str]) -> Int64[np.ndarray, " n"]:
    """A number per image; those with the same bytes or the same group share it."""
    number: dict[str, int] = {}
    group_of: list[int] = []
    for row, digest in zip(rows, digests, strict=True):
        name = digest if row.group is None else f"group {row.group}"
        group_of.append(number.setdefault(name, len(number)))
    return np.array(group_of, np.int64)


def _scores(
    probabilities: Float32[np.ndarray, "n k"],
    answered: Float32[np.ndarray, "n k"],
    targets: Int64[np.ndarray, " n"],
    groups: Int64[np.ndarray, " n"],
) -> dict[str, Estimate]:
    draws = int(np.clip(WEIGHT_CELLS // len(targets), LEAST_DRAWS, DRAWS))
    weights = draw_weights(targets, groups, draws=draws, seed=0)
    tables = {name: answered if metrics.METRICS[name].from_decisions else probabilities for name in SCORES}
    scores = {name: estimate(name, table, targets, groups, weights) for name, table in tables.items()}
    return {**scores, "calibration_error": _calibration(probabilities, targets, weights)}


def _calibration(
    probabilities: Float32[np.ndarray, "n k"],
    targets: Int64[np.ndarray, " n"],
    weights: Float32[np.ndarray, "b n"],
) -> Estimate:
    """The calibration error and its interval: the spread of the draws, about the estimate.

    Drawing the same images twice makes every bin's gap larger, so the draws lie above the estimate; only how far they lie
    apart is taken from them. A column for the decided class and an empty one say all that the error needs.
    """
    confidence = probabilities.max(axis=1)
    wrong = (metrics.decisions(probabilities) != targets).astype(np.int64)
    table = np.stack([confidence, np.zeros_like(confidence)], axis=1)
    value = metrics.calibration_error(table, wrong)
    samples = []
    for times in weights[:CALIBRATION_DRAWS].astype(np.int64):
        rows = np.repeat(np.arange(len(wrong)), times)
        samples.append(metrics.calibration_error(table[rows], wrong[rows]))
    low, high = interval(np.array(samples) - np.mean(samples) + value)
    return Estimate(value, min(value, max(low, 0.0)), max(value, min(high, 1.0)))


def _confusion(
    classes: Sequence[str], truths: Sequence[str], answers: Int64[np.ndarray, " n"], k: int
) -> Int64[np.ndarray, "t k"]:
    place = {name: row for row, name in enumerate(truths)}
    cells = np.array([place[name] for name in classes], np.int64) * k + answers
    return np.bincount(cells, minlength=len(truths) * k).reshape(len(truths), k).astype(np.int64)
