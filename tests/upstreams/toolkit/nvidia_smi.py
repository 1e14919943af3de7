#!/usr/bin/python3
"""Stand-in for nvidia-smi: answers from the profile that the stand-in driver was installed with.

Knows `-L`, `--query-gpu=FIELDS --format=csv[,noheader][,nounits]`, `--query-compute-apps=FIELDS` (no process
is ever on the GPU) and the bare call. Without /dev/nvidiactl it fails as the real program does without a driver.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

PROFILE = "/usr/lib/nvidia-standin/profile.json"
CONTROL_NODE = "/dev/nvidiactl"
NOT_AVAILABLE = "[N/A]"
UNITS = {"memory.total": "MiB", "memory.used": "MiB", "memory.free": "MiB", "utilization.gpu": "%"}
APPS_FIELDS = {"pid": "", "process_name": "", "used_memory": "MiB", "used_gpu_memory": "MiB", "gpu_uuid": ""}


def gpu_fields(profile: dict[str, Any], index: int) -> dict[str, str | None]:
    """Every field of one GPU that can be asked for; None is what the driver does not report."""
    gpu = profile["gpus"][index]
    total_mib, used_mib = profile["memory_total_mib"], profile["memory_used_mib"]
    has_memory = total_mib is not None
    return {
        "index": str(index),
        "count": str(len(profile["gpus"])),
        "name": gpu["name"],
        "gpu_name": gpu["name"],
        "uuid": gpu["uuid"],
        "gpu_uuid": gpu["uuid"],
        "pci.bus_id": gpu["bus_id"],
        "driver_version": profile["driver_version"],
        "compute_cap": profile["compute_cap"],
        "memory.total": str(total_mib) if has_memory else None,
        "memory.used": str(used_mib) if has_memory else None,
        "memory.free": str(total_mib - used_mib) if has_memory else None,
        "utilization.gpu": "0",
        "temperature.gpu": "35",
        "mig.mode.current": "Enabled" if "mig" in gpu else "Disabled" if has_memory else None,
    }


def listing(profile: dict[str, Any]) -> list[str]:
    """The lines of `-L`: each GPU, and the MIG devices that it is split into."""
    lines = []
    for index, gpu in enumerate(profile["gpus"]):
        lines.append(f"GPU {index}: {gpu['name']} (UUID: {gpu['uuid']})")
        for part, mig in enumerate(gpu.get("mig", [])):
            lines.append(f"  MIG {mig['profile']:<11} Device {part:>2}: (UUID: {mig['uuid']})")
    return lines


def query(profile: dict[str, Any], fields: list[str], style: list[str]) -> tuple[int, str]:
    """Exit status and text of `--query-gpu`."""
    header = ", ".join(
        f"{field} [{UNITS[field]}]" if field in UNITS and "nounits" not in style else field for field in fields
    )
    lines = [] if "noheader" in style else [header]
    for index in range(len(profile["gpus"])):
        known = gpu_fields(profile, index)
        for field in fields:
            if field not in known:
                return 2, f'Field "{field}" is not a valid field to query.\n'
        values = []
        for field in fields:
            value = known[field]
            unit = f" {UNITS[field]}" if field in UNITS and "nounits" not in style else ""
            values.append(NOT_AVAILABLE if value is None else value + unit)
        lines.append(", ".join(values))
    return 0, "".join(f"{line}\n" for line in lines)


def answer(argv: list[str], profile: dict[str, Any]) -> tuple[int, str]:
    """Exit status and text of one call."""
    parser = argparse.ArgumentParser(prog="nvidia-smi", description="Stand-in for nvidia-smi.")
    parser.add_argument("-L", "--list-gpus", action="store_true")
    parser.add_argument("--query-gpu", default="")
    parser.add_argument("--query-compute-apps", default="")
    parser.add_argument("--format", default="")
    arguments = parser.parse_args(argv)
    style = arguments.format.split(",")
    if arguments.list_gpus:
        return 0, "".join(f"{line}\n" for line in listing(profile))
    if (arguments.query_gpu or arguments.query_compute_apps) and "csv" not in style:
        return 1, '"--format=" switch is missing "csv".\n'
    if arguments.query_gpu:
        return query(profile, arguments.query_gpu.replace(" ", "").split(","), style)
    if arguments.query_compute_apps:
        fields = arguments.query_compute_apps.replace(" ", "").split(",")
        unknown = [field for field in fields if field not in APPS_FIELDS]
        if unknown:
            return 2, f'Field "{unknown[0]}" is not a valid field to query.\n'
        return 0, "" if "noheader" in style else ", ".join(fields) + "\n"
    versions = f"Driver Version: {profile['driver_version']}  CUDA Version: {profile['cuda_version']}"
    names = "".join(f"| {index}  {gpu['name']} |\n" for index, gpu in enumerate(profile["gpus"]))
    return 0, f"| NVIDIA-SMI (stand-in)  {versions} |\n{names}"


def main() -> int:
    if not Path(os.environ.get("NVIDIA_STANDIN_CONTROL_NODE", CONTROL_NODE)).exists():
        print(
            "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. "
            "Make sure that the latest NVIDIA driver is installed and running.\n"
        )
        return 9
    profile = json.loads(Path(os.environ.get("NVIDIA_STANDIN_PROFILE", PROFILE)).read_text())
    status, text = answer(sys.argv[1:], profile)
    sys.stdout.write(text)
    return status


if __name__ == "__main__":
    sys.exit(main())
