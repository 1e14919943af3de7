"""Bad input and unfit hosts are refused, in words that help, and nothing changes. cases.yml is the table."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import yaml

from playbook_runs import ROOT, environment, last_words

NAME = os.environ.get("MOLECULE_SCENARIO_NAME", "refusals")
INVENTORY = ROOT / ".cache" / "sandbox" / NAME
CASES: list[dict[str, Any]] = yaml.safe_load(Path(__file__).with_name("cases.yml").read_text())
WORDS = ("found", "expected", "type")
KEYS = {
    "name",
    "vars",
    "without",
    "models",
    "given",
    "undo",
    "tz",
    "check",
    "changed",
    "because",
    "tags",
    "turn",
    *WORDS,
}
# One of them is the row that mostly waits.
AT_ONCE = 3
LIMIT_S = 180
# What ComfyUI itself writes while it runs is not the run's doing, and nothing runs from the folder of the image build.
OWN = r"/srv/comfyui/(cache|input|output|user)/|/var/lib/comfyui/image/"
# Words of Ansible, Jinja or Python that would mean that somebody met an error instead of a refusal.
INTERNAL = (
    r"Traceback|Unexpected|undefined|has no attribute|Error while|error occurred|<class|unable to convert|KeyError"
)


@dataclass(frozen=True)
class Outcome:
    """How one run ended, and what it left."""

    status: int
    output: str
    service_before: str
    service_after: str
    written: list[str]

    @cached_property
    def message(self) -> str:
        """The last words of the run, as a person reads them: the message of the last task that failed."""
        return last_words(self.output)

    @cached_property
    def recap(self) -> dict[str, int]:
        """The counts of the recap."""
        line = re.search(rf"^{re.escape(NAME)} +: (ok=.*)$", self.output, re.MULTILINE)
        return {key: int(count) for key, count in re.findall(r"(\w+)=(\d+)", line[1])} if line else {}


class Sandbox:
    """The host under test and the runs against it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        variables = yaml.safe_load((INVENTORY / "hosts.yml").read_text())["dgx"]["hosts"][NAME]
        site = yaml.safe_load((ROOT / "inventory/group_vars/all/model_catalogue.yml").read_text()) | variables
        self.catalogue: dict[str, Any] = site["comfyui_model_catalogue"]
        self.container: str = variables["ansible_host"]
        self.pool = ThreadPoolExecutor(AT_ONCE)
        self.turns = {case["turn"]: threading.Lock() for case in CASES if "turn" in case}
        self.running: dict[str, Future[Outcome]] = {}
        self.service()  # a host that does not serve would fail every row
        self.files_before = self.files()

    def begin(self, names: set[str]) -> None:
        """Start the rows that leave the host alone, so many at once."""
        for case in CASES:
            if case["name"] in names and "given" not in case:
                self.running[case["name"]] = self.pool.submit(self.run, case)

    def outcome(self, case: dict[str, Any]) -> Outcome:
        """How this row's run ended. A row that needs a host of its own waits until no other runs."""
        if "given" not in case:
            return self.running[case["name"]].result()
        for future in self.running.values():
            future.exception()
        try:
            self.shell(case["given"])
            return self.run(case)
        finally:
            self.shell(case["undo"])

    def shell(self, script: str) -> str:
        """Run a script on the host; it must succeed."""
        command = ["docker", "exec", self.container, "bash", "-euo", "pipefail", "-c", script]
        answer = subprocess.run(command, capture_output=True, text=True, check=False, timeout=180)
        assert answer.returncode == 0, f"{script}: {answer.stdout}{answer.stderr}"
        return answer.stdout

    def variables(self, case: dict[str, Any]) -> dict[str, Any]:
        """What is typed after -e."""
        typed = {"evidence_dir": str(self.folder / case["name"]), **case.get("vars", {})}
        if "models" in case:
            first = next(iter(self.catalogue))
            entries = {name: {**self.catalogue[first], **entry} for name, entry in case["models"].items()}
            typed["comfyui_model_catalogue"] = self.catalogue | entries
            typed["comfyui_models"] = list(dict.fromkeys([first, *entries]))
        return typed

    def service(self) -> str:
        """The container that serves, since when, and that it answers."""
        return self.shell(
            "readlink /etc/comfyui/current; "
            "docker container inspect --format '{{.Id}} {{.State.StartedAt}} {{.RestartCount}}' comfyui; "
            "curl --silent --show-error --fail --max-time 20 --retry 2 http://127.0.0.1:8188/system_stats "
            "| head --bytes 12"
        )

    def run(self, case: dict[str, Any]) -> Outcome:
        """One run of site.yml."""
        folder = self.folder / case["name"]
        folder.mkdir()
        (folder / "typed.yml").write_text(yaml.safe_dump(self.variables(case)))
        inventory = lacking(case["without"], folder / "inventory") if "without" in case else INVENTORY
        command = ["ansible-playbook", "--inventory", str(inventory), "--extra-vars", f"@{folder / 'typed.yml'}"]
        command += ["--check"] if case.get("check") else []
        command += ["--tags", case["tags"]] if "tags" in case else []
        with self.turns.get(case.get("turn", ""), threading.Lock()):
            mark = f"/run/refusals-{case['name']}"
            service_before = self.service()
            self.shell(f"touch {mark}")
            done = subprocess.run(
                [*command, str(ROOT / "site.yml")],
                cwd=ROOT,
                env=environment(TZ=case.get("tz", "UTC")),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=LIMIT_S,
                check=False,
            )
            (folder / "output.txt").write_text(done.stdout)
            written = self.shell(
                f"find /etc /usr /srv /var/lib/dpkg/status -xdev -type f,l -cnewer {mark} -not -name '*.part*' "
                "-not -name '*.pyc'"
            )
            return Outcome(
                done.returncode,
                done.stdout,
                service_before,
                self.service(),
                [path for path in written.splitlines() if not re.match(OWN, path)],
            )

    def files(self) -> list[str]:
        """Every file that belongs to the system, with mode and checksum."""
        lines = self.shell((ROOT / ".config/molecule/file_state.sh").read_text()).splitlines()
        return [line for line in lines if not re.search(OWN, line)]


