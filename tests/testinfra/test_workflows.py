"""The workflow files are on the host, as they lie in the repository, and belong to whom they should."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

WORKFLOWS = Path(__file__).resolve().parents[2] / "workflows"
GRAPHS = ("txt2img_sdxl.json", "img2img_sdxl.json", "batch_generation.json", "render_check.json")
SAMPLE = "dgx_pixels_sample.png"

# One round trip for everything: each question through Ansible costs about a second.
READER = """
import hashlib, json, os, stat, sys
found = {}
for path in sys.argv[1:]:
    entry = found[path] = {"kind": "absent"}
    if os.path.lexists(path):
        state = os.lstat(path)
        entry["kind"] = "file" if stat.S_ISREG(state.st_mode) else "other"
        entry["owner"] = [state.st_uid, state.st_gid]
        entry["mode"] = format(stat.S_IMODE(state.st_mode), "04o")
    if entry["kind"] == "file":
        data = open(path, "rb").read()
        entry["sha256"] = hashlib.sha256(data).hexdigest()
        if path.endswith(".json"):
            entry["nodes"] = sorted(json.loads(data))
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def paths(site: dict[str, Any]) -> dict[str, str]:
    data_dir = site["comfyui_data_dir"]
    return {**{name: f"{data_dir}/workflows/{name}" for name in GRAPHS}, SAMPLE: f"{data_dir}/input/{SAMPLE}"}


@pytest.fixture(scope="module")
def found(host: Any, paths: dict[str, str]) -> dict[str, Any]:
    answer = host.run("python3 -c %s " + " ".join(["%s"] * len(paths)), READER, *paths.values())
    assert answer.rc == 0, answer.stderr
    entries = json.loads(answer.stdout)
    return {name: entries[path] for name, path in paths.items()}


@pytest.mark.parametrize("name", GRAPHS)
def test_graph_is_deployed_as_it_lies_in_the_repository(found: dict[str, Any], name: str) -> None:
    source = (WORKFLOWS / name).read_bytes()
    assert found[name]["kind"] == "file"
    assert found[name]["nodes"] == sorted(json.loads(source))
    assert found[name]["sha256"] == hashlib.sha256(source).hexdigest()


@pytest.mark.parametrize("name", GRAPHS)
def test_graph_can_be_read_by_all_and_written_by_root(found: dict[str, Any], name: str) -> None:
    assert (found[name]["owner"], found[name]["mode"]) == ([0, 0], "0644")


def test_input_image_of_img2img_is_there_and_belongs_to_the_service(
    found: dict[str, Any], site: dict[str, Any]
) -> None:
    assert found[SAMPLE]["kind"] == "file"
    assert found[SAMPLE]["sha256"] == hashlib.sha256((WORKFLOWS / "input" / SAMPLE).read_bytes()).hexdigest()
    assert (found[SAMPLE]["owner"], found[SAMPLE]["mode"]) == ([site["comfyui_user_id"]] * 2, "0644")
