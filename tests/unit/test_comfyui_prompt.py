"""Module comfyui_prompt and its client: against the stand-in, and against a server that answers as it is told."""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import re
import socket
import struct
import subprocess
import sys
import threading
import time
import tracemalloc
import urllib.error
import zlib
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import comfyui_api as api

ROOT = Path(__file__).resolve().parents[2]
MODULE = ROOT / "plugins" / "modules" / "comfyui_prompt.py"
RECORDED = json.loads((ROOT / "tests" / "data" / "api-0.28.1.json").read_text())["exchanges"]
RENDER = {
    "1": {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 48, "batch_size": 2, "color": 255}},
    "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "t"}},
}
PROMPT_ID = "0f2ef437-715b-40ec-8c69-0e5572f0e1dc"
FILTERS = range(5)


def recorded(case: str) -> dict[str, Any]:
    (exchange,) = [one for one in RECORDED if one.get("case") == case]
    return dict(exchange)


def png(width: int, height: int, body: bytes, *, colour: int = 2, depth: int = 8, interlace: int = 0) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlace)
    return api.PNG_SIGNATURE + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def paeth(left: int, up: int, corner: int) -> int:
    guess = left + up - corner
    distances = (abs(guess - left), abs(guess - up), abs(guess - corner))
    return (left, up, corner)[distances.index(min(distances))]


def filter_rows(rows: list[bytes], filters: list[int], step: int) -> bytes:
    """The rows as a PNG stores them; written from the specification, byte by byte."""
    stored = b""
    above = bytes(len(rows[0]))
    for row, kind in zip(rows, filters, strict=True):
        stored += bytes([kind])
        for i, value in enumerate(row):
            left = row[i - step] if i >= step else 0
            corner = above[i - step] if i >= step else 0
            guess = (0, left, above[i], (left + above[i]) // 2, paeth(left, above[i], corner))[kind]
            stored += bytes([(value - guess) & 0xFF])
        above = row
    return stored


@st.composite
def pictures(draw: st.DrawFn) -> tuple[int, int, int, list[bytes], list[int]]:
    """Colour type, width, height, rows, filter types; of one colour, or with one byte changed anywhere."""
    colour, step = draw(st.sampled_from([(0, 1), (4, 2), (2, 3), (6, 4)]))
    width, height = draw(st.integers(1, 5)), draw(st.integers(1, 4))
    rows = [bytearray(draw(st.binary(min_size=step, max_size=step)) * width)] * height
    rows = [bytearray(row) for row in rows]
    if draw(st.booleans()):
        rows[draw(st.integers(0, height - 1))][draw(st.integers(0, width * step - 1))] ^= draw(st.integers(1, 255))
    filters = draw(st.lists(st.sampled_from(FILTERS), min_size=height, max_size=height))
    return colour, width, height, [bytes(row) for row in rows], filters


@settings(max_examples=200)
@given(picture=pictures())
def test_blank_means_one_colour_under_every_filter(picture: tuple[int, int, int, list[bytes], list[int]]) -> None:
    colour, width, height, rows, filters = picture
    step = len(rows[0]) // width
    data = png(width, height, zlib.compress(filter_rows(rows, filters, step)), colour=colour)
    pixels = {row[i : i + step] for row in rows for i in range(0, len(row), step)}
    found = api.read_png(data)
    assert (found.width_px, found.height_px, found.blank) == (width, height, len(pixels) == 1)
    with Image.open(io.BytesIO(data)) as image:  # the filters of this test are those of everyone else
        assert image.tobytes() == b"".join(rows)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "I;16"])
@pytest.mark.parametrize("changed", [False, True])
def test_pngs_of_another_writer(mode: str, changed: bool) -> None:
    image = Image.new(mode, (130, 70), 7)
    if changed:
        image.putpixel((129, 69), 8)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    found = api.read_png(buffer.getvalue())
    assert (found.width_px, found.height_px) == (130, 70)
    assert found.blank in (not changed, None)
    assert found.blank is not None or mode == "P"  # Pillow packs a palette of few colours below 8 bits


