"""What dies comes back, the same where it survived, and the guard says why it acted."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from live_host import GATE_S, GUARD, LiveHost
from playbook_runs import ROOT

HOST = os.environ.get("MOLECULE_SCENARIO_NAME", "upgrade")
RENDER = "curl --silent --fail --data @- http://127.0.0.1:8188/prompt"


@pytest.fixture(scope="module")
def live() -> LiveHost:
    live = LiveHost(HOST)
    live.shorten_gate()
    return live


def comfyui_pid(live: LiveHost) -> str:
    """ComfyUI itself, below the container's init."""
    return live.shell("pgrep --parent $(docker container inspect --format '{{.State.Pid}}' comfyui)")


def guard_said(live: LiveHost, since: str) -> str:
    return live.shell(f"journalctl --sync; journalctl --unit comfyui-guard.service --since @{since} --output cat")


def test_a_killed_comfyui_is_started_again_in_its_container(live: LiveHost) -> None:
    before = live.inspect()["Id"]
    with live.watched() as watch:
        live.shell(f"kill -9 {comfyui_pid(live)}")
        live.wait()
    assert live.inspect()["Id"] == before
    assert watch["away_s"] < 10


def test_a_container_whose_init_was_killed_is_started_again(live: LiveHost) -> None:
    before = live.inspect()
    with live.watched() as watch:
        live.shell(f"kill -9 {before['State']['Pid']}")
        live.wait()
    assert live.inspect()["Id"] == before["Id"]
    assert watch["away_s"] < 10


def test_a_container_that_docker_gave_up_is_made_anew_by_the_guard(live: LiveHost) -> None:
    before = live.inspect()["Id"]
    since = live.shell("date +%s")
    live.shell("docker kill comfyui; systemctl start comfyui-guard.service")
    live.wait()
    assert live.inspect()["Id"] != before
    assert "Making ComfyUI's container anew: it ended with status 137" in guard_said(live, since)


def test_a_container_in_which_cuda_finds_no_gpu_is_made_anew_by_the_guard(live: LiveHost) -> None:
    path = live.shell("readlink --canonicalize /etc/comfyui/current")
    text = live.shell(f"cat {path}")
    release = json.loads(text)
    before = live.inspect()["Id"]
    since = live.shell("date +%s")
    # From here on the guard asks for CUDA, which the stand-in driver's libraries do not answer.
    live.write(path, json.dumps({**release, "flags": [flag for flag in release["flags"] if flag != "--cpu"]}))
    try:
        live.shell("systemctl start comfyui-guard.service")
        assert live.inspect()["Id"] != before
        assert "Making ComfyUI's container anew: it lost the GPU: no CUDA: " in guard_said(live, since)
    finally:
        live.write(path, f"{text}\n")
        live.shell("docker rm --force comfyui; systemctl restart comfyui.service")
    live.wait()


def test_a_killed_dockerd_leaves_the_same_container_and_ten_seconds(live: LiveHost) -> None:
    before = live.inspect()
    with live.watched() as watch:
        live.shell("kill -9 $(systemctl show --property MainPID --value docker.service)")
        live.wait()
        live.shell("for i in $(seq 100); do docker info > /dev/null 2>&1 && exit 0; sleep 0.2; done; exit 1")
    after = live.inspect()
    assert (after["Id"], after["State"]["Pid"]) == (before["Id"], before["State"]["Pid"])
    assert watch["away_s"] <= 10
    assert live.run(f"{GUARD} check").returncode == 0
    assert live.inspect()["Id"] == before["Id"]


def test_a_check_without_an_engine_touches_nothing(live: LiveHost) -> None:
    before = live.inspect()["Id"]
    live.shell("systemctl stop docker.socket docker.service")
    done = live.run(f"{GUARD} check")
    live.shell("systemctl start docker.socket docker.service")
    assert done.returncode == 1
    assert "Docker does not answer" in done.stderr
    assert live.inspect()["Id"] == before
    live.wait()


