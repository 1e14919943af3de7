"""Containers of the sandbox: the host to provision and the stand-in upstreams beside it."""

from __future__ import annotations

import io
import json
import os
import socket
import subprocess
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

from docker import DockerClient
from docker.errors import APIError, NotFound
from docker.models.containers import Container

from sandbox.images import IMAGES, ensure_base_image, ensure_host_image, ensure_upstreams_image
from sandbox.stages import RefusalError, stage

# Another value lets two checkouts work side by side on one engine; images are shared, their tags say what is in them.
PREFIX = os.environ.get("SANDBOX_PREFIX", "dgx-comfyui")
LABEL = "dgx-comfyui.sandbox"
REGISTRY_VOLUME = f"{PREFIX}-registry"
FORWARD_PORT = 18188
REGISTRY_PORT = 5000
SERVICE_PORTS = [80, REGISTRY_PORT, 8001]
BOOT_LIMIT_S = 60
BASE_REPOSITORY = "standin/pytorch"
# The stand-ins' name in a sandbox host: their address may change, what was built from it must not.
UPSTREAMS_NAME = "upstreams.test"
# Settings of somebody else on that host: every run must leave them in daemon.json.
PLANTED_DAEMON_KEYS = {"default-cgroupns-mode": "host"}
PLANTED_REGISTRIES = ["planted.example.com:5000"]
REGISTRY = f"{UPSTREAMS_NAME}:{REGISTRY_PORT}"
# NVIDIA's character devices, which the stand-in driver makes: control and GPU nodes 195, nvidia-uvm 510
# (on a real host the kernel picks that one).
DEVICE_RULES = ["c 195:* rwm", "c 510:* rwm"]


def full_name(name: str) -> str:
    """The container's name on the engine."""
    return f"{PREFIX}-{name}"


def find(client: DockerClient, name: str) -> Container | None:
    """The container of this name, whatever its state."""
    try:
        return client.containers.get(full_name(name))
    except NotFound:
        return None


def host_configs(
    client: DockerClient, ports: dict[int, tuple[str, int | None]], binds: list[str]
) -> list[dict[str, Any]]:
    """Ways to run a host with systemd and an engine inside, the usual one first.

    An engine that itself lacks a capability (SYS_RESOURCE, say) refuses `privileged`; the second way asks for
    everything else by name. Masked paths are lifted because inner containers write below /proc/sys:
    `--security-opt systempaths=unconfined` exists in the command line only, the API takes the empty lists.
    """
    shared: dict[str, Any] = {
        "binds": ["/sys/fs/cgroup:/sys/fs/cgroup:rw", *binds],
        "tmpfs": {"/run": "exec,mode=755", "/tmp": "exec,mode=1777"},  # noqa: S108 - mount points, not files
        "port_bindings": {f"{port}/tcp": publish for port, publish in ports.items()},
    }
    privileged = client.api.create_host_config(privileged=True, **shared)
    by_name = client.api.create_host_config(
        cap_add=["ALL"],
        cap_drop=["SYS_RESOURCE"],
        security_opt=["seccomp=unconfined", "apparmor=unconfined"],
        device_cgroup_rules=DEVICE_RULES,
        **shared,
    )
    by_name.update(MaskedPaths=[], ReadonlyPaths=[])
    configs: list[dict[str, Any]] = [privileged, by_name]
    for config in configs:
        config["CgroupnsMode"] = "host"
    return configs


def start_host(
    client: DockerClient,
    name: str,
    image: str,
    *,
    ports: dict[int, tuple[str, int | None]],
    binds: list[str] | None = None,
    volumes: list[str] | None = None,
) -> Container:
    """Create and start a systemd container, in the first way that the engine allows, and wait until it has booted."""
    refused = ""
    for config in host_configs(client, ports, binds or []):
        created = client.api.create_container(
            image,
            name=full_name(name),
            hostname=name,
            labels={LABEL: name},
            volumes=volumes or [],
            ports=list(ports),
            host_config=config,
        )
        container = client.containers.get(created["Id"])
        try:
            container.start()
        except APIError as error:
            refused = str(error.explanation)
            container.remove(force=True, v=True)
            if "port is already allocated" in refused or "address already in use" in refused:
                break
            continue
        wait_for_boot(container)
        return container
    raise RefusalError(f"The engine refused to start the container {full_name(name)}: {refused}")


def ask(container: Container, *command: str) -> str:
    """What a command in the container prints, whatever its status."""
    output = container.exec_run(list(command)).output
    return b"".join([output] if isinstance(output, bytes) else output).decode(errors="replace").strip()


