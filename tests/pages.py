"""What the pages of the documentation tell a reader to type."""

from __future__ import annotations

import re

from playbook_runs import ROOT

README = (ROOT / "README.md").read_text()
SETUP = "make setup && . .venv/bin/activate && export ANSIBLE_CONFIG=$PWD/ansible.cfg"


def blocks(page: str, language: str) -> list[str]:
    """A page's code, those within a list too."""
    return re.findall(rf"^ *```{language}\n(.*?)^ *```$", page, re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    """The commands of README.md, without what is said beside them; one that goes over several lines is one."""
    lines = "".join(blocks(README, "sh")).replace("|\n", "|").splitlines()
    return [re.sub(r"\s+#.*", "", line).strip() for line in lines]