def test_a_hang_is_noticed_and_ended(live: LiveHost) -> None:
    before = live.inspect()["Id"]
    live.shell(f"sleep {GATE_S}")  # until then it may still be starting
    live.shell(f"systemctl stop comfyui-guard.timer; kill -STOP {comfyui_pid(live)}")
    said = [live.run(f"{GUARD} check").stderr for _ in range(3)]
    live.shell("systemctl start comfyui-guard.timer")
    assert "silent 1 times" in said[0]
    assert "Making ComfyUI's container anew: its API was silent 3 times in a row" in said[2]
    live.wait()
    assert live.inspect()["Id"] != before


def test_a_driver_that_changed_gets_a_new_specification_and_a_new_container(live: LiveHost) -> None:
    before = live.inspect()["Id"]
    live.shell("rm /dev/nvidia-uvm; mknod --mode 666 /dev/nvidia-uvm c 510 7")
    report = json.loads(live.shell(f"{GUARD} report"))
    assert any("it gives /dev/nvidia-uvm as 510:0, the host has 510:7" in line for line in report["findings"])
    assert live.inspect()["Id"] == before  # a report repairs nothing
    done = live.run(f"{GUARD} check")
    assert done.returncode == 0, done.stderr
    assert "Making the CDI specification anew: it gives /dev/nvidia-uvm" in done.stderr
    assert "Making ComfyUI's container anew: the driver or its devices changed" in done.stderr
    live.wait()
    assert live.inspect()["Id"] != before
    assert live.shell("docker exec comfyui stat --format %t:%T /dev/nvidia-uvm") == "1fe:7"
    live.shell(
        "rm /dev/nvidia-uvm; mknod --mode 666 /dev/nvidia-uvm c 510 0; systemctl restart nvidia-cdi-refresh.service"
    )
    live.shell(f"{GUARD} check")
    live.wait()


def test_who_stops_comfyui_has_it_stopped(live: LiveHost) -> None:
    live.shell("systemctl stop comfyui.service; systemctl start comfyui-guard.service")
    assert live.inspect()["State"]["Running"] is False
    assert live.run("systemctl is-active comfyui-guard.timer").stdout.strip() == "inactive"
    live.shell("systemctl start comfyui.service")
    assert live.run("systemctl is-active comfyui-guard.timer").stdout.strip() == "active"
    live.wait()


def test_a_full_disk_is_an_error_of_the_prompt_and_reads_go_on(live: LiveHost) -> None:
    live.shell(
        "systemctl stop comfyui.service;"
        "mount --types tmpfs --options size=1m,uid=990,gid=990 tmpfs /srv/comfyui/output;"
        "systemctl start comfyui.service"
    )
    try:
        live.wait()
        live.run("dd if=/dev/zero of=/srv/comfyui/output/full bs=64k")
        graph = json.loads((ROOT / "workflows/render_check.json").read_text())
        graph["1"]["inputs"]["color"] = 1
        live.write("/tmp/prompt.json", json.dumps({"prompt": graph}))  # noqa: S108 - on the host
        prompt_id = json.loads(live.shell(f"{RENDER} < /tmp/prompt.json"))["prompt_id"]
        history = live.shell(
            f"for i in $(seq 50); do curl --silent http://127.0.0.1:8188/history/{prompt_id} > /tmp/history; "
            "grep --quiet status_str /tmp/history && break; sleep 0.2; done; cat /tmp/history"
        )
        assert "No space left on device" in history
        assert live.answers()
        report = json.loads(live.shell(f"{GUARD} report"))
        assert any("/srv/comfyui/output has 0 MiB free" in line for line in report["findings"])
        assert live.run(f"{GUARD} check").returncode == 1
    finally:
        live.shell("systemctl stop comfyui.service; umount /srv/comfyui/output; systemctl start comfyui.service")
    live.wait()


def test_a_host_that_crashed_serves_again_after_its_boot(live: LiveHost) -> None:
    subprocess.run(["docker", "kill", live.container], check=True, capture_output=True)
    subprocess.run([sys.executable, "-m", "sandbox", "up", HOST], check=True, cwd=ROOT, capture_output=True)
    live.wait()
    live.shell("systemctl is-active --quiet comfyui.service comfyui-guard.timer")
    assert json.loads(live.shell(f"{GUARD} report"))["findings"] == []
