"""A packed model in another form: plain ONNX files, a bundle in 8 bits, or OpenVINO's files. Needs no torch.

In: the folder of a bundle and, for 8 bits, photos to calibrate on. Out: a folder that was not there before, written
beside and renamed once its answers have been held against those of the bundle: on the photos, or where there are none
on made pictures. The head's numbers stay those of the bundle; only `graft shrink`, which has the labelled images, can
fit a head to what an 8-bit network puts out, so its int8 models are better than those made here.

A bundle in 8 bits is held to its decisions, because another order of the same sums rounds to other bytes.

Cost: seconds. Not covered: other runtimes; pictures of other sizes than the bundle's (use its `preprocess.onnx`).
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from jaxtyping import Float32, UInt8
from onnx import ModelProto

from graft.deploy.bundle import Bundle
from graft.deploy.opening import EMBEDDING, INPUT, MODEL, PROBABILITIES
from graft.deploy.pack import Check, Knowing, pack
from graft.deploy.quantise import outputs_of, prepared, pruned, quantised
from graft.errors import BundleError, SettingsError
from graft.images.preprocess import load
from graft.judging.cost import latency_ms
from graft.store import write_json

LEAST_CALIBRATION, MOST_CALIBRATION = 8, 200
MADE_PICTURES = 32  # so that one near tie that falls otherwise in 8 bits is no tenth of them
TOLERANCE = 1e-3  # of any probability, for the same numbers in another file
LEAST_AGREEMENT = 0.9  # of the decisions, in 8 bits
LATENCY_THREADS = 1
COPIED = ("preprocess.onnx", "labels.txt", "unknown.onnx")


@dataclass(frozen=True, slots=True)
class Converted:
    """What was written: `bytes` of the model; on how many `images` it was checked and what changed there."""

    folder: Path
    bytes: int
    images: int
    largest_difference: float
    agreement: float


def to_onnx(bundle: str | Path, out: str | Path, *, photos: Sequence[Path | bytes] = ()) -> Converted:
    """The graphs alone: `model.onnx` with folded constants, `preprocess.onnx`, `labels.txt` and `about.json`.

    Raises BundleError for a damaged bundle or a place that is taken.
    """
    opened, target = _opened(bundle, out)
    pixels = _pictures(opened, photos)
    source = onnx.load(str(opened.folder / MODEL))
    model = prepared(source, pixels)
    checked = _checked(opened, pixels, outputs_of(model, pixels, PROBABILITIES))
    _same(checked, "The ONNX file", int8=is_int8(source))
    with _Beside(target) as folder:
        (folder / MODEL).write_bytes(model.SerializeToString())
        _accompany(opened, folder, "onnx", checked)
    return _converted(target, MODEL, checked)


def to_int8(
    bundle: str | Path, out: str | Path, *, photos: Sequence[Path | bytes], reduce_range: bool = True
) -> Converted:
    """A bundle whose network works in 8 bits, calibrated on `photos` (at least 8 files; every third is only checked on).

    `reduce_range`: 7-bit weights, the same answers on every processor. Raises SettingsError for too few photos,
    BundleError for a damaged bundle, a place that is taken, or more than a tenth of decisions that change.
    """
    if len(photos) < LEAST_CALIBRATION:
        raise SettingsError(
            f"8 bits are calibrated on photos like those to come, at least {LEAST_CALIBRATION}; here are {len(photos)}. "
            "Name a folder of them with --calibrate photos/."
        )
    opened, target = _opened(bundle, out)
    pixels = _pictures(opened, photos)
    third = np.arange(len(pixels)) % 3 == 2
    source = onnx.load(str(opened.folder / MODEL))
    if is_int8(source):
        raise BundleError(f"{opened.folder} works in 8 bits already.")
    ready = prepared(pruned(source, [PROBABILITIES, EMBEDDING]), pixels)
    made = quantised(ready, pixels[~third], upto=[EMBEDDING], reduce_range=reduce_range)
    answers = outputs_of(made, pixels, PROBABILITIES)
    checked = _checked(opened, pixels[third], answers[third])
    if checked.agreement < LEAST_AGREEMENT:
        raise BundleError(
            f"In 8 bits {1 - checked.agreement:.0%} of the decisions on {checked.images} photos change, so nothing was "
            "written. Use `graft shrink` on the run folder, which fits the head to the 8-bit network."
        )
    content = made.SerializeToString()
    pack(
        target,
        content,
        labels=opened.labels,
        preprocess=opened.preprocess,
        about=_about_int8(opened.facts, content, calibrated_on=int((~third).sum()), checked=checked),
        check=Check(pixels, answers),
        knowing=_knowing(opened),
        parity={
            "against": "the float32 bundle, on photos that it was not calibrated on",
            "images": checked.images,
            "largest_difference": checked.largest_difference,
            "agreement": checked.agreement,
            "tolerance": None,
        },
    )
    return _converted(target, MODEL, checked)


def _about_int8(
    facts: dict[str, Any], content: bytes, *, calibrated_on: int, checked: _Checked
) -> dict[str, Any]:
    """What is told of the float32 model, with what became of it in 8 bits."""
    latency = latency_ms(content, threads=LATENCY_THREADS)
    measured = {"bytes": len(content), "latency_ms": latency, "latency_threads": LATENCY_THREADS}
    conversion = {
        "to": "onnx-int8",
        "calibrated_on": calibrated_on,
        "checked_on": checked.images,
        "agreement": round(checked.agreement, 4),
        "largest_difference": round(checked.largest_difference, 4),
    }
    headline = (
        f"{facts.get('headline', '')} That is the float32 model; this one, in 8 bits, decides as it does for "
        f"{checked.agreement:.1%} of {checked.images} photos."
    )
    cost = {**(facts.get("cost") or {}), **measured}
    return {
        **facts,
        "headline": headline.strip(),
        "cost": cost,
        "precision": "int8",
        "conversion": conversion,
    }


def to_openvino(bundle: str | Path, out: str | Path, *, photos: Sequence[Path | bytes] = ()) -> Converted:
    """OpenVINO's `model.xml` and `model.bin` in float32, `preprocess.onnx`, `labels.txt` and `about.json`.

    Raises BundleError as `to_onnx` does, and where OpenVINO is not installed or cannot follow the network.
    """
    opened, target = _opened(bundle, out)
    pixels = _pictures(opened, photos)
    try:
        import openvino
    except ImportError as error:
        raise BundleError(
            "OpenVINO is not installed here: pip install openvino, then export again."
        ) from error
    source = pruned(onnx.load(str(opened.folder / MODEL)), [PROBABILITIES, EMBEDDING])
    with _Beside(target) as folder:
        graph = folder / MODEL
        graph.write_bytes(prepared(source, pixels).SerializeToString())
        try:
            model = openvino.convert_model(str(graph))
            openvino.save_model(model, folder / "model.xml", compress_to_fp16=False)
            compiled = openvino.Core().compile_model(
                folder / "model.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
            )
            answers = np.concatenate([compiled({INPUT: one[None]})[PROBABILITIES] for one in pixels])
        except RuntimeError as error:
            reason = (str(error).strip().splitlines() or ["no reason given"])[-1]
            raise BundleError(f"OpenVINO cannot take over this network: {reason}. Use --to onnx.") from error
        graph.unlink()
        checked = _checked(opened, pixels, answers)
        _same(checked, "OpenVINO's model", int8=is_int8(source))
        _accompany(opened, folder, "openvino", checked)
    return _converted(target, "model.bin", checked)


@dataclass(frozen=True, slots=True)
class _Checked:
    images: int
    largest_difference: float
    agreement: float


class _Beside:
    """A temporary folder beside the target, which becomes the target if nothing goes wrong."""

    def __init__(self, target: Path) -> None:
        self._target = target
        self._folder = Path()

    def __enter__(self) -> Path:
        self._target.parent.mkdir(parents=True, exist_ok=True)
        self._folder = Path(tempfile.mkdtemp(dir=self._target.parent, prefix=f".{self._target.name}."))
        return self._folder

    def __exit__(self, kind: Any, *_: object) -> None:
        try:
            if kind is None:
                self._folder.chmod(0o755)
                self._folder.replace(self._target)
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)


def _opened(bundle: str | Path, out: str | Path) -> tuple[Bundle, Path]:
    target = Path(out)
    if target.exists():
        raise BundleError(
            f"{target} is there already and is not overwritten. Name a place that is free with --out."
        )
    return Bundle(bundle, threads=1), target


def _pictures(bundle: Bundle, photos: Sequence[Path | bytes]) -> UInt8[np.ndarray, "m h w c"]:
    """At most 200 of the photos, evenly spread; without any, made pictures."""
    if not photos:
        return _made(bundle)
    count = min(len(photos), MOST_CALIBRATION)
    chosen = np.linspace(0, len(photos) - 1, count).astype(np.int64)
    return np.stack([load(photos[number], bundle.preprocess) for number in chosen])


def _made(bundle: Bundle) -> UInt8[np.ndarray, "m h w c"]:
    """Waves of several lengths and directions, always the same."""
    size, channels = bundle.preprocess.size, bundle.preprocess.channels
    random = np.random.default_rng(0)
    y, x = np.mgrid[0:size, 0:size] / size
    pictures = []
    for _ in range(MADE_PICTURES):
        waves = np.zeros((size, size, channels))
        for _ in range(6):
            across, down = random.normal(0, 12, 2)
            waves += np.sin(across * x + down * y + random.uniform(0, 6))[:, :, None] * random.normal(
                0, 1, channels
            )
        low, high = waves.min(), waves.max()
        pictures.append((255 * (waves - low) / (high - low)).astype(np.uint8))
    return np.stack(pictures)


def _checked(
    bundle: Bundle, pixels: UInt8[np.ndarray, "m h w c"], answers: Float32[np.ndarray, "m k"]
) -> _Checked:
    wanted = bundle.predict_pixels(np.ascontiguousarray(pixels))
    same = float((answers.argmax(axis=1) == wanted.argmax(axis=1)).mean())
    return _Checked(len(pixels), float(np.abs(answers - wanted).max()), same)


def _same(checked: _Checked, what: str, *, int8: bool) -> None:
    if int8 and checked.agreement < LEAST_AGREEMENT:
        raise BundleError(
            f"{what} decides {1 - checked.agreement:.0%} of {checked.images} pictures otherwise than the bundle, so it was "
            "not written. Name photos like those to come with --calibrate photos/, or export the float32 bundle."
        )
    if int8 and np.isfinite(checked.largest_difference):
        return
    if not checked.largest_difference <= TOLERANCE:  # a NaN is no agreement
        raise BundleError(
            f"{what} differs from the bundle by {checked.largest_difference:.2g} in probability (allowed: {TOLERANCE}), "
            "so it was not written. Please report this network."
        )


def _accompany(bundle: Bundle, folder: Path, form: str, checked: _Checked) -> None:
    """The files that belong to any form, and what was checked."""
    for name in COPIED:
        if (bundle.folder / name).is_file():
            shutil.copyfile(bundle.folder / name, folder / name)
    told = {
        "form": form,
        "source": {
            name: bundle.facts.get(name) for name in ("backbone", "weights", "headline", "graft", "format")
        },
        "labels": list(bundle.labels),
        "preprocess": bundle.facts["preprocess"],
        "decision": {name: bundle.facts.get(name) for name in ("thresholds", "unknown", "conformal")},
        "checked": {"images": checked.images, "largest_difference": checked.largest_difference},
    }
    write_json(folder / "about.json", told)


def _knowing(bundle: Bundle) -> Knowing:
    """What the bundle knows of its own limits; the score reads the same outputs in 8 bits."""
    unknown = bundle.facts.get("unknown")
    graph = (bundle.folder / unknown["file"]).read_bytes() if unknown else None
    return Knowing(
        graph=graph,
        unknown={n: v for n, v in unknown.items() if n not in ("file", "inputs", "output")}
        if unknown
        else None,
        conformal=bundle.facts.get("conformal"),
        thresholds=bundle.facts.get("thresholds"),
    )


def _converted(target: Path, name: str, checked: _Checked) -> Converted:
    size = (target / name).stat().st_size
    return Converted(target, size, checked.images, checked.largest_difference, checked.agreement)


def is_int8(model: ModelProto) -> bool:
    """Whether a graph works in 8 bits."""
    return any(node.op_type == "QuantizeLinear" for node in model.graph.node)
