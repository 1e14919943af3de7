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
def read_cost(host: Any) -> dict[str, Any]:
    document = json.loads(Path(os.environ["TASK_BUDGET_FILE"]).read_text())
    (cost,) = document["hosts"].values()
    assert host.backend.hostname
    return dict(cost)


def test_a_run_without_work_keeps_its_budget_of_remote_tasks(cost: dict[str, Any]) -> None:
    assert 0 < cost["remote_tasks"] <= REMOTE_TASKS, [task["name"] for task in cost["tasks"]]
