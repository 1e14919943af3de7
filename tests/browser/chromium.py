"""Drive headless Chromium through its DevTools protocol; aiohttp brings the websocket."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import aiohttp

START_LIMIT_S = 60
ANSWER_LIMIT_S = 60


def ensure() -> str:
    """Path of Chromium; Debian's package is installed where there is none. RuntimeError says what to type."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found:
        return found
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        raise RuntimeError("Chromium is missing. Type as root: apt-get install chromium")
    subprocess.run(["apt-get", "update"], check=True, capture_output=True)
    subprocess.run(["apt-get", "install", "--yes", "--no-install-recommends", "chromium"], check=True)
    return str(shutil.which("chromium"))


class Tab:
    """A browser with one tab. Its methods wait for what they ask."""

    def __init__(self, width_px: int = 1400, height_px: int = 900) -> None:
        self._folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--remote-debugging-port=0"]
        flags += [f"--user-data-dir={self._folder.name}", f"--window-size={width_px},{height_px}", "about:blank"]
        self._process = subprocess.Popen([ensure(), *flags], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        self._loop = asyncio.new_event_loop()
        self._number = 0
        self.events: list[dict[str, Any]] = []

    def __enter__(self) -> Tab:
        port_file = Path(self._folder.name, "DevToolsActivePort")
        wait(lambda: port_file.exists() and port_file.read_text().count("\n") >= 1, START_LIMIT_S, "Chromium starts")
        port = port_file.read_text().split()[0]
        self._session, self._socket = self._loop.run_until_complete(self._connect(port))
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.send(f"{domain}.enable")
        return self

    async def _connect(self, port: str) -> tuple[aiohttp.ClientSession, aiohttp.ClientWebSocketResponse]:
        session = aiohttp.ClientSession()
        async with session.get(f"http://127.0.0.1:{port}/json") as answer:
            (page,) = [target for target in await answer.json() if target["type"] == "page"]
        return session, await session.ws_connect(page["webSocketDebuggerUrl"], max_msg_size=0)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.run_until_complete(self._session.close())
        self._loop.close()
        self._process.terminate()
        self._process.wait()
        self._folder.cleanup()

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The result of a command; what the browser tells meanwhile goes to `events`."""
        return self._loop.run_until_complete(asyncio.wait_for(self._send(method, parameters), ANSWER_LIMIT_S))

    async def _send(self, method: str, parameters: dict[str, Any]) -> dict[str, Any]:
        self._number += 1
        await self._socket.send_json({"id": self._number, "method": method, "params": parameters})
        while True:
            message = json.loads((await self._socket.receive()).data)
            if message.get("id") == self._number:
                if "error" in message:
                    raise RuntimeError(f"{method}: {message['error']['message']}")
                result: dict[str, Any] = message["result"]
                return result
            self.events.append(message)

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression, awaited where it is a promise."""
        result = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in result:
            raise RuntimeError(f"{expression}: {result['exceptionDetails']}")
        return result["result"].get("value")

    def until(self, expression: str, what: str, limit_s: float = 60) -> Any:
        """The value of an expression once it is true."""
        return wait(lambda: self.evaluate(expression), limit_s, what)

    def press(self, key: str) -> None:
        """Press and release a key of one letter."""
        code = f"Key{key.upper()}"
        for kind in ("keyDown", "keyUp"):
            self.send(
                "Input.dispatchKeyEvent",
                type=kind,
                key=key,
                code=code,
                windowsVirtualKeyCode=ord(key.upper()),
                **({"text": key} if kind == "keyDown" else {}),
            )

    def picture(self, path: Path, *, whole: bool = False) -> bytes:
        """A screenshot, of what is seen or of the whole page; kept in a file for people."""
        data = base64.b64decode(self.send("Page.captureScreenshot", captureBeyondViewport=whole)["data"])
        path.write_bytes(data)
        return data

    def requested(self) -> list[str]:
        """Addresses that were asked for, but for those that hold their content."""
        urls = [e["params"]["request"]["url"] for e in self.events if e["method"] == "Network.requestWillBeSent"]
        return [url for url in urls if not re.match(r"data:|about:", url)]


def wait(ask: Callable[[], Any], limit_s: float, what: str) -> Any:
    """What `ask` says once it is true; TimeoutError names what did not come."""
    deadline = time.monotonic() + limit_s
    while not (answer := ask()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {limit_s:g} s")
        time.sleep(0.2)
    return answer
