"""Run the Molecule scenarios, print the minutes of each, and hold them to their budgets."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree as ET

ROOT = Path(__file__).parents[2]
# The first provisions from nothing and leaves the snapshot that the others start from.
FIRST = "default"
BUDGET_MIN = 4.0
# Scenarios mostly wait, for an API or a start: two side by side take two thirds of the time of one after the other.
AT_ONCE = 2
# So much longer may one take beside another: it has one core of the two, and a borrowed machine may be half as fast.
SHARED = 3.0
LAST_LINES = 120
# What is allowed to take longer, in minutes on 2 cores.
BUDGETS_MIN = {
    FIRST: 12.0,
    "airgap": 8.0,
    "dgx_os": 6.0,
    "drift": 7.0,
    "engine": 8.0,
    "first_page": 9.0,
    "hardening": 7.0,
    "image": 5.0,
    "models": 5.0,
    "os_update": 7.0,
    "refusals": 8.0,
    "upgrade": 7.0,
}
# drift with each of its rounds, of which three quick ones are the rest of the time.
ALL_ROUNDS_MIN = 40.0
# What only `make test-full` runs, each with why.
FULL_ONLY = {
    "airgap": "its folder holds 0.6 GB of packages, which are fetched and copied",
    "first_page": "it sets up and provisions once more from nothing, in a fresh clone and without Mitogen",
    "os_update": "it runs site.yml 19 times, and the other scenarios need the 45 minutes that a change may take",
}


@dataclass(frozen=True)
class Run:
    """One scenario, and how it went."""

    name: str
    budget_min: float
    minutes: float
    tests: int
    problem: str
    failures: tuple[str, ...] = ()


def found(*, full: bool = True) -> list[str]:
    """The scenarios of the tree, the first one first; without `full` those that gate a change."""
    names = sorted(path.parent.name for path in (ROOT / "molecule").glob("*/molecule.yml"))
    return sorted((name for name in names if full or name not in FULL_ONLY), key=lambda name: name != FIRST)


def count_tests(report: Path) -> int:
    """Tests of a JUnit report that ran to an end; a skipped one proves nothing."""
    if not report.exists():
        return 0
    suites = ET.parse(report).getroot().iter("testsuite")  # noqa: S314 - pytest wrote it a moment ago
    return sum(int(suite.get("tests", 0)) - int(suite.get("skipped", 0)) for suite in suites)


def failures(report: Path) -> tuple[str, ...]:
    """The tests of a JUnit report that failed, each with the first line of why."""
    if not report.exists():
        return ()
    cases = ET.parse(report).getroot().iter("testcase")  # noqa: S314 - pytest wrote it a moment ago
    return tuple(
        f"{case.get('name')}: {(why.get('message') or why.text or '').strip().partition(chr(10))[0]}"
        for case in cases
        for why in case
        if why.tag in {"failure", "error"}
    )


def judge(status: int, tests: int, minutes: float, budget_min: float) -> str:
    """What is wrong with a run, in words; empty where nothing is."""
    if status != 0:
        return f"failed with {status}"
    if tests == 0:
        return "no test ran"
    if minutes > budget_min:
        return f"over its budget of {budget_min:.0f} min"
    return ""


def run(name: str, *, shared: bool = False) -> Run:
    """Run one scenario: with its output on this terminal, or beside another with its output in artifacts/NAME.log."""
    evidence = ROOT / "artifacts" / name
    shutil.rmtree(evidence, ignore_errors=True)  # of an earlier run: it must not speak for this one
    log = evidence.with_suffix(".log")
    log.parent.mkdir(exist_ok=True)
    print(f"==> Scenario {name} ...{f' (see {log.relative_to(ROOT)})' if shared else ''}", flush=True)
    started_s = time.monotonic()
    with log.open("w") if shared else nullcontext() as output:
        command = ["molecule", "test", "-s", name]
        status = subprocess.run(command, cwd=ROOT, stdout=output, stderr=output, check=False).returncode
    minutes = (time.monotonic() - started_s) / 60
    report = evidence / "verify.xml"
    tests = count_tests(report)
    all_rounds = name == "drift" and os.environ.get("DRIFT_ROUNDS") == "all"
    budget_min = (ALL_ROUNDS_MIN if all_rounds else BUDGETS_MIN.get(name, BUDGET_MIN)) * (SHARED if shared else 1)
    done = Run(name, budget_min, minutes, tests, judge(status, tests, minutes, budget_min), failures(report))
    if shared:
        words = log.read_text(errors="replace").splitlines()[-LAST_LINES:] if done.problem else []
        print("\n".join([*words, f"    {name}: {done.problem or 'passed'} after {minutes:.1f} min"]), flush=True)
    return done


def table(runs: list[Run], minutes: float) -> str:
    """Minutes, tests and verdict of each run, the minutes of all together, what failed, and a closing line."""
    lines = [f"{'scenario':28} {'minutes':>7} {'budget':>6} {'tests':>5}"]
    lines += [
        f"{run.name:28} {run.minutes:7.1f} {run.budget_min:6.0f} {run.tests:5}  {run.problem or 'passed'}"
        for run in runs
    ]
    failed = sum(bool(run.problem) for run in runs)
    lines += [f"{'together':28} {minutes:7.1f}", ""]
    lines += [f"{run.name}: {failure}" for run in runs for failure in run.failures]
    lines += [f"scenarios: {len(runs) - failed} passed, {failed} failed"]
    return "\n".join(lines)


def run_all(names: list[str]) -> int:
    """Run these scenarios; returns the exit status.

    The first one has the machine for itself, and leaves the snapshot; of the others two run side by side.
    """
    started_s = time.monotonic()
    runs: list[Run] = []
    if FIRST in names:
        runs.append(run(FIRST))
    # The longest first, so that none is left alone at the end.
    others = sorted(set(names) - {FIRST}, key=lambda name: (-BUDGETS_MIN.get(name, BUDGET_MIN), name))
    if runs and runs[0].problem.startswith("failed"):
        print("The first scenario failed: the others would start from what it did not make.", flush=True)
    else:
        with ThreadPoolExecutor(AT_ONCE) as pool:
            runs += pool.map(lambda name: run(name, shared=len(others) > 1), others)
    print(table(runs, (time.monotonic() - started_s) / 60), flush=True)
    return int(any(run.problem for run in runs))
