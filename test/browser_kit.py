"""Pages in a real browser: a headless Chromium driven by its DevTools protocol over two pipes, without a library."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "chrome-headless-shell")
TIMEOUT_S = 60.0


def chromium() -> str:
    """The program: $CHROMIUM, or what is on the PATH. Skips the test where there is none."""
    found = os.environ.get("CHROMIUM") or next((path for name in NAMES if (path := shutil.which(name))), None)
    if not found:
        pytest.skip("no Chromium on the PATH ($CHROMIUM may name one)")
    return found


def _above(descriptor: int) -> int:
    """A copy with a number above 9, so that placing one pipe never closes the other."""
    return fcntl.fcntl(descriptor, fcntl.F_DUPFD, 10)


class Browser:
    """One headless Chromium. Its commands travel as JSON with a zero byte behind each, in by fd 3 and out by fd 4."""

    def __init__(self, folder: Path) -> None:
        program = chromium()
        command_out, self._in = os.pipe()
        self._out, answer_in = os.pipe()
        arguments = [
            program, "--headless", "--no-sandbox", "--disable-gpu", "--disable-extensions", "--no-first-run",
            "--hide-scrollbars", "--remote-debugging-pipe", f"--user-data-dir={folder}", "about:blank",
        ]  # fmt: skip

        def place() -> None:
            os.dup2(_above(command_out), 3)
            os.dup2(_above(answer_in), 4)

        self._process = subprocess.Popen(
            arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, close_fds=False, preexec_fn=place
        )
        os.close(command_out)
        os.close(answer_in)
        self._buffer, self._number, self._loaded = b"", 0, False
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session: str | None = None
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.requests: list[str] = []
        self.said: list[str] = []
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command and its answer; events on the way are noted."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if getattr(self, "_session", None):
            message["sessionId"] = self._session
        os.write(self._in, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return dict(answer["result"])

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            assert select.select([self._out], [], [], TIMEOUT_S)[0], "the browser does not answer"
            block = os.read(self._out, 1 << 20)
            assert block, "the browser has ended"
            self._buffer += block
        one, self._buffer = self._buffer.split(b"\0", 1)
        event = json.loads(one)
        if event.get("method") == "Network.requestWillBeSent":
            self.requests.append(event["params"]["request"]["url"])
        elif event.get("method") == "Page.loadEventFired":
            self._loaded = True
        elif event.get("method") in ("Runtime.exceptionThrown", "Page.javascriptDialogOpening"):
            self.said.append(json.dumps(event["params"]))
        return dict(event)

    def open(self, page: Path, width: int, dark: bool = False) -> None:
        """Show a file in a window of this width in CSS pixels; below 600 as on a phone."""
        phone = width < 600
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=844,
            deviceScaleFactor=2 if phone else 1,
            mobile=phone,
        )
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.send("Emulation.setEmulatedMedia", features=scheme)
        self._loaded = False
        self.send("Page.navigate", url=page.resolve().as_uri())
        while not self._loaded:
            self._read()
        self.ask("document.querySelectorAll('img').forEach(image => image.loading = 'eager')")
        end = time.monotonic() + TIMEOUT_S
        while not self.ask("[...document.images].every(image => image.complete)"):
            assert time.monotonic() < end, f"the pictures of {page} did not load"
            time.sleep(0.05)

    def ask(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page."""
        answer = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def shoot(self, path: Path) -> None:
        """The whole page as PNG."""
        size = self.send("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        data = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)["data"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(data))

    def close(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._in)
        os.close(self._out)
