"""The rollout of playbooks/reprovision.yml: its batches, where it stops, and how it ends.

The playbook is the real one; what it repairs and judges is replaced by notes of the hosts that came there.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from callback import upshot

from playbook_runs import ROOT, environment, last_words

PLAYBOOK = ROOT / "playbooks/reprovision.yml"
HOSTS = ("h1", "h2", "h3", "h4")
DOWN = {"ansible_connection": "ssh", "ansible_host": "127.0.0.1", "ansible_port": 9}
# In place of the real action where every host is there: it runs two modules on each, the dearest part of these runs.
THERE = """\
from ansible.plugins.action import ActionBase
class ActionModule(ActionBase):
    _supports_check_mode = True
    def run(self, tmp=None, task_vars=None):
        return {"changed": False}
"""
NOTE = re.compile(r"came to (\w+): (\w+)")


def note(name: str) -> dict[str, Any]:
    """A task that says which host came here."""
    return {"ansible.builtin.debug": {"msg": f"came to {name}: {{{{ inventory_hostname }}}}"}}


class Fleet:
    """Hosts that are all this machine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.notes: list[tuple[str, str]] = []
        (folder / "playbooks/tasks").mkdir(parents=True)
        (folder / "action").mkdir()
        (folder / "action/await_host.py").write_text(THERE)
        shutil.copy(PLAYBOOK, folder / "playbooks")
        shutil.copy(ROOT / "playbooks/tasks/before_reboot.yml", folder / "playbooks/tasks")
        fail = {"ansible.builtin.fail": {"msg": "it broke"}, "when": "inventory_hostname in broken | default([])"}
        lost = {"could_not_tell": {"msg": "it went away"}, "when": "inventory_hostname in lost | default([])"}
        drift = {
            "drifted": {"resource": "file x", "expected": "there", "found": "absent"},
            "when": "inventory_hostname in drifted | default([])",
        }
        repair = [note("repair"), drift, lost, fail, note("repaired")]
        bad = {"ansible.builtin.fail": {"msg": "no verdict"}, "when": "inventory_hostname in unproved | default([])"}
        # As the roles' refusals are.
        self.write("provision", [{**task, "tags": ["always"]} for task in repair])
        self.write("verify", [note("verify"), bad])

    def write(self, name: str, tasks: list[dict[str, Any]]) -> None:
        (self.folder / f"playbooks/tasks/{name}.yml").write_text(yaml.safe_dump(tasks))

    def run(
        self, *options: str, hosts: dict[str, Any] | None = None, strategy: str = "linear", **given: Any
    ) -> subprocess.CompletedProcess[str]:
        local = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
        fleet = {name: {**local, **(hosts or {}).get(name, {})} for name in HOSTS}
        (self.folder / "hosts.yml").write_text(yaml.safe_dump({"dgx": {"hosts": fleet}}))
        typed = json.dumps({"reprovision_wait_s": 1, "reprovision_serial": [1, 2], **given})
        command = ["ansible-playbook", "--inventory", str(self.folder / "hosts.yml"), "--extra-vars", typed, *options]
        actions = [str(self.folder / "action")] * (hosts is None) + [str(ROOT / "plugins/action")]
        done = subprocess.run(
            [*command, str(self.folder / "playbooks/reprovision.yml")],
            cwd=self.folder,
            env=environment(
                ANSIBLE_ACTION_PLUGINS=":".join(actions),
                ANSIBLE_STRATEGY=strategy,
                DRIFT_FOLDER=str(self.folder / "artifacts"),
                TASK_BUDGET_FILE=str(self.folder / "budget"),
            ),
            capture_output=True,
            text=True,
            check=False,
        )
        self.notes = NOTE.findall(done.stdout)
        return done

    def noted(self, name: str) -> list[str]:
        """The hosts that came there, in order."""
        return [host for what, host in self.notes if what == name]


@pytest.fixture(name="fleet")
def make_fleet(tmp_path: Path) -> Fleet:
    return Fleet(tmp_path)


