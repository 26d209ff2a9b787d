"""The report's section on smaller models: read tolerantly, drawn, escaped, and absent where nothing was measured."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from made_run import write_run

from graft.report import reading, shrink

STEP = {
    "id": "a/b+int8",
    "kind": "8 bits",
    "score": 0.9,
    "difference": -0.004,
    "interval": [-0.02, 0.01],
    "bytes": 800_000,
    "latency_ms": 1.5,
    "accepted": True,
    "reason": "within the tolerance, and cheaper",
}
TOLD: dict[str, Any] = {
    "metric": "macro_f1",
    "tolerance": 0.01,
    "reference": {"id": "a/b", "score": 0.904},
    "steps": [STEP, {**STEP, "id": "<script>", "accepted": False, "reason": "it loses 3 points"}],
    "curve": [
        {"id": "a/b", "score": 0.904, "bytes": 3e6, "latency_ms": 4.0, "kind": "frozen"},
        {"id": "a/b+int8", "score": 0.9, "bytes": 8e5, "latency_ms": 1.5, "kind": "8 bits"},
        {"id": "small_cnn", "score": 0.6, "bytes": 9e5, "latency_ms": 0.4, "kind": "scratch"},
    ],
    "sentence": "The smallest is a/b+int8.",
}


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> reading.Run:
    folder = tmp_path_factory.mktemp("shrunk") / "run"
    return reading.read(write_run(folder, classes=2, images=20, backbones=2, taps=2, photos=False))


def told(record: reading.Run, facts: Any) -> dict[str, Any] | None:
    return shrink.of(replace(record, study={**record.study, "shrink": facts}))


def test_steps_and_both_plots(record: reading.Run) -> None:
    found = told(record, TOLD)
    assert found is not None
    assert [step.accepted for step in found["steps"]] == [True, False]
    assert found["against_size"].count("<title>") == 3 and "<svg" in found["against_latency"]
    assert "<script>" not in found["against_size"]


@pytest.mark.parametrize("facts", [None, {}, {"steps": []}, {"steps": "no"}, [], 3])
def test_nothing_measured_is_no_section(record: reading.Run, facts: Any) -> None:
    assert told(record, facts) is None


def test_odd_numbers_are_left_out(record: reading.Run) -> None:
    odd = {**TOLD, "curve": [{"id": "x", "score": None}, {"id": "y", "bytes": -1, "score": 0.5}, 7]}
    found = told(record, {**odd, "steps": [{"id": 3}]})
    assert found is not None and found["against_size"] == "" and found["steps"][0].score is None


def test_the_page_holds_the_section(record: reading.Run, tmp_path: Path) -> None:
    import json

    from graft.report.page import render

    facts = {**record.study, "shrink": TOLD}
    (record.folder / "study.json").write_text(json.dumps(facts), encoding="utf-8")
    page = render(record.folder)
    assert (
        'id="shrink"' in page
        and "refused: it loses 3 points" in page
        and "<script>\n" not in page.split("h-shrink")[1][:3000]
    )
