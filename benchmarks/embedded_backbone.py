"""What is the backbone inside Graft worth: against no learning, against patches, against small ImageNet networks?

    python benchmarks/embedded_backbone.py [--data DIR] [--weights DIR] [--embedded DIR] [--limit N] [--steps N]

Frozen features under the ridge head of a study, 5 folds over the images outside the locked test (the same for every
row), macro-F1 out of fold. Networks come through graft's own path, each at its own input size, with a score at the last
tap and at the best one (picked by this very score, hence a little flattered); `--embedded DIR` measures the networks of
a weights folder in place of those inside Graft. Features and scores are kept in the cache: a second run is quick.

Where images come in series (several exposures of one tile), features that merely recognise the subject score high. So
such a set has two columns, near-duplicates kept together and whole series kept together, and there are two means.

Then training: the same network from its weights and from random ones, with equal batches, steps, views and rates.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from equal_steps import BATCH, OFFLINE, RATE, random_folder, trained
from measuring import Target, beginning, keep, need, parser, say, workplace
from patch_features import colour_and_gradients, learn_centres, need_scikit_image, patch_features
from threadpoolctl import threadpool_limits

from graft.backbones.activations import extracted
from graft.backbones.catalogue import Entry
from graft.backbones.graph import cut, tap_output
from graft.backbones.trunks import trunk_of
from graft.backbones.weights import WeightsFolder, embedded
from graft.compute import Compute, cpu_has_bf16, cpu_threads
from graft.images.dataset import Dataset, Preprocess
from graft.images.folds import split
from graft.images.pixels import open_pixels, pixels_key, preparing
from graft.images.scan import scan
from graft.learning import ridge
from graft.store import Store, content_key
from graft.studies.frame import criterion
from graft.studies.plan import geometry_of

FITS: dict[str, Literal["crop", "squash"]] = {  # what a study finds best for each
    "hymenoptera": "crop",
    "dogs_vs_cats": "crop",
    "caltech101": "crop",
    "magnetic_tile": "squash",
}
RIVALS = (
    "mobilenetv1_025.coral_in1k",
    "mobilenetv1_050.coral_in1k",
    "squeezenet1_1.onnx_in1k",
    "mobilenetv2_100.coral_qat_in1k",
)
GRADIENTS, PATCHES = "colour histogram + HOG", "k-means patches"
GRADIENTS_SIDE, PATCHES_SIDE, CENTRES, STRIDE = 128, 32, 1_200, 1
SERIES = ", series"
MEANS = ("mean", "mean" + SERIES)
AHEAD = 0.05  # of features without learning


@dataclass(frozen=True, slots=True, eq=False)
class ImageSet:
    """A set without its locked test; `folds`: for each column of the table a fold per image."""

    name: str
    dataset: Dataset
    folds: dict[str, np.ndarray]

    def plain(self, size: int) -> Preprocess:
        """The geometry for features without a network: everything in view or the largest square, in colour."""
        return Preprocess(size, FITS[self.name], 1.0)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A row of the table; one without a network (`entry`) is `GRADIENTS` or `PATCHES`."""

    label: str
    entry: Entry | None = None
    folder: WeightsFolder | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Features:
    """Features `[n, d]` of a set by name of the tap; `seconds` to make them from decoded pixels; bytes in float32."""

    key: str
    taps: dict[str, np.ndarray]
    seconds: float
    bytes: int


