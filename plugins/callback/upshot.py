"""How a run of reprovision.yml ended: which hosts were not touched, and whether a dry run found drift."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ansible import context
from ansible.plugins.callback import CallbackBase

DOCUMENTATION = r"""
name: upshot
type: aggregate
short_description: Say how a rollout ended, and end a dry run that found drift with a status of its own
description:
  - Names the hosts that a rollout in batches did not touch, after which host it stopped, and which was lost on the way.
  - In check mode the run ends with 3 where a host has drifted (P(drift#callback)) and none failed or was out of reach.
  - The run ends with 1 where its tags leave no task for any host, since nobody was repaired or judged.
  - By then the callback plugins before it in the alphabet have had the end of the run. Those after it get none.
options:
  folder:
    description: Below which folder HOST/drift.json lies.
    type: path
    default: artifacts
    env:
      - name: DRIFT_FOLDER
    ini:
      - section: callback_drift
        key: folder
requirements:
  - enable in configuration
author:
  - dgx-comfyui (@dgx-comfyui)
"""

PLAYBOOK = "reprovision.yml"
DRIFT_FOUND = 3
NOTHING_DONE = 1


def words(planned: Iterable[str], begun: Iterable[str], failed: Iterable[str], lost: Iterable[str]) -> list[str]:
    """What to say of hosts that were to be repaired: of those that were `lost` on the way, and of those not `begun`."""
    stopped = ", ".join(name for name in planned if name in {*failed, *lost})
    untouched = ", ".join(name for name in planned if name not in set(begun))
    said = [
        f"{name} was lost before it had its verdict, and may be half repaired. Type the same again when it answers."
        for name in planned
        if name in set(lost)
    ]
    if untouched:
        said.append(
            f"Not touched: {untouched}. The rollout stopped after {stopped}; expected that each host is repaired and "
            "passes. Mend that one, then type the same again."
        )
    return said


class CallbackModule(CallbackBase):  # type: ignore[misc] # ansible-core has no types
    """Listens to results; see DOCUMENTATION."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "upshot"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.planned: list[str] = []
        self.begun: set[str] = set()
        self.rollout = False

    def v2_playbook_on_start(self, playbook: Any) -> None:
        """Leave other playbooks alone."""
        self.disabled = Path(str(playbook._file_name)).name != PLAYBOOK

    def v2_playbook_on_play_start(self, play: Any) -> None:
        """A play, or a batch of one: that with batches is the rollout."""
        self.rollout = bool(play.serial)
        if self.rollout:
            self.planned = play.get_variable_manager().get_vars(play=play)["ansible_play_hosts_all"]

    def v2_runner_on_start(self, host: Any, task: Any) -> None:  # noqa: ARG002
        """A task begins on a host."""
        if self.rollout:
            self.begun.add(host.name)

    def v2_playbook_on_stats(self, stats: Any) -> None:
        """Say it, and end a dry run that found drift."""
        if said := words(self.planned, self.begun, stats.failures, stats.dark):
            self._display.banner("ROLLOUT")
            for line in said:
                self._display.display(line)
        if not stats.processed:
            self._display.display(
                f"No task was run on any host: found --tags {','.join(context.CLIARGS['tags'])}, expected before_reboot"
                " or the names of roles, and hosts in the group dgx. ansible-playbook playbooks/reprovision.yml "
                "--list-tags shows the ones, ansible-inventory --graph the others. For the verdict alone type "
                "ansible-playbook playbooks/verify.yml"
            )
            sys.exit(NOTHING_DONE)
        if context.CLIARGS["check"] and not stats.failures and not stats.dark and self.drifted():
            sys.exit(DRIFT_FOUND)

    def drifted(self) -> bool:
        """Whether the table of a host has a row."""
        files = [Path(self.get_option("folder")) / host / "drift.json" for host in self.begun]
        return any(json.loads(path.read_text()) for path in files)
