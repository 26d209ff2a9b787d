"""Bad uploads by the thousand: each gets a sentence and a status of 4xx, none a 5xx, a hang or an invented answer."""

from __future__ import annotations

import asyncio
import json
import resource
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hostile import counted
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_service import base64_of, image_bytes, settings_of

from graft.serving.app import create

FORMS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
GOOD = {form: image_bytes(seed, form=form) for seed, form in enumerate(FORMS)}
BOUNDARY = b"b0undary"
FORM_TYPE = f"multipart/form-data; boundary={BOUNDARY.decode()}"
few = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


class Asked:
    """The bare application in a loop of its own: no client tidies up what is sent."""

    def __init__(self, place: Path) -> None:
        self._app = create(settings_of(place))
        self._loop = asyncio.new_event_loop()

    def __call__(self, path: str, body: bytes, kind: bytes, *, query: bytes = b"") -> tuple[int, Any]:
        sent: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        scope = {
            "type": "http",
            "method": "POST",
            "path": path,
            "query_string": query,
            "headers": [(b"content-type", kind), (b"content-length", str(len(body)).encode())],
        }
        self._loop.run_until_complete(asyncio.wait_for(self._app(scope, receive, send), 20))
        return sent[0]["status"], json.loads(sent[1]["body"])

    def close(self) -> None:
        self._loop.close()


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Asked]:
    asked = Asked(tmp_path_factory.mktemp("hostile"))
    yield asked
    asked.close()


def assert_refused(answer: tuple[int, Any]) -> None:
    status, said = answer
    assert 400 <= status < 500, answer
    assert set(said) == {"error"} and said["error"].endswith((".", ")")), answer


def assert_answered_or_refused(answer: tuple[int, Any]) -> None:
    status, said = answer
    if status != 200:
        assert_refused(answer)
    for prediction in said.get("predictions", []):
        assert sum(prediction["probabilities"].values()) == pytest.approx(1, abs=1e-4)


def part(data: bytes, disposition: bytes = b'form-data; name="image"; filename="a.png"') -> bytes:
    return b"--" + BOUNDARY + b"\r\nContent-Disposition: " + disposition + b"\r\n\r\n" + data + b"\r\n"


def form(*parts: bytes) -> bytes:
    return b"".join(parts) + b"--" + BOUNDARY + b"--\r\n"


def test_images_cut_anywhere(asked: Asked) -> None:
    """Whatever is answered is answered from a picture that is whole."""
    with counted("images cut off") as case:
        for name, data in GOOD.items():
            whole = asked("/predict", data, b"image/x")
            assert whole[0] == 200
            for end in np.linspace(0, len(data) - 1, 300).astype(int):
                case()
                answer = asked("/predict", data[:end], b"image/x")
                assert_answered_or_refused(answer)
                if answer[0] == 200:
                    assert name in ("PNG", "GIF", "JPEG", "WEBP") and end > 0.9 * len(data), (name, end)
                    assert answer == whole


def test_images_with_altered_bytes(asked: Asked) -> None:
    generator = np.random.default_rng(7)
    with counted("images with altered bytes") as case:
        for good in GOOD.values():
            for _ in range(300):
                case()
                data = np.frombuffer(good, np.uint8).copy()
                count = int(generator.integers(1, 12))
                data[generator.integers(0, min(len(data), 200), count)] = generator.integers(0, 256, count)
                assert_answered_or_refused(asked("/predict", data.tobytes(), b"image/x"))


def test_forms_cut_anywhere(asked: Asked) -> None:
    """Also where all that came is whole: it is not what the client wanted to send."""
    body = form(part(GOOD["GIF"][:200]), part(b"text", b'form-data; name="x"'), part(GOOD["GIF"]))
    with counted("forms cut off") as case:
        for end in np.linspace(0, len(body) - 5, 500).astype(int):
            case()
            assert_refused(asked("/predict", body[:end], FORM_TYPE.encode()))


def test_random_bytes(asked: Asked) -> None:
    generator = np.random.default_rng(8)
    heads = [b"", *(data[:12] for data in GOOD.values())]
    with counted("garbage") as case:
        for number in range(700):
            case()
            body = heads[number % len(heads)] + generator.bytes(int(generator.integers(0, 600)))
            assert_refused(asked("/predict", body, b"image/png"))


