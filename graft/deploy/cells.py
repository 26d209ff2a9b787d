"""Names of files in tables that people open with a spreadsheet.

A spreadsheet computes what begins like a formula. A file's name may begin so, and often comes from somebody else; as a
path it can be written `./=name.png` just as well, which no spreadsheet computes and every program opens. Class names are
written as they are: they come from the model's maker, and anything added would make them another class.
"""

from __future__ import annotations

# As OWASP's page on CSV injection lists them.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def path_cell(name: str) -> str:
    """`name` as a path that is the same file and no formula."""
    return f"./{name}" if name.startswith(_FORMULA) else name
