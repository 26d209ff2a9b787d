"""The section on colour, grey and edges shows what the study found, and nothing of what it cannot read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from graft.report import inputs, page, reading

JPEG = b"\xff\xd8\xff" + bytes(300)


def candidate(name: str, kind: str) -> dict[str, Any]:
    return {
        "id": name,
        "backbone": "net",
        "strategy": "frozen",
        "tap": "b3",
        "tap_index": 3,
        "taps": 4,
        "input": {"size": 64, "channels": 3, "fit": "crop", "kind": kind},
        "metrics": {"macro_f1": 0.9},
        "interval": {"macro_f1": [0.85, 0.95]},
        "cost": {"bytes": 1_700_000, "latency_ms": 7.8},
        "complete": True,
    }


def run_with(folder: Path, told: Any) -> Path:
    names = {"net/b3": "rgb", "net/b3@gray": "gray"}
    study = {
        "choice": {"id": "net/b3@gray"},
        "candidates": [candidate(name, kind) for name, kind in names.items()],
        "inputs": told,
    }
    folder.mkdir(exist_ok=True)
    (folder / "study.json").write_text(json.dumps(study))
    (folder / "trials").mkdir(exist_ok=True)
    return folder


def told(**changed: Any) -> dict[str, Any]:
    rows = [
        {
            "input": "rgb",
            "id": "net/b3",
            "tap": "b3",
            "macro_f1": 0.92,
            "interval": [0.1, 0.2],
            "difference": None,
        },
        {
            "input": "gray",
            "id": "net/b3@gray",
            "tap": "<b>3",
            "macro_f1": 0.9,
            "difference": -0.02,
            "difference_interval": [-0.05, 0.01],
        },
    ]
    facts = {
        "backbone": "net<i>",
        "metric": "macro_f1",
        "rows": rows,
        "sentence": "Colour & grey.",
        "left_out": "",
    }
    return {**facts, **changed}


def test_the_table_has_costs_and_intervals_of_the_candidates(tmp_path: Path) -> None:
    found = inputs.of(reading.read(run_with(tmp_path / "run", told())))
    assert found is not None
    colour, grey = found["rows"]
    assert (colour.name, grey.name) == ("colour", "grey")
    assert colour.interval == (0.85, 0.95)
    assert (grey.bytes, grey.latency_ms) == (1_700_000, 7.8)
    assert grey.difference_interval == (-0.05, 0.01)
    assert found["strips"] == []


def test_the_page_shows_sentence_table_and_strips_and_escapes_names(tmp_path: Path) -> None:
    run = run_with(tmp_path / "run", told())
    (run / "trials" / "seen-gray.jpg").write_bytes(JPEG)
    (run / "trials" / "seen-edges.jpg").write_bytes(JPEG + bytes(100_000))
    (run / "trials" / "seen-rgb.jpg").write_bytes(b"<html>")
    text = page.render(run)
    assert "Colour &amp; grey." in text
    assert "net&lt;i&gt;" in text and "&lt;b&gt;3" in text
    assert text.count('class="strip"') == 1
    assert "shown grey" in text
    assert '<span class="badge quiet">gray</span>' in text


def test_what_was_left_out_is_told_without_a_table(tmp_path: Path) -> None:
    run = run_with(tmp_path / "run", told(rows=told()["rows"][:1], sentence="", left_out="Too dear."))
    text = page.render(run)
    assert "Too dear." in text
    assert "What each input is worth" not in text


def test_without_other_inputs_or_with_nonsense_there_is_no_section(tmp_path: Path) -> None:
    for nonsense in (None, [], 3, {}, {"rows": 5}, {"rows": [1, None]}, told(rows=told()["rows"][:1])):
        run = run_with(tmp_path / "run", nonsense)
        assert inputs.of(reading.read(run)) is None
        assert 'id="inputs"' not in page.render(run)
    odd = told(rows=[{"input": 5, "macro_f1": "x"}, {"difference": "y", "difference_interval": [1]}])
    assert "Colour, grey, edges" in page.render(run_with(tmp_path / "run", odd))
