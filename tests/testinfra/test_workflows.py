"""The workflow files are on the host, as repository and settings say, and belong to whom they should."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from filter.comfyui_workflows import workflow_files

WORKFLOWS = Path(__file__).resolve().parents[2] / "workflows"
FILES = sorted(str(path.relative_to(WORKFLOWS)) for path in WORKFLOWS.glob("**/*.json"))
SAMPLE = "input/dgx_pixels_sample.png"

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
        entry["sha256"] = hashlib.sha256(open(path, "rb").read()).hexdigest()
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def wanted(site: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Every file that the site deploys, by its path in the repository."""
    data_dir, user = site["comfyui_data_dir"], site["comfyui_user_id"]
    places = {
        "api": {"dir": f"{data_dir}/workflows", "uid": 0, "gid": 0},
        "ui": {"dir": f"{data_dir}/user/default/workflows", "uid": user, "gid": user},
        "input": {"dir": f"{data_dir}/input", "uid": user, "gid": user},
    }
    files = workflow_files(str(WORKFLOWS), places, site["comfyui_template_settings"])
    return {str(Path(file["src"]).relative_to(WORKFLOWS)): file for file in files}


@pytest.fixture(scope="module")
def found(host: Any, wanted: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What the host says of them."""
    paths = [file["dest"] for file in wanted.values()]
    entries = json.loads(host.check_output("python3 -c %s" + " %s" * len(paths), READER, *paths))
    return {name: entries[file["dest"]] for name, file in wanted.items()}


@pytest.mark.parametrize("name", [*FILES, SAMPLE])
def test_file_is_deployed_as_repository_and_settings_say(
    found: dict[str, Any], wanted: dict[str, dict[str, Any]], name: str
) -> None:
    assert found[name]["kind"] == "file"
    assert found[name]["sha256"] == wanted[name]["sha256"]


@pytest.mark.parametrize("name", [*FILES, SAMPLE])
def test_file_belongs_to_whom_it_should(found: dict[str, Any], wanted: dict[str, dict[str, Any]], name: str) -> None:
    if found[name]["kind"] == "absent":
        pytest.skip("absent, as another test says")
    file = wanted[name]
    assert (found[name]["owner"], found[name]["mode"]) == ([file["uid"], file["gid"]], file["mode"])
