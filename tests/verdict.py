"""A pytest plugin that turns a run of the Testinfra suite into a verdict: verify.json and verify.html.

Three verdicts: `verified`, `broken` (a promise does not hold, such as that the server answers), and `could not tell`
(the control node does not reach the host, or no test ran). `python verdict.py FOLDER HOST` clears an earlier run's
evidence and says "could not tell", so that a run which never comes to its tests leaves no old verdict behind.
"""

from __future__ import annotations

import datetime
import json
import os
import re
import sys
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pytest
from testinfra.host import get_host

import verdict_page

VERIFIED, BROKEN, COULD_NOT_TELL = "verified", "broken", "could not tell"
STATUS = {VERIFIED: 0, BROKEN: 1, COULD_NOT_TELL: 6}  # of pytest's own, 2 to 5 mean that it could not do its work
DOCUMENT, PAGE = "verify.json", "verify.html"
UNREACHED = (
    "The control node does not reach the host. The tests know only the last --inventory of the command line: what "
    "--user, --private-key, --ask-become-pass, --ask-vault-pass or --extra-vars say of the connection belongs there "
    "(ansible_user, ansible_ssh_private_key_file, ansible_become_password) or in ansible.cfg."
)
OLD = (DOCUMENT, PAGE, "verify.xml", "site.json", "*.png")

LEVELS = {
    0: "Host: what was deployed is there, and safe",
    1: "API: every endpoint answers in its shape",
    2: "Render: an image without a model",
    3: "GPU: it reaches the container and computes",
    4: "Generation: every template, within its limits",
}

# The acceptance criteria of the first installation on a DGX Spark, by the number in a test's name.
CRITERIA = {
    1: "ComfyUI installed and starts successfully",
    2: "SDXL model downloads and loads",
    3: "Workflow templates generate 1024x1024 pixel art images",
    4: "API endpoints functional (/prompt, /queue, /history)",
    5: "GPU visible to ComfyUI (nvidia-smi shows usage)",
    6: "Docker image updated with ComfyUI dependencies",
    7: "SDXL inference completes in 10 seconds at most (1024x1024, 20 steps)",
    8: "GPU utilization of at least 50 % during generation",
    9: "Memory usage of 30 GB at most",
    10: "Generated images are valid PNG files",
    11: "Images match requested dimensions (1024x1024)",
    12: "Integration tests passing (at least 5 tests)",
    13: "Documentation includes troubleshooting",
}
CRITERION = re.compile(r"test_criterion_(\d\d)_")

# Outcomes, the worst first.
FAILED, SKIPPED, PASSED = "failed", "skipped", "passed"


@dataclass
class Test:
    """One test of the run."""

    name: str
    file: str
    promise: str
    level: int
    criterion: int | None
    outcome: str = ""
    reason: str = ""
    seconds: float = 0.0


@dataclass
class Figure:
    """A measurement and the limit that it is held to; no limit where it is only reported."""

    name: str
    value: float
    unit: str
    at_most: float | None = None
    at_least: float | None = None

    @property
    def held(self) -> bool:
        """Whether it is within its limits."""
        low, high = self.at_least, self.at_most
        return (high is None or self.value <= high) and (low is None or self.value >= low)


def now() -> str:
    """The time, as ISO 8601 in UTC."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


@dataclass(eq=False)  # a plugin is known by its identity
class Evidence:
    """What a run of the suite saw."""

    folder: Path
    host: str
    started: str = field(default_factory=now)
    tests: dict[str, Test] = field(default_factory=dict)
    figures: list[Figure] = field(default_factory=list)
    images: list[dict[str, Any]] = field(default_factory=list)
    facts: dict[str, dict[str, str]] = field(default_factory=dict)
    samples: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def figure(self, name: str, value: float, unit: str, **limits: float) -> None:
        """Keep a measurement; outside of `at_most` or `at_least` the test fails."""
        kept = Figure(name, round(value, 2), unit, **limits)
        self.figures.append(kept)
        if not kept.held:
            words = [f"{key.replace('_', ' ')} {limit:g}" for key, limit in limits.items()]
            pytest.fail(f"{name}: {kept.value:g} {unit}, expected {', '.join(words)} {unit}", pytrace=False)

    def image(self, name: str, data: bytes, title: str) -> None:
        """Keep an image that came back."""
        (self.folder / name).write_bytes(data)
        self.images.append({"file": name, "title": title})

    def fact(self, group: str, name: str, value: Any) -> None:
        """Keep a version, a digest or another property of what was deployed."""
        self.facts.setdefault(group, {})[name] = str(value)

    def count(self, outcome: str) -> int:
        """How many tests ended like this."""
        return sum(test.outcome == outcome for test in self.tests.values())

    def document(self, verdict: str, reason: str = "") -> dict[str, Any]:
        """The content of verify.json."""
        tests = list(self.tests.values())
        skips = Counter(test.reason for test in tests if test.outcome == SKIPPED)
        return {
            "host": self.host,
            "verdict": verdict,
            "reason": reason,
            "started": self.started,
            "ended": now(),
            "counts": {outcome: self.count(outcome) for outcome in (PASSED, FAILED, SKIPPED)},
            "skipped": dict(skips.most_common()),
            "levels": [
                {"level": level, "title": title, **summary([test for test in tests if test.level == level])}
                for level, title in LEVELS.items()
            ],
            "criteria": [
                {"number": number, "title": title, **summary([test for test in tests if test.criterion == number])}
                for number, title in CRITERIA.items()
            ],
            "figures": [{**asdict(figure), "held": figure.held} for figure in self.figures],
            "images": self.images,
            "facts": self.facts,
            "samples": self.samples,
            "tests": [asdict(test) for test in tests],
        }

    def write(self, verdict: str, reason: str = "") -> None:
        """Leave verify.json and the page beside it."""
        document = self.document(verdict, reason)
        (self.folder / DOCUMENT).write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n")
        (self.folder / PAGE).write_text(verdict_page.render(document, self.folder))


def summary(tests: list[Test]) -> dict[str, Any]:
    """The outcome of several tests: the worst that any had, and skipped where none ran."""
    outcomes = Counter(test.outcome for test in tests)
    worst = next((outcome for outcome in (FAILED, PASSED, SKIPPED) if outcomes[outcome]), "not run")
    reasons = {test.reason for test in tests if test.outcome == SKIPPED}
    # Passed as far as it ran is not the same as passed.
    if worst == PASSED and "no GPU" in reasons:
        worst = "partly"
    return {"outcome": worst, **{outcome: outcomes[outcome] for outcome in (PASSED, FAILED, SKIPPED)}}


def plain_name(name: str, host: str) -> str:
    """A test's name with its parameters, but without the host among them: the run has only one."""
    return name.replace(f"[ansible://{host}]", "").replace(f"ansible://{host}-", "")


