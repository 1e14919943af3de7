"""The ComfyUI stand-in is held to a recording of the real server, and to what our templates need of it."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import io
import json
import re
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from PIL import Image

TESTS = Path(__file__).resolve().parents[1]
MAIN = TESTS / "upstreams" / "comfyui" / "main.py"
EXCHANGES: list[dict[str, Any]] = json.loads((TESTS / "data" / "api-0.28.1.json").read_text())["exchanges"]

WAIT_S = 20
POLL_S = 0.02

# Depends on the run or on the machine, so only the type is compared. Packages may be absent where the test runs.
VOLATILE: dict[str, type | tuple[type, ...]] = {
    "ram_total": int,
    "ram_free": int,
    "vram_total": int,
    "vram_free": int,
    "torch_vram_total": int,
    "torch_vram_free": int,
    "installed": (str, type(None)),
    "installed_templates_version": (str, type(None)),
    "python_version": str,
    "pytorch_version": (str, type(None)),
    "create_time": int,
    "timestamp": int,
}

Json = dict[str, Any]


@dataclass
class Reply:
    """An HTTP answer."""

    status: int
    content_type: str | None
    content: bytes

    def json(self) -> Any:
        """Body as JSON."""
        return json.loads(self.content)


@dataclass
class Server:
    """A running stand-in."""

    process: subprocess.Popen[bytes]
    port: int
    base: Path
    log: Path

    def call(self, method: str, path: str, body: Any = None, content_type: str = "application/json") -> Reply:
        """Send one request; a body that is not bytes goes as JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=WAIT_S)
        raw = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        try:
            connection.request(method, path, raw, {"Content-Type": content_type} if raw is not None else {})
            answer = connection.getresponse()
            return Reply(answer.status, answer.getheader("Content-Type"), answer.read())
        finally:
            connection.close()

    def finish(self, prompt_id: str) -> Json:
        """History entry of a prompt, once it is there."""
        deadline = time.monotonic() + WAIT_S
        while time.monotonic() < deadline:
            found: Json = self.call("GET", f"/history/{prompt_id}").json()
            if found:
                entry: Json = found[prompt_id]
                return entry
            time.sleep(POLL_S)
        raise AssertionError(f"{prompt_id} did not end within {WAIT_S} s: {self.log.read_text()}")

    def submit(self, prompt: Json, **more: Any) -> str:
        """Queue a prompt that must be accepted."""
        reply = self.call("POST", "/prompt", {"prompt": prompt, **more})
        assert reply.status == 200, reply.content
        assert reply.json()["node_errors"] == {}
        return str(reply.json()["prompt_id"])

    def start(self, prompt: Json) -> str:
        """Queue a prompt that must be accepted, and see it run."""
        prompt_id = self.submit(prompt)
        deadline = time.monotonic() + WAIT_S
        while [job[1] for job in self.call("GET", "/queue").json()["queue_running"]] != [prompt_id]:
            assert time.monotonic() < deadline, f"{prompt_id} did not start within {WAIT_S} s: {self.log.read_text()}"
            time.sleep(POLL_S)
        return prompt_id

    def render(self, prompt: Json, **more: Any) -> list[Image.Image]:
        """Images of the one output node of a prompt that must succeed."""
        entry = self.finish(self.submit(prompt, **more))
        assert entry["status"]["status_str"] == "success", entry["status"]
        (output,) = entry["outputs"].values()
        images: list[Image.Image] = []
        for item in output["images"]:
            query = f"filename={item['filename']}&subfolder={item['subfolder']}&type={item['type']}"
            reply = self.call("GET", f"/view?{query}")
            assert (reply.status, reply.content_type) == (200, "image/png")
            image = Image.open(io.BytesIO(reply.content))
            image.load()
            images.append(image)
        return images


