"""Small image sets and a weights folder made on the spot, for studies in tests."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
from PIL import Image

NASTY_CLASSES = ('a "b"', "naïve", "x=1", "train")


def picture(random: np.random.Generator, kind: int, *, size: int = 48, grey: bool = False) -> Image.Image:
    """Stripes whose direction and width tell the kind, in noise; colour tells nothing."""
    y, x = np.mgrid[:size, :size] / size
    angle = kind * np.pi / 5 + random.normal(0, 0.05)
    wave = np.sin(2 * np.pi * (6 + kind) * (x * np.cos(angle) + y * np.sin(angle)) + random.uniform(0, 6))
    base = 128 + 50 * wave[..., None] + random.normal(0, 25, (size, size, 1 if grey else 3))
    tint = 0 if grey else random.normal(0, 20, 3)
    pixels = np.clip(base + tint, 0, 255).astype(np.uint8)
    return Image.fromarray(pixels[..., 0] if grey else pixels)


def stripes(
    folder: Path,
    *,
    classes: tuple[str, ...] = ("left", "right"),
    each: int = 24,
    grey: bool = False,
    seed: int = 0,
) -> Path:
    """A folder with `each` PNG pictures per class."""
    for kind, name in enumerate(classes):
        place = folder / name
        place.mkdir(parents=True, exist_ok=True)
        for index in range(each):
            random = np.random.default_rng([seed, kind, index])
            picture(random, kind, grey=grey).save(place / f"{index:03}.png")
    return folder


def weights_folder(folder: Path, names: tuple[str, ...] = ("test_resnet",)) -> Path:
    """Tiny networks of timm with seeded random weights, as a weights folder of format 1 would hold real ones."""
    import timm
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for name in names:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            network = timm.create_model(name, pretrained=False)
        file = folder / f"{name}.safetensors"
        save_file({key: part.contiguous() for key, part in network.state_dict().items()}, file)
        row = {
            "name": f"{name}.made",
            "file": file.name,
            "library": "timm",
            "architecture": name,
            "arguments": {},
            "classes": 1000,
            "input": {
                "size": 64,
                "channels": 3,
                "mean": [0.485, 0.456, 0.406],
                "std": [0.229, 0.224, 0.225],
                "interpolation": "bicubic",
                "crop": 0.95,
            },
            "trained_on": "nothing",
            "published_top1": None,
            "licence": "Apache-2.0",
            "source": "made for a test",
            "dtype": "float32",
            "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        }
        rows.append(row)
    (folder / "weights.json").write_text(json.dumps({"format": 1, "weights": rows}))
    return folder
