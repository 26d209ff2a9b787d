"""What the service does not accept, and how it behaves when more comes than it can answer."""

from __future__ import annotations

import asyncio
import io
import itertools
import json
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hostile import counted
from made_service import base64_of, client_of, image_bytes, settings_of
from PIL import Image

from graft.deploy.bundle import Bundle, load
from graft.errors import SettingsError
from graft.images.extent import declared_size
from graft.serving import intake
from graft.serving.app import create
from graft.serving.batching import BatchQueue
from graft.serving.decoding import WARM, Decoding, Upload
from graft.serving.refusals import Busy
from graft.serving.settings import Limits

IMAGE = image_bytes(1)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("limits")


def test_limits_of_bytes_and_files(place: Path) -> None:
    limits = Limits(file_bytes=len(IMAGE), request_bytes=4 * len(IMAGE), files=2)
    longer = IMAGE + b"\0"
    with client_of(settings_of(place, limits=limits)) as client:
        assert client.post("/predict", content=IMAGE).status_code == 200
        assert client.post("/predict", files=[("a", ("a", IMAGE)), ("b", ("b", IMAGE))]).status_code == 200
        refused = [
            client.post("/predict", content=longer),
            client.post("/predict", files={"a": ("a", longer)}),
            client.post("/predict", json={"image": base64_of(longer)}),
            client.post("/predict", files=[("a", (str(number), b"")) for number in range(3)]),
            client.post("/predict", json={"images": ["", "", ""]}),
            client.post("/predict", content=IMAGE * 5),
            client.post("/predict", content=itertools.repeat(IMAGE, 5)),
            client.get("/healthz", headers={"content-length": str(5 * len(IMAGE))}),
        ]
        for answer in refused:
            assert answer.status_code == 413, answer.text
            assert answer.json()["error"].endswith(".")
        assert "a has" in refused[1].json()["error"]


def png_of(side: int) -> bytes:
    written = io.BytesIO()
    Image.new("L", (side, side)).save(written, "PNG")
    return written.getvalue()


def test_pixels_are_counted_before_they_are_decoded(place: Path) -> None:
    large, small = png_of(1000), png_of(100)
    limits = Limits(request_pixels=2_500_000, waiting_pixels=2_500_000)
    with client_of(settings_of(place, limits=limits)) as client:
        assert client.post("/predict", files=[("a", (str(n), large)) for n in range(2)]).status_code == 200
        for path in ("/predict", "/predict?explain=1"):
            answer = client.post(path, files=[("a", (str(n), large)) for n in range(3)])
            assert answer.status_code == 413 and "too many pixels" in answer.json()["error"]
        assert client.post("/predict", content=png_of(2000)).status_code == 200  # alone, whatever it has
        assert client.post("/predict", files=[("a", (str(n), small)) for n in range(9)]).status_code == 200


def test_what_waits_to_be_decoded_is_bounded_and_forgotten() -> None:
    decoding = Decoding(1, Limits(waiting_pixels=1_500_000))
    large = Upload(png_of(1000))
    with decoding.admitted([large]):
        assert decoding.waiting == 1_000_000
        with pytest.raises(Busy) as refused, decoding.admitted([large]):
            pass
        assert refused.value.headers["Retry-After"] == "1"
        with decoding.admitted([Upload(IMAGE), Upload(b"no image")]):
            pass
    assert decoding.waiting == 0
    decoding.close()


def test_every_decoding_thread_is_warmed_up() -> None:
    seen: set[int] = set()

    def work(data: bytes) -> None:
        assert declared_size(data) == WARM
        seen.add(threading.get_ident())
        time.sleep(0.02)  # so that no thread does the work of the others

    decoding = Decoding(3, Limits())
    decoding.warm(work)
    decoding.close()
    assert len(seen) == 3


def test_a_body_of_too_many_values_is_refused_before_they_are_made(place: Path) -> None:
    nested = b"[" + b"[]," * 60_000 + b"[]]"
    objects = b"[" + b"{}," * 20_000 + b"{}]"
    with client_of(settings_of(place)) as client:
        for body in (nested, objects, b'{"images": ' + nested + b"}"):
            answer = client.post("/predict", content=body, headers={"content-type": "application/json"})
            assert answer.status_code == 413 and "values" in answer.json()["error"]
        infer = b'{"inputs": [{"name": "image", "data": ' + nested + b"}]}"
        assert client.post("/v2/models/tiny/infer", content=infer).status_code == 413
        most = [[[[7] * 3] * 16] * 16] * 32
        tensor = {"name": "image", "datatype": "UINT8", "shape": [32, 16, 16, 3], "data": most}
        assert client.post("/v2/models/tiny/infer", json={"inputs": [tensor]}).status_code == 200


