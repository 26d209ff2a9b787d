"""The page tells how often the locked test was opened: once as promised, or more often where a study went on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from graft.report.page import render

GOLDEN = Path(__file__).parents[1] / "golden" / "study-v1.json"


@pytest.mark.parametrize("opened", [None, 1, 2])
def test_the_page_says_how_often_the_test_was_opened(opened: int | None, tmp_path: Path) -> None:
    facts = json.loads(GOLDEN.read_text(encoding="utf-8"))
    facts["choice"]["headline"]["kind"] = "test"
    facts["dataset"]["test"] = 40
    measured = {
        "metrics": {"macro_f1": 0.9},
        "interval": {"macro_f1": [0.8, 0.95]},
        "per_class": [],
        "confusion": [],
    }
    facts["choice"]["test"] = {"images": 40, **measured} | ({} if opened is None else {"opened": opened})
    (tmp_path / "study.json").write_text(json.dumps(facts), encoding="utf-8")
    page = render(tmp_path)
    assert ("opened once, for this candidate only" in page) == (opened != 2)
    assert ("which were opened 2 times" in page) == (opened == 2)
