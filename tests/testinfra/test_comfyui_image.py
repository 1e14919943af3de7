"""The image: made from pinned inputs, non-root, and its torch still the base's, in the running container too."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

VERSIONS = yaml.safe_load((Path(__file__).parents[2] / "inventory/group_vars/all/comfyui_versions.yml").read_text())
GATE = ["/opt/comfyui/torch_gate.py", "verify", "/opt/comfyui/torch.json"]


@pytest.fixture(scope="module")
def container(host: Any) -> dict[str, Any]:
    (document,) = json.loads(host.check_output("docker container inspect comfyui"))
    return dict(document)


@pytest.fixture(scope="module")
def image(host: Any, container: dict[str, Any]) -> dict[str, Any]:
    (document,) = json.loads(host.check_output("docker image inspect %s", container["Image"]))
    return dict(document)


def test_the_running_torch_is_the_bases(host: Any) -> None:
    done = host.run("docker exec comfyui python %s %s %s", *GATE)
    assert done.rc == 0, done.stderr


FORGED = """
import json, runpy, sys, tempfile
document = json.load(open(sys.argv[2]))
document["packages"]["torch"]["sha256"] = "0" * 64
with tempfile.NamedTemporaryFile("w", suffix=".json") as forged:
    json.dump(document, forged)
    forged.flush()
    sys.argv = [sys.argv[1], "verify", forged.name]
    runpy.run_path(sys.argv[0], run_name="__main__")
"""


CAPABILITIES = """
import torch
for number in range(torch.cuda.device_count()):
    print(*torch.cuda.get_device_capability(number), sep=".")
"""


@pytest.mark.level(3)
def test_the_running_torch_has_code_for_every_gpu_that_it_gets(host: Any, site: dict[str, Any]) -> None:
    if site["comfyui_device"] != "cuda":
        pytest.skip("no GPU")
    found = host.check_output("docker exec comfyui python -c %s", CAPABILITIES).split()
    assert found
    done = host.run("docker exec comfyui python %s covers %s " + " ".join(found), GATE[0], GATE[2])
    assert done.rc == 0, done.stderr


def test_the_gate_notices_another_torch(host: Any) -> None:
    done = host.run("docker exec comfyui python -c %s %s %s", FORGED, GATE[0], GATE[2])
    assert done.rc == 1
    assert "torch gate: torch: the base has" in done.stderr


def test_what_comfyui_imports_at_its_start_is_there(host: Any, site: dict[str, Any]) -> None:
    if not VERSIONS["comfyui_versions"].get(site["comfyui_version"], {"torchaudio": True})["torchaudio"]:
        pytest.skip("this version starts without torchaudio")
    done = host.run("docker exec comfyui python -c %s", "import torchaudio; print(torchaudio.__version__)")
    assert done.rc == 0, done.stderr


def test_the_image_says_what_it_was_made_from(image: dict[str, Any], site: dict[str, Any]) -> None:
    labels = image["Config"]["Labels"]
    assert labels["org.opencontainers.image.version"] == site["comfyui_version"]
    assert labels["org.opencontainers.image.base.name"] == site["comfyui_base_image"]
    assert labels["org.opencontainers.image.base.digest"] == site["comfyui_base_image"].partition("@")[2]
    assert labels["org.opencontainers.image.source"] == re.sub("//[^/@]*@", "//", site["comfyui_source_repo"])
    assert len(labels["org.opencontainers.image.revision"]) == 40
    assert len(labels["dgx-comfyui.requirements.sha256"]) == 64


def test_the_flags_of_this_version_are_those_of_the_table(host: Any, site: dict[str, Any]) -> None:
    version = site["comfyui_version"]
    if version not in VERSIONS["comfyui_versions"]:
        pytest.skip("a version that is not in the table")
    entry = VERSIONS["comfyui_versions"][version]
    usage = host.check_output("docker exec comfyui python main.py --help").partition("usage:")[2].partition("\n\n")[0]
    known = {*entry["flags"], *(flag for group in entry["exclusive_flags"] for flag in group)}
    assert set(re.findall(r"--[A-Za-z0-9_-]+", usage)) == known


def test_what_is_in_the_image_is_written_down(host: Any, image: dict[str, Any]) -> None:
    (tag,) = [tag.partition(":")[2] for tag in image["RepoTags"]]
    record = json.loads(host.check_output("cat /etc/comfyui/images/%s.json", tag))
    assert record["image_id"] == image["Id"]
    assert 0 < record["overhead_b"] < record["size_b"]
    torch = next(entry for entry in record["contents"] if entry["name"] == "torch")
    running = host.check_output(
        "docker exec comfyui python -c %s", "import importlib.metadata as m; print(m.version('torch'))"
    )
    assert (torch["version"], torch["of_base"]) == (running.strip(), True)
    assert sum(bool(entry["licence"]) for entry in record["contents"]) > len(record["contents"]) * 0.9
    assert "--hash=sha256:" in host.check_output("cat /etc/comfyui/images/%s.txt", tag)


def test_the_image_runs_as_nobody_special(image: dict[str, Any], site: dict[str, Any]) -> None:
    assert image["Config"]["User"] == f"{site['comfyui_user_id']}:{site['comfyui_user_id']}"
    assert image["Config"]["Healthcheck"]["Test"][0] == "CMD"


def test_the_build_left_no_trace_of_how_this_host_reaches_the_world(host: Any, image: dict[str, Any]) -> None:
    environment = " ".join(image["Config"]["Env"])
    assert "proxy" not in environment.lower()
    assert "PIP_INDEX_URL" not in environment
    history = host.check_output("docker image history --no-trunc --format '{{.CreatedBy}}' %s", image["Id"])
    assert "BEGIN CERTIFICATE" not in history
    assert host.run("docker exec comfyui sh -c 'ls /run/secrets 2>/dev/null'").stdout.strip() == ""
