"""A bridge that only shows something, and a browser that is told what to do over its debugging protocol."""

from __future__ import annotations

import base64
import itertools
import json
import math
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from websockets.sync.client import connect

from visuomotor.sim2real.page.server import LivePage
from visuomotor.sim2real.runtime.types import Request, State, Status

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
JOINTS = [f"joint_{i}" for i in range(1, 7)]


class FakeBoard:
    """Six joints that follow sines, and two cameras; the time goes on with every reading unless it is frozen."""

    def __init__(self) -> None:
        self.changes: dict[str, Any] = {}
        self.frozen = False
        self.began = time.monotonic()
        self._t = 0.0
        rows = np.linspace(0, 255, 120, dtype=np.uint8)
        self.picture = np.zeros((120, 160, 3), np.uint8)
        self.picture[..., 0] = rows[:, None]
        self.picture[40:80, 60:100] = (30, 200, 60)

    def read(self) -> Status:
        if not self.frozen:
            self._t = 12.0 + time.monotonic() - self.began
        t = self._t
        q = [0.4 * math.sin(t + i) for i in range(6)]
        ahead = [[0.4 * math.sin(t + i + 0.05 * (k + 1)) for i in range(6)] for k in range(16)]
        values: dict[str, Any] = {
            "state": State.RUN,
            "time_s": t,
            "joints": JOINTS,
            "measured": [x - 0.02 * math.cos(t) for x in q],
            "commanded": q,
            "velocity": [0.0] * 6,
            "preview": ahead,
            "ages_s": {"joint states": 0.004, "camera front": 0.71, "policy": math.inf},
            "rates_hz": {"joint states": 499.8, "camera front": 29.9, "policy": 0.0},
            "latency_ms": 83.0,
            "episode": 3,
            "events": ["    0.002 s  idle -> ready: everything is there", "    1.250 s  <b>ready</b> -> ramp: start"],
            "pictures": {"front": self.picture, "wrist <2>": self.picture[::-1]},
        }
        return Status(**{**values, **self.changes})


class FakeBox:
    """Keeps what was asked for."""

    def __init__(self) -> None:
        self.got: list[Request] = []
        self.fails: Exception | None = None

    def put(self, request: Request) -> None:
        if self.fails is not None:
            raise self.fails
        self.got.append(request)


@pytest.fixture
def board() -> FakeBoard:
    return FakeBoard()


@pytest.fixture
def box() -> FakeBox:
    return FakeBox()


@pytest.fixture
def page(board: FakeBoard, box: FakeBox) -> Iterator[LivePage]:
    served = LivePage(board, box, title="a <test> & more")
    yield served
    served.close()


class Tab:
    """One tab of a headless browser, by the Chrome DevTools protocol."""

    def __init__(self, url: str) -> None:
        self._stack = ExitStack()
        self._socket = self._stack.enter_context(connect(url, max_size=None, open_timeout=30, proxy=None))
        self._numbers = itertools.count(1)
        self.failures: list[str] = []  # what the console told of errors
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        number = next(self._numbers)
        self._socket.send(json.dumps({"id": number, "method": method, "params": params}))
        while True:
            message = json.loads(self._socket.recv(60))
            if message.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded"):
                self.failures.append(json.dumps(message["params"])[:400])
            if message.get("id") == number:
                assert "error" not in message, message
                return message["result"]

    def evaluate(self, expression: str) -> Any:
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def until(self, expression: str, seconds: float = 30.0) -> Any:
        end = time.monotonic() + seconds
        while not (value := self.evaluate(expression)):
            assert time.monotonic() < end, f"never true: {expression}; {self.failures}"
            time.sleep(0.05)
        return value

    def press(self, key: str, code: str = "", text: str = "") -> None:
        common = {"key": key, "code": code or key, "windowsVirtualKeyCode": ord(key.upper()) if len(key) == 1 else 27}
        self.call("Input.dispatchKeyEvent", type="keyDown", text=text, **common)
        self.call("Input.dispatchKeyEvent", type="keyUp", **common)

    def mouse(self, kind: str, element: str) -> None:
        rect = self.evaluate(f"(r => [r.x + r.width / 2, r.y + r.height / 2])({element}.getBoundingClientRect())")
        self.call("Input.dispatchMouseEvent", type=kind, x=rect[0], y=rect[1], button="left", clickCount=1)

    def click(self, element: str) -> None:
        self.mouse("mousePressed", element)
        self.mouse("mouseReleased", element)

    def screenshot(self, path: Path, *, whole: bool = True) -> None:
        data = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)["data"]
        path.write_bytes(base64.b64decode(data))

    def close(self) -> None:
        self._stack.close()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a browser's debugging server."""
    if CHROMIUM is None:
        pytest.skip("needs chromium (apt install chromium)")
    profile = tmp_path_factory.mktemp("profile")
    command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0"]
    command += [f"--user-data-dir={profile}", "--window-size=1280,900", "--no-first-run", "about:blank"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        file, end = profile / "DevToolsActivePort", time.monotonic() + 60
        while not (file.exists() and "\n" in file.read_text()):
            assert time.monotonic() < end
            time.sleep(0.05)
        yield f"http://127.0.0.1:{file.read_text().split()[0]}"
    finally:
        process.terminate()
        process.wait(20)


@pytest.fixture
def tab(browser: str) -> Iterator[Tab]:
    """An empty tab."""
    request = urllib.request.Request(f"{browser}/json/new?about:blank", method="PUT")
    with urllib.request.urlopen(request, timeout=30) as answer:
        target = json.load(answer)
    opened = Tab(target["webSocketDebuggerUrl"])
    yield opened
    opened.call("Page.close")
    opened.close()
