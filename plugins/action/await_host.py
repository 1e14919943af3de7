"""Waits until a host answers. Documented in modules/await_host.py."""

from __future__ import annotations

import shlex
import time
from typing import Any

from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.action import ActionBase

PAUSE_S = 5.0


class ActionModule(ActionBase):  # type: ignore[misc]  # ansible has no types
    """Ansible's entry point."""

    _VALID_ARGS = frozenset({"timeout_s"})
    _supports_check_mode = True

    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:  # noqa: ARG002
        """Ask until there is an answer; an unreachable host, with the reason, when the time is up."""
        _, arguments = self.validate_argument_spec({"timeout_s": {"type": "float", "required": True}})
        name, timeout_s = (task_vars or {}).get("inventory_hostname"), arguments["timeout_s"]
        deadline = time.monotonic() + timeout_s
        if not (words := self.silence(task_vars)):
            return self.booted(timeout_s, task_vars)
        self._display.display(f"{name}: no answer yet, waiting up to {timeout_s:g} s: {words}")
        while (left_s := deadline - time.monotonic()) > 0:
            time.sleep(min(PAUSE_S, left_s))
            if not (words := self.silence(task_vars)):
                return self.booted(max(left_s, PAUSE_S), task_vars)
        sentence = (
            f"{name} did not answer for {timeout_s:g} s, expected that it does, after a reboot too: {words}. It was "
            f"not touched. See its console; when it is up, type the same with --limit {name}"
        )
        return {"unreachable": True, "changed": False, "msg": sentence}

    def booted(self, limit_s: float, task_vars: dict[str, Any] | None) -> dict[str, Any]:
        """Wait for the end of the boot: ssh is there long before Docker and the driver are.

        Where it does not end, the tasks that follow say what is missing.
        """
        wait = ["timeout", f"{max(limit_s, 1):g}", "systemctl", "is-system-running", "--wait"]
        arguments = {"_raw_params": shlex.join(wait)}
        self._execute_module(module_name="ansible.legacy.command", module_args=arguments, task_vars=task_vars)
        return {"changed": False}

    def silence(self, task_vars: dict[str, Any] | None) -> str:
        """What the connection says where it does not stand; empty where it does."""
        try:
            self._execute_module(module_name="ansible.legacy.ping", module_args={}, task_vars=task_vars)
        except AnsibleConnectionFailure as error:
            return " ".join(str(error).split()).rstrip(".") or "no reason given"
        return ""