@pytest.mark.parametrize("strategy", ["linear", "mitogen_unpinned"])
def test_one_goes_first_then_some_at_a_time_each_batch_with_its_verdict(fleet: Fleet, strategy: str) -> None:
    done = fleet.run(drifted=["h1"], hosts={}, strategy=strategy)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((fleet.folder / "artifacts/h1/drift.json").read_text())[0]["outcome"] == "repaired"
    lines = fleet.notes
    # Hosts of a batch run side by side.
    batches = [("h1",), ("h2", "h3"), ("h4",)]
    for what, batch in ((what, batch) for batch in batches for what in ("repair", "repaired", "verify")):
        now, lines = lines[: len(batch)], lines[len(batch) :]
        assert sorted(now) == [(what, host) for host in batch]
    assert lines == []
    assert "ROLLOUT" not in done.stdout


def test_after_a_failed_repair_its_batch_is_finished_and_no_other_begins(fleet: Fleet) -> None:
    done = fleet.run(broken=["h2"])
    assert done.returncode == 2, done.stdout + done.stderr
    assert sorted(fleet.noted("repair")) == ["h1", "h2", "h3"]
    assert sorted(fleet.noted("verify")) == ["h1", "h3"]
    said = " ".join(done.stdout.rpartition("ROLLOUT")[2].split())
    assert "Not touched: h4. The rollout stopped after h2;" in said
    assert "Mend that one, then type the same again." in said


def test_a_part_of_the_work_stops_as_all_of_it_does(fleet: Fleet) -> None:
    done = fleet.run("--tags", "comfyui_service", broken=["h2"])
    assert done.returncode == 2, done.stdout + done.stderr
    assert "h4" not in fleet.noted("repair")


@pytest.mark.parametrize("tag", ["verify", "comfyui-service"])
def test_a_tag_that_nothing_has_is_no_success(fleet: Fleet, tag: str) -> None:
    done = fleet.run("--tags", tag)
    assert done.returncode == 1, done.stdout + done.stderr
    said = " ".join(done.stdout.split())
    assert f"found --tags {tag}, expected before_reboot or the names of roles, and hosts in the group dgx" in said
    assert "type ansible-playbook playbooks/verify.yml" in said
    assert fleet.noted("repair") == []


def test_a_failed_verdict_of_the_first_leaves_all_the_others_alone(fleet: Fleet) -> None:
    done = fleet.run(unproved=["h1"])
    assert done.returncode == 2, done.stdout + done.stderr
    assert fleet.noted("repair") == ["h1"]
    assert "Not touched: h2, h3, h4. The rollout stopped after h1;" in done.stdout


def test_a_host_that_is_lost_on_the_way_stops_the_rollout_as_well(fleet: Fleet) -> None:
    done = fleet.run(lost=["h3"])
    assert done.returncode == 4, done.stdout + done.stderr
    said = " ".join(done.stdout.rpartition("ROLLOUT")[2].split())
    assert "h3 was lost before it had its verdict, and may be half repaired." in said
    assert "Not touched: h4. The rollout stopped after h3;" in said
    assert sorted(fleet.noted("verify")) == ["h1", "h2"]


def test_hosts_that_are_down_are_named_and_do_not_take_the_place_of_the_first(fleet: Fleet) -> None:
    done = fleet.run(hosts={"h1": DOWN, "h3": DOWN})
    assert done.returncode == 4, done.stdout + done.stderr
    said = " ".join(done.stdout.split())
    for name in ("h1", "h3"):
        assert f"{name} did not answer for 1 s, expected that it does" in said
        assert f"It was not touched. See its console; when it is up, type the same with --limit {name}" in said
        assert not (fleet.folder / f"artifacts/{name}/drift.json").exists()
    assert [fleet.noted(what) for what in ("repair", "verify")] == [["h2", "h4"]] * 2
    assert (fleet.folder / "artifacts/h2/drift.json").exists()


