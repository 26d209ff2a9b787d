"""Headless Chromium with real clicks, keys and uploads, for the tests of pages."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_browser = pytest.mark.skipif(
    BROWSER is None or os.name == "nt", reason="no Chromium here that takes pipes"
)


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

    def click(self, script: str) -> None:
        """A click of the mouse in the middle of the element that a JavaScript expression names.

        Only once the element stands still: an image that is shown above it moves it away from under the mouse.
        """
        middle = self.run(
            f"(async () => {{ const one = {script}; one.scrollIntoView({{block: 'center', behavior: 'instant'}});"
            " const frame = () => new Promise((next) => requestAnimationFrame(next));"
            " let before = '';"
            " for (let still = 0; still < 5;) {"
            "   await frame();"
            "   const box = one.getBoundingClientRect();"
            "   const loaded = [...document.images].every((image) => image.complete);"
            "   const now = `${box.x} ${box.y} ${box.width}`;"
            "   still = loaded && now === before ? still + 1 : 0;"
            "   before = now;"
            " }"
            " const box = one.getBoundingClientRect();"
            " return [box.x + box.width / 2, box.y + box.height / 2]; })()"
        )
        where = {"x": middle[0], "y": middle[1], "button": "left", "clickCount": 1}
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, **where)

    def faults(self) -> list[str]:
        """Exceptions and refused scripts so far, and requests to other places than this machine."""
        self.run("1")
        said = []
        for event in self.events:
            kind, facts = event.get("method"), event.get("params", {})
            if kind == "Runtime.exceptionThrown":
                said.append(str(facts["exceptionDetails"]))
            elif kind == "Log.entryAdded" and "status of 4" not in facts["entry"]["text"]:
                said.append(facts["entry"]["text"])
            elif kind == "Network.requestWillBeSent":
                url = facts["request"]["url"]
                if not url.startswith(("http://127.0.0.1:", "blob:", "data:")):
                    said.append(url)
        return said

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
