"""The Docker engine, as an operator finds it on the host."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

import daemon_json

DAEMON_JSON = "/etc/docker/daemon.json"
BACKUP = f"{DAEMON_JSON}.before-dgx-comfyui"
MINIMUM = (25, 0)
# Planted with other keys that this product does not set, before the first run.
PLANTED_REGISTRY = "planted.example.com:5000"
# Log options belong to a driver; a host that already logs with another one keeps it.
OUR_LOG_DRIVER = "json-file"
FORMAT = "{{json .HostConfig.LogConfig}}"


@pytest.fixture(scope="module")
def info(host: Any) -> dict[str, Any]:
    """What the running engine says about itself."""
    found = json.loads(host.check_output("docker info --format '{{json .}}'"))
    assert isinstance(found, dict)
    return found


@pytest.fixture(scope="module")
def daemon(host: Any) -> dict[str, Any]:
    """The settings in daemon.json."""
    found = json.loads(host.file(DAEMON_JSON).content_string)
    assert isinstance(found, dict)
    return found


def test_the_engine_is_new_enough(info: dict[str, Any]) -> None:
    found = re.match(r"(\d+)\.(\d+)", info["ServerVersion"])
    assert found, info["ServerVersion"]
    assert (int(found.group(1)), int(found.group(2))) >= MINIMUM


def test_the_engine_comes_back_after_a_boot(host: Any) -> None:
    assert host.service("docker").is_running
    assert host.service("docker").is_enabled


def test_containers_survive_a_restart_of_the_daemon(info: dict[str, Any]) -> None:
    if info["Swarm"]["LocalNodeState"] != "inactive":
        pytest.skip("a swarm member cannot have live-restore")
    assert info["LiveRestoreEnabled"] is True


def test_logs_are_rotated(host: Any, info: dict[str, Any]) -> None:
    if info["LoggingDriver"] != OUR_LOG_DRIVER:
        pytest.skip(f"this host logs with {info['LoggingDriver']}, which is left as it is")
    # What a new container gets is what the engine runs with; the file may wait for a restart.
    images = host.check_output("docker image ls --quiet").split()
    if not images:
        images = [host.check_output("printf '' | docker import - dgx-comfyui-test:empty")]
    made = host.check_output("docker container create --pull never --network none --entrypoint /x %s", images[0])
    try:
        settings = json.loads(host.check_output("docker container inspect --format %s %s", FORMAT, made))
    finally:
        host.check_output("docker container rm %s", made)
        host.run("docker image rm dgx-comfyui-test:empty")
    assert settings["Config"]["max-size"]
    assert settings["Config"]["max-file"]


def test_cdi_is_on(info: dict[str, Any]) -> None:
    assert info["CDISpecDirs"], "the engine has no CDI spec directories: features.cdi needs a restart of Docker"


def test_images_can_be_built(host: Any) -> None:
    assert "buildx" in host.check_output("docker buildx version")


def test_dockerd_accepts_the_file(host: Any) -> None:
    assert "configuration OK" in host.run(f"dockerd --validate --config-file={DAEMON_JSON}").stderr


def test_what_others_had_set_is_still_there(host: Any, daemon: dict[str, Any]) -> None:
    # An operator may have removed a key of his own since: only what a test planted is known to belong there.
    if not host.file(BACKUP).exists or PLANTED_REGISTRY not in host.file(BACKUP).content_string:
        pytest.skip("no foreign keys were planted on this host")
    before = json.loads(host.file(BACKUP).content_string)
    assert daemon_json.same(daemon_json.merge(daemon, before), daemon)


def test_the_file_is_not_writable_by_others(host: Any) -> None:
    file = host.file(DAEMON_JSON)
    assert file.user == "root"
    assert file.mode & 0o022 == 0