def free_port() -> int:
    """Return a loopback port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def arguments(base: Path, port: int) -> list[str]:
    """Command line of a server that writes nowhere but under `base`."""
    database = f"sqlite:///{base}/user/comfyui.db"
    where = ["--base-directory", str(base), "--temp-directory", str(base / "scratch"), "--database-url", database]
    return [sys.executable, str(MAIN), "--cpu", "--listen", "127.0.0.1", "--port", str(port), *where]


@contextlib.contextmanager
def running(base: Path) -> Iterator[Server]:
    """Start a server, wait until it answers, stop it."""
    (base / "custom_nodes").mkdir(parents=True, exist_ok=True)
    port, log = free_port(), base / "server.log"
    with log.open("wb") as out:
        process = subprocess.Popen(arguments(base, port), stdout=out, stderr=subprocess.STDOUT)
    server = Server(process, port, base, log)
    try:
        deadline = time.monotonic() + WAIT_S
        while True:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            with contextlib.suppress(OSError):
                server.call("GET", "/queue")
                break
            time.sleep(POLL_S)
        yield server
    finally:
        process.terminate()
        process.wait(WAIT_S)


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Return the server of the replay, which nothing else may use: numbers and history start at zero there."""
    with running(tmp_path_factory.mktemp("replay")) as server:
        yield server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Return a server with a checkpoint and a LoRA."""
    base = tmp_path_factory.mktemp("comfyui")
    for kind, name in (("checkpoints", "model.safetensors"), ("loras", "style.safetensors")):
        (base / "models" / kind).mkdir(parents=True)
        (base / "models" / kind / name).write_bytes(safetensors(name))
    with running(base) as found:
        yield found


def safetensors(note: str) -> bytes:
    """Smallest valid file of its kind; the note makes its header unlike others."""
    header = {"__metadata__": {"note": note}, "t": {"dtype": "F16", "shape": [2], "data_offsets": [0, 4]}}
    raw = json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + bytes(4)


def txt2img(prefix: str, *, checkpoint: str = "model.safetensors", batch: int = 1, **sampler: Any) -> Json:
    """Return the graph of a text-to-image template, small."""
    settings = {"seed": 1, "steps": 3, "cfg": 7.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}
    links = {"model": ["1", 0], "positive": ["2", 0], "negative": ["3", 0], "latent_image": ["4", 0]}
    return {
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": checkpoint}},
        "2": {"class_type": "CLIPTextEncode", "inputs": {"text": "a cat", "clip": ["1", 1]}},
        "3": {"class_type": "CLIPTextEncode", "inputs": {"text": "blurry", "clip": ["1", 1]}},
        "4": {"class_type": "EmptyLatentImage", "inputs": {"width": 128, "height": 64, "batch_size": batch}},
        "5": {"class_type": "KSampler", "inputs": {**settings, **sampler, **links}},
        "6": {"class_type": "VAEDecode", "inputs": {"samples": ["5", 0], "vae": ["1", 2]}},
        "7": {"class_type": "SaveImage", "inputs": {"images": ["6", 0], "filename_prefix": prefix}},
    }


def img2img(prefix: str, image: str, denoise: float) -> Json:
    """Return the graph of an image-to-image template."""
    graph = txt2img(prefix, denoise=denoise)
    graph["4"] = {"class_type": "VAEEncode", "inputs": {"pixels": ["8", 0], "vae": ["1", 2]}}
    graph["8"] = {"class_type": "LoadImage", "inputs": {"image": image}}
    return graph


def plain(prefix: str, color: int = 0xFF8001) -> Json:
    """Return a graph that needs no model."""
    size = {"width": 32, "height": 16, "batch_size": 1, "color": color}
    return {
        "1": {"class_type": "EmptyImage", "inputs": size},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": prefix}},
    }


def messages_of(entry: Json) -> dict[str, Json]:
    """Messages of a history entry by kind."""
    return dict(entry["status"]["messages"])


def assert_same(recorded: Any, found: Any, where: str) -> None:
    """Compare by value, what depends on the run by type."""
    if isinstance(recorded, dict):
        assert isinstance(found, dict), where
        # The recording left out the command line, which the real server shows.
        assert set(found) - {"argv"} == set(recorded), where
        for key, value in recorded.items():
            if key in VOLATILE:
                assert isinstance(found[key], VOLATILE[key]), f"{where}.{key}: {found[key]!r}"
            elif key == "traceback":
                assert found[key], f"{where}.{key}"
                assert all(isinstance(line, str) for line in found[key]), f"{where}.{key}"
            else:
                assert_same(value, found[key], f"{where}.{key}")
    elif isinstance(recorded, list):
        assert isinstance(found, list), where
        assert len(found) == len(recorded), f"{where}: {found}"
        for position, value in enumerate(recorded):
            assert_same(value, found[position], f"{where}[{position}]")
    else:
        assert found == recorded, where


def test_the_recording_is_whole() -> None:
    assert len(EXCHANGES) == 29


def test_every_recorded_exchange(untouched: Server) -> None:
    live_ids: dict[str, str] = {}
    for position, exchange in enumerate(EXCHANGES):
        request, recorded = exchange["request"], exchange["body"]
        where = f"{position} {request['method']} {request['path']} {exchange.get('case', '')}"
        path = request["path"]
        for recorded_id, live_id in live_ids.items():
            path = path.replace(recorded_id, live_id)
            if recorded_id in request["path"]:
                untouched.finish(live_id)
        reply = untouched.call(request["method"], path, request["body"])
        assert reply.status == exchange["status"], where
        assert reply.content_type == exchange["content_type"], where
        if isinstance(recorded, str) and (match := re.fullmatch(r"<(\d+) bytes>", recorded)):
            assert bool(reply.content) == bool(int(match[1])), where
            if reply.content:
                assert Image.open(io.BytesIO(reply.content)).size == (64, 48), where
            continue
        if reply.content_type != "application/json; charset=utf-8":
            assert reply.content.decode() == recorded, where
            continue
        text = reply.content.decode()
        if isinstance(recorded, dict) and "prompt_id" in recorded:
            live_ids[recorded["prompt_id"]] = reply.json()["prompt_id"]
        for recorded_id, live_id in live_ids.items():
            text = text.replace(live_id, recorded_id)
        found = json.loads(text)
        if path == "/models":
            found = found[: len(recorded)]  # the recording was cut after twelve
        if path == "/object_info/EmptyImage":
            width = found["EmptyImage"]["input"]["required"]["width"]
            too_small = next(other for other in EXCHANGES if other.get("case") == "too small")
            error = too_small["body"]["node_errors"]["1"]["errors"][0]
            assert width == error["extra_info"]["input_config"], where
            continue
        assert_same(recorded, found, where)
    assert len(live_ids) == 2


@pytest.mark.parametrize(
    "path", ["/system_stats", "/queue", "/models/loras", "/object_info/KSampler", "/userdata?dir="]
)
def test_every_path_is_also_under_api(server: Server, path: str) -> None:
    one, two = server.call("GET", path), server.call("GET", f"/api{path}")
    assert (one.status, one.content_type) == (two.status, two.content_type)
    assert one.status in (200, 400)


def test_front_page_says_what_it_is(server: Server) -> None:
    reply = server.call("GET", "/")
    assert reply.status == 200
    assert reply.content_type == "text/html; charset=utf-8"
    assert b"stand-in" in reply.content


@pytest.mark.parametrize(
    ("change", "node", "kind"),
    [
        ({"5": {"steps": "many"}}, "5", "invalid_input_type"),
        ({"5": {"cfg": 101}}, "5", "value_bigger_than_max"),
        ({"5": {"sampler_name": "nope"}}, "5", "value_not_in_list"),
        ({"6": {"samples": ["5"]}}, "6", "bad_linked_input"),
        ({"2": {"clip": ["99", 1]}}, "2", "exception_during_inner_validation"),
        ({"4": {"width": 8}}, "4", "value_smaller_than_min"),
    ],
)
def test_errors_that_the_recording_lacks(server: Server, change: Json, node: str, kind: str) -> None:
    graph = txt2img("never")
    for node_id, inputs in change.items():
        graph[node_id]["inputs"].update(inputs)
    reply = server.call("POST", "/prompt", {"prompt": graph})
    assert reply.status == 400
    body = reply.json()
    assert body["error"]["type"] == "prompt_outputs_failed_validation"
    assert [error["type"] for error in body["node_errors"][node]["errors"]] == [kind]
    assert body["node_errors"][node]["dependent_outputs"] == ["7"]


def test_a_cycle_is_an_error_of_each_of_its_nodes(server: Server) -> None:
    graph = txt2img("never")
    graph["4"] = {"class_type": "RepeatLatentBatch", "inputs": {"samples": ["5", 0], "amount": 2}}
    body = server.call("POST", "/prompt", {"prompt": graph}).json()
    assert {node: entry["errors"][0]["type"] for node, entry in body["node_errors"].items()} == {
        "4": "dependency_cycle",
        "5": "dependency_cycle",
    }


@pytest.mark.parametrize("name", ["absent.png", "../server.log"])
def test_an_input_image_must_exist_in_its_folder(server: Server, name: str) -> None:
    body = server.call("POST", "/prompt", {"prompt": img2img("never", name, 0.5)}).json()
    (error,) = body["node_errors"]["8"]["errors"]
    assert error["type"] == "custom_validation_failed"
    assert name in error["details"]


def test_plain_colour_reaches_the_file(server: Server) -> None:
    (image,) = server.render(plain("plain", 0xFF8001))
    assert image.size == (32, 16)
    assert image.convert("RGB").getcolors() == [(32 * 16, (0xFF, 0x80, 0x01))]


def test_a_seed_decides_the_pixels(server: Server) -> None:
    first, again, other = (
        server.render(txt2img(f"seed_{position}", seed=seed))[0] for position, seed in enumerate((7, 7, 8))
    )
    assert first.size == (128, 64)
    assert first.tobytes() == again.tobytes()
    assert first.tobytes() != other.tobytes()
    assert all(high - low > 32 for low, high in first.convert("RGB").getextrema())  # type: ignore[misc]


def test_a_batch_of_four_differs_and_is_numbered_on(server: Server) -> None:
    images = server.render(txt2img("set/batch", batch=4))
    assert len({image.tobytes() for image in images}) == 4
    server.render(txt2img("set/batch", seed=2))
    folder = server.base / "output" / "set"
    assert sorted(path.name for path in folder.iterdir()) == [f"batch_{number:05}_.png" for number in range(1, 6)]


def test_png_carries_prompt_and_workflow(server: Server) -> None:
    graph, workflow = plain("meta"), {"nodes": [{"id": 1}], "links": []}
    (image,) = server.render(graph, extra_data={"extra_pnginfo": {"workflow": workflow}})
    assert json.loads(image.info["prompt"]) == graph
    assert json.loads(image.info["workflow"]) == workflow


def test_an_equal_prompt_is_answered_from_the_cache(server: Server) -> None:
    one, two = (server.finish(server.submit(plain("cached"))) for _ in range(2))
    assert two["outputs"] == one["outputs"]
    assert messages_of(two)["execution_cached"]["nodes"] == ["1", "2"]
    assert len(list((server.base / "output").glob("cached_*"))) == 1


def upload(server: Server, name: str, color: str) -> Reply:
    """Send a picture as a browser's form does."""
    picture = io.BytesIO()
    Image.new("RGB", (64, 64), color).save(picture, "PNG")
    head = f'--sep\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\n\r\n'
    return server.call(
        "POST",
        "/upload/image",
        head.encode() + picture.getvalue() + b"\r\n--sep--\r\n",
        "multipart/form-data; boundary=sep",
    )


