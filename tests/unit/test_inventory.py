"""The wiring between site variables and role inputs: no name that nobody knows, none that nobody reads."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

import playbook_runs

ROOT = Path(__file__).parents[2]
GROUP_VARS = ROOT / "inventory" / "group_vars" / "all"
ROLES = sorted(path.name for path in (ROOT / "roles").iterdir() if path.is_dir())
PREFLIGHTS = sorted((ROOT / "roles").glob("*/tasks/preflight.yml"))
SITE_FILES = ("comfyui.yml", "comfyui_versions.yml", "model_catalogue.yml")
# What one role finds out or makes, for the inputs of another.
OUTPUTS = {
    "preflight_found_device",
    "preflight_found_gpus",
    "preflight_found_gpu_request",
    "preflight_found_capabilities",
    "preflight_found_machine",
    "preflight_found_at_s",
    "comfyui_image_reference",
}


def load(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load(path.read_text())
    return document


SITE = {name for file in SITE_FILES for name in load(GROUP_VARS / file)}
WIRING = sorted(path for path in GROUP_VARS.glob("*.yml") if path.stem in ROLES)


@pytest.mark.parametrize("path", WIRING, ids=lambda path: path.stem)
def test_only_inputs_of_its_role_are_wired(path: Path) -> None:
    options = load(ROOT / "roles" / path.stem / "meta/argument_specs.yml")["argument_specs"]["main"]["options"]
    assert set(load(path)) <= set(options)


@pytest.mark.parametrize("path", WIRING, ids=lambda path: path.stem)
def test_the_wiring_reads_only_site_variables_and_outputs(path: Path) -> None:
    values = " ".join(str(value) for value in load(path).values())
    words = set(re.findall(r"\b(?:comfyui|preflight)_[a-z_]+\b", re.sub(r"'[^']*\.yml'", "", values)))
    assert words <= SITE | OUTPUTS


@pytest.mark.parametrize("name", sorted(SITE))
def test_every_site_variable_is_read_by_the_wiring(name: str) -> None:
    assert any(re.search(rf"\b{name}\b", path.read_text()) for path in WIRING)


@pytest.mark.parametrize("role", ROLES)
def test_every_required_input_is_wired(role: str) -> None:
    options = load(ROOT / "roles" / role / "meta/argument_specs.yml")["argument_specs"]["main"]["options"]
    required = {name for name, option in options.items() if option.get("required")}
    wiring = GROUP_VARS / f"{role}.yml"
    assert required <= set(load(wiring) if wiring.exists() else {})


def test_the_preflight_of_every_role_runs_first() -> None:
    (*refusals, _, provision) = yaml.safe_load((ROOT / "playbooks/tasks/provision.yml").read_text())
    first, *others = [task["ansible.builtin.import_role"] for task in refusals]
    assert first["name"] == "preflight"
    # Those ask the host: all the others must have had their say.
    assert [role["name"] for role in others[-3:]] == ["nvidia_container_toolkit", "comfyui_image", "model_store"]
    assert {role["tasks_from"] for role in others[-3:]} == {"early"}
    del others[-3:]
    assert {role["tasks_from"] for role in others} == {"preflight"}
    assert sorted(role["name"] for role in others) == sorted(path.parts[-3] for path in PREFLIGHTS)
    assert set(provision) >= {"block", "rescue"}


def test_images_go_after_the_service_has_forgotten_the_releases_that_named_them() -> None:
    tasks = yaml.safe_load((ROOT / "playbooks/tasks/provision.yml").read_text())
    roles = [task.get("ansible.builtin.import_role", {}) for task in tasks[-1]["block"]]
    prune = roles.index({"name": "comfyui_image", "tasks_from": "prune"})
    assert roles.index({"name": "comfyui_service"}) < prune
    # The role itself comes before the service, and keeps what the host may have to go back to.
    assert "prune" not in (ROOT / "roles/comfyui_image/tasks/main.yml").read_text()


@pytest.mark.parametrize("name", ["rollback", "tasks/provision", "teardown"])
def test_what_changes_a_host_has_claimed_it_and_lets_go_of_it(name: str) -> None:
    document = yaml.safe_load((ROOT / f"playbooks/{name}.yml").read_text())
    claim, change = document[-2:] if name.startswith("tasks") else document[0]["tasks"][-2:]
    assert "host_claim" in claim
    assert [task["host_claim"] for task in change["always"]] == [{"state": "released"}]


# What runs before the first change of a virgin host may neither ask it nor touch it.
@pytest.mark.parametrize("path", PREFLIGHTS, ids=lambda path: path.parts[-3])
def test_the_preflight_of_a_role_reads_no_host(path: Path) -> None:
    control_node = {"ansible.builtin.assert", "ansible.builtin.debug", "ansible.builtin.set_fact"}
    words = {"name", "vars", "when", "loop", "loop_control"}
    assert all(set(task) - words <= control_node for task in yaml.safe_load(path.read_text()))


@pytest.mark.parametrize("name", sorted(load(GROUP_VARS / "comfyui.yml")))
def test_every_site_variable_stands_under_a_comment(name: str) -> None:
    blocks = (GROUP_VARS / "comfyui.yml").read_text().split("\n\n")
    (block,) = [block for block in blocks if re.search(rf"^{name}:", block, re.MULTILINE)]
    assert block.lstrip("-\n").startswith("#")


def test_a_warning_is_printed_once(tmp_path: Path) -> None:
    ask = {"ansible.builtin.import_role": {"name": "comfyui_image", "tasks_from": "preflight"}}
    (tmp_path / "play.yml").write_text(
        yaml.safe_dump([{"hosts": "dgx", "gather_facts": False, "connection": "local", "tasks": [ask, ask]}])
    )
    (tmp_path / "hosts.yml").write_text(yaml.safe_dump({"dgx": {"hosts": {"here": None}}}))
    (tmp_path / "group_vars").symlink_to(ROOT / "inventory/group_vars")
    typed = {
        "comfyui_version": "0.3.68",
        "comfyui_image_template_dir": str(ROOT / "templates"),
        "preflight_found_device": "cpu",
        "preflight_found_capabilities": [],
    }
    done = subprocess.run(
        ["ansible-playbook", "--inventory", "hosts.yml", "play.yml", "--extra-vars", json.dumps(typed)],
        cwd=tmp_path,
        env=playbook_runs.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("GHSA-53g8-45wq-pcv8") == 1


def test_what_an_ngc_base_needs_is_asked_for_from_a_mirror_too(tmp_path: Path) -> None:
    digest = f"sha256:{'a' * 64}"
    bases = {
        "ngc": f"nvcr.io/nvidia/pytorch:26.09-py3@{digest}",
        "mirror": f"127.0.0.1:5000/nvidia/pytorch:26.09-py3@{digest}",
        "standin": f"upstreams.test:5000/standin/pytorch:85580e8e1f55@{digest}",
    }
    hosts = {name: {"ansible_connection": "local", "comfyui_base_image": base} for name, base in bases.items()}
    (tmp_path / "hosts.yml").write_text(yaml.safe_dump({"dgx": {"hosts": hosts}}))
    (tmp_path / "group_vars").symlink_to(ROOT / "inventory/group_vars")
    names = ["preflight_driver_minimum", "preflight_capability_minimum", "preflight_image_needed_b"]
    shown = f"{{{{ [{', '.join(names)}] | join('/') }}}}"
    done = subprocess.run(
        ["ansible", "dgx", "--inventory", "hosts.yml", "--module-name", "debug", "--args", json.dumps({"msg": shown})],
        cwd=tmp_path,
        env=playbook_runs.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    found = dict(re.findall(r"^(\w+) \| SUCCESS =>\s+msg: (.*)$", done.stdout, re.MULTILINE))
    assert found == {"ngc": "580/7.5/45000000000", "mirror": "580/7.5/45000000000", "standin": "//6000000000"}


def test_the_models_as_delivered_are_in_the_catalogue() -> None:
    catalogue = load(GROUP_VARS / "model_catalogue.yml")["comfyui_model_catalogue"]
    assert set(load(GROUP_VARS / "comfyui.yml")["comfyui_models"]) <= set(catalogue)
