"""The reader of CSV files: a path and a class per line, optionally a split and a group.

In: a CSV or TSV file in UTF-8 with a header line. Out: a Listing; paths are relative to the file's own folder. The
columns are found by name (upper or lower case): path, file, image or filename; label, class or target; split; group.
Comma, semicolon and tab are understood as separators.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from pathlib import Path

from graft.errors import DatasetError
from graft.images.dataset import Issue, Split
from graft.images.rows import Listing, Row, class_name, name_below, split_of

PATH_COLUMNS = ("path", "file", "image", "filename")
LABEL_COLUMNS = ("label", "class", "target")


def read_table(table: Path) -> Listing:
    """The rows of a CSV file. Raises DatasetError where columns are missing or a value has no meaning."""
    header, lines = _cells(table)
    path_column = find_column(header, PATH_COLUMNS)
    label_column = find_column(header, LABEL_COLUMNS)
    if path_column is None or label_column is None:
        missing = "path" if path_column is None else "label"
        raise DatasetError(
            f"{table} has no column {missing!r}; its columns are {', '.join(map(repr, header))}. The first line must "
            f"name one of {', '.join(PATH_COLUMNS)} and one of {', '.join(LABEL_COLUMNS)}."
        )
    split_column, group_column = find_column(header, ("split",)), find_column(header, ("group",))
    rows: list[Row] = []
    issues: list[Issue] = []
    for number, cells in lines:
        if not (written := _cell(cells, path_column)):
            detail = f"Line {number} names no file."
            issues.append(Issue(f"{table.name} line {number}", "unplaced", detail, True))
            continue
        label = class_name(_cell(cells, label_column)) or None
        split = _split(_cell(cells, split_column), table, number)
        rows.append(
            Row(_place(table.parent, written), None, label, split, _cell(cells, group_column) or None)
        )
    classes = tuple(sorted({row.label for row in rows if row.label is not None}))
    once = _once(table, rows, issues)
    once.sort(key=lambda row: name_below(table.parent, row.path))
    return Listing(table.parent, tuple(once), classes, tuple(issues))


def find_column(header: Sequence[str], names: Sequence[str]) -> int | None:
    """The index of the first column that is called one of `names`; earlier names go first."""
    lowered = [column.strip().lower() for column in header]
    return next((lowered.index(name) for name in names if name in lowered), None)


def _cells(table: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The header, and the number and cells of each line that is not empty."""
    try:
        text = table.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DatasetError(f"{table} is not UTF-8 text. Save it again as CSV in UTF-8.") from error
    except OSError as error:
        raise DatasetError(f"{table} cannot be opened: {error.strerror or error}.") from error
    first = text.split("\n", 1)[0]
    delimiter = max(",;\t", key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        header = next(reader, [])
        lines = [(reader.line_num, cells) for cells in reader if any(cell.strip() for cell in cells)]
    except csv.Error as error:
        raise DatasetError(f"{table}, line {reader.line_num}, is not CSV: {error}.") from error
    if not lines:
        raise DatasetError(f"{table} lists no images. It needs a header line and a line per image.")
    return header, lines


def _once(table: Path, rows: list[Row], issues: list[Issue]) -> list[Row]:
    """The rows of every file that is listed with one label only, a file's first mention and its test split first.

    A file that is listed under two labels has no known label: it is left out, and `issues` says so.
    """
    mentions: dict[Path, list[Row]] = {}
    for row in rows:
        mentions.setdefault(row.path, []).append(row)
    once = []
    for path, same in mentions.items():
        name, labels = name_below(table.parent, path), sorted({row.label or "" for row in same})
        if len(labels) > 1:
            detail = f"{table.name} lists it under {' and '.join(map(repr, labels))}; its class is unknown."
            issues.append(Issue(name, "conflict", detail, True))
            continue
        if len(same) > 1:
            detail = f"{table.name} lists it {len(same)} times; it counts once."
            issues.append(Issue(name, "exact_duplicate", detail, False, labels[0]))
        once.append(min(same, key=lambda row: row.split != "test"))
    return once


def _cell(cells: list[str], column: int | None) -> str:
    return cells[column].strip() if column is not None and column < len(cells) else ""


def _split(text: str, table: Path, number: int) -> Split:
    if not text:
        return "train"
    split = split_of(text)
    if split is None:
        raise DatasetError(
            f"{table}, line {number}: the split {text!r} is unknown; write train, val or test."
        )
    return split


def _place(folder: Path, written: str) -> Path:
    """A path as written, with either kind of slash; `a/../b` and `b` become the same place."""
    place = folder / written
    if "\\" in written and not place.exists():
        place = folder / written.replace("\\", "/")
    return Path(os.path.normpath(place))
