"""A provisioned sandbox host, kept as an image and a volume: where every scenario but the first begins.

The container is committed and its engine's data copied, both while the host is shut down. The name carries a digest of
everything that provisioning reads, so a snapshot that is there is one of this tree.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

from docker import DockerClient
from docker.errors import NotFound
from docker.models.containers import Container

from sandbox import containers
from sandbox.images import context_files, digest_of, ensure_host_image, ensure_upstreams_image, has_image
from sandbox.stages import RefusalError, stage

ROOT = Path(__file__).parents[2]
NAME = f"{containers.PREFIX}-snapshot"
SEED = "seed"
FOLDERS = ("inventory", "playbooks", "plugins", "roles", "templates", "workflows")
FILES = ("ansible.cfg", "molecule/default/made.yml", "requirements.txt", "site.yml")
ENGINE_DATA = "/var/lib/docker"


def key(client: DockerClient, variables: dict[str, Any]) -> str:
    """Digest of what a provisioned host comes from; `variables` are the sandbox's own in its inventory.

    They name the base image by digest, ComfyUI by commit and the model by digest.
    """
    files = {f"{folder}/{name}": data for folder in FOLDERS for name, data in context_files(ROOT / folder).items()}
    files.update({name: (ROOT / name).read_bytes() for name in FILES})
    site = json.dumps({name: value for name, value in variables.items() if name != "ansible_host"}, sort_keys=True)
    return digest_of(ensure_host_image(client), ensure_upstreams_image(client), site, files)


def engine_volume(container: Container) -> str:
    """The volume that holds the engine's data of a host."""
    (mount,) = [mount for mount in container.attrs["Mounts"] if mount["Destination"] == ENGINE_DATA]
    return str(mount["Name"])


def copy_volume(client: DockerClient, image: str, source: str, target: str) -> None:
    """Copy one volume into a new one, with everything that a file has. What an earlier try left there goes."""
    containers.remove_volume(client, target)
    client.volumes.create(target, labels={containers.LABEL: target})
    client.containers.run(
        image,
        ["cp", "--archive", "/source/.", "/target/"],
        volumes={source: {"bind": "/source", "mode": "ro"}, target: {"bind": "/target", "mode": "rw"}},
        network_mode="none",
        remove=True,
    )


def take(client: DockerClient, name: str, tag: str) -> None:
    """Shut the host down, keep it as the snapshot in place of an older one, and start it again.

    Where the snapshot of this tree is there already, it stays.
    """
    if there(client, tag):
        return
    container = containers.find(client, name)
    if container is None:
        raise RefusalError(
            f"There is no sandbox {containers.full_name(name)} to keep. Type: python -m sandbox up {name}"
        )
    with stage(f"Keeping {container.name} as the start of the other scenarios"):
        for unit in ("comfyui.service", "docker.service"):
            containers.ask(container, "systemctl", "stop", unit)
        container.stop(timeout=30)
        try:
            forget(client)
            # The image last: it is what says that the snapshot is whole.
            copy_volume(client, str(container.attrs["Config"]["Image"]), engine_volume(container), f"{NAME}-{tag}")
            container.commit(repository=NAME, tag=tag)
        finally:
            container.start()
        containers.wait_for_boot(container)


def forget(client: DockerClient) -> None:
    """Remove every snapshot. One that a sandbox still runs on loses its name, and goes with the next removal."""
    for image in client.images.list(name=NAME):
        for tag in image.tags:
            client.images.remove(tag, force=True)
    for volume in client.volumes.list(filters={"name": f"{NAME}-"}):
        volume.remove(force=True)


def ensure(client: DockerClient, variables: dict[str, Any], mode: str) -> str:
    """The snapshot of this tree; a seed is provisioned and kept where there is none."""
    tag = key(client, variables)
    if not there(client, tag):
        seed(client, tag, mode)
    return tag


def there(client: DockerClient, tag: str) -> bool:
    """Whether both halves of this snapshot are there."""
    try:
        client.volumes.get(f"{NAME}-{tag}")
    except NotFound:
        return False
    return has_image(client, f"{NAME}:{tag}")


def start(client: DockerClient, name: str, port: int | None, tag: str) -> Container:
    """A sandbox host that begins as this snapshot."""
    with stage(f"Starting {containers.full_name(name)} from the provisioned snapshot"):
        volume = f"{containers.full_name(name)}-engine"
        copy_volume(client, f"{NAME}:{tag}", f"{NAME}-{tag}", volume)
        return containers.start_host(
            client,
            name,
            f"{NAME}:{tag}",
            ports={containers.FORWARD_PORT: ("127.0.0.1", port)},
            binds=[f"{volume}:{ENGINE_DATA}:rw"],
        )


def seed(client: DockerClient, tag: str, mode: str) -> None:
    """Provision a host from nothing for the snapshot; its output goes to artifacts/seed.log."""
    log = ROOT / "artifacts" / "seed.log"
    log.parent.mkdir(exist_ok=True)
    inventory = f".cache/sandbox/{SEED}"
    containers.remove(client, SEED)
    with (
        stage(f"Provisioning a host for the snapshot (some minutes, see {log.relative_to(ROOT)})"),
        log.open("w") as out,
    ):
        for command in (
            ["python", "-m", "sandbox", "up", SEED, "--from", "nothing", "--upstreams", mode],
            ["ansible-playbook", "--inventory", inventory, "site.yml"],
            ["ansible-playbook", "--inventory", inventory, "molecule/default/made.yml"],
        ):
            if subprocess.run(command, cwd=ROOT, stdout=out, stderr=out, check=False).returncode != 0:
                raise RefusalError(f"`{' '.join(command)}` failed: see {log.relative_to(ROOT)}")
    take(client, SEED, tag)
    containers.remove(client, SEED)
    shutil.rmtree(ROOT / inventory)
