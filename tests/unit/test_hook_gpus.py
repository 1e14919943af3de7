"""Whose GPUs a reload of systemd takes: only of containers that got them behind systemd's back."""

from __future__ import annotations

from typing import Any

import pytest

from hook_gpus import by_hook

GPUS = {"Driver": "", "Count": -1, "Capabilities": [["gpu"]]}
NVIDIA = {"Driver": "nvidia", "DeviceIDs": ["0"], "Capabilities": [["gpu", "compute"]]}
CDI = {"Driver": "cdi", "DeviceIDs": ["nvidia.com/gpu=all"]}


def container(name: str, environment: list[str] | None = None, **host: Any) -> dict[str, Any]:
    """A container as `docker container inspect` has it; its process is its name's length."""
    return {
        "Name": f"/{name}",
        "State": {"Pid": len(name)},
        "Config": {"Env": environment},
        "HostConfig": {"Runtime": "runc", "DeviceRequests": None, "Devices": None, **host},
    }


@pytest.mark.parametrize(
    ("found", "environ", "hit"),
    [
        (container("plain"), b"", False),
        (container("gpus", DeviceRequests=[GPUS]), b"NVIDIA_VISIBLE_DEVICES=all", True),
        (container("one", DeviceRequests=[NVIDIA]), b"PATH=/bin\0NVIDIA_VISIBLE_DEVICES=0", True),
        (container("by engine, as CDI", DeviceRequests=[GPUS]), b"A=b\0NVIDIA_VISIBLE_DEVICES=void\0", False),
        (container("cdi", DeviceRequests=[CDI]), b"", False),
        (container("other device", DeviceRequests=[{"Driver": "amd", "Capabilities": [["npu"]]}]), b"", False),
        (container("runtime", ["NVIDIA_VISIBLE_DEVICES=all"], Runtime="nvidia"), b"NVIDIA_VISIBLE_DEVICES=all", True),
        (
            container("runtime, jit", ["NVIDIA_VISIBLE_DEVICES=all"], Runtime="nvidia"),
            b"NVIDIA_VISIBLE_DEVICES=void",
            False,
        ),
        (container("runtime, none", ["NVIDIA_VISIBLE_DEVICES=none"], Runtime="nvidia"), b"", False),
        (container("image says all", ["NVIDIA_VISIBLE_DEVICES=all"]), b"NVIDIA_VISIBLE_DEVICES=all", False),
        (
            container("told the nodes", DeviceRequests=[GPUS], Devices=[{"PathOnHost": "/dev/nvidia0"}]),
            b"NVIDIA_VISIBLE_DEVICES=all",
            False,
        ),
    ],
    ids=lambda value: value["Name"][1:] if isinstance(value, dict) else None,
)
def test_whose_gpus_are_lost(found: dict[str, Any], environ: bytes, hit: bool) -> None:
    assert by_hook([found], lambda _pid: environ) == ([found["Name"][1:]] if hit else [])


def test_they_are_named_in_order_and_asked_by_their_own_process() -> None:
    known = {1: b"", 2: b"NVIDIA_VISIBLE_DEVICES=void", 3: b""}
    found = [container(name, DeviceRequests=[GPUS]) for name in ("ccc", "bb", "a")]
    assert by_hook(found, known.__getitem__) == ["a", "ccc"]
