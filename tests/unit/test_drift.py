"""The table of what had drifted: what one result says of resources, and what a real run leaves."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from callback import drift

from playbook_runs import environment

ENTRY = {"kind": "file", "mode": "0644", "uid": 0, "gid": 0, "size_b": 5, "link": None}
FILE = {"dest": "/etc/x", "mode": "0644", "owner": "root", "group": "root"}
FOLDER = {"path": "/srv/x", "state": "directory", "mode": "0755", "owner": "990", "group": "990"}


def seen(**probed: Any) -> drift.Seen:
    known = drift.Seen()
    known.add(probed)
    return known


@pytest.mark.parametrize(
    ("entry", "found"),
    [
        ({**ENTRY, "kind": "absent"}, "absent"),
        ({**ENTRY, "kind": "absent", "link": "gone"}, "a link to gone, which is not there"),
        ({**ENTRY, "kind": "dir"}, "a dir"),
        ({**ENTRY, "size_b": 0}, "empty"),
        ({**ENTRY, "mode": "0666"}, "mode 0666"),
        ({**ENTRY, "uid": 1000, "gid": 7}, "owner 1000, group 7"),
        (ENTRY, "other content"),
    ],
)
def test_a_file_is_found_as_the_probe_saw_it(entry: dict[str, Any], found: str) -> None:
    rows = drift.rows_of("ansible.builtin.copy", FILE, {}, seen(files={"/etc/x": entry}), "repaired")
    assert rows == [drift.Row("/etc/x", "file, 0644, root, root", found, "repaired")]


@pytest.mark.parametrize(
    ("entry", "found"),
    [
        ({**ENTRY, "kind": "dir", "mode": "0755", "uid": 990, "gid": 0}, "group 0"),
        ({**ENTRY, "kind": "dir", "mode": "0755", "uid": 990, "gid": 990}, "other"),
        ({**ENTRY, "kind": "file", "mode": "0755", "uid": 990, "gid": 990}, "a file"),
    ],
)
def test_a_folder_as_well(entry: dict[str, Any], found: str) -> None:
    (row,) = drift.rows_of("ansible.builtin.file", FOLDER, {}, seen(files={"/srv/x": entry}), "repaired")
    assert (row.expected, row.found) == ("folder, 0755, 990, 990", found)


def test_what_no_probe_saw_is_other() -> None:
    (row,) = drift.rows_of("ansible.builtin.copy", FILE, {}, seen(), "repaired")
    assert row.found == "other"


def test_what_was_seen_first_stands() -> None:
    known = seen(files={"/etc/x": {**ENTRY, "kind": "absent"}})
    known.add({"files": {"/etc/x": ENTRY}})
    assert known.file("/etc/x", FILE) == "absent"


@pytest.mark.parametrize(
    ("action", "arguments", "result", "rows"),
    [
        (
            "ansible.builtin.apt",
            {"name": ["a=2", "b=2", "c"], "update_cache": True},
            {},
            [("package a", "2", "1"), ("package c", "installed", "absent")],
        ),
        ("ansible.builtin.apt", {"name": "b", "state": "absent"}, {}, [("package b", "absent", "2")]),
        ("ansible.builtin.apt", {"update_cache": True}, {}, []),
        ("ansible.builtin.dpkg_selections", {"name": "a", "selection": "hold"}, {}, [("hold of a", "hold", "none")]),
        ("ansible.builtin.dpkg_selections", {"name": "b", "selection": "hold"}, {}, []),  # our own installation took it
        ("ansible.builtin.dpkg_selections", {"name": "c", "selection": "hold"}, {}, []),  # nothing was there to hold
        (
            "ansible.builtin.systemd_service",
            {"name": "u.service", "state": "started", "enabled": True},
            {},
            [("unit u.service", "started, enabled", "failed, disabled")],
        ),
        ("ansible.builtin.systemd_service", {"name": "u.service", "state": "restarted"}, {}, []),
        ("ansible.builtin.systemd_service", {"daemon_reload": True}, {}, []),
        ("ansible.builtin.user", {"name": "c", "uid": 990}, {}, [("user c", "number 990", "number 995")]),
        ("ansible.builtin.user", {"name": "d", "uid": 990}, {}, [("user d", "number 990", "other")]),
        ("ansible.builtin.group", {"name": "c", "gid": 990}, {}, [("group c", "number 990", "absent")]),
        (
            "docker_daemon_json",
            {"path": "/etc/docker/daemon.json"},
            {"drift": [{"resource": "/etc/docker/daemon.json: debug", "expected": "false", "found": "true"}]},
            [("/etc/docker/daemon.json: debug", "false", "true")],
        ),
        ("docker_daemon_json", {"path": "/etc/docker/daemon.json", "state": "reloaded"}, {}, []),
        (
            "show_progress",
            {"title": "t", "run": {"some_module": {"x": 1}}},
            {"drift": [{"resource": "image i", "expected": "there", "found": "absent"}]},
            [("image i", "there", "absent")],
        ),
        ("show_progress", {"jobs": []}, {}, []),
        ("ansible.builtin.command", {"argv": ["true"]}, {}, []),
    ],
)
def test_each_module_names_what_it_keeps(
    action: str, arguments: dict[str, Any], result: dict[str, Any], rows: list[tuple[str, str, str]]
) -> None:
    known = seen(
        packages={
            "a": {"version": "1", "held": False},
            "b": {"version": "2", "held": True},
            "c": {"version": "", "held": False},
        },
        units={"u.service": {"active": "failed", "file_state": "disabled"}},
    )
    asked = {"user": ["getent", "passwd", "c"], "group": ["getent", "group", "c"], "os": ["uname"]}
    known.add(
        {"commands": {"user": {"stdout": "c:x:995:995::/:/bin/sh\n"}, "group": {"stdout": ""}, "os": {"stdout": "L"}}},
        asked,
    )
    found = drift.rows_of(action, arguments, result, known, "repaired")
    assert [(row.resource, row.expected, row.found) for row in found] == rows


def test_a_key_that_a_reload_does_not_reach_waits_for_a_restart() -> None:
    known, key = seen(), "/etc/docker/daemon.json: {}".format
    arguments = {"path": "/etc/docker/daemon.json", "keys": {}}
    told = [{"resource": key(name), "expected": "1", "found": "2"} for name in ("a", "b")]
    result = {"drift": told, "apply": "restart", "restart_keys": ["b"]}
    rows = drift.rows_of("docker_daemon_json", arguments, result, known, "repaired")
    assert [(row.resource, row.outcome) for row in rows] == [(key("a"), "repaired"), (key("b"), drift.WAITS)]
    rows = drift.rows_of("docker_daemon_json", arguments, result, known, "to be repaired")
    assert {row.outcome for row in rows} == {"to be repaired"}


@pytest.mark.parametrize(("apply", "outcome"), [("reload", "repaired"), ("restart", drift.WAITS)])
def test_an_engine_that_runs_without_the_file_is_a_row_where_no_key_is_one(apply: str, outcome: str) -> None:
    known, arguments = seen(), {"path": "/f"}
    result = {"drift": [], "apply": apply, "restart_keys": []}
    row = drift.Row("Docker engine", "/f in force", f"without it before a {apply}", outcome)
    assert drift.rows_of("docker_daemon_json", arguments, result, known, "repaired") == [row]
    keys = {**result, "drift": [{"resource": "/f: a", "expected": "1", "found": "2"}]}
    drift.rows_of("docker_daemon_json", arguments, keys, known, "repaired")
    assert drift.rows_of("docker_daemon_json", arguments, result, known, "repaired") == []
    restarted = {**result, "apply": "restart"}
    assert drift.rows_of("docker_daemon_json", {**arguments, "state": "restarted"}, restarted, seen(), "repaired") == []


def test_no_login_of_an_address_is_in_the_table() -> None:
    told = {"resource": "image i", "expected": "from https://me:p@ss@git.example.com/a.git at abc", "found": "absent"}
    (row,) = drift.rows_of("drifted", {}, {"drift": [told]}, seen(), "repaired")
    assert row.expected == "from https://***@git.example.com/a.git at abc"


def test_a_long_value_makes_no_other_row_wide() -> None:
    long = drift.Row("image dgx-comfyui:1", "from a commit and a base, " * 8, "absent", "repaired")
    lines = drift.table([long, drift.Row("/srv/x", "", "file", "repaired")])
    assert max(map(len, lines)) < 100
    begin, end = lines[0].index("expected"), lines[0].index("found")
    said = " ".join(line[begin:end].strip() for line in lines[1:-1])
    assert said == long.expected.strip()
    assert lines[-1].split() == ["/srv/x", "file", "repaired"]


def run(
    folder: Path, *options: str, name: str = "site.yml", roles: Sequence[str] = (), **more: str
) -> tuple[int, str, list[dict[str, str]] | None]:
    """A run on this machine of these roles, or of two files, one of them right; its status, words and rows."""
    (folder / "right").write_text("right")
    (folder / "right").chmod(0o644)
    copy = {"mode": "0644", "content": "right"}
    tasks: list[dict[str, Any]] = [
        {"host_probe": {"files": [str(folder / "right"), str(folder / "new")]}},
        {"ansible.builtin.copy": {**copy, "dest": "{{ item }}"}, "loop": [str(folder / "right"), str(folder / "new")]},
        {"ansible.builtin.copy": {**copy, "dest": str(folder / "here")}, "delegate_to": "localhost"},
        {"ansible.builtin.copy": {**copy, "dest": "/proc/nowhere"}, "when": "broken is defined"},
    ]
    local = {"ansible_connection": "local", "ansible_python_interpreter": "{{ ansible_playbook_python }}"}
    play = {"hosts": "all", "gather_facts": False, "vars": local, "tasks": tasks}
    if roles:
        play |= {"tasks": [], "roles": list(roles)}
    (folder / name).write_text(yaml.safe_dump([play]))
    done = subprocess.run(
        [sys.executable, "-m", "ansible", "playbook", "-i", "one,", str(folder / name), *options],
        env=environment(DRIFT_FOLDER=str(folder / "artifacts"), ANSIBLE_ROLES_PATH=str(folder / "roles"), **more),
        capture_output=True,
        text=True,
        check=False,
    )
    written = folder / "artifacts/one/drift.json"
    return done.returncode, done.stdout, json.loads(written.read_text()) if written.exists() else None


def test_a_run_names_what_it_repaired_and_the_next_one_nothing(tmp_path: Path) -> None:
    row = {"resource": f"{tmp_path}/new", "expected": "file, 0644", "found": "absent"}
    status, said, rows = run(tmp_path, "--check")
    assert (status, rows) == (0, [{**row, "outcome": "to be repaired"}])
    assert not (tmp_path / "new").exists()
    status, said, rows = run(tmp_path)
    assert (status, rows) == (0, [{**row, "outcome": "repaired"}])
    assert "DRIFT [one]" in said.rpartition("PLAY RECAP")[2]
    status, said, rows = run(tmp_path)
    assert (status, rows) == (0, [])
    assert "Nothing had drifted." in said.rpartition("PLAY RECAP")[2]


def test_what_could_not_be_repaired_is_said(tmp_path: Path) -> None:
    status, _, rows = run(tmp_path, "-e", "broken=1")
    assert status == 2
    assert rows
    assert (rows[-1]["resource"], rows[-1]["outcome"]) == ("/proc/nowhere", "not repaired")


def test_of_a_host_that_was_not_compared_nothing_is_said(tmp_path: Path) -> None:
    run(tmp_path)
    status, said, rows = run(tmp_path, "-e", "ansible_connection=ssh ansible_port=9 ansible_host=127.0.0.1")
    assert (status, rows) == (4, None)
    assert "Nothing had drifted." not in said
    words = "Nothing was found before the run failed on this host; there may be more."
    assert words in said.rpartition("DRIFT [one]")[2]


@pytest.mark.parametrize(("broken", "outcome"), [(False, "repaired"), (True, "not repaired")])
def test_what_was_named_is_repaired_where_its_role_did_not_fail(tmp_path: Path, broken: bool, outcome: str) -> None:
    row = {"resource": "image i", "expected": "there", "found": "absent"}
    for role, tasks in {
        "other": [{"drifted": {**row, "resource": "image of another"}}],
        "ours": [{"drifted": row}, {"ansible.builtin.command": "false" if broken else "true"}],
    }.items():
        folder = tmp_path / "roles" / role / "tasks"
        folder.mkdir(parents=True)
        (folder / "main.yml").write_text(yaml.safe_dump(tasks))
    status, said, rows = run(tmp_path, roles=["other", "ours"])
    assert status == (2 if broken else 0)
    assert f"changed={0 if broken else 1}" in said  # the repair is the change
    assert rows
    assert {one["resource"]: one["outcome"] for one in rows} == {"image of another": "repaired", "image i": outcome}
    status, said, rows = run(tmp_path, "--check", roles=["ours"])
    assert (status, rows) == (0, [{**row, "outcome": "to be repaired"}])
    assert "changed=1" in said


@pytest.mark.parametrize(("restarts", "outcome"), [(True, "repaired"), (False, drift.WAITS)])
def test_what_waits_for_a_restart_is_repaired_by_one(tmp_path: Path, restarts: bool, outcome: str) -> None:
    key = {"resource": "/f: a", "expected": "1", "found": "2"}
    answer = {"changed": True, "drift": [key], "apply": "restart", "restart_keys": ["a"]}
    (tmp_path / "library").mkdir()
    (tmp_path / "library/docker_daemon_json.py").write_text(f"#!/usr/bin/python\nprint({json.dumps(answer)!r})\n")
    tasks = [{"docker_daemon_json": {"path": "/f"}}, {"docker_daemon_json": {"path": "/f", "state": "restarted"}}]
    folder = tmp_path / "roles/engine/tasks"
    folder.mkdir(parents=True)
    (folder / "main.yml").write_text(yaml.safe_dump(tasks if restarts else tasks[:1]))
    status, _, rows = run(tmp_path, roles=["engine"], ANSIBLE_LIBRARY=str(tmp_path / "library"))
    assert (status, rows) == (0, [{**key, "outcome": outcome}])


def test_a_key_that_was_put_back_is_not_repaired(tmp_path: Path) -> None:
    key = {"resource": "/f: a", "expected": "1", "found": "2"}
    answer = {"changed": True, "drift": [key], "apply": "reload", "restart_keys": []}
    (tmp_path / "library").mkdir()
    (tmp_path / "library/docker_daemon_json.py").write_text(
        "#!/usr/bin/python\nimport json, sys\n"
        "failed = 'reloaded' in open(sys.argv[1]).read()\n"
        f"print(json.dumps({{'failed': True, 'msg': 'put back'}}) if failed else {json.dumps(answer)!r})\n"
    )
    tasks = [{"docker_daemon_json": {"path": "/f"}}, {"docker_daemon_json": {"path": "/f", "state": "reloaded"}}]
    folder = tmp_path / "roles/engine/tasks"
    folder.mkdir(parents=True)
    (folder / "main.yml").write_text(yaml.safe_dump(tasks))
    status, _, rows = run(tmp_path, roles=["engine"], ANSIBLE_LIBRARY=str(tmp_path / "library"))
    assert (status, rows) == (2, [{**key, "outcome": "not repaired"}])


def test_another_playbook_is_left_alone(tmp_path: Path) -> None:
    status, said, rows = run(tmp_path, name="verify.yml")
    assert (status, rows) == (0, None)
    assert "DRIFT" not in said
