"""What a run costs that has nothing to do: counted in the second run, which Molecule calls idempotence."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

# Each task costs a second or so over ssh, on every host and every day.
REMOTE_TASKS = 45


@pytest.fixture(name="cost")
def read_cost() -> dict[str, Any]:
    document: dict[str, Any] = json.loads(Path(os.environ["TASK_BUDGET_FILE"]).read_text())
    assert document["playbook"] == "site.yml"
    assert list(document["hosts"]) == [os.environ["MOLECULE_SCENARIO_NAME"]]
    (cost,) = document["hosts"].values()
    return dict(cost)


def test_the_run_that_was_counted_had_nothing_to_do(cost: dict[str, Any]) -> None:
    assert {task["status"] for task in cost["tasks"]} == {"ok"}, cost["tasks"]


def test_a_run_without_work_keeps_its_budget_of_remote_tasks(cost: dict[str, Any]) -> None:
    assert 0 < cost["remote_tasks"] <= REMOTE_TASKS, [task["name"] for task in cost["tasks"]]