def test_img2img_depends_on_image_and_denoise(server: Server) -> None:
    for name in ("red", "blue"):
        reply = upload(server, f"{name}.png", name)
        assert reply.json() == {"name": f"{name}.png", "subfolder": "", "type": "input"}
    described = server.call("GET", "/object_info/LoadImage").json()["LoadImage"]
    assert {"red.png", "blue.png"} <= set(described["input"]["required"]["image"][0])
    red, blue, stronger = (
        server.render(img2img(f"i2i_{position}", name, denoise))[0]
        for position, (name, denoise) in enumerate((("red.png", 0.3), ("blue.png", 0.3), ("red.png", 0.9)))
    )
    assert red.size == (64, 64)
    assert len({image.tobytes() for image in (red, blue, stronger)}) == 3
    means = [image.convert("RGB").resize((1, 1), Image.Resampling.BOX).getpixel((0, 0)) for image in (red, blue)]
    assert means[0][0] > 150 > means[1][0]  # type: ignore[index]


def test_an_upload_of_a_known_name_gets_another_one(server: Server) -> None:
    names = [upload(server, "twice.png", color).json()["name"] for color in ("red", "red", "green")]
    assert names == ["twice.png", "twice.png", "twice (1).png"]


def test_a_lora_changes_the_image(server: Server) -> None:
    graph = txt2img("lora")
    strengths = {"lora_name": "style.safetensors", "strength_model": 0.8, "strength_clip": 0}
    graph["9"] = {"class_type": "LoraLoader", "inputs": {"model": ["1", 0], "clip": ["1", 1], **strengths}}
    graph["5"]["inputs"]["model"] = ["9", 0]
    assert server.render(graph)[0].tobytes() != server.render(txt2img("nolora"))[0].tobytes()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("garbage.safetensors", b"<html>404 not found</html>" * 9),
        ("cut.safetensors", safetensors("x")[:-1]),
        ("empty.safetensors", b""),
        ("nojson.safetensors", struct.pack("<Q", 4) + b"oops"),
        ("pickle.ckpt", b"\x80\x04."),
    ],
)
def test_a_broken_checkpoint_fails_the_prompt_and_not_the_server(server: Server, name: str, content: bytes) -> None:
    (server.base / "models" / "checkpoints" / name).write_bytes(content)
    entry = server.finish(server.submit(txt2img("never", checkpoint=name)))
    assert entry["status"]["status_str"] == "error"
    assert entry["status"]["completed"] is False
    assert entry["outputs"] == {}
    error = messages_of(entry)["execution_error"]
    assert (error["node_id"], error["node_type"]) == ("1", "CheckpointLoaderSimple")
    assert error["current_inputs"] == {"ckpt_name": [name]}
    wanted = "ValueError" if name.endswith(".ckpt") else "safetensors._safetensors_rust.SafetensorError"
    assert error["exception_type"] == wanted
    assert set(error) == {
        *("prompt_id", "node_id", "node_type", "executed", "exception_message", "exception_type"),
        *("traceback", "current_inputs", "current_outputs", "timestamp"),
    }
    assert server.call("GET", "/queue").json() == {"queue_running": [], "queue_pending": []}


