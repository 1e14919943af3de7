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


def test_what_failed_is_named_with_its_first_line(tmp_path: Path) -> None:
    report = tmp_path / "verify.xml"
    report.write_text(
        '<testsuites><testsuite tests="3"><testcase name="test_fine"/>'
        '<testcase name="test_wrong"><failure message="assert 1 == 2&#10;  +1">long</failure></testcase>'
        '<testcase name="test_lost"><error>no host&#10;at all</error></testcase></testsuite></testsuites>'
    )
    assert scenarios.failures(report) == ("test_wrong: assert 1 == 2", "test_lost: no host")
    assert scenarios.failures(tmp_path / "none.xml") == ()


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
    runs = [
        scenarios.Run("default", 12, 5.1, 60, ""),
        scenarios.Run("refusals", 4, 2.0, 0, "failed with 2", ("test_wrong: why",)),
    ]
    lines = scenarios.table(runs, 7.1).splitlines()
    assert "failed with 2" in lines[2]
    assert lines[-2] == "refusals: test_wrong: why"
    assert lines[-1] == "scenarios: 1 passed, 1 failed"


def test_the_first_scenario_comes_first() -> None:
    assert scenarios.found()[0] == scenarios.FIRST


def test_every_scenario_has_tests() -> None:
    for name in scenarios.found():
        folder = scenarios.ROOT / "molecule" / name / "tests"
        assert list(folder.glob("test_*.py")), f"molecule/{name} has no test"


def test_what_does_not_gate_a_change_is_a_scenario_with_a_reason() -> None:
    assert set(scenarios.found()) - set(scenarios.found(full=False)) == set(scenarios.FULL_ONLY)
    assert all(scenarios.FULL_ONLY.values())


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


def fake(outcomes: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, bool]]:
    """Run no scenario but note it, and whether it shares the machine; `outcomes` are problems by name."""
    seen: list[tuple[str, bool]] = []

    def run(name: str, *, shared: bool = False) -> scenarios.Run:
        seen.append((name, shared))
        return scenarios.Run(name, 4, 1.0, 1, outcomes.get(name, ""))

    monkeypatch.setattr(scenarios, "run", run)
    return seen


def test_the_first_has_the_machine_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = fake({}, monkeypatch)
    assert scenarios.run_all(["default", "image", "models"]) == 0
    assert seen[0] == ("default", False)
    assert sorted(seen[1:]) == [("image", True), ("models", True)]


def test_nothing_begins_from_what_a_failed_first_left(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = fake({"default": "failed with 2"}, monkeypatch)
    assert scenarios.run_all(["default", "image"]) == 1
    assert seen == [("default", False)]


def test_one_failure_is_the_verdict_and_no_end_of_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = fake({"image": "failed with 2"}, monkeypatch)
    assert scenarios.run_all(["image", "models"]) == 1
    assert len(seen) == 2


def test_a_scenario_that_shares_the_machine_keeps_its_words_in_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    program = tmp_path / "molecule"
    program.write_text("#!/bin/sh\necho the last words of $3\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(scenarios, "ROOT", tmp_path)
    found = scenarios.run("image", shared=True)
    assert found.problem == "failed with 1"
    assert found.budget_min == scenarios.BUDGETS_MIN["image"] * scenarios.SHARED
    assert (tmp_path / "artifacts/image.log").read_text() == "the last words of image\n"
    assert "the last words of image" in capsys.readouterr().out
