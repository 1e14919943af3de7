"""The probe reads; what is not there is an answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import host_probe


def test_an_absent_path_is_described() -> None:
    found = host_probe.describe_file("/nonexistent/file", with_content=True)
    assert (found["kind"], found["content"], found["link"]) == ("absent", None, None)


def test_a_file_comes_with_mode_size_and_content(tmp_path: Path) -> None:
    path = tmp_path / "daemon.json"
    path.write_text("{}\n")
    path.chmod(0o640)
    found = host_probe.describe_file(str(path), with_content=True)
    assert (found["kind"], found["mode"], found["size_b"], found["content"]) == ("file", "0640", 3, "{}\n")
    assert host_probe.describe_file(str(path), with_content=False)["content"] is None


def test_a_link_is_named_and_followed(tmp_path: Path) -> None:
    (tmp_path / "release.json").write_text("1")
    (tmp_path / "current").symlink_to("release.json")
    found = host_probe.describe_file(str(tmp_path / "current"), with_content=True)
    assert (found["link"], found["kind"], found["content"]) == ("release.json", "file", "1")


def test_a_dangling_link_is_absent_but_named(tmp_path: Path) -> None:
    (tmp_path / "current").symlink_to("gone.json")
    found = host_probe.describe_file(str(tmp_path / "current"), with_content=True)
    assert (found["link"], found["kind"]) == ("gone.json", "absent")


def test_binary_content_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "blob"
    path.write_bytes(b"\xff\xfe")
    assert host_probe.describe_file(str(path), with_content=True)["content"] is None


def test_a_missing_program_answers_127() -> None:
    assert host_probe.run_command(["no-such-program-here"])["rc"] == 127


def test_a_command_answers_with_status_and_output() -> None:
    assert host_probe.run_command(["sh", "-c", "echo out; echo err >&2; exit 3"]) == {
        "rc": 3,
        "stdout": "out\n",
        "stderr": "err\n",
    }


def test_packages_are_read_with_their_hold() -> None:
    output = "docker.io\t26.1.5\thold\tinstalled\ngit\t2.47\tdeinstall\tconfig-files\n"
    assert host_probe.parse_packages(output, ["docker.io", "git", "curl"]) == {
        "docker.io": {"version": "26.1.5", "held": True},
        "git": {"version": "", "held": False},
        "curl": {"version": "", "held": False},
    }


def test_a_host_without_systemd_has_no_units() -> None:
    assert host_probe.parse_unit("", "")["load"] == "not-found"


def test_a_unit_that_runs_is_enabled_where_the_files_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    path = "/lib/systemd/system/docker.service"

    def answer(argv: list[str]) -> dict[str, Any]:
        listed = "docker.service enabled enabled\n"
        shown = f"LoadState=loaded\nActiveState=active\nUnitFileState=disabled\nFragmentPath={path}\n"
        return {"stdout": listed if argv[1] == "list-unit-files" else shown}

    monkeypatch.setattr(host_probe, "run_command", answer)
    docker = {"load": "loaded", "active": "active", "file_state": "enabled", "path": path}
    units = host_probe.read_units(["docker.service", "other.service"])
    assert units == {"docker.service": docker, "other.service": {**docker, "file_state": ""}}
