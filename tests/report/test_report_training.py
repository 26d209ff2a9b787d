"""What the report says about training: seconds spent, frozen depth, learning curves, the plan."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from copy import deepcopy
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from tuned_study import curve, tuned_study, write

from graft.report import curves, depth, page, plan, plots, reading, retrieval, seconds

NB = "\N{NO-BREAK SPACE}"
GOLDEN = Path(__file__).parent.parent / "golden" / "study-v1.json"
ODD: tuple[Any, ...] = (None, "x", -1, 1e308, [None, {}], {"id": []})


def read(folder: Path, study: Any) -> reading.Run:
    return reading.read(write(folder, study))


@pytest.fixture
def run(tmp_path: Path) -> reading.Run:
    return read(tmp_path / "run", tuned_study())


def test_the_work_of_a_tuned_candidate_includes_its_kept_views(run: reading.Run) -> None:
    work = seconds.work_of(run)
    assert work["net/head+tuned:b1"] == pytest.approx(33.5)
    assert work["net/head"] == pytest.approx(0.9)


def test_each_strategy_has_its_best_and_a_line_of_the_best_so_far(run: reading.Run) -> None:
    found = seconds.section(run, "macro_f1")
    assert found is not None
    told = [(row.name, row.count, row.best.value) for row in found["rows"]]
    assert told == [
        ("frozen", 4, pytest.approx(0.9)),
        ("upper stages fine-tuned", 1, 0.93),
        ("from scratch", 1, 0.7),
    ]
    assert f"upper stages fine-tuned 0.930 after 34{NB}s" in found["sentence"]
    assert found["unfinished"] == 1
    (steps,) = re.findall(r'class="line bare frozen">.*?<path d="M([^"]+)"', str(found["svg"]))
    places = [tuple(map(float, pair.split())) for pair in steps.split("L")]
    assert all(x0 == x1 or y0 == y1 for (x0, y0), (x1, y1) in pairwise(places))
    assert [x for x, _ in places] == sorted(x for x, _ in places)
    assert [y for _, y in places] == sorted((y for _, y in places), reverse=True)


def test_the_best_so_far_follows_the_direction_of_the_metric(run: reading.Run) -> None:
    spent = [
        seconds.Spent(run.candidates[0], cost, value, None)
        for cost, value in ((3.0, 0.2), (1.0, 0.4), (2.0, 0.6))
    ]
    assert [one.value for one in seconds.frontier(spent, "log_loss")] == [0.4, 0.2]
    assert [one.value for one in seconds.frontier(spent, "macro_f1")] == [0.4, 0.6]


def test_many_candidates_keep_intervals_only_on_the_lines(tmp_path: Path) -> None:
    study = tuned_study()
    more = [{**deepcopy(study["candidates"][3]), "id": f"more{index}"} for index in range(900)]
    study["candidates"] += more
    found = seconds.section(read(tmp_path / "run", study), "macro_f1")
    assert found is not None
    assert str(found["svg"]).count("<circle") <= seconds.MARKS
    assert str(found["svg"]).count('class="whisker"') < seconds.WHISKERS


def test_depths_are_in_order_with_their_policy_and_what_was_not_tried(run: reading.Run) -> None:
    found = depth.section(run, "macro_f1")
    assert found is not None
    (network,) = found["networks"]
    names = [row.name for row in network.rows]
    assert names == ["frozen, new head", "last stage", "last two stages", "everything"]
    assert network.rows[3].why_not == "the budget does not pay it"
    assert network.rows[1].seconds == pytest.approx(33.5)
    assert found["policy"] == "statistics kept, scale and shift learn"


def test_what_was_measured_on_some_folds_is_held_against_the_frozen_head_there(run: reading.Run) -> None:
    found = depth.section(run, "macro_f1")
    assert found is not None
    _, full, some, _ = found["networks"][0].rows
    assert not full.some and full.difference == pytest.approx(0.03) and full.better == 5
    assert some.some and some.folds == (0, 1)
    assert some.difference == pytest.approx(0.05) and some.better == 2
    assert some.frozen_there == pytest.approx((0.88 + 0.89) / 2)


def test_a_loss_that_falls_is_a_gain(run: reading.Run) -> None:
    """As in every other table and sentence, positive is better."""
    found, loss = depth.section(run, "macro_f1"), depth.section(run, "log_loss")
    assert found is not None and loss is not None
    for row, other in zip(found["networks"][0].rows, loss["networks"][0].rows, strict=True):
        assert row.difference is None or other.difference == pytest.approx(-row.difference)


def test_what_reads_several_depths_is_held_against_a_frozen_reading(tmp_path: Path) -> None:
    """Its own, up to a lower tap, was not measured; the one up to the last tap was."""
    study = tuned_study()
    for row in (*study["candidates"], *study["plan"]):
        row["id"] = row["id"].replace("net/head+tuned", "net/b2+depths+tuned")
    frozen = next(row for row in study["candidates"] if row["id"] == "net/head")
    frozen |= {"id": "net/head+depths", "strategy": "depths"}
    found = depth.section(read(tmp_path / "run", study), "macro_f1")
    assert found is not None
    first, full, *_ = found["networks"][0].rows
    assert first.name == "frozen, new head" and full.difference == pytest.approx(0.03)


def test_different_policies_stand_in_the_table(tmp_path: Path) -> None:
    study = tuned_study()
    study["plan"][1]["batch_norm"] = "reestimate"
    run = read(tmp_path / "run", study)
    found = depth.section(run, "macro_f1")
    assert found is not None and found["policy"] is None
    text = page.render(run.folder)
    assert depth.BATCH_NORM["reestimate"] in text and depth.BATCH_NORM["frozen"] in text


@pytest.mark.parametrize(
    ("cut", "tap", "words"),
    [
        ("", "head", "everything"),
        ("b1", "head", "last stage"),
        ("b0", "head", "last two stages"),
        ("b1", "b2", "last stage"),
        ("b2", "b2", "above b2"),
        ("layer 7", "b2", "above layer 7"),
        ("a", "b2", "last three stages"),
    ],
)
def test_depths_have_names(cut: str, tap: str, words: str) -> None:
    taps = ["a", "b0", "b1", "b2", "head"] if cut == "a" else ["b0", "b1", "b2", "head"]
    assert depth.learned_stages(cut, tap, taps)[1] == words.replace("three", "3")


def test_curves_have_a_line_per_fold_their_mean_and_the_kept_epoch(run: reading.Run) -> None:
    found = curves.section(run.candidates, "macro_f1", chosen="net/head+tuned:b1", rows=60)
    first, second, scratch = found["trained"]
    assert (first.title, first.detail, first.chosen) == ("net", "last stage, read at head", True)
    loss, score = map(str, first.panels)
    for panel, name in ((loss, "log loss"), (score, "macro-F1")):
        assert f"{name} of net over the epochs" in panel
        assert panel.count("line bare thin choice") == panel.count("line bare thin quiet") == 5
        assert panel.count("line bare mean") == 2
        assert panel.count('class="best"') == 4  # epoch 0, of fold 0, has no place on the axis
    assert first.caption == (
        "Kept: epoch 0, 1, 2, 3, 4 of 8 planned (0: the head it started from). Ended by the last epoch."
    )
    assert "5 folds" not in second.caption and "the end of the budget" in scratch.caption


def test_the_mean_ends_where_fewer_than_half_of_the_folds_go_on() -> None:
    folds = [curve(fold, epochs=epochs, best=1) for fold, epochs in enumerate((3, 3, 9))]
    candidate = reading._candidate({"id": "s", "strategy": "scratch", "curves": folds})
    (trained,) = curves.section([candidate], "macro_f1", chosen=None, rows=60)["trained"]
    lengths = [
        path.count("L") + 1
        for path in re.findall(r"mean of 3 folds[^<]*</title><path d=\"([^\"]+)", str(trained.panels[1]))
    ]
    assert lengths == [3, 3]


def test_long_curves_are_thinned_but_keep_their_end() -> None:
    one = reading._candidate(
        {"id": "s", "strategy": "scratch", "curves": [curve(0, epochs=301, best=77, stopped="patience")]}
    )
    (trained,) = curves.section([one], "macro_f1", chosen=None, rows=60)["trained"]
    _, path = re.findall(r'<path d="(M[^"]+L[^"]+)"/>', str(trained.panels[1]))
    assert 100 <= path.count("L") <= curves.MEAN_POINTS
    assert 'class="best"' in trained.panels[1] and "no gain for many epochs" in trained.caption
    assert path.rsplit("L", 1)[1].startswith(f"{curves.WIDTH - plots.RIGHT:.1f}")


@pytest.mark.parametrize("metric", ["macro_f1", "log_loss"])
def test_older_runs_and_a_metric_that_is_the_loss_have_the_accuracy(metric: str) -> None:
    folds = [curve(fold, epochs=5, best=2) for fold in range(2)]
    for epoch in (epoch for fold in folds for epoch in fold["epochs"] if metric == "macro_f1"):
        del epoch["train_metric"], epoch["validation_metric"]
    old = reading._candidate({"id": "s", "strategy": "scratch", "curves": folds})
    (trained,) = curves.section([old], metric, chosen=None, rows=60)["trained"]
    _, accuracy = map(str, trained.panels)
    assert "accuracy of From scratch" in accuracy and "validation accuracy" in accuracy


def test_every_trained_candidate_is_drawn_the_first_twelve_with_their_folds(tmp_path: Path) -> None:
    study = tuned_study()
    runs = [curve(fold, epochs=60, best=1) for fold in range(12)]
    more = [{"id": f"<i>{index}", "strategy": "full", "cut": "", "curves": runs} for index in range(14)]
    study["candidates"] += more
    candidates = read(tmp_path / "run", study).candidates
    found = curves.section(candidates, "macro_f1", chosen=None, rows=60)
    assert (len(found["trained"]), len(found["more"]), found["others"]) == (12, 17 - 12, [])
    folded = str(found["more"][-1].panels[1])
    assert folded.count("line bare mean") == 2 and "thin" not in folded
    text = page.render(tmp_path / "run")
    assert "5 more that were trained" in text and "<i>13" not in text
    assert len(text) < 1_000_000
    assert curves.section(candidates, "macro_f1", chosen=None, rows=16)["others"] == ["<i>13"]


def test_hundreds_of_trained_candidates_leave_the_page_small(tmp_path: Path) -> None:
    study = tuned_study()
    runs = [curve(fold, epochs=60, best=1) for fold in range(5)]
    study["candidates"] += [
        {"id": f"s{i}", "strategy": "full", "cut": "", "curves": runs} for i in range(300)
    ]
    assert len(page.render(write(tmp_path / "run", study))) < page.LIMIT_BYTES


def test_rows_say_from_which_depth_and_on_which_images(tmp_path: Path) -> None:
    study = tuned_study()
    for row in study["candidates"]:
        row["input"] = {"size": 64, "fit": "crop"}
    other = {**deepcopy(study["candidates"][3]), "id": "net/head@squash"}
    other["input"] = {"size": 96, "fit": "squash"}
    study["candidates"] += [other, {**other, "id": "net/head+depths:3+int8", "strategy": "shrunk"}]
    together = {"id": "net/head+depths+quarters+tuned:b1", "strategy": "partial", "cut": "b1"}
    study["candidates"] += [{**other, **together}]
    run = read(tmp_path / "run", study)
    told = {c.id: (c.learns, *c.shown) for c in run.candidates}
    assert told["net/head+tuned:b1"] == ("fine-tuned above b1",)
    assert told["net/head+tuned:b0"] == ("fine-tuned above b0",)
    assert told["net/head+depths+quarters+tuned:b1"][0] == "fine-tuned above b1 and read at all depths there"
    assert told["net/head@squash"] == ("frozen, with a new head", "squashed", "96 px")
    assert told["net/head+depths:3+int8"][0] == "made smaller: depths:3, int8"
    assert told["cnn/scratch"] == ("from scratch",)
    text = page.render(run.folder)
    for words in ("fine-tuned above b0", "fine-tuned above b1", "squashed", "96 px"):
        assert f'<span class="badge quiet">{words}</span>' in text


def test_features_that_tuning_left_alone_are_named(tmp_path: Path) -> None:
    study = tuned_study()
    names = ["net/head", "net/head+tuned:b1", "net/head+tuned:b0"]
    study["retrieval"] = {
        "classes": ["a"],
        "rows": [{"id": name, "mean": 0.4, "by_class": [0.4]} for name in names],
    }
    study["candidates"][5]["curves"][0]["best_epoch"] = 2
    found = retrieval.section(read(tmp_path / "run", study), rows=9)
    assert found is not None and found["unchanged"] == ["net/head+tuned:b1"]
    assert "Tuning kept the frozen network on this fold" in page.render(tmp_path / "run")


def test_the_plan_compares_what_ran_and_names_what_did_not(run: reading.Run) -> None:
    found = plan.section(run)
    assert found is not None
    assert [row.ratio for row in found["rows"]] == [pytest.approx(1.1), pytest.approx(0.8)]
    assert found["sentence"].endswith(f"45{NB}s; it took 45{NB}s, 1.00 times as long.")
    assert found["left"] == [("the budget does not pay it", [("net/head", "everything")])]


def test_the_page_tells_it_all_and_escapes_names(tmp_path: Path) -> None:
    hostile = json.loads(json.dumps(tuned_study()).replace('"net', "\"net<b>'").replace("b1", "b<u>"))
    text = page.render(write(tmp_path / "run", hostile))
    for words in (
        "per second spent",
        "Accuracy by frozen depth",
        "Learning curves",
        "The plan of fine-tuning",
    ):
        assert words in text
    assert "2 of 5 folds" in text and "the budget does not pay it" in text
    assert "net<b>" not in text and "b<u>" not in text


def test_older_runs_have_a_page_without_these_sections(tmp_path: Path) -> None:
    text = page.render(write(tmp_path / "run", json.loads(GOLDEN.read_bytes())))
    assert 'id="tuning"' not in text and 'id="plan"' not in text
    assert "Nothing was trained epoch by epoch" in text


def _places(value: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    keys: list[Any] = list(value) if isinstance(value, dict) else list(range(len(value)))
    for key in keys:
        yield (*above, key)
        if isinstance(value[key], (dict, list)):
            yield from _places(value[key], (*above, key))


def test_nonsense_anywhere_costs_a_number_not_the_page(tmp_path: Path) -> None:
    whole = tuned_study()
    whole["candidates"] = whole["candidates"][3:6]
    whole["plan"] = whole["plan"][1:]
    for row in whole["candidates"][1:]:
        row["curves"] = [{**one, "epochs": one["epochs"][:1]} for one in row["curves"][:1]]
    for place in _places(whole):
        for odd in ODD:
            study = deepcopy(whole)
            inner = study
            for key in place[:-1]:
                inner = inner[key]
            inner[place[-1]] = odd
            made = read(tmp_path / "run", study)
            seconds.section(made, "macro_f1")
            depth.section(made, "macro_f1")
            curves.section(made.candidates, "macro_f1", chosen=None, rows=60)
            plan.section(made)