def test_what_cannot_be_written_fails_the_prompt(server: Server) -> None:
    (server.base / "output").mkdir(exist_ok=True)
    (server.base / "output" / "taken").write_text("a file where a folder would be")
    for prefix, kind in (("taken/x", "NotADirectoryError"), ("../x", "ValueError")):
        entry = server.finish(server.submit(plain(prefix)))
        assert messages_of(entry)["execution_error"]["exception_type"] == kind
    assert not list(server.base.glob("x*"))


def test_userdata_lists_workflows_once_they_exist(server: Server) -> None:
    assert server.call("GET", "/userdata?dir=workflows").status == 404
    stored = server.call("POST", "/userdata/workflows%2Fone.json", {"nodes": []})
    assert stored.json() == "workflows/one.json"
    assert server.call("GET", "/userdata?dir=workflows").json() == ["one.json"]
    assert server.call("GET", "/userdata/workflows%2Fone.json").json() == {"nodes": []}
    assert server.call("GET", "/userdata?dir=..%2F..").status == 403


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("filename=../server.log", 400),
        ("filename=a.png&type=zzz", 400),
        ("filename=a.png&subfolder=..", 403),
        ("", 404),
    ],
)
def test_view_stays_in_its_folder(server: Server, query: str, status: int) -> None:
    assert server.call("GET", f"/view?{query}").status == status


