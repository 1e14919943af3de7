"""units_at_boot against programs that answer as systemd and an engine do: what it reloads, and whom it names."""

from __future__ import annotations

import importlib
import io
import json
import os
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import ansible.module_utils
import pytest
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.testing import patch_module_args

# On a host Ansible ships the helpers as ansible.module_utils.NAME; here they are made to be found there.
ansible.module_utils.__path__.append(str(Path(__file__).resolve().parents[2] / "plugins" / "module_utils"))
units_at_boot = importlib.import_module("units_at_boot")

UNIT = "some.service"
PROGRAMS = """\
#!/usr/bin/python3
import json, pathlib, sys
home = pathlib.Path(__file__).parent
state = json.loads((home / "state.json").read_text())
name, arguments = pathlib.Path(sys.argv[0]).name, sys.argv[1:]
if name == "systemctl" and arguments[0] == "show":
    print(state[arguments[1].removeprefix("--property=")])
elif arguments[0] == "is-enabled":
    print(state["file_state"])
elif name == "systemctl":
    with (home / "calls").open("a") as log:
        print(*arguments, file=log)
elif arguments[0] == "info":
    print(state["cgroup_driver"])
elif arguments[1] == "ls":
    print(*[container["Id"] for container in state["containers"]], sep="\\n")
else:
    print(json.dumps([container for container in state["containers"] if container["Id"] in arguments]))
"""


class Host:
    """A folder of programs that stand for systemd and an engine, before all others on the path."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        for name in ("docker", "systemctl"):
            (folder / name).write_text(PROGRAMS)
            (folder / name).chmod(0o755)
        self.state: dict[str, Any] = {
            "file_state": "disabled",
            "UnitFileState": "disabled",  # what systemd knew at its last reload
            "NeedDaemonReload": "no",
            "LoadState": "loaded",
            "cgroup_driver": "systemd",
            "containers": [],
        }
        self.warned: list[str] = []
        # What Ansible makes of it depends on whether this process has been a control node before.
        monkeypatch.setattr(AnsibleModule, "warn", lambda _module, words: self.warned.append(words))
        monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    def with_stranger(self) -> None:
        """A container that has its GPU by the legacy hook; this test is its process."""
        request = {"Driver": "", "Count": -1, "Capabilities": [["gpu"]]}
        container = {
            "Id": "c0ffee",
            "Name": "/stranger",
            "State": {"Pid": os.getpid()},
            "Config": {"Env": None},
            "HostConfig": {"DeviceRequests": [request]},
        }
        self.state["containers"] = [container]

    def run(self, *, check: bool = False, **arguments: Any) -> dict[str, Any]:
        """One run of the module: its answer."""
        (self.folder / "state.json").write_text(json.dumps(self.state))
        output = io.StringIO()
        given = {"_ansible_check_mode": check, **arguments}
        with patch_module_args(given), redirect_stdout(output), pytest.raises(SystemExit):
            units_at_boot.main()
        answer: dict[str, Any] = json.loads(output.getvalue())
        return answer

    def calls(self) -> list[str]:
        """What systemd was asked to change."""
        path = self.folder / "calls"
        return path.read_text().splitlines() if path.exists() else []


@pytest.fixture(name="host")
def make_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    return Host(tmp_path, monkeypatch)


def test_a_unit_is_enabled_without_a_reload(host: Host) -> None:
    host.with_stranger()
    answer = host.run(names=[UNIT])
    assert (answer["changed"], answer["enabled"], answer["reloaded"], host.warned) == (True, [UNIT], False, [])
    assert host.calls() == [f"--root=/ enable {UNIT}"]


def test_a_unit_that_is_enabled_is_a_row_of_the_drift_table(host: Host) -> None:
    row = {"resource": f"unit {UNIT}", "expected": "enabled", "found": "disabled"}
    assert host.run(check=True, names=[UNIT])["drift"] == [row]
    assert host.run(names=[UNIT])["drift"] == [row]
    host.state["file_state"] = "enabled"
    assert host.run(names=[UNIT])["drift"] == []


def test_a_dry_run_leaves_a_unit_out_whose_file_is_still_to_come(host: Host) -> None:
    host.state |= {"file_state": "not-found", "LoadState": "not-found"}
    answer = host.run(check=True, names=[UNIT])
    assert (answer["changed"], answer["drift"]) == (False, [])
    assert host.run(names=[UNIT])["enabled"] == [UNIT]


@pytest.mark.parametrize("load", ["not-found", "error"])
def test_systemd_reads_a_unit_again_whose_file_was_gone_when_it_read_it(host: Host, load: str) -> None:
    host.state |= {"file_state": "enabled", "LoadState": load}
    assert host.run(names=[UNIT])["reloaded"]
    assert host.calls() == ["daemon-reload"]


@pytest.mark.parametrize("state", ["enabled", "static"])
def test_nothing_is_done_twice(host: Host, state: str) -> None:
    host.state["file_state"] = state
    assert not host.run(names=[UNIT])["changed"]
    assert host.calls() == []


def test_a_dry_run_only_tells(host: Host) -> None:
    host.state["NeedDaemonReload"] = "yes"
    answer = host.run(check=True, names=[UNIT])
    assert (answer["changed"], answer["enabled"], answer["reloaded"]) == (True, [UNIT], True)
    assert host.calls() == []


def test_systemd_reads_a_changed_unit_where_that_takes_nothing(host: Host) -> None:
    host.state |= {"file_state": "enabled", "NeedDaemonReload": "yes"}
    assert host.run(names=[UNIT])["reloaded"]
    assert host.calls() == ["daemon-reload"]


@pytest.mark.parametrize("driver", ["systemd", "cgroupfs"])
def test_it_does_not_under_a_strangers_gpu_and_names_him(host: Host, driver: str) -> None:
    host.with_stranger()
    host.state |= {"file_state": "enabled", "NeedDaemonReload": "yes", "cgroup_driver": driver}
    answer = host.run(names=[UNIT])
    if driver == "cgroupfs":  # where systemd has no rules of its own for it, nothing is lost
        assert host.calls() == ["daemon-reload"]
        return
    assert (answer["changed"], answer["reloaded"], answer["losing"]) == (False, False, ["stranger"])
    (warning,) = host.warned
    assert warning.startswith(f"{UNIT}: systemd was not reloaded")
    assert "takes the GPUs from stranger, which" in warning
    assert host.calls() == []


@pytest.mark.parametrize("check", [False, True])
def test_what_reloads_by_itself_is_refused_with_his_name(host: Host, check: bool) -> None:
    asked = {"reload_ahead": "Installing a package", "accept": "-e yes=true"}
    assert "failed" not in host.run(check=check, **asked)
    host.with_stranger()
    answer = host.run(check=check, **asked)
    assert answer["failed"]
    assert answer["msg"].startswith(
        "Installing a package reloads systemd, which takes the GPUs from running containers"
    )
    assert "hook: stranger. Expected none of that kind." in answer["msg"]
    assert answer["msg"].endswith("accept it: -e yes=true")
