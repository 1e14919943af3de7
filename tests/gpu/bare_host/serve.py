#!/usr/bin/python3
"""Serve what a host without a network would fetch: a base image by digest, and Python packages by hash.

    serve.py FOLDER      a registry at 127.0.0.1:5000, a package index at https://packages.test:8443/simple, and a name
                         server on the engine's bridge that knows no other name

FOLDER/image.json names the image (repository, tag) and its blobs; FOLDER/blobs/ has them by digest, FOLDER/wheels/ the
packages, FOLDER/tls.pem certificate and key. Read-only, and only what Docker and pip ask for. Standard library only.
"""

from __future__ import annotations

import functools
import hashlib
import html
import json
import re
import shutil
import socket
import ssl
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

REGISTRY = ("127.0.0.1", 5000)
BRIDGE = "172.17.0.1"
INDEX = ("0.0.0.0", 8443)  # noqa: S104 - a build's container asks from its bridge, and nothing else is on this network
MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"


def describe_image(folder: Path, layers: dict[Path, str], environment: list[str]) -> str:
    """Make an image of uncompressed layers, with their digests, in FOLDER/blobs; returns the manifest's digest."""
    blobs = folder / "blobs"
    blobs.mkdir(exist_ok=True)
    for layer, digest in layers.items():
        layer.rename(blobs / digest.replace(":", "-"))

    def keep(document: object) -> tuple[str, int]:
        data = json.dumps(document).encode()
        name = f"sha256:{hashlib.sha256(data).hexdigest()}"
        (blobs / name.replace(":", "-")).write_bytes(data)
        return name, len(data)

    config, config_b = keep(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Env": environment, "Cmd": ["bash"]},
            "rootfs": {"type": "layers", "diff_ids": list(layers.values())},
            "history": [{"created_by": "the file system of a GPU machine"} for _ in layers],
        }
    )
    manifest, _ = keep(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": {
                "mediaType": "application/vnd.docker.container.image.v1+json",
                "size": config_b,
                "digest": config,
            },
            "layers": [
                {
                    "mediaType": "application/vnd.docker.image.rootfs.diff.tar",
                    "size": (blobs / digest.replace(":", "-")).stat().st_size,
                    "digest": digest,
                }
                for digest in layers.values()
            ],
        }
    )
    return manifest


def project_name(wheel: str) -> str:
    """The normalised name of a wheel's project (PEP 503)."""
    return re.sub(r"[-_.]+", "-", wheel.split("-", maxsplit=1)[0]).lower()


class Handler(BaseHTTPRequestHandler):
    """Answers GET and HEAD."""

    protocol_version = "HTTP/1.1"
    # Docker tries TLS first, and turns to plain HTTP only where the answer to that is one of HTTP.
    default_request_version = "HTTP/1.1"

    def __init__(self, folder: Path, *arguments: object) -> None:
        self.folder = folder
        super().__init__(*arguments)  # type: ignore[arg-type]

    def answer(self, kind: str, body: bytes | Path, **headers: str) -> None:
        """A document, or a file that is too large for memory."""
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body) if isinstance(body, bytes) else body.stat().st_size))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if isinstance(body, bytes):
            self.wfile.write(body)
        else:
            with body.open("rb") as handle:
                shutil.copyfileobj(handle, self.wfile, 1 << 20)

    def do_GET(self) -> None:
        parts = self.path.split("?", maxsplit=1)[0].strip("/").split("/")
        blob = self.folder / "blobs" / parts[-1].replace(":", "-")
        wheel = self.folder / "wheels" / parts[-1]
        if parts == ["v2"]:
            self.answer("application/json", b"{}")
        elif parts[0] == "v2" and parts[-1].startswith("sha256:") and blob.is_file():
            kind = MANIFEST if parts[-2] == "manifests" else "application/octet-stream"
            self.answer(kind, blob, Docker_Content_Digest=parts[-1])
        elif parts[0] == "simple" and len(parts) == 2:
            wheels = [path.name for path in (self.folder / "wheels").iterdir() if project_name(path.name) == parts[1]]
            links = "".join(f'<a href="/wheels/{html.escape(name)}">{html.escape(name)}</a>\n' for name in wheels)
            self.answer("text/html", links.encode())
        elif parts[0] == "wheels" and wheel.is_file():
            self.answer("application/octet-stream", wheel)
        else:
            self.send_error(404)

    do_HEAD = do_GET  # noqa: N815 - likewise

    def log_message(self, *_: object) -> None:
        """Say nothing: the clients report what they miss."""


def dns_answer(question: bytes) -> bytes:
    """Every name is this host (RFC 1035): pip verifies names only, and a build's container sees no other hosts file."""
    end = question.index(b"\0", 12) + 5
    is_address = question[end - 4 : end - 2] == b"\0\1"
    head = question[:2] + b"\x81\x80\0\1" + (b"\0\1" if is_address else b"\0\0") + b"\0\0\0\0"
    answer = b"\xc0\x0c\0\1\0\1\0\0\0\x3c\0\4" + socket.inet_aton(BRIDGE) if is_address else b""
    return head + question[12:end] + answer


def serve_names() -> None:
    """Answer for ever."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("0.0.0.0", 53))  # noqa: S104 - as INDEX
        while True:
            question, asker = server.recvfrom(512)
            server.sendto(dns_answer(question), asker)


def main(arguments: list[str]) -> int:
    """Entry point."""
    if len(arguments) != 1:
        sys.stderr.write("usage: serve.py FOLDER\n")
        return 2
    folder = Path(arguments[0])
    handler = functools.partial(Handler, folder)
    registry = ThreadingHTTPServer(REGISTRY, handler)
    index = ThreadingHTTPServer(INDEX, handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "tls.pem")
    index.socket = context.wrap_socket(index.socket, server_side=True)
    for task in (registry.serve_forever, serve_names):
        threading.Thread(target=task, daemon=True).start()
    index.serve_forever()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
