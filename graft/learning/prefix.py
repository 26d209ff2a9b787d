"""What the tail is fed with: views of the training images behind the frozen prefix, from the cache or made anew.

In: a `Cut`, the pixels, the augmentation. Out: a source of batches, in one of two kinds with the same two methods.
`CachedViews` holds the maps of every image as it is and of V fixed random views of it, computed once, in float16, and
kept by content: every fold, head and seed learns from the same ones, and only the tail is run in training. `LiveViews`
makes fresh views for each batch and runs the prefix, if any, without gradients. A view is a function of (seed, image,
view) alone, and batch normalisations of the prefix keep their statistics, so both kinds are equal on the same views.

Cost: about 250 views of 224 px a second through most of a MobileNetV2 on two cores with bfloat16; 38 kB per view for
maps of 14 x 14 x 96. Where V views would need more than `SPACE`, or than `SHARE` of what is free on the disk of the cache,
fewer are kept; where not even one fits, the cache cannot be written, or a map is beyond float16, the views are made live.
Without any augmentation the images as they are suffice.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64, UInt8
from torch import Tensor

from graft.compute import Compute
from graft.errors import StoreError
from graft.images.augmentations import Strength as Strength
from graft.images.augmentations import strengthened as strengthened
from graft.images.views import Augmentation
from graft.images.views import fixed_view as fixed_view
from graft.learning.cutting import Cut
from graft.learning.loop import at_work, laid_out
from graft.store import Entry, Store, content_key

SPACE = 2 * 10**9
SHARE = 0.5
MOST_VIEWS = 8
BATCH = 32
ARRAY = "maps"


@dataclass(frozen=True, slots=True, eq=False)
class CachedViews:
    """Maps `[n, 1 + V, ...]` with channels last; column 0 is the image as it is."""

    maps: Float[np.ndarray, "n v ..."]
    compute: Compute
    notice: str = ""

    @property
    def kept(self) -> int:
        """1 + V."""
        return self.maps.shape[1]

    def training(self, rows: Int64[np.ndarray, " b"], generator: torch.Generator) -> Tensor:
        """One of the views, or the image as it is, for each row."""
        drawn = torch.randint(self.maps.shape[1], (len(rows),), generator=generator).numpy()
        return _fed(self.maps[rows, drawn], self.compute)

    def plain(self, rows: Int64[np.ndarray, " b"]) -> Tensor:
        """The images as they are."""
        return _fed(self.maps[rows, np.zeros(len(rows), np.int64)], self.compute)


@dataclass(frozen=True, slots=True, eq=False)
class LiveViews:
    """Fresh views in every batch."""

    pixels: UInt8[np.ndarray, "n h w c"]
    augmentation: Augmentation
    cutting: Cut
    compute: Compute
    notice: str = ""

    @property
    def kept(self) -> int:
        """Nothing is."""
        return 0

    def training(self, rows: Int64[np.ndarray, " b"], generator: torch.Generator) -> Tensor:
        """A new random view of each row."""
        seeds = torch.randint(2**31, (len(rows),), generator=generator).tolist()
        made = [
            fixed_view(self.pixels[row], self.augmentation, seed=seed, number=int(row), view=1)
            for row, seed in zip(rows, seeds, strict=True)
        ]
        return self._behind_prefix(torch.cat(made))

    def plain(self, rows: Int64[np.ndarray, " b"]) -> Tensor:
        """The images as they are."""
        images = torch.from_numpy(self.pixels[rows]).permute(0, 3, 1, 2).float() / 255
        return self._behind_prefix(images)

    def _behind_prefix(self, images: Tensor) -> Tensor:
        if self.cutting.prefix is not None:
            return _fed(prefix_maps(self.cutting, images, self.compute), self.compute)
        return self.cutting.normalised(laid_out(images, self.compute))


@runtime_checkable
class Source(Protocol):
    """Where batches come from."""

    @property
    def kept(self) -> int:
        """How many maps are kept of an image, that of the image as it is among them; 0 where they are made anew."""

    @property
    def notice(self) -> str:
        """What to tell where the disk decided, or empty."""

    def training(self, rows: Int64[np.ndarray, " b"], generator: torch.Generator) -> Tensor:
        """What the tail learns from for these rows."""

    def plain(self, rows: Int64[np.ndarray, " b"]) -> Tensor:
        """What the tail is asked with: the images as they are."""


def prefix_maps(
    cutting: Cut, images: Float32[Tensor, "n c h w"], compute: Compute
) -> Float[np.ndarray, "n ..."]:
    """What the frozen prefix puts out, channels last, in float16 (float32 where that would overflow)."""
    assert cutting.prefix is not None
    prefix = cutting.prefix.to(compute.device).to(memory_format=torch.channels_last)
    images = laid_out(images, compute)
    with torch.inference_mode(), torch.autocast(compute.device, torch.bfloat16, enabled=compute.bf16):
        maps = prefix(cutting.normalised(images))
    maps = maps.permute(0, 2, 3, 1) if maps.ndim == 4 else maps
    small = maps.to(torch.float16)
    return (small if bool(small.isfinite().all()) else maps.float()).cpu().contiguous().numpy()


def caching(
    cutting: Cut,
    pixels: UInt8[np.ndarray, "n h w c"],
    *,
    key: str,
    augmentation: Augmentation,
    wanted: int,
    seed: int,
    store: Store,
    compute: Compute,
    space: int = SPACE,
    agreed: int | None = None,
) -> Generator[tuple[int, int], None, Source]:
    """The source of batches for this cut; yields (views done, views in all) while it is computed.

    The same stage puts out maps below a higher tap and pooled features where it is the tap itself: both are kept. `key`: the content of pixels, weights and cut. `wanted`: V, of which as many are made as fit into `space` bytes and
    onto the disk; with 0 the views are live. `agreed`: what an earlier session `kept`, which then counts, not the room.
    """
    live = LiveViews(pixels, augmentation, cutting, compute)
    if wanted == 0 or cutting.prefix is None or agreed == 0:
        return live
    with at_work(compute):
        one = prefix_maps(cutting, fixed_view(pixels[0], augmentation, seed=0, number=0, view=0), compute)
    column = len(pixels) * one[0].nbytes
    least = 1 if augmentation.still else 2
    most = min(1 + min(wanted, MOST_VIEWS) * (least - 1), space // column)
    if most < least or one.dtype != np.float16:
        return live

    def content(kept: int) -> str:
        facts = (kept - 1, seed, compute.bf16, compute.device, len(pixels), list(one.shape[1:]))
        return content_key("prefix.v2", key, augmentation.content(), *facts)

    room = SHARE * store.free_bytes()
    known = (n for n in range(most, least - 1, -1) if n * column <= room or store.get(content(n)))
    kept = agreed or next(known, 0)
    if not kept:
        return replace(
            live, notice=f"{_scarce(store)} no view of an image: they are made anew in every epoch."
        )
    try:
        stored = store.get(content(kept)) or (
            yield from _stored(content(kept), kept, one, live, seed=seed, store=store)
        )
    except StoreError as error:
        return replace(
            live, notice=f"{error} Until then views are made anew in every epoch, which takes longer."
        )
    except OverflowError:
        return live
    short = f"{_scarce(store)} {kept - 1} of {most - 1} views of an image." if kept < most else ""
    return CachedViews(stored.array(ARRAY), compute, notice=short)


def _scarce(store: Store) -> str:
    return f"The disk of the cache ({store.folder}) is nearly full, and there is room for"


def _stored(
    content: str, kept: int, one: Float[np.ndarray, "1 ..."], live: LiveViews, *, seed: int, store: Store
) -> Generator[tuple[int, int], None, Entry]:
    """The maps of all views, written. Raises StoreError, and OverflowError for a map that is beyond float16."""
    pixels, compute = live.pixels, live.compute
    with store.writing(content) as place, (place / f"{ARRAY}.npy").open("wb") as file:
        shape = (len(pixels), kept, *one.shape[1:])
        header = {"descr": "<f2", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        step = max(1, BATCH // kept)
        for begin in range(0, len(pixels), step):
            block = pixels[begin : begin + step]
            with at_work(compute):
                images = _all_views(block, live.augmentation, seed=seed, begin=begin, kept=kept)
                maps = prefix_maps(live.cutting, images, compute)
            if maps.dtype != np.float16:
                raise OverflowError
            file.write(maps.data)
            yield (begin + len(block)) * kept, len(pixels) * kept
    stored = store.get(content)
    assert stored is not None
    return stored


def _all_views(
    block: UInt8[np.ndarray, "b h w c"], augmentation: Augmentation, *, seed: int, begin: int, kept: int
) -> Float32[Tensor, "m c h w"]:
    """Every view of every image of a block, the views of an image together."""
    return torch.cat(
        [
            fixed_view(image, augmentation, seed=seed, number=begin + offset, view=view)
            for offset, image in enumerate(block)
            for view in range(kept)
        ]
    )


def _fed(maps: Float[np.ndarray, "b ..."], compute: Compute) -> Tensor:
    """Maps as the tail wants them: channels first in the shape, last in memory; bfloat16 where that is used."""
    precision = torch.bfloat16 if compute.bf16 else torch.float32
    tensor = torch.from_numpy(maps).to(compute.device, precision)
    return laid_out(tensor.permute(0, 3, 1, 2), compute) if tensor.ndim == 4 else tensor