def test_same_pixels_have_the_same_digest_whatever_text_is_inside() -> None:
    plain = png(2, 1, zlib.compress(b"\0abcdef"))
    text = b"tEXtprompt\0{}"
    chunk = struct.pack(">I", len(text) - 4) + text + struct.pack(">I", zlib.crc32(text))
    told = plain[:33] + chunk + plain[33:]
    assert api.read_png(told) == api.read_png(plain)
    assert api.read_png(png(2, 1, zlib.compress(b"\0abcdeg"))).pixels_sha256 != api.read_png(plain).pixels_sha256


def test_interlaced_and_packed_pixels_are_not_judged() -> None:
    assert api.read_png(png(8, 1, zlib.compress(b"\0\0"), colour=0, depth=1)).blank is None
    assert api.read_png(png(1, 1, zlib.compress(b"\0abc"), interlace=1)).blank is None


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"<html>", "no PNG"),
        (png(2, 1, zlib.compress(b"\0abcdef"))[:-12], "no end chunk"),
        (png(2, 1, zlib.compress(b"\0abcdef"))[:-2], "cut off inside a chunk"),
        (png(2, 1, zlib.compress(b"\0abcdef"))[:50], "cut off inside its IDAT"),
        (png(2, 1, zlib.compress(b"\0abcdef")).replace(b"IDATx", b"IDATy"), "IDAT chunk has a wrong checksum"),
        (png(2, 1, zlib.compress(b"\0abc")), "cut off: 4 of 7 bytes"),
        (png(2, 1, zlib.compress(b"\0abcdefghi")), "more than the 7 bytes"),
        (png(2, 1, zlib.compress(b"\0abcdef")[:-3]), "cut off: 7 of 7 bytes, and no end"),
        (png(2, 1, b"garbage"), "does not unpack"),
        (png(0, 1, zlib.compress(b"\0")), "makes no sense: 0x1"),
        (png(1, 1, zlib.compress(b"\0a"), colour=5), "colour type 5"),
        (api.PNG_SIGNATURE + png(1, 1, b"")[33:], "no header"),
    ],
)
def test_broken_pngs_are_refused(data: bytes, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        api.read_png(data)


@given(data=st.binary(max_size=60), keep=st.integers(0, 60))
def test_no_bytes_lead_to_anything_but_a_verdict(data: bytes, keep: int) -> None:
    with contextlib.suppress(ValueError):
        api.read_png(png(3, 2, zlib.compress(bytes(20)))[:keep] + data)


def test_a_bomb_is_not_unpacked() -> None:
    data = png(1, 1, zlib.compress(bytes(64 << 20)))
    tracemalloc.start()
    with pytest.raises(ValueError, match="more than the 4 bytes"):
        api.read_png(data)
    peak_b = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_b < 4 << 20


@pytest.mark.parametrize("pixel", [b"\0\0\0", b"abc"])
def test_a_blank_image_of_full_size_is_judged_fast(pixel: bytes) -> None:
    data = png(2048, 2048, zlib.compress((b"\0" + pixel * 2048) * 2048))
    started = time.process_time()
    assert api.read_png(data).blank is True
    assert time.process_time() - started < 1


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (png(1, 1, b""), "PNG"),
        (b"\xff\xd8\xff\xe0", "JPEG"),
        (b"RIFF\0\0\0\0WEBPVP8 ", "WEBP"),
        (b"<html>", "unknown"),
        (b"", "unknown"),
    ],
)
def test_formats(data: bytes, name: str) -> None:
    assert api.image_format(data) == name


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("raw graph, not wrapped", "No prompt provided"),
        ("unknown class", "Node 'Nope' not found. The custom node may not be installed.: Node ID '#1'"),
        ("no outputs", "Prompt has no outputs"),
        (
            "missing input",
            "Prompt outputs failed validation: Required input is missing: images; "
            "node 2 (SaveImage): Required input is missing: images",
        ),
        (
            "unknown checkpoint",
            "Prompt outputs failed validation; node 1 (CheckpointLoaderSimple): "
            "Value not in list: ckpt_name: 'absent.safetensors' not in []",
        ),
        (
            "one output valid, one not: 200 with node_errors",
            "node 4 (SaveImage): Exception when validating node: '9'",
        ),
    ],
)
def test_rejections_are_in_comfyuis_words(case: str, words: str) -> None:
    assert api.describe_rejection(recorded(case)["body"], {}) == words


