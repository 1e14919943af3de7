"""A DGX that others use too: nothing of theirs is touched, and the container gets the devices that were asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import daemon_json

OVERRIDE = "/etc/systemd/system/docker.service.d/docker-override.conf"
# dockerd does not start with one of these in daemon.json beside the flag in the drop-in.
FLAGS = {"storage-driver", "default-shm-size", "bip", "fixed-cidr", "hosts"}
SERIAL = "1660224000999"


@pytest.fixture(scope="module")
def daemon(host: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(host.file("/etc/docker/daemon.json").content_string)
    return found


def test_the_machine_is_known_and_its_serial_number_is_nowhere(site: dict[str, Any], evidence: Path) -> None:
    machine = site["machine"]
    assert (machine["kind"], machine["dgx_os"], machine["faults"]) == ("dgx-h100", "7.5.0", [])
    kept = [path for path in evidence.rglob("*") if path.is_file()]
    assert kept
    assert [path for path in kept if SERIAL in path.read_text(errors="replace")] == []


def test_no_package_source_is_added_and_nothing_is_held(host: Any) -> None:
    found = host.run("grep --recursive --files-with-matches -E 'nvidia\\.github\\.io|docker|/apt/stable' /etc/apt")
    assert found.stdout.split() == []
    assert host.check_output("apt-mark showhold") == ""


def test_the_settings_of_others_survive(host: Any, daemon: dict[str, Any]) -> None:
    planted = json.loads(host.file("/run/planted-daemon.json").content_string)
    assert daemon_json.same(daemon_json.merge(daemon, planted), daemon)


def test_no_flag_of_the_drop_in_is_repeated(host: Any, daemon: dict[str, Any]) -> None:
    assert set(daemon) & FLAGS == set()
    assert "--default-shm-size=1G" in host.file(OVERRIDE).content_string
    (pid,) = host.check_output("pidof dockerd").split()
    assert b"--default-shm-size=1G" in host.file(f"/proc/{pid}/cmdline").content


def test_systemd_was_not_reloaded_under_a_strangers_gpu(host: Any) -> None:
    # Where the engine's cgroups are systemd's, that container would have lost it for good.
    read = host.check_output("systemctl show --property UnitsLoadTimestampMonotonic")
    assert read == host.file("/run/systemd-read").content_string.strip()


def test_the_hosts_own_log_limit_and_runtime_count(host: Any, daemon: dict[str, Any]) -> None:
    planted = json.loads(host.file("/run/planted-daemon.json").content_string)
    assert daemon["log-opts"] == {**planted["log-opts"], "max-file": "3"}
    assert daemon["runtimes"] == planted["runtimes"]


def test_a_strangers_container_never_stopped(host: Any) -> None:
    format_ = "{{.Id}} {{.State.StartedAt}} {{.State.Pid}}"
    now = host.check_output("docker container inspect --format %s stranger stranger-with-gpu", format_)
    assert now == host.file("/run/stranger").content_string.strip()
    assert host.check_output("docker exec stranger echo here") == "here"


def test_the_container_has_the_whole_gpu_and_one_part_of_the_other(host: Any) -> None:
    inside = host.check_output("docker exec comfyui find /dev -name 'nvidia*' -type c").split()
    numbered = {path for path in inside if path[-1].isdigit()}
    assert numbered == {"/dev/nvidia0", "/dev/nvidia1", "/dev/nvidia-caps/nvidia-cap101"}
    assert "/dev/nvidia-uvm" in inside
    pid = host.check_output("docker container inspect --format %s comfyui", "{{.State.Pid}}")
    # The mark of CDI; the legacy hook leaves what was asked for.
    assert b"NVIDIA_VISIBLE_DEVICES=void" in host.file(f"/proc/{pid}/environ").content.split(b"\0")


def test_docker_starts_after_the_specification(host: Any) -> None:
    host.check_output("systemctl daemon-reload")  # as a boot reads it
    shown = host.check_output("systemctl show --property After,Wants docker.service").splitlines()
    assert [line for line in shown if "nvidia-cdi-refresh.service" not in line] == []


def test_nothing_stale_is_in_the_engines_sight(host: Any) -> None:
    assert not host.file("/etc/cdi/nvidia.yaml").exists
    info = json.loads(host.check_output("docker info --format '{{json .}}'"))
    assert set(info["CDISpecDirs"]) == {"/etc/cdi", "/var/run/cdi"}
