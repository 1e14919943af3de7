"""Bad input on a host without an engine: refused in words that help, and no file of the host is another one."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from playbook_runs import ROOT, environment, last_words

NAME = os.environ.get("MOLECULE_SCENARIO_NAME", "engine")
INVENTORY = ROOT / ".cache" / "sandbox" / NAME
CASES: list[dict[str, Any]] = yaml.safe_load(Path(__file__).with_name("cases.yml").read_text())
INTERNAL = r"Traceback|undefined|has no attribute|Error while|error occurred"


def shell(script: str) -> str:
    """Run a script on the host; it must succeed."""
    variables = yaml.safe_load((INVENTORY / "hosts.yml").read_text())["dgx"]["hosts"][NAME]
    command = ["docker", "exec", variables["ansible_host"], "bash", "-euo", "pipefail", "-c", script]
    answer = subprocess.run(command, capture_output=True, text=True, check=False, timeout=180)
    assert answer.returncode == 0, f"{script}: {answer.stdout}{answer.stderr}"
    return answer.stdout


def files() -> list[str]:
    """Every file that belongs to the system, with mode and checksum."""
    return shell((ROOT / ".config/molecule/file_state.sh").read_text()).splitlines()


RUNS = [pytest.param(case, False, id=case["name"]) for case in CASES]
RUNS += [pytest.param(case, True, id=f"{case['name']}-dry") for case in CASES if case.get("dry")]


@pytest.mark.parametrize(("case", "check"), RUNS)
def test_refused(case: dict[str, Any], check: bool, tmp_path: Path) -> None:
    typed = tmp_path / "typed.yml"
    given = {"comfyui_docker_source": "docker-ce", "evidence_dir": str(tmp_path), **case.get("vars", {})}
    typed.write_text(yaml.safe_dump(given))
    command = ["ansible-playbook", "--inventory", str(INVENTORY)]
    command += ["--tags", case["tags"]] if "tags" in case else []
    command += ["--extra-vars", f"@{typed}", *(["--check"] if check else [])]
    try:
        shell(case.get("given", "true"))
        before = files()
        done = subprocess.run(
            [*command, str(ROOT / "site.yml")],
            cwd=ROOT,
            env=environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=180,
        )
        after = files()
    finally:
        shell(case.get("undo", "true"))
    message = last_words(done.stdout)
    assert message, done.stdout[-3000:] + done.stderr[-1000:]
    for part in ("found", "expected", "type"):
        assert re.search(case[part], message), f"{part}: no {case[part]!r} in: {message}"
    assert not re.search(INTERNAL, message), message
    assert re.search(r"changed=0 .*failed=1", done.stdout), done.stdout[-600:]
    assert sorted(set(after) ^ set(before)) == []
