#!/usr/bin/python3
"""Carry a base image in a folder: fetch it where there is a network, serve it where there is none.

    base_registry.py fetch NAME:TAG@DIGEST FOLDER --architecture amd64|arm64
    base_registry.py serve FOLDER [--port 5000]

`fetch` keeps the bytes as the registry has them, each under its digest in FOLDER/blobs, for one architecture; where the
registry wants a login, that of `docker login` is used. Run again, it goes on with what is missing. `serve` is a
registry on this host's loopback, which Docker takes without TLS: the image keeps the digest that was published.
Read-only, and only what Docker asks for. Standard library only.
"""

from __future__ import annotations

import argparse
import base64
import functools
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from http.client import HTTPException, HTTPResponse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

INDEXES = ("application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json")
MANIFESTS = ("application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json")
REFERENCE = re.compile(
    r"(?P<registry>localhost|[^/@\s]*[.:][^/@\s]*)/(?P<repository>[^:@\s]+):(?P<tag>[^@\s/:]+)@(?P<digest>sha256:[0-9a-f]{64})"
)
TIMEOUT_S = 60
PIECE_B = 1 << 20


class CarryError(Exception):
    """What stands in the way, as a sentence."""


def blob_path(folder: Path, digest: str) -> Path:
    """Where the bytes of a digest lie."""
    return folder / "blobs" / digest.replace(":", "-")


def media_type(document: dict[str, Any]) -> str:
    """What a manifest is; one of OCI may leave it to be seen."""
    return str(document.get("mediaType") or (INDEXES[0] if "manifests" in document else MANIFESTS[0]))


def of_architecture(index: dict[str, Any], architecture: str) -> str:
    """The digest of an index's manifest for Linux on this architecture. CarryError where it has none."""
    found = [
        str(entry["digest"])
        for entry in index["manifests"]
        if (entry.get("platform") or {}).get("os") == "linux" and entry["platform"].get("architecture") == architecture
    ]
    if not found:
        there = sorted({str((entry.get("platform") or {}).get("architecture")) for entry in index["manifests"]})
        raise CarryError(f"The image has nothing for {architecture}, expected one of {', '.join(there)}.")
    return found[0]