def test_polyglots(asked: Asked) -> None:
    """What begins as something else is that; what follows a whole image does not count."""
    fronts = [
        b"%PDF-1.4\n",
        b"<html>",
        b"<svg xmlns=",
        b"PK\3\4",
        b"GIF",
        b"\0",
        b"\x7fELF",
        b"MZ",
        b"#!/bin/sh\n",
    ]
    backs = [
        b"PK\5\6" + bytes(18),
        b"<script>alert(1)</script>",
        b"\0" * 5000,
        b"%%EOF",
        GOOD["PNG"],
        GOOD["JPEG"],
    ]
    with counted("images behind something else") as case:
        for front in fronts:
            for data in GOOD.values():
                case()
                assert_refused(asked("/predict", front + data, b"image/png"))
    with counted("images with something behind them") as case:
        for data in GOOD.values():
            whole = asked("/predict", data, b"image/png")
            for back in backs:
                case()
                answer = asked("/predict", data + back, b"image/png")
                assert_answered_or_refused(answer)
                assert answer[0] != 200 or answer == whole


def png(width: int, height: int, *chunks: tuple[bytes, bytes], pixels: bytes = b"") -> bytes:
    """A PNG file with these chunks between header and pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(pixels)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in parts
    )


def test_headers_that_promise_too_many_pixels(asked: Asked) -> None:
    """Refused by what the header says, before anything is decoded or memory is taken."""
    gif, bmp = GOOD["GIF"], GOOD["BMP"]
    jpeg_at = GOOD["JPEG"].index(b"\xff\xc0") + 5
    with counted("headers that promise more pixels than memory holds") as case:
        for width in (10_000, 20_000, 50_000, 65_535):
            for height in (10_000, 30_000, 60_000, 65_535):
                pair, small = struct.pack(">HH", height, width), struct.pack("<HH", width, height)
                for data in (
                    png(width, height),
                    GOOD["JPEG"][:jpeg_at] + pair + GOOD["JPEG"][jpeg_at + 4 :],
                    gif[:6] + small + gif[10:],
                    bmp[:18] + struct.pack("<ii", width, height) + bmp[26:],
                ):
                    case()
                    assert_refused(asked("/predict", data, b"image/x"))


def test_decompression_bombs(asked: Asked) -> None:
    """Few bytes that unpack to many: in pixels, in texts, in colour profiles."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with counted("decompression bombs") as case:
        for megabytes in (1, 8, 64, 256):
            much = zlib.compress(bytes(megabytes * 2**20), 9)
            for data in (
                png(16, 16, pixels=bytes(min(megabytes, 64) * 2**20)),
                png(16, 16, (b"zTXt", b"a\0\0" + much)),
                png(16, 16, (b"iCCP", b"a\0\0" + much)),
                png(16, 16, (b"iTXt", b"a\0\1\0\0\0" + much)),
            ):
                case()
                assert_answered_or_refused(asked("/predict", data, b"image/png"))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400_000  # kB


def test_huge_headers(asked: Asked) -> None:
    jpeg, segment = GOOD["JPEG"], b"\xff\xe1\xff\xff" + bytes(65_533)
    whole = asked("/predict", jpeg, b"image/jpeg")
    with counted("huge headers") as case:
        for count in (1, 10, 100):
            for data in (
                jpeg[:2] + segment * count + jpeg[2:],
                jpeg[:2] + b"\xff" * (65_536 * count) + jpeg[2:],
                png(16, 16, *[(b"tEXt", b"a\0" + bytes(65_536))] * count),
                png(16, 16, *[(b"aaAa", b"")] * (1000 * count)),
            ):
                case()
                answer = asked("/predict", data, b"image/x")
                assert_answered_or_refused(answer)
                if data.startswith(jpeg[:2]) and answer[0] == 200:
                    assert answer == whole


@few
@given(
    body=st.binary(max_size=400),
    kind=st.sampled_from([b"", b"image/png", b"application/json", FORM_TYPE.encode()]),
)
def test_garbage(asked: Asked, body: bytes, kind: bytes) -> None:
    for path in ("/predict", "/v2/models/tiny/infer"):
        assert_refused(asked(path, body, kind))


@few
@given(head=st.sampled_from([data[:12] for data in GOOD.values()]), rest=st.binary(max_size=600))
def test_garbage_that_begins_like_an_image(asked: Asked, head: bytes, rest: bytes) -> None:
    assert_answered_or_refused(asked("/predict", head + rest, b"image/png"))


@few
@given(
    front=st.sampled_from([b"%PDF-1.4\n", b"<html>", b"PK\3\4", b"GIF", b"\0"]), name=st.sampled_from(FORMS)
)
def test_images_behind_something_else(asked: Asked, front: bytes, name: str) -> None:
    assert_refused(asked("/predict", front + GOOD[name], b"image/png"))


@few
@given(name=st.sampled_from(FORMS), behind=st.binary(max_size=300))
def test_images_with_something_behind_them(asked: Asked, name: str, behind: bytes) -> None:
    answer = asked("/predict", GOOD[name] + behind, b"image/png")
    assert_answered_or_refused(answer)
    if answer[0] == 200:
        assert answer == asked("/predict", GOOD[name], b"image/png")


