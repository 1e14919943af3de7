"""Mitogen's strategy as the make targets use it: it takes part, and what a task starts has every processor."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from playbook_runs import environment

ALLOWED = re.compile(r"Cpus_allowed_list:\s+(\S+)")
PLAY = """
- hosts: all
  gather_facts: false
  vars: {ansible_connection: local, ansible_python_interpreter: "{{ ansible_playbook_python }}"}
  tasks:
    - ansible.builtin.command:
        argv: [sh, -c, "grep Cpus_allowed_list /proc/self/status; cat /proc/$PPID/cmdline"]
      changed_when: false
"""


def test_what_a_task_starts_may_use_every_processor(tmp_path: Path) -> None:
    (tmp_path / "play.yml").write_text(PLAY)
    done = subprocess.run(
        [sys.executable, "-m", "ansible", "playbook", "-v", "-i", "localhost,", tmp_path / "play.yml"],
        env=environment(ANSIBLE_STRATEGY="mitogen_unpinned"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "mitogen:" in done.stdout, done.stdout
    allowed = ALLOWED.findall(Path("/proc/self/status").read_text())
    assert ALLOWED.findall(done.stdout) == allowed
