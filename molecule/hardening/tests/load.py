"""Runs on the host: many prompts and many clients at once. Prints what came of it as JSON."""

from __future__ import annotations

import json
import sys
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

sys.path.insert(0, "/usr/local/lib/comfyui")
from comfyui_api import Client, ComfyuiError, image_references

URL = "http://127.0.0.1:8188"
PATHS = ("/system_stats", "/queue", "/prompt", "/history?max_items=5", "/models", "/object_info/SaveImage")
WARM_S = 10
SETTLE_S = 30


def graph(number: int) -> dict[str, Any]:
    """The render without a model; another colour each, or the server answers from its cache."""
    empty = {"width": 256, "height": 256, "batch_size": 1, "color": number}
    return {
        "1": {"class_type": "EmptyImage", "inputs": empty},
        "2": {"class_type": "SaveImage", "inputs": {"filename_prefix": "load", "images": ["1", 0]}},
    }


def memory_b(pid: str) -> int:
    """What the process holds."""
    (line,) = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS:")]
    return int(line.split()[1]) * 1024


def ask(until: float, tally: dict[str, Any], lock: threading.Lock) -> None:
    """One client."""
    done, failed = 0, []
    while time.monotonic() < until:
        path = PATHS[done % len(PATHS)]
        try:
            with urllib.request.urlopen(URL + path, timeout=30) as answer:  # noqa: S310 - our own
                json.loads(answer.read())
        except (OSError, ValueError) as error:
            failed.append(f"{path}: {error}")
        done += 1
    with lock:
        tally["requests"] += done
        tally["failed"] += failed


def finish(client: Client, prompt_ids: list[str], limit_s: float) -> list[str]:
    """Wait for every prompt, fetch every image and look into it. What is lost or wrong, in words."""
    wrong = []
    files: set[tuple[str, str]] = set()
    pictures: set[str] = set()
    deadline = time.monotonic() + limit_s
    for number, prompt_id in enumerate(prompt_ids):
        while not (entry := client.history(prompt_id)) and time.monotonic() < deadline:
            time.sleep(0.2)
        if not entry or not entry["status"]["completed"]:
            wrong.append(f"{prompt_id} is lost")
            continue
        try:
            images = [client.image(node, reference) for node, reference in image_references(entry)]
        except ComfyuiError as error:
            wrong.append(f"{prompt_id}: {error}")
            continue
        sizes = [(image["width_px"], image["height_px"]) for image in images]
        if sizes != [(256, 256)]:
            wrong.append(f"{prompt_id}, number {number}: {sizes}")
        files.update((image["subfolder"], image["filename"]) for image in images)
        pictures.update(image["pixels_sha256"] for image in images)
    # Every prompt asked for another colour: one result in place of another is a lost one.
    if not len(files) == len(pictures) == len(prompt_ids):
        wrong.append(f"{len(prompt_ids)} prompts made {len(files)} files with {len(pictures)} different pictures")
    return wrong


def press(first: int, prompts: int, clients: int, seconds: float) -> dict[str, Any]:
    """So many prompts queued at once while so many clients ask for so long."""
    client = Client(URL)
    tally: dict[str, Any] = {"requests": 0, "failed": []}
    lock = threading.Lock()
    until = time.monotonic() + seconds
    crowd = [threading.Thread(target=ask, args=(until, tally, lock)) for _ in range(clients)]
    for thread in crowd:
        thread.start()
    prompt_ids = [client.submit(graph(first + number)) for number in range(prompts)]
    wrong = finish(client, prompt_ids, seconds * 2 + 60)
    for thread in crowd:
        thread.join()
    return {**tally, "prompts": len(prompt_ids), "wrong": wrong}


def main(pid: str, prompts: int, clients: int, seconds: float) -> None:
    press(0, prompts, clients, WARM_S)  # a server that has worked has its caches and threads
    before_b = memory_b(pid)
    result = press(1000, prompts, clients, seconds)
    deadline = time.monotonic() + SETTLE_S
    while (after_b := memory_b(pid)) > before_b * 1.1 and time.monotonic() < deadline:
        time.sleep(1)
    print(json.dumps({**result, "growth": after_b / before_b}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]))