def main() -> None:
    options = parser(__doc__)
    options.add_argument(
        "--embedded", type=Path, help="a weights folder (default: the networks inside Graft)"
    )
    options.add_argument("--limit", type=int, help="images of each set, only to try the program")
    options.add_argument("--steps", type=int, default=150, help="of the training; 0: none (default: 150)")
    given = options.parse_args()
    need(given.weights / "weights.json", *(given.data / name for name in FITS))
    need_scikit_image()
    began, store = beginning(), Store()
    compute = Compute("cpu", cpu_has_bf16(), min(2, cpu_threads()))
    own = WeightsFolder.open(given.embedded) if given.embedded else embedded()
    if own is None:
        say("There is no backbone inside Graft: only what it would be compared with is measured.")
    ours = candidates(own, label="embedded ") if own else []
    rivals = [one for one in candidates(WeightsFolder.open(given.weights)) if one.label in RIVALS]
    with workplace() as place:
        folders = [random_folder(one.entry, place / one.label) for one in ours if one.entry]
        random = {one.label: candidates(made)[0] for one, made in zip(ours, folders, strict=True)}
        rows = [*ours, *random.values(), Candidate(GRADIENTS), Candidate(PATCHES), *rivals]
        sets = [image_set(given.data / name, given.limit, store, compute) for name in FITS]
        decode(sets, rows, store, compute)
        columns = [column for one in sets for column in one.folds]
        say("best tap / last tap" + " " * 14 + "".join(f"{name:>23}" for name in (*columns, *MEANS)))
        table = {row.label: measured(row, sets, store, compute) for row in rows}
        training = [
            equal_steps(one, random[one.label], sets, given.steps, store, compute)
            for one in ours
            if given.steps
        ]
    targets = [target for one in ours for target in frozen_targets(one, random[one.label], table)]
    gains = {f"{row['name']}: trained from it minus from scratch": row["mean_gain"] for row in training}
    targets += [Target(name, gain, "at least", 0.0) for name, gain in gains.items()]
    name = "embedded_backbone" if given.limit is None else f"embedded_backbone_{given.limit}_images"
    results = {"sets": [about(one) for one in sets], "rows": list(table.values()), "training": training}
    keep(name, results, targets, began=began)


def candidates(folder: WeightsFolder, *, label: str = "") -> list[Candidate]:
    """A row for each network of a weights folder."""
    return [Candidate(label + entry.name, entry, folder) for entry in folder.entries]


def image_set(source: Path, limit: int | None, store: Store, compute: Compute) -> ImageSet:
    """The development images of a set, and a fold for each of them, once or twice."""
    whole = scan(source, store=store, threads=compute.threads)
    rows = np.flatnonzero(split(whole, count=5, seed=0).assignment >= 0)
    dataset = part(whole, rows if limit is None else some_of_each(whole.targets, rows, limit))
    folds = {source.name: split(dataset, count=5, seed=0).assignment}
    if dataset.series is not None:
        apart = replace(dataset, groups=dataset.series)
        folds[source.name + SERIES] = split(apart, count=5, seed=0).assignment
    return ImageSet(source.name, dataset, folds)


def part(whole: Dataset, rows: np.ndarray) -> Dataset:
    """Some images of a dataset, as if they were all there is."""
    return replace(
        whole,
        images=tuple(whole.images[row] for row in rows),
        targets=whole.targets[rows],
        groups=whole.groups[rows],
        splits=tuple(whole.splits[row] for row in rows),
        widths=whole.widths[rows],
        heights=whole.heights[rows],
        grey=whole.grey[rows],
        series=None if whole.series is None else whole.series[rows],
    )