def test_rejection_without_details() -> None:
    assert api.describe_rejection({"error": "denied"}, {}) == "denied"
    assert api.describe_rejection({}, {}) == "no reason given"
    assert api.describe_rejection({"node_errors": {"1": {}}}, RENDER) == "node 1 (EmptyImage): no reason given"


def test_execution_messages() -> None:
    error = {
        "node_id": "5",
        "node_type": "KSampler",
        "exception_type": "torch.OutOfMemoryError",
        "exception_message": "Allocation failed\n",
    }
    assert api.describe_execution({"status_str": "success", "completed": True, "messages": []}) == ""
    assert api.describe_execution({}) == ""
    assert api.describe_execution({"status_str": "error", "messages": [["execution_error", error]]}) == (
        "node 5 (KSampler): torch.OutOfMemoryError: Allocation failed"
    )
    assert (
        api.describe_execution({"messages": [["execution_interrupted", error]]}) == "interrupted at node 5 (KSampler)"
    )
    assert api.describe_execution({"status_str": "error", "messages": None}) == "status error, without a reason"


def test_history_entry_is_read() -> None:
    (exchange,) = [one for one in RECORDED if one["request"]["path"] == f"/history/{PROMPT_ID}"]
    entry = exchange["body"][PROMPT_ID]
    assert [(node, image["filename"]) for node, image in api.image_references(entry)] == [
        ("2", "rec_00001_.png"),
        ("2", "rec_00002_.png"),
    ]
    assert api.cached_nodes(entry) == []
    assert api.cached_nodes({"status": {"messages": [["execution_cached", {"nodes": ["1", 2]}]]}}) == ["1", "2"]
    assert api.image_references({"outputs": {"3": {"text": ["x"]}}}) == []


def test_unmet_expectations() -> None:
    image = {"filename": "a.png", "width_px": 64, "height_px": 48, "format": "PNG", "blank": True}
    assert api.unmet({}, []) == []
    assert api.unmet({"count": 1, "width_px": 64, "height_px": 48, "format": "PNG", "not_blank": False}, [image]) == []
    assert api.unmet({"count": 1}, [image, image]) == ["2 images came back, 1 expected"]
    assert api.unmet({"count": 2, "width_px": 65, "format": None, "not_blank": True}, [image]) == [
        "1 images came back, 2 expected",
        "a.png has width_px 64, 65 expected",
        "a.png is blank: every pixel has the same colour",
    ]


Answer = tuple[int, Any]
Script = dict[str, Answer | Callable[[Any], Answer]]


