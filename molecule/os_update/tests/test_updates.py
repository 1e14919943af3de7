"""What an update of the system breaks: one run repairs exactly that, names it, and leaves the next nothing to do."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from typing import Any

import pytest

from live_host import GUARD, LiveHost
from playbook_runs import ROOT, environment, last_words

HOST = os.environ.get("MOLECULE_SCENARIO_NAME", "os_update")
PACKAGES = (
    "nvidia-container-toolkit",
    "nvidia-container-toolkit-base",
    "libnvidia-container-tools",
    "libnvidia-container1",
)
FOUR = " ".join(PACKAGES)
OLDER, NEWER = "1.19.0-1", "1.20.2-1"
SPEC = "/var/run/cdi/nvidia.yaml"
SOURCES = "/etc/apt/sources.list.d/nvidia-container-toolkit.sources"
DAEMON_JSON = "/etc/docker/daemon.json"
OVERRIDE = "/etc/systemd/system/docker.service.d/override.conf"
MODEL = "/srv/comfyui/models/checkpoints/sd_xl_base_1.0.safetensors"
CONTAINER = "container comfyui"
# What an engine's package or another program might write there.
OTHERS = {
    "features": {"buildkit": True},
    "insecure-registries": ["upstreams.test:5000"],
    "labels": ["owner=somebody-else"],
    "max-concurrent-downloads": 5,
}
# The guard would repair some of it within a minute.
QUIET = """
mkdir --parents /run/systemd/system/comfyui-guard.service.d
printf '[Unit]\\nConditionPathExists=/run/never\\n' > /run/systemd/system/comfyui-guard.service.d/quiet.conf
systemctl daemon-reload
"""


@pytest.fixture(scope="module")
def live() -> LiveHost:
    """A host whose guard looks away."""
    live = LiveHost(HOST)
    live.shell(QUIET)
    return live


def table() -> dict[str, str]:
    """What the last run named, and what became of it."""
    rows = json.loads((ROOT / "artifacts" / HOST / "drift.json").read_text())
    return {row["resource"]: row["outcome"] for row in rows}


def run(live: LiveHost, *words: str) -> dict[str, str]:
    """Run site.yml to its end: what it named."""
    done = live.playbook("site.yml", *words)
    assert done.returncode == 0, done.stdout[-5000:]
    return table()


def foresee(live: LiveHost, *resources: str) -> None:
    """Expect a dry run to name these."""
    assert run(live, "--check") == dict.fromkeys(resources, "to be repaired")


def repair(live: LiveHost, *resources: str, follows: str = "") -> None:
    """Expect a run to repair these and nothing else, but what only `follows` from them."""
    named = run(live)
    named.pop(follows, None)
    assert named == dict.fromkeys(resources, "repaired")
    expect_nothing(live)


def expect_nothing(live: LiveHost) -> None:
    """Expect a service that answers, and a run that changes nothing, not even what no row names."""
    live.wait()
    before = live.inspect()["Id"]
    done = live.playbook("site.yml")
    assert re.search(r" changed=0 .* failed=0 ", done.stdout), done.stdout[-5000:]
    assert table() == {}
    assert live.inspect()["Id"] == before


def rows(kind: str) -> list[str]:
    return [f"{kind} {name}" for name in PACKAGES]


def test_a_driver_of_another_version_with_a_stale_specification(live: LiveHost) -> None:
    before = live.inspect()["Id"]
    live.shell(
        "cd /usr/lib/nvidia-standin; sed -i 's/580.159.04/590.48.01/' profile.json;"
        "for file in lib/*.580.159.04; do mv $file ${file%580.159.04}590.48.01; done"
    )
    foresee(live, SPEC, CONTAINER)
    repair(live, SPEC, CONTAINER)
    assert live.inspect()["Id"] != before
    assert "590.48.01" in live.shell("docker exec comfyui cat /proc/self/mountinfo")


def test_a_specification_without_uvm_and_files_of_an_earlier_number(live: LiveHost) -> None:
    before = live.inspect()["Id"]
    live.shell(
        # As at a boot at which the module came too late.
        "rm /dev/nvidia-uvm*; systemctl restart nvidia-cdi-refresh.service;"
        "systemctl restart nvidia-driver-standin.service;"
        f"if grep nvidia-uvm {SPEC}; then exit 1; fi;"
        "cd /srv/comfyui; mkdir user/default/mine; touch output/mine.png user/default/mine/a.json input/of-root.png;"
        "chown --recursive 995:995 output user/default/mine"
    )
    # Of a release whose user had that number.
    release = json.loads(live.shell("cat /etc/comfyui/current"))
    live.write("/etc/comfyui/releases/995995995995.json", json.dumps({**release, "user_id": 995}))
    repair(live, SPEC, "/srv/comfyui/output", "files below /srv/comfyui")
    assert live.inspect()["Id"] == before
    mine = "output/mine.png user/default/mine/a.json input/of-root.png"
    assert live.shell(f"cd /srv/comfyui; stat --format %u:%g {mine}").split() == ["990:990", "990:990", "0:0"]


def renumber(live: LiveHost, there: int, wanted: int) -> None:
    """Give the account another number, and leave its files alone."""
    live.shell(
        f"sed -i 's/^comfyui:x:{there}:{there}/comfyui:x:{wanted}:{wanted}/' /etc/passwd;"
        f"sed -i 's/^comfyui:x:{there}/comfyui:x:{wanted}/' /etc/group"
    )


def test_an_account_with_another_number_is_refused_and_a_release_with_another_gets_its_files(live: LiveHost) -> None:
    renumber(live, 990, 995)
    said = last_words(live.playbook("site.yml").stdout)
    assert "has the number 995 on this host, expected 990" in said
    assert "set comfyui_user_id: 995" in said
    renumber(live, 995, 990)
    release, current = json.loads(live.shell("cat /etc/comfyui/current")), live.state()["current"]
    live.write("/etc/comfyui/releases/995995995995.json", json.dumps({**release, "user_id": 995}))
    for identity, user in (("995995995995", 995), (current, 990)):
        live.shell(f"{GUARD} activate {identity}")
        assert live.inspect()["Config"]["User"] == f"{user}:{user}"
        assert live.shell("cd /srv/comfyui; stat --format %u output output/mine.png user").split() == [str(user)] * 3


def test_a_newer_toolkit_whose_holds_were_lost_on_a_distribution_that_was_upgraded_in_place(live: LiveHost) -> None:
    before = live.inspect()["Id"]
    live.shell(
        # As a dist-upgrade does it, where the hold is gone.
        f"apt-mark unhold {FOUR}; apt-get update; DEBIAN_FRONTEND=noninteractive apt-get install --yes {FOUR};"
        # As do-release-upgrade leaves the sources of others.
        f"printf 'Enabled: no\\n' >> {SOURCES};"
        "sed -i 's/^VERSION_ID=.*/VERSION_ID=\"14\"/; s/trixie/forky/' /usr/lib/os-release;"
        # Another Python than the hub's client was made with: that matters as soon as a model has to be fetched again.
        "cd /opt/dgx-comfyui/huggingface_hub; mv lib/python3.?? lib/python3.1; sed -i '1s/3[.].*/3.1/' made;"
        f"rm {MODEL} {MODEL}.verified.json"
    )
    assert NEWER in live.shell(f"dpkg-query --show {PACKAGES[0]}")
    named = [*rows("package"), *rows("hold of"), SOURCES, f"model {MODEL}"]
    foresee(live, *named)
    # A GPU that a container has by CDI survives what others do meanwhile.
    reloads = live.begin("while read -t 2; [ $? -gt 128 ]; do systemctl daemon-reload; done")
    try:
        repair(live, *named)
    finally:
        reloads.communicate("", timeout=30)
    assert live.inspect()["Id"] == before


def test_flags_of_a_new_drop_in_that_daemon_json_has_too_and_an_older_toolkit(live: LiveHost) -> None:
    before = live.inspect()
    live.shell(
        "DEBIAN_FRONTEND=noninteractive apt-get install --yes --allow-downgrades --allow-change-held-packages "
        f"{' '.join(f'{name}={OLDER}' for name in PACKAGES)}; apt-mark hold {FOUR}"
    )
    live.write(
        OVERRIDE,
        "[Service]\nExecStart=\nExecStart=/usr/sbin/dockerd -H fd:// --live-restore --log-driver=json-file "
        "--log-opt max-size=50m\n",
    )
    live.shell("systemctl daemon-reload; if systemctl restart docker.service; then exit 1; fi")
    keys = ("live-restore", "log-driver", "log-opts.max-file", "log-opts.max-size")
    repair(live, *(f"{DAEMON_JSON}: {key}" for key in keys), *rows("package"), follows="unit docker.service")
    after = live.inspect()
    assert (after["Id"], after["State"]["Pid"]) == (before["Id"], before["State"]["Pid"])
    assert live.shell("docker info --format '{{.LiveRestoreEnabled}} {{.LoggingDriver}}'") == "true json-file"


def test_an_engine_whose_package_replaced_daemon_json(live: LiveHost) -> None:
    live.write(DAEMON_JSON, json.dumps(OTHERS))
    live.shell(f"rm {OVERRIDE}; systemctl daemon-reload; systemctl restart docker.service")
    keys = ("features.cdi", "live-restore", "log-driver", "log-opts.max-file", "log-opts.max-size")
    runtime = ("runtimes.nvidia.args", "runtimes.nvidia.path")
    # Without live-restore the restart took it down, and without CDI it could not come up again.
    repair(live, *(f"{DAEMON_JSON}: {key}" for key in (*keys, *runtime)), CONTAINER)
    found: dict[str, Any] = json.loads(live.shell(f"cat {DAEMON_JSON}"))
    assert found == {**found, **OTHERS, "features": {"buildkit": True, "cdi": True}}
    assert live.shell("docker info --format '{{.LiveRestoreEnabled}} {{len .CDISpecDirs}}'") == "true 2"


def test_a_reboot_in_the_middle_of_a_run_that_brings_the_toolkit_back(live: LiveHost) -> None:
    live.shell(f"DEBIAN_FRONTEND=noninteractive apt-get purge --yes --allow-change-held-packages {FOUR}")
    command = ["ansible-playbook", "--inventory", str(live.inventory), str(ROOT / "site.yml")]
    with subprocess.Popen(
        command, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdout
        for line in process.stdout:
            if "packages | Hold the four packages" in line:
                os.killpg(process.pid, signal.SIGKILL)  # its workers too
    assert table() == dict.fromkeys(rows("package"), "repaired")
    subprocess.run(["docker", "kill", live.container], check=True, capture_output=True)
    subprocess.run([sys.executable, "-m", "sandbox", "up", HOST], check=True, cwd=ROOT, capture_output=True)
    live.shell(QUIET)
    named = run(live)
    assert set(named) <= set(rows("hold of"))
    expect_nothing(live)
    assert set(live.shell("apt-mark showhold").split()) == set(PACKAGES)
