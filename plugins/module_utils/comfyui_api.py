"""Speak to a running ComfyUI: submit a graph, follow it, fetch and measure its images, cancel it.

Standard library only: this runs on the hosts.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import struct
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

POLL_FIRST_S = 0.1
POLL_LAST_S = 1.0
GONE_AFTER_S = 10  # a server that refuses connections for this long while it renders has died
CANCEL_WAIT_S = 10
UNLOAD_S = 2
EXCERPT_CHARS = 300

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type
INFLATE_CHUNK_B = 1 << 20


class ComfyuiError(Exception):
    """What went wrong, in ComfyUI's own words where it gave any.

    `kind`: V(unreachable) and V(not_comfyui) mean that nothing is known about the graph; V(rejected), V(execution),
    V(timeout), V(lost) and V(image) are verdicts on the run.
    """

    def __init__(self, kind: str, message: str, node_errors: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.kind = kind
        self.node_errors = dict(node_errors or {})
        self.prompt_id = ""


class Png(NamedTuple):
    """What a PNG holds. `blank`: every pixel is the same, or None where that was not determined."""

    width_px: int
    height_px: int
    blank: bool | None
    pixels_sha256: str


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    position = len(PNG_SIGNATURE)
    while position < len(data):
        if position + 12 > len(data):
            raise ValueError("the PNG is cut off inside a chunk")
        (length,) = struct.unpack_from(">I", data, position)
        kind = data[position + 4 : position + 8]
        end = position + 8 + length
        if end + 4 > len(data):
            raise ValueError(f"the PNG is cut off inside its {kind.decode('latin-1')} chunk")
        (wanted,) = struct.unpack_from(">I", data, end)
        if zlib.crc32(data[position + 4 : end]) != wanted:
            raise ValueError(f"the PNG's {kind.decode('latin-1')} chunk has a wrong checksum")
        yield kind, data[position + 8 : end]
        if kind == b"IEND":
            return
        position = end + 4
    raise ValueError("the PNG has no end chunk")


def one_colour_rows(pixel: bytes, width_px: int) -> tuple[dict[int, bytes], dict[int, bytes]]:
    """How a row of one colour looks in a PNG, by filter type: the first row, and every later one.

    Source: RFC 2083 section 6. A filter stores a pixel less what its left, upper and upper-left neighbours predict, and
    all three are known here. So an image is of one colour exactly if each stored row equals one of these: comparing
    bytes costs milliseconds where undoing the filters in Python costs seconds.
    """

    def less(part: Callable[[int], int]) -> bytes:
        return bytes((value - part(value)) & 0xFF for value in pixel)

    zero = bytes(len(pixel))
    rest = width_px - 1
    plain, left, half = pixel * width_px, pixel + zero * rest, less(lambda value: value // 2)
    first = {0: plain, 1: left, 2: plain, 3: pixel + half * rest, 4: left}
    later = {0: plain, 1: left, 2: zero * width_px, 3: half + zero * rest, 4: zero * width_px}
    return first, later


def _inflate(parts: Iterable[bytes], size_b: int) -> Iterator[bytes]:
    """The unpacked image data. Ends within a chunk after `size_b`: a small file may unpack to gigabytes."""
    unpacker = zlib.decompressobj()
    given_b = 0
    for part in parts:
        waiting = part
        while waiting and given_b <= size_b:
            try:
                piece = unpacker.decompress(waiting, INFLATE_CHUNK_B)
            except zlib.error as error:
                raise ValueError(f"the PNG's image data does not unpack: {error}") from error
            waiting = unpacker.unconsumed_tail
            given_b += len(piece)
            yield piece
    if given_b > size_b:
        raise ValueError(f"the PNG's image data has more than the {size_b} bytes that belong there")
    if given_b < size_b or not unpacker.eof:
        raise ValueError(f"the PNG's image data is cut off: {given_b} of {size_b} bytes, and no end")


def read_png(data: bytes) -> Png:
    """Check a PNG's structure and say what it shows; ValueError says how it is broken.

    Costs about 20 ms at 1024x1024: one unpack, and comparisons that end at the first row which is not of one colour.
    """
    if not data.startswith(PNG_SIGNATURE):
        raise ValueError("the file is no PNG")
    header = b""
    packed: list[bytes] = []
    for kind, body in _png_chunks(data):
        if kind == b"IHDR" and not header:
            header = body
        elif kind == b"IDAT":
            packed.append(body)
    if len(header) != 13:
        raise ValueError("the PNG has no header")
    width_px, height_px, depth, colour, _, _, interlace = struct.unpack(">IIBBBBB", header)
    if not (width_px and height_px) or colour not in PNG_CHANNELS:
        raise ValueError(f"the PNG's header makes no sense: {width_px}x{height_px}, colour type {colour}")
    digest = hashlib.sha256(header)
    if interlace or depth < 8:  # rows are split or share bytes between pixels; ComfyUI writes neither
        for body in packed:
            digest.update(body)
        return Png(width_px, height_px, None, digest.hexdigest())
    pixel_b = PNG_CHANNELS[colour] * depth // 8
    row_b = 1 + width_px * pixel_b
    blank: bool = True
    rows: tuple[dict[int, bytes], dict[int, bytes]] | None = None
    row_number = 0
    buffer = bytearray()
    for piece in _inflate(packed, row_b * height_px):
        digest.update(piece)
        if not blank:
            continue
        buffer += piece
        while len(buffer) >= row_b and blank:
            row = bytes(buffer[:row_b])
            del buffer[:row_b]
            rows = rows or one_colour_rows(row[1 : 1 + pixel_b], width_px)
            blank = row[1:] == rows[min(row_number, 1)].get(row[0])
            row_number += 1
    return Png(width_px, height_px, blank, digest.hexdigest())


def image_format(data: bytes) -> str:
    """Name a picture's format by its first bytes."""
    if data.startswith(PNG_SIGNATURE):
        return "PNG"
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    return "unknown"