def test_values_count_as_memory(place: Path) -> None:
    tensor = {"name": "image", "datatype": "UINT8", "shape": [8, 16, 16, 3], "data": [7] * 8 * 768}
    with client_of(settings_of(place, limits=Limits(memory_bytes=100_000))) as client:
        assert client.post("/v2/models/tiny/infer", json={"inputs": [tensor]}).status_code == 503
        assert client.post("/predict", content=IMAGE).status_code == 200


def test_a_request_that_never_fits_cannot_be_allowed() -> None:
    with pytest.raises(SettingsError, match="never fit"):
        Limits(files=65, queue=64)


def test_compressed_bodies_are_refused(place: Path) -> None:
    with client_of(settings_of(place)) as client:
        answer = client.post("/predict", content=IMAGE, headers={"content-encoding": "gzip"})
        assert answer.status_code == 415 and "Compressed" in answer.json()["error"]


def test_a_picture_of_too_many_pixels_is_refused_before_it_is_decoded(place: Path) -> None:
    bomb = IMAGE[:16] + (60_000).to_bytes(4, "big") * 2 + IMAGE[24:]
    with client_of(settings_of(place)) as client:
        answer = client.post("/predict", content=bomb)
        assert answer.status_code == 413 and "pixels" in answer.json()["error"]


# One request against the bare application: (what it sent, how long it took).
Sent = tuple[list[dict[str, Any]], float]


async def ask(app: Any, chunks: Callable[[], Awaitable[dict[str, Any]]], **headers: str) -> Sent:
    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/predict",
        "query_string": b"",
        "headers": [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()],
        "client": ("127.0.0.1", 1),
    }
    begin = time.monotonic()
    await app(scope, chunks, send)
    return sent, time.monotonic() - begin


def whole(data: bytes) -> Callable[[], Awaitable[dict[str, Any]]]:
    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": data, "more_body": False}

    return receive


async def stalling() -> dict[str, Any]:
    await asyncio.sleep(60)
    raise AssertionError("nobody waits this long")


def status_of(sent: list[dict[str, Any]]) -> int:
    return sent[0]["status"]


def error_of(sent: list[dict[str, Any]]) -> str:
    return json.loads(sent[1]["body"])["error"]


def test_a_body_that_does_not_come_is_given_up(place: Path) -> None:
    app = create(settings_of(place, limits=Limits(body_seconds=0.1)))
    sent, seconds = asyncio.run(ask(app, stalling, content_length="100"))
    assert status_of(sent) == 408 and "within 0.1 s" in error_of(sent) and seconds < 5
    assert (b"connection", b"close") in sent[0]["headers"]


def test_a_client_that_waits_for_the_word_to_send_is_refused_without_waiting(place: Path) -> None:
    app = create(settings_of(place))
    sent, seconds = asyncio.run(ask(app, stalling, content_length="9" * 12, expect="100-continue"))
    assert status_of(sent) == 413 and seconds < 0.5


def test_a_body_without_an_end_is_cut(place: Path) -> None:
    app, count = create(settings_of(place, limits=Limits(file_bytes=10_000, request_bytes=10_000))), 0

    async def endless() -> dict[str, Any]:
        nonlocal count
        count += 1
        return {"type": "http.request", "body": bytes(1000), "more_body": True}

    for headers in ({"transfer_encoding": "chunked"}, {"content_length": "5"}):
        sent, _ = asyncio.run(ask(app, endless, **headers))
        assert status_of(sent) == 413 and (b"connection", b"close") in sent[0]["headers"]
    # What is thrown away after the refusal has its end, too.
    assert count < 40_000


def test_slow_and_endless_bodies(place: Path) -> None:
    """Of every kind, with and without a length: given up in time, and nothing is left behind."""
    app = create(settings_of(place, limits=Limits(file_bytes=4000, request_bytes=4000, body_seconds=0.1)))
    kinds = {"image/png": IMAGE, "application/json": b'{"image": "', FORM: FORM_BEGIN}
    with counted("slow and endless bodies") as case:
        for kind, beginning in kinds.items():
            for headers in ({"transfer_encoding": "chunked"}, {"content_length": "3999"}):
                for pause, status in ((60.0, 408), (0.0, 413)):
                    case()
                    sent, seconds = asyncio.run(
                        ask(app, dripping(beginning, pause), content_type=kind, **headers)
                    )
                    assert status_of(sent) == status and seconds < 10, (kind, headers, status)
    assert app.memory.held == 0


