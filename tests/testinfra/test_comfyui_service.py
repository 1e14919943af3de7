"""The service: enabled at boot, on the address that was asked for, with no right that it does not need."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from site_fixtures import host_part


@pytest.fixture(scope="module")
def container(host: Any) -> dict[str, Any]:
    (document,) = json.loads(host.check_output("docker container inspect comfyui"))
    return dict(document)


@pytest.fixture(scope="module")
def release(host: Any) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(host.check_output("cat /etc/comfyui/current"))
    return document


def test_the_unit_runs_and_starts_at_boot(host: Any) -> None:
    unit = host.service("comfyui")
    assert unit.is_running
    assert unit.is_enabled
    # However late the driver or the engine is at a boot, systemd tries again.
    assert host.check_output("systemctl show --property StartLimitIntervalUSec --value comfyui.service") == "0"


def test_the_container_is_the_current_releases(
    host: Any, container: dict[str, Any], release: dict[str, Any], site: dict[str, Any]
) -> None:
    current = host.check_output("readlink /etc/comfyui/current")
    assert container["Config"]["Labels"]["dgx-comfyui.release"] == current.removeprefix("releases/").removesuffix(
        ".json"
    )
    assert container["Config"]["Image"] == release["image"]
    assert release["data_dir"] == site["comfyui_data_dir"]
    assert container["State"]["Running"]


def test_the_api_listens_where_it_was_asked_to_and_nowhere_else(host: Any, site: dict[str, Any]) -> None:
    lines = host.check_output(f"ss -Hltn 'sport = :{site['comfyui_port']}'").splitlines()
    address = host_part(site["comfyui_bind_address"])
    assert {line.split()[3] for line in lines} == {f"{address}:{site['comfyui_port']}"}


def test_the_container_has_no_rights_to_spare(container: dict[str, Any], site: dict[str, Any]) -> None:
    limits = container["HostConfig"]
    assert limits["CapDrop"] == ["ALL"]
    assert not limits["CapAdd"]
    assert limits["ReadonlyRootfs"] is True
    assert limits["SecurityOpt"] == ["no-new-privileges"]
    assert limits["Privileged"] is False
    assert limits["PidMode"] == ""
    assert limits["IpcMode"] == "private"
    assert limits["CgroupnsMode"] == "private"
    assert limits["UTSMode"] == ""
    assert limits["PidsLimit"] > 0
    assert limits["NetworkMode"] in {"bridge", "default"}
    assert container["Config"]["User"] == f"{site['comfyui_user_id']}:{site['comfyui_user_id']}"
    assert not [mount for mount in container["Mounts"] if mount["Source"].endswith("docker.sock")]


def test_the_kernel_agrees_that_it_has_none(host: Any) -> None:
    status = dict(
        line.split(":", 1) for line in host.check_output("docker exec comfyui cat /proc/1/status").splitlines()
    )
    assert int(status["CapEff"], 16) == int(status["CapBnd"], 16) == 0
    assert status["NoNewPrivs"].strip() == "1"
    assert status["Seccomp"].strip() == "2"  # a filter: Docker's own


def test_the_guard_looks_after_it_and_finds_nothing(host: Any) -> None:
    assert host.service("comfyui-guard.timer").is_running
    report = json.loads(host.check_output("python3 /usr/local/lib/comfyui/comfyui_guard.py report"))
    assert report["findings"] == []


def test_the_process_runs_as_the_service_account(host: Any, site: dict[str, Any]) -> None:
    rows = host.check_output("docker top comfyui -eo pid,uid,args").splitlines()[1:]
    assert {int(row.split()[1]) for row in rows} == {site["comfyui_user_id"]}


@pytest.mark.parametrize(
    ("path", "writable"),
    [
        ("/data/models", False),
        ("/opt/comfyui/app", False),
        ("/data/input", True),
        ("/data/output", True),
        ("/data/user", True),
        ("/data/cache", True),
        ("/tmp", True),  # noqa: S108 - in the container
    ],
    ids=lambda value: {True: "writable", False: "read-only"}.get(value, value),
)
def test_it_writes_only_where_it_should(host: Any, path: str, writable: bool) -> None:
    probe = f"{path}/.written-by-verify"
    done = host.run("docker exec comfyui sh -c %s", f"touch {probe} && rm {probe}")
    assert (done.rc == 0) == writable, done.stderr
    assert writable or re.search("Read-only file system|Permission denied", done.stderr), done.stderr


def test_it_imports_from_nowhere_that_it_can_write_to(host: Any) -> None:
    # The home is writable, and packages installed there would come before the base's: a workflow could bring a torch.
    program = (
        "import os, site, sys; print(site.ENABLE_USER_SITE, [p for p in sys.path if os.access(p or '.', os.W_OK)])"
    )
    assert host.check_output("docker exec comfyui python -c %s", program) == "False []"


def test_the_containers_words_are_in_the_journal(host: Any, container: dict[str, Any]) -> None:
    assert container["HostConfig"]["LogConfig"]["Type"] == "journald"
    assert host.check_output("journalctl CONTAINER_NAME=comfyui --output cat --lines 200").strip()
