"""Is the choice of a study as accurate as what the peers train with the same network, in no more time than fastai's?

    python benchmarks/versus_peers.py [--data DIR] [--weights DIR] [--sets NAME,NAME] [--epochs 25] [--peers NAME,NAME]
                                      [--backbone mobilenetv1_050.coral_in1k|mobilenetv2_100.coral_in1k]

Per image set, one split (near-duplicates on one side, stratified; a fifth is held out) and one network, MobileNetV1 at
half width and 160 px or, kept apart, MobileNetV2 at 224 px: fastai's `fine_tune(5)`, the plain PyTorch
transfer-learning loop (frozen and not) and scikit-learn's logistic regression on torch features, each as its documentation
shows it (`peer_fastai.py`, `peer_torch.py`). Then `graft study` on the training part, with the budget that makes its whole process end within fastai's; the held-out part is its
locked test. Told are macro-F1 and accuracy with 95 % bootstrap intervals, paired differences, seconds of the whole
process, and seconds per epoch. Peers run in an environment of their own (`first_answer.py` makes it).

The PyTorch loop keeps the epoch that is best on the held-out images themselves, as its tutorial does; Graft and the
others never see them before the end. `made_sets.py` makes further sets, unlike photographs: --sets drawings,embossed,
false_colours. Costs an hour on two cores, two thirds of it for the PyTorch loop, and two hours with MobileNetV2; with
--sets or --peers, a part of it. Of a peer that is left out what an earlier run measured stays, under `earlier`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs
from first_answer import own_answers, peer_python
from made_sets import MADE, SOURCE, make
from measuring import Run, Target, beginning, graft, keep, need, parser, run, say, warm_page_cache, workplace

from graft.images.folds import split
from graft.images.scan import inspecting
from graft.judging.metrics import scores
from graft.judging.uncertainty import draw_weights, estimate, paired
from graft.store import Store

LAST_STAGE = {
    "mobilenetv1_050.coral_in1k": "blocks.3",
    "mobilenetv2_100.coral_in1k": "blocks.4",
}  # what learns lies above
SETS = ("hymenoptera", "magnetic_tile", "dogs_vs_cats", "caltech101")
HERE = Path(__file__).resolve().parent
PREDICTED = ("hymenoptera", "magnetic_tile")
WITHIN = 0.9  # of fastai's seconds is Graft's budget: the process begins before it and ends after it
DRAWS = 2_000
PEERS = ("fastai", "logistic", "frozen", "finetune")
KEPT = 0.85  # of a fold is learned from, the rest is looked at after every epoch


def main() -> None:
    options = parser(__doc__)
    cache = Path(platformdirs.user_cache_dir("graft-benchmarks", appauthor=False))
    options.add_argument("--peer-env", type=Path, default=cache / "fastai", help="the peers' (%(default)s)")
    options.add_argument(
        "--sets",
        default=",".join(SETS),
        help=f"of the folder, or of {', '.join(MADE)} (default: %(default)s)",
    )
    options.add_argument("--epochs", type=int, default=25, help="of the PyTorch loop (default: 25)")
    options.add_argument("--peers", default=",".join(PEERS), help="fastai always (default: %(default)s)")
    options.add_argument(
        "--backbone", choices=LAST_STAGE, default=next(iter(LAST_STAGE)), help="(default: %(default)s)"
    )
    given = options.parse_args()
    sets = given.sets.split(",")
    weights = given.weights / f"{given.backbone}.safetensors"
    need(weights, *(given.data / (SOURCE if name in MADE else name) for name in sets))
    peer = peer_python(given.peer_env)
    first = given.backbone == next(iter(LAST_STAGE))
    kept_as = "versus_peers" if first else f"versus_peers_{given.backbone.partition('.')[0]}"
    began = beginning()
    with workplace() as place:
        for name in sets:
            source = make(name, given.data, place / "made") if name in MADE else given.data / name
            warm_page_cache(source)
            divided(source, place / name)
            fresh = {**one_set(given, place / name, weights, peer), "tutorial_epochs": given.epochs}
            fresh["earlier"] = left_out(name, fresh, earlier(kept_as))
            rows = [
                *(row for row in earlier(kept_as) if row["set"] != name),
                {**fresh, "began": began["date"]},
            ]
            facts = {"backbone": given.backbone, "sets": rows}
            keep(kept_as, facts, [t for row in rows for t in targets(row)], began=began)


def earlier(kept_as: str) -> list[dict[str, Any]]:
    """The sets of earlier runs, which may have been measured one by one."""
    kept = HERE / "results" / f"{kept_as}.json"
    return json.loads(kept.read_text())["results"]["sets"] if kept.exists() else []


def left_out(name: str, fresh: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What an earlier run measured of the peers that this one leaves out."""
    before = next((row for row in rows if row["set"] == name), None)
    if before is None:
        return {}
    found = dict(before.get("earlier", {}))
    for peer in PEERS:
        if peer in before["scores"]:
            facts = {"scores": before["scores"][peer], "seconds": before["seconds"][peer]}
            found[peer] = {**facts, "began": before["began"]}
    return {peer: facts for peer, facts in found.items() if peer not in fresh["scores"]}


