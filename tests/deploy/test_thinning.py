"""Inner channels taken out: for nothing where they repeat each other, and the least wanted first."""

from __future__ import annotations

import numpy as np
import pytest
from made_graphs import OUTPUT, images, mobile
from onnx import helper

from graft.deploy.quantise import outputs_of, prepared
from graft.deploy.reading import READING, depths, maps_of, read_together, waists, weights_of
from graft.deploy.thinning import blocks_of, removal_order, thinned


def test_channels_that_repeat_another_cost_nothing() -> None:
    model = prepared(mobile(doubled=True), images(4))
    whole = weights_of(model)
    made = thinned(model, images(), weights=whole - 16 * (16 + 9 + 16))
    fresh = images(6, seed=5)
    wanted, found = outputs_of(model, fresh, OUTPUT), outputs_of(made, fresh, OUTPUT)
    assert np.linalg.norm(found - wanted) < 0.02 * np.linalg.norm(wanted)
    assert weights_of(made) < 0.75 * whole


def test_only_rows_without_a_branch_are_blocks() -> None:
    model = prepared(mobile(), images(4))
    found = blocks_of(model)
    assert [block.between is not None for block in found] == [True]
    assert len({node.name for node in model.graph.node} & {found[0].makes, found[0].mixes}) == 2


def test_nothing_to_take_out_changes_nothing() -> None:
    model = prepared(mobile(), images(4))
    made = thinned(model, images(), weights=10 * weights_of(model))
    pixels = images(4, seed=2)
    wanted = outputs_of(model, pixels, OUTPUT)
    assert np.linalg.norm(outputs_of(made, pixels, OUTPUT) - wanted) < 1e-3 * np.linalg.norm(wanted)


def test_the_input_that_says_nothing_new_goes_first_and_errors_grow() -> None:
    random = np.random.default_rng(0)
    rows = random.normal(0, 1, (500, 5))
    rows[:, 3] = rows[:, 0]
    order, errors = removal_order(random.normal(1, 0.1, (4, 5)), rows)
    assert order[0] in (0, 3) and sorted(order) == [0, 1, 2, 3, 4]
    assert (np.diff(errors) >= -1e-9).all() and errors[0] < 0.02 and errors[-1] > 0.9


def test_waists_are_where_one_tensor_carries_everything() -> None:
    model = prepared(mobile(), images(4))
    found = waists(model)
    assert (
        len(found) == 3
    )  # after the stem, where the shortcut ends, and at the end; none beside the shortcut
    assert found[0].weights < found[1].weights < found[2].weights <= weights_of(model)


@pytest.mark.parametrize(("axes", "count"), [([2, 3], 1), ([-2, -1], 1), ([1], 0), ([1, 2], 0)])
def test_tokens_and_channels_last_are_no_maps(axes: list[int], count: int) -> None:
    """The mean over the places of maps ends them; one over tokens, or over the first two sides, does not."""
    model = mobile()
    mean = next(node for node in model.graph.node if node.name == "mean")
    del mean.attribute[:]
    mean.attribute.extend([helper.make_attribute("axes", axes), helper.make_attribute("keepdims", 0)])
    assert len(waists(model)) == 2 + count


def test_reading_together_is_average_and_maximum_of_length_one() -> None:
    model = prepared(mobile(), images(4))
    found = waists(model)
    maps = maps_of(model, [waist.tensor for waist in reversed(found)])
    rows = outputs_of(read_together(maps), images(5), READING)
    assert rows.shape == (5, 2 * (24 + 16 + 16))
    top = outputs_of(maps, images(5), "maps0")
    average = top.mean(axis=(2, 3))
    np.testing.assert_allclose(
        rows[:, :24], average / np.linalg.norm(average, axis=1, keepdims=True), rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(np.linalg.norm(rows[:, 24:48], axis=1), 1, rtol=1e-4)


@pytest.mark.parametrize("side", range(4, 13, 2))
def test_quarters_are_averages_of_half_a_side_each_way(side: int) -> None:
    """Maps of 2 to 6 places a side; of an odd side both halves have the middle."""
    model = prepared(mobile(size=side), images(4, size=side))
    maps = maps_of(model, [waists(model)[-1].tensor])
    top = outputs_of(maps, images(5, size=side), "maps0")
    high = top.shape[2]
    assert high == side // 2
    ends = (slice(0, -(-high // 2)), slice(high // 2, high))
    parts = [top[:, :, down, across].mean(axis=(2, 3)) for down in ends for across in ends]
    wanted = np.stack(parts, axis=2).reshape(5, -1)
    rows = outputs_of(read_together(maps, quarters=[0]), images(5, size=side), READING)
    channels = top.shape[1]
    assert rows.shape == (5, 6 * channels)
    wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
    np.testing.assert_allclose(rows[:, 2 * channels :], wanted, rtol=1e-4, atol=1e-5)
    without = outputs_of(read_together(maps), images(5, size=side), READING)
    np.testing.assert_array_equal(rows[:, : 2 * channels], without)


def test_depths_begin_at_the_deepest_and_stay_in_range() -> None:
    assert depths(20, 19) == [19, 16, 13, 10]
    assert depths(3, 2) == [2] and depths(5, 99) == [4, 1]