def judge(status: int, passed: int, failed: int, *, reachable: bool) -> tuple[str, str]:
    """Verdict and reason for it, from pytest's status, the outcomes, and whether the host can be reached at the end."""
    if not reachable:
        return COULD_NOT_TELL, UNREACHED
    if status not in (0, 1) or not passed + failed:
        return COULD_NOT_TELL, f"The tests did not run to their end (pytest's status {status})."
    return (BROKEN, "") if failed or status else (VERIFIED, "")


def describe(report: Any) -> str:
    """The words of a failure or a skip, without the traceback around them."""
    if report.skipped and isinstance(report.longrepr, tuple):
        return str(report.longrepr[2]).removeprefix("Skipped: ")
    crash = getattr(report.longrepr, "reprcrash", None)
    words = str(crash.message if crash else report.longrepr).removeprefix("AssertionError: ").removeprefix("Failed: ")
    # Behind the message of an assertion pytest says how it came to it.
    return words.split("\nassert ", maxsplit=1)[0].strip()


class Recorder:
    """Hears what pytest does, and writes the verdict at its end."""

    def __init__(self, evidence: Evidence) -> None:
        self.evidence = evidence

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Note every test before the first one runs, and put those last that speak of the others."""
        items.sort(key=lambda item: item.get_closest_marker("last") is not None)
        for item in items:
            marker = item.get_closest_marker("level")
            module = getattr(item, "module", None)
            match = CRITERION.match(item.name)
            self.evidence.tests[item.nodeid] = Test(
                name=plain_name(item.name, self.evidence.host),
                file=item.path.name,
                promise=(module.__doc__ or item.path.stem).strip().split("\n")[0],
                level=marker.args[0] if marker else 0,
                criterion=int(match[1]) if match else None,
            )

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note how a test ended; what its set-up says counts for it."""
        test = self.evidence.tests[report.nodeid]
        test.seconds = round(test.seconds + report.duration, 2)
        if report.failed:
            test.outcome, test.reason = FAILED, describe(report)
        elif report.skipped:
            test.outcome, test.reason = SKIPPED, describe(report)
        elif report.when == "call":
            test.outcome = PASSED

    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        """Write the verdict; pytest's exit status says it too."""
        failed = self.evidence.count(FAILED)
        reachable = not failed or reaches(session.config)
        verdict, reason = judge(int(exitstatus), self.evidence.count(PASSED), failed, reachable=reachable)
        self.evidence.write(verdict, reason)
        session.exitstatus = STATUS[verdict]


def reaches(config: pytest.Config) -> bool:
    """Whether a module runs on the host now: a failure says nothing of a host that is out of reach.

    Asked in Ansible's own way, without a strategy of the environment: as little as possible is to be in between.
    """
    os.environ.pop("ANSIBLE_STRATEGY", None)
    (name,) = config.getoption("hosts").split(",")
    host = get_host(f"{name}?force_ansible=True", ansible_inventory=config.getoption("ansible_inventory"))
    try:
        answer = host.backend.run_ansible("ping", check=False)
    except (AssertionError, RuntimeError):
        return False
    return bool(answer.get("ping") == "pong")


def pytest_configure(config: pytest.Config) -> None:
    """Begin to record; playbooks/verify.yml names folder and host in the environment."""
    config.addinivalue_line("markers", "level(number): which of the levels of verification a test belongs to")
    config.addinivalue_line("markers", "last: runs after the others, and speaks of them")
    evidence = Evidence(Path(os.environ["EVIDENCE_DIR"]), os.environ["EVIDENCE_HOST"])
    config.pluginmanager.register(evidence, "verdict-evidence")
    config.pluginmanager.register(Recorder(evidence), "verdict-recorder")


def begin(folder: Path, host: str) -> None:
    """Clear away the evidence of an earlier run, and say that nothing is known yet."""
    folder.mkdir(parents=True, exist_ok=True)
    for pattern in OLD:
        for path in folder.glob(pattern):
            path.unlink()
    reason = "The run did not come to its tests: the control node does not reach the host, or cannot read it."
    Evidence(folder, host).write(COULD_NOT_TELL, reason)


if __name__ == "__main__":
    begin(Path(sys.argv[1]), sys.argv[2])
