"""The page in a real browser without a network: what it shows is what `/predict` answers."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from made_service import image_bytes, packed
from served import Served, served

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None or os.name == "nt", reason="no Chromium here that takes pipes"),
]


class Browser:
    """Headless Chromium, spoken to over two pipes in the DevTools protocol: JSON messages that end with a zero."""

    def __init__(self, profile: Path) -> None:
        assert BROWSER is not None
        theirs_in, self._out = os.pipe()
        self._in, theirs_out = os.pipe()

        def connect() -> None:
            # The browser reads from 3 and writes to 4; moved away first, since they may be each other's numbers.
            low = os.dup2(theirs_in, 200), os.dup2(theirs_out, 201)
            os.dup2(low[0], 3)
            os.dup2(low[1], 4)

        self._process = subprocess.Popen(
            [
                *(BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe"),
                *(f"--user-data-dir={profile}", "--disable-dev-shm-usage", "--no-first-run"),
                *("--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", "about:blank"),
            ],
            preexec_fn=connect,
            close_fds=False,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self._rest, self._number, self._session = b"", 0, ""
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "DOM", "Network", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> Any:
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            said = self._next()
            if said.get("id") == self._number:
                assert "error" not in said, said
                return said["result"]
            self.events.append(said)

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression; a promise is waited for."""
        answer = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def wait_for(self, script: str, seconds: float = 30) -> Any:
        end = time.monotonic() + seconds
        while not (value := self.run(script)):
            assert time.monotonic() < end, f"{script}\n{self.run('document.body.innerText')}"
            time.sleep(0.05)
        return value

    def open(self, url: str) -> None:
        self.call("Page.navigate", url=url)
        self.wait_for("document.readyState === 'complete' && facts !== undefined")

    def choose(self, *files: Path) -> None:
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector="#files")["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(file) for file in files])

    def press(self, key: str, code: int, text: str = "") -> None:
        more = {"text": text} if text else {}
        for kind in ("keyDown", "keyUp"):
            self.call(
                "Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **more
            )

    def close(self) -> None:
        os.close(self._out)
        os.close(self._in)
        self._process.terminate()
        self._process.wait(30)

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            part = os.read(self._in, 1 << 20)
            assert part, "the browser has gone"
            self._rest += part
        whole, _, self._rest = self._rest.partition(b"\0")
        return json.loads(whole)


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


SHOWN = """[...document.querySelectorAll('.answer')].map(card => ({
  file: card.querySelector('.name').textContent,
  label: card.querySelector('.label').textContent,
  probabilities: Object.fromEntries([...card.querySelectorAll('dl > div')].map(
    row => [row.children[0].textContent, Number(row.children[2].dataset.value)])),
  width: parseFloat(card.querySelector('.bar span').style.width),
}))"""


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


def test_a_broken_image_shows_the_sentence(browser: Browser, service: Served, photos: list[Path]) -> None:
    browser.open(service.url + "/")
    browser.choose(photos[-1])
    shown = browser.wait_for("document.querySelector('#says.wrong')?.textContent")
    assert shown == "broken.png: The PNG file ends before its last pixel."


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
        browser.run("document.getElementById('key').focus()")
        browser.call("Input.insertText", text="a-key-of-good-length")
        browser.press("Enter", 13, "\r")
        browser.wait_for("document.getElementById('door').hidden")
        browser.choose(photos[0])
        browser.wait_for("document.querySelectorAll('.answer').length === 1")


def test_the_docs_show_every_address(browser: Browser, service: Served) -> None:
    browser.call("Page.navigate", url=service.url + "/docs")
    browser.wait_for("document.querySelectorAll('article').length >= 12")
    assert "/predict" in browser.run("document.body.innerText")


def test_nothing_was_asked_of_anybody_else(browser: Browser) -> None:
    """Runs last: over all of the above, no request to another place, no refused script, no fault in the log."""
    browser.run("1")
    asked = [
        event["params"]["request"]["url"]
        for event in browser.events
        if event.get("method") == "Network.requestWillBeSent"
    ]
    assert asked and all(url.startswith(("http://127.0.0.1:", "blob:", "data:")) for url in asked)
    logged = [
        event["params"]["entry"]["text"]
        for event in browser.events
        if event.get("method") == "Log.entryAdded"
    ]
    assert not [text for text in logged if "status of 4" not in text], logged
    assert not [event for event in browser.events if event.get("method") == "Runtime.exceptionThrown"]
