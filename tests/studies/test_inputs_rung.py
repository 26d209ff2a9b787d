"""What colour and edges are worth is measured where it is cheap, as candidates like any other, and survives a kill."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from made_sets import weights_folder
from PIL import Image
from test_study import facts_without_times

import graft
from graft.deploy.bundle import Bundle
from graft.judging.uncertainty import Difference
from graft.report import page
from graft.studies.inputs import worth_of_colour
from graft.studies.tuning import plan as plans


def discs(folder: Path, *, grey: bool = False) -> Path:
    """Two classes of one shape: only their colour (as grey images, their brightness) tells them apart."""
    for kind, colour in enumerate(((200, 60, 60), (60, 60, 200)) if not grey else ((90,) * 3, (200,) * 3)):
        (folder / f"kind{kind}").mkdir(parents=True)
        for index in range(16):
            random = np.random.default_rng([kind, index])
            y, x = np.mgrid[:48, :48] - 24 - random.integers(-8, 9, 2)[:, None, None]
            pixels = random.normal(120, 20, (48, 48, 1)).repeat(3, axis=2)
            pixels[np.hypot(y, x) < 12] = colour
            image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
            (image.convert("L") if grey else image).save(folder / f"kind{kind}" / f"{index:02}.png")
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return weights_folder(tmp_path_factory.mktemp("weights"), ("test_resnet",))


@pytest.fixture(autouse=True)
def nothing_tuned(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other inputs alone."""
    monkeypatch.setattr(plans, "LEVELS", ())


def measured(
    photos: Path,
    out: Path,
    weights: Path,
    *,
    budget: str = "10m",
    backbones: tuple[str, ...] = ("test_resnet.made",),
) -> graft.StudyResult:
    """A study without training from scratch, with squashed pictures."""
    return graft.study(
        photos,
        out=out,
        weights=weights,
        only="finetuned",
        folds=3,
        fit="squash",
        backbones=backbones,
        budget=budget,
    )


@pytest.mark.slow
def test_a_colour_study_measures_grey_and_edges_and_goes_on_after_a_kill(
    tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = discs(tmp_path / "photos")
    whole = measured(photos, tmp_path / "whole", weights)
    told = whole.facts["inputs"]
    assert [row["input"] for row in told["rows"]] == ["rgb", "gray", "edges", "rgb+edges"]
    assert told["rows"][0]["difference"] is None
    assert told["sentence"].startswith(("Colour is worth", "Whether colour is worth"))
    assert told["left_out"] == ""
    assert told["sentence"] in whole.facts["notices"]
    by_id = {row["id"]: row for row in whole.facts["candidates"]}
    for row in told["rows"]:
        candidate = by_id[row["id"]]
        assert candidate["input"]["kind"] == row["input"]
        assert (
            candidate["complete"] and candidate["cost"]["bytes"] > 0 and candidate["cost"]["latency_ms"] > 0
        )
        assert candidate["metrics"]["macro_f1"] == pytest.approx(row["macro_f1"])
    assert {row["input"]["channels"] for row in by_id.values() if row["id"].endswith("@edges")} == {1}
    page_text = page.render(whole.run)
    assert "Colour, grey, edges" in page_text and page_text.count('class="strip"') == 3
    bundle = Bundle(whole.bundle())
    assert bundle.facts["input"] == by_id[whole.choice["id"]]["input"]["kind"]

    lines = (whole.run / "journal.jsonl").read_text().splitlines(keepends=True)
    cut = next(i for i, line in enumerate(lines) if json.loads(line)["kind"] == "inputs_plan") + 4
    killed = tmp_path / "killed"
    killed.mkdir()
    for name in ("run.json", "check.csv"):
        (killed / name).write_bytes((whole.run / name).read_bytes())
    (killed / "trials").mkdir()
    for array in (whole.run / "trials").glob("*.npy"):
        (killed / "trials" / array.name).write_bytes(array.read_bytes())
    (killed / "journal.jsonl").write_text("".join(lines[:cut]) + '{"kind": "fo')
    again = measured(photos, killed, weights)
    assert facts_without_times(again.facts) == facts_without_times(whole.facts)


@pytest.mark.slow
def test_a_grey_study_measures_edges_alone_and_beside(tmp_path: Path, weights: Path) -> None:
    result = measured(discs(tmp_path / "photos", grey=True), tmp_path / "run", weights)
    told = result.facts["inputs"]
    assert [row["input"] for row in told["rows"]] == ["gray", "edges", "gray+edges"]
    assert "olour" not in told["sentence"]
    assert "dges alone" in told["sentence"] and "edges beside the image" in told["sentence"]


@pytest.mark.slow
def test_where_it_is_not_cheap_it_is_left_out_and_told(tmp_path: Path, weights: Path) -> None:
    result = measured(discs(tmp_path / "photos", grey=True), tmp_path / "run", weights, budget="25s")
    told = result.facts["inputs"]
    assert [row["input"] for row in told["rows"]] == ["gray"]
    assert "edges and gray+edges were not measured" in told["left_out"]
    assert told["left_out"] in result.facts["notices"]
    assert told["left_out"] in page.render(result.run)
    assert not list((result.run / "trials").glob("*.jpg"))


def gap(estimate: float, low: float, high: float) -> Difference:
    return Difference(estimate, low, high)


def test_the_sentence_says_what_colour_is_worth() -> None:
    sentence = worth_of_colour(
        {
            "gray": gap(-0.043, -0.067, -0.019),
            "edges": gap(-0.1, -0.2, -0.05),
            "rgb+edges": gap(0.0, -0.01, 0.01),
        },
        metric="macro_f1",
        backbone="net",
    )
    assert sentence == (
        "Colour is worth 4.3 points of macro-F1 (1.9 to 6.7); edges alone cost 10.0 points of macro-F1 (5.0 to 20.0); "
        "edges beside the image cannot be told from the image as it is: 0.0 points of macro-F1 (-1.0 to 1.0); with net "
        "frozen, the best tap of each, 95 % intervals."
    )


@pytest.mark.parametrize(
    ("differences", "start"),
    [
        ({"gray": gap(0.02, 0.01, 0.03)}, "Colour does harm: it is worth -0.020 log loss (-0.030 to -0.010)"),
        ({"gray": gap(0.0, -0.01, 0.02)}, "Whether colour is worth anything cannot be told: 0.000 log loss"),
        ({"edges": gap(0.02, 0.01, 0.03)}, "Edges alone gain 0.020 log loss (0.010 to 0.030)"),
        ({"gray+edges": gap(-0.02, -0.03, -0.01)}, "Edges beside the image cost 0.020 log loss"),
    ],
)
def test_other_ends_of_the_sentence(differences: dict[str, Difference], start: str) -> None:
    assert worth_of_colour(differences, metric="log_loss", backbone="net").startswith(start)
    assert worth_of_colour({}, metric="log_loss", backbone="net") == ""
