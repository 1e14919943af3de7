"""A new user's hands: every command of README.md, in a fresh clone, and what the page says of it."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

import pytest

from pages import SETUP, commands
from playbook_runs import ROOT

NAME = "first_page"
STATE = (ROOT / ".config/molecule/file_state.sh").read_text()
# Of the terminal that runs the tests, and not of a new user's.
OWN = ("ANSIBLE_", "EVIDENCE_", "MAKE", "MITOGEN", "MOLECULE_", "PYTHON", "SANDBOX_FROM", "VERIFY_", "VIRTUAL_ENV")


class Terminal:
    """A shell of somebody who has cloned the repository, and has no more than that. `port` is the demo's."""

    def __init__(self, clone: Path) -> None:
        self.clone = clone
        self.typed: set[str] = set()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        own = {name: text for name, text in os.environ.items() if not name.startswith(OWN)}
        path = [place for place in own["PATH"].split(":") if Path(place) != Path(sys.executable).parent]
        self.environment = own | {
            "PATH": ":".join(path),
            "ANSIBLE_INVENTORY": str(clone / ".cache/sandbox" / NAME),
            "DEMO_NAME": NAME,
            "DEMO_PORT": str(self.port),
        }

    def run(self, script: str) -> subprocess.CompletedProcess[str]:
        """Run a script after the set-up of the page, however it ends."""
        return subprocess.run(
            ["bash", "-c", f"{SETUP} && {script}"],
            cwd=self.clone,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )

    def type(self, command: str, status: int = 0) -> str:
        """Type a command of the page; returns what it prints."""
        assert command in commands(), f"README.md does not have: {command}"
        self.typed.add(command)
        done = self.run("true" if command == SETUP else command)
        assert done.returncode == status, done.stdout
        return done.stdout

    def on_host(self, script: str) -> str:
        """What a script prints on the host; it must succeed."""
        container = self.run("sed -n 's/.*ansible_host: //p' \"$ANSIBLE_INVENTORY/hosts.yml\"").stdout.splitlines()[-1]
        command = ["docker", "exec", "--interactive", container, "bash", "-euo", "pipefail"]
        done = subprocess.run(command, input=script, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def terminal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Terminal]:
    clone = tmp_path_factory.mktemp("fresh") / "dgx-comfyui"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    terminal = Terminal(clone)
    terminal.type(SETUP)
    yield terminal
    terminal.run(f"PYTHONPATH=tests python -m sandbox down {NAME}")


def test_a_look_changes_nothing_on_a_virgin_host(terminal: Terminal) -> None:
    host = terminal.run(f"PYTHONPATH=tests python -m sandbox up {NAME} --port {terminal.port}")
    assert host.returncode == 0, host.stdout
    before = terminal.on_host(STATE).splitlines()
    terminal.type("ansible-playbook site.yml --check --diff")
    assert sorted(set(before) ^ set(terminal.on_host(STATE).splitlines())) == []


def test_three_steps_lead_to_a_host_that_is_verified(terminal: Terminal) -> None:
    assert "http://127.0.0.1:8188" in terminal.type("ansible-playbook site.yml")
    terminal.type("ansible-playbook playbooks/verify.yml")
    assert (terminal.clone / "artifacts" / NAME / "verify.html").exists()


def test_an_image_can_be_asked_for(terminal: Terminal) -> None:
    (command,) = (one for one in commands() if "curl" in one)
    terminal.typed.add(command)
    count = "ls /srv/comfyui/output | wc -l"
    before = int(terminal.on_host(count))
    assert json.loads(terminal.on_host(command))["node_errors"] == {}
    deadline = time.monotonic() + 30
    while int(terminal.on_host(count)) == before:
        assert time.monotonic() < deadline, "no image came"
        time.sleep(0.5)


def test_a_second_run_changes_nothing(terminal: Terminal) -> None:
    assert re.search(r"changed=0 .*failed=0", terminal.type("ansible-playbook site.yml"))


def test_the_demo_ends_with_its_address(terminal: Terminal) -> None:
    address = f"http://127.0.0.1:{terminal.port}"
    assert f"ComfyUI answers at {address}" in terminal.type("make demo")
    with urlopen(f"{address}/system_stats", timeout=10) as answer:  # noqa: S310 - loopback
        assert answer.status == 200


def test_without_a_release_before_none_is_gone_back_to(terminal: Terminal) -> None:
    words = " ".join(terminal.type("ansible-playbook playbooks/rollback.yml", status=2).split())
    assert "There is no release before the current one" in words


def test_the_service_is_undone_and_the_data_stay(terminal: Terminal) -> None:
    terminal.type("ansible-playbook playbooks/teardown.yml")
    terminal.on_host('! systemctl is-active comfyui.service; test -z "$(docker ps --quiet)"; ls /srv/comfyui/models')


def test_the_demo_is_removed(terminal: Terminal) -> None:
    (command,) = re.findall(r"`(make demo-destroy)`", (terminal.clone / "README.md").read_text())
    done = terminal.run(command)
    assert done.returncode == 0, done.stdout
    assert not (terminal.clone / ".cache/sandbox" / NAME).exists()


def test_all_of_the_page_was_typed(terminal: Terminal) -> None:
    assert set(commands()) - terminal.typed == set()
