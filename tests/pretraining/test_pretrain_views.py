"""Views: a function of their seed, mixed as said, and true to the image where nothing may change."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from graft.pretraining import views
from graft.pretraining.procedural import made_images
from graft.pretraining.views import ViewSettings, generator_of, views_of, whole

torch.set_num_threads(1)


def images(count: int = 12, side: int = 70) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randint(0, 256, (count, 3, 5, 5), generator=generator).float()
    return (
        torch.nn.functional.interpolate(coarse, (side, side)).to(torch.uint8).permute(0, 2, 3, 1).contiguous()
    )


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 1000),
    side=st.sampled_from([64, 70, 130]),
    size=st.sampled_from([64, 80]),
    mosaic=st.sampled_from([0.0, 1.0]),
    made=st.sampled_from([0.0, 0.5]),
)
def test_views_are_a_function_of_their_seed(
    seed: int, side: int, size: int, mosaic: float, made: float
) -> None:
    wanted = ViewSettings(size, mosaic=mosaic, made=made)
    before = torch.random.get_rng_state()
    first, second = (views_of(images(8, side), wanted, generator=generator_of(seed, 1)) for _ in range(2))
    assert first.pixels.shape == (8, size, size, 3) and sorted(first.order) == list(range(8))
    assert torch.equal(first.pixels, second.pixels) and torch.equal(first.mix, second.mix)
    assert first.order == second.order and torch.equal(before, torch.random.get_rng_state())
    assert bool((first.mix >= 0).all()) and float(first.mix.max()) <= 0.5


def test_other_batches_have_other_views() -> None:
    wanted = ViewSettings(64)
    one, other = (views_of(images(), wanted, generator=generator_of(0, 0, batch)) for batch in (1, 2))
    assert not torch.equal(one.pixels, other.pixels)


def test_mixing_is_with_the_mirrored_batch() -> None:
    """Flat pictures stay flat whatever the crop; so each view's brightness order tells what was mixed into it."""
    flat = torch.zeros(6, 64, 64, 3, dtype=torch.uint8)
    flat[3:] = 255
    seen = 0
    for seed in range(40):
        views = views_of(flat, ViewSettings(64, mosaic=0.0, mix=1.0), generator=generator_of(seed))
        white = torch.tensor([float(place >= 3) for place in views.order])
        mean = views.pixels.float().mean((1, 2, 3)) / 255
        dark_only = (white == 0) & (white.flip(0) == 0)
        mixed = (white == 0) & (white.flip(0) == 1)
        assert float(mean[dark_only].sum()) == 0
        share, level = views.mix[mixed], 1 / 255
        assert bool((mean[mixed] > 0.3 * share - level).all()) and bool((mean[mixed] < share + level).all())
        seen += int(mixed.sum())
    assert seen > 20


def test_a_mosaic_holds_four_pictures() -> None:
    flat = (torch.arange(8) * 30 + 20).to(torch.uint8)[:, None, None, None].expand(8, 64, 64, 3).contiguous()
    views = views_of(flat, ViewSettings(64, mosaic=1.0, mix=0.0), generator=generator_of(3)).pixels.float()
    quarters = [views[:, y : y + 32, x : x + 32] for y in (0, 32) for x in (0, 32)]
    assert all(float(quarter.std((1, 2)).max()) < 1 for quarter in quarters)
    assert float(views.std((1, 2)).mean()) > 10


@pytest.mark.parametrize("side", [64, 100])
def test_the_held_out_part_is_seen_whole(side: int) -> None:
    seen = whole(images(3, side), 64)
    assert seen.shape == (3, 64, 64, 3)
    if side == 64:
        assert torch.equal(seen, images(3, 64))
    means = images(3, side).float().mean((1, 2))
    assert float((seen.float().mean((1, 2)) - means).abs().max()) < 4


def test_made_images_differ_and_have_edges() -> None:
    photos = torch.rand(5, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    made = made_images(photos, generator=generator_of(1))
    assert made.shape == photos.shape and float(made.min()) >= 0 and float(made.max()) <= 1
    assert float(torch.cdist(made.flatten(1), made.flatten(1)).fill_diagonal_(99).min()) > 1
    steps = (made[..., 1:] - made[..., :-1]).abs()
    assert float(steps.amax((1, 2, 3)).min()) > 0.2


def test_a_crop_at_the_edge_repeats_the_outermost_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    """As `grid_sample` pads with the border, which not every device can."""
    given = torch.rand(12, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    ours = views._cropped(given, 48, torch.Generator().manual_seed(4))
    sample = torch.nn.functional.grid_sample
    grids: list[torch.Tensor] = []
    monkeypatch.setattr(torch.Tensor, "clamp_", lambda grid, low, high: grids.append(grid) or grid)
    monkeypatch.setattr(
        views.functional, "grid_sample", lambda x, grid, **how: sample(x, grid, padding_mode="border", **how)
    )
    bordered = views._cropped(given, 48, torch.Generator().manual_seed(4))
    assert grids and grids[0].abs().max() > 1 - 1 / 32
    torch.testing.assert_close(ours, bordered, atol=1e-5, rtol=1e-5)
