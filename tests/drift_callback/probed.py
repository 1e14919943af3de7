"""Writes what the roles' probes look at, under the names that the drift table has for it. For the drift matrix only."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible.plugins.callback import CallbackBase

DOCUMENTATION = r"""
name: probed
type: aggregate
short_description: Write down what the roles' probes look at
description:
  - Every file, package and unit that a host_probe reads, and every CDI specification that is compared, as a JSON
    list in the file that the environment's DRIFT_PROBED_FILE names. Of site.yml only.
author:
  - dgx-comfyui (@dgx-comfyui)
"""


def probed(action: str, arguments: Mapping[str, Any]) -> set[str]:
    """The resources that one task looks at."""
    if action == "cdi_state":
        return {str(arguments["path"])}
    if action != "host_probe":
        return set()
    files = {str(path).rstrip("/") for key in ("files", "contents") for path in arguments.get(key, [])}
    titled = {f"{title} {name}" for title in ("package", "unit") for name in arguments.get(f"{title}s", [])}
    return files | titled


class CallbackModule(CallbackBase):  # type: ignore[misc] # ansible-core has no types
    """Listens to results; see DOCUMENTATION."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "probed"

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.seen: set[str] = set()
        self.file = os.environ.get("DRIFT_PROBED_FILE", "")

    def v2_playbook_on_start(self, playbook: Any) -> None:
        """Leave other playbooks alone."""
        self.disabled = Path(str(playbook._file_name)).name != "site.yml"

    def v2_runner_on_ok(self, result: Any) -> None:
        """A task ended well."""
        if result.task.loop is None:
            self.seen |= probed(str(result.task.action).rpartition(".")[2], result.task_fields["args"])

    def v2_playbook_on_stats(self, stats: Any) -> None:  # noqa: ARG002
        """Write the file at the end of a run."""
        if self.file:
            Path(self.file).write_text(json.dumps(sorted(self.seen), indent=2) + "\n")
