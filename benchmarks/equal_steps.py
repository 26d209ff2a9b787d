"""The same network trained from its weights and from random ones, everything else being equal.

In: a network with a weights folder, pixels, classes and a fold per image. Out: macro-F1 on the first fold after training
on the others. All layers learn, by AdamW (Loshchilov and Hutter 2019) with a tenth of the steps warming up and then a
cosine, on the views of a study, in bfloat16 where the processor has it. Not covered: the best rate for either, early
stopping, averaged weights: `graft study` does more for both.

Cost: 0.1 s for a step of 32 images of 128 px with a small mobile network, on one core.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt8

from graft.backbones.catalogue import Entry
from graft.backbones.hub import Reach
from graft.backbones.weights import WeightsFolder, build, load_state
from graft.compute import Compute
from graft.studies.frame import criterion

BATCH, RATE, DECAY, SMOOTHING = 32, 1e-3, 0.02, 0.1
OFFLINE = Reach(False, False, "This benchmark downloads nothing.")


def random_folder(entry: Entry, place: Path) -> WeightsFolder:
    """A new weights folder at `place` that holds the network of `entry` with random weights (seed 0)."""
    import torch
    from safetensors.torch import save

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        content = save(build(entry).state_dict())
    place.mkdir()
    (place / "random.safetensors").write_bytes(content)
    arguments: dict[str, Any] = dict(entry.arguments)
    row = {
        "name": f"random {entry.name}",
        "file": "random.safetensors",
        "library": entry.library,
        "architecture": entry.architecture,
        "classes": arguments.pop("num_classes", 1000),
        "arguments": arguments,
        "input": asdict(entry.input),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    (place / "weights.json").write_text(json.dumps({"format": 1, "weights": [row]}), encoding="utf-8")
    return WeightsFolder.open(place)


def trained(
    entry: Entry,
    folder: WeightsFolder,
    pixels: UInt8[np.ndarray, "n h w 3"],
    targets: Int64[np.ndarray, " n"],
    folds: Int64[np.ndarray, " n"],
    *,
    steps: int,
    compute: Compute,
) -> float:
    """Macro-F1 on fold 0 after `steps` steps on the other folds. The draws depend on nothing but their number."""
    import torch

    from graft.images.views import suited, views

    learn, held = np.flatnonzero(folds != 0), np.flatnonzero(folds == 0)
    torch.set_num_threads(1)  # on two busy cores, two threads that wait for each other took 30 times as long
    model = network(entry, folder, classes=int(targets.max()) + 1)
    optimizer = torch.optim.AdamW(model.parameters(), RATE, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps, pct_start=0.1)
    loss = torch.nn.CrossEntropyLoss(label_smoothing=SMOOTHING)
    augmentation, generator = suited(pixels, targets, learn), torch.Generator().manual_seed(0)

    def read(rows: Int64[np.ndarray, " b"]) -> torch.Tensor:
        return torch.from_numpy(pixels[rows]).permute(0, 3, 1, 2)

    def logits(images: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=compute.bf16):
            return model(images.contiguous(memory_format=torch.channels_last)).float()

    model.train()
    for rows in batches(learn, steps):
        optimizer.zero_grad()
        seen = views(read(rows), augmentation, generator=generator)
        loss(logits(seen), torch.from_numpy(targets[rows])).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    model.eval()
    with torch.inference_mode():
        parts = [logits(read(held[k : k + 64]).float() / 255).softmax(1) for k in range(0, len(held), 64)]
    return float(criterion("macro_f1")(torch.cat(parts).numpy(), targets[held]))


def batches(rows: Int64[np.ndarray, " m"], steps: int) -> Iterator[Int64[np.ndarray, " b"]]:
    """`steps` batches from the rows, shuffled anew whenever all were seen."""
    random = np.random.default_rng(0)
    order = rows[:0]
    for _ in range(steps):
        while len(order) < BATCH:
            order = np.concatenate([order, random.permutation(rows)])
        yield order[:BATCH]
        order = order[BATCH:]


def network(entry: Entry, folder: WeightsFolder, *, classes: int) -> Any:
    """The network with its weights, the normalisation before it and a new classifier behind it."""
    import torch
    from torchvision.transforms.v2 import Normalize

    model: Any = build(entry)
    model.load_state_dict(load_state(entry, folder=folder, reach=OFFLINE).state)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model.reset_classifier(classes)
    whole = torch.nn.Sequential(Normalize(list(entry.input.mean), list(entry.input.std)), model)
    return whole.to(memory_format=torch.channels_last)
