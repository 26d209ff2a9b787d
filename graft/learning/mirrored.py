"""Whether mirroring images changes their class, as a backbone and the edges in the pictures see it.

In: an opened trunk, its features of some images, their pixels, a mirroring. Out: what `graft.learning.orientation` finds
in the backbone's features and the directions of edges together (a backbone trained on mirrored images has learned to
overlook what the edges show). Cost: the features of the mirrored images; kept by content.
"""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
from jaxtyping import Float, Int64, UInt8

from graft.backbones.activations import extracted
from graft.backbones.hub import Reach
from graft.backbones.trunks import TrunkFile
from graft.backbones.weights import WeightsFolder
from graft.compute import Compute
from graft.images.augmentations import Symmetry
from graft.learning.orientation import Turning, turning
from graft.store import Store, content_key

MOST = 400


def asked(
    trunk: TrunkFile,
    pixels: UInt8[np.ndarray, "n h w c"],
    features: Float[np.ndarray, "n d"],
    targets: Int64[np.ndarray, " n"],
    *,
    rows: Int64[np.ndarray, " m"],
    parts: Int64[np.ndarray, " m"],
    tap: int,
    symmetry: Symmetry,
    key: str,
    store: Store,
    compute: Compute,
    folder: WeightsFolder | None,
    reach: Reach,
) -> Turning:
    """Of `rows`; `features` are those of the tap number `tap`, `key` the content of `pixels`, `parts` as in `turning`."""
    from graft.images.outlines import outlines
    from graft.images.views import APPLY

    labels = targets[rows]
    question = content_key(
        "symmetry.v3",
        trunk.key,
        trunk.runner,
        key,
        tap,
        symmetry,
        rows.tolist(),
        parts.tolist(),
        labels.tolist(),
    )
    stored = store.get(question)
    if stored is None:
        images = np.array(pixels[rows])
        mirrored = np.ascontiguousarray(APPLY[symmetry](images))
        seen = extracted(
            trunk,
            mirrored,
            content_key("mirrored.v1", key, symmetry, rows.tolist()),
            store=store,
            compute=compute,
            folder=folder,
            reach=reach,
        ).tap(tap)
        told = turning(
            (features[rows].astype(np.float32), outlines(images)),
            (seen.astype(np.float32), outlines(mirrored)),
            labels,
            parts=parts,
        )
        stored = store.put(question, {**asdict(told), "confused": list(told.confused)})
    return Turning(**{**stored.facts, "confused": tuple(stored.facts["confused"])})


def spread(rows: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " m"]:
    """At most 400 of the rows, evenly spread."""
    return rows if len(rows) <= MOST else rows[np.linspace(0, len(rows) - 1, MOST).astype(np.int64)]
