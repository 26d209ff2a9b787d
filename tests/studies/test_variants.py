"""The graphs of variants: what is read of them, in float32 and in 8 bits."""

from __future__ import annotations

import numpy as np
from deploy.made_graphs import images, mobile

from graft.deploy.quantise import outputs_of, prepared
from graft.deploy.reading import READING
from graft.studies.shrinking.variants import Variant, small_graph

AVERAGES, QUARTERS = 2 * 24, 4 * 24


def test_quarters_are_read_in_8_bits_too() -> None:
    model, fresh = prepared(mobile(), images(4)), images(8, seed=5)
    whole, weights = small_graph(model, Variant(deepest=2, quarters=True), images())
    small, kept = small_graph(model, Variant(deepest=2, quarters=True, precision="int8"), images())
    wanted, found = outputs_of(whole, fresh, READING), outputs_of(small, fresh, READING)
    assert wanted.shape == found.shape == (8, AVERAGES + QUARTERS) and kept == weights
    parts = slice(AVERAGES, None)
    error = np.linalg.norm(found[:, parts] - wanted[:, parts]) / np.linalg.norm(wanted[:, parts])
    assert 0 < error < 0.1
    assert small.ByteSize() < whole.ByteSize()


def test_without_quarters_the_rest_is_the_same() -> None:
    model, fresh = prepared(mobile(), images(4)), images(4, seed=5)
    with_them, without = (
        outputs_of(small_graph(model, Variant(deepest=2, quarters=quarters), images())[0], fresh, READING)
        for quarters in (True, False)
    )
    np.testing.assert_allclose(with_them[:, :AVERAGES], without, rtol=1e-5, atol=1e-6)
