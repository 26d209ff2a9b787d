"""The images in the body of a request, whatever way they came.

In: a request with multipart files, raw bytes, or JSON with base64. Out: `Upload`s; nothing is decoded yet. The bytes
are counted as they come, whatever the header says of them, and they stay in memory: no image is written to disk.
Cost: the body in memory, twice while multipart or JSON is taken apart. Not covered: compressed bodies.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from typing import Any

from starlette.requests import Request

from graft.serving.decoding import Upload
from graft.serving.forms import Form
from graft.serving.intake import pour
from graft.serving.refusals import Refusal
from graft.serving.settings import Limits

FEW_VALUES = 10_000  # in a JSON body whose images are strings
VALUE_BYTES = 24  # about what a value of a list takes, its place in the list included
JSON_SHAPE = '{"image": "<base64>"} or {"images": ["<base64>", ...]}'
_DATA_URL = re.compile(r"data:[\w.+-]+/[\w.+-]+;base64,", re.ASCII)


async def uploads_of(request: Request, limits: Limits) -> list[Upload]:
    """The images of a request, at least one.

    Raises Refusal: 400 for a body that is not what its type says, 408 where it comes too slowly, 413 for too many or
    too large files, 415 for compressed bodies.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        form = Form(request.headers["content-type"], most=limits.files)
        await pour(request, limits, form.take)
        uploads = form.files()
    elif kind == "application/json":
        uploads = _from_json(await json_of(request, limits, most=FEW_VALUES), limits)
    else:
        data = await _whole(request, limits)
        uploads = [Upload(data)] if data else []
    if not uploads:
        raise Refusal(400, f"There is no image in the request; send files, raw bytes, or JSON {JSON_SHAPE}.")
    for upload in uploads:
        if len(upload.data) > limits.file_bytes:
            name = upload.file or "The image"
            raise Refusal(
                413, f"{name} has {len(upload.data):,} bytes; at most {limits.file_bytes:,} are taken."
            )
    return uploads


async def json_of(request: Request, limits: Limits, *, most: int) -> Any:
    """The JSON value of a body, which holds at most `most` values and lists, and few objects.

    They are counted before they are made: 60 MB of empty lists become 2 GB. Raises Refusal as `uploads_of` does, and Busy
    where what they need is not to be had now.
    """
    data = await _whole(request, limits)
    values, objects = data.count(b",") + data.count(b"["), data.count(b"{")
    if values > most or objects > FEW_VALUES:
        raise Refusal(413, f"The JSON holds more than the {most:,} values that are taken.")
    request.scope["graft.visit"].held.take(VALUE_BYTES * values)
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        raise Refusal(400, "The body is not valid JSON.") from None


async def _whole(request: Request, limits: Limits) -> bytes:
    chunks: list[bytes] = []
    await pour(request, limits, chunks.append)
    return b"".join(chunks)


def _from_json(value: Any, limits: Limits) -> list[Upload]:
    given = value.get("images", [value.get("image")]) if isinstance(value, dict) else None
    if not isinstance(given, list) or not all(isinstance(text, str) for text in given):
        raise Refusal(400, f"The JSON does not have the form {JSON_SHAPE}.")
    return from_base64(given, limits)


def from_base64(texts: list[str], limits: Limits) -> list[Upload]:
    """Encoded images; a `data:` URL will do, too. Raises Refusal (400, 413)."""
    if len(texts) > limits.files:
        raise too_many(len(texts), limits)
    return [Upload(_bytes(text, place)) for place, text in enumerate(texts)]


def too_many(images: int, limits: Limits) -> Refusal:
    """The refusal of more images than a request may have."""
    return Refusal(413, f"{images} images in one request; at most {limits.files} are taken.")


def _data_url_length(text: str) -> int:
    found = _DATA_URL.match(text)
    return found.end() if found else 0


def _bytes(text: str, place: int) -> bytes:
    try:
        return base64.b64decode(text[_data_url_length(text) :], validate=True)
    except (binascii.Error, ValueError):
        raise Refusal(400, f"Image {place} of the JSON is not valid base64.") from None