class Told:
    """HTTP on loopback: "METHOD /path" to an answer, or to a function of the request's body."""

    def __init__(self, script: Script) -> None:
        self.seen: list[tuple[str, Any]] = []
        told = self

        class Handler(BaseHTTPRequestHandler):
            def handle_one(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                key = f"{self.command} {self.path}"
                document = json.loads(body) if body else None
                told.seen.append((key, document))
                answer = script.get(key, script.get(key.split("?", maxsplit=1)[0], (404, b"absent")))
                status, content = answer(document) if callable(answer) else answer
                data = content if isinstance(content, bytes) else json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                with contextlib.suppress(BrokenPipeError):
                    self.wfile.write(data)

            do_GET = do_POST = handle_one  # noqa: N815  # the base class's names

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.client = api.Client(f"http://127.0.0.1:{self.server.server_port}/", request_timeout_s=2)
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def asked(self) -> list[str]:
        return [key for key, _ in self.seen]

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def told() -> Iterator[Callable[[Script], Told]]:
    servers: list[Told] = []

    def start(script: Script) -> Told:
        servers.append(Told(script))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def accepted(**more: Any) -> Script:
    return {
        "POST /prompt": (200, {"prompt_id": "p", "number": 1, "node_errors": {}}),
        "POST /queue": (200, b""),
        "POST /interrupt": (200, b""),
        **more,
    }


def queues(running: list[str], pending: list[str]) -> Answer:
    return 200, {"queue_running": [[0, one] for one in running], "queue_pending": [[1, one] for one in pending]}


def ended(**entry: Any) -> Answer:
    return 200, {"p": {"outputs": {}, "status": {"status_str": "success", "messages": []}, **entry}}


def test_proxies_of_the_environment_are_not_asked(told: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert told({"GET /x": (200, {})}).client.json("/x") == (200, {})


@pytest.mark.parametrize("url", ["127.0.0.1:8188", "ftp://x", "http://", "file:///etc/passwd"])
def test_addresses_that_are_none(url: str) -> None:
    with pytest.raises(ValueError, match="expected http://HOST:PORT"):
        api.Client(url)


def test_submission_is_wrapped_and_named(told: Any) -> None:
    server = told(accepted())
    assert server.client.submit(RENDER) == "p"
    ((_, body),) = server.seen
    assert (body["prompt"], body["front"]) == (RENDER, False)
    assert len(body["client_id"]) == 36


def test_a_partly_valid_graph_is_refused_and_taken_back(told: Any) -> None:
    answer = recorded("one output valid, one not: 200 with node_errors")["body"]
    server = told(accepted(**{"POST /prompt": (200, answer), "GET /queue": queues([], [])}))
    with pytest.raises(api.ComfyuiError, match="Exception when validating node: '9'") as caught:
        server.client.submit(RENDER)
    assert caught.value.kind == "rejected"
    assert list(caught.value.node_errors) == ["4"]
    assert ("POST /queue", {"delete": [answer["prompt_id"]]}) in server.seen


def test_an_error_page_is_no_verdict_on_the_graph(told: Any) -> None:
    server = told({"POST /prompt": (502, b"<html>Bad\nGateway</html>"), "GET /queue": (200, b"<html>hello</html>")})
    with pytest.raises(api.ComfyuiError, match="/prompt answered 502: <html>Bad Gateway</html>") as caught:
        server.client.submit(RENDER)
    assert caught.value.kind == "not_comfyui"
    with pytest.raises(api.ComfyuiError, match="/queue answered 200 without JSON: <html>hello") as caught:
        server.client.queue()
    assert caught.value.kind == "not_comfyui"


@pytest.mark.parametrize(
    ("answer", "ask"),
    [
        ({"POST /prompt": (200, {})}, lambda client: client.submit(RENDER)),
        ({"POST /prompt": (200, ["p"])}, lambda client: client.submit(RENDER)),
        ({"POST /prompt": (400, {"error": 5})}, lambda client: client.submit(RENDER)),
        ({"POST /prompt": (400, {"node_errors": ["1"]})}, lambda client: client.submit(RENDER)),
        ({"GET /queue": (200, {})}, lambda client: client.queue()),
        ({"GET /queue": (200, [])}, lambda client: client.queue()),
        ({"GET /queue": (200, {"queue_running": 1, "queue_pending": []})}, lambda client: client.queue()),
        ({"GET /queue": (200, {"queue_running": [], "queue_pending": [["a", "p"]]})}, lambda client: client.queue()),
        ({"GET /history/p": (200, [])}, lambda client: client.history("p")),
        ({"GET /object_info/X": (200, [])}, lambda client: client.node_classes(["X"])),
        ({"GET /history/p": (200, {"p": {"status": "?"}})}, lambda client: client.run(RENDER, 5)),
        ({"GET /history/p": (200, {"p": {"outputs": [1]}})}, lambda client: client.run(RENDER, 5)),
    ],
)
def test_json_that_is_no_answer_of_comfyui_is_told(told: Any, answer: Script, ask: Any) -> None:
    server = told(accepted(**answer))
    with pytest.raises(api.ComfyuiError, match="is not what ComfyUI answers") as caught:
        ask(server.client)
    assert caught.value.kind == "not_comfyui"


def test_a_connection_that_dies_inside_an_error_page_is_no_traceback(told: Any) -> None:
    server = told({})

    def cut(_: Any) -> None:
        raise http.client.IncompleteRead(b"<html>")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(urllib.error.HTTPError, "read", cut, raising=False)
        with pytest.raises(api.ComfyuiError, match="does not answer: IncompleteRead") as caught:
            server.client.queue()
    assert caught.value.kind == "unreachable"


def test_what_waits_is_listed_in_the_order_in_which_it_will_run(told: Any) -> None:
    pending = [[3, "third"], [-1, "front"], [2, "second"]]  # the server's own list is a heap
    server = told({"GET /queue": (200, {"queue_running": [[1, "first"]], "queue_pending": pending})})
    assert server.client.queue() == (["first"], ["front", "second", "third"])


def test_nobody_listens() -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        client = api.Client(f"http://127.0.0.1:{held.getsockname()[1]}")
        with pytest.raises(api.ComfyuiError, match=r"does not answer: .*refused") as caught:
            client.wait(0)
    assert caught.value.kind == "unreachable"


def test_waiting_ends_when_the_api_answers(told: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "POLL_LAST_S", 0.01)
    answers = iter([(502, b""), (200, {}), (200, {"system": {}})])
    server = told({"GET /system_stats": lambda _: next(answers)})
    server.client.wait(5)
    assert len(server.seen) == 3


def test_waiting_says_how_long_and_for_what(told: Any) -> None:
    server = told({"GET /system_stats": (200, {"hello": 1})})
    with pytest.raises(api.ComfyuiError, match=r"after 0.1 s: .*is not what ComfyUI answers: {'hello': 1}"):
        server.client.wait(0.1)


def test_a_slow_answer_does_not_end_the_run(told: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "GONE_AFTER_S", 0)
    calls: list[int] = []

    def history(_: Any) -> Answer:
        calls.append(1)
        if len(calls) == 1:
            time.sleep(1)
        return ended()

    server = told({"GET /history/p": history})
    server.client.request_timeout_s = 0.3
    assert server.client.follow("p", 10)["status"]["status_str"] == "success"


def test_following_tells_where_the_prompt_stands(told: Any) -> None:
    seen = iter([queues(["a"], ["b", "p"]), queues(["b"], ["p"]), queues(["p"], ["c"])])
    histories: Iterator[Answer] = iter([(200, {})] * 3 + [ended()])
    server = told({"GET /history/p": lambda _: next(histories), "GET /queue": lambda _: next(seen)})
    heard: list[str] = []
    server.client.follow("p", 10, heard.append)
    assert heard == ["waiting, 2 before it", "waiting, 1 before it", "running"]


def test_the_modules_progress_says_where_the_prompt_stands(
    told: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DGX_COMFYUI_PROGRESS", str(tmp_path / "progress"))
    heard: list[str] = []

    def history(_: Any) -> Answer:
        heard.append(json.loads((tmp_path / "progress").read_text())["text"])
        return ended() if len(heard) == 2 else (200, {})

    stats: Script = {"GET /system_stats": (200, {"system": {}})}
    server = told(accepted(**stats, **{"GET /history/p": history, "GET /queue": queues(["a"], ["p"])}))
    assert "failed" not in run_module(url=server.client.url, graph=RENDER)
    assert heard == ["submitted", "waiting, 1 before it"]


def test_a_restarted_server_has_lost_the_prompt(told: Any) -> None:
    server = told({"GET /history/p": (200, {}), "GET /queue": queues(["other"], [])})
    with pytest.raises(api.ComfyuiError, match="no longer knows the prompt") as caught:
        server.client.follow("p", 10)
    assert caught.value.kind == "lost"


def test_a_server_that_dies_is_told_from_a_time_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "GONE_AFTER_S", 0.2)
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        client = api.Client(f"http://127.0.0.1:{held.getsockname()[1]}")
        with pytest.raises(api.ComfyuiError, match="went away while it ran") as caught:
            client.follow("p", 10)
    assert caught.value.kind == "lost"


def test_a_time_out_takes_the_waiting_prompt_back_and_stops_no_other(told: Any) -> None:
    pending = ["p", "q"]

    def delete(body: Any) -> Answer:
        for one in body["delete"]:
            pending.remove(one)
        return 200, b""

    server = told(
        accepted(
            **{
                "GET /history/p": (200, {}),
                "GET /queue": lambda _: queues(["other"], pending),
                "POST /queue": delete,
            }
        )
    )
    with pytest.raises(api.ComfyuiError, match=r"no result within 0.2 s; the prompt was cancelled") as caught:
        server.client.run(RENDER, 0.2)
    assert (caught.value.kind, caught.value.prompt_id) == ("timeout", "p")
    assert pending == ["q"]
    assert "POST /interrupt" not in server.asked()


def test_a_time_out_interrupts_where_the_prompt_runs(told: Any) -> None:
    running = ["p"]

    def interrupt(body: Any) -> Answer:
        running.remove(body["prompt_id"])
        return 200, b""

    server = told(
        accepted(
            **{
                "GET /history/p": (200, {}),
                "GET /queue": lambda _: queues(running, ["other"]),
                "POST /interrupt": interrupt,
            }
        )
    )
    with pytest.raises(api.ComfyuiError, match="was cancelled"):
        server.client.run(RENDER, 0.2)
    assert running == []


def test_a_prompt_that_does_not_stop_is_not_called_cancelled(told: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api.Client.cancel, "__defaults__", (0.2,))
    server = told(accepted(**{"GET /history/p": (200, {}), "GET /queue": queues(["p"], [])}))
    with pytest.raises(api.ComfyuiError, match="could not be cancelled yet and may still run"):
        server.client.run(RENDER, 0.2)


def saved(filename: str) -> dict[str, Any]:
    return {"2": {"images": [{"filename": filename, "subfolder": "", "type": "output"}]}}


def test_a_missing_image_is_an_error(told: Any) -> None:
    server = told(accepted(**{"GET /history/p": ended(outputs=saved("a.png"))}))
    with pytest.raises(api.ComfyuiError, match=r"it wrote a\.png, and answers 404 for it") as caught:
        server.client.run(RENDER, 5)
    assert caught.value.kind == "image"


def test_a_broken_image_is_an_error(told: Any) -> None:
    server = told(accepted(**{"GET /history/p": ended(outputs=saved("a.png")), "GET /view": (200, png(1, 1, b"what"))}))
    with pytest.raises(api.ComfyuiError, match=r"a\.png: .* does not unpack") as caught:
        server.client.run(RENDER, 5)
    assert caught.value.kind == "image"


def test_an_image_of_another_format_is_named(told: Any) -> None:
    server = told(accepted(**{"GET /history/p": ended(outputs=saved("a b.jpg")), "GET /view": (200, b"\xff\xd8\xff")}))
    (image,) = server.client.run(RENDER, 5)["images"]
    assert (image["format"], image["blank"], image["size_b"]) == ("JPEG", None, 3)
    assert server.asked()[-1] == "GET /view?filename=a+b.jpg&subfolder=&type=output"


def run_module(**parameters: Any) -> dict[str, Any]:
    """What the module prints, run as Ansible runs it: by itself, parameters on standard input."""
    check = parameters.pop("check_mode", False)
    arguments = {"ANSIBLE_MODULE_ARGS": {**parameters, "_ansible_check_mode": check}}
    # Ansible lays module_utils into this package on the target.
    start = (
        "import runpy, sys, ansible.module_utils as utils; "
        f"utils.__path__.append({str(ROOT / 'plugins' / 'module_utils')!r}); "
        f"sys.argv = ['comfyui_prompt']; runpy.run_path({str(MODULE)!r}, run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", start], input=json.dumps(arguments), capture_output=True, text=True, check=False
    )
    assert done.stdout, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


@pytest.fixture(scope="module")
def standin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    base = tmp_path_factory.mktemp("comfyui")
    for folder in ("models/checkpoints", "input", "output", "user", "custom_nodes"):
        (base / folder).mkdir(parents=True)
    (base / "models" / "checkpoints" / "broken.safetensors").write_bytes(b"not a checkpoint")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    main = ROOT / "tests" / "upstreams" / "comfyui" / "main.py"
    command = [sys.executable, str(main), "--cpu", "--port", str(port), "--base-directory", str(base)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            api.Client(f"http://127.0.0.1:{port}").wait(30)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


def test_module_renders_and_measures(standin: str, tmp_path: Path) -> None:
    file = tmp_path / "graph.json"
    file.write_text(json.dumps(RENDER))
    expect = {"count": 2, "width_px": 80, "height_px": 48, "format": "PNG"}
    result = run_module(url=standin, graph_file=str(file), inputs={"1": {"width": 80}}, expect=expect, wait_s=5)
    assert "failed" not in result, result
    assert (result["changed"], result["cached_nodes"]) == (True, [])
    assert [(image["width_px"], image["blank"], image["type"]) for image in result["images"]] == [
        (80, True, "output"),
        (80, True, "output"),
    ]
    assert 0 < result["seconds"] < 10
    again = run_module(url=standin, graph_file=str(file), inputs={"1": {"width": 80}})
    assert again["changed"] is not (again["cached_nodes"] != [])


def test_module_fails_on_unmet_expectations(standin: str) -> None:
    result = run_module(url=standin, graph=RENDER, expect={"count": 3, "not_blank": True})
    assert (result["failed"], result["kind"], len(result["images"])) == (True, "expectation", 2)
    assert "2 images came back, 3 expected; " in result["msg"]
    assert "is blank" in result["msg"]


def test_module_passes_on_what_comfyui_says(standin: str) -> None:
    graph = {**RENDER, "2": {"class_type": "SaveImage", "inputs": {"filename_prefix": "t"}}}
    result = run_module(url=standin, graph=graph)
    assert (result["kind"], result["prompt_id"], list(result["node_errors"])) == ("rejected", "", ["2"])
    assert "node 2 (SaveImage): Required input is missing: images" in result["msg"]


def test_module_names_the_node_that_failed(standin: str) -> None:
    graph = json.loads((ROOT / "workflows" / "txt2img_sdxl.json").read_text())
    result = run_module(url=standin, graph=graph, inputs={"1": {"ckpt_name": "broken.safetensors"}})
    assert result["kind"] == "execution", result
    assert result["msg"].startswith("ComfyUI failed to run the graph: node 1 (CheckpointLoaderSimple): ")
    assert result["prompt_id"]


def test_module_checks_without_queueing(standin: str) -> None:
    for how in ({"check_mode": True}, {"validate_only": True}):
        result = run_module(url=standin, graph=RENDER, **how)
        assert (result["changed"], result["findings"], result["prompt_id"]) == (False, [], "")
    before = api.Client(standin).json("/history")[1]
    graph_files = [str(ROOT / "workflows" / f"{name}.json") for name in ("render_check", "txt2img_sdxl")]
    result = run_module(url=standin, graph_files=graph_files, validate_only=True)
    assert result["kind"] == "rejected"
    assert result["findings"] == [
        f"{graph_files[1]}: node 1 (CheckpointLoaderSimple), ckpt_name: "
        "'sd_xl_base_1.0.safetensors' is not one of: broken.safetensors"
    ]
    assert api.Client(standin).json("/history")[1] == before


def test_module_submits_and_takes_back(standin: str, tmp_path: Path) -> None:
    files = []
    for number in range(2):
        (tmp_path / f"{number}.json").write_text(json.dumps(RENDER))
        files.append(str(tmp_path / f"{number}.json"))
    before = api.Client(standin).json("/history")[1]
    result = run_module(url=standin, graph_files=files, accept_only=True)
    assert "failed" not in result, result
    assert api.Client(standin).json("/history")[1] == before
    assert api.Client(standin).queue() == ([], [])
    assert result["changed"] == bool(result["written"])
    broken = {**RENDER, "2": {"class_type": "SaveImage", "inputs": {"filename_prefix": "t"}}}
    (tmp_path / "1.json").write_text(json.dumps(broken))
    result = run_module(url=standin, graph_files=files, accept_only=True)
    assert result["kind"] == "rejected"
    assert result["findings"] == [f"{files[1]}: node 2 (SaveImage), images: required input is missing"]


def test_an_accepted_graph_is_taken_out_of_queue_and_history(told: Any) -> None:
    server = told(accepted(**{"GET /queue": queues([], []), "GET /history/p": ended(outputs=saved("a.png"))}))
    assert server.client.accept(RENDER, "a.json") == ["a.png"]
    assert ("POST /queue", {"delete": ["p"]}) in server.seen
    assert server.seen[-1] == ("POST /history", {"delete": ["p"]})


def test_a_200_that_leaves_a_part_out_is_not_accepted(told: Any) -> None:
    errors = {"2": {"errors": [{"message": "Value not in list", "details": "x"}], "class_type": "SaveImage"}}
    answer = (200, {"prompt_id": "p", "number": 1, "node_errors": errors})
    server = told(accepted(**{"POST /prompt": answer, "GET /queue": queues([], [])}))
    with pytest.raises(api.ComfyuiError, match=r"a\.json: ComfyUI refused the graph: node 2 \(SaveImage\): Value not"):
        server.client.accept(RENDER, "a.json")


def test_module_samples_while_the_graph_runs(standin: str) -> None:
    graph = json.loads((ROOT / "workflows" / "render_check.json").read_text())
    result = run_module(url=standin, graph=graph, inputs={"1": {"color": 7}}, sample=True, unload_first=True)
    assert "failed" not in result, result
    assert set(result["samples"][0]) == {
        "at_s",
        "gpu_percent",
        "gpu_memory_mib",
        "memory_used_mib",
    }
    assert all(sample["memory_used_mib"] > 0 for sample in result["samples"])


@pytest.mark.parametrize(
    ("parameters", "kind", "words"),
    [
        ({"graph": {"nodes": [], "links": []}}, "input", "browser's format"),
        ({"graph": RENDER, "inputs": {"7": {"x": 1}}}, "input", "no node '7'"),
        ({"graph_file": "/nonexistent.json"}, "input", "/nonexistent.json is not there"),
        ({"graph_file": str(MODULE)}, "input", "comfyui_prompt.py: Expecting value"),
        ({"graph_files": ["/a"]}, "input", "graph_files is for validate_only"),
        ({"graph": RENDER, "url": "http://127.0.0.1:9"}, "unreachable", "does not answer"),
    ],
)
def test_module_refuses_without_queueing(parameters: dict[str, Any], kind: str, words: str) -> None:
    result = run_module(**parameters)
    assert (result["failed"], result["kind"]) == (True, kind)
    assert words in result["msg"]


@pytest.mark.parametrize("parameters", [{"graph": RENDER}, {"graph_files": ["/nonexistent"], "validate_only": True}])
def test_a_dry_run_skips_where_nothing_is_there_yet(parameters: dict[str, Any]) -> None:
    started = time.monotonic()
    result = run_module(url="http://127.0.0.1:9", check_mode=True, wait_s=60, **parameters)
    assert time.monotonic() - started < 30
    assert (result["skipped"], result["changed"]) == (True, False)
    assert result["msg"].startswith("not checked: ")


def test_a_submission_may_go_before_all_that_wait(told: Any) -> None:
    server = told(accepted())
    server.client.submit(RENDER, front=True)
    ((_, body),) = server.seen
    assert body["front"] is True
