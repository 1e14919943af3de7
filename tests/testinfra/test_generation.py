"""ComfyUI's API answers in the right shapes, renders without a model, and on a GPU host generates each template."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

BAD_GRAPH = {"1": {"class_type": "EmptyImage", "inputs": {}}}
LONE_OUTPUT = {"1": {"class_type": "SaveImage", "inputs": {"filename_prefix": "x"}}}
REQUESTS: dict[str, tuple[str, Any]] = {
    "system_stats": ("/system_stats", None),
    "queue": ("/queue", None),
    "history": ("/history", None),
    "object_info": ("/object_info/EmptyImage", None),
    "no output": ("/prompt", {"prompt": BAD_GRAPH}),
    "missing input": ("/prompt", {"prompt": LONE_OUTPUT}),
    "not wrapped": ("/prompt", LONE_OUTPUT),
}

# On the host: the API listens on its loopback only, and one round trip serves all tests of this file.
ASKER = """
import json, sys, urllib.error, urllib.request
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
answers = {}
for name, (path, body) in json.loads(sys.argv[2]).items():
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(sys.argv[1] + path, data, {"Content-Type": "application/json"} if data else {})
    try:
        with opener.open(request, timeout=30) as answer:
            status, content = answer.status, answer.read()
    except urllib.error.HTTPError as error:
        status, content = error.code, error.read()
    answers[name] = [status, json.loads(content)]
