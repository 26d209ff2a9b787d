"""A peer of `versus_peers.py`: fastai's `fine_tune(5)`, its defaults throughout. Runs in an environment of its own.

    python peer_fastai.py IMAGES WEIGHTS OUT.json [--epochs 5] [--seed 0]

In: a folder with `train/<class>/` and `val/<class>/`, and the weights of `peers_network.py`. Out: JSON with the classes,
for every validation image its file, its class and its probabilities, and the seconds of every epoch: the first one
trains the new head behind a frozen network, the others everything.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import time
from pathlib import Path

from fastai.vision.all import (
    Callback,
    ImageDataLoaders,
    Normalize,
    Resize,
    accuracy,
    aug_transforms,
    set_seed,
    vision_learner,
)
from peers_network import HALF, network, size_of

VERSIONS = ("fastai", "timm", "torch", "torchvision")


class Clock(Callback):
    """The seconds of training of every epoch."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def before_train(self) -> None:
        self.begun = time.monotonic()

    def after_train(self) -> None:
        self.seconds.append(time.monotonic() - self.begun)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("images", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    set_seed(options.seed)
    loaders = ImageDataLoaders.from_folder(
        options.images,
        train="train",
        valid="val",
        item_tfms=Resize(size_of(options.weights)),
        batch_tfms=[*aug_transforms(), Normalize.from_stats(HALF, HALF)],
        bs=64,
    )
    clock = Clock()
    learner = vision_learner(
        loaders,
        lambda pretrained: network(options.weights),
        metrics=accuracy,
        normalize=False,
        cut=-2,
        cbs=[clock],
    )
    learner.fine_tune(options.epochs)
    probabilities, targets = learner.get_preds(dl=loaders.valid)
    classes = list(loaders.vocab)
    answers = [
        {
            "file": Path(file).relative_to(options.images).as_posix(),
            "label": classes[target],
            "probabilities": row,
        }
        for file, target, row in zip(
            loaders.valid.items, targets.tolist(), probabilities.tolist(), strict=True
        )
    ]
    images = len(loaders.train.items) if hasattr(loaders.train, "items") else len(loaders.train_ds)
    versions = {name: importlib.metadata.version(name) for name in VERSIONS}
    facts = {"classes": classes, "versions": versions, "answers": answers, "images": images}
    options.out.write_text(json.dumps({**facts, "epoch_seconds": clock.seconds}))


if __name__ == "__main__":
    main()
