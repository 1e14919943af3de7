"""Token and password stay with the hub, wherever a redirect leads: for the question, and for the bytes."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any

import pytest
from ansible.module_utils.model_wanted import Wanted
from ansible.module_utils.model_web import Web

from faults.model_store import REPOSITORY
from programs import load_program

hub_answer = load_program(REPOSITORY / "roles/model_store/files/hub_answer.py")


@pytest.fixture(name="seen")
def serve() -> Iterator[list[tuple[str, str]]]:
    """A server that leads /far to another name of itself and /near to itself; what it was asked, with which login."""
    seen: list[tuple[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append((self.path, self.headers.get("Authorization", "")))
            host = {"/far": "localhost", "/near": "127.0.0.1"}.get(self.path)
            self.send_response(302 if host else 200)
            if host:
                self.send_header("Location", f"http://{host}:{server.server_port}/bytes")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    seen.append((f"http://127.0.0.1:{server.server_port}", ""))
    yield seen
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("login", ["token", "password"])
@pytest.mark.parametrize(("path", "travels"), [("/near", True), ("/far", False)])
def test_a_redirect_of_the_bytes_takes_no_login_elsewhere(
    path: str, travels: bool, login: str, seen: list[tuple[str, str]]
) -> None:
    url = seen.pop()[0]
    endpoint = url if login == "token" else url.replace("//", "//user:hunter22@")
    wanted = Wanted("a/b", "c" * 40, "x", 1, "d" * 64, "/x", endpoint, token="hf_x" if login == "token" else "")
    Web(wanted).get(f"{url}{path}", {}, is_hub=True).close()
    assert [path for path, _ in seen] == [path, "/bytes"]
    assert seen[0][1]
    assert bool(seen[1][1]) == travels


@pytest.mark.parametrize(
    ("url", "travels"),
    [
        ("https://mirror.example/a/resolve/b", True),
        ("https://mirror.example:443/a", True),
        ("https://huggingface.co/a/resolve/b", False),
        ("http://mirror.example/a", False),
        ("https://mirror.example:8443/a", False),
        ("https://mirror.example.org/a", False),
    ],
)
def test_the_question_takes_its_login_to_no_other_hub(url: str, travels: bool) -> None:
    request = SimpleNamespace(url=url, headers={"Authorization": "Bearer hf_x", "User-Agent": "x"})
    hub_answer.keep_login_at("https://mirror.example")(request)
    assert ("Authorization" in request.headers) == travels
    assert "User-Agent" in request.headers
