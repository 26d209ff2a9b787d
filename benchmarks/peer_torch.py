"""Two peers of `versus_peers.py`: the plain PyTorch transfer-learning loop, and logistic regression on torch features.

    python peer_torch.py IMAGES WEIGHTS OUT.json --kind finetune|frozen|logistic [--epochs 25] [--seed 0]

`finetune` and `frozen` do what the PyTorch tutorial does: random resized crops and flips, batches of 4, SGD at 0.001
with momentum 0.9, divided by ten every 7 epochs, the weights of the epoch with the best validation accuracy kept.
That last habit looks at the very images it is judged on, which flatters it; it is left as it is. `logistic`: features
of the centre crop, standardised, scikit-learn's LogisticRegression with its defaults but 1,000 iterations.
Runs in the peers' environment; imports neither Graft nor anything of the other benchmarks.
"""

from __future__ import annotations

import argparse
import copy
import importlib.metadata
import json
import time
from pathlib import Path

import numpy as np
import torch
from peers_network import HALF, network, size_of
from torch import nn
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

VERSIONS = ("torch", "torchvision", "timm", "scikit-learn")
LARGER = 256 / 224  # times the size: the short side that the centre is cropped from


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("images", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--kind", choices=("finetune", "frozen", "logistic"), required=True)
    parser.add_argument("--epochs", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    size = size_of(options.weights)
    normal = [transforms.ToTensor(), transforms.Normalize(HALF, HALF)]
    plain = transforms.Compose(
        [transforms.Resize(round(LARGER * size)), transforms.CenterCrop(size), *normal]
    )
    moved = transforms.Compose(
        [transforms.RandomResizedCrop(size), transforms.RandomHorizontalFlip(), *normal]
    )
    validation = datasets.ImageFolder(options.images / "val", plain)
    if options.kind == "logistic":
        rows, seconds = logistic(options, datasets.ImageFolder(options.images / "train", plain), validation)
    else:
        rows, seconds = tutorial(options, datasets.ImageFolder(options.images / "train", moved), validation)
    answers = [
        {
            "file": Path(file).relative_to(options.images).as_posix(),
            "label": validation.classes[target],
            "probabilities": row.tolist(),
        }
        for (file, target), row in zip(validation.samples, rows, strict=True)
    ]
    versions = {name: importlib.metadata.version(name) for name in VERSIONS}
    facts = {"classes": validation.classes, "versions": versions, "answers": answers}
    options.out.write_text(json.dumps({**facts, "epoch_seconds": seconds}))


def tutorial(
    options: argparse.Namespace, training: datasets.ImageFolder, validation: datasets.ImageFolder
) -> tuple[np.ndarray, list[float]]:
    """Probabilities of the validation images, and the seconds of every epoch of training."""
    model = network(options.weights)
    for weight in model.parameters():
        weight.requires_grad = options.kind == "finetune"
    model.classifier = nn.Linear(model.classifier.in_features, len(training.classes))
    learned = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.SGD(learned, lr=0.001, momentum=0.9)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=7, gamma=0.1)
    loaders = [
        DataLoader(training, batch_size=4, shuffle=True, num_workers=2),
        DataLoader(validation, batch_size=4),
    ]
    best, kept, seconds = -1.0, copy.deepcopy(model.state_dict()), []
    for _ in range(options.epochs):
        begun = time.monotonic()
        model.train()
        for images, labels in loaders[0]:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
        schedule.step()
        seconds.append(time.monotonic() - begun)
        right = (answers(model, loaders[1]).argmax(1) == np.array(validation.targets)).mean()
        if right > best:
            best, kept = right, copy.deepcopy(model.state_dict())
    model.load_state_dict(kept)
    return answers(model, loaders[1]), seconds


@torch.no_grad()
def answers(model: nn.Module, loader: DataLoader) -> np.ndarray:
    """Probabilities in the order of the loader."""
    model.eval()
    return torch.cat([model(images).softmax(1) for images, _ in loader]).numpy()


def logistic(
    options: argparse.Namespace, training: datasets.ImageFolder, validation: datasets.ImageFolder
) -> tuple[np.ndarray, list[float]]:
    """Probabilities of the validation images, and no epochs."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = network(options.weights).eval()
    model.classifier = nn.Identity()
    tables = []
    for part in (training, validation):
        with torch.inference_mode():
            tables.append(torch.cat([model(images) for images, _ in DataLoader(part, batch_size=32)]).numpy())
    head = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    head.fit(tables[0], training.targets)
    return head.predict_proba(tables[1]), []


if __name__ == "__main__":
    main()
