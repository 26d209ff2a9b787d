"""The page as a whole: structure, hostile names, missing fields, size, time."""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_run import HOSTILE, write_run

from graft.errors import RunError
from graft.report import page

VOID = {"meta", "img", "br", "link", "input", "hr"}
SECTIONS = (
    *("answer", "candidates", "cost", "seconds", "depth", "scratch", "confusion", "classes", "training"),
    *("mistakes", "samples", "data", "position", "method", "again"),
)


class Page(HTMLParser):
    """The tags of a page in order, its text, and a complaint for each tag that is not closed in turn."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.complaints: list[str] = []
        self.feed(source)
        self.close()
        self.complaints += [f"<{tag}> is never closed" for tag in self.open]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.complaints.append(f"</{tag}> at {self.getpos()}")

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("script", "style"):
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub("[ \n]+", " ", " ".join(self.words))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]


@pytest.fixture(autouse=True, scope="module")
def compiled_once() -> Iterator[None]:
    """The template takes most of the time of a small page; here one compiled template serves all tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page, "_template", functools.cache(page._template))
        yield


@pytest.fixture(scope="module")
def six(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of six classes, never changed by a test."""
    return write_run(
        tmp_path_factory.mktemp("six") / "run", classes=6, images=240, backbones=6, taps=5, photos=True
    )


@pytest.fixture(scope="module")
def source(six: Path) -> str:
    return page.render(six)


def test_the_page_is_well_formed_and_complete(source: str) -> None:
    read = Page(source)
    assert read.complaints == []
    assert [attrs["id"] for attrs in read.all("section")] == list(SECTIONS)
    ids = [attrs["id"] for _, attrs in read.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    for link in read.all("a"):
        assert link["href"] and link["href"][1:] in ids, "a link of the page that leads nowhere"


def test_nothing_is_loaded_from_anywhere(source: str) -> None:
    read = Page(source)
    assert re.search(r"https?:|//[a-z]|url\(|@import", source) is None
    for _, attrs in read.tags:
        for name in ("src", "href", "xlink:href", "srcset", "action"):
            assert (attrs.get(name) or "#").startswith(("#", "data:image/")), attrs
    (policy,) = [a["content"] for a in read.all("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None and "default-src 'none'" in policy


def test_the_policy_allows_exactly_the_script_of_the_page(source: str) -> None:
    (script,) = re.findall(r"<script>(.*?)</script>", source, flags=re.S)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in source


def test_hostile_names_are_text(source: str) -> None:
    read = Page(source)
    assert len(read.all("script")) == 1
    assert not [name for _, attrs in read.tags for name in attrs if name.startswith("on")]
    for name in (*HOSTILE, "leaves <b>&amp; co</b>", "The images are <grey>.", "<img src=x>'0.jpg"):
        assert name in read.text, name
    assert "bad/<b>0.png" in read.text and "graft study 'photos \"<b>\"/' --budget 10m" in read.text


def test_it_is_accessible(source: str) -> None:
    read = Page(source)
    assert all(attrs.get("scope") in ("col", "row") for attrs in read.all("th"))
    assert len(read.all("caption")) == len(read.all("table")) > 5
    assert all("alt" in attrs for attrs in read.all("img"))
    pictures = [attrs for attrs in read.all("svg") if attrs.get("viewbox") != "0 0 24 24"]
    assert len(pictures) > 8 and all(attrs["role"] == "img" and attrs["aria-label"] for attrs in pictures)
    assert read.all("html")[0]["lang"] == "en"
    assert [attrs["content"] for attrs in read.all("meta") if attrs.get("name") == "viewport"]


def test_the_answer_says_what_why_and_how_sure(source: str, six: Path) -> None:
    study = json.loads((six / "study.json").read_text(encoding="utf-8"))
    text = Page(source).text
    choice, headline = study["choice"], study["choice"]["headline"]
    assert f"macro-F1 is {headline['macro_f1']:.3f}" in text
    assert f"(95 % interval {headline['interval'][0]:.3f} to {headline['interval'][1]:.3f})" in text
    assert "corrected for having picked the winner" in text
    assert choice["reason"] in text and study["scratch_versus_transfer"]["sentence"] in text
    assert "8.9\N{NO-BREAK SPACE}MB" in text and "4.1\N{NO-BREAK SPACE}ms" in text


def test_the_table_shows_the_best_taps_and_folds_away_the_rest(six: Path, source: str) -> None:
    study = json.loads((six / "study.json").read_text(encoding="utf-8"))
    short, whole = re.findall(r'<table class="sortable ranking">(.*?)</table>', source, flags=re.S)
    assert whole.count("<tr") - 1 == len(study["candidates"]) == 31
    assert short.count("<tr") - 1 == 8  # six backbones, from scratch, and the smallest of all
    assert short.count("recommended</span>") == 1
    assert whole.count(">tied</span>") == sum(row["tied"] for row in study["candidates"])
    assert source.index("<details>") < source.index(whole)


def test_a_photo_that_is_gone_is_shown_as_its_name(make_run: Callable[..., Path]) -> None:
    run = make_run(photos=False)
    read = Page(page.render(run))
    assert read.all("img") == []
    assert "not shown" in read.text and "photos are no longer where the study found them" in read.text


def test_every_section_survives_without_the_other_files(six: Path, tmp_path: Path) -> None:
    (tmp_path / "study.json").write_bytes((six / "study.json").read_bytes())
    read = Page(page.render(tmp_path))
    assert read.complaints == []
    assert [attrs["id"] for attrs in read.all("section")] == list(SECTIONS)
    assert "The run folder holds no predictions" in read.text


@pytest.mark.parametrize(
    "study", [{}, {"candidates": [{"id": "a"}], "choice": {"id": "a"}}, {"choice": None}]
)
def test_an_almost_empty_study_has_a_page(study: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "study.json").write_text(json.dumps(study), encoding="utf-8")
    read = Page(page.render(tmp_path))
    assert read.complaints == []
    assert [attrs["id"] for attrs in read.all("section")] == [name for name in SECTIONS if name != "seconds"]
    assert "None" not in read.text.replace("None was measured", "").replace("None were set aside", "")


def _places(value: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every key and the first two indices of every list, as paths."""
    if isinstance(value, dict):
        keys: list[Any] = list(value)
    else:
        keys = list(range(min(len(value), 2))) if isinstance(value, list) else []
    for key in keys:
        yield (*above, key)
        yield from _places(value[key], (*above, key))


WRONG = (None, "missing", float("nan"), "text", [], {}, -1, 1e400, True)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_missing_null_and_odd_fields_are_survived(data: st.DataObject, tmp_path: Path, small: str) -> None:
    study = json.loads(small)
    places = sorted(_places(study), key=str)
    for place in data.draw(st.lists(st.sampled_from(places), min_size=1, max_size=12)):
        parent = study
        try:
            for key in place[:-1]:
                parent = parent[key]
            wrong = data.draw(st.sampled_from(WRONG))
            if wrong == "missing":
                del parent[place[-1]]
            else:
                parent[place[-1]] = wrong
        except (KeyError, IndexError, TypeError):
            continue  # an earlier change has taken the place away
    (tmp_path / "study.json").write_text(json.dumps(study), encoding="utf-8")
    assert Page(page.render(tmp_path)).complaints == []


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The study.json of a run of two backbones."""
    run = write_run(
        tmp_path_factory.mktemp("small") / "run", classes=3, images=12, backbones=2, taps=2, photos=False
    )
    return (run / "study.json").read_text(encoding="utf-8")


NASTY = st.one_of(
    st.text(min_size=1, max_size=30),
    st.sampled_from(
        [
            "</script>",
            "</style><b>",
            '"><img src=x onerror=y>',
            "{{ 7 * 7 }}",
            "&lt;",
            "<!--",
            "]]>",
            "\ud800",
        ]
    ),
)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(names=st.lists(NASTY, min_size=3, max_size=3, unique=True), other=NASTY)
def test_no_name_changes_the_structure(names: list[str], other: str, tmp_path: Path, small: str) -> None:
    def structure(names: list[str], other: str) -> list[tuple[str, list[str]]]:
        study = json.loads(small)
        study["dataset"] |= {"class_names": names, "name": other, "counts": dict.fromkeys(names, 4)}
        study["choice"] |= {"reason": other, "confusion": [[4, 0, 0], [1, 3, 0], [0, 0, 4]]}
        study["settings"]["command"] = study["environment"]["cpu"] = other
        study["notices"] = [other]
        for candidate in study["candidates"]:
            for row, name in zip(candidate["per_class"], names, strict=True):
                row["class"] = name
            candidate["backbone"] = f"{candidate['backbone']}{other}"
            candidate["tap"] = candidate["tap"] and f"{candidate['tap']}{other}"
        (tmp_path / "study.json").write_text(json.dumps(study), encoding="utf-8")
        read = Page(page.render(tmp_path))
        assert read.complaints == []
        return [(tag, sorted(attrs)) for tag, attrs in read.tags if tag != "text"]

    assert structure(names, other) == structure(["one", "two", "three"], "harmless")


def test_the_page_stays_below_its_limit(six: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = len(page.render(six).encode())
    pictures = len(Page(page.render(six)).all("img"))
    assert whole < page.LIMIT_BYTES == 3_000_000
    monkeypatch.setattr(page, "LIMIT_BYTES", whole - 40_000)
    cut = page.render(six)
    assert len(cut.encode()) <= whole - 40_000
    read = Page(cut)
    assert read.complaints == [] and 0 < len(read.all("img")) < pictures
    assert re.search(r"\d+.photos were left away to keep this page under 3 MB", read.text)


def test_many_candidates_and_classes_stay_below_the_limit_in_time(make_run: Callable[..., Path]) -> None:
    run = make_run(classes=101, images=2_000, backbones=60, taps=1)
    start = time.perf_counter()
    source = page.render(run)
    assert time.perf_counter() - start < 5
    assert len(source.encode()) < 3_000_000
    read = Page(source)
    assert read.complaints == []
    assert "101 classes in their saved order" in read.text
    assert source.count("data:image/png;base64,") == 1


def test_an_extreme_study_loses_rows_rather_than_the_limit(make_run: Callable[..., Path]) -> None:
    run = make_run(classes=3, images=12, backbones=300, taps=12, photos=False)
    source = page.render(run)
    assert len(source.encode()) < 3_000_000
    assert "study.json holds them all" in source


def test_write_puts_the_page_into_the_run_or_where_it_is_told(six: Path, source: str, tmp_path: Path) -> None:
    assert page.write(six) == six / "report.html"
    other = page.write(six, tmp_path / "new" / "page.html")
    assert other.read_text(encoding="utf-8") == source == (six / "report.html").read_text(encoding="utf-8")
    assert [path.name for path in other.parent.iterdir()] == ["page.html"]


def test_what_is_not_a_finished_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"There is no run folder .*nowhere"):
        page.render(tmp_path / "nowhere")
    with pytest.raises(RunError, match=r"not a run folder.*graft study"):
        page.render(tmp_path)
    (tmp_path / "journal.jsonl").write_text("{}\n{}\n", encoding="utf-8")
    with pytest.raises(RunError, match=r"not finished.*2 lines.*again to continue"):
        page.render(tmp_path)
    for damaged in ("{", "[]", '"text"'):
        (tmp_path / "study.json").write_text(damaged, encoding="utf-8")
        with pytest.raises(RunError, match=r"study.json .*--overwrite"):
            page.render(tmp_path)


def test_a_damaged_prediction_file_is_named(make_run: Callable[..., Path]) -> None:
    run = make_run(photos=False)
    (run / "predictions.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(RunError, match=r"predictions.parquet cannot be read"):
        page.render(run)


def test_it_imports_neither_torch_nor_timm() -> None:
    program = "import sys, graft.report.page; print([n for n in ('torch', 'timm', 'matplotlib') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
