"""What a service counts, for Prometheus.

In: requests, batches, queues. Out: the text of `/metrics`, over all worker processes where the service has several
(prometheus-client then keeps the numbers in files of PROMETHEUS_MULTIPROC_DIR). Not covered: anything about the images.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)
from prometheus_client.multiprocess import MultiProcessCollector

from graft.serving.batching import BatchQueue

SHARED_FOLDER = "PROMETHEUS_MULTIPROC_DIR"
_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
_SIZES = (1, 2, 4, 8, 16, 32, 64)


class Meters:
    """The counters of one process."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self._requests = Counter(
            "graft_requests", "Requests answered.", ["route", "status"], registry=registry
        )
        self._seconds = Histogram(
            "graft_request_seconds",
            "From the header of a request to the end of its answer.",
            ["route"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._batches = Histogram(
            "graft_batch_images",
            "Images in one run of the network.",
            ["model"],
            buckets=_SIZES,
            registry=registry,
        )
        self._queue = Gauge(
            "graft_queue_images",
            "Images accepted and not yet answered.",
            ["model"],
            registry=registry,
            multiprocess_mode="livesum",
        )
        self._queues: list[tuple[str, BatchQueue]] = []

    def answered(self, route: str, *, status: int, seconds: float) -> None:
        """One request has its answer."""
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def turned_away(self, route: str, count: int) -> None:
        """So many requests were refused before they became requests."""
        self._requests.labels(route, "503").inc(count)

    def batches(self, model: str) -> Callable[[int], None]:
        """What hears the size of each of `model`'s batches."""
        return self._batches.labels(model).observe

    def watch_queue(self, model: str, queue: BatchQueue) -> None:
        """Show the length of `queue`, as it is whenever somebody asks or a request ends."""
        self._queues.append((model, queue))

    def refresh(self) -> None:
        """Take the queues' lengths."""
        for model, queue in self._queues:
            self._queue.labels(model).set(queue.admitted_images)

    def exposition(self) -> tuple[bytes, str]:
        """The numbers in Prometheus' text format, and its content type."""
        self.refresh()
        registry = self._registry
        if os.environ.get(SHARED_FOLDER):
            registry = CollectorRegistry()
            MultiProcessCollector(registry)
        return generate_latest(registry), CONTENT_TYPE_LATEST
