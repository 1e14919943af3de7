"""The rules of a role, evaluated without a host: its variables, and what its asserts refuse, for given findings."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from ansible.parsing.dataloader import DataLoader
from ansible.plugins.loader import filter_loader, init_plugin_loader
from ansible.template import Templar

ROOT = Path(__file__).resolve().parents[1]


@functools.cache
def prepare() -> None:
    """Let this process find what a control node finds: Ansible's own plugins, and this product's filters."""
    init_plugin_loader()
    filter_loader.add_directory(str(ROOT / "plugins/filter"))


class Rules:
    """One role, on the control node of a play with these variables."""

    def __init__(self, name: str, **variables: Any) -> None:
        self.folder = ROOT / "roles" / name
        self.loader = DataLoader()
        prepare()
        known = {"role_path": str(self.folder), "ansible_managed": "managed", "ansible_check_mode": False}
        known["ansible_search_path"] = [str(self.folder)]
        self.variables = {**known, **self.read("defaults"), **self.read("vars"), **variables}

    def read(self, part: str) -> Any:
        """A YAML file of the role, as a play has it."""
        name = part if part.endswith(".yml") else f"{part}/main.yml"
        return self.loader.load_from_file(str(self.folder / name), trusted_as_template=True)

    def templar(self, **variables: Any) -> Templar:
        return Templar(loader=self.loader, variables={**self.variables, **variables})

    def value(self, name: str) -> Any:
        """A variable of the role, with all that it refers to."""
        return self.templar().template(self.variables[name])

    def applies(self, task: dict[str, Any]) -> bool:
        """Whether a task's conditions hold."""
        conditions = task.get("when", [])
        templar = self.templar(**task.get("vars", {}))
        conditions = conditions if isinstance(conditions, list) else [conditions]
        return all(templar.evaluate_conditional(condition) for condition in conditions)

    def refusals(self, part: str) -> list[str]:
        """What the asserts of a task file refuse."""
        found = []
        for task in self.read(f"tasks/{part}.yml"):
            rule = task.get("ansible.builtin.assert")
            if rule is None or not self.applies(task):
                continue
            templar = self.templar(**task.get("vars", {}))
            that = rule["that"] if isinstance(rule["that"], list) else [rule["that"]]
            if not all(templar.evaluate_conditional(condition) for condition in that):
                found.append(templar.template(rule["fail_msg"]))
        return found
