"""How much of what the compiled network can do is left of it in the feature pass, and in how much memory?

    python benchmarks/throughput.py [--data DIR] [--weights DIR] [--backbones NAME,NAME] [--repeats 3]

The 20,000 images of Fashion-MNIST from their Parquet file, as a study takes them: looked at, decoded
(`images.pixels.preparing`), passed through the network with every tap pooled and written to the cache
(`backbones.activations.extracting`). The yardstick is the same graph, compiled with the same settings, on 2,048 random
images that lie in memory, in the same process, before and after the pass: nothing is read, copied out or written.

`extraction` is the pass over decoded pixels against that; `decoding_and_extraction` also counts decoding;
`extraction_by_processor_time` compares seconds of processor per image, which other work on the machine hardly moves. Memory is
sampled 50 times a second: `resident` counts pages of mapped files (the pixels, libraries), which the system takes back
when it needs them; `anonymous` does not. Each backbone is measured in a process of its own with a cold cache; it
needs some 4 GB of disk for the time and about 2 minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from measuring import Target, beginning, keep, need, parser, run, say, workplace

BACKBONES = "mobilenetv2_100.coral_qat_in1k,mobilenetv1_025.coral_in1k"
RESIDENT_IMAGES = 2_048
PASSES = 3  # before the feature pass, and as many after it
SAMPLE_SECONDS = 0.02
FIELDS = {"VmRSS": "resident", "RssAnon": "anonymous"}


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--backbones", default=BACKBONES, help="(default: %(default)s)")
    options.add_argument("--repeats", type=int, default=3, help="(default: 3)")
    options.add_argument("--measure", nargs=2, metavar=("NAME", "OUT"), help=argparse.SUPPRESS)
    given = options.parse_args()
    images = given.data / "fashion_mnist"
    need(images, given.weights / "weights.json")
    if given.measure:
        name, out = given.measure
        Path(out).write_text(json.dumps(measured(name, images, given.weights)))
        return
    began = beginning()
    facts: dict[str, Any] = {}
    targets: list[Target] = []
    for name in given.backbones.split(","):
        several = [one_process(name, given) for _ in range(given.repeats)]
        middle = statistics.median_low(one["extraction"] for one in several)
        facts[name] = {**next(one for one in several if one["extraction"] == middle), "repeats": several}
        peak = max(one["peak_gb"]["resident"] for one in several)
        targets += [
            Target(f"{name}: extraction as a share of the network alone", middle, "at least", 0.8),
            Target(f"{name}: peak resident memory in GB", peak, "at most", 4.0),
        ]
    keep("throughput", facts, targets, began=began)


def one_process(name: str, given: argparse.Namespace) -> dict[str, Any]:
    """The measurement in a process of its own, with a cache of its own."""
    with workplace() as place:
        out = place / "measured.json"
        places = ["--data", given.data, "--weights", given.weights]
        whole = run([sys.executable, __file__, *places, "--measure", name, out], cache=place / "cache")
        found = json.loads(out.read_text())
    found["peak_gb"].setdefault("resident", whole.peak_bytes / 1e9)
    say(
        f"{name} ({found['runner']}, {found['input']}): network alone {found['network_per_second']:.0f} images/s; "
        f"extraction {found['extraction_per_second']:.0f} ({found['extraction']:.0%}, by processor time "
        f"{found['extraction_by_processor_time']:.0%}); "
        f"decoding {found['decoding_per_second']:.0f}; both {found['decoding_and_extraction']:.0%}; "
        f"peak {found['peak_gb']}"
    )
    return found


def measured(name: str, images: Path, weights: Path) -> dict[str, Any]:
    """The feature pass and its yardstick, in this process."""
    from graft.backbones.activations import extracting
    from graft.backbones.catalogue import find
    from graft.backbones.trunks import trunk_of
    from graft.backbones.weights import Reach, folder_from
    from graft.compute import choose
    from graft.images.pixels import open_pixels, pixels_key, preparing
    from graft.images.scan import scan
    from graft.store import Store
    from graft.studies.plan import geometry_of

    store, compute, folder = Store(), choose("cpu"), folder_from(weights)
    entry, reach = find(name, folder), Reach(False, False)
    seconds: dict[str, float] = {}
    with peaks() as memory:
        with timed("looking", seconds):
            dataset = scan(next(images.glob("*.parquet")), store=store, threads=compute.threads)
        geometry = geometry_of(entry, dataset, "crop")
        with timed("decoding", seconds):
            deque(preparing(dataset, [geometry], store=store, threads=compute.threads), maxlen=0)
        pixels = open_pixels(dataset, geometry, store=store)
        with timed("opening", seconds):
            sources: Any = {"folder": folder, "reach": reach, "store": store, "compute": compute}
            trunk = trunk_of(entry, geometry, samples=np.array(pixels[:8]), **sources)
    alone = network_alone(trunk, pixels.shape[1:], compute.threads)
    with peaks() as memory_of_pass, timed("extraction", seconds):
        deque(extracting(trunk, pixels, pixels_key(dataset, geometry), **sources), maxlen=0)
    alone += network_alone(trunk, pixels.shape[1:], compute.threads)
    rate, count = statistics.median(one["per_second"] for one in alone), len(dataset)
    processor = statistics.median(one["processor_ms"] for one in alone)
    return {
        "runner": trunk.runner,
        "input": "x".join(str(side) for side in pixels.shape[1:]),
        "images": count,
        "seconds": seconds,
        "network_per_second": rate,
        "network_passes": alone,
        "extraction_per_second": count / seconds["extraction"],
        "decoding_per_second": count / seconds["decoding"],
        "extraction": count / seconds["extraction"] / rate,
        "extraction_by_processor_time": processor * count / 1e3 / seconds["extraction, processor"],
        "decoding_and_extraction": count / (seconds["decoding"] + seconds["extraction"]) / rate,
        "peak_gb": {name: max(memory[name], memory_of_pass[name]) for name in memory},
        "peak_gb_before_the_pass": memory,
        "peak_gb_in_the_pass": memory_of_pass,
    }


def network_alone(trunk: Any, shape: tuple[int, ...], threads: int) -> list[dict[str, float]]:
    """The compiled graph on data in memory, pass by pass: images per second, and processor time per image."""
    import openvino

    from graft.backbones.activations import BATCH

    if trunk.graph is None or trunk.runner == "torch":
        sys.exit(f"{trunk.entry.name} is run by torch here; this benchmark measures the OpenVINO path.")
    core = openvino.Core()
    model = core.read_model(trunk.graph)
    model.reshape({0: [BATCH, *shape]})
    precision = "bf16" if trunk.runner == "openvino-bf16" else "f32"
    hints = {
        "PERFORMANCE_HINT": "THROUGHPUT",
        "INFERENCE_PRECISION_HINT": precision,
        "INFERENCE_NUM_THREADS": threads,
    }
    compiled = core.compile_model(model, "CPU", hints)
    noise = np.random.default_rng(0).integers(0, 256, (RESIDENT_IMAGES // BATCH, BATCH, *shape), np.uint8)
    batches = [openvino.Tensor(batch, shared_memory=True) for batch in noise]
    ring = [
        compiled.create_infer_request()
        for _ in range(compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS"))
    ]
    one_pass(ring, batches[: 2 * len(ring)])
    found = []
    for _ in range(PASSES):
        seconds: dict[str, float] = {}
        with timed("pass", seconds):
            one_pass(ring, batches)
        images = len(batches) * BATCH
        found.append(
            {
                "per_second": images / seconds["pass"],
                "processor_ms": 1e3 * seconds["pass, processor"] / images,
            }
        )
    return found


def one_pass(ring: list[Any], batches: list[Any]) -> None:
    """Every batch once; the outputs stay where the network puts them."""
    for i, batch in enumerate(batches):
        request = ring[i % len(ring)]
        request.wait()
        request.set_input_tensor(batch)
        request.start_async()
    for request in ring:
        request.wait()


@contextmanager
def timed(name: str, seconds: dict[str, float]) -> Iterator[None]:
    """The seconds of a block, under `name`, and those of all its threads on a processor."""
    started, worked = time.perf_counter(), time.process_time()
    yield
    seconds[name] = time.perf_counter() - started
    seconds[f"{name}, processor"] = time.process_time() - worked


@contextmanager
def peaks() -> Iterator[dict[str, float]]:
    """The largest memory in GB while the block ran; filled when it ends, empty where `/proc` is not."""
    found: dict[str, float] = {}
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(SAMPLE_SECONDS):
            for name, value in resident().items():
                found[name] = max(found.get(name, 0.0), value)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield found
    finally:
        ended.set()
        watcher.join()


def resident() -> dict[str, float]:
    """This process's memory now, in GB."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return {}
    rows = [line.split() for line in lines]
    return {FIELDS[row[0][:-1]]: int(row[1]) * 1024 / 1e9 for row in rows if row[0][:-1] in FIELDS}


if __name__ == "__main__":
    main()
