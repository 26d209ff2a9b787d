"""What the user asks for is understood, or refused with the option, the value and what is valid."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graft.compute import DEVICES
from graft.errors import SettingsError
from graft.judging.metrics import METRICS
from graft.quantities import LARGEST, milliseconds, seconds, size_bytes
from graft.studies.settings import resolved

PARSERS = {seconds: "--budget", size_bytes: "--max-size", milliseconds: "--max-latency"}


def test_defaults() -> None:
    made = resolved("photos")
    assert (made.budget_seconds, made.backbones, made.folds, made.metric) == (600.0, ("auto",), 5, "macro_f1")
    assert made.max_bytes is None and made.max_latency_ms is None and made.only is None


def test_everything_at_once() -> None:
    made = resolved(
        "photos",
        out="runs/x",
        budget="90s",
        weights="w",
        backbones="a, b,,a",
        max_size="5MB",
        max_latency="10ms",
        only="frozen",
    )
    assert (made.out, made.weights, made.backbones) == (Path("runs/x"), Path("w"), ("a", "b"))
    assert (made.budget_seconds, made.max_bytes, made.max_latency_ms) == (90.0, 5_000_000, 10.0)


@pytest.mark.parametrize(
    ("option", "value", "told"),
    [
        ("metric", "f1", list(METRICS)),
        ("metric", "", list(METRICS)),
        ("only", "everything", ["frozen", "finetuned", "scratch"]),
        ("only", "", ["frozen", "finetuned", "scratch"]),
        ("fit", "stretch", ["auto", "crop", "squash", "pad"]),
        ("device", "tpu", list(DEVICES)),
        ("folds", 1, ["2", "20"]),
        ("folds", 21, ["2", "20"]),
        ("folds", -3, ["2", "20"]),
        ("folds", "2.5", ["whole number from 2 to 20"]),
        ("folds", "many", ["whole number from 2 to 20"]),
        ("seed", -1, ["0"]),
        ("seed", "1.5", ["whole number from 0 to 2147483647"]),
        ("budget", "soon", ["30s", "5m", "2h"]),
        ("budget", "5 weeks", ["30s", "5m", "2h"]),
        ("budget", "0", ["30s", "5m", "2h"]),
        ("budget", "-5m", ["30s", "5m", "2h"]),
        ("budget", math.inf, ["30s", "5m", "2h"]),
        ("budget", math.nan, ["30s", "5m", "2h"]),
        ("budget", "", ["30s", "5m", "2h"]),
        ("max_size", "5 apples", ["500kB", "5MB"]),
        ("max_size", "", ["500kB", "5MB"]),
        ("max_size", 0, ["500kB", "5MB"]),
        ("max_latency", "fast", ["3ms", "0.1s"]),
        ("max_latency", "1h", ["3ms", "0.1s"]),
        ("max_latency", 0.0, ["3ms", "0.1s"]),
        ("backbones", "auto,resnet18", ["auto", "names", "graft models"]),
    ],
)
def test_every_bad_value_gets_a_sentence_that_names_valid_ones(
    option: str, value: Any, told: list[str]
) -> None:
    with pytest.raises(SettingsError) as caught:
        resolved("photos", **{option: value})
    sentence = str(caught.value)
    assert sentence.startswith(f"--{option.replace('_', '-')} {value}") and sentence.endswith(".")
    assert all(word in sentence for word in told), sentence


def test_backbones_in_every_form() -> None:
    assert resolved("p").backbones == ("auto",)
    for none in ("", ",", " , ", ()):
        with pytest.raises(SettingsError, match="--backbones: give auto, or names"):
            resolved("p", backbones=none)
    assert resolved("p", backbones="a b\nc").backbones == ("a", "b", "c")
    assert resolved("p", backbones=("a ", "", "b")).backbones == ("a", "b")
    assert resolved("p", backbones=["a"]).backbones == ("a",)


def test_the_run_folder_is_called_after_the_source(tmp_path: Path) -> None:
    (tmp_path / "leaves.v2").mkdir()
    (tmp_path / "leaves.csv").write_text("")
    assert resolved(tmp_path / "leaves.v2").out == Path("runs/leaves.v2")
    assert resolved(tmp_path / "leaves.csv").out == Path("runs/leaves")
    assert resolved("/").out == Path("runs/study")


@pytest.mark.parametrize(
    ("parse", "text", "value"),
    [
        (seconds, "90", 90.0),
        (seconds, 90, 90.0),
        (seconds, " 1.5 H ", 5400.0),
        (seconds, "5m", 300.0),
        (seconds, ".5m", 30.0),
        (size_bytes, "500kB", 500_000),
        (size_bytes, "2MiB", 2 * 2**20),
        (size_bytes, "1.", 1),
        (size_bytes, "0.2", 1),
        (milliseconds, "500us", 0.5),
        (milliseconds, 3, 3.0),
        (milliseconds, "0.1s", 100.0),
    ],
)
def test_quantities(parse: Any, text: Any, value: float) -> None:
    assert parse(text) == pytest.approx(value)


@given(
    st.sampled_from(list(PARSERS)),
    st.text()
    | st.floats()
    | st.integers()
    | st.from_regex(r"\s*-?\d*\.?\d*\s?[a-zA-Z]{0,3}", fullmatch=True),
)
def test_any_text_is_a_positive_quantity_or_a_sentence(parse: Any, text: Any) -> None:
    given_ = text if parse is not size_bytes or not isinstance(text, float) else str(text)
    try:
        value = parse(given_)
    except SettingsError as error:
        assert str(error).startswith(f"{PARSERS[parse]} {text}: give ")
    else:
        assert 0 < value < LARGEST


@given(
    st.integers(1, 10**6), st.sampled_from(["b", "kB", "MB", "KiB", "MiB"]), st.sampled_from(["", " ", "  "])
)
def test_sizes_are_read_exactly(number: int, unit: str, gap: str) -> None:
    factor = {"b": 1, "kB": 10**3, "MB": 10**6, "KiB": 2**10, "MiB": 2**20}[unit]
    assert size_bytes(f"{number}{gap}{unit}") == number * factor
    assert size_bytes(f"{number}{gap}{unit.upper()}") == number * factor


@given(st.floats(0.001, 1e6), st.sampled_from([("s", 1), ("m", 60), ("h", 3600)]))
def test_durations_are_read_exactly(number: float, unit: tuple[str, int]) -> None:
    assert seconds(f"{number:f}{unit[0]}") == pytest.approx(float(f"{number:f}") * unit[1])