def describe_image(reference: Mapping[str, Any], node: str, data: bytes) -> dict[str, Any]:
    """One entry of the result; size and blankness are None where the format is not PNG."""
    entry: dict[str, Any] = {
        "filename": str(reference.get("filename", "")),
        "subfolder": str(reference.get("subfolder", "")),
        "type": str(reference.get("type", "")),
        "node": node,
        "size_b": len(data),
        "format": image_format(data),
        "width_px": None,
        "height_px": None,
        "blank": None,
        "pixels_sha256": None,
    }
    if entry["format"] == "PNG":
        entry.update(read_png(data)._asdict())
    return entry


def describe_rejection(answer: Mapping[str, Any], graph: Mapping[str, Any]) -> str:
    """ComfyUI's own words for why it refused, or would only run a part of, a graph."""
    error = answer.get("error") or {}
    if isinstance(error, str):
        error = {"message": error}
    words = [str(error[key]).strip() for key in ("message", "details") if error.get(key)]
    if len(words) == 2 and words[0] == words[1]:
        words.pop()
    parts = [": ".join(words)] if words else []
    for node_id, problem in (answer.get("node_errors") or {}).items():
        class_type = problem.get("class_type") or (graph.get(node_id) or {}).get("class_type", "")
        for one in problem.get("errors") or [{}]:
            text = ": ".join(str(one[key]) for key in ("message", "details") if one.get(key)) or "no reason given"
            parts.append(f"node {node_id} ({class_type}): {text}")
    return "; ".join(parts) or "no reason given"


def describe_execution(status: Mapping[str, Any]) -> str:
    """Why a run ended without success, from the messages in its history; empty where it succeeded."""
    for name, details in reversed(status.get("messages") or []):
        if name == "execution_error":
            node = f"node {details.get('node_id')} ({details.get('node_type')})"
            return f"{node}: {details.get('exception_type')}: {str(details.get('exception_message')).strip()}"
        if name == "execution_interrupted":
            return f"interrupted at node {details.get('node_id')} ({details.get('node_type')})"
    if status.get("status_str") == "error" or status.get("completed") is False:
        return f"status {status.get('status_str')}, without a reason"
    return ""


