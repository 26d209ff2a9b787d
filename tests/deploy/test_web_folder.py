"""The browser folder: what it holds, where the runtime comes from, and that it answers as `graft predict` does."""

from __future__ import annotations

import hashlib
import http.server
import io
import json
import shutil
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from browser import Browser, needs_browser
from made_models import LABELS, knowing, packed, packed_two
from PIL import Image

from graft import cli
from graft.deploy import web_folder as web
from graft.deploy.bundle import Bundle, load
from graft.errors import SettingsError
from graft.images.dataset import Preprocess


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Short files in the place of the runtime's."""
    contents = {name: f"made for {name}".encode() for name in web.RUNTIME_SHA256}
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    monkeypatch.setattr(web, "RUNTIME_SHA256", hashes)
    return contents


@pytest.fixture
def no_npm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web.shutil, "which", lambda _: None)


def package(place: Path, contents: dict[str, bytes], folder: str = "package/dist") -> Path:
    """An npm package with these files, and one that nobody asks for."""
    with tarfile.open(place, "w:gz") as archive:
        for name, content in {**contents, "../../outside": b"x"}.items():
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return place


def test_it_holds_everything(tmp_path: Path, stand_in: dict[str, bytes]) -> None:
    bundle = load(packed(tmp_path / "m.graft"))
    written = web.web_folder(bundle, tmp_path / "site", runtime=package(tmp_path / "a.tgz", stand_in))
    assert written.absent == () and written.folder == tmp_path / "site"
    facts = json.loads((tmp_path / "site" / "bundle.json").read_text())
    assert facts["labels"] == list(LABELS)
    for name, digest in facts["files"].items():
        assert hashlib.sha256((tmp_path / "site" / name).read_bytes()).hexdigest() == digest
    assert {"model.onnx", "preprocess.onnx"} <= set(facts["files"])
    assert (tmp_path / "site" / "labels.txt").read_text().splitlines() == list(LABELS)
    for name, content in stand_in.items():
        assert (tmp_path / "site" / "runtime" / name).read_bytes() == content
    page = (tmp_path / "site" / "index.html").read_text()
    assert "http://" not in page and "https://" not in page and "default-src 'none'" in page
    assert all(
        (tmp_path / "site" / name).is_file() for name in ("page.css", "page.js", "browser.js", "runtime.js")
    )
    assert not list(tmp_path.glob("**/outside")) and not list(tmp_path.glob(".site*"))
    assert written.size == sum(
        file.stat().st_size for file in (tmp_path / "site").rglob("*") if file.is_file()
    )


@pytest.mark.parametrize("where", [".", "dist", "package/dist", "node_modules/onnxruntime-web/dist"])
def test_the_runtime_from_a_folder(tmp_path: Path, stand_in: dict[str, bytes], where: str) -> None:
    place = tmp_path / "copy" / where
    place.mkdir(parents=True)
    for name, content in stand_in.items():
        (place / name).write_bytes(content)
    assert not web.web_folder(load(packed(tmp_path / "m")), tmp_path / "o", runtime=tmp_path / "copy").absent


def test_a_runtime_that_is_another_one_is_refused(tmp_path: Path, stand_in: dict[str, bytes]) -> None:
    bundle, name = load(packed(tmp_path / "m")), web.BINARY
    altered = {**stand_in, name: b"altered"}
    wrong = [tmp_path, package(tmp_path / "a.tgz", altered), package(tmp_path / "b.tgz", stand_in, "other")]
    cut = tmp_path / "c.tgz"
    cut.write_bytes(package(tmp_path / "whole.tgz", stand_in).read_bytes()[:-30])
    (tmp_path / "d.tgz").write_bytes(b"nothing")
    for place in [*wrong, cut, tmp_path / "d.tgz", tmp_path / "none.tgz"]:
        with pytest.raises(SettingsError, match=r"--runtime .*npm pack onnxruntime-web@"):
            web.web_folder(bundle, tmp_path / "site", runtime=place)
        assert not (tmp_path / "site").exists()


def test_without_a_runtime_it_says_which_files_to_put_where(
    tmp_path: Path, no_npm: None, capsys: pytest.CaptureFixture[str]
) -> None:
    packed(tmp_path / "m.graft")
    assert cli.main(["export", str(tmp_path / "m.graft"), "--to", "web"]) == 0
    said = capsys.readouterr()
    for name, digest in web.RUNTIME_SHA256.items():
        assert f"{tmp_path / 'm-web' / 'runtime' / name}  sha256 {digest}" in said.err
    assert (tmp_path / "m-web" / "index.html").is_file() and "MB for any web server" in said.out


