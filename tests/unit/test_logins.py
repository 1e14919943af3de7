"""That no refusal of an address shows the login in it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from playbook_runs import ROOT, environment
from role_rules import Rules

ADDRESS = "https://someone:hunter22@mirror.example.com/apt/"
SHOWN = "https://mirror.example.com/apt/"


@pytest.mark.parametrize(
    ("role", "variable"),
    [
        ("docker_engine", "docker_engine_repository_url"),
        ("nvidia_container_toolkit", "nvidia_container_toolkit_repository_url"),
    ],
)
def test_a_repository_with_a_slash_too_many_is_refused_without_its_login(role: str, variable: str) -> None:
    rules = Rules(role, **{variable: ADDRESS})
    task = rules.read("tasks/preflight.yml")[1]
    items = [rules.templar().template(item) for item in task["loop"]]
    (item,) = (one for one in items if not one.get("holds", one.get("valid")))
    said = str(rules.templar(item=item).template(task["ansible.builtin.assert"]["fail_msg"]))
    assert variable in said
    assert SHOWN in said
    assert "hunter22" not in said


def test_a_key_that_cannot_be_fetched_is_named_without_its_login() -> None:
    arguments = {
        "sources": "",
        "key_url": "http://someone:hunter22@127.0.0.1:9/key",
        "fingerprint": "A" * 40,
        "package": "x",
        "version": "1",
        "hint": "Set it.",
    }
    command = [sys.executable, "-m", "ansible", "adhoc", "--inventory", "localhost,", "--connection", "local"]
    command += ["--extra-vars", json.dumps({"ansible_python_interpreter": sys.executable}), "localhost"]
    command += ["--module-name", "apt_source_try", "--args", json.dumps(arguments)]
    settings = environment(ANSIBLE_STRATEGY="linear")
    done = subprocess.run(command, cwd=ROOT, env=settings, capture_output=True, text=True, check=False)
    said = " ".join(done.stdout.partition("FAILED! =>")[2].split())  # above it Ansible shows what was typed here
    assert "The key at http://***@127.0.0.1:9/key cannot be fetched" in said, done.stdout + done.stderr
    assert "hunter22" not in said