def image_references(entry: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """Node and file of every image that a history entry names."""
    return [
        (str(node), reference)
        for node, output in (entry.get("outputs") or {}).items()
        for reference in output.get("images") or []
    ]


def cached_nodes(entry: Mapping[str, Any]) -> list[str]:
    """Nodes whose result came from an earlier run. A cached SaveImage names the earlier file and writes none."""
    messages = (entry.get("status") or {}).get("messages") or []
    return [str(node) for name, details in messages if name == "execution_cached" for node in details.get("nodes", [])]


def unmet(expect: Mapping[str, Any], images: list[dict[str, Any]]) -> list[str]:
    """What of C(expect) the images do not hold."""
    failures = []
    if expect.get("count") is not None and len(images) != expect["count"]:
        failures.append(f"{len(images)} images came back, {expect['count']} expected")
    for image in images:
        failures += [
            f"{image['filename']} has {key} {image[key]}, {expect[key]} expected"
            for key in ("width_px", "height_px", "format")
            if expect.get(key) is not None and image[key] != expect[key]
        ]
        if expect.get("not_blank") and image["blank"]:
            failures.append(f"{image['filename']} is blank: every pixel has the same colour")
    return failures


def place_in_queue(prompt_id: str, running: list[str], pending: list[str]) -> str:
    """Where a prompt stands, for people; empty where it is not in the queue."""
    if prompt_id in running:
        return "running"
    if prompt_id in pending:
        return f"waiting, {len(running) + pending.index(prompt_id)} before it"
    return ""


class Client:
    """One ComfyUI server."""

    def __init__(self, url: str, request_timeout_s: float = 30) -> None:
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise ValueError(f"{url!r} is no address of a server; expected http://HOST:PORT")
        self.url = url.rstrip("/")
        self.request_timeout_s = request_timeout_s
        # A proxy from the environment is for the outside world, not for this host's loopback.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def request(self, path: str, body: Any = None) -> tuple[int, bytes]:
        """Status and body of any answer; an error status is an answer. ComfyuiError where there is none."""
        data = None if body is None else json.dumps(body).encode()
        headers = {} if data is None else {"Content-Type": "application/json"}
        request = urllib.request.Request(self.url + path, data, headers)  # noqa: S310  # the constructor checked the scheme
        try:
            try:
                with self._opener.open(request, timeout=self.request_timeout_s) as answer:
                    return answer.status, answer.read()
            except urllib.error.HTTPError as error:
                with error:
                    return error.code, error.read()
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            raise ComfyuiError("unreachable", f"{self.url} does not answer: {reason}") from error

    def json(self, path: str, body: Any = None, accept: tuple[int, ...] = (200,)) -> tuple[int, Any]:
        """A JSON answer with a status from `accept`; anything else is not ComfyUI as we know it."""
        status, content = self.request(path, body)
        excerpt = " ".join(content[:EXCERPT_CHARS].decode(errors="replace").split())
        if status not in accept:
            raise ComfyuiError("not_comfyui", f"{self.url}{path} answered {status}: {excerpt or '(nothing)'}")
        try:
            return status, json.loads(content)
        except ValueError as error:
            message = f"{self.url}{path} answered {status} without JSON: {excerpt or '(nothing)'}"
            raise ComfyuiError("not_comfyui", message) from error

    def document(self, path: str, body: Any = None, accept: tuple[int, ...] = (200,)) -> tuple[int, dict[str, Any]]:
        """As `json`, where the answer is an object."""
        status, answer = self.json(path, body, accept)
        if not isinstance(answer, dict):
            raise self._strange(path, answer)
        return status, answer

    def _strange(self, path: str, answer: Any) -> ComfyuiError:
        return ComfyuiError("not_comfyui", f"{self.url}{path} is not what ComfyUI answers: {answer!r:.300}")

    @contextlib.contextmanager
    def _reading(self, path: str, answer: Any) -> Iterator[None]:
        """Whatever the reader of an answer stumbles over is not ComfyUI as we know it."""
        try:
            yield
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise self._strange(path, answer) from error

    def wait(self, wait_s: float) -> None:
        """Return once the API answers; ComfyuiError with the last failure after `wait_s`."""
        deadline = time.monotonic() + wait_s
        while (error := self._failure()) is not None:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise ComfyuiError(error.kind, f"after {wait_s:g} s: {error}" if wait_s else str(error)) from error
            time.sleep(min(POLL_LAST_S, left_s))

    def _failure(self) -> ComfyuiError | None:
        try:
            _, answer = self.json("/system_stats")
        except ComfyuiError as error:
            return error
        if isinstance(answer, dict) and "system" in answer:
            return None
        return self._strange("/system_stats", answer)

    def node_classes(self, names: Iterable[str]) -> dict[str, Any]:
        """What the server says about these node classes; one that it does not know is left out.

        Asked one by one: the whole of `/object_info` is megabytes and takes the server seconds.
        """
        known: dict[str, Any] = {}
        for name in names:
            _, answer = self.document(f"/object_info/{urllib.parse.quote(name, safe='')}")
            known.update(answer)
        return known

    def submit(self, graph: Mapping[str, Any], *, front: bool = False) -> str:
        """Queue a graph, before all that wait where `front` says so, and return its id.

        A part that ComfyUI would leave out is a rejection of the whole.
        """
        body = {"prompt": graph, "client_id": str(uuid.uuid4()), "front": front}
        status, answer = self.document("/prompt", body, accept=(200, 400))
        node_errors = answer.get("node_errors") or {}
        with self._reading("/prompt", answer):
            reasons = describe_rejection(answer, graph)
            prompt_id = str(answer["prompt_id"]) if status == 200 else ""
        if status == 200 and not node_errors:
            return prompt_id
        if status == 200:
            self.cancel(prompt_id)
        raise ComfyuiError("rejected", f"ComfyUI refused the graph: {reasons}", node_errors)

    def queue(self) -> tuple[list[str], list[str]]:
        """Ids of the prompts that run, and that wait in their order."""
        _, answer = self.document("/queue")
        with self._reading("/queue", answer):
            running, pending = answer["queue_running"], sorted(answer["queue_pending"], key=lambda item: float(item[0]))
            return [str(item[1]) for item in running], [str(item[1]) for item in pending]

    def history(self, prompt_id: str) -> dict[str, Any] | None:
        """The entry of a finished prompt, or None."""
        _, answer = self.document(f"/history/{prompt_id}")
        entry = answer.get(prompt_id)
        return entry if isinstance(entry, dict) else None

    def cancel(self, prompt_id: str, wait_s: float = CANCEL_WAIT_S) -> bool:
        """Take a prompt out of the queue, or stop it where it runs; others stay. Says whether it is gone.

        ComfyUI stops between two steps of a node, so a long step may outlive the wait.
        """
        self.request("/queue", {"delete": [prompt_id]})
        deadline = time.monotonic() + wait_s
        while True:
            running, pending = self.queue()
            if prompt_id in running:
                # Servers that know the id leave any other prompt alone; older ones ignore it.
                self.request("/interrupt", {"prompt_id": prompt_id})
            elif prompt_id in pending:
                self.request("/queue", {"delete": [prompt_id]})
            else:
                return True
            if time.monotonic() >= deadline:
                return False
            time.sleep(POLL_FIRST_S)

    def accept(self, graph: Mapping[str, Any], name: str) -> list[str]:
        """Submit a graph behind all that wait, and take it back and out of the history once it was accepted.

        Names the files that it wrote, where it ended before that.
        """
        try:
            prompt_id = self.submit(graph)
        except ComfyuiError as error:
            raise ComfyuiError(error.kind, f"{name}: {error}", error.node_errors) from error
        self.cancel(prompt_id)
        entry = self.history(prompt_id) or {}
        self.request("/history", {"delete": [prompt_id]})
        return [str(reference.get("filename")) for _, reference in image_references(entry)]

    def unload(self) -> None:
        """Let the server give back what it holds of models. It does so once it is idle, and does not say when."""
        self.request("/free", {"unload_models": True, "free_memory": True})
        time.sleep(UNLOAD_S)

    def follow(self, prompt_id: str, timeout_s: float, tell: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
        """Wait for a prompt's end and return its history entry. After `timeout_s` it is cancelled.

        `tell` hears where it stands in the queue, each time that this was asked.
        """
        deadline = time.monotonic() + timeout_s
        pause_s = POLL_FIRST_S
        silent_since: float | None = None
        while True:
            try:
                entry = self.history(prompt_id)
                if entry is None:
                    place = place_in_queue(prompt_id, *self.queue())
                    if place:
                        tell(place)
                    else:  # it may have ended between the two questions
                        entry = self.history(prompt_id)
                if entry is not None:
                    return entry
                if not place:
                    message = "ComfyUI no longer knows the prompt: it was restarted, or its queue was cleared"
                    raise ComfyuiError("lost", message)
                silent_since = None
            except ComfyuiError as error:
                if error.kind != "unreachable":
                    raise
                now = time.monotonic()
                silent_since = silent_since or now
                if isinstance(error.__cause__, urllib.error.URLError) and now - silent_since >= GONE_AFTER_S:
                    raise ComfyuiError("lost", f"ComfyUI went away while it ran the graph: {error}") from error
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                self._give_up(prompt_id, timeout_s)
            time.sleep(max(0.0, min(pause_s, left_s)))
            pause_s = min(POLL_LAST_S, pause_s * 1.5)

    def _give_up(self, prompt_id: str, timeout_s: float) -> None:
        gone = False
        with contextlib.suppress(ComfyuiError):
            gone = self.cancel(prompt_id)
        state = "was cancelled" if gone else "could not be cancelled yet and may still run"
        raise ComfyuiError("timeout", f"no result within {timeout_s:g} s; the prompt {state}")

    def image(self, node: str, reference: Mapping[str, Any]) -> dict[str, Any]:
        """Fetch one image and measure it."""
        query = urllib.parse.urlencode({key: reference.get(key, "") for key in ("filename", "subfolder", "type")})
        status, content = self.request(f"/view?{query}")
        if status != 200:
            name = reference.get("filename")
            raise ComfyuiError("image", f"ComfyUI says that it wrote {name}, and answers {status} for it")
        try:
            return describe_image(reference, node, content)
        except ValueError as error:
            raise ComfyuiError("image", f"{reference.get('filename')}: {error}") from error

    def run(
        self,
        graph: Mapping[str, Any],
        timeout_s: float,
        *,
        front: bool = False,
        tell: Callable[[str], None] = lambda _: None,
    ) -> dict[str, Any]:
        """Submit, follow, fetch and measure. ComfyuiError carries the prompt's id where there is one."""
        started = time.monotonic()
        prompt_id = self.submit(graph, front=front)
        try:
            entry = self.follow(prompt_id, timeout_s, tell)
            seconds = time.monotonic() - started
            with self._reading(f"/history/{prompt_id}", entry):
                failure = describe_execution(entry.get("status") or {})
                references = image_references(entry)
                cached = cached_nodes(entry)
            if failure:
                raise ComfyuiError("execution", f"ComfyUI failed to run the graph: {failure}")
            images = [self.image(node, reference) for node, reference in references]
        except ComfyuiError as error:
            error.prompt_id = prompt_id
            raise
        return {
            "prompt_id": prompt_id,
            "seconds": round(seconds, 3),
            "seconds_per_image": round(seconds / len(images), 3) if images else None,
            "images": images,
            "cached_nodes": cached,
        }
