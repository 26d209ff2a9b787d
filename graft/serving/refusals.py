"""Requests that get no answer, with the status and the sentence that they get instead.

In: what went wrong. Out: `{"error": sentence}` with a status of 4xx, or 503 and 504 where the service is the one that
cannot. The sentence is the one that `graft predict` prints.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse

from graft.errors import GraftError
from graft.images.headers import UnreadableImage

_STATUS_OF_KIND = {"too_large": 413, "not_an_image": 415}
_SENTENCES = {
    404: "There is nothing at this address; see /docs.",
    405: "This address does not take this method; see /docs.",
}


class Json(JSONResponse):
    """JSON in UTF-8. Half of a surrogate pair, as in a file name that is not UTF-8, is escaped: it cannot be encoded."""

    def render(self, content: Any) -> bytes:
        """The body."""
        text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        return text.encode("utf-8", "backslashreplace")


class Refusal(GraftError):
    """A request is not answered: the HTTP `status`, and headers that go with it."""

    def __init__(self, status: int, sentence: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(sentence)
        self.status = status
        self.headers = dict(headers or {})


class Busy(Refusal):
    """More is waiting than may wait; `seconds` from now it should look better."""

    def __init__(self, seconds: int) -> None:
        super().__init__(
            503, f"The service is busy; try again in {seconds} s.", {"Retry-After": str(seconds)}
        )


def response(error: GraftError) -> Json:
    """The answer that stands for `error`."""
    if isinstance(error, Refusal):
        return Json({"error": str(error)}, error.status, error.headers)
    status = _STATUS_OF_KIND.get(error.kind, 422) if isinstance(error, UnreadableImage) else 422
    return Json({"error": str(error)}, status)


async def of_graft_error(_: Request, error: Exception) -> Json:
    """The answer to a request that ended in a GraftError."""
    assert isinstance(error, GraftError)
    return response(error)


async def of_http_error(_: Request, error: Exception) -> Json:
    """The answer where Starlette itself refuses: no such route, or no such method."""
    assert isinstance(error, HTTPException)
    sentence = _SENTENCES.get(error.status_code, error.detail)
    return Json({"error": sentence}, error.status_code, error.headers)


async def of_disconnect(_: Request, error: Exception) -> Json:
    """For the log alone: the client has gone."""
    return Json({"error": "The client closed the connection before its request was complete."}, 400)


async def of_fault(_: Request, error: Exception) -> Json:
    """The answer to a fault of the service's own; the log holds the rest."""
    return Json({"error": "The service failed on this request; its log says why."}, 500)
