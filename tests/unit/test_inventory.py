"""The wiring between site variables and role inputs: no name that nobody knows, none that nobody reads."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

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
    (play,) = yaml.safe_load((ROOT / "playbooks/site.yml").read_text())
    (*refusals, provision) = play["tasks"]
    first, *others = [task["ansible.builtin.import_role"] for task in refusals]
    assert first["name"] == "preflight"
    assert {role["tasks_from"] for role in others} == {"preflight"}
    assert sorted(role["name"] for role in others) == sorted(path.parts[-3] for path in PREFLIGHTS)
    assert set(provision) >= {"block", "rescue"}


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


def test_the_models_as_delivered_are_in_the_catalogue() -> None:
    catalogue = load(GROUP_VARS / "model_catalogue.yml")["comfyui_model_catalogue"]
    assert set(load(GROUP_VARS / "comfyui.yml")["comfyui_models"]) <= set(catalogue)
