"""Promises that every role keeps: its specification says what its defaults do, and its variables carry its name."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from aar_doc.cli import app
from typer.testing import CliRunner

ROLES = sorted(path for path in (Path(__file__).parents[2] / "roles").iterdir() if path.is_dir())


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text()) if path.exists() else {}


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_specification_and_defaults_agree(role: Path) -> None:
    options = load(role / "meta" / "argument_specs.yml")["argument_specs"]["main"]["options"]
    defaults = load(role / "defaults" / "main.yml") or {}
    specified = {name: option["default"] for name, option in options.items() if not option.get("required")}
    assert specified == defaults


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_required_inputs_stand_in_defaults_as_comments(role: Path) -> None:
    options = load(role / "meta" / "argument_specs.yml")["argument_specs"]["main"]["options"]
    text = (role / "defaults" / "main.yml").read_text()
    for name in (name for name, option in options.items() if option.get("required")):
        assert f"# {name}:" in text


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_variables_carry_the_roles_name(role: Path) -> None:
    assert all(name.startswith(f"{role.name}_") for name in load(role / "defaults" / "main.yml") or {})
    for path in (role / "vars").glob("*.yml"):
        assert all(name.startswith(f"__{role.name}_") for name in load(path))


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_a_role_reads_no_other_roles_variables(role: Path) -> None:
    others = [other.name for other in ROLES if other != role]
    for path in [*role.rglob("*.yml"), *role.rglob("*.j2")]:
        for match in re.finditer(r"\b_{0,2}([a-z][a-z0-9_]*)\b", path.read_text()):
            word = match.group(1)
            owners = [name for name in others if word.startswith(f"{name}_")]
            assert not owners or word.startswith(f"{role.name}_"), f"{path.name} reads {word}"


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_a_role_has_its_page(role: Path) -> None:
    page = (role / "README.md").read_text()
    for heading in ("## What it changes", "## Quick start", "## Variables", "## Verify", "## Troubleshooting"):
        assert heading in page


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_the_table_of_variables_is_what_make_docs_would_write(role: Path, tmp_path: Path) -> None:
    copy = tmp_path / role.name
    shutil.copytree(role / "meta", copy / "meta")
    shutil.copy(role / "README.md", copy)
    made = CliRunner().invoke(app, [str(copy), "markdown"])
    assert made.exit_code == 0, made.output
    assert (role / "README.md").read_text() == (copy / "README.md").read_text(), "type: make docs"


@pytest.mark.parametrize("folder", ["roles", "playbooks"])
def test_lists_keep_their_order(folder: str) -> None:
    """These filters of Ansible go through a set: the order in which folders are made would change from run to run."""
    lost = re.compile(r"\|\s*(difference|intersect|symmetric_difference|union)\b")
    tree = ROLES[0].parents[1] / folder
    assert [str(path) for path in tree.rglob("*.yml") if lost.search(path.read_text())] == []
