"""The parts of the page: wording, plots, the heat-map, thumbnails, examples, reading."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image

from graft.report import examples, figures, heatmap, plots, position, reading, sketches, thumbnails, wording

NB = "\N{NO-BREAK SPACE}"


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (wording.score(0.95349), "0.953"),
        (wording.score(None), "–"),
        (wording.signed(-0.0104), "−0.010"),
        (wording.signed(0.2), "+0.200"),
        (wording.signed(-0.0001), "0.000"),
        (wording.span((0.94, 0.9631)), "0.940 to 0.963"),
        (wording.span((-0.02, 0.0), sign=True), "−0.020 to 0.000"),
        (wording.points(-0.21), f"−0.2{NB}points"),
        (wording.count(1344), "1,344"),
        (wording.size(8_912_345), f"8.9{NB}MB"),
        (wording.size(537e6), f"537{NB}MB"),
        (wording.size(999_999), f"1.0{NB}MB"),
        (wording.size(640_000), f"640{NB}kB"),
        (wording.size(12), f"12{NB}bytes"),
        (wording.size(0), f"0{NB}bytes"),
        (wording.quantity(2_223_872), f"2.2{NB}M"),
        (wording.quantity(310_000), f"310{NB}k"),
        (wording.quantity(7), "7"),
        (wording.milliseconds(4.1234), f"4.1{NB}ms"),
        (wording.milliseconds(0.4218), f"0.42{NB}ms"),
        (wording.milliseconds(9.96), f"10{NB}ms"),
        (wording.milliseconds(1234.4), f"1,234{NB}ms"),
        (wording.seconds(12.3), f"12{NB}s"),
        (wording.seconds(132.3), f"2{NB}min 12{NB}s"),
        (wording.seconds(7500), f"2{NB}h 5{NB}min"),
        (wording.plural(1, "image"), f"1{NB}image"),
        (wording.plural(2, "photo is", "photos are"), f"2{NB}photos are"),
        (wording.shortened("abcdefghij", 7), "abc…hij"),
        (wording.shortened("abc", 3), "abc"),
    ],
)
def test_numbers_have_sensible_digits(shown: str, expected: str) -> None:
    assert shown == expected


@given(value=st.one_of(st.floats(), st.integers(), st.none(), st.text(), st.booleans()))
def test_a_number_is_finite_or_none(value: object) -> None:
    found = wording.number(value)
    assert found is None or np.isfinite(found)
    if isinstance(value, float) and np.isfinite(value):
        assert found == value
    if isinstance(value, (bool, str)):
        assert found is None


@given(name=st.text(max_size=50), length=st.integers(1, 60))
def test_a_shortened_name_is_short_and_keeps_its_ends(name: str, length: int) -> None:
    shown = wording.shortened(name, length)
    assert len(shown) <= length
    assert shown == name or (
        len(name) > length and shown.count("…") >= 1 and name.startswith(shown.split("…")[0])
    )


@given(low=st.floats(-1e6, 1e6), width=st.floats(1e-3, 1e6), about=st.integers(2, 8))
def test_ticks_are_round_inside_and_enough(low: float, width: float, about: int) -> None:
    places = plots.ticks(low, low + width, about=about)
    assert 1 <= len(places) <= about + 2
    assert all(low - width * 1e-6 <= place <= low + width * (1 + 1e-6) for place in places)
    steps = np.diff(places)
    assert np.allclose(steps, steps[:1] if len(steps) else 0)


@given(low=st.floats(1e-3, 1e9), factor=st.floats(1.5, 1e6))
def test_log_ticks_are_inside_and_few(low: float, factor: float) -> None:
    places = plots.log_ticks(low, low * factor)
    assert 2 <= len(places) <= 10 and places == sorted(places)
    assert low <= places[0] and places[-1] <= low * factor


def _scatter(marks: list[plots.Mark]) -> str:
    return str(plots.scatter(marks, x_label="size", y_label="score", show_x=wording.size, y_range=(0.0, 1.0)))


@given(
    points=st.lists(st.tuples(st.floats(1e3, 1e9), st.floats(0, 1)), min_size=1, max_size=20),
    name=st.text(max_size=40),
)
def test_marks_and_labels_stay_inside_the_frame(points: list[tuple[float, float]], name: str) -> None:
    svg = _scatter([plots.Mark(x, y, name, label=name, low=y / 2, high=y) for x, y in points])
    for x, y in re.findall(r'c?x="([-\d.]+)" c?y="([-\d.]+)"', svg):
        assert 0 <= float(x) <= plots.WIDTH and 0 <= float(y) <= plots.HEIGHT
    assert svg.count("<circle") == len(points)


def test_labels_do_not_cover_each_other() -> None:
    marks = [
        plots.Mark(1e6 * (1 + index / 50), 0.5 + index / 400, "t", label=f"name {index}")
        for index in range(12)
    ]
    places = re.findall(r'class="label " x="([\d.]+)" y="([\d.]+)" text-anchor="(\w+)"', _scatter(marks))
    assert 3 <= len(places) < 12, "the crowd has room for some of the labels only"
    assert len({y for _, y, _ in places}) > 1


def test_kinds_are_told_by_shape_as_well_as_by_colour() -> None:
    svg = _scatter([plots.Mark(1e6, 0.5, "a", kind="scratch"), plots.Mark(2e6, 0.6, "b", kind="tied choice")])
    assert svg.count("<rect") == 1 and svg.count('class="ring"') == 1
    assert "<title>a</title>" in svg


def test_a_scatter_leaves_out_what_it_cannot_show() -> None:
    assert _scatter([plots.Mark(0.0, 0.5, "a")]) == ""
    svg = _scatter([plots.Mark(1e6, 0.5, "seen"), plots.Mark(1e6, 1.5, "beyond")])
    assert "seen" in svg and "beyond" not in svg


@given(name=st.text(alphabet="<>&\"'ab", min_size=1, max_size=12))
def test_plots_escape_names(name: str) -> None:
    line = plots.Line(((0.0, 0.1), (1.0, 0.2)), name, best=(1.0, 0.2))
    drawn = (
        plots.lines([line], described=name, x_ticks=[(0.0, name)], x_label=name, y_label=name)
        + sketches.bars([(name, 3.0, name)], described=name)
        + heatmap.heat_map(np.eye(2), [name, "b"], described=name)
        + sketches.against_zero(0.1, (-0.1, 0.2), left=name, right=name)
    )
    bare = re.sub(r"&(lt|gt|amp|#34|#39);", "", str(drawn))
    assert set(re.findall(r"<(/?\w+)", bare)) <= {
        f"{slash}{tag}"
        for tag in ("svg", "g", "title", "text", "path", "circle", "rect", "line", "image")
        for slash in ("", "/")
    }
    assert "&" not in bare and "'" not in bare


def test_a_small_heat_map_has_a_number_per_cell_and_a_large_one_is_an_image() -> None:
    counts = np.array([[8.0, 2.0], [0.0, 5.0]])
    svg = str(heatmap.heat_map(counts, ["cat", "dog"], described="x"))
    assert "2 images labelled cat and predicted dog, 20.0% of the label" in svg.replace(
        "2 labelled", "2 images labelled"
    )
    assert svg.count('class="cell right"') == 2 and svg.count('class="cell wrong"') == 2
    large = np.eye(600) * 9
    large[3, 500] = 1.0
    svg = str(heatmap.heat_map(large, [str(i) for i in range(600)], described="x"))
    (coded,) = re.findall(r"base64,([^\"]+)", svg)
    image = Image.open(io.BytesIO(base64.b64decode(coded)))
    assert image.size == (200, 200)  # three classes to a cell
    assert image.getpixel((166, 1))[3] > 70, "a single mistake is visible"
    assert image.getpixel((160, 1))[3] == 0 and image.getpixel((5, 5))[3] == 255


@pytest.mark.parametrize(("metric", "expected"), [("macro_f1", "b"), ("log_loss", "a"), ("brier", "c")])
def test_the_best_follows_the_direction_of_the_metric(metric: str, expected: str) -> None:
    rows = [
        ("a", {"macro_f1": 0.8, "log_loss": 0.1}),
        ("b", {"macro_f1": 0.9, "log_loss": 0.2}),
        ("c", {"brier": 0.1}),
    ]
    run = [reading._candidate({"id": name, "metrics": metrics}) for name, metrics in rows]
    assert figures.best(run, metric).id == expected


def _predictions(k: int = 3, n: int = 12) -> reading.Predictions:
    random = np.random.default_rng(1)
    probabilities = random.dirichlet(np.ones(k), n).astype(np.float32)
    return reading.Predictions(
        classes=tuple(f"c{i}" for i in range(k)),
        files=tuple(f"{i:02d}.png" for i in range(n)),
        labels=np.arange(n, dtype=np.int64) % k,
        predicted=probabilities.argmax(axis=1).astype(np.int64),
        probabilities=probabilities,
    )


def test_the_worst_mistakes_are_wrong_and_in_order_of_confidence() -> None:
    predictions = _predictions(n=90)
    mistakes = examples.worst_mistakes(predictions)
    assert len(mistakes) == examples.MISTAKES < examples.wrong(predictions)
    assert all(mistake.label != mistake.predicted for mistake in mistakes)
    confidences = [mistake.confidence for mistake in mistakes]
    assert confidences == sorted(confidences, reverse=True)
    right = predictions.labels == predictions.predicted
    assert confidences[0] == pytest.approx(predictions.probabilities[~right].max())


@pytest.mark.parametrize(("k", "each"), [(2, 8), (4, 8), (5, 4), (101, 1), (150, 1)])
def test_samples_are_spread_over_the_classes(k: int, each: int) -> None:
    found = examples.samples(_predictions(k, n=k * 10))
    assert set(map(len, found.values())) == {each}
    assert len(found) == min(k, examples.SAMPLES)
    assert all(int(file[:-4]) % k == int(name[1:]) for name, files in found.items() for file in files)


def test_the_confusion_matrix_counts_labels_in_rows() -> None:
    predictions = _predictions()
    matrix = np.array(examples.confusion(predictions))
    assert matrix.sum() == 12
    assert matrix.sum(axis=1).tolist() == [4, 4, 4]
    assert np.trace(matrix) == 12 - examples.wrong(predictions)


def test_thumbnails_are_small_upright_and_only_of_what_is_there(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    Image.new("RGB", (800, 400), "red").save(tmp_path / "turned.jpg", exif=exif)
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8 no")
    made = thumbnails.make(tmp_path, ["turned.jpg", "broken.jpg", "gone.jpg", "nul\0.jpg", "turned.jpg"])
    assert list(made.uris) == ["turned.jpg"] and made.gone == 3
    image = Image.open(io.BytesIO(base64.b64decode(made.uris["turned.jpg"].split(",")[1])))
    assert image.size == (80, 160) and image.format == "JPEG"
    assert thumbnails.make(tmp_path / "nowhere", ["a"]).gone == thumbnails.make(None, ["a"]).gone == 1


def test_thumbnails_come_out_of_a_parquet_file_too(tmp_path: Path) -> None:
    stream = io.BytesIO()
    Image.new("L", (28, 28), 90).save(stream, "PNG")
    rows = [{"bytes": stream.getvalue(), "path": "x.png"}] * 3
    pq.write_table(pa.table({"image": rows, "label": ["a", "b", "a"]}), tmp_path / "data.parquet")
    made = thumbnails.make(tmp_path, ["data.parquet#2", "data.parquet#7"])
    assert list(made.uris) == ["data.parquet#2"] and made.gone == 1


@given(sizes=st.lists(st.integers(1, 50), max_size=10), allowance=st.integers(-5, 300))
def test_an_allowance_keeps_the_first_thumbnails(sizes: list[int], allowance: int) -> None:
    given_ = thumbnails.Thumbnails({str(i): "x" * size for i, size in enumerate(sizes)}, 0, 0)
    kept = given_.within(allowance)
    assert sum(map(len, kept.uris.values())) <= max(allowance, 0)
    assert list(kept.uris) == list(given_.uris)[: len(kept.uris)]
    assert kept.dropped == len(sizes) - len(kept.uris)
    assume(len(kept.uris) < len(sizes))
    assert sum(sizes[: len(kept.uris) + 1]) > allowance


def test_only_the_rows_of_the_choice_are_read(make_run: Callable[..., Path]) -> None:
    run = reading.read(make_run(photos=False, images=50))
    assert run.predictions is not None
    assert len(run.predictions.files) == 50 and run.predictions.probabilities.shape == (50, 6)
    assert np.allclose(run.predictions.probabilities.sum(axis=1), 1, atol=1e-4)
    assert (run.predictions.probabilities.argmax(axis=1) == run.predictions.predicted).all()


def test_predictions_of_other_classes_are_left_alone(tmp_path: Path) -> None:
    table = pa.table(
        {
            "candidate": pa.array(["a"]).dictionary_encode(),
            "file": ["x"],
            "label": ["cat"],
            "predicted": ["dog"],
            "probabilities": pa.array([[0.5, 0.5]], pa.list_(pa.float32())),
        }
    )
    pq.write_table(table, tmp_path / "predictions.parquet")
    assert reading._predictions(tmp_path / "predictions.parquet", "a", ("cat", "cow")) is None
    assert reading._predictions(tmp_path / "predictions.parquet", "b", ("cat", "dog")) is None
    found = reading._predictions(tmp_path / "predictions.parquet", "a", ("cat", "dog"))
    assert found is not None and found.predicted.tolist() == [1]


def test_remarks_are_counted_whole_and_listed_in_part(make_run: Callable[..., Path]) -> None:
    run = reading.read(make_run(photos=False))
    assert len(run.remarks) == reading.ISSUE_ROWS and sum(run.remark_counts.values()) == 70
    assert run.remark_counts["unreadable", True] == 28


@given(
    value=st.recursive(
        st.none() | st.floats() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
    )
)
def test_any_value_can_stand_for_a_candidate(value: Any) -> None:
    fields = (
        "id",
        "metrics",
        "interval",
        "cost",
        "folds",
        "taps",
        "curves",
        "per_class",
        "difference",
        "tied",
    )
    for field in fields:
        candidate = reading._candidate({field: value})
        assert candidate.bytes is None or np.isfinite(candidate.bytes)


def test_the_locked_test_images_are_no_out_of_fold_mistakes(tmp_path: Path) -> None:
    table = pa.table(
        {
            "candidate": pa.array(["a", "a", "b"]).dictionary_encode(),
            "file": ["fold.png", "locked.png", "fold.png"],
            "split": ["development", "test", "development"],
            "label": ["cat"] * 3,
            "predicted": ["dog"] * 3,
            "probabilities": pa.array([[0.2, 0.8]] * 3, pa.list_(pa.float32())),
        }
    )
    pq.write_table(table, tmp_path / "predictions.parquet")
    found = reading._predictions(tmp_path / "predictions.parquet", "a", ("cat", "dog"))
    assert found is not None and found.files == ("fold.png",)


@pytest.mark.parametrize(
    ("size", "similarity", "marked"), [("small", "different", 1), ("medium", "similar", 0)]
)
def test_the_quadrant_marks_the_corner_of_the_verdict(
    size: str, similarity: str, marked: int, tmp_path: Path
) -> None:
    told = {"size": size, "similarity": similarity, "slope": 2.0, "depth": 0.6, "familiarity": 0.9}
    (tmp_path / "study.json").write_text(json.dumps({"position": told}), encoding="utf-8")
    found = position.section(reading.read(tmp_path))
    assert found is not None and found["svg"].count('class="here"') == marked
    assert found["overlap"] is None and found["slope"] == 2.0
