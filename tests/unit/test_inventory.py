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
SITE_FILES = ("comfyui.yml", "model_catalogue.yml")
# What one role finds out or makes, for the inputs of another.
OUTPUTS = {"preflight_found_device", "preflight_found_gpus", "comfyui_image_reference"}


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


@pytest.mark.parametrize("name", [name for name in sorted(SITE) if name != "comfyui_model_catalogue"])
def test_every_site_variable_stands_under_a_comment(name: str) -> None:
    blocks = (GROUP_VARS / "comfyui.yml").read_text().split("\n\n")
    (block,) = [block for block in blocks if re.search(rf"^{name}:", block, re.MULTILINE)]
    assert block.lstrip("-\n").startswith("#")


def test_the_models_as_delivered_are_in_the_catalogue() -> None:
    catalogue = load(GROUP_VARS / "model_catalogue.yml")["comfyui_model_catalogue"]
    assert set(load(GROUP_VARS / "comfyui.yml")["comfyui_models"]) <= set(catalogue)
