"""Run the Molecule scenarios one after the other, print the minutes of each, and hold them to their budgets."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree as ET

ROOT = Path(__file__).parents[2]
# The first provisions from nothing and leaves the snapshot that the others start from.
FIRST = "default"
BUDGET_MIN = 4.0
# What is allowed to take longer, in minutes on 2 cores.
BUDGETS_MIN = {
    FIRST: 12.0,
    "dgx_os": 6.0,
    "engine": 6.0,
    "hardening": 7.0,
    "image": 5.0,
    "refusals": 8.0,
    "upgrade": 7.0,
}
MITOGEN = ("ANSIBLE_STRATEGY", "ANSIBLE_STRATEGY_PLUGINS")


@dataclass(frozen=True)
class Run:
    """One scenario, and how it went."""

    title: str
    budget_min: float
    minutes: float
    tests: int
    problem: str


def found() -> list[str]:
    """The scenarios of the tree, the first one first."""
    names = sorted(path.parent.name for path in (ROOT / "molecule").glob("*/molecule.yml"))
    return sorted(names, key=lambda name: name != FIRST)


def count_tests(report: Path) -> int:
    """Tests of a JUnit report that ran to an end; a skipped one proves nothing."""
    if not report.exists():
        return 0
    suites = ET.parse(report).getroot().iter("testsuite")  # noqa: S314 - pytest wrote it a moment ago
    return sum(int(suite.get("tests", 0)) - int(suite.get("skipped", 0)) for suite in suites)


def judge(status: int, tests: int, minutes: float, budget_min: float) -> str:
    """What is wrong with a run, in words; empty where nothing is."""
    if status != 0:
        return f"failed with {status}"
    if tests == 0:
        return "no test ran"
    if minutes > budget_min:
        return f"over its budget of {budget_min:.0f} min"
    return ""


def run(name: str, title: str, *, mitogen: bool) -> Run:
    """Run one scenario with its output on this terminal."""
    evidence = ROOT / "artifacts" / name
    shutil.rmtree(evidence, ignore_errors=True)  # of an earlier run: it must not speak for this one
    environment = {key: value for key, value in os.environ.items() if mitogen or key not in MITOGEN}
    print(f"==> Scenario {title} ...", flush=True)
    started_s = time.monotonic()
    status = subprocess.run(["molecule", "test", "-s", name], cwd=ROOT, env=environment, check=False).returncode
    minutes = (time.monotonic() - started_s) / 60
    tests = count_tests(evidence / "verify.xml")
    budget_min = BUDGETS_MIN.get(name, BUDGET_MIN)
    return Run(title, budget_min, minutes, tests, judge(status, tests, minutes, budget_min))


def table(runs: list[Run]) -> str:
    """Minutes, tests and verdict of each run, and a closing line."""
    lines = [f"{'scenario':28} {'minutes':>7} {'budget':>6} {'tests':>5}"]
    lines += [
        f"{run.title:28} {run.minutes:7.1f} {run.budget_min:6.0f} {run.tests:5}  {run.problem or 'passed'}"
        for run in runs
    ]
    failed = sum(bool(run.problem) for run in runs)
    lines += [f"{'in all':28} {sum(run.minutes for run in runs):7.1f}", ""]
    lines += [f"scenarios: {len(runs) - failed} passed, {failed} failed"]
    return "\n".join(lines)


def run_all(names: list[str], *, plain: bool) -> int:
    """Run these scenarios; with `plain` the first one a second time without Mitogen. Returns the exit status."""
    runs: list[Run] = []
    for name in names:
        runs.append(run(name, name, mitogen=True))
        if runs[-1].problem.startswith("failed") and name == FIRST:
            print("The first scenario failed: the others would start from what it did not make.", flush=True)
            break
        if plain and name == FIRST:
            runs.append(run(name, f"{name}, without Mitogen", mitogen=False))
    print(table(runs), flush=True)
    return int(any(run.problem for run in runs))