def lacking(name: str, folder: Path) -> Path:
    """A copy of the inventory without one of its variables."""
    shutil.copytree(INVENTORY, folder)
    (path,) = [path for path in folder.rglob("*.yml") if name in (yaml.safe_load(path.read_text()) or {})]
    path.write_text(
        yaml.safe_dump({key: value for key, value in yaml.safe_load(path.read_text()).items() if key != name})
    )
    return folder


@pytest.fixture(scope="module")
def sandbox(request: pytest.FixtureRequest, evidence: Path) -> Iterator[Sandbox]:
    """The host, described before the first row; the rows that were chosen are on their way."""
    folder = evidence / "rows"
    shutil.rmtree(folder, ignore_errors=True)  # of an earlier run
    folder.mkdir()
    sandbox = Sandbox(folder)
    calls = [item.callspec.params for item in request.session.items if hasattr(item, "callspec")]
    sandbox.begin({params["case"]["name"] for params in calls if "case" in params})
    yield sandbox
    sandbox.pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_refused(case: dict[str, Any], sandbox: Sandbox) -> None:
    outcome = sandbox.outcome(case)
    told = f"{outcome.message or outcome.output[-3000:]}\n{outcome.recap}"
    assert outcome.status != 0, f"not refused: {outcome.output[-3000:]}"
    for part in WORDS:
        assert re.search(case[part], outcome.message), f"{part}: no {case[part]!r} in: {told}"
    assert not re.search(INTERNAL, outcome.message), told
    assert "Traceback" not in outcome.output, outcome.output
    assert outcome.recap["failed"] == 1, told
    assert outcome.recap["unreachable"] == 0, told
    assert outcome.recap["changed"] <= case.get("changed", 0), f"{told}\n{outcome.output}"
    assert outcome.written == [], told
    assert outcome.service_after == outcome.service_before, told


# The last one: whatever the rows planted is gone again, and nothing that is not looked at after each has changed.
def test_the_host_is_as_it_was(sandbox: Sandbox) -> None:
    for future in sandbox.running.values():
        future.exception()
    assert sorted(set(sandbox.files()) ^ set(sandbox.files_before)) == []


def test_the_table_is_complete() -> None:
    assert len({case["name"] for case in CASES}) == len(CASES)
    for case in CASES:
        assert set(case) <= KEYS, case["name"]
        assert set(WORDS) <= set(case), case["name"]
        assert ("given" in case) == ("undo" in case), case["name"]
        assert ("changed" in case) == ("because" in case), case["name"]
