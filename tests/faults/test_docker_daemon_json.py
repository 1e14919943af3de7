"""docker_daemon_json against programs that answer as an engine does: what it writes, and what it puts back."""

from __future__ import annotations

import importlib
import io
import json
import os
import re
import time
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import ansible.module_utils
import pytest
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.testing import patch_module_args
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

REPOSITORY = Path(__file__).resolve().parents[2]
# On a host Ansible ships the helpers as ansible.module_utils.NAME; here they are made to be found there.
ansible.module_utils.__path__.append(str(REPOSITORY / "plugins" / "module_utils"))
docker_daemon_json = importlib.import_module("docker_daemon_json")

FOREIGN = '{\n  "default-cgroupns-mode": "host"\n}\n'
KEYS = {"live-restore": True}
# It knows no key but these, takes up what `reloads` or `starts` allow, and shows it in `docker info`.
ENGINE = """\
#!/usr/bin/python3
import json, pathlib, sys, time
home = pathlib.Path(__file__).parent
state = json.loads((home / "state.json").read_text())
file = pathlib.Path(state["file"])
name, arguments = pathlib.Path(sys.argv[0]).name, sys.argv[1:]
with (home / "calls").open("a") as log:
    print(name, *arguments, file=log)
if name == "systemctl":
    if arguments[0] == "cat":
        print(state["unit"])
    if arguments[0] == "show":
        print(state["started_us"])
    if arguments[0] == "is-active":
        sys.exit(0 if state["running"] is not None else 3)
    if arguments[0] in ("reload", "restart"):
        wanted = json.loads(file.read_text() or "{}") if file.exists() else {}
        refused = state["refuses"] is not None and state["refuses"] in wanted
        if arguments[0] == "restart":
            state["running"] = None if refused else wanted
            state["started_us"] = int(time.monotonic() * 1e6)
        elif not refused:
            state["running"] = wanted
        (home / "state.json").write_text(json.dumps(state))
        sys.exit(1 if refused and arguments[0] == "restart" else 0)
elif name == "dockerd":
    if arguments == ["--version"]:
        print("Docker version 29.8.2, build standin")
    else:
        candidate = next(word for word in arguments if word.startswith("--config-file=")).partition("=")[2]
        if "unknown-key" in json.loads(pathlib.Path(candidate).read_text()):
            sys.exit(f"unable to configure the Docker daemon with file {candidate}: unknown-key")
elif name == "docker":
    if state["running"] is None:
        sys.exit("Cannot connect to the Docker daemon")
    swarm = {"LocalNodeState": state["swarm"]}
    live = state["running"].get("live-restore", False)
    print(json.dumps({"ServerVersion": "29.8.2", "LiveRestoreEnabled": live, "Swarm": swarm}))
elif name == "journalctl":
    print("the engine's last words")
"""


