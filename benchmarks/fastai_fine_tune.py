"""The peer of `first_answer.py`: fastai's `fine_tune`, as its documentation shows it. Runs in an environment of its own.

    python fastai_fine_tune.py IMAGES WEIGHTS OUT.json --architecture mobilenetv2_100 --epochs 4 --seed 0

In: a folder with `train/<class>/` and `val/<class>/`, and a safetensors file of a timm network whose inputs have mean
and deviation 0.5. Out: JSON with the classes, and for every validation image its file, its class and its probabilities.
Squares of 224 pixels, `aug_transforms()`, batches of 64, one epoch for the new head and `--epochs` for everything:
fastai's own defaults throughout. Imports neither Graft nor anything of the other benchmarks.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
from pathlib import Path

from fastai.vision.all import ImageDataLoaders, Resize, accuracy, aug_transforms, set_seed, vision_learner

VERSIONS = ("fastai", "timm", "torch", "torchvision")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("images", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--architecture", default="mobilenetv2_100")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    set_seed(options.seed)
    loaders = ImageDataLoaders.from_folder(
        options.images,
        train="train",
        valid="val",
        item_tfms=Resize(224),
        batch_tfms=aug_transforms(),
        bs=64,
    )
    half = (0.5, 0.5, 0.5)
    learner = vision_learner(
        loaders,
        options.architecture,
        metrics=accuracy,
        pad_type="same",
        pretrained_cfg_overlay={"file": str(options.weights), "mean": half, "std": half},
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
    versions = {name: importlib.metadata.version(name) for name in VERSIONS}
    options.out.write_text(json.dumps({"classes": classes, "versions": versions, "answers": answers}))


if __name__ == "__main__":
    main()
