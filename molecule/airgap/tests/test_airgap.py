"""Cut off from everything but a folder: what runs came out of it, and a variable that points elsewhere is refused."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from playbook_runs import ROOT, environment, last_words

NAME = os.environ.get("MOLECULE_SCENARIO_NAME", "airgap")
INVENTORY = ROOT / ".cache" / "sandbox" / NAME
PACKED = ROOT / ".cache" / "air-gapped"
STORE = "/srv/comfyui/models/checkpoints/sd_xl_base_1.0.safetensors"
# The base as delivered wants more of a host than a sandbox has.
UNDEMANDING = {"preflight_driver_minimum": "", "preflight_image_needed_b": 0, "preflight_memory_needed_b": 0}
DELIVERED: dict[str, Any] = yaml.safe_load((ROOT / "inventory/group_vars/all/comfyui.yml").read_text())


@pytest.fixture(scope="module")
def packed() -> dict[str, Any]:
    variables: dict[str, Any] = yaml.safe_load((PACKED / "variables.yml").read_text())
    return variables


@pytest.mark.parametrize(
    "source", ["http://upstreams.test/", "http://upstreams.test:5000/v2/", "http://upstreams.test:8001/"]
)
def test_nothing_that_it_was_provisioned_from_answers(host: Any, source: str) -> None:
    assert host.run(f"curl --silent --max-time 10 {source}").rc in (6, 7, 28)


def test_no_way_leads_out_of_the_host(host: Any) -> None:
    assert host.check_output("ip -4 route show default; ip -6 route show default") == ""
    links = {line.split()[1].split("@")[0].rstrip(":") for line in host.check_output("ip -oneline link").splitlines()}
    assert {link for link in links if not link.startswith("veth")} <= {"lo", "docker0"}


def test_the_image_is_made_of_the_folder(host: Any, packed: dict[str, Any]) -> None:
    (release,) = json.loads(host.check_output("docker container inspect comfyui"))
    labels = release["Config"]["Labels"]
    assert labels["org.opencontainers.image.base.name"] == packed["comfyui_base_image"]
    assert labels["org.opencontainers.image.revision"] == packed["comfyui_source_commit"]
    assert labels["org.opencontainers.image.source"] == "file:///srv/air-gapped/comfyui.git"


def test_the_folder_is_no_part_of_the_image(host: Any) -> None:
    image = host.check_output("docker container inspect --format '{{.Config.Image}}' comfyui")
    run = f"docker run --rm --network none --user 0 --entrypoint find {image}"
    found = {Path(path).name for path in host.check_output(f"{run} / -xdev -name '*.whl'").split()}
    packed = {path.name for path in (PACKED / "wheels").iterdir()}
    assert packed
    assert found & packed == set()


def test_the_model_is_the_published_one_and_no_hub_was_asked(host: Any, site: dict[str, Any]) -> None:
    assert host.file(STORE).sha256sum == site["comfyui_model_catalogue"]["sd_xl_base_1.0"]["sha256"]
    assert json.loads(host.file(f"{STORE}.verified.json").content_string)["source"].startswith(
        "/srv/air-gapped/models/"
    )
    assert not host.file("/opt/dgx-comfyui").exists


def test_the_toolkit_is_of_the_folder(host: Any, site: dict[str, Any]) -> None:
    offered = host.check_output("apt-cache policy nvidia-container-toolkit")
    assert f"Installed: {site['comfyui_toolkit_version']}" in offered
    assert "file:/srv/air-gapped/toolkit" in offered


def test_the_page_shows_the_variables_that_came_with_the_folder(packed: dict[str, Any]) -> None:
    (shown,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs/air-gapped.md").read_text(), re.DOTALL)
    example = yaml.safe_load(shown)
    assert list(example) == list(packed)
    own = {"comfyui_base_image", "comfyui_source_commit"}
    assert {name: value for name, value in example.items() if name not in own} == {
        name: value for name, value in packed.items() if name not in own
    }
    registry, _, image = DELIVERED["comfyui_base_image"].partition("/")
    assert (registry, example["comfyui_base_image"]) == ("nvcr.io", f"127.0.0.1:5000/{image}")


def play(tmp_path: Path, **variables: Any) -> subprocess.CompletedProcess[str]:
    typed = json.dumps({"evidence_dir": str(tmp_path), **variables})
    return subprocess.run(
        ["ansible-playbook", "--inventory", str(INVENTORY), "site.yml", "--extra-vars", typed],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("forgotten", "place"),
    [
        ("comfyui_base_image", "nvcr.io:443"),
        ("comfyui_source_repo", "github.com:443"),
    ],
)
def test_a_variable_that_was_forgotten_is_named_before_any_change(
    host: Any, tmp_path: Path, forgotten: str, place: str
) -> None:
    before = host.check_output("docker image ls --quiet; docker container inspect --format '{{.Id}}' comfyui")
    # Another commit: an image that is there needs no source.
    done = play(tmp_path, comfyui_source_commit="a" * 40, **UNDEMANDING, **{forgotten: DELIVERED[forgotten]})
    assert done.returncode != 0
    said = last_words(done.stdout)
    assert re.search(rf"This host does not reach {place} \({forgotten}: [^)]+\)\. Expected", said), done.stdout
    assert f"set {forgotten} to a mirror or to a folder of this host: docs/air-gapped.md" in said
    assert "changed=0" in done.stdout
    assert host.check_output("docker image ls --quiet; docker container inspect --format '{{.Id}}' comfyui") == before


def test_a_forgotten_model_endpoint_is_named_before_any_change(tmp_path: Path) -> None:
    wanted = ["sd_xl_base_1.0", "pixel_art_xl"]
    endpoint = DELIVERED["comfyui_model_endpoint"]
    done = play(tmp_path, comfyui_models=wanted, comfyui_model_endpoint=endpoint)
    assert "This host does not reach huggingface.co:443 (comfyui_model_endpoint: " in last_words(done.stdout), (
        done.stdout
    )
    assert "changed=0" in done.stdout
