"""A real browser for tests: Chromium without a window, spoken to over two pipes.

Speaks the Chrome DevTools Protocol as `--remote-debugging-pipe` does: JSON messages that end with
a zero byte, commands on file descriptor 3, answers and events on 4. No port, no library.
Source: https://chromedevtools.github.io/devtools-protocol/, domains Target, Page, Runtime, Log,
Network, Emulation.
"""

import base64
import fcntl
import json
import os
import select
import shutil
import time
from pathlib import Path
from typing import Any

TIMEOUT_S = 60
NAMES = ["chromium", "chromium-browser", "google-chrome"]  # as in .ci/system-packages
FLAGS = [
    "--headless",
    "--no-sandbox",  # the tests may run as root; the only pages are our own
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-dev-shm-usage",
    "--disable-gpu",
    "--mute-audio",
]


class Browser:
    """One Chromium with one page, and all that the page asked for and complained of."""

    def __init__(self, profile: Path):
        """Start Chromium with an empty profile; it must be installed (`.ci/system-packages`)."""
        program = next(filter(None, map(shutil.which, NAMES)), None)
        assert program, "no Chromium; install it with: sh .ci/system-packages --browser"
        to_read, self._commands = os.pipe()
        self._answers, to_write = os.pipe()
        # Out of the way of 3 and 4, so that neither replaces the other.
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in (to_read, to_write)]
        command = [program, *FLAGS, f"--user-data-dir={profile}", "--remote-debugging-pipe"]
        self._process = os.posix_spawn(
            program,
            command,
            os.environ,
            file_actions=[
                (os.POSIX_SPAWN_DUP2, ends[0], 3),
                (os.POSIX_SPAWN_DUP2, ends[1], 4),
                (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),
            ],
        )
        for end in (to_read, to_write, *ends):
            os.close(end)
        self._buffer = b""
        self._count = 0
        self._session: str | None = None
        self.requests: list[str] = []
        self.complaints: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)[
            "sessionId"
        ]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def close(self) -> None:
        """End the browser."""
        self._session = None
        self.call("Browser.close")
        os.waitpid(self._process, 0)
        os.close(self._commands)
        os.close(self._answers)

    def open(self, url: str, *, width: int = 1200, dark: bool = False) -> None:
        """Load a page; forget what earlier ones asked for and complained of."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=900,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.requests.clear()
        self.complaints.clear()
        self.call("Page.navigate", url=url)
        self.wait_for(f"document.readyState === 'complete' && location.href === {json.dumps(url)}")

    def evaluate(self, expression: str) -> Any:
        """Return the value of a JavaScript expression, promises awaited."""
        answer = self.call(
            "Runtime.evaluate",
            expression=expression,
            returnByValue=True,
            awaitPromise=True,
            userGesture=True,
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait_for(self, condition: str) -> None:
        """Wait until a JavaScript expression is true."""
        deadline = time.monotonic() + TIMEOUT_S
        while not self.evaluate(condition):
            assert time.monotonic() < deadline, f"never became true: {condition}"
            time.sleep(0.05)

    def screenshot(self, path: Path) -> None:
        """Write a picture of the whole page."""
        answer = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(answer["data"]))

    def call(self, method: str, **parameters: object) -> dict[str, Any]:
        """Send a command and return its result."""
        self._count += 1
        message: dict[str, object] = {"id": self._count, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._count:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]
            self._note(answer.get("method", ""), answer.get("params", {}))

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._answers], [], [], TIMEOUT_S)
            assert ready, "the browser does not answer"
            part = os.read(self._answers, 1 << 20)
            assert part, "the browser ended"
            self._buffer += part
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)

    def _note(self, event: str, content: dict[str, Any]) -> None:
        if event == "Network.requestWillBeSent":
            self.requests.append(content["request"]["url"])
        elif event == "Log.entryAdded":
            self.complaints.append(content["entry"]["text"])
        elif event == "Runtime.exceptionThrown":
            self.complaints.append(str(content["exceptionDetails"]))
        elif event == "Runtime.consoleAPICalled" and content["type"] in {"error", "warning"}:
            self.complaints.append(str(content["args"]))