def wait_for_boot(container: Container) -> None:
    """Wait for systemd; a degraded state is an answer too and is reported."""
    deadline = time.monotonic() + BOOT_LIMIT_S
    state = ""
    while time.monotonic() < deadline:
        container.reload()
        if container.status != "running":
            raise RefusalError(f"{container.name} stopped while booting: {container.logs(tail=5).decode()}")
        state = ask(container, "systemctl", "is-system-running")
        if state in {"running", "degraded"}:
            break
        time.sleep(0.3)
    if state == "degraded":
        failed = ask(container, "systemctl", "--failed", "--plain", "--no-legend")
        raise RefusalError(f"{container.name} booted, but a unit failed: {failed}")
    if state != "running":
        raise RefusalError(f"{container.name} did not boot within {BOOT_LIMIT_S} s: systemd says '{state}'")


def address_of(container: Container) -> str:
    """The container's address on the engine's default network."""
    container.reload()
    return str(container.attrs["NetworkSettings"]["IPAddress"])


def published_port(container: Container, port: int) -> int:
    """The port of this machine's loopback that leads to the container's."""
    container.reload()
    return int(container.attrs["NetworkSettings"]["Ports"][f"{port}/tcp"][0]["HostPort"])


def remove_volume(client: DockerClient, name: str) -> None:
    """Remove a volume where there is one."""
    try:
        client.volumes.get(name).remove(force=True)
    except NotFound:
        return


def remove(client: DockerClient, name: str) -> bool:
    """Remove a sandbox container with its volumes, also one that an earlier try left alone; False where none was."""
    container = find(client, name)
    if container is not None:
        container.remove(force=True, v=True)
    remove_volume(client, f"{full_name(name)}-engine")
    return container is not None


def remove_shared(client: DockerClient) -> list[str]:
    """Remove stand-ins, images and volumes, unless another sandbox needs them; returns what to tell."""
    others = client.containers.list(all=True, filters={"label": LABEL})
    names = sorted(str(other.name) for other in others if other.name != full_name("upstreams"))
    if names:
        return [f"Kept what {', '.join(names)} still needs: the stand-in upstreams and the images."]
    remove(client, "upstreams")
    prefixes = (f"{PREFIX}-", f"{IMAGES}-")
    for volume in client.volumes.list():
        if str(volume.name).startswith(prefixes):
            volume.remove(force=True)
    for tag in [tag for image in client.images.list() for tag in image.tags if tag.startswith(prefixes)]:
        client.images.remove(tag, force=True)
    return ["Removed the sandbox, the stand-in upstreams and their images. The Docker engine stays."]


def read_file(container: Container, path: str) -> bytes:
    """A file out of a container."""
    stream, _ = container.get_archive(path)
    with tarfile.open(fileobj=io.BytesIO(b"".join(stream))) as archive:
        member = archive.extractfile(archive.next() or path)
        return member.read() if member else b""


def ensure_upstreams(client: DockerClient) -> Container:
    """The running stand-in upstreams, with the base image in their registry."""
    image = ensure_upstreams_image(client)
    container = find(client, "upstreams")
    if container is not None and container.attrs["Config"]["Image"] != image:
        container.remove(force=True, v=True)
        container = None
    if container is None:
        with stage("Starting the stand-in upstreams"):
            container = start_host(
                client,
                "upstreams",
                image,
                ports={REGISTRY_PORT: ("127.0.0.1", None)},
                binds=[f"{REGISTRY_VOLUME}:/var/lib/docker-registry:rw"],
            )
    elif container.status != "running":
        container.start()
        wait_for_boot(container)
    wait_for_services(container)
    return container


def wait_for_services(upstreams: Container) -> None:
    """Wait until each stand-in accepts connections."""
    deadline = time.monotonic() + BOOT_LIMIT_S
    for port in SERVICE_PORTS:
        while True:
            try:
                with socket.create_connection((address_of(upstreams), port), timeout=1):
                    break
            except OSError as error:
                if time.monotonic() > deadline:
                    raise RefusalError(
                        f"The stand-in on port {port} does not answer: docker exec {upstreams.name} systemctl --failed"
                    ) from error
                time.sleep(0.2)


