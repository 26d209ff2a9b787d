"""The report: one HTML file that needs nothing else, no network and no program.

In: a run folder. Out: the page, under 3 MB, with styles, script, plots and thumbnails inside it. Everything that came
from the user (names of classes, files and folders, the command) is escaped, and a content security policy forbids the
page to load or run anything that it did not bring itself.

Cost: 0.3 s for 30 candidates on 400 photos.

Not covered: numbers of its own. What the page says stands in the run folder already.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from graft.report import content, examples, reading, thumbnails, wording
from graft.store import write_atomically

LIMIT_BYTES = 3_000_000
PICTURES_BYTES = 1_600_000
ROWS, FEWER_ROWS = 1_000, 60
HERE = Path(__file__).parent
FILTERS = (
    *(
        wording.score,
        wording.signed,
        wording.span,
        wording.points,
        wording.count,
        wording.plural,
        wording.shortened,
    ),
    *(wording.size, wording.quantity, wording.milliseconds, wording.seconds),
)
FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")


def render(run: Path) -> str:
    """The page for the run folder `run`; RunError if it holds no finished study or a damaged one."""
    record = reading.read(Path(run))
    mistakes = examples.worst_mistakes(record.predictions) if record.predictions else []
    samples = examples.samples(record.predictions) if record.predictions else {}
    names = [mistake.file for mistake in mistakes] + _in_turns(list(samples.values()))
    pictures = thumbnails.make(record.root, names).within(PICTURES_BYTES)
    template = _template()
    for rows in (ROWS, FEWER_ROWS):
        values = {**_assets(), **content.of(record, mistakes, samples, rows=rows)}
        page = _clean(template.render(**values, pictures=pictures))
        over = len(page.encode()) - LIMIT_BYTES
        if over > 0:
            room = sum(len(uri) for uri in pictures.uris.values()) - over - 1_000
            page = _clean(template.render(**values, pictures=pictures.within(room)))
        if len(page.encode()) <= LIMIT_BYTES:
            break
    return page


def write(run: Path, path: Path | None = None) -> Path:
    """Write the page to `path` (default: `report.html` in the run folder), whole or not at all; returns the path."""
    run = Path(run)
    place = Path(path) if path is not None else run / "report.html"
    write_atomically(place, render(run))
    return place


def _clean(page: str) -> str:
    """Characters that HTML forbids, and those that have no UTF-8 form, become the replacement character."""
    return FORBIDDEN.sub("\N{REPLACEMENT CHARACTER}", page).strip() + "\n"


def _template() -> Any:
    environment = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update({filter_.__name__: filter_ for filter_ in FILTERS})
    return environment.get_template("report.html.jinja")


def _assets() -> dict[str, str]:
    """The style, the script and the hash under which the page's security policy lets the script run."""
    script = (HERE / "report.js").read_text(encoding="utf-8")
    return {
        "style": Markup((HERE / "report.css").read_text(encoding="utf-8")),
        "script": Markup(script),
        "script_hash": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    }


def _in_turns(rows: Sequence[Sequence[str]]) -> list[str]:
    """The first of every row, then the second of every row, and so on."""
    longest = max((len(row) for row in rows), default=0)
    return [row[index] for index in range(longest) for row in rows if index < len(row)]
