"""The page in a real browser without a network: what it shows is what `/predict` answers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Browser, needs_browser
from made_service import image_bytes, knowing, packed
from served import Served, served

from graft.deploy.bundle import load
from graft.deploy.pack import Knowing
from graft.images.dataset import Preprocess
from graft.similar.build import indexing

pytestmark = [pytest.mark.slow, needs_browser]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    place = tmp_path_factory.mktemp("photos")
    for seed in range(3):
        (place / f"<b>{seed}.png").write_bytes(image_bytes(seed))
    (place / "broken.png").write_bytes(image_bytes(0)[:80])
    return sorted(place.iterdir())


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    place = tmp_path_factory.mktemp("page")
    with served(place, packed(place / "tiny.graft")) as service:
        yield service


@pytest.fixture(scope="module")
def rich(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Served, Path]]:
    """A service whose bundle knows its limits, with an index; and the indexed photos."""
    place = tmp_path_factory.mktemp("rich")
    bundle = packed(place / "tiny.graft", knowing=knowing())
    (place / "photos").mkdir()
    for seed in range(12):
        (place / "photos" / f"{seed:02}.png").write_bytes(image_bytes(seed))
    for _ in indexing(load(bundle), place / "photos", out=place / "index"):
        pass
    with served(place, bundle, "--index", place / "index") as service:
        yield service, place / "photos"


SHOWN = """[...document.querySelectorAll('.answer')].map(card => ({
  file: card.querySelector('.name').textContent,
  label: card.querySelector('.label').textContent,
  probabilities: Object.fromEntries([...card.querySelectorAll('dl > div')].map(
    row => [row.children[0].textContent, Number(row.children[2].dataset.value)])),
  width: parseFloat(card.querySelector('.bar span').style.width),
}))"""


ROWS = "[...document.querySelectorAll('.answer dt')].map(name => name.textContent)"


def test_chosen_images_show_what_predict_answers(
    browser: Browser, service: Served, photos: list[Path]
) -> None:
    browser.open(service.url + "/")
    good = [photo for photo in photos if photo.name != "broken.png"]
    browser.choose(*good)
    browser.wait_for("document.querySelectorAll('.answer').length === 3")
    for photo, card in zip(good, browser.run(SHOWN), strict=True):
        said = service.get("/predict", photo.read_bytes())["predictions"][0]
        assert card["file"] == photo.name and card["label"] == said["label"]
        assert list(card["probabilities"].items()) == list(said["probabilities"].items())
        assert card["width"] == pytest.approx(100 * said["probability"], abs=0.01)
    assert browser.run("document.querySelectorAll('b').length") == 0
    browser.wait_for("[...document.images].every(image => image.complete && image.naturalWidth === 24)")


def test_dropped_and_pasted_images(browser: Browser, service: Served) -> None:
    for event in ("drop", "paste"):
        browser.open(service.url + "/")
        browser.run(
            f"""(async () => {{
              const canvas = document.createElement('canvas');
              canvas.width = canvas.height = 20;
              const blob = await new Promise(done => canvas.toBlob(done));
              const held = new DataTransfer();
              held.items.add(new File([blob], '{event}.png', {{type: 'image/png'}}));
              document.body.dispatchEvent('{event}' === 'drop'
                ? new DragEvent('drop', {{dataTransfer: held, bubbles: true, cancelable: true}})
                : new ClipboardEvent('paste', {{clipboardData: held, bubbles: true, cancelable: true}}));
            }})()"""
        )
        assert browser.wait_for(SHOWN + "[0]")["file"] == f"{event}.png"


def test_a_broken_image_shows_the_sentence_and_no_older_answer(
    browser: Browser, service: Served, photos: list[Path]
) -> None:
    browser.open(service.url + "/")
    browser.choose(photos[0])
    browser.wait_for("document.querySelectorAll('.answer').length === 1")
    browser.choose(photos[-1])
    shown = browser.wait_for("document.querySelector('#says.wrong')?.textContent")
    assert shown == "broken.png: The PNG file ends before its last pixel."
    assert browser.run("document.querySelectorAll('.answer').length") == 0


def test_one_broken_image_costs_the_others_nothing(
    browser: Browser, service: Served, photos: list[Path]
) -> None:
    browser.open(service.url + "/")
    for chosen in (photos, [*photos[:1] * 32, photos[-1]]):  # the second time it is alone in its request
        browser.choose(*chosen)
        browser.wait_for(f"document.querySelectorAll('.answer').length === {len(chosen)}")
        labels = browser.run("[...document.querySelectorAll('.answer .label')].map(one => one.textContent)")
        assert [label == "Not read" for label in labels] == [photo == photos[-1] for photo in chosen]
        told = browser.run("[...document.querySelectorAll('.answer .unknown')].map(one => one.textContent)")
        assert told == ["broken.png: The PNG file ends before its last pixel."]
        said = browser.wait_for("document.querySelector('#says.wrong')?.textContent")
        assert said == f"1 of {len(chosen)} images could not be read."


def test_classes_called_by_numbers_stand_by_their_share(
    browser: Browser, photos: list[Path], tmp_path: Path
) -> None:
    """JavaScript puts the keys of an object that are whole numbers in their own order."""
    digits = [str(digit) for digit in range(10)]
    bundle = load(packed(tmp_path / "digits.graft", labels=digits))
    photo = max(photos[:3], key=lambda photo: int(bundle.predict(photo).label))
    expected = bundle.predict(photo)
    assert int(expected.label) > 0
    with served(tmp_path, bundle.folder) as service:
        browser.open(service.url + "/")
        browser.choose(photo)
        browser.wait_for("document.querySelectorAll('.answer').length === 1")
        assert browser.run(ROWS) == list(expected.probabilities)[:8]
        browser.click("document.querySelector('.answer .more:not(.map)')")
        assert browser.run(ROWS) == list(expected.probabilities)


def test_the_answer_of_a_threshold_comes_first(browser: Browser, photos: list[Path], tmp_path: Path) -> None:
    for decided in ("ant", "bee"):
        known = Knowing(thresholds={decided: 0.0}, conformal=knowing().conformal)
        bundle = load(packed(tmp_path / f"{decided}.graft", labels=("ant", "bee"), knowing=known))
        with served(tmp_path, bundle.folder) as service:
            browser.open(service.url + "/")
            browser.choose(photos[0])
            browser.wait_for("document.querySelectorAll('.answer').length === 1")
            assert (
                browser.run(ROWS)[0] == browser.run("document.querySelector('.label').textContent") == decided
            )
            likely = browser.run("document.querySelector('.likely').textContent")
            assert likely.startswith(f"In 90 % of cases it is one of: {decided}")


def test_more_images_than_a_request_may_have_are_all_answered(
    browser: Browser, service: Served, tmp_path: Path
) -> None:
    names = [f"{number:02}.png" for number in range(50)]
    for number, name in enumerate(names):
        (tmp_path / name).write_bytes(image_bytes(number))
    browser.open(service.url + "/")
    browser.choose(*(tmp_path / name for name in names))
    browser.wait_for("document.querySelectorAll('.answer').length === 50")
    cards = browser.run(SHOWN)
    assert [card["file"] for card in cards] == names
    for number in (0, 31, 32, 49):
        said = service.get("/predict", image_bytes(number))["predictions"][0]
        assert cards[number]["label"] == said["label"]
    sizes = "parts([30, 40, 90, 8, 1].map(size => ({size: size * 1e6})), {files: 3, request_bytes: 80e6})"
    assert browser.run(f"{sizes}.map(part => part.map(image => image.size / 1e6))") == [
        [30, 40],
        [90],
        [8, 1],
    ]
    assert browser.run(
        "parts(Array(7).fill({size: 1}), {files: 3, request_bytes: 80e6}).map(part => part.length)"
    ) == [3, 3, 1]


def test_by_keyboard_on_a_phone_in_the_dark(browser: Browser, service: Served, photos: list[Path]) -> None:
    browser.call(
        "Emulation.setDeviceMetricsOverride", width=360, height=640, deviceScaleFactor=2, mobile=True
    )
    browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    browser.open(service.url + "/")
    browser.press("Tab", 9)
    assert browser.run("document.activeElement.id") == "choose"
    browser.call("Page.setInterceptFileChooserDialog", enabled=True)
    browser.press("Enter", 13, "\r")
    browser.wait_for("true")
    assert any(event.get("method") == "Page.fileChooserOpened" for event in browser.events)
    browser.call("Page.setInterceptFileChooserDialog", enabled=False)
    browser.choose(photos[0])
    browser.wait_for("document.querySelectorAll('.answer').length === 1")
    assert browser.run("document.documentElement.scrollWidth") <= 360
    assert browser.run("getComputedStyle(document.body).backgroundColor") == "rgb(20, 25, 27)"
    browser.call("Emulation.clearDeviceMetricsOverride")
    browser.call("Emulation.setEmulatedMedia", features=[])


def test_a_key_is_asked_for(browser: Browser, photos: list[Path], tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("a-key-of-good-length")
    with served(tmp_path, packed(tmp_path / "tiny.graft"), "--api-key-file", tmp_path / "keys") as service:
        browser.open(service.url + "/")
        browser.wait_for("!document.getElementById('door').hidden")
        assert browser.run("document.getElementById('says').textContent") == ""
        browser.run("document.getElementById('key').focus()")
        browser.call("Input.insertText", text="another")
        browser.press("Enter", 13, "\r")
        shown = browser.wait_for("document.querySelector('#says.wrong')?.textContent")
        assert shown == "The service does not know this key."
        browser.run("document.getElementById('key').select()")
        browser.call("Input.insertText", text="a-key-of-good-length")
        browser.press("Enter", 13, "\r")
        browser.wait_for("document.getElementById('door').hidden")
        assert browser.run("document.getElementById('says').textContent") == ""
        browser.choose(photos[0])
        browser.wait_for("document.querySelectorAll('.answer').length === 1")


def test_the_docs_show_every_address(browser: Browser, service: Served) -> None:
    browser.call("Page.navigate", url=service.url + "/docs")
    browser.wait_for("document.querySelectorAll('article').length >= 12")
    assert "/predict" in browser.run("document.body.innerText")


def test_unknown_images_are_called_so_and_why(browser: Browser, rich: tuple[Served, Path]) -> None:
    service, photos = rich
    told = set()
    for photo in sorted(photos.iterdir()):
        said = service.get("/predict", photo.read_bytes())["predictions"][0]
        browser.open(service.url + "/")
        browser.choose(photo)
        browser.wait_for("document.querySelectorAll('.answer').length === 1")
        shown = browser.run("document.querySelector('.label').textContent")
        reason = browser.run("document.querySelector('.unknown')?.textContent || ''")
        assert shown == ("Unknown" if said["unknown"] else said["label"])
        assert bool(reason) == said["unknown"] and (not reason or f"then {said['label']}." in reason)
        assert ", ".join(said["labels_90"]) in browser.run("document.querySelector('.likely').textContent")
        told.add(said["unknown"])
        if len(told) == 2:
            return
    raise AssertionError("every image was known, or none")


def test_what_spoke_for_the_answer_lies_over_the_picture(browser: Browser, rich: tuple[Served, Path]) -> None:
    service, photos = rich
    photo = photos / "03.png"
    browser.open(service.url + "/")
    browser.choose(photo)
    browser.wait_for("!!document.querySelector('.map')")
    browser.click("document.querySelector('.map')")
    browser.wait_for(
        "document.querySelector('.picture canvas') && !document.querySelector('.picture canvas').hidden"
    )
    said = service.get("/predict?explain=1", photo.read_bytes())["predictions"][0]["activation"]
    assert browser.run("JSON.parse(document.querySelector('.picture canvas').dataset.map)") == said["map"]
    assert browser.run("document.querySelector('.map').getAttribute('aria-pressed')") == "true"
    box = "(one => [one.width, one.height])(document.querySelector('.picture %s').getBoundingClientRect())"
    # The network sees a square in the middle, crop_share of the short side.
    seen = [Preprocess(16).crop_share * side for side in browser.run(box % "img")]
    assert browser.run(box % "canvas") == pytest.approx(seen, abs=1)
    browser.click("document.querySelector('.map')")
    browser.wait_for("document.querySelector('.picture canvas').hidden")


def test_similar_images_are_shown_and_samples_can_be_tried(
    browser: Browser, rich: tuple[Served, Path]
) -> None:
    service, photos = rich
    browser.open(service.url + "/")
    browser.wait_for("document.querySelectorAll('#samples button').length === 6")
    browser.click("document.querySelector('#samples button')")
    browser.wait_for("document.querySelectorAll('.answer .gallery li').length === 8")
    names = browser.run(
        "[...document.querySelectorAll('.answer .gallery span:first-of-type')].map(one => one.textContent.trim())"
    )
    assert names[0] == "00.png"
    wide = "[...document.querySelectorAll('.answer .gallery img')].map(one => one.naturalWidth)"
    browser.wait_for(f"{wide}.every(width => width === 24)")
    browser.call(
        "Emulation.setDeviceMetricsOverride", width=360, height=640, deviceScaleFactor=2, mobile=True
    )
    assert browser.run("document.documentElement.scrollWidth") <= 360
    browser.call("Emulation.clearDeviceMetricsOverride")
    assert photos.is_dir()


def test_without_an_index_there_are_no_samples(browser: Browser, service: Served) -> None:
    browser.open(service.url + "/")
    browser.wait_for("facts !== null")
    assert browser.run("document.getElementById('samples').hidden")


def test_nothing_was_asked_of_anybody_else(browser: Browser) -> None:
    """Runs last: over all of the above, no request to another place, no refused script, no fault in the log."""
    assert any(event.get("method") == "Network.requestWillBeSent" for event in browser.events)
    assert not browser.faults()
