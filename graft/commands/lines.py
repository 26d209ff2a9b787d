"""What a command prints on standard output: any name fits on a line, and any line into the stream.

File names may hold line breaks, and on most systems bytes that are no text; class names may hold letters that the
terminal's encoding lacks. Lines for people escape what would break them, JSON what could not be encoded; for all else
`write_whatever_comes` keeps the bytes of a name, so that what is piped on still names the file.
"""

from __future__ import annotations

import codecs
import io
import json
import re
import sys
from typing import Any

# Control characters, and the two separators of Unicode that end a line, too.
_BREAKING = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_KEEPING = "graft.keeping"


def one_line(text: str) -> str:
    """`text` with its control characters as escapes, such as `\\n`."""
    return _BREAKING.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def as_json(value: Any) -> str:
    """`value` as JSON on one line: letters as they are where standard output can encode them, else all as escapes.

    A byte that is no text is escaped as Python shows it, 0xff as `\\udcff`: `os.fsencode` gives the file's name back.
    """
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        return json.dumps(value)
    return text


def write_whatever_comes() -> None:
    """From now on standard output keeps bytes of names that are no text, and escapes what its encoding lacks."""
    codecs.register_error(_KEEPING, _kept)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors=_KEEPING)


def _kept(error: UnicodeError) -> tuple[str | bytes, int]:
    try:
        return codecs.lookup_error("surrogateescape")(error)
    except UnicodeError:
        return codecs.lookup_error("backslashreplace")(error)
