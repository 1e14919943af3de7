"""Which GPUs a container gets, and how `docker run` is asked for them. Pure functions."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

# CDI came with 25 behind a feature, and is on by itself from 28.2.
# Source: docs.docker.com, engine release notes 25.0 and 28.2; moby/moby daemon/devices.go.
CDI_FIRST = (25, 0)
CDI_BY_DEFAULT = (28, 2)
# From here on `--gpus` itself becomes CDI where dockerd found the toolkit at its start, the legacy hook elsewhere.
# Source: docs.docker.com, engine release notes 29.2; moby/moby daemon/devices_nvidia_linux.go.
GPUS_BY_CDI = (29, 2)
# The first toolkit with nvidia-cdi-refresh, which keeps the specification on disk current.
REFRESHED_SINCE = (1, 18, 0)

# A GPU by index or UUID; a MIG device by both its indices or UUID.
DEVICE = re.compile(r"\d+(:\d+)?|(GPU|MIG)-[0-9a-fA-F][0-9a-fA-F/-]*")
WORDS = ("auto", "all", "none")


@dataclass(frozen=True)
class Gpu:
    """A GPU as nvidia-smi lists it, with the MIG devices that it is split into: index pair to UUID.

    One in MIG mode (`split`) has only these to give, and before its first instance nothing.
    """

    index: str
    name: str
    uuid: str
    mig: dict[str, str]
    split: bool = False


@dataclass(frozen=True)
class GpuRequest:
    """What `docker run` is told, by which way the GPUs come (none, cdi or gpus), and why."""

    arguments: list[str]
    way: str
    reasons: list[str]


def version_tuple(text: str) -> tuple[int, ...]:
    """Figures of the first dotted version in `text`; () without one."""
    found = re.search(r"\d+(?:\.\d+)+", text)
    return tuple(int(part) for part in found.group(0).split(".")) if found else ()


def requested(value: Any) -> list[str]:
    """The names in a request: one word of WORDS alone, or devices. A list, or text with commas; repeats are dropped.

    Raises ValueError for anything else; its message says what was found and what was expected.
    """
    parts = value if isinstance(value, list) else str(value).split(",")
    names = list(dict.fromkeys(str(part).strip() for part in parts))
    if names in [[word] for word in WORDS]:
        return names
    strange = [name for name in names if not DEVICE.fullmatch(name)]
    if strange or not names:
        raise ValueError(
            f"{', '.join(map(repr, strange)) or 'nothing'} in the GPU request, expected all, none, auto, or a list of "
            "indices (0), UUIDs (GPU-...) or MIG devices (0:1, MIG-...)"
        )
    return names


def parse_gpus(listing: str, modes: str = "") -> list[Gpu]:
    """The GPUs in the output of `nvidia-smi -L`; lines of another shape are passed over.

    `modes` is that of `nvidia-smi --query-gpu=index,mig.mode.current --format=csv,noheader`.
    """
    in_mig_mode = re.findall(r"(?m)^\s*(\d+), Enabled\s*$", modes)
    gpus: list[Gpu] = []
    for line in listing.splitlines():
        if found := re.fullmatch(r"GPU (\d+): (.+) \(UUID: (\S+)\)\s*", line):
            gpus.append(Gpu(found[1], found[2], found[3], {}, split=found[1] in in_mig_mode))
        elif gpus and (found := re.fullmatch(r"\s+MIG \S+\s+Device\s+(\d+): \(UUID: (\S+)\)\s*", line)):
            gpus[-1].mig[f"{gpus[-1].index}:{found[1]}"] = found[2]
    return gpus


def spellings(gpus: Iterable[Gpu]) -> list[list[str]]:
    """Every device that a container can have, by index and by UUID. A GPU that is split has only its parts to give.

    Source: NVIDIA/nvidia-container-toolkit pkg/nvcdi, names of devices.
    """
    found: list[list[str]] = []
    for gpu in gpus:
        found += [list(pair) for pair in gpu.mig.items()] if gpu.mig or gpu.split else [[gpu.index, gpu.uuid]]
    return found


def missing_devices(names: list[str], gpus: list[Gpu]) -> list[str]:
    """What is wrong with a request on a host with these GPUs, a sentence for each name; empty where it can be met."""
    if names[0] in WORDS:
        return []
    there = [name for pair in spellings(gpus) for name in pair]
    problems = []
    for name in names:
        split = [gpu for gpu in gpus if (gpu.mig or gpu.split) and name in (gpu.index, gpu.uuid)]
        if split and not split[0].mig:
            problems.append(
                f"GPU {name} is in MIG mode and has no instance (sudo nvidia-smi mig -lgip shows which it may)"
            )
        elif split:
            problems.append(f"GPU {name} is split by MIG into {', '.join(split[0].mig)}")
        elif name not in there:
            problems.append(f"GPU {name} is not on this host, which has {', '.join(there) or 'none'}")
    return problems


def gpu_request(value: Any, *, engine: str, toolkit: str) -> GpuRequest:
    """How `docker run` asks for the GPUs in `value` (a request without `auto`) on one engine.

    `engine` and `toolkit` are versions. An empty one is still to be installed, and counts as new enough; the role
    docker_engine switches CDI on where an engine has it behind a feature. Raises ValueError as `requested` does.
    """
    names = requested(value)
    if names == ["auto"]:
        raise ValueError("'auto' in the GPU request, expected that the host was asked before")
    if names == ["none"]:
        return GpuRequest([], "none", ["no GPU is asked for"])
    version, toolkit_version = version_tuple(engine), version_tuple(toolkit)
    shown = f"Docker {engine}" if engine else "the engine that is to be installed"
    if version and version < CDI_FIRST:
        against = f"{shown} has no CDI, which came with 25.0"
    elif toolkit_version and toolkit_version < REFRESHED_SINCE:
        against = f"toolkit {toolkit} has nothing that keeps a CDI specification current, which came with 1.18.0"
    else:
        by_itself = not version or version >= CDI_BY_DEFAULT
        reasons = [
            f"{shown} has CDI {'by itself' if by_itself else 'by features.cdi'}",
            "by CDI a running container keeps its GPUs over a daemon-reload",
        ]
        arguments = [word for name in names for word in ("--device", f"nvidia.com/gpu={name}")]
        return GpuRequest(arguments, "cdi", reasons)
    # The value is read as CSV: a list of devices has to be one quoted field.
    wanted = "all" if names == ["all"] else f'"device={",".join(names)}"'
    meaning = (
        "--gpus is CDI or the legacy hook, as dockerd found the toolkit at its start"
        if version >= GPUS_BY_CDI
        else "--gpus is the legacy hook: a daemon-reload can take the GPUs from a running container for good"
    )
    return GpuRequest(["--gpus", wanted], "gpus", [against, meaning])
