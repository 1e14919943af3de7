#!/usr/bin/python3
"""Starts and stops ComfyUI's container as the current release says; comfyui.service calls it.

A release is a JSON file below /etc/comfyui/releases; /etc/comfyui/current points at the one to run. The container
is made once per release and adopted afterwards, so that a restart of the engine or of this unit leaves it alone.
Standard library only: it runs on the host's own Python.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

CURRENT = Path("/etc/comfyui/current")
CONTAINER = "comfyui"
RELEASE_LABEL = "dgx-comfyui.release"
CONTAINER_PORT = 8188


class GuardError(Exception):
    """What is wrong on this host, in one sentence that names the command to type."""


def load_release(path: Path = CURRENT) -> dict[str, Any]:
    """The current release; its id is the name of its file."""
    try:
        target = path.resolve(strict=True)
        release: dict[str, Any] = json.loads(target.read_text())
    except FileNotFoundError as error:
        raise GuardError(f"{path} points at no release. Run ansible-playbook site.yml for this host.") from error
    except ValueError as error:
        raise GuardError(
            f"{target} is not valid JSON ({error}). Run ansible-playbook site.yml for this host."
        ) from error
    return {**release, "id": target.stem}


def run_arguments(release: dict[str, Any]) -> list[str]:
    """The arguments of `docker run` for a release: loopback, no capabilities, read-only but for what ComfyUI writes."""
    data_dir = release["data_dir"]
    user = release["user_id"]
    mounts = [f"type=bind,src={data_dir}/models,dst=/data/models,readonly"]
    mounts += [f"type=bind,src={data_dir}/{name},dst=/data/{name}" for name in ("cache", "input", "output", "user")]
    return [
        "--detach",
        "--init",
        "--name",
        CONTAINER,
        "--label",
        f"{RELEASE_LABEL}={release['id']}",
        "--log-driver",
        "journald",
        "--restart",
        f"on-failure:{release['restart_limit']}",
        "--user",
        f"{user}:{user}",
        "--read-only",
        "--cap-drop",
        "ALL",
        "--security-opt",
        "no-new-privileges",
        "--tmpfs",
        f"/tmp:rw,nosuid,nodev,size={release['tmp_size']}",  # noqa: S108 - in the container
        "--shm-size",
        release["shm_size"],
        *[word for mount in mounts for word in ("--mount", mount)],
        "--publish",
        f"{release['bind_address']}:{release['port']}:{CONTAINER_PORT}",
        *release["gpus"],
        release["image"],
        "python",
        "main.py",
        *release["flags"],
    ]


def docker(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the Docker CLI; the caller looks at the status."""
    return subprocess.run(["docker", *arguments], capture_output=True, text=True, check=False)


def require(done: subprocess.CompletedProcess[str], what: str) -> str:
    """The output of a command that must have worked."""
    if done.returncode != 0:
        raise GuardError(f"{what} failed: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout.strip()


def existing_release() -> str | None:
    """The release that the container on this host was made for; empty for a foreign one, None where there is none."""
    template = f'{{{{index .Config.Labels "{RELEASE_LABEL}"}}}}'
    done = docker("container", "inspect", "--format", template, CONTAINER)
    return done.stdout.strip() if done.returncode == 0 else None


def start() -> None:
    """Make sure that the current release's container runs."""
    release = load_release()
    found = existing_release()
    if found == "":
        raise GuardError(
            f"A container named {CONTAINER} is here that this service did not make. "
            f"Rename it (docker rename {CONTAINER} my-{CONTAINER}), then: systemctl restart comfyui"
        )
    if found == release["id"]:
        require(docker("start", CONTAINER), f"starting the container of release {release['id']}")
        return
    if docker("image", "inspect", release["image"]).returncode != 0:
        raise GuardError(f"The image {release['image']} is not on this host. Run ansible-playbook site.yml for it.")
    if found is not None:
        require(docker("rm", "--force", CONTAINER), f"removing the container of release {found}")
    require(docker("run", *run_arguments(release)), f"creating the container of release {release['id']}")


def stop() -> None:
    """Stop the container and keep it: the next start adopts it."""
    if existing_release():
        require(docker("stop", CONTAINER), "stopping the container")


def main(arguments: list[str]) -> int:
    """Entry point; a GuardError is one line in the journal and status 1."""
    verbs = {"start": start, "stop": stop}
    if len(arguments) != 1 or arguments[0] not in verbs:
        sys.stderr.write(f"usage: comfyui_guard.py {'|'.join(verbs)}\n")
        return 2
    try:
        verbs[arguments[0]]()
    except GuardError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
