"""Claims a host for this run of ansible-playbook. The module of this name is its documentation."""

from __future__ import annotations

import getpass
import os
import platform
from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase

CLAIM = "/run/dgx-comfyui/claim.json"


def machine() -> str:
    """The machine since its boot, and the space in which its process numbers mean something; empty where unknown."""
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()}/{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:  # no Linux
        return ""


def begun(process: int) -> str:
    """When a process began, in ticks since the boot; empty where there is none of that number."""
    try:
        # The name of the program stands in parentheses and may hold anything.
        state, *others = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if state == "Z" else others[18]  # a zombie has ended, and nobody has asked yet how


def identity(process: int) -> str:
    """What identifies a run of ansible-playbook, by its process on this control node."""
    return f"{machine() or platform.node()}/{process}/{begun(process)}"


def is_dead(run: str) -> bool:
    """Whether that run is known to have ended: it was begun on this control node, and its process is gone."""
    where, process, when = run.rsplit("/", 2)
    return where == machine() and begun(int(process)) != when


def refusal(met: dict[str, Any], path: str) -> str:
    """What to say where the host is not to be had; empty where it is."""
    if other := met.get("holder"):
        return (
            f"Another run changes this host: that of {other['who']}, last heard of {other['silent_s']} s ago; expected "
            "that nobody does. Wait for its end and run this again. If it is known to be dead, type on the host: "
            f"sudo rm {path}"
        )
    if other := met.get("missed"):
        return (
            f"Another run, that of {other['who']}, has ended while this one read the host; expected that it stays as "
            "it was read. Nothing was changed: run this again."
        )
    return ""


class ActionModule(ActionBase):  # type: ignore[misc]  # ansible has no types
    """Ansible's entry point."""

    _supports_check_mode = True

    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Claim the host, or let go of it."""
        super().run(tmp, task_vars)
        _, arguments = self.validate_argument_spec(
            {
                "state": {"choices": ["held", "released"], "default": "held"},
                "seen_s": {"type": "float", "default": 0},
                "path": {"default": CLAIM},
            }
        )
        if self._task.check_mode:
            return {"changed": False, "skipped": True, "skip_reason": "A dry run claims nothing."}
        # Each task has a process of its own, which the run's began.
        arguments |= {"run": identity(os.getppid()), "who": f"{getpass.getuser()} on {platform.node()}"}
        result = self._settle(arguments, task_vars)
        if "holder" in result and is_dead(result["holder"]["run"]):
            result = self._settle({**arguments, "dead": result["holder"]["run"]}, task_vars)
        if words := refusal(result, arguments["path"]):
            return {**result, "failed": True, "msg": words}
        if other := result.get("taken_over"):
            result["warnings"] = [
                f"Took this host over from the run of {other['who']}, which ended without letting go "
                f"(last heard of {other['silent_s']} s ago)."
            ]
        return result

    def _settle(self, arguments: dict[str, Any], task_vars: dict[str, Any] | None) -> dict[str, Any]:
        return dict(self._execute_module(module_name="host_claim", module_args=dict(arguments), task_vars=task_vars))
