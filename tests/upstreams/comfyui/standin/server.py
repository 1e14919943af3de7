"""HTTP routes and the websocket."""

from __future__ import annotations

import asyncio
import errno
import glob
import hashlib
import importlib
import importlib.metadata
import importlib.util
import io
import ipaddress
import json
import logging
import mimetypes
import os
import re
import ssl
import sys
import urllib.parse
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import WSMsgType, web
from PIL import Image

from . import graph
from .folders import Folders, is_within
from .graph import Json
from .options import SOURCE_DIR, Options
from .worker import Job, PromptQueue, Runner, now_ms

log = logging.getLogger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

SECRETS = ("auth_token_comfy_org", "api_key_comfy_org")
PAGE = """<!doctype html>
<title>ComfyUI stand-in</title>
<p>This is a stand-in for ComfyUI, made for tests. It has no editor. The API answers under <a href="system_stats">/</a>
and <a href="api/system_stats">/api</a>.</p>
"""
# What a browser would run or render in the server's origin leaves as a download.
ACTIVE_CONTENT = re.compile(r"(html|javascript|ecmascript|css|xml|rfc822)")


class Outbox:
    """Websocket messages of all threads, sent in order by the loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.sockets: dict[str, web.WebSocketResponse] = {}
        self.remaining = 0
        self._loop = loop
        self._messages: asyncio.Queue[tuple[Json, str | None]] = asyncio.Queue()

    def send(self, kind: str, data: Json, client_id: str | None = None) -> None:
        """Queue a message for one client, or for all."""
        self._loop.call_soon_threadsafe(self._messages.put_nowait, ({"type": kind, "data": data}, client_id))

    def status(self) -> Json:
        """Length of the queue, as /prompt and the status message show it."""
        return {"exec_info": {"queue_remaining": self.remaining}}

    def queue_changed(self, remaining: int) -> None:
        """Tell everyone how many prompts are left."""
        self.remaining = remaining
        self.send("status", {"status": self.status()})

    async def publish(self) -> None:
        """Send until cancelled; a client that went away is no error."""
        while True:
            message, client_id = await self._messages.get()
            wanted = list(self.sockets) if client_id is None else [client_id]
            for socket in [self.sockets[name] for name in wanted if name in self.sockets]:
                await self._deliver(socket, message)

    @staticmethod
    async def _deliver(socket: web.WebSocketResponse, message: Json) -> None:
        try:
            await socket.send_json(message)
        except (ConnectionError, RuntimeError) as error:
            log.warning("send error: %s", error)


def torch_version() -> str | None:
    """Version of the installed torch, read without importing it (seconds); None without one."""
    found = importlib.util.find_spec("torch")
    if found is None or not found.submodule_search_locations:
        return None
    for folder in found.submodule_search_locations:
        try:
            with open(os.path.join(folder, "version.py"), encoding="utf-8") as handle:
                match = re.search(r"^__version__\s*=\s*['\"](.+)['\"]", handle.read(), re.MULTILINE)
        except OSError:
            continue
        if match:
            return match[1]
    try:
        return importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        return None


def memory_b() -> tuple[int, int]:
    """Total and available memory."""
    with open("/proc/meminfo", encoding="ascii") as handle:
        fields = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in handle}
    return fields["MemTotal"], fields["MemAvailable"]


def comfy_packages() -> list[dict[str, str | None]]:
    """Wanted and installed versions of ComfyUI's own packages, from the requirements beside main.py."""
    with open(os.path.join(SOURCE_DIR, "requirements.txt"), encoding="utf-8") as handle:
        pins = re.findall(r"^(comfy[\w-]*)==([\d.]+)", handle.read(), re.MULTILINE)
    found: list[dict[str, str | None]] = []
    for name, required in pins:
        try:
            installed: str | None = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            installed = None
        found.append({"name": name, "installed": installed, "required": required})
    return found


