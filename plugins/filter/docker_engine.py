"""Filter of the role docker_engine: what is wrong with a daemon.json that lies on a host."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

# The control node imports no module_utils by itself; hosts and control node are to judge by the same functions.
sys.path.append(str(Path(__file__).resolve().parent.parent / "module_utils"))

from daemon_json import DaemonJsonError, parse_config


def daemon_json_problem(text: str | None) -> str:
    """Why the file cannot be merged into; empty where it can, or where there is none."""
    try:
        parse_config((text or "").removeprefix("\ufeff"))
    except DaemonJsonError as error:
        return str(error)
    return ""


class FilterModule:
    """The filters, by name."""

    def filters(self) -> dict[str, Callable[..., str]]:
        return {"docker_engine_daemon_problem": daemon_json_problem}
