"""The models of a service: opened once, asked by many requests at the same time.

In: encoded images, or pixels in a network's geometry. Out: predictions, or embeddings; of several images, what is wrong
with one of them stands in its place. Images are decoded on a pool of threads (`graft.serving.decoding`) and then join the
model's batches; the answers are those of `Bundle.predict`. Cost: opening is that of the bundles and one run of each network.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

import anyio
import numpy as np
from jaxtyping import Float32, UInt8

from graft.compute import cpu_threads
from graft.deploy.bundle import Bundle, Prediction, load
from graft.images.headers import UnreadableImage
from graft.images.preprocess import load as load_pixels
from graft.serving.batching import BatchQueue
from graft.serving.decoding import Decoding, Upload
from graft.serving.meters import Meters
from graft.serving.refusals import Refusal
from graft.serving.settings import Limits, Settings

T = TypeVar("T")


class Hosted:
    """One opened model, its queue, and the threads that decode for it."""

    def __init__(
        self,
        name: str,
        bundle: Bundle,
        *,
        decoding: Decoding,
        runner: ThreadPoolExecutor,
        abreast: int,
        limits: Limits,
        meters: Meters,
    ) -> None:
        self.name, self.bundle = name, bundle
        self._decoding, self._limits, self._meters = decoding, limits, meters
        geometry = bundle.preprocess
        self.pixel_shape = (geometry.size, geometry.size, geometry.channels)
        self.queue = BatchQueue(
            self._run,
            runner=runner,
            room=limits.queue,
            most=limits.batch,
            observe=meters.batches(name),
            abreast=abreast,
        )
        meters.watch_queue(name, self.queue)
        # Side by side, as under load: what the largest batches need of memory is there from the beginning.
        largest = np.zeros((limits.batch, *self.pixel_shape), np.uint8)
        for _ in runner.map(self._run, [largest] * abreast):
            pass
        self._run(largest[:1])
        decoding.warm(self._load)
        self.explains = not bundle.no_activation

    async def predict(self, uploads: Sequence[Upload]) -> list[Prediction | UnreadableImage]:
        """A prediction per image, or what is wrong with it. Raises UnreadableImage for a single one; Busy, and
        Refusal(504) where it takes too long."""
        return await self._each(self._predict_one, uploads)

    async def explain(self, uploads: Sequence[Upload]) -> list[Float32[np.ndarray, "y x"] | UnreadableImage]:
        """For each image what spoke for its answer. Raises Refusal(422) where the model cannot tell, and as `predict`."""
        if not self.explains:
            raise Refusal(
                422, f"The model {self.name} cannot show what spoke for a class: {self.bundle.no_activation}."
            )
        return await self._each(partial(self._decoding.each, self.bundle.explain), uploads)

    async def probabilities(self, pixels: UInt8[np.ndarray, "n h w c"]) -> Float32[np.ndarray, "n k"]:
        """A row per image that already has the network's geometry. Raises as `predict` does."""
        with self.queue.admitted(len(pixels)):
            rows = np.stack(await self._in_time(_all(self.queue.answer(image) for image in pixels)))
            return rows[:, : len(self.bundle.labels)]

    async def decoded(self, uploads: Sequence[Upload]) -> UInt8[np.ndarray, "n h w c"]:
        """The pixels that the network is to see. Raises UnreadableImage, and Busy where too much waits already."""
        with self._admitted(uploads):
            return np.stack(
                await self._in_time(_all(self._decoding.each(self._load, one) for one in uploads))
            )

    async def embed(self, uploads: Sequence[Upload]) -> list[Float32[np.ndarray, "1 d"] | UnreadableImage]:
        """The features in front of the head, a row per image. Raises as `predict` does."""
        return await self._each(partial(self._decoding.each, self.bundle.embed), uploads)

    async def _each(
        self, work: Callable[[Upload], Awaitable[T]], uploads: Sequence[Upload]
    ) -> list[T | UnreadableImage]:
        """The work on every image. One that cannot be read costs the others nothing."""

        async def done(upload: Upload) -> T | UnreadableImage:
            try:
                return await work(upload)
            except UnreadableImage as error:
                if len(uploads) == 1:
                    raise
                return error

        with self._admitted(uploads):
            return await self._in_time(_all(map(done, uploads)))

    @contextmanager
    def _admitted(self, uploads: Sequence[Upload]) -> Iterator[None]:
        """Room for the images in the queue, and for their pixels in front of it."""
        with self.queue.admitted(len(uploads)), self._decoding.admitted(uploads):
            yield

    async def _predict_one(self, upload: Upload) -> Prediction:
        row = await self.queue.answer(await self._decoding.each(self._load, upload))
        classes = len(self.bundle.labels)
        score = float(row[classes]) if len(row) > classes else None
        return self.bundle.prediction(row[:classes], score)

    def _load(self, data: bytes) -> UInt8[np.ndarray, "h w c"]:
        return load_pixels(data, self.bundle.preprocess)

    def _run(self, pixels: UInt8[np.ndarray, "n h w c"]) -> Float32[np.ndarray, "n _"]:
        """Probabilities and, where the bundle has it, the score of being unknown as a last column."""
        rows, scores = self.bundle.answer_pixels(pixels)
        return rows if scores is None else np.column_stack([rows, scores])

    async def _in_time(self, work: Awaitable[T]) -> T:
        seconds = self._limits.answer_seconds
        try:
            with anyio.fail_after(seconds):
                return await work
        except TimeoutError:
            raise Refusal(
                504, f"The answer took longer than {seconds:g} s; send fewer or smaller images."
            ) from None


class Models:
    """All models of a service by name; the first one answers where none is named."""

    def __init__(self, settings: Settings, meters: Meters) -> None:
        threads = max(1, cpu_threads() // settings.workers)
        self._decoding = Decoding(threads, settings.limits)
        self._runner = ThreadPoolExecutor(threads, thread_name_prefix="network")
        # A network that runs on one thread starts no threads of its own, which would spin while they wait for work:
        # so many of its batches side by side answered more images per second than one at a time on all processors.
        self._hosted = {
            name: Hosted(
                name,
                load(folder, threads=1, runtime=settings.runtime, abreast=threads),
                decoding=self._decoding,
                runner=self._runner,
                abreast=threads,
                limits=settings.limits,
                meters=meters,
            )
            for name, folder in settings.bundles
        }

    @property
    def names(self) -> list[str]:
        """The names, in the order of the command line."""
        return list(self._hosted)

    def find(self, name: str | None) -> Hosted:
        """The model called `name`, or the first one. Raises Refusal(404) that lists the names."""
        if name is None:
            return next(iter(self))
        if name not in self._hosted:
            known = ", ".join(self._hosted)
            raise Refusal(404, f"There is no model {name[:100]!r} here; there is: {known}.")
        return self._hosted[name]

    def full(self) -> int | None:
        """The seconds until one of the models may have room for an image, or None while one has."""
        seconds = [hosted.queue.busy_seconds() for hosted in self]
        waits = [wait for wait in seconds if wait is not None]
        return min(waits) if len(waits) == len(seconds) else None

    def close(self) -> None:
        """Ends all threads, after what they are doing."""
        self._decoding.close()
        self._runner.shutdown()

    def __iter__(self) -> Iterator[Hosted]:
        return iter(self._hosted.values())


async def _all(work: Iterable[Awaitable[T]]) -> list[T]:
    """Like asyncio.gather, but the first failure cancels the rest."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        return await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise
