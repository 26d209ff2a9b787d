"""From a catalogue row to a trunk on disk: opened and exported once, checked against torch, then found in the cache.

In: an entry, the geometry, where weights may come from, and a few real images. Out: a `TrunkFile`, which knows the
graph's place, its taps and which runner agrees with plain torch float32 on those images. Cold this costs the import
of torch (3 s, once per process) and about 2 s per network; warm it reads one small file and imports neither torch nor
timm. A network that the exporter or OpenVINO cannot follow is run by torch instead, and says so.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Float, UInt8

from graft.backbones.catalogue import Entry, InputSpec
from graft.backbones.graph import LOGITS, tap_output
from graft.backbones.inputs import FILTERS, Look, seen_edges
from graft.backbones.weights import Reach, WeightsFolder, known_digest, load_state
from graft.compute import Compute
from graft.errors import BackboneError
from graft.images.dataset import Preprocess
from graft.store import Entry as Stored
from graft.store import Store, content_key, write_facts

if TYPE_CHECKING:
    from graft.backbones.opening import Opened
    from graft.backbones.scratch import ScratchDesign
else:
    Opened = ScratchDesign = Any

Runner = Literal["openvino-bf16", "openvino-f32", "torch"]

# The largest relative error ||a - b|| / ||b|| of any tap against torch float32 on the check images. bfloat16 keeps 8
# bits; networks trained in float32 stay below 0.02, those dequantised from int8 come to 0.06 and more. Up to there the
# heads were as good: 5-fold macro-F1 of the two last taps of two networks on two data sets changed by +0.001 on
# average, and by -0.0001 if a head learned from bfloat16 was asked with float32. At 0.13 it fell by 0.005.
TOLERANCE: dict[Runner, float] = {"openvino-bf16": 0.1, "openvino-f32": 1e-3}
GRAPH_FILE = "trunk.onnx"
UNTRAINED = "small_cnn"  # the architecture of the network that learns nothing; students are of other names
CHECK_IMAGES = 8


@dataclass(frozen=True, slots=True)
class TapRow:
    """A tap: the `name` of the stage, its `index` from the input, and how many `features` it puts out."""

    name: str
    index: int
    features: int


@dataclass(frozen=True, slots=True)
class TrunkFile:
    """A trunk in the cache. `graph` is None where the network could not be exported; `notice` says what was odd."""

    key: str
    entry: Entry
    geometry: Preprocess
    digest: str
    origin: str
    taps: tuple[TapRow, ...]
    has_logits: bool
    runner: Runner
    graph: Path | None
    notice: str
    look: Look = "plain"

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names of the graph's outputs in order."""
        return tuple(tap_output(tap.index) for tap in self.taps) + ((LOGITS,) if self.has_logits else ())


def trunk_of(
    entry: Entry,
    geometry: Preprocess,
    *,
    folder: WeightsFolder | None,
    reach: Reach,
    store: Store,
    samples: UInt8[np.ndarray, "m h w c"],
    compute: Compute,
    look: Look = "plain",
) -> TrunkFile:
    """The trunk of `entry` for this geometry, from the cache if it is there.

    `samples`: real images; runners are compared on the first eight, and what torch reads of every eight is kept.
    `look`: what the network makes of the decoded pixels first, see `graft.backbones.inputs.read_as`. Raises
    BackboneError if the weights cannot be had or do not fit, or if the network cannot take this look.
    """
    digest = known_digest(entry, folder=folder)
    if digest is not None:
        stored = store.get(_key(entry, geometry, digest, compute, look))
        if stored is not None:
            return _from_stored(stored, entry, geometry, look)
    from graft.backbones.opening import open_backbone

    loaded = load_state(entry, folder=folder, reach=reach)
    opened = open_backbone(entry, loaded.state, channels=geometry.channels, size=geometry.size, look=look)
    return _keep(
        opened, entry, geometry, loaded.digest, loaded.origin, store=store, samples=samples, compute=compute
    )


