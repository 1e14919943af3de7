"""The budget callback, held to real runs of ansible-playbook on hosts that are this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible import modules
from ansible.plugins.loader import action_loader
from callback import task_budget

ROOT = Path(__file__).parents[2]
HOSTS = {name: {"ansible_connection": "local", "ansible_python_interpreter": sys.executable} for name in ("a", "b")}
TRUE = {"ansible.builtin.command": "true", "changed_when": False}
FALSE = {"ansible.builtin.command": "false", "changed_when": False}
PLAYBOOK: list[dict[str, Any]] = [
    {
        "hosts": "all",
        "gather_facts": False,
        "tasks": [
            {"name": "once", **TRUE, "changed_when": True, "notify": "handled"},
            {"name": "debug", "ansible.builtin.debug": {"msg": "x"}},
            {"name": "assert", "ansible.builtin.assert": {"that": True}},
            {"name": "fact", "ansible.builtin.set_fact": {"x": 1}},
            {"name": "skipped", **TRUE, "when": False},
            {"name": "two of three", **TRUE, "loop": [1, 2, 3], "when": "item != 2"},
            {"name": "none of two", **TRUE, "loop": [1, 2], "when": False},
            {"name": "control node", **TRUE, "delegate_to": "localhost"},
            {"name": "ignored", **FALSE, "loop": [1, 2], "ignore_errors": True},
            {"name": "second try", **TRUE, "register": "tried", "until": "tried.attempts == 2", "delay": 0},
            {"name": "by a on b", **TRUE, "delegate_to": "{{ 'b' }}", "when": "inventory_hostname == 'a'"},
            {"name": "included", "ansible.builtin.include_tasks": "included.yml"},
            {"block": [{"name": "rescued", **FALSE}], "rescue": [{"ansible.builtin.meta": "noop"}]},
            {"name": "handlers", "ansible.builtin.meta": "flush_handlers"},
        ],
        "handlers": [{"name": "handled", **TRUE}],
    }
]
ON_EACH = {
    "once": 1,
    "two of three": 2,
    "ignored": 2,
    "second try": 2,
    "in a file": 1,
    "rescued": 1,
    "handled": 1,
}


def play(folder: Path, playbook: Any, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a playbook on two hosts with the project's configuration."""
    (folder / "hosts.yml").write_text(yaml.safe_dump({"all": {"hosts": HOSTS}}))
    (folder / "included.yml").write_text(yaml.safe_dump([{"name": "in a file", **TRUE}]))
    (folder / "play.yml").write_text(yaml.safe_dump(playbook))
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("ANSIBLE_", "TASK_BUDGET"))}
    return subprocess.run(
        [sys.executable, "-m", "ansible", "playbook", "-i", str(folder / "hosts.yml"), str(folder / "play.yml")],
        cwd=folder,
        env={**clean, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def run_budget(folder: Path, **environment: str) -> dict[str, Any]:
    budget = folder / "made" / "budget.json"
    done = play(folder, PLAYBOOK, TASK_BUDGET_FILE=str(budget), **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    report: dict[str, Any] = json.loads(budget.read_text())
    return report


STRATEGIES = {
    "linear": {"ANSIBLE_STRATEGY": "linear"},
    "mitogen": {"ANSIBLE_STRATEGY": "mitogen_unpinned"},
}


@pytest.fixture(name="report", scope="module", params=STRATEGIES)
def make_report(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run_budget(tmp_path_factory.mktemp("budget"), **STRATEGIES[request.param])


def runs(report: dict[str, Any], host: str) -> dict[str, int]:
    return {task["name"]: task["runs"] for task in report["hosts"][host]["tasks"]}


def test_what_ran_on_a_host_counts_and_nothing_else(report: dict[str, Any]) -> None:
    assert runs(report, "a") == ON_EACH


def test_a_task_counts_on_the_host_that_it_was_delegated_to(report: dict[str, Any]) -> None:
    assert runs(report, "b") == {**ON_EACH, "by a on b": 1}


def test_the_sum_counts_items_and_attempts(report: dict[str, Any]) -> None:
    sums = {name: host["remote_tasks"] for name, host in report["hosts"].items()}
    assert sums == {"a": sum(ON_EACH.values()), "b": sum(ON_EACH.values()) + 1}


def test_every_task_has_its_seconds(report: dict[str, Any]) -> None:
    tasks = report["hosts"]["a"]["tasks"]
    assert all(0 < task["seconds"] <= report["elapsed_s"] for task in tasks)
    assert report["hosts"]["a"]["remote_s"] == pytest.approx(sum(task["seconds"] for task in tasks), abs=0.01)


def test_what_became_of_a_task_is_told(report: dict[str, Any]) -> None:
    status = {task["name"]: task["status"] for task in report["hosts"]["a"]["tasks"]}
    assert {status[name] for name in ("two of three", "second try", "in a file")} == {"ok"}
    assert (status["once"], status["ignored"], status["rescued"]) == ("changed", "ignored", "failed")


def test_a_task_says_where_it_stands(report: dict[str, Any]) -> None:
    (task,) = [task for task in report["hosts"]["a"]["tasks"] if task["name"] == "in a file"]
    assert task["path"] == "included.yml:1"
    assert task["action"] == "ansible.builtin.command"
    assert report["playbook"] == "play.yml"


def test_a_run_that_fails_is_counted_too(tmp_path: Path) -> None:
    budget = tmp_path / "budget.json"
    playbook = [{"hosts": "a", "gather_facts": False, "tasks": [{"name": "fails", **FALSE}]}]
    assert play(tmp_path, playbook, TASK_BUDGET_FILE=str(budget)).returncode == 2
    assert runs(json.loads(budget.read_text()), "a") == {"fails": 1}


def test_without_a_file_nothing_is_written_and_nothing_is_said(tmp_path: Path) -> None:
    before = {"hosts.yml", "included.yml", "play.yml"}
    done = play(tmp_path, [{"hosts": "a", "gather_facts": False, "tasks": [{"name": "once", **TRUE}]}])
    assert done.returncode == 0
    assert {path.name for path in tmp_path.iterdir()} == before
    assert "budget" not in done.stdout + done.stderr


@pytest.mark.parametrize("action", sorted(task_budget.CONTROL_NODE_ACTIONS - {"import_playbook"}))
def test_what_is_left_out_is_the_name_of_an_action(action: str) -> None:
    assert action_loader.has_plugin(action) or any(Path(folder, f"{action}.py").exists() for folder in modules.__path__)


@pytest.mark.parametrize(
    ("action", "counts"),
    [
        ("ansible.builtin.debug", False),
        ("ansible.legacy.debug", False),
        ("debug", False),
        ("ansible.builtin.command", True),
        ("host_probe", True),
        ("community.other.debug", True),
    ],
)
def test_names_in_every_spelling(action: str, counts: bool) -> None:
    assert task_budget.reaches_a_host(action) is counts


@pytest.mark.parametrize(
    ("delegate_to", "where"), [(None, "a"), ("", "a"), ("a", "a"), ("b", "b"), ("localhost", None), ("127.0.0.1", None)]
)
def test_where_a_task_ran(delegate_to: str | None, where: str | None) -> None:
    assert task_budget.place("a", delegate_to) == where
