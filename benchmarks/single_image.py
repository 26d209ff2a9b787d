"""How long from a file to an answer, for one image after the other?

    python benchmarks/single_image.py [--data DIR] [--weights DIR] [--images 60]

A bundle of mobilenetv2_100 is made from hymenoptera, and its form in 8 bits; both answer (decode, prepare, network) by
ONNX Runtime and by OpenVINO, on 1 and 2 threads. Against them: torch in eager mode with the same network, prepared by
timm's own transform and, told apart, by Graft's; and fastai's `Learner.predict` of a network of the same architecture, if
its environment is in ~/.cache/graft-benchmarks/fastai. All take turns, image by image round by round, so that a slow
moment of the machine meets all of them. Told are median milliseconds after a warm-up, the share of decisions that are
those of the bundle, and, for one image in a new process, the seconds of `graft predict` and of a program that does the
same with torch. The target is that torch eager and fastai take at least 5 times as long as the fastest form of the bundle.
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
ROUNDS = 3
WARM_UP = 5
Answer = Callable[[str], str]
# Reads a file name per line, answers each with the milliseconds it took: it takes turns with the others, too.
FASTAI_PROGRAM = """
import sys, time
import torch
from fastai.vision.all import ImageDataLoaders, Resize, vision_learner
folder, threads = sys.argv[1], int(sys.argv[2])
torch.set_num_threads(threads)
loaders = ImageDataLoaders.from_folder(folder, valid_pct=0.2, seed=0, item_tfms=Resize(224), bs=8, num_workers=0)
learner = vision_learner(loaders, "mobilenetv2_100", pretrained=False)
with learner.no_bar(), learner.no_logging():
    for line in sys.stdin:
        begun = time.perf_counter()
        learner.predict(line.strip())
        print("MS", 1000 * (time.perf_counter() - begun), flush=True)
"""
ONE_IMAGE_PROGRAM = """
import sys
sys.path.insert(0, sys.argv[1])
import torch
from single_image import eager
torch.set_num_threads(int(sys.argv[4]))
from pathlib import Path
print(eager(Path(sys.argv[2]))(sys.argv[3]))
"""


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--images", type=int, default=60, help="how many (default: %(default)s)")
    given = options.parse_args()
    photos = given.data / "hymenoptera"
    need(given.weights / "weights.json", photos)
    files = [str(path) for path in sorted((photos / "val").rglob("*.jpg"))[: given.images]]
    began = beginning()
    rows: list[dict[str, Any]] = []
    with workplace() as place:
        bundle, small = made(photos, given.weights, place)
        for threads in (1, 2):
            answers = ours(bundle, small, threads)
            answers["torch eager"] = eager(given.weights, threads)
            answers["torch eager, Graft's preparation"] = eager(given.weights, threads, own=True)
            rows += timed(answers, files, threads, photos)
            for row in [row for row in rows if row["threads"] == threads]:
                say(
                    f"{row['who']:34} {threads} threads: {row['ms']:6.2f} ms, {row['alike']} of the decisions"
                )
        alone = processes(bundle, given.weights, files[0], place)
    say(f"one image in a new process: {alone}")
    targets = [
        Target(f"{peer}, {threads} threads: times as long", ratio(rows, peer, threads), "at least", 5.0)
        for threads in (1, 2)
        for peer in ("torch eager", "fastai")
        if any(row["who"] == peer for row in rows)
    ]
    targets.append(
        Target("torch in a new process: times as long", alone["torch"] / alone["graft"], "at least", 5.0)
    )
    facts = {"backbone": BACKBONE, "images": len(files), "rows": rows, "process_seconds": alone}
    keep("single_image", facts, targets, began=began)


def made(photos: Path, weights: Path, place: Path) -> tuple[Path, Path]:
    """A bundle of the network, frozen, read at its last tap; and the same in 8 bits."""
    wanted = ["--weights", weights, "--backbones", BACKBONE, "--only", "frozen", "--out", place / "run"]
    run(graft("study", photos, *wanted), cache=place / "cache")
    bundle, small = place / "run" / "model.graft", place / "small.graft"
    run(graft("export", bundle, "--to", "onnx-int8", "--calibrate", photos / "train", "--out", small))
    return bundle, small


def ours(bundle: Path, small: Path, threads: int) -> dict[str, Answer]:
    """The bundle in both forms by both runtimes."""
    from graft.deploy.bundle import load

    forms = {"graft": bundle, "graft, 8 bits": small}
    return {
        f"{name} by {told}": _labelled(load(folder, threads=threads, runtime=runtime))
        for name, folder in forms.items()
        for runtime, told in (("onnxruntime", "ONNX Runtime"), ("openvino", "OpenVINO"))
    }


def _labelled(bundle: Any) -> Answer:
    return lambda file: str(bundle.predict(file).label)


def eager(weights: Path, threads: int = 1, *, own: bool = False) -> Answer:
    """torch with the same network and a linear head; prepared as timm does, or by Graft's `own` way."""
    import timm
    import torch
    from PIL import Image
    from safetensors.torch import load_file
    from timm.data import create_transform, resolve_data_config

    from graft.images.dataset import Preprocess
    from graft.images.preprocess import load

    rows = json.loads((weights / "weights.json").read_text())["weights"]
    row = next(row for row in rows if row["name"] == BACKBONE)
    network = timm.create_model(row["architecture"], **row["arguments"]).eval()
    state = {name: tensor.float() for name, tensor in load_file(weights / row["file"]).items()}
    network.load_state_dict(state, strict=False)
    network.reset_classifier(2)
    transform = create_transform(**resolve_data_config({}, model=network))
    geometry = Preprocess(224, crop_share=0.875)

    def answer(file: str) -> str:
        torch.set_num_threads(threads)
        if own:
            pixels = torch.from_numpy(load(file, geometry).copy()).permute(2, 0, 1)[None].float() / 255
            pixels = (pixels - 0.5) / 0.5
        else:
            pixels = transform(Image.open(file).convert("RGB"))[None]
        with torch.inference_mode():
            return str(int(network(pixels).softmax(1).argmax()))

    return answer


