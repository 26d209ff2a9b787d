"""What the service answers: the bundle's own predictions, in every way a client can ask."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_models import LABELS, noise
from made_service import base64_of, client_of, image_bytes, packed, settings_of
from starlette.testclient import TestClient

from graft.deploy.bundle import Bundle, load
from graft.errors import SettingsError
from graft.images.dataset import Preprocess
from graft.serving.app import create
from graft.serving.settings import is_loopback, resolved
from graft.similar.build import indexing
from graft.similar.search import open_index

IMAGES = [
    image_bytes(seed, form=form) for seed, form in enumerate(("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"))
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("serving")


@pytest.fixture(scope="module")
def client(place: Path) -> Iterator[TestClient]:
    with client_of(settings_of(place)) as client:
        yield client


@pytest.fixture(scope="module")
def bundle(client: TestClient, place: Path) -> Bundle:
    return load(place / "tiny.graft")


def assert_equal(said: dict[str, Any], data: bytes, bundle: Bundle, *, within: float = 1e-6) -> None:
    expected = bundle.predict(data)
    assert said["label"] == expected.label
    assert list(said["probabilities"]) == list(expected.probabilities)
    assert said["probabilities"] == pytest.approx(expected.probabilities, abs=within)
    assert said["probability"] == said["probabilities"][said["label"]]


def test_by_openvino_the_answers_are_the_same(place: Path, bundle: Bundle) -> None:
    files = [("image", (f"{number}.img", data)) for number, data in enumerate(IMAGES)]
    with client_of(settings_of(place, runtime="openvino")) as client:
        said = client.post("/predict", files=files).json()["predictions"]
    for one, data in zip(said, IMAGES, strict=True):
        assert_equal(one, data, bundle, within=1e-5)


def test_files_in_a_form(client: TestClient, bundle: Bundle) -> None:
    files = [("image", (f"C:\\photos\\{place}.img", data)) for place, data in enumerate(IMAGES)]
    answer = client.post("/predict", files=files)
    assert answer.status_code == 200 and answer.json()["model"] == "tiny"
    said = answer.json()["predictions"]
    assert [one["file"] for one in said] == [f"{place}.img" for place in range(len(IMAGES))]
    for one, data in zip(said, IMAGES, strict=True):
        assert_equal(one, data, bundle)
    assert len({one["label"] for one in said}) > 1


def test_raw_bytes_whatever_the_type_says(client: TestClient, bundle: Bundle) -> None:
    for kind in ("image/png", "application/octet-stream", "application/x-www-form-urlencoded", ""):
        said = client.post("/predict", content=IMAGES[0], headers={"content-type": kind}).json()[
            "predictions"
        ]
        assert len(said) == 1 and said[0]["file"] is None
        assert_equal(said[0], IMAGES[0], bundle)


def test_json(client: TestClient, bundle: Bundle) -> None:
    one = client.post("/predict", json={"image": "data:image/png;base64," + base64_of(IMAGES[0])})
    assert_equal(one.json()["predictions"][0], IMAGES[0], bundle)
    many = client.post("/predict", json={"images": [base64_of(data) for data in IMAGES]})
    for said, data in zip(many.json()["predictions"], IMAGES, strict=True):
        assert_equal(said, data, bundle)


def test_topk_shows_the_most_probable(client: TestClient, bundle: Bundle) -> None:
    said = client.post("/predict?topk=2", content=IMAGES[0]).json()["predictions"][0]
    assert said["probabilities"] == pytest.approx(bundle.predict(IMAGES[0]).top(2), abs=1e-6)
    for bad in ("0", "-1", "a", "²", "1" * 5000, ""):
        answer = client.post("/predict", params={"topk": bad}, content=IMAGES[0])
        assert answer.status_code == 400 and "topk" in answer.json()["error"]


@pytest.mark.parametrize(
    ("data", "status", "sentence"),
    [
        (b"hello", 415, "The content is not that of a JPEG"),
        (b"%PDF-1.4", 415, "This is a PDF document"),
        (IMAGES[0][:60], 422, "The PNG file ends before its last pixel."),
        (image_bytes(side=2), 422, "each side needs at least 4"),
    ],
)
def test_what_cannot_be_read_gets_the_sentence_of_predict(
    client: TestClient, bundle: Bundle, data: bytes, status: int, sentence: str
) -> None:
    answer = client.post("/predict", content=data)
    assert answer.status_code == status and sentence in answer.json()["error"]
    named = client.post("/predict", files={"b": ("../bad.png", data)})
    assert named.status_code == status and named.json()["error"] == "bad.png: " + answer.json()["error"]


@pytest.mark.parametrize("explain", ["", "?explain=1"])
def test_one_bad_image_costs_the_others_nothing(client: TestClient, bundle: Bundle, explain: str) -> None:
    files = [("a", ("good.png", IMAGES[0])), ("b", ("../bad.png", b"hello")), ("c", ("c.png", IMAGES[1]))]
    answer = client.post("/predict" + explain, files=files)
    assert answer.status_code == 200
    first, second, third = answer.json()["predictions"]
    assert_equal(first, IMAGES[0], bundle)
    assert_equal(third, IMAGES[1], bundle)
    assert set(second) == {"file", "error"} and second["file"] == "bad.png"
    assert second["error"].startswith("bad.png: The content is not that of a JPEG")
    assert ("activation" in first) == ("activation" in third) == bool(explain)
    none = client.post("/predict", files=[("a", ("a", b"x")), ("b", ("b", b"y"))])
    assert none.status_code == 200 and all("error" in one for one in none.json()["predictions"])


def test_a_request_without_images_says_how(client: TestClient) -> None:
    for answer in (
        client.post("/predict"),
        client.post("/predict", json={"images": []}),
        client.post("/predict", files={"image": (None, "text")}),
    ):
        assert answer.status_code == 400 and "There is no image" in answer.json()["error"]


@pytest.mark.parametrize("value", [1, [], {}, {"image": 1}, {"images": "a"}, {"images": [None]}])
def test_json_of_another_form_is_refused(client: TestClient, value: Any) -> None:
    answer = client.post("/predict", json=value)
    assert answer.status_code == 400 and "form" in answer.json()["error"]


def test_damaged_json_and_base64_are_refused(client: TestClient) -> None:
    headers = {"content-type": "application/json"}
    for content in (b"{", b"\xff", b"[" * 9_000):
        answer = client.post("/predict", content=content, headers=headers)
        assert answer.status_code == 400 and "valid JSON" in answer.json()["error"]
    answer = client.post("/predict", json={"image": "?"})
    assert answer.status_code == 400 and "base64" in answer.json()["error"]


def test_several_models(place: Path, bundle: Bundle) -> None:
    packed(place / "run" / "model.graft", Preprocess(20, "squash"))
    settings = resolved([place / "tiny.graft", place / "run" / "model.graft", f"grey={packed_grey(place)}"])
    assert [name for name, _ in settings.bundles] == ["tiny", "run", "grey"]
    with client_of(settings) as client:
        for name, folder in settings.bundles:
            answer = client.post("/predict", params={"model": name}, content=IMAGES[1]).json()
            assert answer["model"] == name
            assert_equal(answer["predictions"][0], IMAGES[1], load(folder))
            facts = client.get("/bundle", params={"model": name}).json()
            assert facts["models"] == ["tiny", "run", "grey"] and facts["bundle"]["labels"] == list(LABELS)
        assert client.post("/predict", content=IMAGES[1]).json()["model"] == "tiny"
        unknown = client.post("/predict?model=cat", content=IMAGES[1])
        assert unknown.status_code == 404 and "there is: tiny, run, grey." in unknown.json()["error"]


def packed_grey(place: Path) -> Path:
    return packed(place / "g.graft", Preprocess(16, channels=1))


def test_two_models_of_one_name_are_refused() -> None:
    with pytest.raises(SettingsError, match="Two models would be called 'a'"):
        resolved(["a.graft", "b/a.graft"])
    with pytest.raises(SettingsError, match="NAME=FOLDER"):
        resolved(["a/b=model.graft"])


def test_health_docs_and_metrics(client: TestClient) -> None:
    assert client.get("/healthz").json() == {"live": True}
    assert client.get("/readyz").json() == {"ready": True, "models": ["tiny"]}
    client.post("/predict", content=IMAGES[0])
    text = client.get("/metrics").text
    assert 'graft_requests_total{route="/predict",status="200"}' in text
    assert 'graft_queue_images{model="tiny"} 0.0' in text
    assert 'graft_batch_images_count{model="tiny"}' in text


def test_the_pages_load_nothing_from_elsewhere(client: TestClient) -> None:
    for path in ("/", "/docs"):
        page = client.get(path)
        assert page.headers["content-type"] == "text/html; charset=utf-8"
        assert "default-src 'none'" in page.headers["content-security-policy"]
        assert "http" not in page.text.replace("httpx", "") and 'src="' not in page.text
        assert client.head(path).status_code == 200


def test_openapi_names_every_route_and_no_other(client: TestClient) -> None:
    described = client.get("/openapi.json").json()
    assert described["openapi"].startswith("3.1") and described["info"]["version"]
    for path, methods in described["paths"].items():
        for method in methods:
            answer = client.request(
                method,
                path.replace("{name}", "tiny").replace("{version}", "1").replace("{", "").replace("}", ""),
            )
            assert answer.status_code not in (404, 405) or "index" in answer.json()["error"].lower(), path
    text = json.dumps(described)
    for reference in {part.split('"')[0] for part in text.split('"$ref": "#/')[1:]}:
        found = described
        for key in reference.split("/"):
            found = found[key]


PYTHON = {
    "object": dict,
    "array": list,
    "string": str,
    "number": (int, float),
    "integer": int,
    "boolean": bool,
    "null": type(None),
}


def mismatches(value: Any, schema: dict[str, Any], whole: dict[str, Any], place: str) -> Iterator[str]:
    """Where `value` is not as the schema says, a key that it does not name included."""
    if "$ref" in schema:
        schema = whole["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    kinds = schema.get("type", list(PYTHON))
    if not any(isinstance(value, PYTHON[kind]) for kind in ([kinds] if isinstance(kinds, str) else kinds)):
        yield f"{place}: {value!r} is not of the type {kinds}"
    if value not in schema.get("enum", [value]) or value != schema.get("const", value):
        yield f"{place}: {value!r} is none of the values"
    if isinstance(value, dict):
        yield from (f"{place}: {key} is missing" for key in schema.get("required", ()) if key not in value)
        known, other = schema.get("properties", {}), schema.get("additionalProperties")
        for key, inner in value.items():
            if key in known or other:
                yield from mismatches(inner, known.get(key, other), whole, f"{place}.{key}")
            elif known:
                yield f"{place}: {key} is not described"
    for inner in value if isinstance(value, list) and "items" in schema else ():
        yield from mismatches(inner, schema["items"], whole, f"{place}[]")


def test_every_answer_is_as_openapi_describes_it(place: Path, index: Path) -> None:
    with client_of(resolved([place / "tiny.graft"], index=index)) as client:
        described = client.get("/openapi.json").json()
        seen = 0
        for path, methods in described["paths"].items():
            for method, how in methods.items():
                address = path.replace("{name}", "tiny").replace("{version}", "1")
                body = {"json": {"inputs": [GOOD], "id": "a"}} if path.endswith("infer") else {}
                if path in ("/predict", "/similar"):
                    body, address = {"content": IMAGES[0]}, address + "?explain=1" * (path == "/predict")
                answer = client.request(
                    method, address.replace("{place}", "0").replace("{number}", "0"), **body
                )
                assert answer.status_code == 200, path
                ((kind, content),) = how["responses"]["200"]["content"].items()
                assert answer.headers["content-type"].startswith(kind) and content["schema"], path
                if kind == "application/json":
                    assert not list(mismatches(answer.json(), content["schema"], described, path))
                    seen += 1
        assert seen >= 12
        refused = client.get("/nothing").json()
        assert not list(
            mismatches(refused, described["components"]["schemas"]["Error"], described, "refused")
        )


def test_other_addresses_and_methods_are_refused_in_json(client: TestClient) -> None:
    assert client.get("/nothing").status_code == 404 and "error" in client.get("/nothing").json()
    assert client.get("/predict").status_code == 405 and "error" in client.get("/predict").json()
    assert client.post("/").status_code == 405


def test_a_key_is_asked_for_where_one_was_given(place: Path, bundle: Bundle) -> None:
    file = place / "keys"
    file.write_text("first-key-of-length\n\nsecond-key-of-length\n")
    settings = settings_of(place, api_key_file=file)
    assert "first-key" not in repr(settings)
    with client_of(settings) as client:
        for path in ("/healthz", "/readyz", "/v2/health/live", "/", "/docs", "/openapi.json"):
            assert client.get(path).status_code == 200
        for path in ("/bundle", "/metrics", "/v2/models/tiny", "/nothing"):
            assert client.get(path).status_code == 401
        wrong = [{}, {"X-API-Key": "first-key"}, {"Authorization": "Bearer "}, {"X-API-Key": b"\xff" * 20}]
        wrong += [{"Authorization": "Basic first-key-of-length"}, {"Authorization": "first-key-of-length"}]
        for headers in wrong:
            answer = client.post("/predict", content=IMAGES[0], headers=headers)
            assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer"
        for headers in (
            {"X-API-Key": "first-key-of-length"},
            {"Authorization": "bearer second-key-of-length"},
        ):
            assert client.post("/predict", content=IMAGES[0], headers=headers).status_code == 200


@pytest.mark.parametrize("text", ["", "short", "long-enough-to-be-a-key\nshort"])
def test_a_key_file_without_a_good_key_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "keys").write_text(text)
    with pytest.raises(SettingsError, match="at least one key"):
        resolved(["a.graft"], api_key_file=tmp_path / "keys")
    with pytest.raises(SettingsError, match="cannot be read"):
        resolved(["a.graft"], api_key_file=tmp_path / "none")


def test_loopback() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "localhost", "::1", "127.9.9.9")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "192.168.0.1", "example.org")))


def test_similar_without_an_index_says_so(client: TestClient) -> None:
    answer = client.post("/similar", content=IMAGES[0])
    assert answer.status_code == 404 and "graft index" in answer.json()["error"]


@pytest.fixture(scope="module")
def index(client: TestClient, bundle: Bundle, place: Path) -> Path:
    """An index of the images."""
    (place / "photos").mkdir()
    for number, data in enumerate(IMAGES):
        (place / "photos" / f"{number}.png").write_bytes(data)
    for _ in indexing(bundle, place / "photos", out=place / "index"):
        pass
    return place / "index"


def test_similar_images(place: Path, index: Path, bundle: Bundle) -> None:
    other = packed(place / "other.graft", Preprocess(20))
    with client_of(resolved([other, place / "tiny.graft"], index=index)) as client:
        assert client.get("/bundle?model=tiny").json()["similar"]
        assert not client.get("/bundle").json()["similar"]
        files = [("image", (f"{number}.png", data)) for number, data in enumerate(IMAGES)]
        answer = client.post("/similar?topk=3", files=files).json()
        assert answer["model"] == "tiny"
        expected = open_index(index).search(bundle.embed(IMAGES), 3)
        for number, (result, matches) in enumerate(zip(answer["results"], expected, strict=True)):
            assert result["file"] == f"{number}.png"
            assert [match["name"] for match in result["matches"]] == [match.name for match in matches]
            assert result["matches"][0]["similarity"] == pytest.approx(1, abs=1e-5)
        assert client.post("/similar", content=b"hello").status_code == 415
        elsewhere = client.post("/similar?model=other", content=IMAGES[0])
        assert elsewhere.status_code == 400 and "the model tiny only" in elsewhere.json()["error"]


def test_an_index_of_another_model_is_refused(place: Path, index: Path) -> None:
    with pytest.raises(SettingsError, match="made with none of the models"):
        create(resolved([packed(place / "third.graft", Preprocess(18))], index=index))


def test_half_of_a_pair_of_surrogates_comes_back_as_it_came(client: TestClient) -> None:
    """A file name that is not UTF-8 holds one; a JSON string may, too."""
    body = json.dumps({"inputs": [GOOD], "id": "\ud800"})
    answer = client.post("/v2/models/tiny/infer", content=body)
    assert answer.status_code == 200 and json.loads(answer.content)["id"] == "\ud800"


def test_labels_and_names_that_are_not_utf_8_are_answered(tmp_path: Path) -> None:
    folder = packed(tmp_path / "odd.graft", labels=["a\udcffnt", *LABELS[1:]])
    photos = tmp_path / "photos"
    photos.mkdir()
    for seed, data in enumerate(IMAGES):
        (photos / f"na\udcff{seed}.png").write_bytes(data)
    for _ in indexing(load(folder), photos, out=tmp_path / "index"):
        pass
    with client_of(resolved([folder], index=tmp_path / "index")) as client:
        said = json.loads(client.post("/predict", content=IMAGES[0]).content)["predictions"][0]
        assert "a\udcffnt" in said["probabilities"]
        assert json.loads(client.get("/bundle").content)["bundle"]["labels"][0] == "a\udcffnt"
        found = json.loads(client.post("/similar", content=IMAGES[0]).content)["results"][0]["matches"]
        assert found[0]["name"].startswith("na\udcff")


def infer(client: TestClient, tensor: Any, **more: Any) -> Any:
    return client.post("/v2/models/tiny/infer", json={"inputs": [tensor], **more})


def test_the_open_inference_protocol(client: TestClient, bundle: Bundle) -> None:
    assert client.get("/v2").json()["name"] == "graft"
    assert client.get("/v2/health/live").status_code == client.get("/v2/health/ready").status_code == 200
    facts = client.get("/v2/models/tiny").json()
    assert facts["inputs"] == [{"name": "image", "datatype": "UINT8", "shape": [-1, 16, 16, 3]}]
    assert client.get("/v2/models/tiny/ready").json() == {"name": "tiny", "ready": True}
    assert client.get("/v2/models/cat").status_code == 404
    pixels = noise(3, bundle.preprocess)
    expected = bundle.predict_pixels(pixels)
    for data in (pixels.ravel().tolist(), pixels.tolist()):
        tensor = {"name": "image", "datatype": "UINT8", "shape": [3, 16, 16, 3], "data": data}
        answer = infer(client, tensor, id="a1").json()
        assert answer["id"] == "a1" and answer["model_name"] == "tiny"
        probabilities, label = answer["outputs"]
        assert probabilities["datatype"] == "FP32" and probabilities["shape"] == [3, 3]
        assert np.allclose(np.reshape(probabilities["data"], (3, 3)), expected, atol=1e-6)
        assert label["data"] == [LABELS[place] for place in expected.argmax(axis=1)]


def test_the_one_version_of_a_model_has_its_addresses(client: TestClient) -> None:
    assert client.get("/v2/models/tiny").json()["versions"] == ["1"]
    for path in ("/v2/models/tiny", "/v2/models/tiny/versions/1"):
        assert client.get(path).json()["name"] == "tiny"
        assert client.get(f"{path}/ready").json() == {"name": "tiny", "ready": True}
        said = client.post(f"{path}/infer", json={"inputs": [GOOD]}).json()
        assert said["model_version"] == "1" and len(said["outputs"]) == 2
    for last in ("", "/ready"):
        answer = client.get(f"/v2/models/tiny/versions/2{last}")
        assert answer.status_code == 404
        assert answer.json() == {"error": "There is no version '2' of tiny, only 1."}
    assert client.post("/v2/models/tiny/versions/2/infer", json={"inputs": [GOOD]}).status_code == 404
    assert client.get("/v2/models/cat/versions/1").status_code == 404


def test_pixels_without_the_number_of_images_are_told_the_shape(client: TestClient) -> None:
    for first in (16, 40):
        answer = infer(client, {**GOOD, "shape": [first, 16, 3]})
        assert answer.status_code == 400
        assert f"must be [n, 16, 16, 3] for the model tiny, not [{first}, 16, 3]" in answer.json()["error"]
    assert infer(client, {**GOOD, "shape": [33, 16, 16, 3]}).status_code == 413


def test_the_open_inference_protocol_takes_image_files(client: TestClient, bundle: Bundle) -> None:
    data = [base64_of(image) for image in IMAGES]
    tensor = {"name": "image", "datatype": "BYTES", "shape": [len(data)], "data": data}
    answer = infer(client, tensor, outputs=[{"name": "label"}]).json()
    assert [output["name"] for output in answer["outputs"]] == ["label"]
    assert answer["outputs"][0]["data"] == [one.label for one in bundle.predict(IMAGES)]


GOOD = {"name": "image", "datatype": "UINT8", "shape": [1, 16, 16, 3], "data": [0] * 768}


@pytest.mark.parametrize(
    "change",
    [
        {"name": "input"},
        {"datatype": "FP32"},
        {"datatype": None},
        {"shape": [1, 3, 16, 16]},
        {"shape": [2, 16, 16, 3]},
        {"shape": [0, 16, 16, 3]},
        {"shape": [True, 16, 16, 3]},
        {"shape": []},
        {"shape": "a"},
        {"data": [0] * 767},
        {"data": [0] * 767 + [256]},
        {"data": [0] * 767 + [-1]},
        {"data": [0] * 767 + [2**80]},
        {"data": [0] * 767 + [1.5]},
        {"data": [0] * 767 + ["1"]},
        {"data": [0] * 767 + [[1]]},
        {"data": [True] * 768},
        {"data": [0] * 767 + [True]},
        {"data": [[[[0, 0, False]] * 16] * 16]},
        {"data": [[[[0, 0, 0]] * 16] * 15 + [[[0, 0, 0]] * 15 + [[0, True, 0]]]]},
        {"data": {"a": 1}},
        {"datatype": "BYTES"},
        {"datatype": "BYTES", "shape": [1], "data": [1]},
        {"datatype": "BYTES", "shape": [1], "data": ["?"]},
        {"datatype": "BYTES", "shape": [2], "data": ["aaaa"]},
    ],
)
def test_inference_requests_that_are_not_as_described(client: TestClient, change: dict[str, Any]) -> None:
    assert infer(client, GOOD).status_code == 200
    answer = infer(client, {**GOOD, **change})
    assert answer.status_code == 400 and answer.json()["error"].endswith(".")


@pytest.mark.parametrize("outputs", [[], 1, ["label"], [{"name": "x"}], [{"name": [1]}], [{}]])
def test_outputs_that_are_not_there(client: TestClient, outputs: Any) -> None:
    answer = infer(client, GOOD, outputs=outputs)
    assert answer.status_code == 400 and "probabilities and label" in answer.json()["error"]


@pytest.mark.parametrize("request_", [1, [], {}, {"inputs": []}, {"inputs": [1]}, {"inputs": [GOOD, GOOD]}])
def test_inference_requests_without_one_input(client: TestClient, request_: Any) -> None:
    assert client.post("/v2/models/tiny/infer", json=request_).status_code == 400


def test_binary_tensors_are_refused(client: TestClient) -> None:
    answer = client.post(
        "/v2/models/tiny/infer", content=b"{}", headers={"Inference-Header-Content-Length": "2"}
    )
    assert answer.status_code == 400 and "JSON" in answer.json()["error"]
