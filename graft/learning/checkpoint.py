"""Where a tuning stands at the end of an epoch, in one file that is always whole.

In: tensors and a few facts. Out: a safetensors file whose header holds the facts as JSON, written beside and moved into
place, so that tensors and facts never belong to different moments. Cost: 20 bytes per trained weight and some 50 ms.

Not covered: two processes that write one file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from graft.errors import RunError
from graft.store import write_atomically

FORMAT = 1


def save(path: Path, facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write the checkpoint. Raises RunError where the disk is full or cannot be written; the last one stays."""
    from safetensors.torch import save as packed

    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        write_atomically(path, packed(whole, {"facts": json.dumps({"format": FORMAT, **facts})}))
    except OSError as error:
        raise RunError(
            f"The checkpoint {path} cannot be written: {error.strerror or error}. The one before it is intact: free "
            "some space and run the same command again."
        ) from error


def load(path: Path, *, identity: str) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
    """The checkpoint, or None if there is none, if it is damaged, or if it belongs to another training."""
    from safetensors import SafetensorError, safe_open

    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads((file.metadata() or {})["facts"])
            if facts["format"] != FORMAT or facts["identity"] != identity:
                return None
            return facts, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no iteration)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError):
        return None
