"""Names a resource that commands are about to repair. Documented in modules/drifted.py."""

from __future__ import annotations

from typing import Any

from ansible.plugins.action import ActionBase


class ActionModule(ActionBase):  # type: ignore[misc]  # ansible has no types
    """Ansible's entry point."""

    _VALID_ARGS = frozenset({"resource", "expected", "found"})
    _requires_connection = False
    _supports_check_mode = True

    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:  # noqa: ARG002
        """The row, said at once."""
        _, row = self.validate_argument_spec({name: {"type": "str", "required": True} for name in self._VALID_ARGS})
        words = f"{row['resource']}: found {row['found']}, expected {row['expected']}"
        self._display.display(f"{(task_vars or {}).get('inventory_hostname')}: {words}")
        return {"changed": self._task.check_mode, "drift": [row]}