def login_of(registry: str) -> str:
    """What `docker login` has kept for a registry, as Basic authorization; empty where it has nothing there."""
    path = Path(os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker") / "config.json"
    try:
        config = json.loads(path.read_text())
    except FileNotFoundError:
        return ""
    except ValueError as error:
        raise CarryError(f"{path} is not JSON ({error}), expected what `docker login` writes. Correct it.") from error
    if kept := config.get("auths", {}).get(registry, {}).get("auth"):
        return f"Basic {kept}"
    helper = config.get("credHelpers", {}).get(registry) or config.get("credsStore")
    if not helper:
        return ""
    program = [f"docker-credential-{helper}", "get"]
    done = subprocess.run(program, input=registry, capture_output=True, text=True, check=False)
    if done.returncode != 0:  # it has none
        return ""
    login = json.loads(done.stdout)
    pair = f"{login['Username']}:{login['Secret']}".encode()
    return f"Basic {base64.b64encode(pair).decode()}"


class Source:
    """A repository of a registry."""

    def __init__(self, registry: str, repository: str) -> None:
        # As Docker has it: a registry on loopback needs no TLS.
        scheme = "http" if registry.split(":", maxsplit=1)[0] in ("127.0.0.1", "localhost") else "https"
        self.base = f"{scheme}://{registry}/v2/{repository}"
        self.registry = registry
        self.authorization = ""

    def open(self, path: str) -> HTTPResponse:
        """The answer to a request; a token is asked for where the registry says so."""
        try:
            try:
                return self._send(path)
            except urllib.error.HTTPError as error:
                if error.code != 401:
                    raise
                self.authorization = self._token(error.headers.get("WWW-Authenticate", ""))
            return self._send(path)
        except urllib.error.HTTPError as error:
            advice = f" Type docker login {self.registry}, then run this again." if error.code in (401, 403) else ""
            raise CarryError(f"{self.base}/{path} answered {error.code} {error.reason}.{advice}") from error
        except urllib.error.URLError as error:
            raise CarryError(f"{self.registry} does not answer: {error.reason}.") from error

    def _send(self, path: str) -> HTTPResponse:
        request = urllib.request.Request(f"{self.base}/{path}")  # noqa: S310 - http or https, from above
        request.add_header("Accept", ", ".join(INDEXES + MANIFESTS))
        if self.authorization:
            # Not for the storage that a registry leads on to.
            request.add_unredirected_header("Authorization", self.authorization)
        answer: HTTPResponse = urllib.request.urlopen(request, timeout=TIMEOUT_S)  # noqa: S310
        return answer

    def _token(self, challenge: str) -> str:
        login = login_of(self.registry)
        words = dict(re.findall(r'(\w+)="([^"]*)"', challenge))
        # A login goes in the clear only where the registry itself is asked so.
        schemes = ("http://", "https://") if self.base.startswith("http://") else ("https://",)
        if not challenge.lower().startswith("bearer") or not words.get("realm", "").startswith(schemes):
            return login
        query = urllib.parse.urlencode({name: words[name] for name in ("service", "scope") if name in words})
        request = urllib.request.Request(f"{words['realm']}?{query}")  # noqa: S310 - checked above
        if login:
            request.add_unredirected_header("Authorization", login)
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:  # noqa: S310
            granted = json.load(answer)
        return f"Bearer {granted.get('token') or granted['access_token']}"

    def keep(self, kind: str, digest: str, folder: Path) -> Path:
        """Have the bytes of a digest in the folder; they get their name once they are proved."""
        path = blob_path(folder, digest)
        if path.is_file():
            return path
        part = path.with_suffix(".part")
        proof = hashlib.sha256()
        with self.open(f"{kind}/{digest}") as answer, part.open("wb") as file:
            promised_b = int(answer.headers.get("Content-Length") or 0)
            while piece := next_piece(answer):
                proof.update(piece)
                file.write(piece)
            came_b = file.tell()
        if came_b < promised_b:
            part.unlink()
            raise CarryError(
                f"{self.registry} broke off after {came_b} of {promised_b} bytes of {digest}, expected all. Run this "
                "again: what came before stays."
            )
        if f"sha256:{proof.hexdigest()}" != digest:
            part.unlink()
            raise CarryError(f"{self.registry} handed out something else than {digest}. Nothing of it was kept.")
        part.replace(path)
        return path


def next_piece(answer: HTTPResponse) -> bytes:
    """What comes next; nothing at the end, and where the connection broke, which the count of bytes shows."""
    try:
        return answer.read(PIECE_B)
    except (HTTPException, OSError):
        return b""


def fetch(reference: str, folder: Path, architecture: str) -> int:
    """Bring an image into the folder; returns how many of its parts had to come."""
    match = REFERENCE.fullmatch(reference)
    if not match:
        raise CarryError(f"The image is {reference}, expected REGISTRY/NAME:TAG@sha256: and 64 hex digits.")
    source = Source(match["registry"], match["repository"])
    blobs = folder / "blobs"
    blobs.mkdir(parents=True, exist_ok=True)
    there = {path.name for path in blobs.iterdir()}
    document = json.loads(source.keep("manifests", match["digest"], folder).read_text())
    if media_type(document) in INDEXES:
        chosen = of_architecture(document, architecture)
        document = json.loads(source.keep("manifests", chosen, folder).read_text())
    for part in [document["config"], *document["layers"]]:
        source.keep("blobs", part["digest"], folder)
    return len({path.name for path in blobs.iterdir()} - there)


class Handler(BaseHTTPRequestHandler):
    """Answers GET and HEAD for what the folder has."""

    protocol_version = "HTTP/1.1"
    # Docker tries TLS first, and turns to plain HTTP only where the answer to that is one of HTTP.
    default_request_version = "HTTP/1.1"

    def __init__(self, folder: Path, *arguments: Any) -> None:
        self.folder = folder
        super().__init__(*arguments)

    def do_GET(self) -> None:
        parts = self.path.split("?", maxsplit=1)[0].strip("/").split("/")
        if parts == ["v2"]:
            self._answer("application/json", {"Content-Length": "2"})
            if self.command == "GET":
                self.wfile.write(b"{}")
            return
        named = parts[0] == "v2" and parts[-2:-1] in (["manifests"], ["blobs"])
        path = blob_path(self.folder, parts[-1])
        if not named or not path.is_file():
            self.send_error(404)
            return
        kind = media_type(json.loads(path.read_text())) if parts[-2] == "manifests" else "application/octet-stream"
        self._answer(kind, {"Content-Length": str(path.stat().st_size), "Docker-Content-Digest": parts[-1]})
        if self.command == "GET":
            with path.open("rb") as file:
                shutil.copyfileobj(file, self.wfile, PIECE_B)

    do_HEAD = do_GET  # noqa: N815 - the name that the library calls

    def _answer(self, kind: str, headers: dict[str, str]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing: Docker reports what it misses."""


def server(folder: Path, port: int) -> ThreadingHTTPServer:
    """The registry, listening."""
    try:
        return ThreadingHTTPServer(("127.0.0.1", port), functools.partial(Handler, folder))
    except OSError as error:
        raise CarryError(
            f"127.0.0.1:{port} cannot be listened on: {error.strerror}. Expected a free port: ss -Hltnp 'sport = "
            f":{port}' names who has it; --port takes another, which comfyui_base_image then names."
        ) from error


def main(arguments: list[str]) -> int:
    """Entry point; what stands in the way is one sentence on stderr and status 1."""
    parser = argparse.ArgumentParser(description="Carry a base image in a folder.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    fetching = verbs.add_parser("fetch")
    fetching.add_argument("reference", metavar="NAME:TAG@DIGEST")
    fetching.add_argument("folder", type=Path)
    fetching.add_argument("--architecture", choices=["amd64", "arm64"], required=True)
    serving = verbs.add_parser("serve")
    serving.add_argument("folder", type=Path)
    serving.add_argument("--port", type=int, default=5000)
    chosen = parser.parse_args(arguments)
    try:
        if chosen.verb == "fetch":
            print(f"{fetch(chosen.reference, chosen.folder, chosen.architecture)} parts came")
        elif not (chosen.folder / "blobs").is_dir():
            raise CarryError(f"There is no {chosen.folder}/blobs, expected the folder that `fetch` filled.")
        else:
            server(chosen.folder, chosen.port).serve_forever()
    except (CarryError, HTTPException, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
