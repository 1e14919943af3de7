"""Runs of ansible-playbook by a test: the environment they get, and the words they end with."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
# Of a task, or of one item of its loop.
FAILURE = re.compile(
    r"^(?:fatal: \[[^]]+\]: FAILED!|failed: \[[^]]+\] \(item=.*\)) => *\n((?:    .*\n|\n)+)", re.MULTILINE
)


def environment(**more: str) -> dict[str, str]:
    """What a run gets whose output a test reads: this process's environment, the tree's configuration, no colours."""
    return os.environ | {
        "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
        "ANSIBLE_FORCE_COLOR": "0",  # Molecule asks for colours, and they win over NOCOLOR
        "ANSIBLE_NOCOLOR": "1",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        **more,
    }


def last_words(output: str) -> str:
    """The message of the last task that failed, as a person reads it; empty where none did."""
    blocks = FAILURE.findall(output)
    return " ".join(str(yaml.safe_load(blocks[-1])["msg"]).split()) if blocks else ""
