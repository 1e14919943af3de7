"""Containers whose GPUs a reload of systemd takes away. Pure functions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

# What a container has that got its GPUs by CDI, from the engine or from NVIDIA's runtime.
BY_CDI = b"NVIDIA_VISIBLE_DEVICES=void"
NONE = {"", "none", "void"}


def asks_for_gpus(container: Mapping[str, Any]) -> bool:
    """Whether a container of `docker container inspect` was asked to get GPUs by another way than CDI."""
    host = container["HostConfig"]
    for request in host.get("DeviceRequests") or []:
        words = {word for group in request.get("Capabilities") or [] for word in group}
        if request.get("Driver") != "cdi" and "gpu" in words:
            return True
    environment = dict(word.partition("=")[::2] for word in container["Config"].get("Env") or [])
    return host.get("Runtime") == "nvidia" and environment.get("NVIDIA_VISIBLE_DEVICES", "") not in NONE


def has_nodes_by_name(container: Mapping[str, Any]) -> bool:
    """Whether the engine itself was told the device nodes: systemd knows these."""
    return any(
        str(device.get("PathOnHost", "")).startswith("/dev/nvidia")
        for device in container["HostConfig"].get("Devices") or []
    )


def by_hook(containers: Iterable[Mapping[str, Any]], environ: Callable[[int], bytes]) -> list[str]:
    """Names of the running containers whose GPUs come by the legacy hook, behind systemd's back.

    `environ` gives the environment of a process as /proc has it. With the cgroup driver systemd a daemon-reload puts
    back the device rules that systemd knows, and such a container meets `Failed to initialize NVML: Unknown Error`.
    Source: NVIDIA/cloud-native-docs container-toolkit/troubleshooting.md.
    """
    return sorted(
        str(container["Name"]).lstrip("/")
        for container in containers
        if asks_for_gpus(container)
        and not has_nodes_by_name(container)
        and BY_CDI not in environ(container["State"]["Pid"]).split(b"\0")
    )