FORM = "multipart/form-data; boundary=b"
FORM_BEGIN = b'--b\r\nContent-Disposition: form-data; name="i"; filename="i"\r\n\r\n'


def dripping(beginning: bytes, pause: float) -> Callable[[], Awaitable[dict[str, Any]]]:
    """The beginning of a body, and then the same bytes again and again, each after a pause."""
    parts = itertools.chain([beginning], itertools.repeat(b"A" * 1000))

    async def receive() -> dict[str, Any]:
        part = next(parts)
        if part is not beginning:
            await asyncio.sleep(pause)
        return {"type": "http.request", "body": part, "more_body": True}

    return receive


def test_too_many_bytes_in_memory_are_busy_and_the_rest_goes_on(place: Path) -> None:
    app = create(settings_of(place, limits=Limits(memory_bytes=len(IMAGE))))

    async def run() -> list[Sent]:
        first = await ask(app, whole(IMAGE + b"\0"))
        return [first, await ask(app, whole(IMAGE))]

    (refused, _), (answered, _) = asyncio.run(run())
    assert status_of(refused) == 503 and status_of(answered) == 200


def test_too_many_requests_in_flight_are_busy(place: Path) -> None:
    app = create(settings_of(place, limits=Limits(requests=1, body_seconds=0.3)))

    async def run() -> list[Sent]:
        return await asyncio.gather(
            ask(app, stalling, content_length="10"), ask(app, whole(IMAGE)), ask(app, whole(IMAGE))
        )

    sent = [status_of(sent) for sent, _ in asyncio.run(run())]
    assert sent == [408, 503, 503]