def is_loopback(host: str | None) -> bool:
    """Whether a host name or address is this machine's own loopback."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return False


@web.middleware
async def refuse_other_origins(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Keep other web sites from queueing work through a browser on this machine."""
    if request.headers.get("Sec-Fetch-Site") == "cross-site":
        return web.Response(status=403)
    origin = urllib.parse.urlsplit(request.headers.get("Origin", ""))
    host = urllib.parse.urlsplit(f"//{request.headers.get('Host', '')}")
    if origin.netloc and is_loopback(host.hostname):
        both_ports = origin.port is not None and host.port is not None
        if origin.hostname != host.hostname or (both_ports and origin.port != host.port):
            log.warning("Refused: origin %s does not match host %s", origin.netloc, host.netloc)
            return web.Response(status=403)
    return web.Response() if request.method == "OPTIONS" else await handler(request)


def add_headers(headers: dict[str, str]) -> Any:
    """Return a middleware that adds headers to every answer."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        response = web.Response() if request.method == "OPTIONS" else await handler(request)
        response.headers.update(headers)
        return response

    return middleware


def file_response(path: str, disposition: str) -> web.FileResponse:
    """Send a file; what a browser would run is sent as bytes to save."""
    kind = mimetypes.guess_type(path)[0] or "application/octet-stream"
    if ACTIVE_CONTENT.search(kind) or "svg" in kind:
        kind, disposition = "application/octet-stream", f"attachment; {disposition}"
    headers = {"Content-Type": kind, "Content-Disposition": disposition, "X-Content-Type-Options": "nosniff"}
    return web.FileResponse(path, headers=headers)


class Api:
    """Handlers of all routes."""

    def __init__(self, args: Options, folders: Folders, queue: PromptQueue, runner: Runner, outbox: Outbox) -> None:
        self.args = args
        self.folders = folders
        self.queue = queue
        self.runner = runner
        self.outbox = outbox
        self.number = 0
        with open(os.path.join(SOURCE_DIR, "object_info.json"), encoding="utf-8") as handle:
            self.recorded: Json = json.load(handle)
        runner.input_names.update(
            {name: [found[0] for found in graph.inputs_of(entry)] for name, entry in self.recorded.items()}
        )
        self.checks = {("LoadImage", "image"): self._image_complaint}
        self.choices: dict[tuple[str, str], Callable[[], list[str]]] = {
            ("CheckpointLoaderSimple", "ckpt_name"): lambda: folders.names("checkpoints"),
            ("LoraLoader", "lora_name"): lambda: folders.names("loras"),
            ("LoadImage", "image"): folders.images,
        }

    def _image_complaint(self, name: str) -> str | None:
        try:
            found = os.path.exists(self.folders.image_path(name))
        except ValueError:
            found = False
        return None if found else f"Invalid image file: {name}"

    def describe(self, name: str) -> Json:
        """Return one node class, with the choices that are on disk now."""
        entry = json.loads(json.dumps(self.recorded[name]))
        for (class_type, wanted), choices in self.choices.items():
            if class_type == name:
                entry["input"]["required"][wanted][0] = choices()
        return {
            "input": entry["input"],
            "input_order": {group: list(names) for group, names in entry["input"].items()},
            "is_input_list": False,
            **{key: entry[key] for key in ("output", "output_is_list", "output_name")},
            "name": name,
            "display_name": entry["display_name"],
            "description": "",
            "python_module": "nodes",
            "category": entry["category"],
            "output_node": entry["output_node"],
            "has_intermediate_output": False,
            "search_aliases": [],
        }

    def classes(self) -> Json:
        """All node classes; one that cannot be described is left out."""
        return {name: entry for name in self.recorded if (entry := self._describe_or_log(name))}

    def _describe_or_log(self, name: str) -> Json | None:
        try:
            return self.describe(name)
        except OSError as error:
            log.error("An error occurred while retrieving information for the '%s' node: %s", name, error)
            return None

    def features(self) -> Json:
        """What the server can do, for /features and the websocket."""
        return {
            "supports_preview_metadata": True,
            "supports_model_type_tags": True,
            "max_upload_size": round(self.args.max_upload_size * 1024 * 1024),
            "extension": {"manager": {"supports_v4": True}},
            "node_replacements": True,
            "assets": False,
        }

    async def page(self, _: web.Request) -> web.Response:
        """GET /."""
        return web.Response(text=PAGE, content_type="text/html", headers={"Cache-Control": "no-store, must-revalidate"})

    async def websocket(self, request: web.Request) -> web.WebSocketResponse:
        """GET /ws."""
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        client_id = request.query.get("clientId") or uuid.uuid4().hex
        self.outbox.sockets[client_id] = socket
        try:
            status = {"type": "status", "data": {"status": self.outbox.status(), "sid": client_id}}
            await socket.send_json(status)
            async for message in socket:
                if message.type != WSMsgType.TEXT:
                    continue
                try:
                    asked = json.loads(message.data).get("type")
                except (ValueError, AttributeError):
                    log.warning("Invalid JSON received from client %s", client_id)
                    continue
                if asked == "feature_flags":
                    await socket.send_json({"type": "feature_flags", "data": self.features()})
        finally:
            if self.outbox.sockets.get(client_id) is socket:
                del self.outbox.sockets[client_id]
        return socket

    async def system_stats(self, _: web.Request) -> web.Response:
        """GET /system_stats."""
        total_b, free_b = memory_b()
        packages = comfy_packages()
        by_name = {str(package["name"]): package for package in packages}
        templates = by_name["comfyui-workflow-templates"]
        system = {
            "os": sys.platform,
            "ram_total": total_b,
            "ram_free": free_b,
            "comfyui_version": importlib.import_module("comfyui_version").__version__,
            "required_frontend_version": by_name["comfyui-frontend-package"]["required"],
            "installed_templates_version": templates["installed"],
            "required_templates_version": templates["required"],
            "comfy_package_versions": packages,
            "python_version": sys.version,
            "pytorch_version": torch_version(),
            "embedded_python": False,
            "deploy_environment": "local-git",
            "argv": sys.argv,
        }
        sizes = {"vram_total": total_b, "vram_free": free_b, "torch_vram_total": total_b, "torch_vram_free": free_b}
        return web.json_response(
            {"system": system, "devices": [{"name": "cpu", "type": "cpu", "index": None, **sizes}]}
        )

    async def get_features(self, _: web.Request) -> web.Response:
        """GET /features."""
        return web.json_response(self.features())

    async def model_kinds(self, _: web.Request) -> web.Response:
        """GET /models."""
        return web.json_response(list(self.folders.paths))

    async def models(self, request: web.Request) -> web.Response:
        """GET /models/{folder}."""
        kind = request.match_info["folder"]
        if kind not in self.folders.paths:
            return web.Response(status=404)
        return web.json_response(self.folders.names(kind))

    async def embeddings(self, _: web.Request) -> web.Response:
        """GET /embeddings."""
        return web.json_response([os.path.splitext(name)[0] for name in self.folders.names("embeddings")])

    async def extensions(self, _: web.Request) -> web.Response:
        """GET /extensions."""
        return web.json_response([])

    async def object_info(self, request: web.Request) -> web.Response:
        """GET /object_info and /object_info/{class}."""
        name = request.match_info.get("name")
        if name is None:
            return web.json_response(self.classes())
        return web.json_response({name: self.describe(name)} if name in self.recorded else {})

    async def get_prompt(self, _: web.Request) -> web.Response:
        """GET /prompt."""
        return web.json_response(self.outbox.status())

    async def get_queue(self, _: web.Request) -> web.Response:
        """GET /queue."""
        running, pending = self.queue.listed()
        return web.json_response({"queue_running": running, "queue_pending": pending})

    async def get_history(self, request: web.Request) -> web.Response:
        """GET /history and /history/{id}."""
        max_items = request.query.get("max_items")
        found = self.queue.history(
            request.match_info.get("prompt_id"),
            None if max_items is None else int(max_items),
            int(request.query.get("offset", -1)),
        )
        return web.json_response(found)

    async def post_prompt(self, request: web.Request) -> web.Response:
        """POST /prompt."""
        body = await request.json()
        number = float(body["number"]) if "number" in body else self.number
        if "number" not in body:
            number = -number if body.get("front") else number
            self.number += 1
        if "prompt" not in body:
            text = "No prompt provided"
            error = graph.complaint("no_prompt", text, text)
            return web.json_response({"error": error, "node_errors": {}}, status=400)
        prompt, prompt_id = body["prompt"], body.get("prompt_id")
        if prompt_id is None:
            prompt_id = str(uuid.uuid4())
        elif not self._is_canonical_uuid(prompt_id):
            details = "Give a UUID in its canonical lower-case form with hyphens, or none"
            error = graph.complaint("invalid_prompt_id", "prompt_id must be a valid UUID", details)
            return web.json_response({"error": error, "node_errors": {}}, status=400)
        verdict = graph.validate(prompt, self.classes(), self.checks, body.get("partial_execution_targets"))
        if verdict.error is not None:
            log.warning("invalid prompt: %s", verdict.error)
            return web.json_response({"error": verdict.error, "node_errors": verdict.node_errors}, status=400)
        extra = dict(body.get("extra_data", {}))
        if "client_id" in body:
            extra["client_id"] = body["client_id"]
        extra = {key: value for key, value in extra.items() if key not in SECRETS} | {"create_time": now_ms()}
        log.info("got prompt")
        self.queue.put(Job(number, prompt_id, prompt, extra, verdict.outputs))
        return web.json_response({"prompt_id": prompt_id, "number": number, "node_errors": verdict.node_errors})

    @staticmethod
    def _is_canonical_uuid(value: Any) -> bool:
        try:
            return isinstance(value, str) and str(uuid.UUID(value)) == value
        except ValueError:
            return False

    async def post_queue(self, request: web.Request) -> web.Response:
        """POST /queue."""
        body = await request.json()
        if body.get("clear"):
            self.queue.remove(None)
        if "delete" in body:
            self.queue.remove(body["delete"])
        return web.Response()

    async def post_history(self, request: web.Request) -> web.Response:
        """POST /history."""
        body = await request.json()
        if body.get("clear"):
            self.queue.forget(None)
        if "delete" in body:
            self.queue.forget(body["delete"])
        return web.Response()

    async def post_interrupt(self, request: web.Request) -> web.Response:
        """POST /interrupt; with a prompt_id only where that one runs."""
        try:
            wanted = (await request.json()).get("prompt_id")
        except json.JSONDecodeError:
            wanted = None
        if not wanted or wanted == self.queue.running_id():
            self.runner.interrupt()
        return web.Response()

    async def post_free(self, request: web.Request) -> web.Response:
        """POST /free."""
        if (await request.json()).get("free_memory"):
            self.runner.forget()
        return web.Response()

    async def upload(self, request: web.Request) -> web.Response:
        """POST /upload/image."""
        form = await request.post()
        image = form.get("image")
        kind = str(form.get("type", "input"))
        directory = self.folders.by_type(kind)
        if not isinstance(image, web.FileField) or not image.filename or directory is None:
            return web.Response(status=400)
        subfolder = str(form.get("subfolder", ""))
        target = os.path.abspath(os.path.join(directory, os.path.normpath(subfolder), image.filename))
        if not is_within(directory, target):
            return web.Response(status=400)
        os.makedirs(os.path.dirname(target), exist_ok=True)
        content = image.file.read()
        name, duplicate = os.path.basename(target), False
        if form.get("overwrite") not in ("true", "1"):
            stem, ending = os.path.splitext(target)
            attempt = 0
            while os.path.exists(target) and not duplicate:
                with open(target, "rb") as handle:
                    duplicate = hashlib.sha256(handle.read()).digest() == hashlib.sha256(content).digest()
                if not duplicate:
                    attempt += 1
                    target = f"{stem} ({attempt}){ending}"
                name = os.path.basename(target)
        if not duplicate:
            with open(target, "wb") as handle:
                handle.write(content)
        return web.json_response({"name": name, "subfolder": subfolder, "type": kind})

    async def view(self, request: web.Request) -> web.StreamResponse:
        """GET /view."""
        query = request.query
        if "filename" not in query:
            return web.Response(status=404)
        name, directory = self.folders.annotated(query["filename"])
        directory = directory or self.folders.by_type(query.get("type", "output"))
        if not name or name.startswith("/") or ".." in name or directory is None:
            return web.Response(status=400)
        folder = os.path.join(directory, query.get("subfolder", ""))
        if not is_within(directory, folder):
            return web.Response(status=403)
        path = os.path.join(folder, os.path.basename(name))
        if not os.path.isfile(path):
            return web.Response(status=404)
        quoted = os.path.basename(name).replace("\\", "\\\\").replace('"', '\\"')
        disposition = f'filename="{quoted}"'
        if "preview" not in query:
            return file_response(path, disposition)
        wanted, _, quality = query["preview"].partition(";")
        wanted = wanted if wanted in ("webp", "jpeg") else "webp"
        buffer = io.BytesIO()
        with Image.open(path) as picture:
            picture.convert("RGB").save(buffer, format=wanted, quality=int(quality) if quality.isdigit() else 90)
        headers = {"Content-Disposition": disposition}
        return web.Response(body=buffer.getvalue(), content_type=f"image/{wanted}", headers=headers)

    def _user_path(self, name: str) -> str | None:
        root = os.path.join(self.folders.user, "default")
        path = os.path.abspath(os.path.join(root, urllib.parse.unquote(name)))
        return path if os.path.commonpath((root, path)) == root else None

    async def users(self, _: web.Request) -> web.Response:
        """GET /users."""
        migrated = os.path.exists(os.path.join(self.folders.user, "default"))
        return web.json_response({"storage": "server", "migrated": migrated})

    async def list_userdata(self, request: web.Request) -> web.Response:
        """GET /userdata."""
        directory = request.query.get("dir", "")
        if not directory:
            return web.Response(status=400, text="Directory not provided")
        path = self._user_path(directory)
        if path is None:
            return web.Response(status=403, text="Invalid directory")
        if not os.path.exists(path):
            return web.Response(status=404, text="Directory not found")
        flags = {key: request.query.get(key, "").lower() == "true" for key in ("recurse", "full_info", "split")}
        pattern = os.path.join(glob.escape(path), *(["**"] if flags["recurse"] else []), "*")
        found: list[Any] = []
        for file_path in sorted(filter(os.path.isfile, glob.glob(pattern, recursive=flags["recurse"]))):
            name = os.path.relpath(file_path, path)
            if flags["full_info"]:
                found.append(self._file_info(file_path, path))
            else:
                found.append([name, *name.split("/")] if flags["split"] else name)
        return web.json_response(found)

    @staticmethod
    def _file_info(path: str, root: str) -> Json:
        status = os.stat(path)
        times = {"modified": int(status.st_mtime * 1000), "created": int(status.st_ctime * 1000)}
        return {"path": os.path.relpath(path, root), "size": status.st_size, **times}

    async def get_userdata(self, request: web.Request) -> web.StreamResponse:
        """GET /userdata/{file}."""
        path = self._user_path(request.match_info["file"])
        if path is None:
            return web.Response(status=403)
        if not os.path.isfile(path):
            return web.Response(status=404)
        return file_response(path, "attachment")

    async def post_userdata(self, request: web.Request) -> web.Response:
        """POST /userdata/{file}."""
        path = self._user_path(request.match_info["file"])
        if path is None:
            return web.Response(status=403)
        if request.query.get("overwrite") == "false" and os.path.exists(path):
            return web.Response(status=409, text="File already exists")
        content = await request.read()
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "wb") as handle:
                handle.write(content)
        except OSError as error:
            log.warning("Error saving file %s: %s", path, error)
            return web.Response(status=400, reason="Invalid filename")
        root = os.path.join(self.folders.user, "default")
        if request.query.get("full_info", "").lower() == "true":
            return web.json_response(self._file_info(path, root))
        return web.json_response(os.path.relpath(path, root))

    async def delete_userdata(self, request: web.Request) -> web.Response:
        """DELETE /userdata/{file}."""
        path = self._user_path(request.match_info["file"])
        if path is None:
            return web.Response(status=403)
        if not os.path.isfile(path):
            return web.Response(status=404)
        os.remove(path)
        return web.Response(status=204)


def build(args: Options, folders: Folders, queue: PromptQueue, runner: Runner, outbox: Outbox) -> web.Application:
    """Return the application, with every route at its path and under /api."""
    if args.enable_cors_header:
        allowed = {"Methods": "POST, GET, DELETE, PUT, OPTIONS, PATCH", "Headers": "Content-Type, Authorization"}
        cors = {"Access-Control-Allow-Origin": args.enable_cors_header}
        middlewares = [add_headers(cors | {f"Access-Control-Allow-{key}": value for key, value in allowed.items()})]
    else:
        middlewares = [refuse_other_origins]
    if args.disable_api_nodes:
        middlewares.append(add_headers({"Content-Security-Policy": "default-src 'self'; object-src 'self'"}))
    application = web.Application(client_max_size=round(args.max_upload_size * 1024 * 1024), middlewares=middlewares)
    api = Api(args, folders, queue, runner, outbox)
    routes: list[tuple[str, str, Handler]] = [
        ("GET", "/", api.page),
        ("GET", "/ws", api.websocket),
        ("GET", "/system_stats", api.system_stats),
        ("GET", "/features", api.get_features),
        ("GET", "/models", api.model_kinds),
        ("GET", "/models/{folder}", api.models),
        ("GET", "/embeddings", api.embeddings),
        ("GET", "/extensions", api.extensions),
        ("GET", "/object_info", api.object_info),
        ("GET", "/object_info/{name}", api.object_info),
        ("GET", "/prompt", api.get_prompt),
        ("POST", "/prompt", api.post_prompt),
        ("GET", "/queue", api.get_queue),
        ("POST", "/queue", api.post_queue),
        ("GET", "/history", api.get_history),
        ("GET", "/history/{prompt_id}", api.get_history),
        ("POST", "/history", api.post_history),
        ("POST", "/interrupt", api.post_interrupt),
        ("POST", "/free", api.post_free),
        ("POST", "/upload/image", api.upload),
        ("GET", "/view", api.view),
        ("GET", "/users", api.users),
        ("GET", "/userdata", api.list_userdata),
        ("GET", "/userdata/{file}", api.get_userdata),
        ("POST", "/userdata/{file}", api.post_userdata),
        ("DELETE", "/userdata/{file}", api.delete_userdata),
    ]
    for method, path, handler in routes:
        for prefix in ("", "/api"):
            application.router.add_route(method, prefix + path, handler)
    return application


async def listen(application: web.Application, args: Options) -> web.AppRunner:
    """Open every address asked for; a port in use ends the process, as in the real server."""
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    context, scheme = None, "http"
    if args.tls_keyfile and args.tls_certfile:
        context, scheme = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), "https"
        context.load_cert_chain(args.tls_certfile, args.tls_keyfile)
    if not args.dont_print_server:
        log.info("Starting server")
    for address in args.listen.split(","):
        try:
            await web.TCPSite(runner, address, args.port, ssl_context=context).start()
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                log.error("Port %d is already in use on address %s. Give another with --port.", args.port, address)
                raise SystemExit(1) from error
            raise
        if not args.dont_print_server:
            shown = f"[{address}]" if ":" in address else address
            log.info("To see the GUI go to: %s://%s:%d", scheme, shown, args.port)
    return runner
