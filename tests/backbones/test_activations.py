"""One pass gives every tap of every image, in order, and is never repeated or half kept."""

from __future__ import annotations

import dataclasses
from collections.abc import Generator
from pathlib import Path

import numpy as np
import pytest
import torch
from made_networks import noise

from graft.backbones.activations import BATCH, Activations, compact, extracting, openvino_batches
from graft.backbones.hub import Reach
from graft.backbones.opening import Opened
from graft.backbones.scratch import ScratchDesign
from graft.backbones.trunks import TrunkFile, relative_error, reopened, untrained_trunk
from graft.compute import Compute
from graft.images.dataset import Preprocess
from graft.store import Store

NOWHERE = Reach(False, False, "No answer from anybody.")
PLAIN = Compute("cpu", False, 1)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def trunk(store: Store) -> TrunkFile:
    geometry = Preprocess(size=32, fit="squash", channels=3)
    design = ScratchDesign(8, 3, 32, 4)
    return untrained_trunk(design, geometry, seed=0, store=store, samples=noise(8, 32), compute=PLAIN)


@pytest.fixture(scope="module")
def opened(trunk: TrunkFile) -> Opened:
    return reopened(trunk, folder=None, reach=NOWHERE)


def passing(
    trunk: TrunkFile, images: np.ndarray, store: Store, *, key: str = "images"
) -> Generator[tuple[int, int], None, Activations]:
    return extracting(trunk, images, key, store=store, compute=PLAIN, folder=None, reach=NOWHERE)


def finished(
    work: Generator[tuple[int, int], None, Activations],
) -> tuple[list[tuple[int, int]], Activations]:
    steps = []
    while True:
        try:
            steps.append(next(work))
        except StopIteration as stop:
            return steps, stop.value


@pytest.mark.parametrize("count", [1, BATCH - 1, BATCH, BATCH + 1, 5 * BATCH + 3])
def test_every_image_has_its_row_whatever_the_last_batch(
    count: int, trunk: TrunkFile, opened: Opened, tmp_path: Path
) -> None:
    images = noise(count, 32)
    assert trunk.runner == "openvino-f32"
    steps, activations = finished(passing(trunk, images, Store(tmp_path)))
    assert [done for done, _ in steps] == [min(begin + BATCH, count) for begin in range(0, count, BATCH)]
    assert {total for _, total in steps} == {count}
    assert activations.logits is None and activations.seconds > 0
    with torch.no_grad():
        expected = opened.trunk(torch.from_numpy(images))
    for tap in trunk.taps:
        rows = activations.tap(tap.index)
        assert (rows.shape, rows.dtype) == ((count, tap.features), np.float16)
        assert relative_error(rows.astype(np.float32), expected[tap.index].numpy()) < 1e-3


def test_a_second_pass_is_a_look_into_the_cache(trunk: TrunkFile, tmp_path: Path) -> None:
    images, store = noise(20, 32), Store(tmp_path)
    _, first = finished(passing(trunk, images, store))
    steps, again = finished(passing(trunk, images, store))
    assert steps == []
    assert again == first
    steps, other = finished(passing(trunk, images, store, key="other images"))
    assert steps and other.stored.folder != first.stored.folder


def test_a_pass_that_is_abandoned_leaves_nothing(trunk: TrunkFile, tmp_path: Path) -> None:
    images, store = noise(6 * BATCH, 32), Store(tmp_path)
    work = passing(trunk, images, store)
    assert next(work) == (BATCH, 6 * BATCH)
    work.close()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    steps, activations = finished(passing(trunk, images, store))
    assert len(steps) == 6
    assert len(activations.tap(0)) == 6 * BATCH


def test_abandoned_batches_can_be_run_again(trunk: TrunkFile) -> None:
    assert trunk.graph is not None
    for _ in range(5):
        batches = openvino_batches(trunk.graph, noise(6 * BATCH, 32), runner="openvino-f32", threads=1)
        next(batches)
        batches.close()


def test_a_part_of_a_memory_map_is_read(trunk: TrunkFile, tmp_path: Path) -> None:
    images = noise(2 * BATCH, 32)
    np.save(tmp_path / "images.npy", images)
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    _, whole = finished(passing(trunk, images, Store(tmp_path / "a")))
    _, part = finished(passing(trunk, mapped[::2], Store(tmp_path / "b")))
    np.testing.assert_allclose(part.tap(1), whole.tap(1)[::2], atol=1e-3)


def test_torch_and_openvino_give_the_same_rows(trunk: TrunkFile, opened: Opened, tmp_path: Path) -> None:
    images = noise(BATCH + 3, 32)
    _, compiled = finished(passing(trunk, images, Store(tmp_path / "a")))
    steps, plain = finished(
        passing(dataclasses.replace(trunk, runner="torch"), images, Store(tmp_path / "a"))
    )
    assert steps[-1] == (BATCH + 3, BATCH + 3), "another runner is another key"
    for tap in trunk.taps:
        assert (
            relative_error(
                plain.tap(tap.index).astype(np.float32), compiled.tap(tap.index).astype(np.float32)
            )
            < 2e-3
        )


@pytest.mark.parametrize(
    ("factor", "dtype"), [(1.0, np.float16), (100.0, np.float16), (1e5, np.float32), (1e-7, np.float32)]
)
def test_float16_is_kept_only_where_it_holds_the_numbers(factor: float, dtype: type) -> None:
    rows = np.random.default_rng(0).standard_normal((20, 30)).astype(np.float32) * np.float32(factor)
    kept = compact(rows)
    assert kept.dtype == dtype
    assert np.isfinite(kept).all()
    assert relative_error(kept.astype(np.float32), rows) < 1e-3


def test_rows_of_zeros_are_kept_as_float16() -> None:
    assert compact(np.zeros((3, 4), np.float32)).dtype == np.float16
