"""How long from a file to an answer, for one image after the other?

    python benchmarks/single_image.py [--data DIR] [--weights DIR] [--bundle model.graft] [--images 40]

The packed model (decode, prepare, ONNX Runtime) on 1 and 2 threads, against torch in eager mode with the same network
and the same preparation, and fastai's `Learner.predict` of a network of the same architecture, if its environment is in
~/.cache/graft-benchmarks/fastai. Without --bundle, a bundle of mobilenetv2_100 is made from hymenoptera first. Median
milliseconds over the images after a warm-up; the target is that torch eager takes at least 5 times as long.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from measuring import Target, beginning, graft, keep, need, parser, run, say, workplace

FASTAI = Path.home() / ".cache" / "graft-benchmarks" / "fastai" / "bin" / "python"
BACKBONE = "mobilenetv2_100.coral_in1k"
FASTAI_PROGRAM = """
import json, statistics, sys, time
import torch
from fastai.vision.all import ImageDataLoaders, Resize, vision_learner
folder, files, threads = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3])
torch.set_num_threads(threads)
loaders = ImageDataLoaders.from_folder(folder, valid_pct=0.2, seed=0, item_tfms=Resize(224), bs=8, num_workers=0)
learner = vision_learner(loaders, "mobilenetv2_100", pretrained=False)
times = []
with learner.no_bar(), learner.no_logging():
    for file in files[:3] + files:
        begun = time.perf_counter()
        learner.predict(file)
        times.append(1000 * (time.perf_counter() - begun))
print("MEDIAN", statistics.median(times[3:]))
"""


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--bundle", type=Path, help="a packed model (default: made here)")
    options.add_argument("--images", type=int, default=40, help="how many (default: %(default)s)")
    given = options.parse_args()
    photos = given.data / "hymenoptera"
    need(given.weights / "weights.json", photos)
    files = [str(path) for path in sorted((photos / "val").rglob("*.jpg"))[: given.images]]
    began = beginning()
    rows: list[dict[str, Any]] = []
    with workplace() as place:
        bundle = given.bundle or made(photos, given.weights, place)
        for threads in (1, 2):
            rows.append({"who": "graft", "threads": threads, "ms": packed(bundle, files, threads)})
            rows.append(
                {"who": "torch eager", "threads": threads, "ms": eager(given.weights, files, threads)}
            )
            if FASTAI.exists():
                rows.append({"who": "fastai", "threads": threads, "ms": fastai(photos, files, threads)})
            for row in rows[-3:]:
                say(f"{row['who']:12} {row['threads']} threads: {row['ms']:.2f} ms")
    ours = {row["threads"]: row["ms"] for row in rows if row["who"] == "graft"}
    targets = [
        Target(
            f"{row['who']}, {row['threads']} threads: times as long",
            row["ms"] / ours[row["threads"]],
            "at least",
            5.0,
        )
        for row in rows
        if row["who"] != "graft"
    ]
    keep("single_image", {"backbone": BACKBONE, "images": len(files), "rows": rows}, targets, began=began)


def made(photos: Path, weights: Path, place: Path) -> Path:
    """A bundle of the network, frozen."""
    wanted = ["--weights", weights, "--backbones", BACKBONE, "--only", "frozen", "--out", place / "run"]
    run(graft("study", photos, *wanted), cache=place / "cache")
    return place / "run" / "model.graft"


def packed(bundle: Path, files: list[str], threads: int) -> float:
    """The bundle's own way."""
    from graft.deploy.bundle import load

    model = load(bundle, threads=threads)
    return median_ms(model.predict, files)


def eager(weights: Path, files: list[str], threads: int) -> float:
    """torch with the same network, the same preparation and a linear head."""
    import timm
    import torch
    from safetensors.torch import load_file

    from graft.images.dataset import Preprocess
    from graft.images.preprocess import load

    torch.set_num_threads(threads)
    row = next(
        row
        for row in json.loads((weights / "weights.json").read_text())["weights"]
        if row["name"] == BACKBONE
    )
    network = timm.create_model(row["architecture"], **row["arguments"]).eval()
    state = {name: tensor.float() for name, tensor in load_file(weights / row["file"]).items()}
    network.load_state_dict(state, strict=False)
    geometry = Preprocess(224, crop_share=0.875)

    def answer(file: str) -> int:
        pixels = torch.from_numpy(load(file, geometry).copy()).permute(2, 0, 1)[None].float() / 255
        with torch.inference_mode():
            return int(network((pixels - 0.5) / 0.5).softmax(1).argmax())

    return median_ms(answer, files)


def fastai(photos: Path, files: list[str], threads: int) -> float:
    """fastai's predict, in its own environment."""
    done = subprocess.run(
        [str(FASTAI), "-c", FASTAI_PROGRAM, str(photos), json.dumps(files), str(threads)],
        capture_output=True,
        text=True,
        check=False,
    )
    line = next((line for line in done.stdout.splitlines() if line.startswith("MEDIAN")), None)
    if line is None:
        sys.exit(f"fastai failed:\n{done.stderr[-2000:]}")
    return float(line.split()[1])


def median_ms(answer: Callable[[str], object], files: list[str]) -> float:
    """The median of one call, after three that warm up."""
    for file in files[:3]:
        answer(file)
    times = []
    for file in files:
        begun = time.perf_counter()
        answer(file)
        times.append(1000 * (time.perf_counter() - begun))
    return statistics.median(times)


if __name__ == "__main__":
    main()
