"""A base image carried in a folder: the published bytes for one architecture, and a registry that serves them."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import json
import os
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import pytest

PATH = Path(__file__).parents[2] / "templates" / "base_registry.py"
LOGIN = f"Basic {base64.b64encode(b'$oauthtoken:key').decode()}"


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("base_registry", PATH)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


carry = load()


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def image_of(architecture: str) -> tuple[bytes, list[bytes]]:
    """A manifest, and the parts that it names."""
    parts = [json.dumps({"architecture": architecture}).encode(), f"layer of {architecture}".encode()]
    described = [{"digest": digest(part), "size": len(part)} for part in parts]
    manifest = {"mediaType": carry.MANIFESTS[1], "config": described[0], "layers": described[1:]}
    return json.dumps(manifest).encode(), parts


IMAGES = {architecture: image_of(architecture) for architecture in ("amd64", "arm64")}
INDEX = json.dumps(
    {
        "manifests": [
            {"digest": digest(manifest), "platform": {"os": "linux", "architecture": architecture}}
            for architecture, (manifest, _) in IMAGES.items()
        ]
    }
).encode()
BYTES = {digest(one): one for manifest, parts in IMAGES.values() for one in (manifest, *parts)} | {digest(INDEX): INDEX}


class Registry(BaseHTTPRequestHandler):
    """Hands out nothing without a token, no token without a login, and leads on to a storage that takes neither."""

    served = BYTES
    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        given, host = self.headers.get("Authorization", ""), self.headers["Host"]
        name = self.path.rpartition("/")[2]
        if self.path.startswith("/storage/"):
            self.answer(400 if given else 200, self.served.get(name, b""))
        elif self.path.startswith("/token"):
            self.answer(200 if given == LOGIN else 401, b'{"token": "granted"}')
        elif given != "Bearer granted":
            self.send_response(401)
            self.send_header("WWW-Authenticate", f'Bearer realm="http://{host}/token",service="r",scope="pull"')
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif "/blobs/" in self.path:
            self.send_response(307)
            self.send_header("Location", f"http://{host.replace('127.0.0.1', 'localhost')}/storage/{name}")
            self.send_header("Content-Length", "0")
            self.end_headers()
        else:
            self.answer(200 if name in self.served else 404, self.served.get(name, b""))

    def answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def running(server: ThreadingHTTPServer) -> Iterator[str]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture(name="registry")
def serve_registry(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """Its name; `docker login` has been there."""
    monkeypatch.setattr(Registry, "asked", [], raising=False)
    with running(ThreadingHTTPServer(("127.0.0.1", 0), Registry)) as name:
        (tmp_path / "config.json").write_text(json.dumps({"auths": {name: {"auth": LOGIN.removeprefix("Basic ")}}}))
        monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
        yield name


def named(registry: str, of: bytes = INDEX) -> str:
    return f"{registry}/nvidia/pytorch:26.09-py3@{digest(of)}"


def kept(folder: Path) -> set[str]:
    return {path.name.replace("-", ":") for path in (folder / "blobs").iterdir()}


def test_the_published_bytes_of_one_architecture_come(registry: str, tmp_path: Path) -> None:
    manifest, parts = IMAGES["arm64"]
    folder = tmp_path / "folder"
    assert carry.fetch(named(registry), folder, "arm64") == 4
    assert kept(folder) == {digest(one) for one in (INDEX, manifest, *parts)}
    assert all(carry.blob_path(folder, name).read_bytes() == BYTES[name] for name in kept(folder))


def test_a_manifest_without_an_index_comes_as_well(registry: str, tmp_path: Path) -> None:
    assert carry.fetch(named(registry, IMAGES["amd64"][0]), tmp_path / "folder", "amd64") == 3


def test_what_is_there_is_not_asked_for_again(registry: str, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    carry.fetch(named(registry), folder, "amd64")
    Registry.asked.clear()
    assert carry.fetch(named(registry), folder, "amd64") == 0
    assert Registry.asked == []
    layer = digest(IMAGES["amd64"][1][1])
    carry.blob_path(folder, layer).unlink()
    assert carry.fetch(named(registry), folder, "amd64") == 1
    assert {path.rpartition("/")[2] for path in Registry.asked if "/storage/" in path} == {layer}


def test_other_bytes_are_not_kept(registry: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = digest(IMAGES["amd64"][1][1])
    monkeypatch.setattr(Registry, "served", BYTES | {layer: b"a login page"})
    with pytest.raises(carry.CarryError, match=f"something else than {layer}"):
        carry.fetch(named(registry), tmp_path / "folder", "amd64")
    assert layer not in kept(tmp_path / "folder")
    assert not [name for name in kept(tmp_path / "folder") if name.endswith(".part")]


def test_an_architecture_that_is_not_there_is_named(registry: str, tmp_path: Path) -> None:
    with pytest.raises(carry.CarryError, match="nothing for riscv64, expected one of amd64, arm64"):
        carry.fetch(named(registry), tmp_path / "folder", "riscv64")


@pytest.mark.parametrize(
    "reference",
    [
        "pytorch",
        "nvcr.io/nvidia/pytorch:26.09-py3",
        f"nvcr.io/x@sha256:{'a' * 64}",
        f"pytorch/pytorch:2.9@sha256:{'a' * 64}",
    ],
)
def test_an_image_that_pins_nothing_is_refused(
    reference: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert carry.main(["fetch", reference, str(tmp_path), "--architecture", "amd64"]) == 1
    assert "expected REGISTRY/NAME:TAG@sha256:" in capsys.readouterr().err


def test_a_registry_that_wants_a_login_says_so(
    registry: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DOCKER_CONFIG", "/nonexistent")
    assert carry.main(["fetch", named(registry), str(tmp_path / "folder"), "--architecture", "amd64"]) == 1
    assert f"docker login {registry}" in capsys.readouterr().err


def test_the_login_of_a_credential_helper_is_used(
    registry: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "docker-credential-vault"
    answer = json.dumps({"Username": "$oauthtoken", "Secret": "key"})
    program.write_text(f"#!/bin/sh\n[ \"$1 $(cat)\" = 'get {registry}' ] && echo '{answer}'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    (tmp_path / "config.json").write_text(json.dumps({"auths": {registry: {}}, "credsStore": "vault"}))
    assert carry.fetch(named(registry), tmp_path / "folder", "amd64") == 4


def test_a_login_goes_in_the_clear_to_no_name_that_a_registry_with_tls_tells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"auths": {"nvcr.io": {"auth": LOGIN.removeprefix("Basic ")}}}))
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    monkeypatch.setattr(carry.urllib.request, "urlopen", lambda request, **_: pytest.fail(request.full_url))
    assert carry.Source("nvcr.io", "x")._token('Bearer realm="http://nvcr.io.example.com/token"') == LOGIN


def test_a_docker_configuration_that_is_no_json_is_named(
    registry: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text("auths:")
    assert carry.main(["fetch", named(registry), str(tmp_path / "folder"), "--architecture", "amd64"]) == 1
    assert f"{tmp_path}/config.json is not JSON" in capsys.readouterr().err


def test_a_connection_that_is_reset_has_come_to_its_end() -> None:
    class Reset:
        def read(self, _: int) -> bytes:
            raise ConnectionResetError

    assert carry.next_piece(cast("Any", Reset())) == b""


def test_a_transfer_that_breaks_off_is_no_wrong_image(
    registry: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def cut(self: Registry, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) + ("/storage/" in self.path)))
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = True

    monkeypatch.setattr(Registry, "answer", cut)
    folder = tmp_path / "folder"
    assert carry.main(["fetch", named(registry), str(folder), "--architecture", "amd64"]) == 1
    config = IMAGES["amd64"][1][0]
    assert f"broke off after {len(config)} of {len(config) + 1} bytes of {digest(config)}" in capsys.readouterr().err
    assert kept(folder) == {digest(INDEX), digest(IMAGES["amd64"][0])}


def test_a_port_that_is_in_use_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "blobs").mkdir()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert carry.main(["serve", str(tmp_path), "--port", str(port)]) == 1
    assert f"127.0.0.1:{port} cannot be listened on: Address already in use" in capsys.readouterr().err


def test_a_folder_without_an_image_is_not_served(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert carry.main(["serve", str(tmp_path)]) == 1
    assert f"no {tmp_path}/blobs" in capsys.readouterr().err


@pytest.fixture(name="served")
def serve_folder(tmp_path: Path) -> Iterator[str]:
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    for name, data in BYTES.items():
        carry.blob_path(tmp_path, name).write_bytes(data)
    (tmp_path / "secret").write_text("not for anybody")
    with running(carry.server(tmp_path, 0)) as name:
        yield f"http://{name}/v2"


def get(url: str, method: str = "GET") -> tuple[Any, bytes]:
    with urllib.request.urlopen(urllib.request.Request(url, method=method), timeout=10) as answer:  # noqa: S310
        return answer.headers, answer.read()


def test_what_was_fetched_is_served_under_its_digest(served: str) -> None:
    assert get(f"{served}/")[1] == b"{}"
    headers, body = get(f"{served}/nvidia/pytorch/manifests/{digest(INDEX)}")
    assert (headers["Content-Type"], headers["Docker-Content-Digest"], body) == (
        carry.INDEXES[0],
        digest(INDEX),
        INDEX,
    )
    manifest, (_, layer) = IMAGES["arm64"]
    assert get(f"{served}/nvidia/pytorch/manifests/{digest(manifest)}")[0]["Content-Type"] == carry.MANIFESTS[1]
    assert get(f"{served}/nvidia/pytorch/blobs/{digest(layer)}")[1] == layer
    headers, body = get(f"{served}/nvidia/pytorch/blobs/{digest(layer)}", "HEAD")
    assert (headers["Content-Length"], body) == (str(len(layer)), b"")


@pytest.mark.parametrize(
    "path",
    ["x/manifests/26.09-py3", f"x/blobs/sha256:{'0' * 64}", "x/blobs/..%2Fsecret", "x/blobs/../secret", "x/tags/list"],
)
def test_nothing_else_is_served(served: str, path: str) -> None:
    with pytest.raises(urllib.error.HTTPError, match="404"):
        get(f"{served}/{path}")
