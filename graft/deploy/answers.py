"""Many images through a packed model, one answer each, whatever some of the files turn out to be.

In: the rows of a listing and a question to ask of an image's bytes. Out: an `Answer` per row, in their order: the
image's digest and the model's numbers, or the reason why there are none. Every image is asked alone, so an answer does
not depend on its neighbours; the threads, each with an image of its own, keep the processors busy instead of a batch.

Cost: every file is read whole; at most four images per thread are in memory at a time.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32

from graft.errors import DatasetError
from graft.images.decode import MAX_BYTES
from graft.images.readers import read_bytes
from graft.images.rows import Row

AHEAD = 4


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """What came of one image.

    `digest` is the BLAKE2b hash (40 hexadecimal digits) of its bytes, empty where they cannot be had. `values` is None
    where there is a `reason`, and where the question was settled by the digest alone.
    """

    digest: str
    values: Float32[np.ndarray, " d"] | None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class LeftOut:
    """An image without an answer, and why."""

    name: str
    reason: str


def answers(
    rows: Sequence[Row], ask: Callable[[bytes, str], Float32[np.ndarray, " d"] | None], *, threads: int
) -> Iterator[Answer]:
    """`ask(bytes, digest)` of every row, in their order; what DatasetError or OSError it raises becomes the reason."""
    ahead: deque[Future[Answer]] = deque()
    with ThreadPoolExecutor(threads, "graft-answer") as pool:
        try:
            for row in rows:
                ahead.append(pool.submit(_answer, row, ask))
                if len(ahead) > AHEAD * threads:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            for future in ahead:
                future.cancel()


def _answer(row: Row, ask: Callable[[bytes, str], Float32[np.ndarray, " d"] | None]) -> Answer:
    try:
        if row.row is None and row.path.stat().st_size > MAX_BYTES:
            return Answer("", None, f"The file is larger than {MAX_BYTES:,} bytes.")
        data = read_bytes(row.path, row.row)
    except FileNotFoundError:
        return Answer("", None, "The file does not exist.")
    except OSError as error:
        return Answer("", None, f"The file cannot be opened: {error.strerror or error}.")
    except DatasetError as error:
        return Answer("", None, str(error))
    digest = hashlib.blake2b(data, digest_size=20).hexdigest()
    try:
        values = ask(data, digest)
    except DatasetError as error:
        return Answer(digest, None, str(error))
    if values is not None and not np.isfinite(values).all():
        return Answer(digest, None, "The model's answer to this image is not a number.")
    return Answer(digest, values)
