"""What the engine and toolkit roles promise in their files: architectures, known faults with a fix, nothing removed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jinja2
import pytest
import yaml
from ansible.plugins.filter.core import comment

ROLES = Path(__file__).parents[2] / "roles"
TOOLKIT: dict[str, Any] = yaml.safe_load((ROLES / "nvidia_container_toolkit/vars/main.yml").read_text())
ENGINE: dict[str, Any] = yaml.safe_load((ROLES / "docker_engine/vars/main.yml").read_text())


def render(role: str, name: str, **variables: Any) -> list[str]:
    """A template of a role, without its comments."""
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, autoescape=False)  # noqa: S701 - no page
    environment.filters["comment"] = comment
    text = (ROLES / role / "templates" / name).read_text()
    lines = environment.from_string(text).render(ansible_managed="managed", **variables).splitlines()
    return [line for line in lines if line and not line.startswith("#")]


@pytest.mark.parametrize(("machine", "debian"), [("aarch64", "arm64"), ("x86_64", "amd64")])
def test_nvidias_source_is_that_of_the_architecture(machine: str, debian: str) -> None:
    assert render(
        "nvidia_container_toolkit",
        "nvidia-container-toolkit.sources.j2",
        nvidia_container_toolkit_repository_url="https://example.com/deb",
        __nvidia_container_toolkit_arch=TOOLKIT["__nvidia_container_toolkit_deb_arches"][machine],
        __nvidia_container_toolkit_keyring=TOOLKIT["__nvidia_container_toolkit_keyring"],
    ) == [
        "Types: deb",
        f"URIs: https://example.com/deb/{debian}",
        "Suites: /",
        "Signed-By: /etc/apt/keyrings/nvidia-container-toolkit.asc",
    ]


@pytest.mark.parametrize(
    ("name", "codename", "architecture"),
    [("ubuntu", "noble", "arm64"), ("ubuntu", "jammy", "amd64"), ("debian", "trixie", "amd64")],
)
def test_dockers_source_is_that_of_distribution_and_architecture(name: str, codename: str, architecture: str) -> None:
    assert render(
        "docker_engine",
        "docker.sources.j2",
        docker_engine_repository_url="https://download.docker.com/linux",
        __docker_engine_os_id=name,
        __docker_engine_os_codename=codename,
        __docker_engine_probe={"commands": {"arch": {"stdout": f"{architecture}\n"}}},
        __docker_engine_key_path=ENGINE["__docker_engine_key_path"],
    ) == [
        "Types: deb",
        f"URIs: https://download.docker.com/linux/{name}",
        f"Suites: {codename}",
        "Components: stable",
        f"Architectures: {architecture}",
        "Signed-By: /etc/apt/keyrings/docker.asc",
    ]


@pytest.mark.parametrize("path", sorted(ROLES.rglob("tasks/*.yml")), ids=lambda path: f"{path.parts[-3]}-{path.stem}")
def test_nothing_is_removed_that_nobody_named(path: Path) -> None:
    # On a DGX autoremove takes packages of the platform with it, and a full upgrade is the operator's.
    code = "\n".join(line for line in path.read_text().splitlines() if not line.lstrip().startswith("#"))
    tasks = re.sub(r"(?s)(fail_msg|msg|message): .*?(?=\n\s*(?:- |\w+:))", "", code)
    assert not re.search(r"autoremove|autoclean|dist-upgrade|upgrade: ", tasks)


@pytest.mark.parametrize("version", ["1.18.0", "1.18.1", "1.19.0", "1.19.1", "1.20.0"])
def test_a_toolkit_with_a_fault_is_known(version: str) -> None:
    assert TOOLKIT["__nvidia_container_toolkit_known_faults"][version].strip().endswith(".")
