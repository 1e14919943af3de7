"""Counts what a run costs on the hosts: tasks that ran a module there, and their seconds."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible import constants
from ansible.plugins.callback import CallbackBase

DOCUMENTATION = r"""
name: task_budget
type: aggregate
short_description: Count the tasks that ran a module on a host
description:
  - Writes, for each host, the tasks that ran a module there and how long each took, as JSON.
  - Not counted are tasks that stay on the control node (C(assert), C(debug), C(set_fact), includes, imports,
    C(meta), validation of arguments, whatever is delegated to localhost), tasks that were skipped, and hosts that did
    not answer.
  - A loop counts each item that ran, C(until) each attempt. A task delegated to another host counts there.
options:
  file:
    description: Where to write. Nothing is counted where it is empty.
    type: str
    default: ""
    env:
      - name: TASK_BUDGET_FILE
requirements:
  - enable in configuration
author:
  - dgx-comfyui (@dgx-comfyui)
"""

# Actions of ansible.builtin that never reach a host.
CONTROL_NODE_ACTIONS = frozenset(
    {
        "add_host",
        "assert",
        "debug",
        "fail",
        "group_by",
        "import_playbook",
        "import_role",
        "import_tasks",
        "include_role",
        "include_tasks",
        "include_vars",
        "meta",
        "pause",
        "set_fact",
        "set_stats",
        "validate_argument_spec",
    }
)


def reaches_a_host(action: str) -> bool:
    """Whether a task of this resolved name runs something on the host that it is for."""
    return action.removeprefix("ansible.builtin.").removeprefix("ansible.legacy.") not in CONTROL_NODE_ACTIONS


def place(host: str, delegate_to: str | None) -> str | None:
    """The host that a task ran on; None is the control node, which a task reaches by delegation."""
    if not delegate_to or delegate_to == host:
        return host
    return None if delegate_to in constants.LOCALHOST else delegate_to


def relative(path: str) -> str:
    """The path as seen from here, where it lies below."""
    here = f"{os.getcwd()}{os.sep}"
    return path.removeprefix(here)


class CallbackModule(CallbackBase):  # type: ignore[misc] # ansible-core has no types
    """Listens to results; see DOCUMENTATION."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "task_budget"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.playbook = ""
        self.begun_s = time.monotonic()
        self.started_s: dict[tuple[str, str], float] = {}
        # Modules that a task has run so far, by the host that they ran on: items of a loop, attempts before the last.
        self.runs: dict[tuple[str, str], Counter[str]] = {}
        self.tasks: dict[str, list[dict[str, Any]]] = {}

    def set_options(self, *arguments: Any, **keywords: Any) -> None:
        """Read the configuration; without a file nothing is left to do."""
        super().set_options(*arguments, **keywords)
        self.disabled = not self.get_option("file")

    def v2_playbook_on_start(self, playbook: Any) -> None:
        """Remember what is run."""
        self.playbook = os.path.basename(str(playbook._file_name))

    def v2_runner_on_start(self, host: Any, task: Any) -> None:
        """Start the clock of a task on a host."""
        self.started_s[(host.name, task._uuid)] = time.monotonic()

    def v2_runner_retry(self, result: Any) -> None:
        """An attempt that failed ran all the same."""
        self.note(result)

    def v2_runner_item_on_ok(self, result: Any) -> None:
        """An item of a loop ran."""
        self.note(result)

    def v2_runner_item_on_failed(self, result: Any) -> None:
        """An item of a loop ran and failed."""
        self.note(result)

    def v2_runner_on_ok(self, result: Any) -> None:
        """A task ended well."""
        self.end(result, "changed" if result.is_changed() else "ok")

    def v2_runner_on_failed(self, result: Any, ignore_errors: bool = False) -> None:
        """A task failed, whatever becomes of that."""
        self.end(result, "ignored" if ignore_errors else "failed")

    def note(self, result: Any) -> None:
        """One module ran on some host."""
        where = place(result.host.name, result.task_fields.get("delegate_to"))
        if where and reaches_a_host(result.task.resolved_action or result.task.action):
            self.runs.setdefault((result.host.name, result.task._uuid), Counter())[where] += 1

    def end(self, result: Any, status: str) -> None:
        """A task is over on one host: write down what it ran, where, and how long it took."""
        if result.task.loop is None:  # the items of a loop were noted one by one
            self.note(result)
        key = (result.host.name, result.task._uuid)
        # A handler runs once per flush under the same identity: its next run begins at nothing.
        started_s = self.started_s.pop(key, None)
        for where, runs in self.runs.pop(key, Counter[str]()).items():
            self.tasks.setdefault(where, []).append(
                {
                    "name": result.task.get_name(),
                    "action": str(result.task.action),
                    "path": relative(str(result.task.get_path() or "")),
                    "runs": runs,
                    "seconds": round(time.monotonic() - started_s, 3) if started_s is not None else 0.0,
                    "status": status,
                }
            )

    def report(self, hosts: Mapping[str, Any]) -> dict[str, Any]:
        """What is written; a host on which nothing ran is in it too."""
        names = [name for name in {**dict.fromkeys(hosts), **dict.fromkeys(self.tasks)} if name]
        return {
            "playbook": self.playbook,
            "elapsed_s": round(time.monotonic() - self.begun_s, 3),
            "hosts": {
                name: {
                    "remote_tasks": sum(task["runs"] for task in self.tasks.get(name, [])),
                    "remote_s": round(sum(task["seconds"] for task in self.tasks.get(name, [])), 3),
                    "tasks": self.tasks.get(name, []),
                }
                for name in names
            },
        }

    def v2_playbook_on_stats(self, stats: Any) -> None:
        """Write the file at the end of the run."""
        path = Path(self.get_option("file"))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.report(stats.processed), indent=2) + "\n")