class Host:
    """A folder that stands for a host: daemon.json, and programs before all others on the path."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.file = folder / "etc" / "daemon.json"
        self.file.parent.mkdir()
        self.file.write_text(FOREIGN)
        self.programs = folder / "bin"
        self.programs.mkdir()
        for name in ("docker", "dockerd", "journalctl", "systemctl"):
            (self.programs / name).write_text(ENGINE)
            (self.programs / name).chmod(0o755)
        self.undo = folder / "undo.json"
        self.running(json.loads(FOREIGN))
        monkeypatch.setattr(docker_daemon_json, "UNDO_PATH", str(self.undo))
        self.warned: list[str] = []
        # What Ansible makes of it depends on whether this process has been a control node before.
        monkeypatch.setattr(AnsibleModule, "warn", lambda _module, words: self.warned.append(words))
        monkeypatch.setenv("PATH", f"{self.programs}:{os.environ['PATH']}")

    def running(
        self, config: dict[str, Any] | None, refuses: str | None = None, swarm: str = "inactive", flags: str = ""
    ) -> None:
        """What the engine runs with (None: it does not), and the key with which it neither reloads nor starts.

        `flags` are more of those with which it starts next.
        """
        unit = f"[Service]\nExecStart={self.programs}/dockerd -H fd:// --default-shm-size=1G {flags}\n"
        state: dict[str, Any] = {"file": str(self.file), "unit": unit, "running": config, "refuses": refuses}
        state |= {"swarm": swarm, "started_us": int(time.monotonic() * 1e6)}
        (self.programs / "state.json").write_text(json.dumps(state))

    def calls(self) -> list[str]:
        return (self.programs / "calls").read_text().splitlines()

    def run(self, *, check: bool = False, **arguments: Any) -> dict[str, Any]:
        """One run of the module: its answer."""
        self.warned.clear()
        given = {"path": str(self.file), "wait_s": 0, "_ansible_check_mode": check, "_ansible_diff": True, **arguments}
        output = io.StringIO()
        with patch_module_args(given), redirect_stdout(output), pytest.raises(SystemExit):
            docker_daemon_json.main()
        answer: dict[str, Any] = json.loads(output.getvalue())
        return answer


@pytest.fixture(name="host")
def make_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    return Host(tmp_path, monkeypatch)


def test_a_merge_is_written_taken_up_and_done_once(host: Host) -> None:
    first = host.run(keys=KEYS)
    assert (first["changed"], first["apply"], first["changed_keys"]) == (True, "reload", ["live-restore"])
    assert json.loads(host.file.read_text()) == {"default-cgroupns-mode": "host", "live-restore": True}
    assert Path(first["backup"]).read_text() == FOREIGN
    assert "failed" not in host.run(state="reloaded")
    again = host.run(keys=KEYS)
    assert (again["changed"], again["apply"]) == (False, "none")
    # There is no way back any more: another fault leaves the file.
    host.running({}, refuses="live-restore")
    assert "The file was left as it is" in host.run(state="reloaded")["msg"]


def test_a_dry_run_shows_the_difference_and_writes_nothing(host: Host) -> None:
    answer = host.run(check=True, keys=KEYS)
    assert answer["changed"]
    assert "live-restore" in answer["diff"]["after"]
    assert host.file.read_text() == FOREIGN
    assert [path.name for path in host.file.parent.iterdir()] == ["daemon.json"]
    assert not host.undo.exists()


@pytest.mark.parametrize("check", [False, True])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{\n  "debug": true,\n}\n', "line 3 column 1"),
        ('{"default-runtime": "ghost"}', "default-runtime is 'ghost', expected one that stands under runtimes"),
    ],
)
def test_a_file_that_cannot_be_merged_into_is_left_as_it_is(host: Host, text: str, message: str, check: bool) -> None:
    host.file.write_text(text)
    answer = host.run(check=check, keys=KEYS)
    assert answer["failed"]
    assert message in answer["msg"]
    assert host.file.read_text() == text


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(before=st.integers(1, len(FOREIGN) - 4), state=st.sampled_from(["present", "reloaded", "restarted"]))
def test_a_broken_file_is_never_overwritten(host: Host, before: int, state: str) -> None:
    text = FOREIGN[:before]
    host.file.write_text(text)
    answer = host.run(keys=KEYS, remove=["debug"], state=state)
    assert re.search(r"daemon.json is not valid.*: line \d+ column \d+", answer["msg"])
    assert host.file.read_text() == text
    assert [path.name for path in host.file.parent.iterdir()] == ["daemon.json"]


@pytest.mark.parametrize("check", [False, True])
def test_what_dockerd_would_not_start_with_is_not_written(host: Host, check: bool) -> None:
    answer = host.run(check=check, keys={"unknown-key": 1})
    assert f"dockerd would not start with the merged {host.file}" in answer["msg"]
    assert host.file.read_text() == FOREIGN


def test_a_flag_of_the_unit_is_left_out(host: Host) -> None:
    answer = host.run(keys={"default-shm-size": "2G", **KEYS})
    assert answer["left_out"] == ["default-shm-size"]
    assert "default-shm-size" not in json.loads(host.file.read_text())


def test_a_key_that_the_unit_passes_by_now_is_taken_back_and_waits_for_nothing(host: Host) -> None:
    keys = {**KEYS, "log-driver": "json-file", **LOGS}
    host.run(keys=keys)
    host.run(state="restarted")
    host.running(json.loads(host.file.read_text()), flags="--live-restore --log-driver=json-file")
    dry = host.run(check=True, keys=keys)
    answer = host.run(keys=keys)
    assert answer["changed_keys"] == dry["changed_keys"] == ["live-restore", "log-driver"]
    assert set(json.loads(host.file.read_text())) == {"default-cgroupns-mode", "log-opts"}
    # The engine that runs has them still, and the next one has them by flag.
    assert (answer["apply"], dry["apply"]) == ("none", "none")
    again = host.run(keys=keys)
    assert (again["changed"], again["apply"], again["others_restart_keys"]) == (False, "none", [])


@pytest.mark.parametrize("check", [False, True])
def test_a_read_only_folder_is_refused(host: Host, monkeypatch: pytest.MonkeyPatch, check: bool) -> None:
    # Root writes wherever modes forbid it; only a read-only file system stops it, and access says so.
    monkeypatch.setattr(os, "access", lambda _path, mode: mode != os.W_OK)
    answer = host.run(check=check, keys=KEYS)
    assert f"{host.file.parent} cannot be written to, expected that root can" in answer["msg"]
    assert "mount -o remount,rw" in answer["msg"]
    assert host.file.read_text() == FOREIGN


def test_a_reload_that_the_engine_refuses_puts_the_file_back(host: Host) -> None:
    host.running(json.loads(FOREIGN), refuses="live-restore")
    host.run(keys=KEYS)
    answer = host.run(state="reloaded")
    assert "still runs without live-restore" in answer["msg"]
    assert "The file was put back as it was before this run" in answer["msg"]
    assert "the engine's last words" in answer["msg"]
    assert host.file.read_text() == FOREIGN
    assert [call for call in host.calls() if call.startswith("systemctl re")] == ["systemctl reload docker.service"] * 2


def test_a_restart_that_fails_puts_the_file_back_and_the_engine_runs_again(host: Host) -> None:
    host.running({"live-restore": True}, refuses="log-opts")
    host.file.write_text('{"live-restore": true}')
    host.run(keys={"log-opts": {"max-size": "10m"}})
    answer = host.run(state="restarted")
    assert "does not answer `docker info`" in answer["msg"]
    assert host.file.read_text() == '{"live-restore": true}'
    assert json.loads((host.programs / "state.json").read_text())["running"] == {"live-restore": True}


def test_of_several_changes_the_file_before_the_first_comes_back(host: Host) -> None:
    host.running(json.loads(FOREIGN), refuses="live-restore")
    host.run(keys={"debug": False})
    host.run(keys=KEYS)
    assert host.run(state="reloaded")["failed"]
    assert host.file.read_text() == FOREIGN


def test_a_file_that_was_not_there_is_gone_again(host: Host) -> None:
    host.file.unlink()
    host.running({}, refuses="live-restore")
    host.run(keys=KEYS)
    assert host.run(state="reloaded")["failed"]
    assert not host.file.exists()


def test_what_somebody_wrote_meanwhile_is_not_put_back(host: Host) -> None:
    host.running(json.loads(FOREIGN), refuses="live-restore")
    host.run(keys=KEYS)
    host.file.write_text('{"live-restore": true, "debug": true}')
    assert "The file was left as it is" in host.run(state="reloaded")["msg"]
    assert json.loads(host.file.read_text())["debug"] is True


def test_after_a_reload_that_leaves_a_restart_the_way_back_stays_open(host: Host) -> None:
    host.run(keys={**KEYS, "log-opts": {"max-size": "10m"}})
    host.run(state="reloaded")
    assert json.loads(host.undo.read_text())["before"] == FOREIGN
    host.run(state="restarted")
    assert json.loads(host.undo.read_text())["before"] == host.file.read_text()


def test_keys_are_taken_out_again(host: Host) -> None:
    host.run(keys={"runtimes": {"nvidia": {"path": "nvidia-container-runtime"}}, **KEYS})
    assert host.run(remove=["runtimes.nvidia"])["changed_keys"] == ["runtimes.nvidia"]
    assert json.loads(host.file.read_text()) == {"default-cgroupns-mode": "host", "live-restore": True, "runtimes": {}}
    assert not host.run(remove=["runtimes.nvidia"])["changed"]


def test_a_runtime_that_is_the_default_is_not_taken_out(host: Host) -> None:
    text = '{"default-runtime": "nvidia", "runtimes": {"nvidia": {"path": "nvidia-container-runtime"}}}'
    host.file.write_text(text)
    answer = host.run(remove=["runtimes.nvidia"])
    assert "default-runtime is 'nvidia'" in answer["msg"]
    assert host.file.read_text() == text


RUNTIME = {"runtimes": {"nvidia": {"path": "nvidia-container-runtime", "args": []}}}
LOGS = {"log-opts": {"max-size": "10m", "max-file": "3"}}
KEEP = ["log-opts.max-file", "log-opts.max-size", "runtimes.nvidia"]


@pytest.mark.parametrize("again", [False, True], ids=["first run", "after damage"])
def test_what_the_host_had_chosen_counts_and_is_reported(host: Host, again: bool) -> None:
    theirs = {"log-opts": {"max-size": "50m"}, "runtimes": {"nvidia": {"path": "/opt/own", "args": ["-x"]}}}
    host.file.write_text(json.dumps(theirs))
    answer = host.run(keys={**RUNTIME, **LOGS}, keep=KEEP)
    assert answer["kept"] == ["log-opts.max-size", "runtimes.nvidia"]
    right = {"log-opts": {"max-size": "50m", "max-file": "3"}, "runtimes": theirs["runtimes"]}
    assert json.loads(host.file.read_text()) == right
    if again:
        damaged = {"log-opts": {"max-size": "1m", "max-file": "9"}, "runtimes": {"nvidia": {"path": "/lost"}}}
        host.file.write_text(json.dumps(damaged))
        assert host.run(keys={**RUNTIME, **LOGS}, keep=KEEP)["changed"]
        assert json.loads(host.file.read_text()) == right


@pytest.mark.parametrize("exists", [False, True])
def test_what_is_ours_is_repaired(host: Host, exists: bool) -> None:
    if not exists:
        host.file.unlink()
    host.run(keys={**RUNTIME, **LOGS}, keep=KEEP)
    right = json.loads(host.file.read_text())
    host.file.write_text(
        json.dumps({**right, "log-opts": {"max-size": "1m"}, "runtimes": {"nvidia": {"path": "/lost"}}})
    )
    assert host.run(keys={**RUNTIME, **LOGS}, keep=KEEP)["kept"] == []
    assert json.loads(host.file.read_text()) == right


def test_a_runtime_that_was_there_before_us_comes_back(host: Host) -> None:
    host.file.write_text('{"runtimes": {"nvidia": {"path": "/opt/own"}}}')
    host.run(keys={**RUNTIME, **KEYS})
    assert json.loads(host.file.read_text())["runtimes"]["nvidia"]["path"] == "nvidia-container-runtime"
    host.run(remove=["runtimes.nvidia"])
    assert json.loads(host.file.read_text())["runtimes"] == {"nvidia": {"path": "/opt/own"}}
    assert not host.run(remove=["runtimes.nvidia"])["changed"]


def test_a_member_of_a_swarm_gets_no_live_restore(host: Host) -> None:
    host.running({}, swarm="active")
    assert host.run(keys=KEYS)["left_out"] == ["live-restore"]
    assert host.file.read_text() == FOREIGN


def test_neither_does_a_member_that_is_stopped(host: Host, tmp_path: Path) -> None:
    text = json.dumps({"data-root": str(tmp_path)})
    host.file.write_text(text)
    host.running(None)
    (tmp_path / "swarm").mkdir()
    (tmp_path / "swarm" / "docker-state.json").write_text("{}")
    assert host.run(keys=KEYS)["left_out"] == ["live-restore"]
    assert host.file.read_text() == text


def test_a_stopped_engine_that_does_not_start_with_our_file_gets_its_own_back(host: Host) -> None:
    host.running(None, refuses="live-restore")
    host.run(keys=KEYS)
    answer = host.run(state="reloaded")
    assert "does not answer `docker info`" in answer["msg"]
    assert host.file.read_text() == FOREIGN
    assert json.loads((host.programs / "state.json").read_text())["running"] == json.loads(FOREIGN)


def test_a_restart_that_is_due_is_not_forgotten_by_a_run_that_died(host: Host) -> None:
    # `docker info` shows no log options: only the module's own record can tell.
    host.run(keys=LOGS)
    again = host.run(keys=LOGS)
    assert (again["changed"], again["apply"]) == (False, "restart")
    assert again["restart_keys"] == ["log-opts.max-file", "log-opts.max-size"]
    host.run(keys={"runtimes": {}})
    assert host.run(keys=LOGS)["apply"] == "restart"
    host.run(state="restarted")
    assert host.run(keys=LOGS)["apply"] == "none"


def test_a_restart_by_somebody_else_counts_too(host: Host) -> None:
    host.run(keys=LOGS)
    host.running(json.loads(host.file.read_text()))
    assert host.run(keys=LOGS)["apply"] == "none"
    # The change after it begins anew: nothing of before the restart waits.
    host.run(keys=KEYS)
    assert host.run(keys=KEYS)["apply"] == "reload"


def test_what_others_changed_is_named_before_our_reload_takes_it_up(host: Host) -> None:
    os.utime(host.file, (time.time() - 60, time.time() - 60))
    host.run(check=True, keys=KEYS)
    assert host.warned == []
    host.file.write_text('{"default-cgroupns-mode": "host", "debug": true, "data-root": "/raid"}')
    os.utime(host.file, (time.time() + 60, time.time() + 60))
    host.run(keys=KEYS)
    (warning,) = host.warned
    assert (
        "may run without that so far: data-root, default-cgroupns-mode. What this run changed needs a reload" in warning
    )
    # Now it is this module that wrote last, for whatever role.
    host.run(keys=KEYS)
    host.run(keys=RUNTIME)
    assert host.warned == []


def test_after_putting_back_the_file_is_the_hosts_own_again(host: Host) -> None:
    host.running(json.loads(FOREIGN), refuses="live-restore")
    host.run(keys=KEYS)
    assert host.run(state="reloaded")["failed"]
    assert [path.name for path in host.file.parent.iterdir()] == ["daemon.json"]


THEIRS = '{"default-cgroupns-mode": "host", "data-root": "/raid"}'


def written_later(host: Host, text: str) -> None:
    """Somebody writes to the file, and does not restart the engine."""
    host.file.write_text(text)
    os.utime(host.file, (time.time() + 60, time.time() + 60))


def test_what_a_restart_of_ours_would_take_up_of_others_is_told_until_there_was_one(host: Host) -> None:
    written_later(host, THEIRS)
    # The engine's start and the file's time are all that is known: each key may be new.
    told = ["data-root", "default-cgroupns-mode"]
    assert host.run(keys=KEYS)["others_restart_keys"] == told
    assert host.run(keys={**RUNTIME, **LOGS})["others_restart_keys"] == told
    host.run(state="reloaded")
    # As the handler asks, and as a run does that comes later.
    assert host.run(check=True)["others_restart_keys"] == told
    host.run(state="restarted")
    assert host.run(check=True)["others_restart_keys"] == []


@pytest.mark.parametrize("taken_up_by", ["reloaded", "restarted"])
def test_what_others_change_after_ours_was_taken_up_is_told_exactly(host: Host, taken_up_by: str) -> None:
    os.utime(host.file, (time.time() - 60, time.time() - 60))
    host.run(keys={**KEYS, **LOGS} if taken_up_by == "restarted" else KEYS)
    host.run(state=taken_up_by)
    assert host.run(check=True)["others_restart_keys"] == []
    ours = json.loads(host.file.read_text())
    written_later(host, json.dumps({**ours, "data-root": "/raid", "live-restore": False}))
    assert host.run(check=True)["others_restart_keys"] == ["data-root"]
    # A repair of ours makes it no less theirs.
    host.run(keys={**KEYS, **LOGS})
    assert host.run(check=True)["others_restart_keys"] == ["data-root"]
    host.running(json.loads(host.file.read_text()))
    os.utime(host.file, (time.time() - 60, time.time() - 60))
    assert host.run(check=True)["others_restart_keys"] == []


def test_a_restart_that_is_due_is_no_change_of_a_task_with_other_keys(host: Host) -> None:
    host.run(keys=LOGS)
    host.run(keys={"runtimes": {}})
    again = host.run(keys={"runtimes": {}})
    assert (again["changed"], again["apply"], again["restart_keys"]) == (False, "none", [])
    assert host.run(keys=LOGS)["restart_keys"] == ["log-opts.max-file", "log-opts.max-size"]
