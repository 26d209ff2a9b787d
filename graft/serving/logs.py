"""The service's log: one JSON object per line on standard error.

In: Python's log records. Out: time, level, event and the facts of a request; never anything of an image, of its name
or of a key.
"""

from __future__ import annotations

import json
import logging
from datetime import datetime, timezone
from typing import Any


class JsonLines(logging.Formatter):
    """A record as one line of JSON; what a record holds under `facts` becomes keys of its own."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        stamp = datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds")
        line: dict[str, Any] = {
            "time": stamp,
            "level": record.levelname.lower(),
            "event": record.getMessage(),
        }
        line |= {"process": record.process} | getattr(record, "facts", {})
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def log_config() -> dict[str, Any]:
    """For `logging.config.dictConfig`: uvicorn's messages and the service's own in the same form."""
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"json": {"()": JsonLines}},
        "handlers": {
            "stderr": {"class": "logging.StreamHandler", "formatter": "json", "stream": "ext://sys.stderr"}
        },
        "loggers": {
            name: {"handlers": ["stderr"], "level": "INFO", "propagate": False}
            for name in ("graft.serving", "uvicorn")
        },
    }
