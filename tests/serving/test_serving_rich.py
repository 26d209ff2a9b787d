"""What a bundle that knows its limits, and an index, add to the service's answers."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from made_service import client_of, image_bytes, knowing, packed
from PIL import Image
from starlette.testclient import TestClient

from graft.deploy.bundle import Bundle, load
from graft.images.dataset import Preprocess
from graft.serving.settings import resolved
from graft.similar.build import indexing

IMAGES = [image_bytes(seed) for seed in range(12)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("rich")
    bundle = load(packed(place / "tiny.graft", knowing=knowing()))
    (place / "photos" / "deep").mkdir(parents=True)
    for seed, data in enumerate(IMAGES):
        (place / "photos" / "deep" / f"{seed:02}.png").write_bytes(data)
    (place / "photos" / "large.png").write_bytes(image_bytes(20, side=900))
    for _ in indexing(bundle, place / "photos", out=place / "index"):
        pass
    (place / "secret.png").write_bytes(image_bytes(30))
    return place


@pytest.fixture(scope="module")
def bundle(place: Path) -> Bundle:
    return load(place / "tiny.graft")


@pytest.fixture
def client(place: Path) -> Iterator[TestClient]:
    with client_of(resolved([place / "tiny.graft"], index=place / "index")) as client:
        yield client


def test_unknown_and_label_sets_are_the_bundles(client: TestClient, bundle: Bundle) -> None:
    told = set()
    for data in IMAGES:
        said = client.post("/predict", content=data).json()["predictions"][0]
        expected = bundle.predict(data)
        assert said["unknown"] is expected.unknown and said["label"] == expected.label
        assert said["score"] == pytest.approx(expected.score, abs=1e-6)
        assert said["labels_90"] == list(expected.labels_90 or ())
        assert sum(said["probabilities"].values()) == pytest.approx(1, abs=1e-5)
        told.add(said["unknown"])
    assert told == {True, False}
    assert client.get("/bundle").json()["bundle"]["unknown"]["threshold"] == -0.9


def test_explain_gives_the_bundles_map(client: TestClient, bundle: Bundle) -> None:
    answer = client.post("/predict?explain=1", files=[("a", ("a", data)) for data in IMAGES[:3]]).json()
    for said, data in zip(answer["predictions"], IMAGES, strict=False):
        assert said["activation"]["label"] == said["label"]
        np.testing.assert_allclose(said["activation"]["map"], bundle.explain(data), rtol=1e-3, atol=1e-6)
    assert client.get("/bundle").json()["explains"] is True
    assert "activation" not in client.post("/predict?explain=0", content=IMAGES[0]).json()["predictions"][0]
    for bad in ("2", "yes", ""):
        answer = client.post("/predict", params={"explain": bad}, content=IMAGES[0])
        assert answer.status_code == 400 and "choose 0 or 1" in answer.json()["error"]


def test_a_model_that_cannot_explain_says_so_by_its_name_alone(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Bundle, "no_activation", "its head is no linear layer")
    with client_of(resolved([place / "tiny.graft"])) as client:
        answer = client.post("/predict?explain=1", content=IMAGES[0])
        assert answer.status_code == 422
        assert answer.json()["error"] == (
            "The model tiny cannot show what spoke for a class: its head is no linear layer."
        )


def test_the_inference_protocol_leaves_the_score_out(client: TestClient, bundle: Bundle) -> None:
    pixels = np.zeros((1, 16, 16, 3), np.uint8)
    tensor = {"name": "image", "datatype": "UINT8", "shape": [1, 16, 16, 3], "data": pixels.ravel().tolist()}
    outputs = client.post("/v2/models/tiny/infer", json={"inputs": [tensor]}).json()["outputs"]
    assert outputs[0]["shape"] == [1, 3]
    np.testing.assert_allclose(outputs[0]["data"], bundle.predict_pixels(pixels)[0], atol=1e-6)


def opened(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def test_thumbnails_are_those_of_the_matches(client: TestClient) -> None:
    found = client.post("/similar?topk=13", content=IMAGES[5]).json()["results"][0]["matches"]
    assert found[0]["name"] == "deep/05.png"
    answer = client.get("/" + found[0]["thumbnail"])
    assert (
        answer.headers["content-type"] == "image/jpeg"
        and answer.headers["x-content-type-options"] == "nosniff"
    )
    shown = np.asarray(opened(answer.content).convert("RGB"), np.float32)
    wanted = np.asarray(opened(IMAGES[5]).convert("RGB"), np.float32)
    assert np.abs(shown - wanted).mean() < 12
    large = next(match for match in found if match["name"] == "large.png")
    assert max(opened(client.get("/" + large["thumbnail"]).content).size) == 160


def test_samples_are_a_few_images_of_the_index(client: TestClient) -> None:
    assert client.get("/bundle").json()["samples"] == 6
    sizes = [opened(client.get(f"/samples/{number}").content).size for number in range(6)]
    assert all(max(size) <= 640 for size in sizes)
    assert client.get("/samples/6").status_code == 404


@pytest.mark.parametrize(
    "asked",
    [
        "13",
        "999999999",
        "9999999999",
        "-1",
        "1.0",
        "²",
        "x",
        "",
        "..%2fsecret.png",
        "%00",
        "0%20",
        "00%2f..%2f1",
    ],
)
def test_other_places_are_refused(client: TestClient, asked: str) -> None:
    for route in ("/similar/thumbnail/", "/samples/"):
        answer = client.get(route + asked)
        assert answer.status_code == 404 and answer.json()["error"].endswith("."), asked


def test_only_what_was_indexed_is_shown(place: Path) -> None:
    """A file that was replaced, by another image or by a link out of the folder, is not shown."""
    photo = place / "photos" / "deep" / "03.png"
    try:
        for change in (
            lambda: photo.write_bytes((place / "secret.png").read_bytes()),
            lambda: photo.write_bytes(b"text"),
            lambda: photo.symlink_to(place / "secret.png"),
            lambda: photo.mkdir(),
        ):
            photo.unlink()
            change()
            with client_of(resolved([place / "tiny.graft"], index=place / "index")) as client:
                assert client.get("/similar/thumbnail/3").status_code == 404
                assert client.get("/similar/thumbnail/4").status_code == 200
            if photo.is_dir():
                photo.rmdir()
                photo.touch()
    finally:
        photo.unlink()
        photo.write_bytes(IMAGES[3])


def test_without_the_images_there_are_names_only(place: Path) -> None:
    (place / "photos").rename(place / "moved")
    try:
        with client_of(resolved([place / "tiny.graft"], index=place / "index")) as client:
            assert client.get("/bundle").json()["samples"] == 0
            match = client.post("/similar", content=IMAGES[5]).json()["results"][0]["matches"][0]
            assert match["name"] == "deep/05.png" and match["thumbnail"] is None
            assert (
                client.get("/samples/0").status_code == client.get("/similar/thumbnail/0").status_code == 404
            )
    finally:
        (place / "moved").rename(place / "photos")


def test_one_image_that_is_gone_takes_only_its_own_picture_along(place: Path) -> None:
    photo = place / "photos" / "deep" / "00.png"
    kept = photo.read_bytes()
    photo.unlink()
    try:
        with client_of(resolved([place / "tiny.graft"], index=place / "index")) as client:
            assert client.get("/bundle").json()["samples"] == 5
            assert all(client.get(f"/samples/{number}").status_code == 200 for number in range(5))
            match = client.post("/similar", content=IMAGES[5]).json()["results"][0]["matches"][0]
            assert client.get("/" + match["thumbnail"]).status_code == 200
    finally:
        photo.write_bytes(kept)


def test_samples_are_shown_with_the_model_of_the_index_alone(place: Path, tmp_path: Path) -> None:
    other = packed(tmp_path / "other.graft", Preprocess(20))
    with client_of(resolved([place / "tiny.graft", other], index=place / "index")) as client:
        said = {name: client.get("/bundle", params={"model": name}).json() for name in ("tiny", "other")}
    assert said["tiny"]["samples"] == 6 and said["other"]["samples"] == 0


def test_pictures_ask_for_the_key_too(place: Path, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("\ufeffa-key-of-good-length", encoding="utf-8")  # as some editors write it
    settings = resolved([place / "tiny.graft"], index=place / "index", api_key_file=tmp_path / "keys")
    with client_of(settings) as client:
        for path in ("/similar/thumbnail/0", "/samples/0"):
            assert client.get(path).status_code == 401
            assert client.get(path, headers={"X-API-Key": "a-key-of-good-length"}).status_code == 200
