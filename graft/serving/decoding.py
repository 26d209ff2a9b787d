"""The threads that decode uploads, and how many pixels may wait for them.

In: encoded images. Out: whatever is to be made of each, on a pool of threads that all models share. A file of a few
hundred kilobytes may hold 89 million pixels, a second's work; so pixels are counted before they are decoded, those of one
request and those of all that wait. Cost: a look at each file's header.
"""

from __future__ import annotations

import asyncio
import io
import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from PIL import Image

from graft.images.decode import MAX_PIXELS
from graft.images.extent import declared_size
from graft.images.headers import UnreadableImage, sniff
from graft.serving.refusals import Busy, Refusal
from graft.serving.settings import Limits

T = TypeVar("T")
# A JPEG is decoded at a smaller scale where it is much larger than the network looks at.
_JPEG_SHARE = 0.25
WARM, WARMING = (1600, 1200), 4
_LEARNING = 0.2  # how much one image moves what is known of the speed


@dataclass(frozen=True, slots=True)
class Upload:
    """One image as it came: encoded bytes, and the file's name where the client gave one."""

    data: bytes
    file: str | None = None


class Decoding:
    """The pool; belongs to one event loop. `waiting`: the pixels that are admitted and not yet answered."""

    def __init__(self, threads: int, limits: Limits) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
        self._threads, self._limits = threads, limits
        self._seconds_per_pixel = 1e-8
        self.waiting = 0.0

    @contextmanager
    def admitted(self, uploads: Sequence[Upload]) -> Iterator[None]:
        """Room for the pixels of a request until the block ends.

        Raises Refusal(413) where one request has too many, and Busy where too many wait already.
        """
        pixels = sum(map(_work_of, uploads))
        if len(uploads) > 1 and pixels > self._limits.request_pixels:
            raise Refusal(
                413,
                f"The images of the request have too many pixels together; send fewer at a time (PNG and the like: at most "
                f"{self._limits.request_pixels / 1e6:.0f} million pixels, JPEG four times as many).",
            )
        if self.waiting and self.waiting + pixels > self._limits.waiting_pixels:
            raise Busy(max(1, math.ceil(self.waiting * self._seconds_per_pixel / self._threads)))
        self.waiting += pixels
        try:
            yield
        finally:
            self.waiting -= pixels

    async def each(self, work: Callable[[bytes], T], upload: Upload) -> T:
        """`work` of the bytes, on a thread; what it says of them begins with the file's name, as `graft predict` says it."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._timed, work, upload)

    def warm(self, work: Callable[[bytes], object]) -> None:
        """Do the work on pictures of some sizes, on all threads at once, as under load: what their allocators need of memory is
        there from the beginning."""
        written = io.BytesIO()
        Image.new("RGB", WARM).save(written, "JPEG")
        for _ in self._pool.map(work, [written.getvalue()] * self._threads * WARMING):
            pass

    def close(self) -> None:
        """Ends the threads, after what they are doing."""
        self._pool.shutdown()

    def _timed(self, work: Callable[[bytes], T], upload: Upload) -> T:
        begin = time.monotonic()
        try:
            return work(upload.data)
        except UnreadableImage as error:
            if upload.file is None:
                raise
            raise UnreadableImage(error.kind, f"{upload.file}: {error.reason}") from error
        finally:
            taken = (time.monotonic() - begin) / max(1.0, _work_of(upload))
            self._seconds_per_pixel += _LEARNING * (taken - self._seconds_per_pixel)


def _work_of(upload: Upload) -> float:
    """The pixels to decode, those of a JPEG a quarter each; 0 for what will be refused."""
    try:
        wide, high = declared_size(upload.data)
        pixels = wide * high * (_JPEG_SHARE if sniff(upload.data) == "JPEG" else 1.0)
        return pixels if wide * high <= MAX_PIXELS else 0.0
    except UnreadableImage:
        return 0.0