@few
@given(
    kind=st.binary(max_size=60), front=st.sampled_from([b"", b"multipart/form-data", b"multipart/form-data;"])
)
def test_content_types(asked: Asked, kind: bytes, front: bytes) -> None:
    assert_answered_or_refused(asked("/predict", form(part(GOOD["PNG"])), front + kind))


@few
@given(disposition=st.binary(max_size=80))
def test_dispositions(asked: Asked, disposition: bytes) -> None:
    clean = b'form-data; name="image"; filename="' + disposition + b'"'
    for given_ in (disposition, clean):
        body = form(part(GOOD["PNG"], given_))
        assert_answered_or_refused(asked("/predict", body, FORM_TYPE.encode()))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
tensors = st.fixed_dictionaries(
    {
        "name": st.just("image") | json_values,
        "datatype": st.sampled_from(["UINT8", "BYTES", "FP32"]) | json_values,
        "shape": st.just([1, 16, 16, 3]) | st.just([1]) | json_values,
        "data": st.just([0] * 768) | st.lists(st.integers(), max_size=3) | json_values,
    }
)


@few
@given(value=json_values, key=st.sampled_from(["image", "images", "inputs", "outputs"]), tensor=tensors)
def test_json_of_any_form(asked: Asked, value: Any, key: str, tensor: Any) -> None:
    for said in (value, {key: value}, {key: [value]}):
        body = json.dumps(said).encode()
        assert_refused(asked("/predict", body, b"application/json"))
    for said in ({key: value}, {"inputs": [tensor]}, {"inputs": [tensor], "outputs": value, "id": value}):
        body = json.dumps(said).encode()
        assert_answered_or_refused(asked("/v2/models/tiny/infer", body, b"application/json"))


@few
@given(
    query=st.binary(max_size=60) | st.text(max_size=20).map(lambda text: f"model={text}&topk={text}".encode())
)
def test_queries(asked: Asked, query: bytes) -> None:
    assert_answered_or_refused(asked("/predict", GOOD["PNG"], b"image/png", query=query))


def test_thousands_of_parts(asked: Asked) -> None:
    headers = b"--" + BOUNDARY + b"\r\n" + b"X-A: b\r\n" * 5000 + b"\r\nx\r\n"
    long = b"--" + BOUNDARY + b"\r\nX-A: " + b"b" * 1_000_000 + b"\r\n\r\nx\r\n"
    empty, field = part(b""), part(b"x", b'form-data; name="x"')
    bodies = [form(*[one] * count) for one in (empty, field, part(GOOD["GIF"])) for count in (40, 1000, 5000)]
    with counted("forms of thousands of parts") as case:
        for body in [*bodies, form(headers), form(long)]:
            case()
            assert_refused(asked("/predict", body, FORM_TYPE.encode()))


def test_names_with_paths_and_control_characters(asked: Asked) -> None:
    fronts = [b"../../etc/", b"..\\..\\", b"C:\\", b"/", b"", b"a/" * 500, b"file:///", b"\\\\host\\share\\"]
    names = [
        b"passwd",
        b"a\x00b",
        b"<script>",
        b"\xff\xfe",
        b"a" * 2000,
        b"..",
        b"\x1b[2J",
        b"\xe2\x80\xaegnp.exe",
    ]
    with counted("names with paths and control characters") as case:
        for name in [front + last for front in fronts for last in names]:
            case()
            body = form(part(b"nothing", b'form-data; name="i"; filename="' + name + b'"'))
            status, said = asked("/predict", body, FORM_TYPE.encode())
            shown = said["error"].rpartition(": ")[0]
            assert status in (400, 415) and "/" not in shown and "\\" not in shown and len(shown) <= 200
            assert shown.isprintable()


def test_json_and_base64_that_is_nearly_right(asked: Asked) -> None:
    good = base64_of(GOOD["PNG"])
    texts = [
        good[:-1],
        good + "=A",
        "*" + good,
        good.replace("A", "-"),
        "data:," + good,
        good[:40] + " " + good[40:],
    ]
    texts += [good[:end] + "\n" + good[end:] for end in range(0, 80, 4)] + [
        "=" + good,
        "data:image/png;base64",
        "\u0441" + good,
    ]
    with counted("JSON and base64 that is nearly right") as case:
        for text in texts:
            for value in (
                {"image": text},
                {"images": [good, text]},
                {"images": text},
                [text],
                {"image": [text]},
            ):
                case()
                assert_refused(asked("/predict", json.dumps(value).encode(), b"application/json"))
