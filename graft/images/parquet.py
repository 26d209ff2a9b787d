"""The reader of Parquet files, and the way to a single image inside one.

In: a Parquet file or a folder of them, with a column of encoded images (binary, or a struct with a field `bytes`) and
a column label, class or target (text, whole numbers, or numbers with names in the Hugging Face schema); optionally
split and group. Without a split column, files called train-..., val-... or test-..., or in folders of these names, say it.
Out: a Listing whose rows point into the files.

Cost: the list reads the label columns only. Images are read a piece of a row group at a time, at most 32 MB each, a few
pieces kept: reading in order, from any number of threads, decodes every piece once; jumping about decodes more.
"""

from __future__ import annotations

import functools
import json
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from graft.errors import DatasetError
from graft.images.dataset import Split
from graft.images.rows import Listing, Row, class_name, name_below, split_of
from graft.images.tables import LABEL_COLUMNS, find_column

_IMAGE_COLUMNS = ("image", "img", "picture", "photo", "bytes")
_PIECE_BYTES = 32 * 1024**2
_PIECES_KEPT = 3
_FILES_OPEN = 4


def read_parquet(root: Path, files: Sequence[Path]) -> Listing:
    """The rows of Parquet `files` below `root`. Raises DatasetError where a file or a column is not usable."""
    rows: list[Row] = []
    numeric = True
    for path in sorted(files, key=lambda path: name_below(root, path)):
        found, whole = _rows(root, path)
        rows += found
        numeric = numeric and whole
    labels = {row.label for row in rows if row.label is not None}
    classes = sorted(labels, key=int) if numeric else sorted(labels)
    return Listing(root, tuple(rows), tuple(classes))


def read_cell(path: Path, row: int) -> bytes:
    """The encoded image in line `row` of a Parquet file; empty where the cell is. Raises OSError without the file."""
    status = path.stat()
    return _images(path, status.st_mtime_ns, status.st_size).cell(row)


