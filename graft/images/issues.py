"""check.csv: what was remarked about the images, for people and spreadsheets, and back.

In: a Dataset. Out: a CSV file in UTF-8 with the columns file, issue, excluded, class and detail, one line per issue.
"""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import cast, get_args

from graft.errors import DatasetError
from graft.images.dataset import Dataset, Issue, IssueKind
from graft.store import write_atomically

HEADER = ("file", "issue", "excluded", "class", "detail")


def write_check(dataset: Dataset, path: Path) -> None:
    """Write the issues of `dataset` as a CSV file that is whole at every moment."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\r\n")
    writer.writerow(HEADER)
    for issue in dataset.issues:
        excluded = "yes" if issue.excluded else "no"
        writer.writerow((issue.name, issue.kind, excluded, issue.label, issue.detail))
    # A file name may hold bytes that are no text at all; they are shown as a question mark.
    write_atomically(path, text.getvalue().encode("utf-8", errors="replace"))


def read_check(path: Path) -> list[Issue]:
    """The issues in a file that `write_check` wrote. Raises DatasetError for any other file."""
    try:
        lines = list(csv.reader(io.StringIO(path.read_bytes().decode(), newline="")))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(f"{path} cannot be read as a list of issues: {error}.") from error
    if not lines or tuple(lines[0]) != HEADER or any(len(line) != len(HEADER) for line in lines):
        raise DatasetError(f"{path} is not a list of issues: its first line must be {','.join(HEADER)}.")
    issues = []
    for name, kind, excluded, label, detail in lines[1:]:
        if kind not in get_args(IssueKind) or excluded not in ("yes", "no"):
            raise DatasetError(f"{path} has a line that Graft did not write: {name}, {kind}, {excluded}.")
        issues.append(Issue(name, cast(IssueKind, kind), detail, excluded == "yes", label))
    return issues
