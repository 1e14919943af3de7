"""The runner's verdicts: a scenario that proves nothing or takes too long has failed."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from sandbox import scenarios

REPORT = '<testsuites><testsuite tests="{}" skipped="{}" failures="0"/></testsuites>'


@pytest.mark.parametrize(("tests", "skipped", "count"), [(5, 1, 4), (3, 3, 0), (0, 0, 0)])
def test_a_skipped_test_does_not_count(tmp_path: Path, tests: int, skipped: int, count: int) -> None:
    report = tmp_path / "verify.xml"
    report.write_text(REPORT.format(tests, skipped))
    assert scenarios.count_tests(report) == count


def test_no_report_is_no_test(tmp_path: Path) -> None:
    assert scenarios.count_tests(tmp_path / "verify.xml") == 0


@pytest.mark.parametrize(
    ("status", "tests", "minutes", "problem"),
    [
        (0, 3, 1.0, ""),
        (2, 3, 1.0, "failed with 2"),
        (0, 0, 1.0, "no test ran"),
        (0, 3, 4.1, "over its budget of 4 min"),
    ],
)
def test_the_verdict(status: int, tests: int, minutes: float, problem: str) -> None:
    assert scenarios.judge(status, tests, minutes, 4.0) == problem


def test_the_table_ends_with_the_count() -> None:
    runs = [scenarios.Run("default", 12, 5.1, 60, ""), scenarios.Run("refusals", 4, 2.0, 0, "no test ran")]
    lines = scenarios.table(runs).splitlines()
    assert "no test ran" in lines[2]
    assert lines[-1] == "scenarios: 1 passed, 1 failed"


def test_the_first_scenario_comes_first() -> None:
    assert scenarios.found()[0] == scenarios.FIRST


def test_every_scenario_has_tests() -> None:
    for name in scenarios.found():
        folder = scenarios.ROOT / "molecule" / name / "tests"
        assert list(folder.glob("test_*.py")), f"molecule/{name} has no test"


def test_every_budget_is_a_scenarios() -> None:
    assert set(scenarios.BUDGETS_MIN) <= set(scenarios.found())


def test_no_step_of_a_scenario_is_left_out_without_a_word() -> None:
    """Molecule only warns where a step has no playbook."""
    shared = yaml.safe_load((scenarios.ROOT / ".config/molecule/config.yml").read_text())
    for name in scenarios.found():
        folder = scenarios.ROOT / "molecule" / name
        own = yaml.safe_load((folder / "molecule.yml").read_text()) or {}
        playbooks = {**shared["ansible"]["playbooks"], **own.get("ansible", {}).get("playbooks", {})}
        for step in own.get("scenario", shared["scenario"])["test_sequence"]:
            action, *arguments = step.split()
            assert {"check": "converge", "idempotence": "converge", "syntax": "converge"}.get(
                action, action
            ) in playbooks
            assert all((folder / argument).exists() for argument in arguments), f"{name}: {step}"
