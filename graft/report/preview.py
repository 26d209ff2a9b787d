"""What the training saw: the contact sheet of the run folder, inside the page.

In: a run folder. Out: a data URI, or None where nothing was trained, or where the file is not the small JPEG that a
study leaves there. Nothing is decoded: the page shows it as it is.
"""

from __future__ import annotations

import base64
from pathlib import Path

from graft.images.preview import FILE, MOST_BYTES

_JPEG = b"\xff\xd8\xff"


def preview(run: Path) -> str | None:
    """The data URI of `preview.jpg` in the run folder, of at most 267 kB."""
    try:
        with (run / FILE).open("rb") as file:
            content = file.read(MOST_BYTES + 1)
    except OSError:
        return None
    if len(content) > MOST_BYTES or not content.startswith(_JPEG):
        return None
    return "data:image/jpeg;base64," + base64.b64encode(content).decode()