def test_queue_and_history_forget_what_they_are_told(server: Server) -> None:
    long = server.start(txt2img("queue_long", steps=10_000))
    waiting = server.submit(plain("queue_waits"))
    assert [job[1] for job in server.call("GET", "/queue").json()["queue_pending"]] == [waiting]
    server.call("POST", "/queue", {"delete": [waiting]})
    assert server.call("GET", "/queue").json()["queue_pending"] == []
    server.call("POST", "/interrupt", {"prompt_id": long})
    server.finish(long)
    server.call("POST", "/history", {"delete": [long]})
    assert server.call("GET", f"/history/{long}").json() == {}
    server.call("POST", "/history", {"clear": True})
    assert server.call("GET", "/history").json() == {}


async def watch(server: Server, prompt: Json, interrupt_at: str | None = None) -> list[Json]:
    """Messages of one prompt up to the last, which names no node."""
    seen: list[Json] = []
    async with (
        asyncio.timeout(WAIT_S),
        aiohttp.ClientSession(f"http://127.0.0.1:{server.port}") as session,
        session.ws_connect("/ws?clientId=watcher") as stream,
    ):
        seen.append(await stream.receive_json())
        await session.post("/prompt", json={"prompt": prompt, "client_id": "watcher"})
        while seen[-1]["type"] != "executing" or seen[-1]["data"]["node"] is not None:
            seen.append(await stream.receive_json())
            if seen[-1]["type"] == interrupt_at:
                interrupt_at = None
                await session.post("/interrupt", json={})
    return seen


