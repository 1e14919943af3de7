"""The last lines of a run: where ComfyUI answers, what runs, what changed, how long it took, where the evidence is."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible import constants, context
from ansible.plugins.callback import CallbackBase

DOCUMENTATION = r"""
name: outcome
type: aggregate
short_description: End a run with a verdict of each host
description:
  - Prints, for each host of C(site.yml) or C(reprovision.yml), whether ComfyUI runs there, at which address, in which
    version and release, how many tasks changed something, how long the run took, and where its evidence lies.
  - Where ComfyUI is comes from M(ansible.builtin.set_stats) with the name comfyui. A host that has none and did not
    fail gets no verdict, as with C(--check) or a tag that leaves the service alone.
options:
  folder:
    description: Below which folder HOST/ has the evidence.
    type: path
    default: artifacts
    env:
      - name: OUTCOME_FOLDER
    ini:
      - section: callback_outcome
        key: folder
requirements:
  - enable in configuration
author:
  - dgx-comfyui (@dgx-comfyui)
"""

# The playbooks that bring a host to where ComfyUI runs; another one ends with words of its own.
PLAYBOOKS = {"site.yml", "reprovision.yml"}


def spoken(seconds: float) -> str:
    """A duration as people say it."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def is_of_this_run(folder: Path, seconds: float) -> bool:
    """Whether a folder was made in the last seconds: an earlier run's evidence does not speak for this one."""
    return folder.exists() and folder.stat().st_mtime > time.time() - seconds - 1


def command(host: str, inventories: Sequence[str], default: Sequence[str]) -> str:
    """What judges a host, typed with the inventories of this run."""
    named = [] if list(inventories) == list(default) else inventories
    given = "".join(f" --inventory {shlex.quote(os.path.relpath(one))}" for one in named)
    return f"ansible-playbook{given} playbooks/verify.yml --limit {host}"


def verdict(
    summary: Mapping[str, int],
    told: Mapping[str, Any],
    seconds: float,
    folder: Path,
    verify: str,
    *,
    dry: bool = False,
) -> list[str]:
    """The lines of one host, from its line of the recap and what the run told of it; none where nothing can be said.

    `verify` is the command that judges it, named where this run has not.
    """
    changed = (
        f"{summary['changed']} of {summary['ok']} tasks {'would change' if dry else 'changed'} something"
        if summary["changed"]
        else "Nothing was changed"
    )
    took = f"{changed}, in {spoken(seconds)}."
    if summary["unreachable"]:
        return ["Out of reach. The message above says why."]
    if summary["failures"]:
        kept = folder / "failure"
        return [
            f"Failed. {took}",
            "The message above says what to type"
            + (f"; what the host said is in {kept}/." if is_of_this_run(kept, seconds) else "."),
        ]
    if not told:
        return []
    page = folder / "verify.html"
    return [
        f"ComfyUI {told['version']} runs and has proved itself at {told['url']}",
        f"release {told['release']}, image {told['image']}",
        f"{took} What had drifted: {folder / 'drift.json'}",
        f"The whole verdict: {page if is_of_this_run(page, seconds) else verify}",
    ]


class CallbackModule(CallbackBase):  # type: ignore[misc] # ansible-core has no types
    """Listens for the end; see DOCUMENTATION."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "outcome"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.begun_s = time.monotonic()

    def v2_playbook_on_start(self, playbook: Any) -> None:
        """Leave other playbooks alone."""
        self.disabled = Path(str(playbook._file_name)).name not in PLAYBOOKS

    def v2_playbook_on_stats(self, stats: Any) -> None:
        """Say it, host by host."""
        seconds = time.monotonic() - self.begun_s
        for host in sorted(stats.processed):
            told = stats.custom.get(host, {}).get("comfyui", {})
            folder = Path(os.path.relpath(self.get_option("folder"))) / host
            verify = command(host, context.CLIARGS["inventory"] or [], constants.DEFAULT_HOST_LIST)
            lines = verdict(stats.summarize(host), told, seconds, folder, verify, dry=context.CLIARGS["check"])
            if lines:
                self._display.banner(f"OUTCOME [{host}]")
            for line in lines:
                self._display.display(line)
