"""Action show_progress, in runs of ansible-playbook on this machine: a result is the module's, lines come in time."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from progress import State

REPOSITORY = Path(__file__).resolve().parents[2]
show_progress = importlib.import_module("action.show_progress")

SECRET = "hunter22"  # noqa: S105  opens nothing
MODULE = '''#!/usr/bin/python
"""Does as it is told."""
import time
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.progress import Reporter

spec = {"seconds": {"type": "float", "default": 0}, "fail": {"type": "bool", "default": False},
        "secret": {"type": "str", "no_log": True}}
module = AnsibleModule(argument_spec=spec, supports_check_mode=True)
if module.check_mode:
    module.exit_json(changed=True, predicted=True)
with Reporter.from_environment() as report:
    report(done_b=29, total_b=69)
    time.sleep(module.params["seconds"])
module.warn("beware")
answer = {"changed": True, "diff": {"before": "a", "after": "b"}, "said": "it is " + module.params["secret"],
          "nested": {"a": [1, None]}}
if module.params["fail"]:
    module.fail_json(msg="could not: " + module.params["secret"], rc=3, **answer)
module.exit_json(**answer)
'''
STRATEGIES = ["linear", "mitogen_unpinned"]


def play(folder: Path, tasks: list[dict[str, Any]], strategy: str = "linear", *options: str) -> tuple[str, str, Any]:
    """Run the tasks on two hosts that are both this machine; what was printed, and what each host registered."""
    (folder / "library").mkdir()
    (folder / "library" / "told.py").write_text(MODULE)
    local = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
    (folder / "hosts.yml").write_text(yaml.safe_dump({"all": {"hosts": {"one": local, "two": local}}}))
    keep = {
        "name": "Keep the results",
        "ansible.builtin.copy": {
            "content": "{{ dict(names | zip(query('ansible.builtin.vars', *names))) | to_json }}",
            "dest": f"{folder}/{{{{ inventory_hostname }}}}.json",
        },
        "vars": {"names": "{{ query('ansible.builtin.varnames', '^(good|bad|dry|x)_') }}"},
        "check_mode": False,
    }
    (folder / "play.yml").write_text(yaml.safe_dump([{"hosts": "all", "gather_facts": False, "tasks": [*tasks, keep]}]))
    done = subprocess.run(
        [
            Path(sys.executable).with_name("ansible-playbook"),
            "-i",
            "hosts.yml",
            "play.yml",
            "-e",
            f"secret={SECRET}",
            *options,
        ],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        env={
            **{name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")},
            "ANSIBLE_LIBRARY": f"{REPOSITORY}/plugins/modules:{folder}/library",
            "ANSIBLE_ACTION_PLUGINS": f"{REPOSITORY}/plugins/action",
            "ANSIBLE_MODULE_UTILS": f"{REPOSITORY}/plugins/module_utils",
            "ANSIBLE_STRATEGY": strategy,
            "ANSIBLE_STRATEGY_PLUGINS": f"{REPOSITORY}/plugins/strategy",
            "ANSIBLE_ASYNC_DIR": str(folder / "jobs"),
        },
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, done.stderr, [json.loads((folder / f"{host}.json").read_text()) for host in ("one", "two")]


def both(name: str, **arguments: Any) -> list[dict[str, Any]]:
    """The module called directly, and through the action."""
    told = {"told": {"secret": "{{ secret }}", **arguments}}
    wrapped = {"show_progress": {"title": "being told", "run": told}}
    return [
        {"name": way, **task, "register": f"{name}_{way}", "ignore_errors": True}
        for way, task in (("direct", told), ("wrapped", wrapped))
    ]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_result_is_that_of_a_direct_call(tmp_path: Path, strategy: str) -> None:
    stdout, stderr, found = play(tmp_path, [*both("good"), *both("bad", fail=True)], strategy)
    for host in found:
        assert host["good_wrapped"] == host["good_direct"]
        assert host["bad_wrapped"] == host["bad_direct"]
        assert (host["good_wrapped"]["failed"], host["bad_wrapped"]["failed"]) == (False, True)
        assert host["bad_wrapped"]["said"] == "it is ********"
    assert "being told: " not in stdout + stderr
    assert SECRET not in stdout + stderr + json.dumps(found)
    assert os.listdir(tmp_path / "jobs") == []


def test_a_dry_run_is_that_of_a_direct_call_and_no_action_runs_in_the_background(tmp_path: Path) -> None:
    run = {"ansible.builtin.copy": {"content": "x", "dest": str(tmp_path / "x")}}
    copied = {"show_progress": {"title": "t", "run": run}, "register": "x_copied", "ignore_errors": True}
    _, _, found = play(tmp_path, [*both("dry", seconds=30), {"name": "Copy", **copied}], "linear", "--check")
    for host in found:
        assert host["dry_wrapped"] == host["dry_direct"]
        assert host["dry_wrapped"]["predicted"] is True
        assert "does its work on the control node" in host["x_copied"]["msg"]
    assert not (tmp_path / "jobs").exists()


def test_a_job_is_begun_and_waited_for_and_each_host_has_its_lines(tmp_path: Path) -> None:
    told = {"told": {"secret": "{{ secret }}", "seconds": 11}}
    tasks = [
        {"show_progress": {"title": "being told", "run": told, "wait": False}, "register": "x_begun"},
        {"show_progress": {"title": "told too", "run": told, "wait": False}, "register": "x_begun_too"},
        {"show_progress": {"jobs": ["{{ x_begun }}", "{{ x_begun_too }}"]}, "register": "x_ended"},
    ]
    _, stderr, found = play(tmp_path, [{"name": "A task", **task} for task in tasks])
    for name, host in zip(("one", "two"), found, strict=True):
        assert host["x_begun"]["changed"] is False
        assert [job["nested"] for job in host["x_ended"]["jobs"]] == [{"a": [1, None]}] * 2
        assert host["x_ended"]["changed"] is True
        assert set(host["x_ended"]["warnings"]) == {"beware"}
        lines = [line for line in stderr.splitlines() if line.startswith(f"{name}: being told: ")]
        assert lines
        # Only root may write what the module notes; others see the time.
        assert ("42 %  29 of 69 B" in lines[0]) == os.access("/run", os.W_OK)
    assert SECRET not in stderr


# The parts.


@pytest.mark.parametrize(("elapsed_s", "pause_s"), [(0, 0.2), (5, 0.5), (10, 1), (600, 2)])
def test_waiting_adds_a_tenth_and_never_much(elapsed_s: float, pause_s: float) -> None:
    assert show_progress.poll_pause_s(elapsed_s) == pause_s


JOB = {"ansible_job_id": "j1", "started": 1, "finished": 1, "results_file": "/j1"}


def test_what_a_job_adds_to_a_result_is_removed() -> None:
    assert show_progress.as_called_directly({**JOB, "changed": True}) == {"changed": True}
    mitogen = {"data": "", "stderr": "", "stderr_lines": [], "warnings": []}
    assert show_progress.as_called_directly({**JOB, **mitogen, "changed": True}) == {"changed": True}
    noise = ["Value for result key 'finished' of type int was converted to bool.", "beware"]
    result = show_progress.as_called_directly({**JOB, **mitogen, "warnings": noise})
    assert result == {"warnings": ["beware"]}


def test_an_output_of_the_module_stays() -> None:
    own = {"stdout": "", "stderr": "", "stderr_lines": [], "warnings": ["beware"]}
    assert show_progress.as_called_directly({**JOB, "data": "", **own}) == own
    assert show_progress.as_called_directly({**JOB, "data": "mine", "x": 1}) == {"data": "mine", "x": 1}


def test_a_crash_under_mitogen_is_said_as_by_a_direct_call() -> None:
    status = {**JOB, "failed": 1, "msg": "Traceback (most recent call last) ...", "data": "out", "stderr": "boom"}
    result = show_progress.as_called_directly(status)
    assert (result["failed"], result["module_stdout"], result["module_stderr"]) == (True, "out", "boom")


def test_several_jobs_are_one_result() -> None:
    good = {"changed": True, "warnings": ["a"]}
    bad = [{"changed": False, "failed": True, "msg": f"{n} is wrong"} for n in (1, 2)]
    assert show_progress.together([dict(good)]) == {
        "changed": True, "failed": False, "jobs": [{"changed": True}], "warnings": ["a"]
    }  # fmt: skip
    joined = show_progress.together([dict(good), *bad])
    assert (joined["failed"], joined["msg"], joined["changed"]) == (True, "1 is wrong\n2 is wrong", True)


def look(**done_b: int) -> str:
    """What the host prints for files that say so many bytes."""
    states = {name: {"text": "", "title": f"T {name}", "done_b": done, "total_b": 100} for name, done in done_b.items()}
    return "".join(f"/run/{name}.json:{json.dumps(state)}\n" for name, state in states.items()) + "grep: noise\n"


def test_what_runs_beside_is_told_of_as_long_as_it_moves() -> None:
    watches = show_progress.Watches()
    watches.own["/run/own.json"] = show_progress.Watch("build")
    watches.see(look(own=1, other=1))
    assert watches.lines(5) == ["T other: 1 %  1 of 100 B", "build: 1 %  1 of 100 B"]
    watches.see(look(own=1, other=1))
    assert watches.lines(9) == ["build: 1 %  1 of 100 B"]
    watches.see(look(own=1, other=2))
    assert [line.split(":")[0] for line in watches.lines(12)] == ["T other", "build"]
    watches.own["/run/own.json"].ended = True
    assert watches.lines(15) == []


def test_the_last_state_that_was_seen_stays_until_there_is_another() -> None:
    moments = iter([0.0, 2.0])
    watch = show_progress.Watch("model", lambda: next(moments))
    assert watch.line(3) == "model: 3 s"
    watch.see(State("", 10, 100))
    watch.see(State("", 30, 100))
    assert watch.known == (State("", 30, 100), 10.0)
    assert watch.line(9) == "model: 30 %  30 of 100 B  10 B/s  7 s left"