def test_websocket_tells_the_whole_story(server: Server) -> None:
    seen = asyncio.run(watch(server, txt2img("socket", seed=99)))
    assert seen[0] == {"type": "status", "data": {"status": {"exec_info": {"queue_remaining": 0}}, "sid": "watcher"}}
    kinds = [message["type"] for message in seen if message["type"] not in ("status", "progress_state")]
    assert kinds[:2] == ["execution_start", "execution_cached"]
    assert kinds[-3:] == ["executed", "execution_success", "executing"]
    steps = [(message["data"]["value"], message["data"]["max"]) for message in seen if message["type"] == "progress"]
    assert steps == [(1, 3), (2, 3), (3, 3)]
    executing = [message["data"]["node"] for message in seen if message["type"] == "executing"]
    assert executing[-4:] == ["5", "6", "7", None]
    (executed,) = [message["data"] for message in seen if message["type"] == "executed"]
    assert executed["node"] == "7"
    assert executed["output"] == {"images": [{"filename": "socket_00001_.png", "subfolder": "", "type": "output"}]}


def test_interrupt_stops_the_running_prompt(server: Server) -> None:
    seen = asyncio.run(watch(server, txt2img("stopped", steps=10_000), interrupt_at="progress"))
    (stopped,) = [message["data"] for message in seen if message["type"] == "execution_interrupted"]
    assert (stopped["node_id"], stopped["node_type"]) == ("5", "KSampler")
    entry = server.finish(stopped["prompt_id"])
    assert (entry["status"]["status_str"], entry["status"]["completed"]) == ("error", False)
    assert entry["outputs"] == {}
    assert not list((server.base / "output").glob("stopped_*"))
    # An interrupt that found nothing to stop must not stop the next prompt.
    server.call("POST", "/interrupt", {})
    server.render(plain("after_interrupt"))


def test_the_pages_commands_cancel_what_waits_and_what_runs_and_nothing_else(server: Server) -> None:
    section = (TESTS.parent / "docs" / "api.md").read_text().split("## Cancel\n")[1].split("\n## ")[0]
    cancel, tidy = re.findall(r"^```sh\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)

    def type_in(commands: str, prompt_id: str) -> None:
        script = f"set -eu\napi=http://127.0.0.1:{server.port}\nid={prompt_id}\n{commands}"
        subprocess.run(["bash", "-c", script], check=True, capture_output=True, timeout=WAIT_S)

    def queued() -> list[str]:
        queue = server.call("GET", "/queue").json()
        return [item[1] for item in [*queue["queue_running"], *queue["queue_pending"]]]

    runs = server.start(txt2img("page", steps=10_000))
    waits, last = (server.submit(txt2img("page", steps=10_000, seed=seed)) for seed in (1, 2))
    type_in(cancel, waits)
    assert queued() == [runs, last]
    type_in(cancel, runs)
    assert "execution_interrupted" in messages_of(server.finish(runs))
    type_in(tidy, runs)
    assert server.call("GET", f"/history/{runs}").json() == {}
    assert queued() == [last]
    type_in(cancel, last)


def test_another_site_cannot_queue_work(server: Server) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=WAIT_S)
    connection.request("POST", "/prompt", b"{}", {"Origin": "http://evil.example"})
    assert connection.getresponse().status == 403
    connection.close()


@pytest.mark.parametrize(
    ("more", "status", "text"),
    [
        ([], 1, "No such file or directory: .*custom_nodes"),
        (["--disable-all-custom-nodes", "--quick-test-for-ci"], 0, "stand-in"),
        (["--normalvram"], 2, "unrecognized arguments: --normalvram"),
        (["--gpu-only"], 2, "not allowed with argument"),
        (["--models-directory", "/nowhere/at/all"], 2, "not a directory"),
    ],
)
def test_start_without_serving(tmp_path: Path, more: list[str], status: int, text: str) -> None:
    command = [*arguments(tmp_path, free_port()), *more]
    done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S, check=False)
    assert done.returncode == status, done.stderr
    assert re.search(text, done.stderr)


def test_a_port_in_use_is_refused(server: Server, tmp_path: Path) -> None:
    command = [*arguments(tmp_path, server.port), "--disable-all-custom-nodes"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S, check=False)
    assert done.returncode == 1
    assert f"Port {server.port} is already in use" in done.stderr


def test_terminate_ends_it_tidily(tmp_path: Path) -> None:
    with running(tmp_path) as server:
        assert (tmp_path / "scratch" / "temp").is_dir()
        server.process.terminate()
        assert server.process.wait(WAIT_S) == 0
    log = server.log.read_text()
    for line in ("stand-in for ComfyUI", "Starting server", f"To see the GUI go to: http://127.0.0.1:{server.port}"):
        assert line in log
    assert "Failed to initialize database" not in log
    assert (tmp_path / "user" / "comfyui.db").is_file()
    assert not (tmp_path / "scratch" / "temp").exists()
