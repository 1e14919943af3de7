"""A Docker engine on this machine: found, or installed from the distribution and started."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

import docker
from docker import DockerClient
from docker.errors import DockerException

from sandbox.stages import RefusalError, stage

START_LIMIT_S = 60
SYSTEMD = Path("/run/systemd/system")
LOG = Path("/var/log/dockerd-sandbox.log")
PID_FILES = {
    Path("/var/run/docker.pid"): "dockerd",
    Path("/var/run/docker/containerd/containerd.pid"): "containerd",
}


def connect() -> DockerClient | None:
    """The engine that answers at DOCKER_HOST or the default socket, or None."""
    try:
        client = docker.from_env(timeout=600)
        client.ping()
    except DockerException:
        return None
    return client


def ensure_engine() -> DockerClient:
    """Connect to an engine, starting or installing the distribution's where none answers.

    Raises RefusalError with what to type where that cannot be done.
    """
    if client := connect():
        return client
    if os.environ.get("DOCKER_HOST"):
        raise RefusalError(
            f"No Docker engine answers at DOCKER_HOST={os.environ['DOCKER_HOST']}. Start it, or type: unset DOCKER_HOST"
        )
    if os.geteuid() != 0:
        raise RefusalError(
            "No Docker engine answers here, and only root may start one. Type: sudo systemctl start docker "
            "(and add yourself to the group docker), or run this command as root. `make check` needs no engine."
        )
    if not shutil.which("dockerd"):
        _install()
    with stage("Starting a Docker engine on this machine"):
        return _start()


def _install() -> None:
    if not shutil.which("apt-get"):
        raise RefusalError(
            "No Docker engine is installed here, and this is no Debian or Ubuntu machine. "
            "Install Docker Engine 20.10 or newer, then run this command again. `make check` needs no engine."
        )
    with stage("Installing a Docker engine from this machine's distribution"):
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        for command in (["apt-get", "update"], ["apt-get", "install", "--yes", "docker.io", "iptables"]):
            done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
            if done.returncode != 0:
                raise RefusalError(
                    f"`{' '.join(command)}` failed, so no Docker engine can be had here: {last_line(done.stderr)}. "
                    "Install one by hand, then run this command again. `make check` needs no engine."
                )


def _start() -> DockerClient:
    daemon = None
    if SYSTEMD.is_dir():
        subprocess.run(["systemctl", "start", "docker.service"], check=False, capture_output=True)
    else:
        remove_stale_pid_files()
        with LOG.open("ab") as log:
            daemon = subprocess.Popen(
                ["dockerd"], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, cwd="/"
            )
    deadline = time.monotonic() + START_LIMIT_S
    while time.monotonic() < deadline and (daemon is None or daemon.poll() is None):
        if client := connect():
            return client
        time.sleep(0.2)
    tail = last_line(LOG.read_text(errors="replace")) if LOG.exists() else "see journalctl --unit docker"
    raise RefusalError(
        f"The Docker engine cannot be started here: {tail}. "
        "This machine may not allow containers. `make check` needs no engine."
    )


def remove_stale_pid_files() -> None:
    """Remove pid files that name a process which is not the engine's: it refuses to start beside them."""
    for path, program in PID_FILES.items():
        if not path.exists():
            continue
        pid = path.read_text().strip()
        name = Path(f"/proc/{pid}/comm")
        if not (pid.isdigit() and name.exists() and name.read_text().strip() == program):
            path.unlink()


def last_line(text: str) -> str:
    """The last line that says something."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no message"
