"""What is written holds together: links lead somewhere, every page can be found, the version is told once."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest
import tomllib
import yaml

ROOT = Path(__file__).parents[2]
HIDDEN = (".venv", ".cache", "artifacts")
PAGES = sorted(page for page in ROOT.rglob("*.md") if page.relative_to(ROOT).parts[0] not in HIDDEN)
CODE = re.compile(r"^```.*?^```$|`[^`\n]*`", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[[^\]]*\]\(([^()\s]+)\)")


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@cache
def anchors(page: Path) -> set[str]:
    """What a link may name after its #: the headings, as GitHub spells them."""
    titles = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.M | re.S), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@cache
def links(page: Path) -> list[str]:
    """Where a page leads to, code left out."""
    return LINK.findall(CODE.sub("", page.read_text()))


def targets(page: Path) -> set[Path]:
    """The files and folders of this tree that a page leads to."""
    return {(page.parent / link.partition("#")[0]).resolve() for link in links(page) if "://" not in link}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in links(page):
        path, _, anchor = link.partition("#")
        if "://" in link:
            assert link.startswith("https://"), link
            continue
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{link}: there is no {target}"
        assert target.is_relative_to(ROOT), f"{link} leads out of the tree"
        assert not anchor or anchor in anchors(target), f"{link}: {path or page.name} has {sorted(anchors(target))}"


@pytest.mark.parametrize("page", sorted((ROOT / "docs").rglob("*.md")), ids=name)
def test_every_page_of_the_documentation_can_be_found(page: Path) -> None:
    index = ROOT / "docs/README.md"
    assert page == index or page in targets(index)


def test_the_documentation_is_found_from_the_first_page() -> None:
    assert ROOT / "docs/README.md" in targets(ROOT / "README.md")


@cache
def known() -> set[str]:
    """Variables of the site, of the roles and of playbooks, and whatever else begins like one."""
    found = {path.stem for path in [*ROOT.glob("plugins/*/*.py"), *ROOT.glob("roles/*"), *ROOT.glob("templates/*")]}
    for pattern in ("inventory/group_vars/all/*.yml", "roles/*/tasks/*.yml", "playbooks/*.yml"):
        for path in ROOT.glob(pattern):
            found |= set(re.findall(r"^ *(\w+):", path.read_text(), re.MULTILINE))
    for path in ROOT.glob("roles/*/meta/argument_specs.yml"):
        found |= set(yaml.safe_load(path.read_text())["argument_specs"]["main"]["options"])
    return found


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_the_variables_that_a_page_names_exist(page: Path) -> None:
    begins = "|".join(["before_reboot", "comfyui", *(path.name for path in (ROOT / "roles").iterdir())])
    named = set(re.findall(rf"(?<![\w./$-])(?:{begins})_\w+", page.read_text()))
    assert named - known() - {"comfyui_prot"} == set()  # the last is what somebody mistyped


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_the_tests_that_a_page_names_exist(page: Path) -> None:
    named = set(re.findall(r"`(test_\w+)`", page.read_text()))
    files = [path for folder in ("tests", "molecule") for path in (ROOT / folder).rglob("test_*.py")]
    written = set(re.findall(r"^def (test_\w+)", "".join(path.read_text() for path in files), re.MULTILINE))
    assert named - written == set()


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_the_files_that_a_page_names_exist(page: Path) -> None:
    folders = "molecule|playbooks|plugins|roles|templates|tests"
    named = re.findall(rf"(?<![\w/])(?:{folders})/[\w./-]*\w(?![\w./*-])", page.read_text())
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_version_and_licence_are_told_alike_everywhere() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (newest, *_) = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest == project["version"]
    licences = {
        yaml.safe_load(meta.read_text())["galaxy_info"]["license"] for meta in ROOT.glob("roles/*/meta/main.yml")
    }
    assert licences == {project["license"]} == {"Apache-2.0"}
    assert "Apache License\n                           Version 2.0" in (ROOT / "LICENSE").read_text()
