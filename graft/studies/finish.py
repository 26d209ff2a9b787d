"""The last rung: the choice is fitted on every development image, tested once, packed and verified."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from jaxtyping import Float32, Int64
from scipy.special import softmax

from graft.backbones.activations import extracted
from graft.backbones.graph import tap_output
from graft.backbones.trunks import TrunkFile, torch_rows
from graft.deploy.assemble import assembled
from graft.deploy.bundle import PROBABILITIES
from graft.deploy.pack import NOTHING_KNOWN, Check, Knowing, pack
from graft.images.dataset import Preprocess
from graft.images.pixels import open_pixels, pixels_key
from graft.learning import ridge
from graft.studies.balancing import head_on_all
from graft.studies.beside import opened_as_read
from graft.studies.frame import Event, Frame, Trial
from graft.studies.knowing import knowing, put_out
from graft.studies.probe import check_rows

if TYPE_CHECKING:
    from graft.backbones.opening import Opened
    from graft.learning.finetune import Tuned
else:
    Opened = Tuned = Any

TEST = -1  # the "fold" under which the journal keeps the predictions of the locked test


@dataclass(frozen=True, slots=True, eq=False)
class Fitted:
    """The final model: its graph, what torch says of pixels, and the geometry both want.

    `embeddings` of rows of the dataset: where the cache holds what a network says that never saw the images.
    """

    model: bytes
    geometry: Preprocess
    torch_probabilities: Callable[[np.ndarray], Float32[np.ndarray, "m k"]]
    embeddings: Callable[[Int64[np.ndarray, " m"]], Float32[np.ndarray, "m d"]] | None = None


def fitting_frozen(frame: Frame, trial: Trial, trunk: TrunkFile) -> Generator[Event, None, Fitted]:
    """The ridge head on all development rows, in front of the trunk cut at the tap."""
    yield Event(
        "progress", f"{trial.recipe.name}: fitting on all images", remaining_seconds=frame.remaining_seconds()
    )
    pixels = open_pixels(frame.dataset, trunk.geometry, store=frame.store)
    activations = extracted(
        trunk,
        pixels,
        pixels_key(frame.dataset, trunk.geometry),
        store=frame.store,
        compute=frame.compute,
        folder=frame.folder,
        reach=frame.reach,
    )
    features = activations.tap(trial.tap_index).astype(np.float32)
    head = head_on_all(frame, features[frame.rows])
    assert trunk.graph is not None
    model = assembled(
        onnx.load(str(trunk.graph)),
        tap_output(trial.tap_index),
        weight=head.weight,
        bias=head.bias,
        unit_length=True,
    )

    def torch_probabilities(images: np.ndarray) -> Float32[np.ndarray, "m k"]:
        rows = torch_rows(
            trunk, trial.tap_index, images, store=frame.store, folder=frame.folder, reach=frame.reach
        )
        return head.probabilities(rows)

    return Fitted(
        model.SerializeToString(),
        trunk.geometry,
        torch_probabilities,
        lambda rows: ridge.unit(features[rows]),
    )


def fitting_scratch(frame: Frame, trial: Trial, design: Any, settings: Any) -> Generator[Event, None, Fitted]:
    """The small CNN once more, on all development images."""
    import torch

    from graft.studies.scratching import refitting, scratch_graph

    trained = yield from refitting(frame, trial, design, settings)
    graph, output, weight, bias = scratch_graph(trained)
    model = assembled(graph, output, weight=weight, bias=bias, unit_length=False)
    network = trained.network()

    def torch_probabilities(images: np.ndarray) -> Float32[np.ndarray, "m k"]:
        with torch.inference_mode():
            logits = network(torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255)
        return softmax(logits.numpy(), axis=1)

    return Fitted(model.SerializeToString(), trial.recipe.geometry, torch_probabilities)


def fitting_tuned(frame: Frame, trial: Trial, trials: Sequence[Trial]) -> Generator[Event, None, Fitted]:
    """The chosen network tuned once more, on all development images, and exported with its new weights."""
    from graft.studies.tuning.last_fit import refitting_tuned

    bench, tuned = yield from refitting_tuned(frame, trial, trials)
    assert bench.trunk is not None
    opened = opened_as_read(frame, trial, bench.trunk)
    return fitted_of(opened, tuned, geometry=trial.recipe.geometry, tap=trial.tap_index)


def fitted_of(opened: Opened, tuned: Tuned, *, geometry: Preprocess, tap: int) -> Fitted:
    """A tuned network exported with its new weights, which are put into `opened`, and cut at the tap number `tap`."""
    import torch

    from graft.backbones.export import export

    opened.trunk.network.load_state_dict(tuned.state, strict=False)
    head = tuned.head
    model = assembled(
        onnx.load_from_string(export(opened, size=geometry.size)),
        tap_output(tap),
        weight=head.weight,
        bias=head.bias,
        unit_length=head.unit_length,
        hidden=head.hidden,
    )

    def torch_probabilities(images: np.ndarray) -> Float32[np.ndarray, "m k"]:
        with torch.inference_mode():
            rows = opened.trunk(torch.from_numpy(images))[tap].numpy()
        return head.probabilities(rows)

    return Fitted(model.SerializeToString(), geometry, torch_probabilities)


def test_probabilities(frame: Frame, trial: Trial, fitted: Fitted) -> Float32[np.ndarray, "t k"] | None:
    """The locked test, opened once for a candidate: what the journal already holds is not asked again.

    The graph that is packed answers: features in bfloat16, which are good enough to choose by, may decide 2 % of the images
    otherwise (MobileNetV1 0.25).
    """
    if not len(frame.test_rows):
        return None
    known = tested_so_far(frame, trial)
    if known is not None:
        return known
    pixels = open_pixels(frame.dataset, fitted.geometry, store=frame.store)
    rows = put_out(fitted.model, PROBABILITIES, pixels, frame.test_rows)
    facts = {"name": trial.recipe.name, "seconds": 0.0, "measured": measured_as(trial)}
    frame.journal.add_fold(trial.recipe.key, TEST, rows, facts)
    return rows


def tested_so_far(frame: Frame, trial: Trial) -> Float32[np.ndarray, "t k"] | None:
    """What the model of this trial said of the locked test, if it was fitted on the same measurements."""
    known = frame.journal.fold(trial.recipe.key, TEST)
    same = known is not None and known[0].get("measured", measured_as(trial)) == measured_as(trial)
    return known[1] if known is not None and same else None


def measured_as(trial: Trial) -> str:
    """A key of the finished folds of a trial: another one once a fold was added or measured again."""
    return hashlib.blake2b(trial.probabilities.tobytes(), digest_size=20).hexdigest()


def times_opened(frame: Frame) -> int:
    """How often the locked test was opened: a study that goes on with more time may choose another candidate, or fit the
    same one anew."""
    tested = [
        record for record in frame.journal.records if record["kind"] == "fold" and record["fold"] == TEST
    ]
    return len({(record["recipe"], record.get("measured")) for record in tested})


def packing(
    frame: Frame, folder: Path, fitted: Fitted, about: dict[str, Any], *, trial: Trial | None = None
) -> dict[str, Any]:
    """Write `model.graft/`, verified on real images of the development part; `trial` tells what it does not know."""
    pixels = np.array(open_pixels(frame.dataset, fitted.geometry, store=frame.store)[check_rows(frame)])
    return pack(
        folder,
        fitted.model,
        labels=frame.dataset.classes,
        preprocess=fitted.geometry,
        about=about,
        check=Check(pixels, fitted.torch_probabilities(pixels)),
        knowing=NOTHING_KNOWN if trial is None else _known(frame, trial, fitted),
    )


def _known(frame: Frame, trial: Trial, fitted: Fitted) -> Knowing:
    return knowing(frame, trial, model=fitted.model, geometry=fitted.geometry, features=fitted.embeddings)