def test_an_older_export_is_replaced_and_nothing_else(tmp_path: Path, no_npm: None) -> None:
    bundle = load(packed(tmp_path / "m"))
    web.web_folder(bundle, tmp_path / "o")
    (tmp_path / "o" / "left").write_text("over")
    web.web_folder(bundle, tmp_path / "o")
    assert not (tmp_path / "o" / "left").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "photo.jpg").write_bytes(b"")
    for place in (tmp_path / "mine", tmp_path / "mine" / "photo.jpg"):
        with pytest.raises(SettingsError, match="is not touched"):
            web.web_folder(bundle, place)
    assert (tmp_path / "mine" / "photo.jpg").is_file()


@pytest.mark.parametrize("given", [".", "../m.graft"])
def test_a_bundle_that_is_this_folder_is_exported_beside_itself(
    tmp_path: Path, no_npm: None, monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    monkeypatch.chdir(packed(tmp_path / "m.graft"))
    assert cli.main(["export", given, "--to", "web"]) == 0
    assert (tmp_path / "m-web" / "index.html").is_file()


def test_bad_options_get_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for options, sentence in (
        (["--to", "cat"], "--to cat: choose one of"),
        (["--to", "web", "--runtime", str(tmp_path / "none")], "cannot be read"),
    ):
        assert cli.main(["export", str(packed(tmp_path / "m")), *options]) == 2
        assert sentence in capsys.readouterr().err


class Quiet(http.server.SimpleHTTPRequestHandler):
    """A static file server without a log."""

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def hosted(folder: Path) -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The real runtime, through npm; and kept beside the checkout's other borrowed files where they are."""
    if shutil.which("npm") is None:
        pytest.skip("npm is not here, so the browser runtime cannot be had")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRAFT_CACHE", str(tmp_path_factory.getbasetemp() / "runtime-cache"))
        found = web._from_cache() or web._from_npm()
    if not found:
        pytest.skip("npm could not fetch the browser runtime")
    return found


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


SHOWN = """[...document.querySelectorAll('.answer')].map(card => ({
  label: card.querySelector('.label').textContent,
  probabilities: Object.fromEntries([...card.querySelectorAll('dl > div')].map(
    row => [row.children[0].textContent, Number(row.children[2].dataset.value)])),
}))"""


def differences(browser: Browser, bundle: Bundle, site: Path, photos: list[Path]) -> list[float]:
    """The largest difference in probability per photo between the folder in the browser and the bundle."""
    found = []
    with hosted(site) as url:
        browser.open(url)
        browser.choose(*photos)
        browser.wait_for(f"document.querySelectorAll('.answer').length === {len(photos)}", 120)
        for photo, shown in zip(photos, browser.run(SHOWN), strict=True):
            said = bundle.predict(photo)
            assert shown["label"] == ("Unknown" if said.unknown else said.label), photo
            found.append(
                max(abs(share - said.probabilities[name]) for name, share in shown["probabilities"].items())
            )
    assert not browser.faults()
    return found


def smooth_photos(folder: Path) -> list[Path]:
    """Photos of several sizes, forms and orientations, one of them with transparent parts and one of 20 megapixels."""
    generator, photos = np.random.default_rng(4), []
    folder.mkdir()
    for number, size in enumerate([(60, 90), (401, 333), (640, 480), (1200, 700), (5200, 3900)]):
        small = generator.integers(0, 256, (6, 8, 4), dtype=np.uint8)
        image = Image.fromarray(small, "RGBA").resize(size, Image.Resampling.BICUBIC)
        form = "png" if number == 1 else "jpg"
        exif = Image.Exif()
        exif[274] = 6 if number == 2 else 1
        photos.append(folder / f"{number}.{form}")
        (image if form == "png" else image.convert("RGB")).save(photos[-1], exif=exif, quality=95)
    return photos


@pytest.mark.slow
@needs_browser
@pytest.mark.parametrize(
    "preprocess", [Preprocess(16), Preprocess(20, "pad"), Preprocess(16, "squash", channels=1)]
)
def test_the_browser_answers_as_the_bundle_does(
    browser: Browser, runtime: dict[str, bytes], tmp_path: Path, preprocess: Preprocess
) -> None:
    bundle = load(packed(tmp_path / "m.graft", preprocess))
    web.web_folder(bundle, tmp_path / "site", runtime=package(tmp_path / "r.tgz", runtime))
    photos = smooth_photos(tmp_path / "photos")
    assert max(differences(browser, bundle, tmp_path / "site", photos)) < 0.01


@pytest.mark.slow
@needs_browser
def test_the_browser_decides_by_the_threshold_too(
    browser: Browser, runtime: dict[str, bytes], tmp_path: Path
) -> None:
    sets = {**(knowing(Preprocess(16)).conformal or {}), "least_probability": 0.99}
    photo = smooth_photos(tmp_path / "photos")[2]
    for label in LABELS[:2]:
        bundle = load(packed_two(tmp_path / f"{label}.graft", {label: 0.0}, sets))
        site = tmp_path / label
        web.web_folder(bundle, site, runtime=package(tmp_path / f"{label}.tgz", runtime))
        with hosted(site) as url:
            browser.open(url)
            browser.choose(photo)
            browser.wait_for("document.querySelectorAll('.answer').length === 1", 60)
            (shown,), said = browser.run(SHOWN), bundle.predict(photo)
            assert shown["label"] == said.label == label
            assert list(shown["probabilities"]) == list(said.probabilities)
            likely = browser.run("document.querySelector('.likely').textContent")
            assert likely == f"In 90 % of cases it is one of: {', '.join(said.labels_90 or ())}"


@pytest.mark.slow
@needs_browser
def test_the_browser_shows_what_spoke_for_it_and_refuses_what_was_altered(
    browser: Browser, runtime: dict[str, bytes], tmp_path: Path
) -> None:
    bundle = load(packed(tmp_path / "m.graft"))
    site = web.web_folder(bundle, tmp_path / "site", runtime=package(tmp_path / "r.tgz", runtime)).folder
    photo = smooth_photos(tmp_path / "photos")[2]
    with hosted(site) as url:
        browser.open(url)
        browser.choose(photo)
        browser.wait_for("!!document.querySelector('.map')", 60)
        browser.click("document.querySelector('.map')")
        browser.wait_for("!!document.querySelector('.picture canvas')")
        shown = np.array(browser.run("JSON.parse(document.querySelector('.picture canvas').dataset.map)"))
        np.testing.assert_allclose(shown, bundle.explain(photo), atol=0.1)
        whole = (site / "model.onnx").read_bytes()
        (site / "model.onnx").write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        browser.call("Network.setCacheDisabled", cacheDisabled=True)
        browser.open(url)
        assert "was altered" in browser.wait_for("document.querySelector('#says.wrong')?.textContent", 60)
        (site / "model.onnx").write_bytes(whole)
        facts = json.loads((site / "bundle.json").read_text(encoding="utf-8"))
        facts["labels"].reverse()
        (site / "bundle.json").write_text(json.dumps(facts), encoding="utf-8")
        browser.open(url)
        told = browser.wait_for("document.querySelector('#says.wrong')?.textContent", 60)
        assert told == "The classes in bundle.json were altered. Export the folder again."
        (site / "runtime" / web.BINARY).unlink()
        browser.open(url)
        browser.wait_for("document.querySelector('#says.wrong')?.textContent", 60)


@pytest.mark.slow
@needs_browser
def test_real_photos_through_a_real_network(
    browser: Browser, runtime: dict[str, bytes], shared_data: Path, shared_weights: Path, tmp_path: Path
) -> None:
    """A bundle of a study, and photos as they come from cameras."""
    photos = [
        photo
        for label in ("ants", "bees")
        for photo in sorted((shared_data / "hymenoptera" / "val" / label).glob("*.jpg"))[:10]
    ]
    if len(photos) < 20:
        pytest.skip("the given hymenoptera photos are not beside the checkout")
    arguments = ["study", str(shared_data / "hymenoptera" / "train"), "--weights", str(shared_weights)]
    arguments += ["--only", "frozen", "--backbones", "mobilenetv1_025.coral_in1k", "--budget", "2m"]
    assert cli.main([*arguments, "--out", str(tmp_path / "run")]) == 0
    bundle = load(tmp_path / "run" / "model.graft")
    web.web_folder(bundle, tmp_path / "site", runtime=package(tmp_path / "r.tgz", runtime))
    assert max(differences(browser, bundle, tmp_path / "site", photos)) < 0.01