def untrained_trunk(
    design: ScratchDesign,
    geometry: Preprocess,
    *,
    seed: int,
    store: Store,
    samples: UInt8[np.ndarray, "m h w c"],
    compute: Compute,
) -> TrunkFile:
    """The small CNN with random weights: what features are worth that learned nothing."""
    entry = untrained_entry(design, seed=seed)
    digest = f"random:{seed}"
    stored = store.get(_key(entry, geometry, digest, compute))
    if stored is not None:
        return _from_stored(stored, entry, geometry)
    opened = _open_untrained(entry)
    return _keep(
        opened, entry, geometry, digest, "random weights", store=store, samples=samples, compute=compute
    )


def untrained_entry(design: ScratchDesign, *, seed: int) -> Entry:
    """A row for the small CNN, as if it stood in the catalogue."""
    arguments: dict[str, Any] = {**asdict(design), "seed": seed}
    plain = InputSpec(
        size=design.size,
        mean=(0.0,) * design.channels,
        std=(1.0,) * design.channels,
        interpolation="bicubic",
        crop=1.0,
        channels=design.channels,
    )
    return Entry(
        name="small_cnn",
        library="graft",
        architecture=UNTRAINED,
        arguments=tuple(arguments.items()),
        family="small_cnn",
        pretraining="none",
        source="random weights",
        licence="Apache-2.0",
        parameters=None,
        bytes=None,
        gmacs=design.multiply_adds / 1e9,
        input=plain,
        top1=None,
        top5=None,
        published="",
        stages=(),
    )


def is_open(entry: Entry, size: int, *, folder: WeightsFolder | None, store: Store, compute: Compute) -> bool:
    """Whether the cache holds the trunk for this input size, so that neither torch nor timm will be needed."""
    digest = known_digest(entry, folder=folder)
    if digest is None:
        return False
    channels: tuple[Literal[1, 3], ...] = (1, 3)
    keys = (_key(entry, Preprocess(size, channels=c), digest, compute) for c in channels)
    return any(store.get(key) is not None for key in keys)


def torch_rows(
    trunk: TrunkFile,
    tap: int,
    images: UInt8[np.ndarray, "m h w c"],
    *,
    store: Store,
    folder: WeightsFolder | None,
    reach: Reach,
) -> Float[np.ndarray, "m d"]:
    """What plain torch in float32 reads at a tap: kept from the opening, or computed by opening the network again."""
    key = _reference_key(trunk.key, tap, images)
    stored = store.get(key)
    if stored is None:
        import torch

        opened = reopened(trunk, folder=folder, reach=reach)
        with torch.inference_mode():
            rows = opened.trunk(torch.from_numpy(images))[tap].numpy()
        stored = store.put(key, rows=rows)
    return np.array(stored.array("rows"))


def _reference_key(trunk_key: str, tap: int, images: UInt8[np.ndarray, "m h w c"]) -> str:
    digest = hashlib.sha256(np.ascontiguousarray(images).tobytes()).hexdigest()
    return content_key("torch.v1", trunk_key, tap, digest)


def reopened(trunk: TrunkFile, *, folder: WeightsFolder | None, reach: Reach) -> Opened:
    """The trunk as a torch module again: for devices other than the CPU, and for checks against the graph."""
    from graft.backbones.opening import open_backbone

    if trunk.entry.architecture == UNTRAINED:
        return _open_untrained(trunk.entry)
    state = load_state(trunk.entry, folder=folder, reach=reach).state
    geometry = trunk.geometry
    return open_backbone(trunk.entry, state, channels=geometry.channels, size=geometry.size, look=trunk.look)


def _open_untrained(entry: Entry) -> Opened:
    from graft.backbones.opening import open_scratch
    from graft.backbones.scratch import ScratchDesign, build

    arguments: dict[str, Any] = dict(entry.arguments)
    seed = int(arguments.pop("seed"))
    design = ScratchDesign(**arguments)
    return open_scratch(build(design, seed=seed), design)


def _key(entry: Entry, geometry: Preprocess, digest: str, compute: Compute, look: Look = "plain") -> str:
    network = [entry.architecture, [[name, repr(value)] for name, value in entry.arguments]]
    seen: list[Any] = [list(entry.input.mean), list(entry.input.std)]
    seen += [] if look == "plain" else [[look, FILTERS]]
    return content_key(
        "trunk.v2",
        entry.library,
        network,
        seen,
        digest,
        geometry.size,
        geometry.channels,
        compute.bf16,
        compute.device,
    )