def some_of_each(targets: np.ndarray, rows: np.ndarray, limit: int) -> np.ndarray:
    """About `limit` of `rows`, equally many of every class and at least two."""
    each = max(2, limit // len(np.unique(targets)))
    return np.sort(np.concatenate([rows[targets[rows] == c][:each] for c in np.unique(targets)]))


def decode(sets: Sequence[ImageSet], rows: Sequence[Candidate], store: Store, compute: Compute) -> None:
    """All the pixels that any row needs, each image read once."""
    for one in sets:
        wanted = [one.plain(GRADIENTS_SIDE), one.plain(PATCHES_SIDE)]
        for row in rows:
            if row.entry is not None:
                wanted += [
                    geometry_of(row.entry, one.dataset, FITS[one.name]),
                    one.plain(row.entry.input.size),
                ]
        for _ in preparing(one.dataset, wanted, store=store, threads=compute.threads):
            pass


def measured(row: Candidate, sets: Sequence[ImageSet], store: Store, compute: Compute) -> dict[str, Any]:
    """One row: a score per column at the best and at the last tap, their means, speed and size."""
    best: dict[str, float] = {}
    last: dict[str, float] = {}
    taps: dict[str, str] = {}
    images, seconds, size = 0, 0.0, 0
    for one in sets:
        found = network(row, one, store, compute) if row.entry else handmade(row.label, one, store, compute)
        images, seconds, size = images + len(one.dataset), seconds + found.seconds, max(size, found.bytes)
        for column, folds in one.folds.items():
            scores = {tap: macro_f1(found, tap, one, folds, store, compute) for tap in found.taps}
            taps[column] = max(scores, key=lambda tap: scores[tap])
            best[column], last[column] = scores[taps[column]], list(scores.values())[-1]
    best, last = best | means(best, sets), last | means(last, sets)
    made: dict[str, Any] = {
        "name": row.label,
        "best_tap": best,
        "last_tap": last,
        "taps": taps,
        "images_per_second": round(images / seconds, 1),
        "bytes": size,
    }
    shown = [f"{best[name]:.3f} / {last[name]:.3f}" for name in best]
    speed = f"{made['images_per_second']:>7.0f}/s {size / 1e6:6.2f} MB"
    say(f"{row.label[:32]:<33}" + "".join(f"{text:>23}" for text in shown) + speed)
    return made


def means(scores: dict[str, float], sets: Sequence[ImageSet]) -> dict[str, float]:
    """Over the sets, each by its first column; and each by its last, whole series where there are any."""
    columns = [list(one.folds) for one in sets]
    return {
        MEANS[0]: float(np.mean([scores[names[0]] for names in columns])),
        MEANS[1]: float(np.mean([scores[names[-1]] for names in columns])),
    }


def network(row: Candidate, one: ImageSet, store: Store, compute: Compute) -> Features:
    """Every tap of a network; `bytes` are those of the ONNX model that ends at the last one."""
    import onnx

    assert row.entry is not None
    geometry = geometry_of(row.entry, one.dataset, FITS[one.name])
    pixels = open_pixels(one.dataset, geometry, store=store)
    samples = np.array(pixels[np.linspace(0, len(pixels) - 1, min(8, len(pixels))).astype(int)])
    trunk = trunk_of(
        row.entry, geometry, folder=row.folder, reach=OFFLINE, store=store, samples=samples, compute=compute
    )
    if trunk.notice:
        say(f"({trunk.notice})")
    key = pixels_key(one.dataset, geometry)
    out = extracted(trunk, pixels, key, store=store, compute=compute, folder=row.folder, reach=OFFLINE)
    size = 0
    if trunk.graph is not None:
        size = len(cut(onnx.load(str(trunk.graph)), tap_output(trunk.taps[-1].index)).SerializeToString())
    taps = {tap.name: out.tap(tap.index).astype(np.float32) for tap in trunk.taps}
    return Features(out.stored.folder.name, taps, out.seconds, size)


def handmade(kind: str, one: ImageSet, store: Store, compute: Compute) -> Features:
    """Features without a network; the patches' centres come from all images of the set, without labels."""
    geometry = one.plain(GRADIENTS_SIDE if kind == GRADIENTS else PATCHES_SIDE)
    key = content_key("benchmark.handmade.v1", kind, CENTRES, STRIDE, pixels_key(one.dataset, geometry))
    stored = store.get(key)
    if stored is None:
        pixels, size = np.array(open_pixels(one.dataset, geometry, store=store)), 0
        if kind == GRADIENTS:
            started = time.monotonic()
            rows = colour_and_gradients(pixels, threads=compute.threads)
        else:
            learned = learn_centres(pixels, count=CENTRES, stride=STRIDE, seed=0)
            size, started = learned.bytes, time.monotonic()
            rows = patch_features(pixels, learned, threads=compute.threads)
        stored = store.put(key, {"seconds": time.monotonic() - started, "bytes": size}, rows=rows)
    return Features(
        key, {kind: np.array(stored.array("rows"))}, stored.facts["seconds"], stored.facts["bytes"]
    )


def macro_f1(
    features: Features, tap: str, one: ImageSet, folds: np.ndarray, store: Store, compute: Compute
) -> float:
    """Out of fold, with the head of a study; kept in the cache."""
    targets, score = one.dataset.targets, criterion("macro_f1")
    key = content_key("benchmark.ridge.v1", features.key, tap, targets.tolist(), folds.tolist())
    stored = store.get(key)
    if stored is None:
        rows, classes = features.taps[tap], len(one.dataset.classes)

        def answers(fold: int) -> np.ndarray:
            learn = folds != fold
            head = ridge.fit(rows[learn], targets[learn], classes=classes, criterion=score)
            return head.probabilities(rows[~learn])

        held_out = np.zeros((len(rows), classes), np.float32)
        with threadpool_limits(1), ThreadPoolExecutor(compute.threads) as pool:
            for fold, found in enumerate(pool.map(answers, range(int(folds.max()) + 1))):
                held_out[folds == fold] = found
        stored = store.put(key, {"macro_f1": float(score(held_out, targets))})
    return float(stored.facts["macro_f1"])


def frozen_targets(one: Candidate, random: Candidate, table: dict[str, Any]) -> list[Target]:
    """Best taps compared, on both means: at least 5 points above no learning, no worse than ImageNet's smallest."""
    wanted = {random.label: AHEAD, GRADIENTS: AHEAD, PATCHES: AHEAD, RIVALS[0]: 0.0, RIVALS[1]: 0.0}

    def score(label: str, mean: str) -> float:
        return table[label]["best_tap"][mean] if label in table else math.nan

    return [
        Target(
            f"{one.label} minus {other}, {mean}" + " (goal)" * (other == RIVALS[1]),
            score(one.label, mean) - score(other, mean),
            "at least",
            limit,
        )
        for mean in MEANS
        for other, limit in wanted.items()
    ]


def about(one: ImageSet) -> dict[str, Any]:
    """What was measured on."""
    return {
        "set": one.name,
        "images": len(one.dataset),
        "fit": FITS[one.name],
        "columns": list(one.folds),
    }


def equal_steps(
    ours: Candidate, random: Candidate, sets: Sequence[ImageSet], steps: int, store: Store, compute: Compute
) -> dict[str, Any]:
    """Macro-F1 on one held-out fold of each set, trained from the weights and from random ones."""
    rows = []
    for one in sets:
        scores = {}
        for name, candidate in (("from_it", ours), ("from_scratch", random)):
            assert candidate.entry is not None and candidate.folder is not None
            pixels = open_pixels(one.dataset, one.plain(candidate.entry.input.size), store=store)
            targets, folds = one.dataset.targets, list(one.folds.values())[-1]
            scores[name] = trained(
                candidate.entry,
                candidate.folder,
                np.array(pixels),
                targets,
                folds,
                steps=steps,
                compute=compute,
            )
        rows.append({"set": one.name, **scores, "gain": scores["from_it"] - scores["from_scratch"]})
        say(
            f"{ours.label}, {steps} steps on {one.name}: {scores['from_it']:.3f}, from scratch {scores['from_scratch']:.3f}"
        )
    gain = float(np.mean([row["gain"] for row in rows]))
    return {"name": ours.label, "steps": steps, "batch": BATCH, "rate": RATE, "sets": rows, "mean_gain": gain}


if __name__ == "__main__":
    main()
