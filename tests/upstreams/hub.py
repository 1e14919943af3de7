#!/usr/bin/python3
"""A stand-in for the model hub: the resolve protocol over a folder, with faults on request.

ROOT/<repo>/<commit>/<path> is served at /<repo>/resolve/<commit>/<path>. Large-file formats answer with a redirect to
/cdn/... and the X-Linked-* headers; what is small and textual is answered at once, as on the real hub.

A test drives it over HTTP:
  GET    /control/log      one JSON object per line for each request so far;   DELETE forgets them
  PUT    /control/faults   {"match": "/cdn/*", "kind": "drop", ...}, see `Fault`;  DELETE removes all
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import fnmatch
import hashlib
import json
import math
import os
import re
import socket
import ssl
import struct
import sys
import threading
import time
import urllib.parse
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

SAMPLE_REPO = "stabilityai/stable-diffusion-xl-base-1.0"
SAMPLE_COMMIT = "462165984030d82259a11f4367a4eed129e94a7b"
SAMPLE_PATH = "sd_xl_base_1.0.safetensors"
SAMPLE_SIZE_B = 8 << 20
SAMPLE_HEADER_B = 1016

# Answered without the detour over the content network, as files outside large-file storage are.
PLAIN_SUFFIXES = (".json", ".md", ".txt", ".gitattributes")
BLOCK_B = 64 << 10
KINDS = ("drop", "corrupt", "stall", "status", "ignore_range", "refuse_range", "other", "trickle", "short", "unsized")


@dataclasses.dataclass
class Fault:
    """What goes wrong, for which paths (shell pattern) and how often (None: always).

    drop: the connection ends after `after_b` bytes of the body. corrupt: the byte at `after_b` of the file is flipped.
    stall: silence for `seconds` after `after_b` bytes of the body. trickle: `seconds` of pause before each block.
    short: the file is said to end after `after_b` bytes, and does.
    status: `status` is answered, with `retry_after` and `error_code` as headers. ignore_range: the whole file, always.
    refuse_range: 416 to every range. other: the file at `path` below the root instead, as if it were the one asked for.
    unsized: no word of how long the body is; it ends with the connection.
    Only a status may also answer HEAD, unless `method` says GET; everything else is about bytes.
    """

    match: str
    kind: str
    method: str = ""
    times: int | None = None
    after_b: int = 0
    seconds: float = 0
    status: int = 503
    retry_after: str = ""
    error_code: str = ""
    path: str = ""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"fault {self.kind!r} is not one of {', '.join(KINDS)}")
        if self.kind != "status":
            self.method = "GET"


def parse_range(header: str, size_b: int) -> tuple[int, int] | None:
    """First and last byte of a single `bytes=` range; None where the header asks for the whole file.

    Raises ValueError where no byte of the file is in the range (416). Source: RFC 9110 section 14.1.2.
    """
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", header.strip())
    if match is None or not (match[1] or match[2]):
        return None
    first = int(match[1]) if match[1] else max(size_b - int(match[2]), 0)
    last = min(int(match[2]), size_b - 1) if match[1] and match[2] else size_b - 1
    if first > last:
        raise ValueError(f"{header} lies outside of a file of {size_b} bytes")
    return first, last


def sample_header(size_b: int) -> bytes:
    """What a valid safetensors file of exactly `size_b` bytes begins with; the rest may be anything."""
    shapes = {
        "conditioner.embedders.0.transformer.text_model.embeddings.position_embedding.weight": [77, 768],
        "first_stage_model.decoder.conv_in.weight": [512, 4, 3, 3],
        "model.diffusion_model.input_blocks.0.0.weight": [320, 4, 3, 3],
    }
    header: dict[str, Any] = {"__metadata__": {"format": "pt", "note": "stand-in, not a model"}}
    end_b = 0
    for name, shape in shapes.items():
        begin_b, end_b = end_b, end_b + 2 * math.prod(shape)
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [begin_b, end_b]}
    data_b = size_b - 8 - SAMPLE_HEADER_B
    if data_b < end_b:
        raise ValueError(f"a sample has at least {8 + SAMPLE_HEADER_B + end_b} bytes, not {size_b}")
    header["stand_in.filler"] = {"dtype": "U8", "shape": [data_b - end_b], "data_offsets": [end_b, data_b]}
    text = json.dumps(header).encode().ljust(SAMPLE_HEADER_B)
    return struct.pack("<Q", len(text)) + text


def sample_bytes(size_b: int = SAMPLE_SIZE_B) -> bytes:
    """A valid safetensors file of exactly `size_b` bytes, the same each time."""
    header = sample_header(size_b)
    return header + hashlib.shake_128(b"stand-in checkpoint").digest(size_b - len(header))


def make_sample(root: Path, size_b: int = SAMPLE_SIZE_B) -> dict[str, Any]:
    """Write the sample below `root`; its catalogue entry, less name and licence."""
    content = sample_bytes(size_b)
    target = root / SAMPLE_REPO / SAMPLE_COMMIT / SAMPLE_PATH
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(content)
    return {
        "repo": SAMPLE_REPO,
        "commit": SAMPLE_COMMIT,
        "path": SAMPLE_PATH,
        "size_b": size_b,
        "sha256": hashlib.sha256(content).hexdigest(),
    }


class Hub(ThreadingHTTPServer):
    """What is served, what goes wrong, and what was asked."""

    daemon_threads = True

    def __init__(self, address: tuple[str, int], root: Path, *, token: str, gated: list[str], cdn: str) -> None:
        super().__init__(address, Handler)
        self.root = root.resolve()
        self.token = token
        self.gated = gated
        self.cdn = cdn
        self.faults: list[Fault] = []
        self.log: list[dict[str, Any]] = []
        self.lock = threading.Lock()
        self._digests: dict[tuple[str, int, int], str] = {}

    def digest(self, path: Path) -> str:
        """SHA-256 of a served file, remembered until the file changes."""
        status = path.stat()
        key = (str(path), status.st_mtime_ns, status.st_size)
        if key not in self._digests:
            digest = hashlib.sha256()
            with path.open("rb") as handle:
                while block := handle.read(1 << 20):
                    digest.update(block)
            self._digests[key] = digest.hexdigest()
        return self._digests[key]

    def take_faults(self, method: str, path: str) -> dict[str, Fault]:
        """The faults that hit this request, by kind; each is used up once."""
        hit: dict[str, Fault] = {}
        with self.lock:
            for fault in self.faults:
                if fault.kind in hit or fault.times == 0 or not fnmatch.fnmatch(path, fault.match):
                    continue
                if fault.method not in ("", method):
                    continue
                hit[fault.kind] = fault
                if fault.times is not None:
                    fault.times -= 1
        return hit

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is an everyday event here; anything else is printed."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    server_version = "stand-in-hub"
    server: Hub
    entry: dict[str, Any]

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  the base class names it so
        pass

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def do_PUT(self) -> None:
        self.control()

    def do_DELETE(self) -> None:
        self.control()

    def reply(self, status: int, headers: dict[str, str] | None = None, body: bytes = b"") -> None:
        """A short answer."""
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refuse(self, status: int, code: str, message: str) -> None:
        """An error in the hub's own shape."""
        body = json.dumps({"error": message}).encode()
        headers = {"Content-Type": "application/json", "X-Error-Message": message}
        self.reply(status, {**headers, "X-Error-Code": code} if code else headers, body)

    def control(self) -> None:
        """What a test asks of the stand-in itself; not logged."""
        self.entry = {}
        length_b = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length_b)
        if self.path == "/control/faults" and self.command == "PUT":
            try:
                fault = Fault(**json.loads(body))
            except (TypeError, ValueError) as error:
                return self.reply(400, body=f"{error}\n".encode())
            with self.server.lock:
                self.server.faults.append(fault)
        elif self.path == "/control/faults" and self.command == "DELETE":
            with self.server.lock:
                self.server.faults.clear()
        elif self.path == "/control/log" and self.command == "DELETE":
            with self.server.lock:
                self.server.log.clear()
        elif self.path == "/control/log" and self.command == "GET":
            with self.server.lock:
                lines = "".join(json.dumps(line) + "\n" for line in self.server.log)
            return self.reply(200, {"Content-Type": "application/jsonl"}, lines.encode())
        else:
            return self.reply(404, body=b"control knows /control/faults and /control/log\n")
        return self.reply(204)

    def answer(self) -> None:
        """Any request for content; one line in the log, written when it is over."""
        if self.path.startswith("/control/"):
            return self.control()
        self.entry = {
            "method": self.command,
            "path": urllib.parse.unquote(urllib.parse.urlsplit(self.path).path),
            "host": self.headers.get("Host", ""),
            "range": self.headers.get("Range", ""),
            "if_range": self.headers.get("If-Range", ""),
            "authorization": "Authorization" in self.headers,
            "sent_b": 0,
        }
        # Listed before it is answered: a client that was told "done" finds its own request in the log.
        with self.server.lock:
            self.server.log.append(self.entry)
        self.route(self.entry["path"])
        return None

    def send_response(self, code: int, message: str | None = None) -> None:
        """Keep the status for the log."""
        self.entry["status"] = int(code)
        super().send_response(code, message)

    def route(self, path: str) -> None:
        """Resolve, content, or nothing of ours."""
        faults = self.server.take_faults(self.command, path)
        if "status" in faults:
            fault = faults["status"]
            headers = {"X-Error-Code": fault.error_code} if fault.error_code else {}
            if fault.retry_after:
                headers["Retry-After"] = fault.retry_after
            return self.reply(fault.status, headers, b"fault on request\n")
        if path == "/":
            return self.reply(200, {"Content-Type": "text/plain"}, b"stand-in model hub\n")
        if match := re.fullmatch(r"/cdn/([^/]+/[^/]+)/([^/]+)/(.+)", path):
            # From another host the real content network says nothing of the commit. Here both are one host, the hub's
            # client follows the redirect as the hub's own, and looks for the header in the last answer.
            headers = {"X-Repo-Commit": match[2]}
            return self.content(self.server.root / match[1] / match[2] / match[3], faults, headers)
        if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            return self.resolve(match[1], match[2], match[3], faults)
        return self.refuse(404, "", "no such page")

    def resolve(self, repo: str, commit: str, name: str, faults: dict[str, Fault]) -> None:
        """The hub's own answer for a file: checks, then the headers that describe it and where it is."""
        given = self.headers.get("Authorization", "")
        if repo in self.server.gated and given != f"Bearer {self.server.token}":
            message = f"Access to model {repo} is restricted."
            return self.refuse(403 if given else 401, "GatedRepo", message)
        root = self.server.root
        if not (root / repo).is_dir():
            # The real hub does not tell a stranger whether a repository exists.
            return self.refuse(404 if given else 401, "RepoNotFound", "Repository not found")
        if not (root / repo / commit).is_dir():
            return self.refuse(404, "RevisionNotFound", f"Invalid rev id: {commit}")
        target = root / repo / commit / name
        if not target.resolve().is_relative_to(root) or not target.is_file():
            return self.refuse(404, "EntryNotFound", "Entry not found")
        digest = self.server.digest(target)
        headers = {"X-Repo-Commit": commit}
        if name.endswith(PLAIN_SUFFIXES):
            return self.content(target, faults, headers)
        headers |= {
            "X-Linked-Etag": f'"{digest}"',
            "X-Linked-Size": str(target.stat().st_size),
            "Accept-Ranges": "bytes",
            "Location": (self.server.cdn or f"{self.scheme()}://{self.headers.get('Host', '')}")
            + urllib.parse.quote(f"/cdn/{repo}/{commit}/{name}"),
        }
        return self.reply(302, headers, b"Found. Redirecting\n")

    def scheme(self) -> str:
        return "https" if isinstance(self.connection, ssl.SSLSocket) else "http"

    def content(self, target: Path, faults: dict[str, Fault], headers: dict[str, str]) -> None:
        """The bytes, whole or in part."""
        if not target.resolve().is_relative_to(self.server.root) or not target.is_file():
            return self.reply(404, body=b"no such object\n")
        if "other" in faults:
            target = self.server.root / faults["other"].path
        size_b = faults["short"].after_b if "short" in faults else target.stat().st_size
        headers = {**headers, "ETag": f'"{self.server.digest(target)}"', "Content-Type": "application/octet-stream"}
        wanted = self.headers.get("Range", "")
        if "ignore_range" in faults or self.headers.get("If-Range", headers["ETag"]) != headers["ETag"]:
            wanted = ""
        if "ignore_range" not in faults:
            headers["Accept-Ranges"] = "bytes"
        if "refuse_range" in faults and wanted:
            wanted = f"bytes={size_b}-"
        try:
            span = parse_range(wanted, size_b)
        except ValueError as error:
            return self.reply(416, {"Content-Range": f"bytes */{size_b}"}, f"{error}\n".encode())
        first, last = span or (0, size_b - 1)
        if span:
            headers["Content-Range"] = f"bytes {first}-{last}/{size_b}"
        self.send_response(206 if span else 200)
        for name, value in headers.items():
            self.send_header(name, value)
        if "unsized" in faults:
            self.send_header("Connection", "close")
        else:
            self.send_header("Content-Length", str(last - first + 1))
        self.end_headers()
        if self.command == "HEAD":
            return None
        return self.body(target, first, last + 1, faults)

    def body(self, target: Path, first_b: int, end_b: int, faults: dict[str, Fault]) -> None:
        """Bytes `first_b` up to `end_b` of a file, or what a fault makes of them."""
        drop, stall, corrupt, trickle = (faults.get(kind) for kind in ("drop", "stall", "corrupt", "trickle"))
        if not (drop or stall or corrupt or trickle) and self.scheme() == "http":
            self.body_as_it_is(target, first_b, end_b)
            return
        for start_b, block in self.blocks(target, first_b, end_b):
            sent_b = start_b - first_b
            piece = block
            if corrupt and start_b <= corrupt.after_b < start_b + len(block):
                changed = bytearray(block)
                changed[corrupt.after_b - start_b] ^= 0xFF
                piece = bytes(changed)
            cut = next((f for f in (drop, stall) if f and sent_b + len(piece) > f.after_b), None)
            if trickle:
                time.sleep(trickle.seconds)
            if cut is None:
                self.send(piece)
                continue
            self.send(piece[: max(cut.after_b - sent_b, 0)])
            if cut is stall:
                time.sleep(cut.seconds)
            self.close_connection = True
            with contextlib.suppress(OSError):  # the client may be gone already
                self.connection.shutdown(socket.SHUT_RDWR)
            return

    def body_as_it_is(self, target: Path, first_b: int, end_b: int) -> None:
        """Without a copy in this process: what is measured is to be the client."""
        self.wfile.flush()
        with target.open("rb") as handle:
            while first_b < end_b:
                sent_b = os.sendfile(self.connection.fileno(), handle.fileno(), first_b, end_b - first_b)
                first_b += sent_b
                self.entry["sent_b"] += sent_b

    def send(self, piece: bytes) -> None:
        self.wfile.write(piece)
        self.wfile.flush()
        self.entry["sent_b"] += len(piece)

    @staticmethod
    def blocks(target: Path, first_b: int, end_b: int) -> Iterator[tuple[int, bytes]]:
        """Offset and bytes, block by block."""
        with target.open("rb") as handle:
            handle.seek(first_b)
            at_b = first_b
            while at_b < end_b and (block := handle.read(min(BLOCK_B, end_b - at_b))):
                yield at_b, block
                at_b += len(block)


def main() -> None:
    parser = argparse.ArgumentParser(description="A stand-in for the model hub.")
    parser.add_argument("--bind", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8001, help="0 takes a free one; the address is printed")
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--token", default="", help="what gated repositories ask for")
    parser.add_argument("--gated", action="append", default=[], metavar="REPO")
    parser.add_argument(
        "--cdn", default="", metavar="URL", help="another address for the content, such as another host"
    )
    parser.add_argument("--certificate", default="", metavar="PEM", help="speak TLS with this key and certificate")
    parser.add_argument("--make-sample", action="store_true", help="write the sample checkpoint, print its entry, end")
    options = parser.parse_args()
    if options.make_sample:
        print(json.dumps(make_sample(options.root)))
        return
    hub = Hub(
        (options.bind, options.port),
        options.root,
        token=options.token,
        gated=options.gated,
        cdn=options.cdn.rstrip("/"),
    )
    if options.certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(options.certificate)
        hub.socket = context.wrap_socket(hub.socket, server_side=True)
    print(f"{'https' if options.certificate else 'http'}://{options.bind}:{hub.server_address[1]}", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        hub.serve_forever()


if __name__ == "__main__":
    main()
