"""The diagram of docs/architecture.md is the code's: playbooks, the roles that each one runs, and their order."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/architecture.md").read_text()
ROLES = {path.name for path in (ROOT / "roles").iterdir()}
PLAYBOOKS = sorted(path.name for path in (ROOT / "playbooks").glob("*.yml"))
(DIAGRAM,) = re.findall(r"^```mermaid\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
NODE = re.compile(r'(\w+)(?:\["([^"]+)"\])?')
TITLES = {node: title or node for node, title in NODE.findall(DIAGRAM) if title} | {role: role for role in ROLES}


def arrows(kind: str) -> list[tuple[str, str]]:
    """The diagram's arrows of one kind, by what stands in their boxes."""
    found = []
    for line in DIAGRAM.splitlines():
        if kind in line.split():
            left, right = (re.sub(r'\["[^"]*"\]', "", side) for side in line.split(f" {kind} "))
            found.append((TITLES[left.strip()], TITLES[right.strip()]))
    return found


def tasks(entries: list[dict[str, Any]], folder: Path) -> Iterator[dict[str, Any]]:
    """Every task of plays or task lists, blocks opened and imported files read."""
    for entry in entries:
        imported = next((entry[key] for key in entry if key.endswith(("import_tasks", "include_tasks"))), None)
        if imported and (folder / str(imported)).exists():
            yield from tasks(yaml.safe_load((folder / str(imported)).read_text()), (folder / str(imported)).parent)
        for key in ("pre_tasks", "tasks", "post_tasks", "block", "rescue", "always"):
            yield from tasks(entry.get(key, []), folder)
        yield entry


def roles_of(playbook: str) -> list[str]:
    """The roles whose work a playbook has done, in its order; the refusals before it are not work."""
    entries = yaml.safe_load((ROOT / "playbooks" / playbook).read_text())
    found = []
    for task in tasks(entries, ROOT / "playbooks"):
        role = next((task[key] for key in task if key.endswith(("import_role", "include_role"))), None)
        if role and (role["name"] == "preflight" or role.get("tasks_from") not in {"preflight", "early"}):
            found.append(role["name"])
    return list(dict.fromkeys(found))


def reached(start: str) -> set[str]:
    """The roles that the arrows lead to from a playbook. From role to role they are the site's order."""
    found: set[str] = set()
    edge = {start}
    while edge:
        found |= edge
        edge = {b for a, b in arrows("-->") if a in edge and (a not in ROLES or "site.yml" in found)} - found
    return found & ROLES


@pytest.mark.parametrize("playbook", PLAYBOOKS)
def test_a_playbook_leads_to_the_roles_that_it_runs(playbook: str) -> None:
    assert reached(playbook) == set(roles_of(playbook))


def test_every_role_and_no_other_stands_in_the_diagram() -> None:
    assert {box for arrow in arrows("-->") for box in arrow} & ROLES == ROLES
    assert {title for title in TITLES.values() if re.fullmatch(r"[\w/]+\.yml", title) and "/" not in title} <= {
        *PLAYBOOKS
    }


def test_roles_follow_each_other_as_in_the_site() -> None:
    order = roles_of("site.yml")
    between_roles = [(first, then) for first, then in arrows("-->") if {first, then} <= ROLES]
    assert between_roles
    for first, then in between_roles:
        assert order.index(first) < order.index(then)


def test_every_role_of_the_site_keeps_something_on_the_host() -> None:
    keepers = {first for first, _ in arrows("-.->")} & ROLES
    assert keepers == set(roles_of("site.yml")) - {"preflight"}


def test_the_files_of_the_host_are_those_of_the_code() -> None:
    sources = "".join(
        path.read_text() for folder in ("inventory", "roles", "templates") for path in (ROOT / folder).rglob("*.yml")
    )
    paths = [Path(title) for title in TITLES.values() if title.startswith("/")]
    assert paths
    for path in paths:
        # As a whole, or in parts: the folder is one variable and the name is another.
        assert str(path) in sources or {str(path.parent), path.name} <= set(re.findall(r"[\w./-]+", sources)), path
    for unit in ("comfyui.service", "comfyui-guard.timer", "comfyui_guard.py"):
        assert unit in TITLES.values()
        assert (ROOT / f"templates/{unit}").exists() or (ROOT / f"templates/{unit}.j2").exists()
