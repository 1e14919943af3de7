"""teardown.yml removes what is ours, keeps what people made unless told otherwise, and leaves strangers alone."""

from __future__ import annotations

import os

import pytest

from live_host import LiveHost

HOST = os.environ.get("MOLECULE_SCENARIO_NAME", "hardening")
PLACES = "/srv/comfyui /etc/docker /var/backups/comfyui"
KEPT = (
    f"find {PLACES} -type f -not -name '*.db*' -not -path '/srv/comfyui/cache/*' -print0 | sort -z | xargs -0 sha256sum"
)
THEIRS = "/srv/comfyui/theirs /var/backups/comfyui/theirs"
OURS = (
    "/etc/comfyui",
    "/etc/systemd/system/comfyui.service",
    "/etc/systemd/system/comfyui-guard.service",
    "/etc/systemd/system/comfyui-guard.timer",
    "/opt/dgx-comfyui",
    "/srv/comfyui/cache",
    "/usr/local/lib/comfyui",
    "/var/lib/comfyui",
)


@pytest.fixture(scope="module")
def live() -> LiveHost:
    """The host, with a stranger's files, and a container of theirs on an image that shares ours layer for layer."""
    live = LiveHost(HOST)
    live.shell(
        f"mkdir --parents /var/backups/comfyui; touch {THEIRS};"
        f"docker tag {live.inspect()['Config']['Image']} stranger:1;"
        "docker run --detach --name stranger --entrypoint sleep stranger:1 infinity"
    )
    return live


def stranger(live: LiveHost) -> str:
    return live.shell("docker container inspect --format '{{.Id}} {{.State.Pid}} {{.State.Running}}' stranger")


def test_a_dry_run_removes_nothing(live: LiveHost) -> None:
    before = live.shell(f"ls {' '.join(OURS)}")
    done = live.playbook("playbooks/teardown.yml", "--check")
    assert done.returncode == 0, done.stdout
    assert live.shell(f"ls {' '.join(OURS)}") == before
    assert live.answers()


def test_ours_goes_and_the_rest_stays(live: LiveHost) -> None:
    live.shell("systemctl stop comfyui.service")  # so that nothing writes between the two sums
    kept, other = live.shell(KEPT), stranger(live)
    done = live.playbook("playbooks/teardown.yml")
    assert done.returncode == 0, done.stdout
    for path in OURS:
        assert live.run(f"test -e {path}").returncode != 0, path
    assert live.shell("docker ps --all --format '{{.Names}}'") == "stranger"
    assert live.shell("docker image ls --format '{{.Repository}}'") == "stranger"
    assert live.shell("systemctl list-units --all --plain --no-legend 'comfyui.*' 'comfyui-guard.*'") == ""
    assert live.shell(KEPT) == kept
    assert stranger(live) == other
    assert live.shell("getent passwd comfyui")


def test_once_more_changes_nothing(live: LiveHost) -> None:
    done = live.playbook("playbooks/teardown.yml")
    assert done.returncode == 0, done.stdout
    assert "changed=0 " in done.stdout


def test_data_goes_when_asked(live: LiveHost) -> None:
    other = stranger(live)
    done = live.playbook("playbooks/teardown.yml", comfyui_service_remove_data=True)
    assert done.returncode == 0, done.stdout
    assert live.shell("find /srv/comfyui /var/backups/comfyui -type f | sort | xargs") == THEIRS
    assert live.run("getent passwd comfyui").returncode != 0
    assert stranger(live) == other