def _from_stored(stored: Stored, entry: Entry, geometry: Preprocess, look: Look = "plain") -> TrunkFile:
    facts = stored.facts
    return TrunkFile(
        key=stored.folder.name,
        entry=entry,
        geometry=geometry,
        digest=facts["digest"],
        origin=facts["origin"],
        taps=tuple(TapRow(**row) for row in facts["taps"]),
        has_logits=facts["has_logits"],
        runner=facts["runner"],
        graph=stored.file(GRAPH_FILE) if facts["exported"] else None,
        notice=facts["notice"],
        look=look,
    )


def _keep(
    opened: Opened,
    entry: Entry,
    geometry: Preprocess,
    digest: str,
    origin: str,
    *,
    store: Store,
    samples: UInt8[np.ndarray, "m h w c"],
    compute: Compute,
) -> TrunkFile:
    """Export, find the runner that agrees with torch, and put both into the cache."""
    import torch

    from graft.backbones.export import export

    look: Look = opened.trunk.looking.look
    key = _key(entry, geometry, digest, compute, look)
    blocks = [samples[begin : begin + CHECK_IMAGES] for begin in range(0, len(samples), CHECK_IMAGES)]
    with torch.inference_mode():
        read = [[rows.numpy() for rows in opened.trunk(torch.from_numpy(np.array(b)))] for b in blocks]
    check, reference = blocks[0], read[0]
    if not all(np.isfinite(rows).all() for rows in reference):
        raise BackboneError(
            f"{entry.name} puts out infinite or undefined features: its weights are damaged or belong to another "
            "network. Load them again, or choose another backbone (graft models)."
        )
    with store.writing(key) as place:
        graph = place / GRAPH_FILE
        runner: Runner = "torch"
        try:
            graph.write_bytes(export(opened, size=geometry.size))
            exported = True
        except (RuntimeError, TypeError, ValueError, torch.onnx.errors.OnnxExporterError) as error:
            exported = False
            notice = (
                f"{entry.name} could not be exported ({_first_line(error)}); it is measured by torch only."
            )
        if exported:
            runner, notice = _agreeing_runner(graph, check, reference, entry.name, compute)
        facts: dict[str, Any] = {
            "digest": digest,
            "origin": origin,
            "taps": [asdict(TapRow(tap.name, tap.index, tap.features)) for tap in opened.taps],
            "has_logits": opened.has_logits,
            "runner": runner,
            "exported": exported,
            "notice": notice,
        }
        write_facts(place, facts)
    for images, rows in zip(blocks, read, strict=True):
        for tap in opened.taps:
            store.put(_reference_key(key, tap.index, images), rows=rows[tap.index])
        if look != "plain":
            seen_edges(look, images, store=store)
    stored = store.get(key)
    assert stored is not None
    return _from_stored(stored, entry, geometry, look)


def _agreeing_runner(
    graph: Path,
    check: UInt8[np.ndarray, "m h w c"],
    reference: Sequence[Float[np.ndarray, "m _"]],
    name: str,
    compute: Compute,
) -> tuple[Runner, str]:
    """The fastest runner whose every tap agrees with torch float32, and a notice if it is not the usual one."""
    if compute.device != "cpu":
        return "torch", ""
    from graft.backbones.activations import openvino_rows

    runners: tuple[Runner, ...] = ("openvino-bf16", "openvino-f32") if compute.bf16 else ("openvino-f32",)
    worst = float("inf")
    for runner in runners:
        try:
            rows = openvino_rows(graph, check, runner=runner, threads=compute.threads)
        except RuntimeError as error:
            return "torch", f"OpenVINO cannot run {name} ({_first_line(error)}); torch runs it, more slowly."
        worst = float(np.max([relative_error(a, b) for a, b in zip(rows, reference, strict=True)]))
        if worst <= TOLERANCE[runner]:
            return runner, "" if runner == runners[0] else f"{name} needs float32: bfloat16 differs too much."
    return "torch", f"OpenVINO differs from torch by {worst:.1%} on {name}; torch runs it, more slowly."


def relative_error(a: Float[np.ndarray, "n d"], b: Float[np.ndarray, "n d"]) -> float:
    """`||a - b|| / ||b||` over all rows."""
    return float(np.linalg.norm(a - b) / max(float(np.linalg.norm(b)), 1e-12))


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