def test_a_host_that_boots_is_waited_for(fleet: Fleet) -> None:
    ssh = fleet.folder / "ssh"
    # Refuses twice, then runs the words after the host's name, as ssh does.
    ssh.write_text(
        f"#!/bin/bash\nif [ $(wc -l < {ssh}.tries) -lt 2 ]; then\n"
        f"  echo >> {ssh}.tries; echo 'Connection refused' >&2; exit 255\nfi\n"
        'while [ "$1" != h2 ]; do shift; done\nshift; exec sh -c "$*"\n'
    )
    ssh.chmod(0o755)
    Path(f"{ssh}.tries").touch()
    boots = {"ansible_connection": "ssh", "ansible_ssh_executable": str(ssh), "ansible_ssh_retries": 0}
    done = fleet.run("--limit", "h2", hosts={"h2": boots}, reprovision_wait_s=60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search("h2: no answer yet, waiting up to 60 s: .*Connection refused", done.stdout)
    assert fleet.noted("verify") == ["h2"]


@pytest.mark.parametrize(
    ("options", "given", "status"),
    [
        ([], {}, 0),
        ([], {"drifted": ["h4"]}, 3),
        ([], {"drifted": ["h2", "h4"], "broken": ["h2"]}, 2),
        ([], {"drifted": ["h2", "h4"], "lost": ["h2"]}, 4),
        (["--tags", "before_reboot"], {"drifted": ["h4"]}, 0),
    ],
    ids=["nothing", "drift", "failure", "lost", "before the reboot"],
)
def test_a_dry_run_has_a_status_of_its_own_for_drift(
    fleet: Fleet, options: list[str], given: dict[str, Any], status: int
) -> None:
    fleet.write("before_reboot", [note("looked")])
    done = fleet.run("--check", *options, **given)
    assert done.returncode == status, done.stdout + done.stderr
    assert fleet.noted("verify") == []
    if not options:  # a failure hides no other host
        assert sorted(fleet.noted("repair")) == list(HOSTS)
        assert ("file x" in done.stdout.partition("PLAY RECAP")[2]) == bool(given)
    assert json.loads((fleet.folder / "budget").read_text())["playbook"] == "reprovision.yml"


def test_no_callback_of_ours_comes_after_the_one_that_ends_the_run() -> None:
    assert max(path.stem for path in (ROOT / "plugins/callback").glob("*.py")) == "upshot"


def test_the_look_before_a_reboot_repairs_nothing(fleet: Fleet) -> None:
    fleet.write("before_reboot", [note("looked")])
    done = fleet.run("--tags", "before_reboot")
    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted(fleet.noted("looked")) == list(HOSTS)
    assert fleet.noted("repair") == []
    assert "DRIFT" not in done.stdout


def test_a_part_can_be_repaired_and_the_verdict_left_out(fleet: Fleet) -> None:
    tasks = yaml.safe_load((ROOT / "playbooks/tasks/provision.yml").read_text())
    tags = {tag for task in tasks for one in [task, *task.get("block", [])] for tag in one.get("tags", [])} - {"always"}
    plays = yaml.safe_load(PLAYBOOK.read_text())
    assert set(plays[1]["tags"]) == tags
    done = fleet.run("--tags", "comfyui_service", "--limit", "h1")
    assert (done.returncode, fleet.noted("repair"), fleet.noted("verify")) == (0, ["h1"], [])
    done = fleet.run("--tags", "comfyui_service,verify", "--limit", "h1")
    assert (done.returncode, fleet.noted("repair"), fleet.noted("verify")) == (0, ["h1"], ["h1"])
    done = fleet.run("--skip-tags", "verify", "--limit", "h1")
    assert (done.returncode, fleet.noted("repair"), fleet.noted("verify")) == (0, ["h1"], [])


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({"reprovision_serial": [1, "0", "few"], "reprovision_wait_s": "long"}, "long and 0 and few"),
        ({"reprovision_batch": 2}, "reprovision_batch"),
    ],
)
def test_inputs_that_cannot_be_meant_are_refused(fleet: Fleet, given: dict[str, Any], found: str) -> None:
    done = fleet.run(**given)
    assert done.returncode == 2, done.stdout + done.stderr
    assert last_words(done.stdout).startswith(f"Found {found}, expected reprovision_wait_s in seconds")
    assert fleet.noted("repair") == []


def test_a_batch_can_be_a_share(fleet: Fleet) -> None:
    done = fleet.run(reprovision_serial="50%", broken=["h1"])
    assert done.returncode == 2
    assert sorted(fleet.noted("repair")) == ["h1", "h2"]


def test_the_runbook_has_the_defaults_and_the_status() -> None:
    page = (ROOT / "docs/operations.md").read_text()
    inputs = yaml.safe_load(PLAYBOOK.read_text())[1]["vars"]
    assert inputs["reprovision_serial"] == [1, 4]
    assert "one host alone, then four at a time" in page
    assert f"at most `reprovision_wait_s`, {inputs['reprovision_wait_s']} s by default" in page
    assert f"| {upshot.DRIFT_FOUND} | a host has drifted |" in page
