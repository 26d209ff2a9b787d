"""What a fold has learned, kept beside its predictions, so that later steps can start from it.

In: what was tuned on a fold, or trained from scratch. Out: `trials/RECIPE-FOLD.tuned.safetensors` in the run folder,
written at once and whole, before the journal says that the fold is finished. What has more than `MOST_BYTES` is not
kept, nor does a run of an earlier Graft have it: whoever looks for it finds None and goes without.

Cost: 4 bytes per changed weight. Not covered: what was learned from all images, which the packed model holds.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graft.studies.journal import TRIALS

if TYPE_CHECKING:
    from torch import Tensor

    from graft.learning.finetune import Tuned
    from graft.learning.trained import Trained
    from graft.studies.frame import Frame
else:
    Frame = Tensor = Trained = Tuned = Any

MOST_BYTES = 30 * 10**6
HEAD = "graft_head."  # how the names of the head's arrays begin
ARRAYS = ("weight", "bias", "hidden_weight", "hidden_bias")


def place_of(run: Path, key: str, fold: int) -> Path:
    """The file of a recipe's key and a fold."""
    return run / TRIALS / f"{key[:16]}-{fold}.tuned.safetensors"


def keep_tuned(frame: Frame, key: str, fold: int, tuned: Tuned) -> bool:
    """Keep what was tuned; returns False where it is too large. Raises RunError where the disk is full."""
    import torch

    head = tuned.head
    arrays = {name: getattr(head, name) for name in ARRAYS if getattr(head, name) is not None}
    tensors = {f"{HEAD}{name}": torch.tensor(array) for name, array in arrays.items()}
    facts = {
        "unit_length": head.unit_length,
        "temperature": tuned.temperature,
        "best_epoch": tuned.best_epoch,
        "epochs_run": tuned.epochs_run,
        "stopped": tuned.stopped,
    }
    return _keep(frame, key, fold, facts, {**tuned.state, **tensors})


def kept_tuned(frame: Frame, key: str, fold: int) -> Tuned | None:
    """What was tuned on a fold, or None."""
    from graft.learning.finetune import Tuned
    from graft.learning.heads import Head

    found = _kept(frame, key, fold)
    if found is None:
        return None
    facts, tensors = found
    arrays = {n.removeprefix(HEAD): t.numpy() for n, t in tensors.items() if n.startswith(HEAD)}
    state = {name: tensor for name, tensor in tensors.items() if not name.startswith(HEAD)}
    head = Head(
        arrays["weight"],
        arrays["bias"],
        arrays.get("hidden_weight"),
        arrays.get("hidden_bias"),
        unit_length=bool(facts["unit_length"]),
    )
    return Tuned(
        state, head, facts["temperature"], facts["best_epoch"], facts["epochs_run"], facts["stopped"]
    )


def keep_trained(frame: Frame, key: str, fold: int, trained: Trained) -> bool:
    """Keep what was trained from random weights, as `keep_tuned` does."""
    facts = {
        "design": asdict(trained.design),
        "temperature": trained.temperature,
        "best_epoch": trained.best_epoch,
        "epochs_run": trained.epochs_run,
        "stopped": trained.stopped,
        "needed": trained.needed,
        "generation": trained.generation,
    }
    return _keep(frame, key, fold, facts, trained.state)


def kept_trained(frame: Frame, key: str, fold: int) -> Trained | None:
    """What was trained on a fold, or None."""
    from graft.backbones.scratch import ScratchDesign
    from graft.learning.trained import Trained

    found = _kept(frame, key, fold)
    if found is None:
        return None
    facts, state = found
    return Trained(
        ScratchDesign(**facts["design"]),
        state,
        facts["temperature"],
        facts["best_epoch"],
        facts["epochs_run"],
        facts["stopped"],
        facts["needed"],
        facts["generation"],
    )


def _keep(frame: Frame, key: str, fold: int, facts: dict[str, Any], tensors: dict[str, Tensor]) -> bool:
    from graft.learning.checkpoint import save

    if sum(tensor.nbytes for tensor in tensors.values()) > MOST_BYTES:
        return False
    save(place_of(frame.settings.out, key, fold), {"identity": f"{key}-{fold}", **facts}, tensors)
    return True


def _kept(frame: Frame, key: str, fold: int) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
    from graft.learning.checkpoint import load

    return load(place_of(frame.settings.out, key, fold), identity=f"{key}-{fold}")