def divided(source: Path, place: Path) -> None:
    """The same files twice, divided alike: `test` is what Graft calls the part that the peers call `val`."""
    looking = inspecting(source, store=Store(place / "store"), threads=2)
    while True:
        try:
            next(looking)
        except StopIteration as finished:
            dataset = finished.value
            break
    held = split(dataset, count=5, seed=0).assignment
    first = held == (0 if (held >= 0).all() else -1)
    for number, image in enumerate(dataset.images):
        label = dataset.classes[dataset.targets[number]]
        for whose, other in (("for-graft", "test"), ("for-peers", "val")):
            folder = place / whose / (other if first[number] else "train") / label
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(image.path, folder / image.name.replace("/", "_"))


def one_set(given: Any, place: Path, weights: Path, peer: Path) -> dict[str, Any]:
    """All programs on one set, one after the other."""
    say(f"\n{place.name}")
    images = place / "for-peers"
    said: dict[str, dict[str, Any]] = {}
    taken: dict[str, Run] = {}
    fastai = HERE / "peer_fastai.py"
    torch = HERE / "peer_torch.py"
    trained: dict[str, Any] = {}
    asked = ["fastai", *(name for name in given.peers.split(",") if name != "fastai")]
    out = {name: place / f"{name}.json" for name in asked}
    taken["fastai"] = run([peer, fastai, images, weights, out["fastai"]])
    for kind in asked[1:]:
        epochs = ["--epochs", str(given.epochs)]
        taken[kind] = run([peer, torch, images, weights, out[kind], "--kind", kind, *epochs])
    for name, file in out.items():
        said[name] = json.loads(file.read_text())
    budget = WITHIN * taken["fastai"].seconds - 2
    options = ["--backbones", given.backbone, "--weights", given.weights, "--budget", f"{budget:.0f}s"]
    runs = {"graft": place / "run", "graft_frozen": place / "run-frozen"}
    taken["graft"] = run(
        graft("study", place / "for-graft", *options, "--out", runs["graft"]), cache=place / "cache"
    )
    taken["graft_frozen"] = run(
        graft(
            "study",
            place / "for-graft",
            "--only",
            "frozen",
            "--weights",
            given.weights,
            "--out",
            runs["graft_frozen"],
        ),
        cache=place / "cache-frozen",
    )
    for name, freeze in (("full", "none"), ("last_stage", LAST_STAGE[given.backbone])):
        out_of = place / f"run-{name}"
        recipe = ["--backbone", given.backbone, "--freeze", freeze, "--epochs", "3", "--folds", "2"]
        run(
            graft("train", place / "for-graft", *recipe, "--weights", given.weights, "--out", out_of),
            cache=place / "cache",
        )
        trained[name] = json.loads((out_of / "study.json").read_text(encoding="utf-8"))
    said["graft"] = own_answers(runs["graft"])
    facts = json.loads((runs["graft"] / "study.json").read_text(encoding="utf-8"))
    frozen = json.loads((runs["graft_frozen"] / "study.json").read_text(encoding="utf-8"))
    row = {
        "set": place.name,
        "budget_seconds": round(budget, 1),
        "choice": facts["choice"]["id"],
        "frozen_candidates": len(frozen["candidates"]),
        "frozen_backbones": len({one["backbone"] for one in frozen["candidates"]}),
        "seconds": {name: round(one.seconds, 1) for name, one in taken.items()},
        "epochs": epochs_of(trained, said, images),
        "plan": facts["plan"],
        **judged(said),
    }
    tell(row)
    return row


