"""Count a host as out of reach. Documented in modules/could_not_tell.py."""

from __future__ import annotations

from typing import Any

from ansible.plugins.action import ActionBase


class ActionModule(ActionBase):  # type: ignore[misc]  # ansible has no types
    """Ansible's entry point."""

    _VALID_ARGS = frozenset({"msg"})
    _requires_connection = False

    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:  # noqa: ARG002
        """An unreachable host, with the words that were given."""
        _, arguments = self.validate_argument_spec({"msg": {"type": "str", "required": True}})
        return {"unreachable": True, "changed": False, "msg": arguments["msg"]}
