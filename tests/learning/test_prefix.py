"""The frozen prefix: cached maps are those of the live prefix on the same views; the cache obeys its limits."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_cuts import CPU, Made, made

from graft.errors import StoreError
from graft.images.augmentations import STILL, Augmentation
from graft.learning.prefix import (
    CachedViews,
    LiveViews,
    Source,
    caching,
    fixed_view,
    prefix_maps,
)
from graft.store import Store

MOVING = Augmentation(("mirror",), 0.5, 0.2, 0.2)


def finish(work: Generator[tuple[int, int], None, Source]) -> tuple[list[tuple[int, int]], Source]:
    told = []
    while True:
        try:
            told.append(next(work))
        except StopIteration as end:
            return told, end.value


def source(part: Made, store: Store, *, wanted: int = 3, seed: int = 0, **more: Any) -> Source:
    return work(part, store, wanted=wanted, seed=seed, **more)[1]


def work(
    part: Made,
    store: Store,
    *,
    wanted: int = 3,
    seed: int = 0,
    space: int = 10**9,
    agreed: int | None = None,
) -> tuple[list[tuple[int, int]], Source]:
    return finish(
        caching(
            part.cutting,
            part.pixels,
            key="made",
            augmentation=MOVING,
            wanted=wanted,
            seed=seed,
            store=store,
            compute=CPU,
            space=space,
            agreed=agreed,
        )
    )


def test_a_view_is_a_function_of_seed_image_and_number() -> None:
    image = made("layer2").pixels[0]

    def view(seed: int, number: int, which: int) -> torch.Tensor:
        return fixed_view(image, MOVING, seed=seed, number=number, view=which)

    assert torch.equal(view(0, 3, 1), view(0, 3, 1))
    others = [view(1, 3, 1), view(0, 4, 1), view(0, 3, 2)]
    assert not any(torch.equal(view(0, 3, 1), other) for other in others)
    assert torch.equal(view(0, 3, 0), torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255)


def test_cached_maps_are_those_of_the_live_prefix_on_the_same_views(tmp_path: Path) -> None:
    part = made("layer2")
    cached = source(part, Store(tmp_path))
    assert isinstance(cached, CachedViews) and cached.kept == 4
    for number in (0, 7, 59):
        for view in range(4):
            image = fixed_view(part.pixels[number], MOVING, seed=0, number=number, view=view)
            live = prefix_maps(part.cutting, image, CPU)
            np.testing.assert_allclose(cached.maps[number, view], live[0], rtol=2e-3, atol=1e-3)


def test_plain_images_are_alike_live_and_cached(tmp_path: Path) -> None:
    part = made("layer2")
    cached = source(part, Store(tmp_path))
    live = LiveViews(part.pixels, MOVING, part.cutting, CPU)
    rows = np.array([5, 0, 17])
    torch.testing.assert_close(cached.plain(rows), live.plain(rows), rtol=2e-3, atol=1e-3)
    assert cached.plain(rows).is_contiguous(memory_format=torch.channels_last)


def test_training_batches_draw_among_the_views_repeatably(tmp_path: Path) -> None:
    cached = source(made("layer2"), Store(tmp_path))
    rows = np.zeros(40, np.int64)
    batch = cached.training(rows, torch.Generator().manual_seed(0))
    assert torch.equal(batch, cached.training(rows, torch.Generator().manual_seed(0)))
    assert len(torch.unique(batch, dim=0)) == 4


def test_a_stage_that_is_the_tap_is_kept_apart_from_the_same_stage_below_it(tmp_path: Path) -> None:
    """There it puts out pooled features, here maps; pixels, network and cut are the same."""
    store = Store(tmp_path)
    maps = source(made("layer3"), store).training(np.arange(2), torch.Generator().manual_seed(0))
    pooled = source(made("layer3", tap="layer3"), store).training(
        np.arange(2), torch.Generator().manual_seed(0)
    )
    assert maps.ndim == 4 and pooled.ndim == 2


def test_the_second_time_nothing_is_computed(tmp_path: Path) -> None:
    part, store = made("layer2"), Store(tmp_path)
    first, _ = work(part, store)
    assert first[-1] == (240, 240)
    assert work(part, store)[0] == []
    assert work(part, store, seed=1)[0] != []


def test_fewer_views_where_they_would_not_fit_and_live_where_none_does(tmp_path: Path) -> None:
    part, store = made("layer2"), Store(tmp_path)
    whole = source(part, store)
    assert isinstance(whole, CachedViews)
    two = source(part, store, space=whole.maps.nbytes * 3 // 4)
    assert two.kept == 3 and not two.notice
    assert isinstance(source(part, store, space=whole.maps.nbytes // 3), LiveViews)
    assert isinstance(source(part, store, wanted=0), LiveViews)
    assert isinstance(source(made(""), store), LiveViews)


def test_fewer_views_where_the_disk_is_nearly_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part = made("layer2")
    whole = source(part, Store(tmp_path / "whole"))
    assert isinstance(whole, CachedViews)
    nearly = Store(tmp_path / "nearly")
    monkeypatch.setattr(Store, "free_bytes", lambda _: 2 * whole.maps.nbytes * 3 // 4)
    two = source(part, nearly)
    assert two.kept == 3 and "2 of 3 views" in two.notice
    monkeypatch.setattr(Store, "free_bytes", lambda _: 0)
    assert source(part, nearly).kept == 3, "what is there already takes no room"
    none = source(part, Store(tmp_path / "full"))
    assert isinstance(none, LiveViews) and "no view of an image" in none.notice


def test_an_earlier_session_decides_whatever_the_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = made("layer2")
    assert source(part, Store(tmp_path), agreed=0).kept == 0
    assert source(part, Store(tmp_path), agreed=2).kept == 2
    monkeypatch.setattr(Store, "free_bytes", lambda _: 0)
    assert source(part, Store(tmp_path), agreed=3).kept == 3


def test_live_where_the_cache_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path / "cache")

    @contextmanager
    def full(_store: Store, _key: str) -> Iterator[Path]:
        raise StoreError("The cache cannot be written: No space left on device.")
        yield tmp_path

    monkeypatch.setattr(Store, "writing", full)
    live = source(made("layer2"), store)
    assert isinstance(live, LiveViews)
    assert "No space left" in live.notice and "anew" in live.notice


def test_one_late_map_beyond_float16_leaves_nothing_behind(tmp_path: Path) -> None:
    part = made("layer2")
    assert part.cutting.prefix is not None
    real, calls = part.cutting.prefix.network.layer2[-1].bn2.forward, []

    def forward(maps: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return real(maps) + (1e6 if len(calls) > 2 else 0)

    part.cutting.prefix.network.layer2[-1].bn2.forward = forward
    assert isinstance(source(part, Store(tmp_path)), LiveViews)
    assert not list(tmp_path.rglob("maps.npy"))


def test_maps_beyond_float16_are_not_cached(tmp_path: Path) -> None:
    part = made("layer2")
    assert part.cutting.prefix is not None
    part.cutting.prefix.network.layer2[-1].bn2.bias.data.add_(1e6)
    live = source(part, Store(tmp_path))
    assert isinstance(live, LiveViews)
    assert bool(live.plain(np.array([0, 1])).isfinite().all())


def test_without_augmentation_the_images_as_they_are_suffice(tmp_path: Path) -> None:
    part = made("layer2")
    steps, still = finish(
        caching(
            part.cutting,
            part.pixels,
            key="made",
            augmentation=STILL,
            wanted=4,
            seed=0,
            store=Store(tmp_path),
            compute=CPU,
        )
    )
    assert isinstance(still, CachedViews) and still.maps.shape[1] == 1
    assert steps[-1] == (len(part.pixels), len(part.pixels))
    rows = np.array([3, 1])
    assert torch.equal(still.training(rows, torch.Generator().manual_seed(0)), still.plain(rows))


@pytest.mark.parametrize(
    "augmentation", [replace(MOVING, trivial=True), replace(MOVING, degrees=20.0, hue=0.1)]
)
def test_other_augmentations_are_other_entries(tmp_path: Path, augmentation: Augmentation) -> None:
    part, store = made("layer2"), Store(tmp_path)
    first = source(part, store)
    made_of = caching(
        part.cutting,
        part.pixels,
        key="made",
        augmentation=augmentation,
        wanted=3,
        seed=0,
        store=store,
        compute=CPU,
    )
    other = finish(made_of)[1]
    assert isinstance(first, CachedViews) and isinstance(other, CachedViews)
    assert np.array_equal(first.maps[:, 0], other.maps[:, 0])
    assert not np.array_equal(first.maps[:, 1:], other.maps[:, 1:])