def _rows(root: Path, path: Path) -> tuple[list[Row], bool]:
    """The rows of one file, and whether its labels are whole numbers without names."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            schema, count = file.schema_arrow, file.metadata.num_rows
            _image_column(path, schema)
            columns = _label_columns(path, schema)
            table = file.read(columns=list(columns.values()))
    except (pa.ArrowException, OSError) as error:
        raise DatasetError(f"{path} cannot be read as a Parquet file: {error}") from error
    values = {what: table[column].to_pylist() for what, column in columns.items()}
    names = _class_names(schema.metadata, columns["label"])
    labels = [_label(value, names) for value in values["label"]]
    splits = _splits(root, path, values.get("split"), count)
    groups = [None if value is None else str(value) for value in values.get("group", [None] * count)]
    rows = [Row(path, k, labels[k], splits[k], groups[k]) for k in range(count)]
    return rows, names is None and pa.types.is_integer(schema.field(columns["label"]).type)


def _label_columns(path: Path, schema: Any) -> dict[str, str]:
    """The columns that hold label, split and group, the last two where there are any."""
    import pyarrow as pa

    wanted = {"label": LABEL_COLUMNS, "split": ("split",), "group": ("group",)}
    places = {what: find_column(schema.names, names) for what, names in wanted.items()}
    columns = {what: schema.names[place] for what, place in places.items() if place is not None}
    if "label" not in columns:
        raise DatasetError(
            f"{path} has no column {', '.join(LABEL_COLUMNS[:-1])} or {LABEL_COLUMNS[-1]}; its columns are "
            f"{', '.join(map(repr, schema.names))}. Rename the one that names the class."
        )
    kind = schema.field(columns["label"]).type
    if pa.types.is_floating(kind) or pa.types.is_nested(kind):
        raise DatasetError(
            f"{path}: the column {columns['label']!r} holds {kind}; a class must be text or a whole number."
        )
    return columns


def _image_column(path: Path, schema: Any) -> str:
    """The column path that holds encoded images, such as `image` or `image.bytes`."""
    import pyarrow as pa

    def is_binary(kind: Any) -> bool:
        return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)

    found = {}
    for field in schema:
        if is_binary(field.type):
            found[field.name] = field.name
        elif pa.types.is_struct(field.type) and any(
            p.name == "bytes" and is_binary(p.type) for p in field.type
        ):
            found[field.name] = f"{field.name}.bytes"
    if not found:
        raise DatasetError(
            f"{path} has no column of encoded images (binary, or a struct with a binary field 'bytes'); its columns "
            f"are {', '.join(map(repr, schema.names))}."
        )
    column = find_column(list(found), _IMAGE_COLUMNS)
    return list(found.values())[column or 0]


def _class_names(metadata: dict[bytes, bytes] | None, column: str) -> list[str] | None:
    """The names behind whole numbers, where the schema carries the Hugging Face description of its features."""
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        names = features[column]["names"]
    except (KeyError, TypeError, ValueError):
        return None
    return [class_name(str(name)) for name in names] if isinstance(names, list) else None


def _label(value: object, names: list[str] | None) -> str | None:
    if value is None:
        return None
    if names is not None and isinstance(value, int):
        return names[value] if 0 <= value < len(names) else None
    text = value.decode(errors="replace") if isinstance(value, bytes) else str(value)
    return class_name(text.strip()) or None


def _splits(root: Path, path: Path, values: list[object] | None, count: int) -> list[Split]:
    if values is None:
        below = path.relative_to(root)
        words = [*below.parts[:-1], below.stem.replace("_", "-").split("-")[0]]
        named: list[Split] = [split for word in words if (split := split_of(word))]
        return [named[0] if named else "train"] * count
    splits: list[Split] = []
    for k, value in enumerate(values):
        split = "train" if value is None else split_of(str(value))
        if split is None:
            raise DatasetError(f"{path}#{k}: the split {value!r} is unknown; write train, val or test.")
        splits.append(split)
    return splits


@functools.lru_cache(maxsize=_FILES_OPEN)
def _images(path: Path, modified_ns: int, size: int) -> _Images:
    """The images of a file as it was at that time: a file written anew is opened anew."""
    return _Images(path)


class _Images:
    """The image column of one file, for many threads that read roughly in order."""

    def __init__(self, path: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            self._file = pq.ParquetFile(path)
        except pa.ArrowException as error:
            raise DatasetError(f"{path} cannot be read as a Parquet file: {error}") from error
        self._column = _image_column(path, self._file.schema_arrow)
        groups = [self._file.metadata.row_group(k) for k in range(self._file.num_row_groups)]
        self._starts = np.cumsum([0, *(group.num_rows for group in groups)])
        self._steps = [self._step(group) for group in groups]
        self._pieces: OrderedDict[int, Any] = OrderedDict()
        self._stream: Iterator[Any] = iter(())
        self._group, self._next = -1, 0
        self._lock = threading.Lock()

    def cell(self, row: int) -> bytes:
        """The bytes in line `row`."""
        with self._lock:
            for start, piece in self._pieces.items():
                if start <= row < start + len(piece):
                    return _bytes(piece, row - start)
            start, piece = self._fetch(row)
            self._pieces[start] = piece
            while len(self._pieces) > _PIECES_KEPT:
                self._pieces.popitem(last=False)
            return _bytes(piece, row - start)

    def _fetch(self, row: int) -> tuple[int, Any]:
        """The piece with line `row`: the next one of the running stream, or of a new one from its row group on."""
        group = int(np.searchsorted(self._starts, row, side="right")) - 1
        if not 0 <= group < len(self._steps):
            raise DatasetError(f"There is no line {row} in a Parquet file of {self._starts[-1]} lines.")
        if group != self._group or row < self._next:
            self._group, self._next = group, int(self._starts[group])
            self._stream = self._file.iter_batches(
                self._steps[group], row_groups=[group], columns=[self._column]
            )
        for batch in self._stream:
            start, self._next = self._next, self._next + batch.num_rows
            if row < self._next:
                return start, batch.column(0)
        raise DatasetError(f"A Parquet file ends before its line {row}.")

    def _step(self, group: Any) -> int:
        """How many rows of a row group make a piece."""
        chunks = (group.column(k) for k in range(group.num_columns))
        size = sum(chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema == self._column)
        return max(1, min(group.num_rows, _PIECE_BYTES * group.num_rows // max(1, size)))


def _bytes(piece: Any, index: int) -> bytes:
    value = piece[index].as_py()
    if isinstance(value, dict):
        value = value["bytes"]
    return value if value is not None else b""