def timed(answers: dict[str, Answer], files: list[str], threads: int, photos: Path) -> list[dict[str, Any]]:
    """Median milliseconds of each, all taking turns."""
    said: dict[str, list[str]] = {name: [] for name in answers}
    times: dict[str, list[float]] = {name: [] for name in answers}
    peer = fastai(photos, threads) if FASTAI.exists() else None
    for number, file in enumerate(files[:WARM_UP] + files * ROUNDS):
        for name, answer in answers.items():
            begun = time.perf_counter()
            label = answer(file)
            taken = 1000 * (time.perf_counter() - begun)
            if number >= WARM_UP:
                times[name].append(taken)
                said[name].append(label)
        if peer is not None:
            taken = asked(peer, file)
            times.setdefault("fastai", []).extend([taken] if number >= WARM_UP else [])
    if peer is not None:
        peer.stdin.close()
        peer.wait()
    first = next(iter(said.values()))
    return [
        {
            "who": name,
            "threads": threads,
            "ms": statistics.median(each),
            "fastest_ms": min(each),
            "alike": None
            if not name.startswith("graft")
            else sum(a == b for a, b in zip(said[name], first, strict=True)) / len(first),
        }
        for name, each in times.items()
    ]


def fastai(photos: Path, threads: int) -> Any:
    """fastai's `predict`, waiting in its own environment."""
    return subprocess.Popen(
        [str(FASTAI), "-c", FASTAI_PROGRAM, str(photos), str(threads)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def asked(peer: Any, file: str) -> float:
    """What one answer of fastai took, in milliseconds."""
    peer.stdin.write(file + "\n")
    peer.stdin.flush()
    for line in peer.stdout:
        if line.startswith("MS"):
            return float(line.split()[1])
    sys.exit("fastai ended without an answer.")


def ratio(rows: list[dict[str, Any]], peer: str, threads: int) -> float:
    """How many times as long a peer takes as the fastest form of the bundle."""
    mine = [row for row in rows if row["threads"] == threads]
    fastest = min(row["ms"] for row in mine if row["who"].startswith("graft"))
    return float(next(row["ms"] for row in mine if row["who"] == peer) / fastest)


def processes(bundle: Path, weights: Path, file: str, place: Path) -> dict[str, float]:
    """Median seconds of a new process that answers one image."""
    program = [sys.executable, "-c", ONE_IMAGE_PROGRAM, str(Path(__file__).parent), str(weights), file, "1"]
    commands = {"graft": graft("predict", bundle, file), "torch": program}
    times: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(6):
        for name, command in commands.items():
            times[name].append(run(command, cache=place / "cache").seconds)
    return {name: round(statistics.median(each[1:]), 3) for name, each in times.items()}


if __name__ == "__main__":
    main()
