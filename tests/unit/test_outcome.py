"""The last lines of a run: what they say of a host that runs, of one that failed, and of one out of reach."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from playbook_runs import ROOT, environment

outcome = importlib.import_module("callback.outcome")
TOLD = {"version": "0.28.1", "url": "http://127.0.0.1:8188", "release": "0123456789ab", "image": "dgx-comfyui:x"}


@pytest.mark.parametrize(("seconds", "words"), [(0.4, "0 s"), (59.4, "59 s"), (59.6, "1 min 0 s"), (301, "5 min 1 s")])
def test_a_duration_is_spoken(seconds: float, words: str) -> None:
    assert outcome.spoken(seconds) == words


def test_the_page_shows_what_a_run_says() -> None:
    summary = {"ok": 98, "changed": 4, "failures": 0, "unreachable": 0}
    told = {**TOLD, "release": "767301419b67", "image": "dgx-comfyui:0.28.1-9b866601efcc"}
    host = "spark-1.example.com"
    lines = outcome.verdict(summary, told, 29, Path("artifacts") / host, outcome.command(host, [], []))
    assert "\n".join(lines) in (ROOT / "docs/running.md").read_text()


def run(folder: Path, *tasks: dict[str, Any], name: str = "site.yml", options: tuple[str, ...] = ()) -> str:
    """What a run of these tasks says after its recap, on a host that is here and on one that is out of reach."""
    local = {"ansible_python_interpreter": "{{ ansible_playbook_python }}"}
    (folder / name).write_text(
        yaml.safe_dump([{"hosts": "all", "gather_facts": False, "vars": local, "tasks": [{"ping": {}}, *tasks]}])
    )
    (folder / "hosts.yml").write_text(
        yaml.safe_dump(
            {
                "all": {
                    "hosts": {
                        "here": {"ansible_connection": "local"},
                        "gone": {"ansible_connection": "ssh", "ansible_host": "127.0.0.1", "ansible_port": 1},
                    }
                }
            }
        )
    )
    done = subprocess.run(
        [sys.executable, "-m", "ansible", "playbook", "-i", "hosts.yml", name, *options],
        cwd=folder,
        env=environment(DRIFT_FOLDER=str(folder / "artifacts"), OUTCOME_FOLDER=str(folder / "artifacts")),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in {0, 2, 4}, done.stderr
    return " ".join(done.stdout.rpartition("PLAY RECAP")[2].replace("*", "").split())


def tell(**more: Any) -> dict[str, Any]:
    """The task by which the service says what runs."""
    return {"ansible.builtin.set_stats": {"per_host": True, "data": {"comfyui": TOLD}}, **more}


def test_a_run_ends_with_address_versions_changes_time_and_evidence(tmp_path: Path) -> None:
    said = run(tmp_path, {"command": "true"}, tell())
    here = said.partition("OUTCOME [here]")[2]
    for words in (
        *TOLD.values(),
        "1 of 3 tasks changed something, in",
        " s.",
        "artifacts/here/drift.json",
        "ansible-playbook --inventory hosts.yml playbooks/verify.yml --limit here",
    ):
        assert words in here
    assert "OUTCOME [gone] Out of reach." in said


def test_where_the_verdict_was_made_its_page_is_named(tmp_path: Path) -> None:
    page = tmp_path / "artifacts/here/verify.html"
    made = {"command": f"sh -c 'mkdir --parents {page.parent}; touch {page}'"}
    assert "The whole verdict: artifacts/here/verify.html" in run(tmp_path, made, tell())


def test_the_inventory_of_the_configuration_is_not_typed_again() -> None:
    assert outcome.command("a", ["/x/hosts.yml"], ["/x/hosts.yml"]) == "ansible-playbook playbooks/verify.yml --limit a"


def test_a_failure_is_none_of_success(tmp_path: Path) -> None:
    kept = tmp_path / "artifacts/here/failure"
    fails = {"command": f"sh -c 'mkdir --parents {kept}; exit 1'"}
    here = run(tmp_path, tell(), fails).partition("OUTCOME [here]")[2]
    assert here.startswith(" Failed. Nothing was changed, in")
    assert "what the host said is in artifacts/here/failure/." in here
    assert TOLD["url"] not in here


def test_the_evidence_of_an_earlier_failure_is_not_named(tmp_path: Path) -> None:
    kept = tmp_path / "artifacts/here/failure"
    kept.mkdir(parents=True)
    os.utime(kept, (1, 1))
    here = run(tmp_path, tell(), {"command": "false"}).partition("OUTCOME [here]")[2]
    assert "The message above says what to type." in here
    assert "what the host said" not in here


def test_who_was_told_nothing_says_nothing(tmp_path: Path) -> None:
    assert "OUTCOME [here]" not in run(tmp_path)
    assert "OUTCOME" not in run(tmp_path, tell(), name="verify.yml")


def test_a_dry_run_that_fails_says_what_would_change(tmp_path: Path) -> None:
    touch = {"file": {"path": str(tmp_path / "file"), "state": "touch"}}
    here = run(tmp_path, touch, {"fail": {}}, options=("--check",)).partition("OUTCOME [here]")[2]
    assert here.startswith(" Failed. 1 of 2 tasks would change something, in")
