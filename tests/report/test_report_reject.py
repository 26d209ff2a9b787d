"""The section about what the model does not know: shown where it was measured, absent where it was not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from graft.report.page import render


def test_it_shows_the_curve_and_is_absent_without_one(make_run: Callable[..., Path]) -> None:
    run = make_run(photos=False)
    assert 'id="reject"' not in render(run)
    facts = json.loads((run / "study.json").read_text(encoding="utf-8"))
    facts["choice"]["reject"] = {
        "sentence": "Rejecting the 5 % <b>strangest</b> helps.",
        "origin": "out-of-fold",
        "curve": [
            {"coverage": 1.0, "accuracy": 0.91},
            {"coverage": 0.5, "accuracy": 0.987},
            {"coverage": None},
        ],
    }
    (run / "study.json").write_text(json.dumps(facts), encoding="utf-8")
    page = render(run)
    section = page[page.index('id="reject"') :].split("</section>")[0]
    assert "&lt;b&gt;strangest" in section and "<svg" in section
    assert "98.7" in section or "0.987" in section
    assert '<a href="#reject">' in page