def test_the_slowest_upload_makes_room(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever sends a byte now and then would shut everybody out; who sends more, or has just begun, stays."""
    monkeypatch.setattr(intake, "UNDISTURBED_SECONDS", 0.4)
    app = create(settings_of(place, limits=Limits(requests=2, body_seconds=2.0)))

    async def run() -> list[Sent]:
        slow = asyncio.create_task(ask(app, dripping(b"A", 0.3), content_length="9999999"))
        slower = asyncio.create_task(ask(app, stalling, content_length="10"))
        await asyncio.sleep(0.1)
        early = await ask(app, whole(IMAGE))
        await asyncio.sleep(0.5)
        return [early, await ask(app, whole(IMAGE)), await slower, await slow]

    (early, _), (late, _), (slower, seconds), (slow, _) = asyncio.run(run())
    assert (status_of(early), status_of(late)) == (503, 200)
    assert status_of(slower) == 408 and "too slowly while others" in error_of(slower) and seconds < 1.5
    assert status_of(slow) == 408 and "within 2 s" in error_of(slow)
    assert app.memory.held == 0


def test_an_upload_that_nobody_waits_for_may_take_its_time(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake, "UNDISTURBED_SECONDS", 0.1)
    app = create(settings_of(place, limits=Limits(requests=2, body_seconds=0.8)))

    async def run() -> list[Sent]:
        slow = asyncio.create_task(ask(app, stalling, content_length="10"))
        await asyncio.sleep(0.3)
        return [await ask(app, whole(IMAGE)), await slow]

    (answered, _), (slow, _) = asyncio.run(run())
    assert status_of(answered) == 200 and "within 0.8 s" in error_of(slow)


@contextmanager
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[threading.Event, list[int]]]:
    """Networks that answer only once the event is set; the sizes of the batches that they were given."""
    go, sizes, real = threading.Event(), [], Bundle.predict_pixels

    def slow(self: Bundle, pixels: np.ndarray) -> np.ndarray:
        sizes.append(len(pixels))
        assert go.wait(30)
        return real(self, pixels)

    monkeypatch.setattr(Bundle, "predict_pixels", slow)
    try:
        yield go, sizes
    finally:
        go.set()


def test_a_full_queue_is_busy_at_once_and_what_was_accepted_is_answered(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_of(place, limits=Limits(files=2, queue=4))
    app = create(settings)

    async def run(go: threading.Event) -> tuple[list[Sent], list[Sent]]:
        accepted = [asyncio.create_task(ask(app, whole(IMAGE))) for _ in range(4)]
        await asyncio.sleep(0.2)
        refused = [await ask(app, whole(IMAGE)) for _ in range(20)]
        go.set()
        return await asyncio.gather(*accepted), refused

    with held(monkeypatch) as (go, _):
        accepted, refused = asyncio.run(run(go))
    assert [status_of(sent) for sent, _ in accepted] == [200] * 4
    for sent, seconds in refused:
        assert status_of(sent) == 503 and "busy" in error_of(sent) and seconds < 0.5
        assert int(dict(sent[0]["headers"])[b"retry-after"]) >= 1


def test_an_answer_that_takes_too_long_is_given_up_and_leaves_room(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = create(settings_of(place, limits=Limits(files=1, queue=1, answer_seconds=1.0)))

    async def run(go: threading.Event) -> tuple[Sent, Sent]:
        late = await ask(app, whole(IMAGE))
        go.set()
        return late, await ask(app, whole(IMAGE))

    with held(monkeypatch) as (go, _):
        (late, seconds), (answered, _) = asyncio.run(run(go))
    assert status_of(late) == 504 and "1 s" in error_of(late) and seconds < 9
    assert status_of(answered) == 200


def test_what_comes_together_is_answered_together_and_the_same(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_of(place)
    images = [image_bytes(seed) for seed in range(80)]
    expected = load(settings.bundles[0][1]).predict(images)
    app = create(settings)

    async def run(go: threading.Event) -> list[Sent]:
        tasks = [asyncio.create_task(ask(app, whole(image))) for image in images]
        await asyncio.sleep(0.5)
        go.set()
        return await asyncio.gather(*tasks)

    with held(monkeypatch) as (go, sizes):
        sent = asyncio.run(run(go))
    assert sum(sizes) == 80 and max(sizes) == 8 and len(sizes) <= 16, sizes
    for (messages, _), prediction in zip(sent, expected, strict=True):
        said = json.loads(messages[1]["body"])["predictions"][0]
        assert said["label"] == prediction.label
        assert said["probabilities"] == pytest.approx(prediction.probabilities, abs=1e-6)


def queue_of(
    run: Callable[[np.ndarray], np.ndarray], runner: ThreadPoolExecutor, **options: int
) -> BatchQueue:
    sizes = {"room": 8, "most": 4, **options}
    return BatchQueue(run, runner=runner, observe=lambda _: None, room=sizes["room"], most=sizes["most"])


def means(pixels: np.ndarray) -> np.ndarray:
    return pixels.reshape(len(pixels), -1).mean(axis=1, keepdims=True, dtype=np.float32)


def test_a_network_that_fails_fails_its_own_batch_only() -> None:
    def run(pixels: np.ndarray) -> np.ndarray:
        if pixels.max() == 255:
            raise ValueError("no")
        return means(pixels)

    async def rows() -> list[Any]:
        with ThreadPoolExecutor(1) as runner:
            queue = queue_of(run, runner, most=1)
            values = (1, 255, 3)
            asked = [queue.answer(np.full((2, 2, 1), value, np.uint8)) for value in values]
            return await asyncio.gather(*asked, return_exceptions=True)

    first, second, third = asyncio.run(rows())
    assert first == 1 and isinstance(second, ValueError) and third == 3


def test_one_after_the_other_every_image_is_answered_at_once() -> None:
    """The next image may come in the very turn of the loop in which the worker finds the queue empty."""

    async def rows() -> list[float]:
        with ThreadPoolExecutor(1) as runner:
            queue = queue_of(means, runner)
            pixels = [np.full((2, 2, 1), value, np.uint8) for value in range(50)]
            return [float((await asyncio.wait_for(queue.answer(image), 5))[0]) for image in pixels]

    assert asyncio.run(rows()) == list(range(50))


def test_whoever_stops_waiting_is_not_computed() -> None:
    go, sizes = threading.Event(), []

    def run(pixels: np.ndarray) -> np.ndarray:
        sizes.append(len(pixels))
        assert go.wait(30)
        return means(pixels)

    async def leave() -> None:
        with ThreadPoolExecutor(1) as runner:
            queue = queue_of(run, runner)
            tasks = [asyncio.create_task(queue.answer(np.full((2, 2, 1), n, np.uint8))) for n in range(6)]
            await asyncio.sleep(0.05)
            tasks[5].cancel()
            go.set()
            done = await asyncio.gather(*tasks, return_exceptions=True)
            assert [float(row[0]) for row in done[:5]] == [0, 1, 2, 3, 4]
            assert isinstance(done[5], asyncio.CancelledError)

    asyncio.run(leave())
    assert sizes == [4, 1]


def test_admission_counts_images_and_gives_them_back() -> None:
    with ThreadPoolExecutor(1) as runner:
        queue = queue_of(means, runner)
        with queue.admitted(5), queue.admitted(3):
            with pytest.raises(Busy, match="try again in"), queue.admitted(1):
                pass
            with pytest.raises(Busy):
                queue.check()
        queue.check()
        assert queue.admitted_images == 0