print(json.dumps(answers))
"""

TEMPLATES = {"txt2img_sdxl": 1, "img2img_sdxl": 1, "batch_generation": 4}


@pytest.fixture(scope="module")
def url(site: dict[str, Any]) -> str:
    everywhere = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}  # noqa: S104 - where to ask, nothing is bound here
    address = everywhere.get(site["comfyui_bind_address"], site["comfyui_bind_address"])
    return f"http://{address}:{site['comfyui_port']}"


@pytest.fixture(scope="module")
def answers(host: Any, url: str) -> dict[str, Any]:
    answer = host.run("python3 -c %s %s %s", ASKER, url, json.dumps(REQUESTS))
    assert answer.rc == 0, answer.stderr
    documents: dict[str, Any] = json.loads(answer.stdout)
    return documents


def run_graph(host: Any, site: dict[str, Any], url: str, name: str, **parameters: Any) -> dict[str, Any]:
    """Run a deployed graph through the project's module; a failure carries ComfyUI's words."""
    graph_file = f"{site['comfyui_data_dir']}/workflows/{name}.json"
    arguments = {"url": url, "graph_file": graph_file, **parameters}
    result: dict[str, Any] = host.ansible("comfyui_prompt", json.dumps(arguments), check=False)
    return result


def png_on_disk(host: Any, path: str) -> tuple[str, int, int]:
    """Signature, width and height as the file on the host has them, without ComfyUI in between."""
    data = bytes.fromhex("".join(host.check_output("od -An -v -tx1 -N24 %s", path).split()))
    return data[:8].hex(), int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")


def require_gpu(host: Any, site: dict[str, Any], stats: dict[str, Any]) -> None:
    """Skip where no GPU is meant to compute; fail where one is and the server runs without it."""
    if any(device["type"] == "cuda" for device in stats["devices"]):
        return
    if site["comfyui_device"] == "cpu":
        pytest.skip("no GPU: comfyui_device is cpu")
    # The sandbox's stand-in driver brings a script in the place of NVIDIA's program.
    real = host.run('p=$(command -v nvidia-smi) && head -c 4 "$p" | od -An -c | grep -q \'E *L *F\' && "$p" -L')
    if site["comfyui_device"] == "auto" and real.rc != 0:
        pytest.skip("no GPU")
    pytest.fail(f"ComfyUI computes on {stats['devices']}, and this host is to compute on its GPU: {real.stdout}")


def test_api_says_what_runs(answers: dict[str, Any], site: dict[str, Any]) -> None:
    status, stats = answers["system_stats"]
    assert status == 200
    assert stats["system"]["comfyui_version"] == site["comfyui_version"]
    assert stats["system"]["pytorch_version"]
    assert [device["type"] for device in stats["devices"]]


def test_api_lists_queue_and_history(answers: dict[str, Any]) -> None:
    assert answers["queue"][0] == 200
    assert {"queue_running", "queue_pending"} <= answers["queue"][1].keys()
    assert answers["history"][0] == 200
    assert isinstance(answers["history"][1], dict)


def test_api_describes_node_classes(answers: dict[str, Any]) -> None:
    status, info = answers["object_info"]
    assert status == 200
    assert info["EmptyImage"]["input"]["required"]["width"][0] == "INT"
    assert info["EmptyImage"]["output"] == ["IMAGE"]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("no output", "prompt_no_outputs"),
        ("missing input", "prompt_outputs_failed_validation"),
        ("not wrapped", "no_prompt"),
    ],
)
def test_api_refuses_a_bad_graph_with_400(answers: dict[str, Any], name: str, kind: str) -> None:
    status, answer = answers[name]
    assert (status, answer["error"]["type"]) == (400, kind)
    assert ("1" in answer["node_errors"]) == (name == "missing input")


def test_every_deployed_graph_suits_the_running_server(host: Any, site: dict[str, Any], url: str) -> None:
    files = [f"{site['comfyui_data_dir']}/workflows/{name}.json" for name in (*TEMPLATES, "render_check")]
    arguments = {"url": url, "graph_files": files, "validate_only": True}
    assert host.ansible("comfyui_prompt", json.dumps(arguments), check=False)["findings"] == []


@pytest.fixture(scope="module")
def render(host: Any, site: dict[str, Any], url: str) -> Iterator[dict[str, Any]]:
    # A colour that was not asked for before: otherwise the server may answer from its cache and write nothing.
    colour = random.randrange(1 << 24)  # noqa: S311 - a colour, not a secret
    result = run_graph(host, site, url, "render_check", inputs={"1": {"color": colour}}, timeout_s=60)
    yield result
    for image in result["images"]:
        host.check_output("rm -f %s", f"{site['comfyui_data_dir']}/output/{image['filename']}")


def test_render_without_a_model_gives_a_png_of_the_asked_size(render: dict[str, Any]) -> None:
    (image,) = render["images"]
    assert render["cached_nodes"] == []
    assert (image["format"], image["width_px"], image["height_px"]) == ("PNG", 512, 512)
    assert image["filename"].startswith("dgx_pixels_check_")


def test_render_lies_in_the_output_folder_and_belongs_to_the_service(
    host: Any, site: dict[str, Any], render: dict[str, Any], evidence: Path
) -> None:
    path = f"{site['comfyui_data_dir']}/output/{render['images'][0]['filename']}"
    (evidence / "render_check.png").write_bytes(host.file(path).content)
    assert png_on_disk(host, path) == ("89504e470d0a1a0a", 512, 512)
    assert host.file(path).uid == site["comfyui_user_id"]


@pytest.mark.parametrize("name", TEMPLATES)
def test_template_generates_what_it_says(
    host: Any, site: dict[str, Any], url: str, answers: dict[str, Any], name: str
) -> None:
    require_gpu(host, site, answers["system_stats"][1])
    expect = {"count": TEMPLATES[name], "width_px": 1024, "height_px": 1024, "format": "PNG", "not_blank": True}
    result = run_graph(host, site, url, name, expect=expect, timeout_s=300)
    for image in result["images"]:
        assert image["filename"].startswith(f"dgx_pixels_{name.split('_', maxsplit=1)[0]}_")
        path = f"{site['comfyui_data_dir']}/output/{image['filename']}"
        assert png_on_disk(host, path) == ("89504e470d0a1a0a", 1024, 1024)
