"""Images that wait for the same network are answered together.

In: one image's pixels at a time, from any number of requests. Out: its row. Whatever waits when the network becomes
free is its next batch: an image that comes alone is run alone and at once, and under load batches grow by themselves,
without an artificial delay. Several batches may run side by side, each on a thread of its own; what waits is then
shared between those that are free. Cost: one copy of the pixels.

The number of images that are accepted and not yet answered is bounded; beyond it, `admitted` refuses. Not covered:
fairness between clients.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager

import numpy as np
from jaxtyping import Float32, UInt8

from graft.serving.refusals import Busy

Run = Callable[[np.ndarray], np.ndarray]
Batch = list[tuple[np.ndarray, asyncio.Future[np.ndarray]]]


class BatchQueue:
    """The queue in front of one network; belongs to one event loop.

    `run` takes uint8 `[n, h, w, c]` with n from 1 to `most` and gives `[n, k]`; it is called on `runner`, at most
    `abreast` batches at a time. At most `room` images are admitted at once. `observe` hears the size of every batch.
    """

    def __init__(
        self,
        run: Run,
        *,
        runner: Executor,
        room: int,
        most: int,
        observe: Callable[[int], None],
        abreast: int = 1,
    ) -> None:
        self._run, self._runner, self._observe = run, runner, observe
        self._room, self._most, self._abreast = room, most, abreast
        self._waiting: deque[tuple[np.ndarray, asyncio.Future[np.ndarray]]] = deque()
        self._tasks: set[asyncio.Task[None]] = set()  # the loop itself keeps only weak references
        self._working = 0
        self._seconds_per_image = 0.01
        self.admitted_images = 0

    def check(self) -> None:
        """Raises Busy where not even one more image would be admitted."""
        self._need(1)

    @contextmanager
    def admitted(self, count: int) -> Iterator[None]:
        """Room for `count` images until the block ends. Raises Busy where there is none."""
        self._need(count)
        self.admitted_images += count
        try:
            yield
        finally:
            self.admitted_images -= count

    async def answer(self, pixels: UInt8[np.ndarray, "h w c"]) -> Float32[np.ndarray, " k"]:
        """The network's row for one image. Whoever stops waiting for it takes it out of the queue."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[np.ndarray] = loop.create_future()
        self._waiting.append((pixels, future))
        if self._working < self._abreast:
            self._working += 1
            task = loop.create_task(self._work())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return await future

    def busy_seconds(self, count: int = 1) -> int | None:
        """The seconds until there may be room for `count` images, or None while there is."""
        if self.admitted_images + count <= self._room:
            return None
        return max(1, math.ceil(self.admitted_images * self._seconds_per_image))

    def _need(self, count: int) -> None:
        seconds = self.busy_seconds(count)
        if seconds is not None:
            raise Busy(seconds)

    async def _work(self) -> None:
        """Runs batches until nothing waits.

        Nothing may come between the look at an empty queue and the count: whoever waits then would wait for ever.
        """
        try:
            # Requests whose pixels are ready in this same turn of the loop join the first batch.
            await asyncio.sleep(0)
            while batch := self._next():
                await self._answered(batch)
        finally:
            self._working -= 1

    async def _answered(self, batch: Batch) -> None:
        loop = asyncio.get_running_loop()
        pixels = np.stack([image for image, _ in batch])
        self._observe(len(batch))
        begin = time.monotonic()
        try:
            rows = await loop.run_in_executor(self._runner, self._run, pixels)
        except Exception as error:  # noqa: BLE001 (each waiting request raises it again)
            _fail(batch, error)
            return
        taken = (time.monotonic() - begin) / len(batch) / self._abreast
        self._seconds_per_image += 0.1 * (taken - self._seconds_per_image)
        for (_, future), row in zip(batch, rows, strict=True):
            if not future.done():
                future.set_result(row)

    def _next(self) -> Batch:
        batch: Batch = []
        idle = self._abreast - self._working + 1
        share = min(self._most, math.ceil(len(self._waiting) / idle))
        while self._waiting and len(batch) < share:
            image, future = self._waiting.popleft()
            if not future.done():
                batch.append((image, future))
        return batch


def _fail(batch: Batch, error: Exception) -> None:
    for _, future in batch:
        if not future.done():
            future.set_exception(error)
