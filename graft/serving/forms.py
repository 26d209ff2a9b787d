"""The files of a multipart form, taken apart as it comes.

In: the type's header and the body, piece by piece. Out: the files with their names; they stay in memory, and a form that ends
before its last boundary is refused as a whole, never answered in part. Cost: one copy of the bytes. Fields without a
file name are read over.
"""

from __future__ import annotations

import re

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header

from graft.serving.decoding import Upload
from graft.serving.refusals import Refusal

_NAME_LENGTH = 200
_PLAIN_FIELDS = 16


class Form:
    """A form of at most `most` files, given piece by piece to `take`; complete, `files` are what it held.

    Raises Refusal: 400 for a form that is damaged or cut short, 413 for too many parts.
    """

    def __init__(self, content_type: str, *, most: int) -> None:
        boundary = parse_options_header(content_type)[1].get(b"boundary")
        if not boundary:
            raise Refusal(400, "The form's type does not name the boundary between its parts.")
        self._most, self._plain = most, 0
        self._files: list[Upload] = []
        self._is_complete = False
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._begin_part,
                    "on_header_field": self._extend_field,
                    "on_header_value": self._extend_value,
                    "on_header_end": self._end_header,
                    "on_headers_finished": self._end_headers,
                    "on_part_data": self._extend_data,
                    "on_part_end": self._end_part,
                    "on_end": self._end,
                },
            )
        except FormParserError:
            raise _damaged() from None

    def take(self, chunk: bytes) -> None:
        """The next bytes of the form."""
        try:
            self._parser.write(chunk)
        except FormParserError:
            raise _damaged() from None

    def files(self) -> list[Upload]:
        """The files, in their order."""
        if not self._is_complete:
            raise Refusal(400, "The form ends before its last boundary; send it again.")
        return self._files

    def _begin_part(self) -> None:
        self._field, self._value, self._disposition = bytearray(), bytearray(), b""
        self._name: str | None = None
        self._data = bytearray()

    def _extend_field(self, data: bytes, start: int, end: int) -> None:
        self._field += data[start:end]

    def _extend_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _end_header(self) -> None:
        if self._field.lower() == b"content-disposition":
            self._disposition = bytes(self._value)
        self._field, self._value = bytearray(), bytearray()

    def _end_headers(self) -> None:
        name = parse_options_header(self._disposition)[1].get(b"filename")
        if name is None:
            self._plain += 1
        else:
            self._name = name.decode("utf-8", "replace")
        if len(self._files) + (name is not None) > self._most:
            raise Refusal(413, f"There are more than {self._most} files in one request; send fewer.")
        if self._plain > _PLAIN_FIELDS:
            raise Refusal(
                413, f"There are more than {_PLAIN_FIELDS} fields that are no files; send the files only."
            )

    def _extend_data(self, data: bytes, start: int, end: int) -> None:
        if self._name is not None:
            self._data += memoryview(data)[start:end]

    def _end_part(self) -> None:
        if self._name is not None:
            self._files.append(Upload(bytes(self._data), _last_part(self._name)))

    def _end(self) -> None:
        self._is_complete = True


def _damaged() -> Refusal:
    return Refusal(400, "The form is damaged; its parts cannot be told from each other.")


def _last_part(path: str) -> str | None:
    """The file's name in a path, as browsers of any system send it, in printable characters."""
    name = re.split(r"[/\\]", path)[-1]
    return "".join(letter for letter in name if letter.isprintable())[:_NAME_LENGTH] or None
