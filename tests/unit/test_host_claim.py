"""Of two runs on one host the second is refused, a dead one's claim is taken over, and nobody lets go of another's."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import playbook_runs

host_claim = importlib.import_module("modules.host_claim")
action = importlib.import_module("action.host_claim")

NOW_S = 1_800_000_000.0
LONG_S = host_claim.SILENCE_LIMIT_S + 1.0
STRATEGIES = ["linear", "mitogen_unpinned"]


def claim(**changes: Any) -> dict[str, Any]:
    return {"run": "theirs", "who": "operator on laptop", "since_s": NOW_S - 60, "ended_s": None, **changes}


@pytest.mark.parametrize(
    ("found", "silent_s", "wanted", "met"),
    [
        ({}, 0, {}, None),
        (claim(run="mine"), LONG_S, {}, None),
        (claim(), 0, {}, "holder"),
        (claim(), host_claim.SILENCE_LIMIT_S, {}, "holder"),
        (claim(), LONG_S, {}, "taken_over"),
        (claim(), 0, {"dead": "theirs"}, "taken_over"),
        (claim(), 0, {"dead": "somebody else's"}, "holder"),
        (claim(ended_s=NOW_S - 2), 0, {"seen_s": NOW_S - 1}, None),
        (claim(ended_s=NOW_S - 1), 0, {"seen_s": NOW_S - 2}, "missed"),
        (claim(ended_s=NOW_S - 1), 0, {}, None),
    ],
)
def test_what_a_claim_meets(found: dict[str, Any], silent_s: float, wanted: dict[str, Any], met: str | None) -> None:
    wanted = {"run": "mine", "dead": "", "seen_s": 0.0, **wanted}
    assert list(host_claim.judge(found, wanted, NOW_S, NOW_S - silent_s)) == ([met] if met else [])


def ask(path: Path, run: str, state: str = "held", **more: Any) -> dict[str, Any]:
    params = {"path": str(path), "run": run, "who": run, "state": state, "seen_s": 0.0, "dead": "", **more}
    met: dict[str, Any] = host_claim.settle(params)
    return met


def test_who_comes_second_gets_the_host_when_the_first_has_let_go(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "claim.json"
    assert ask(path, "one") == {}
    assert ask(path, "two")["holder"]["who"] == "one"
    assert ask(path, "two", "released") == {}
    assert "holder" in ask(path, "two")
    assert ask(path, "one") == {}
    ask(path, "one", "released")
    assert "missed" in ask(path, "two", seen_s=time.time() - 10)
    assert ask(path, "two") == {}
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_run_that_was_taken_over_does_not_let_go_for_the_other(tmp_path: Path) -> None:
    path = tmp_path / "claim.json"
    ask(path, "one")
    os.utime(path, (0, time.time() - LONG_S))
    assert ask(path, "two")["taken_over"]["who"] == "one"
    ask(path, "one", "released")
    assert ask(path, "three")["holder"]["who"] == "two"


@pytest.mark.parametrize("content", ["", "{", "[]", '{"run": "cut short"}'])
def test_a_claim_that_was_cut_short_stands_in_nobodys_way(tmp_path: Path, content: str) -> None:
    path = tmp_path / "claim.json"
    path.write_text(content)
    assert ask(path, "one") == {}
    assert json.loads(path.read_text())["run"] == "one"


def test_only_a_process_of_this_machine_is_known_to_be_dead() -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        run = action.identity(process.pid)
        assert not action.is_dead(run)
        process.kill()
        until = time.monotonic() + 30
        while not action.is_dead(run):  # nobody has waited for it yet: a zombie is dead
            assert time.monotonic() < until
            time.sleep(0.01)
    assert action.is_dead(run)
    assert not action.is_dead("another-machine/4026531836/" + run.split("/", 2)[2])
    own = action.identity(os.getpid())
    assert not action.is_dead(own)
    assert action.is_dead(own + "0")  # its number was given to this process later


@pytest.fixture
def playbook(tmp_path: Path) -> Iterator[list[str]]:
    """A run that claims this machine and works until a file is there, unless told not to."""
    local = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
    (tmp_path / "hosts.yml").write_text(yaml.safe_dump({"all": {"hosts": {"here": local}}}))
    path = str(tmp_path / "claim.json")
    work = {"ansible.builtin.wait_for": {"path": str(tmp_path / "go"), "sleep": 1, "timeout": 60}}
    trouble = {"ansible.builtin.fail": {"msg": "broken"}, "when": "broken | default(false) | bool"}
    tasks = {
        "block": [{"host_claim": {"path": path}}, work, trouble],
        "rescue": [{"ansible.builtin.fail": {"msg": "kept"}}],
        "always": [{"host_claim": {"path": path, "state": "released"}}],
    }
    play = [{"hosts": "all", "gather_facts": False, "tasks": [tasks]}]
    (tmp_path / "play.yml").write_text(yaml.safe_dump(play))
    yield ["ansible-playbook", "--inventory", str(tmp_path / "hosts.yml"), str(tmp_path / "play.yml")]
    (tmp_path / "go").touch()


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_runs_at_once_and_one_that_was_killed(tmp_path: Path, playbook: list[str], strategy: str) -> None:
    environment = playbook_runs.environment(ANSIBLE_STRATEGY=strategy)

    def run(*options: str) -> tuple[int, str]:
        done = subprocess.run([*playbook, *options], env=environment, capture_output=True, text=True, check=False)
        return done.returncode, " ".join((done.stdout + done.stderr).split())

    with subprocess.Popen(playbook, env=environment, stdout=subprocess.DEVNULL) as first:
        while not (tmp_path / "claim.json").exists() or not (tmp_path / "claim.json").read_text():
            assert first.poll() is None
            time.sleep(0.05)
        status, words = run()
        assert status == 2
        assert "Another run changes this host: that of" in words
        assert "Wait for its end and run this again" in words
        assert run("--check")[0] == 0  # a dry run claims nothing
        assert json.loads((tmp_path / "claim.json").read_text())["ended_s"] is None
        first.kill()
    (tmp_path / "go").touch()
    status, words = run()
    assert status == 0, words
    assert "Took this host over from the run of" in words
    status, words = run("--extra-vars", "broken=true")
    assert status == 2
    assert "Took this host over" not in words
    assert json.loads((tmp_path / "claim.json").read_text())["ended_s"]  # who fails lets go as well
    (tmp_path / "claim.json").unlink()
    (tmp_path / "claim.json").mkdir()
    status, words = run()
    assert status != 0
    assert "cannot be written (Is a directory), expected that root runs this" in words
    assert "Traceback" not in words