def ensure_base(client: DockerClient, upstreams: Container) -> str:
    """The base image in the stand-in registry; returns `name:tag@digest` as the sandbox's engine pulls it."""
    image = ensure_base_image(client)
    tag = image.rpartition(":")[2]
    repository = f"127.0.0.1:{published_port(upstreams, REGISTRY_PORT)}/{BASE_REPOSITORY}"
    try:
        digest = str(client.images.get_registry_data(f"{repository}:{tag}").id)
    except APIError:
        with stage("Pushing the base image to the stand-in registry"):
            client.images.get(image).tag(repository, tag)
            for event in client.images.push(repository, tag, stream=True, decode=True):
                if "error" in event:
                    raise RefusalError(f"pushing {repository}:{tag} failed: {event['error']}") from None
            client.images.remove(f"{repository}:{tag}")
        digest = str(client.images.get_registry_data(f"{repository}:{tag}").id)
    return f"{REGISTRY}/{BASE_REPOSITORY}:{tag}@{digest}"


def as_root(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    """The entry, owned by root: the machine's own numbers mean nothing in a container."""
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    return entry


def serve_repository(upstreams: Container, source: Path, ref: str) -> tuple[str, str]:
    """Serve a local git repository over the stand-in's smart HTTP; returns its URL and the commit that `ref` names."""
    with tempfile.TemporaryDirectory() as scratch:
        bare = Path(scratch, "local.git")
        subprocess.run(["git", "clone", "--quiet", "--bare", str(source), str(bare)], check=True)
        subprocess.run(["git", "-C", str(bare), "config", "uploadpack.allowAnySHA1InWant", "true"], check=True)
        commit = subprocess.run(
            ["git", "-C", str(bare), "rev-parse", "--verify", "--quiet", f"{ref}^{{commit}}"],
            check=False,
            capture_output=True,
            text=True,
        ).stdout.strip()
        if not commit:
            raise RefusalError(f"{source} has no tag {ref}. Type: git -C {source} tag {ref} COMMIT")
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            archive.add(bare, arcname="local.git", filter=as_root)
        upstreams.exec_run(["rm", "-rf", "/srv/upstreams/git/local.git"])
        upstreams.put_archive("/srv/upstreams/git", buffer.getvalue())
    return f"http://{UPSTREAMS_NAME}/git/local.git", commit


def go_on(client: DockerClient, name: str, port: int | None) -> Container | None:
    """The sandbox host of this name, running again; None where there is none.

    ComfyUI's loopback port is published at 127.0.0.1:`port` of this machine, or where the engine chose to.
    """
    container = find(client, name)
    if container is None:
        return None
    if container.status != "running":
        container.start()
        wait_for_boot(container)
    if port and published_port(container, FORWARD_PORT) != port:
        raise RefusalError(
            f"{full_name(name)} is there and leads to port {published_port(container, FORWARD_PORT)}, not {port}. "
            "Go on with that port (make demo DEMO_PORT=...), or begin anew: make demo-destroy"
        )
    return container


def start_virgin(client: DockerClient, name: str, port: int | None) -> Container:
    """A new sandbox host that nothing has been done to."""
    image = ensure_host_image(client)
    with stage(f"Starting the sandbox host {full_name(name)}"):
        return start_host(client, name, image, ports={FORWARD_PORT: ("127.0.0.1", port)}, volumes=["/var/lib/docker"])


def introduce_upstreams(host: Container, upstreams: Container) -> None:
    """Give the stand-ins their name on the host, and let its engine-to-be pull from their registry without TLS.

    Both are what the operator of such a host would have set: the roles must keep them.
    """
    lines = [line for line in ask(host, "cat", "/etc/hosts").splitlines() if not line.endswith(UPSTREAMS_NAME)]
    hosts = "\n".join([*lines, f"{address_of(upstreams)} {UPSTREAMS_NAME}", ""])
    # Docker mounts this file: it can be written, not replaced.
    host.exec_run(["python3", "-c", "import sys; open('/etc/hosts', 'w').write(sys.argv[1])", hosts])
    if host.exec_run(["test", "-e", "/etc/docker/daemon.json"]).exit_code == 0:
        return
    setting = json.dumps(PLANTED_DAEMON_KEYS | {"insecure-registries": [REGISTRY, *PLANTED_REGISTRIES]}).encode()
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        entry = tarfile.TarInfo("docker/daemon.json")
        entry.size = len(setting)
        archive.addfile(entry, io.BytesIO(setting))
    host.put_archive("/etc", buffer.getvalue())


def standin_facts(upstreams: Container) -> dict[str, Any]:
    """What the stand-ins say of themselves: commits, fingerprints, digests."""
    facts: dict[str, Any] = json.loads(read_file(upstreams, "/srv/upstreams/facts.json"))
    return facts
