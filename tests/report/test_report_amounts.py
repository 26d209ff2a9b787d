"""The section on the number of images: rows and plot of what was measured, and nothing where nothing was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from made_run import write_run

from graft.report import page, reading
from graft.report.amounts import section

ROWS = [
    {
        "images": images,
        "share": share,
        "strategy": strategy,
        "metric": value,
        "interval": [value - 0.05, value + 0.04],
        "folds": 2,
    }
    for strategy, values in (("transfer", (0.9, 0.93, 0.95)), ("scratch", (0.5, 0.6, 0.7)))
    for (images, share), value in zip(((80, 0.25), (160, 0.5), (320, 1.0)), values, strict=True)
]
SENTENCE = "Transfer reaches with <80> images what training from scratch reaches with 320."


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("amounts") / "run"
    return write_run(folder, classes=3, images=60, backbones=2, taps=2, photos=False)


def told(run: Path, amounts: Any) -> Path:
    study = json.loads((run / "study.json").read_text(encoding="utf-8"))
    study["amounts"] = amounts
    (run / "study.json").write_text(json.dumps(study), encoding="utf-8")
    return run


def test_the_page_shows_both_curves_and_every_row(run: Path) -> None:
    html = page.render(told(run, {"rows": ROWS, "sentence": SENTENCE, "measure": "macro_f1"}))
    part = html[html.index('id="amounts"') : html.index('id="confusion"')]
    assert html.index('id="scratch"') < html.index('id="amounts"')
    assert "&lt;80&gt;" in part and "<80>" not in part
    assert part.count('<g class="line ') == 2 and 'class="line quiet"' in part
    assert "of 2\N{NO-BREAK SPACE}folds" in part
    for row in ROWS:
        assert f"{row['metric']:.3f}" in part
    assert 'href="#amounts"' in html


@pytest.mark.parametrize(
    "amounts", [None, {}, [], {"rows": [], "sentence": None}, {"rows": [{"images": "many"}]}]
)
def test_older_and_broken_runs_have_no_section(run: Path, amounts: Any) -> None:
    record = reading.read(told(run, amounts))
    found = section(record, "macro_f1")
    assert (found["sentence"], found["rows"], str(found["svg"])) == (None, [], "")


def test_one_strategy_and_one_amount_are_no_plot(run: Path) -> None:
    found = section(reading.read(told(run, {"rows": ROWS[:1], "sentence": "x"})), "macro_f1")
    assert str(found["svg"]) == "" and found["rows"][0].name == "transfer, frozen"
    assert found["legend"] == "Solid: transfer, frozen."
    both = section(reading.read(told(run, {"rows": ROWS, "sentence": "x"})), "macro_f1")
    assert both["legend"].endswith("Dashed: the small CNN from scratch.")
