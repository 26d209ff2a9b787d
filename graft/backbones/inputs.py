"""What a network is shown of an image, in words: colour, grey, edges, or edges beside the image.

In: a word of `INPUTS` and the geometry the images would have anyway. Out: the geometry to decode them at (its channels
say what is decoded) and the `Look`, which says what the network makes of the decoded pixels before its first layer:

    geometry, look = read_as("rgb+edges", geometry)
    trunk = trunk_of(entry, geometry, look=look, ...)   # graft.backbones.trunks: the same call as ever
    Recipe(..., geometry=geometry, look=look)           # graft.studies.recipe: part of the recipe's key

The filters are in `graft.backbones.filters`, inside the network's graph: whoever runs it feeds decoded pixels. Importing
this costs no torch.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Literal

import numpy as np
from jaxtyping import UInt8

from graft.errors import SettingsError
from graft.images.dataset import Preprocess
from graft.store import Store, content_key

Look = Literal["plain", "edges", "thin", "plain+edges", "plain+thin"]
"""`edges`: the magnitude of the Sobel gradient alone; `thin`: thin edges alone; `plain+...`: as one channel more."""

INPUTS = ("rgb", "gray", "edges", "rgb+edges", "thin", "rgb+thin")
"""What `--input` takes. Where the images are grey, `rgb` reads them as they are, and `gray+edges` is `rgb+edges`."""

FILTERS = 1
"""The version of the filters, part of the key of whatever was seen through one: raised with what they put out."""

_LOOKS: dict[str, Look] = {
    "rgb": "plain",
    "gray": "plain",
    "edges": "edges",
    "thin": "thin",
    "rgb+edges": "plain+edges",
    "rgb+thin": "plain+thin",
    "gray+edges": "plain+edges",
    "gray+thin": "plain+thin",
}


def read_as(word: str, geometry: Preprocess) -> tuple[Preprocess, Look]:
    """The geometry and the look for a word of `INPUTS`, from the geometry of the images as they are.

    Edges alone and everything grey decode one channel; the rest keeps the channels of `geometry`. Raises SettingsError
    for another word.
    """
    look = _LOOKS.get(word)
    if look is None:
        raise SettingsError(f"There is no input {word!r}; choose one of {', '.join(INPUTS)}.")
    if word.startswith("gray") or look in ("edges", "thin"):
        return replace(geometry, channels=1), look
    return geometry, look


def input_word(geometry: Preprocess, look: Look) -> str:
    """The word for what a network is shown: one of `INPUTS`, `gray+edges` or `gray+thin`."""
    if look in ("edges", "thin"):
        return look
    return ("gray" if geometry.channels == 1 else "rgb") + look.removeprefix("plain")


def seen_channels(channels: int, look: Look) -> int:
    """How many channels the network sees of `channels` decoded ones."""
    return 1 if look in ("edges", "thin") else channels + (look != "plain")


def seen_edges(
    look: Look, images: UInt8[np.ndarray, "m h w c"], *, store: Store
) -> UInt8[np.ndarray, "m h w"]:
    """What the filter of `look` makes of a few images: kept from the opening, or computed by torch."""
    stored = store.get(_seen_key(look, images))
    if stored is None:
        import torch

        from graft.backbones.filters import Looking

        with torch.inference_mode():
            seen = Looking(look)(torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255)[:, -1]
        stored = store.put(_seen_key(look, images), edges=(255 * seen).round().to(torch.uint8).numpy())
    return np.array(stored.array("edges"))


def _seen_key(look: Look, images: UInt8[np.ndarray, "m h w c"]) -> str:
    digest = hashlib.sha256(np.ascontiguousarray(images).tobytes()).hexdigest()
    return content_key("seen", look, FILTERS, images.shape, digest)