def judged(said: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Macro-F1 and accuracy on the held-out images, and how far Graft is ahead of each peer on the same draws."""
    classes = said["graft"]["classes"]
    files = sorted(_key(row) for row in said["graft"]["answers"])
    tables = {name: table(one, classes, files) for name, one in said.items()}
    labels = {_key(row): classes.index(row["label"]) for row in said["graft"]["answers"]}
    wanted = np.array([labels[file] for file in files], np.int64)
    every = np.arange(len(wanted))
    draws = draw_weights(wanted, every, draws=DRAWS, seed=0)
    results: dict[str, Any] = {"held_out": len(wanted), "scores": {}, "ahead": {}}
    for name, rows in tables.items():
        own = estimate("macro_f1", rows, wanted, every, draws)
        results["scores"][name] = {**scores(rows, wanted), "interval": [own.low, own.high]}
        if name != "graft":
            ahead = {
                metric: paired(metric, tables["graft"], rows, wanted, draws)
                for metric in ("macro_f1", "accuracy")
            }
            results["ahead"][name] = {
                metric: {"estimate": one.estimate, "interval": [one.low, one.high]}
                for metric, one in ahead.items()
            }
    return results


def _key(row: Mapping[str, Any]) -> str:
    return str(row["file"]).replace("test/", "val/", 1)


def table(said: Mapping[str, Any], classes: list[str], files: list[str]) -> np.ndarray:
    """Probabilities with a row per file and a column per class, in one order for all."""
    columns = [said["classes"].index(name) for name in classes]
    rows = {_key(row): [row["probabilities"][column] for column in columns] for row in said["answers"]}
    return np.array([rows[file] for file in files], np.float32)


def epochs_of(trained: Mapping[str, Any], said: Mapping[str, Any], images: Path) -> dict[str, float]:
    """Training images per second of every kind of epoch; Graft's include its look at the part that is kept back."""
    count = sum(1 for file in (images / "train").rglob("*") if file.is_file())
    fastai = said["fastai"]["epoch_seconds"]
    found: dict[str, float] = {
        "fastai_frozen": count / fastai[0],
        "fastai_full": count / float(np.median(fastai[1:])),
    }
    for kind, name in (("frozen", "torch_frozen"), ("finetune", "torch_full")):
        if kind in said:
            found[name] = count / float(np.median(said[kind]["epoch_seconds"]))
    for name, facts in trained.items():
        curves = facts["candidates"][0]["curves"]
        seconds = [epoch["seconds"] for curve in curves for epoch in curve["epochs"]]
        found[f"graft_{name}"] = KEPT * count / 2 / float(np.median(seconds))
    return found


def tell(row: Mapping[str, Any]) -> None:
    """One set for people."""
    for name, one in row["scores"].items():
        low, high = one["interval"]
        say(
            f"  {name:9} macro-F1 {one['macro_f1']:.4f} ({low:.4f} to {high:.4f}), accuracy {one['accuracy']:.4f}, "
            f"{row['seconds'][name]:.0f} s"
        )
    say(
        f"  choice: {row['choice']}; {row['frozen_candidates']} frozen candidates took {row['seconds']['graft_frozen']} s"
    )
    say("  images/s: " + ", ".join(f"{name} {value:.0f}" for name, value in row["epochs"].items()))


def targets(row: Mapping[str, Any]) -> list[Target]:
    """As accurate as every peer, and sooner."""
    name = row["set"]
    found = [
        Target(f"{name}: accuracy minus that of {peer}", ahead["accuracy"]["estimate"], "at least", 0.0)
        for peer, ahead in row["ahead"].items()
    ]
    found += [
        Target(f"{name}: seconds of Graft", row["seconds"]["graft"], "at most", row["seconds"]["fastai"]),
        Target(
            f"{name}: seconds of {row['frozen_candidates']} frozen candidates",
            row["seconds"]["graft_frozen"],
            "at most",
            row["seconds"]["fastai"],
        ),
        *predicted(row),
    ]
    rates = row["epochs"]
    if "graft_last_stage" not in rates:  # measured before this was
        return found
    return [
        *found,
        Target(
            f"{name}: last stage, times faster per epoch than fastai's frozen epoch",
            rates["graft_last_stage"] / rates["fastai_frozen"],
            "at least",
            5.0,
        ),
        Target(
            f"{name}: full fine-tuning, times faster per epoch than fastai's",
            rates["graft_full"] / rates["fastai_full"],
            "at least",
            1.8,
        ),
    ]


def predicted(row: Mapping[str, Any]) -> list[Target]:
    """How long fine-tuning took against what was predicted, on the two sets where that is promised."""
    ran = [one for one in row["plan"] if one.get("real_seconds") and one.get("predicted_seconds")]
    if row["set"] not in PREDICTED or not ran:
        return []
    ratio = sum(one["real_seconds"] for one in ran) / sum(one["predicted_seconds"] for one in ran)
    told = f"{row['set']}: fine-tuning, real seconds over predicted ones"
    return [Target(told, ratio, "at least", 0.7), Target(told, ratio, "at most", 1.3)]


if __name__ == "__main__":
    main()
