"""The locks hold what they promise: collections in range, no index address, hashes for all, no torch."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from ansible_collections.community import docker as community_docker
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).parents[2]
LOCKS = [ROOT / "requirements.txt", *sorted((ROOT / "roles/comfyui_image/files/locks").glob("[0-9]*.txt"))]
BASE_OWNED = {"torch", "torchvision", "torchaudio", "triton", "numpy"}


def requirements(lock: Path) -> list[Requirement]:
    lines = [line.removesuffix(" \\") for line in lock.read_text().splitlines() if re.match(r"[A-Za-z0-9]", line)]
    return [Requirement(line) for line in lines]


def test_the_installed_collection_is_in_range() -> None:
    wanted = yaml.safe_load((ROOT / "requirements.yml").read_text())["collections"]
    manifest = next(iter(community_docker.__path__))
    installed = yaml.safe_load((Path(manifest) / "MANIFEST.json").read_text())["collection_info"]
    ranges = {entry["name"]: SpecifierSet(entry["version"]) for entry in wanted}
    assert installed["version"] in ranges[f"{installed['namespace']}.{installed['name']}"]


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_a_lock_pins_and_hashes_everything(lock: Path) -> None:
    text = lock.read_text()
    assert "://" not in text
    assert not re.search(r"^\s*(-i|--index-url|--extra-index-url|--find-links)", text, re.MULTILINE)
    wanted = requirements(lock)
    assert wanted
    assert all(re.fullmatch(r"==[^=*]+", str(entry.specifier)) for entry in wanted)
    blocks = re.split(r"\n(?=[A-Za-z0-9])", text[text.index("\n", text.index("make lock")) + 1 :])
    assert all("--hash=sha256:" in block for block in blocks)


@pytest.mark.parametrize("lock", LOCKS[1:], ids=lambda lock: lock.name)
def test_a_lock_of_comfyui_leaves_the_bases_packages_alone(lock: Path) -> None:
    names = {entry.name for entry in requirements(lock)}
    assert not names & BASE_OWNED
    assert not {name for name in names if name.startswith("nvidia-")}


@pytest.mark.parametrize("lock", LOCKS[1:], ids=lambda lock: lock.name)
def test_a_lock_of_comfyui_holds_what_its_version_asks_for(lock: Path) -> None:
    lines = lock.with_suffix(".in").read_text().splitlines()
    asked = {Requirement(line).name.lower() for line in lines if line and not line.startswith("#")}
    locked = {entry.name.lower() for entry in requirements(lock)}
    assert asked - BASE_OWNED <= locked
