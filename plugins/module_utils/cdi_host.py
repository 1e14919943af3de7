"""What this host shows of its GPUs: device nodes, driver, CDI specification, and how they fit together.

Standard library only: this runs on the hosts.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
import re
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any

try:
    from ansible.module_utils.cdi_spec import SpecError, compare, device_nodes, host_files, parse
    from ansible.module_utils.gpu_request import parse_gpus, spellings
except ImportError:  # beside the guard, without Ansible
    from cdi_spec import SpecError, compare, device_nodes, host_files, parse
    from gpu_request import parse_gpus, spellings

SPEC = Path("/var/run/cdi/nvidia.yaml")
DRIVER_VERSION = Path("/proc/driver/nvidia/version")
REFRESH_SETTINGS = Path("/etc/nvidia-container-toolkit/nvidia-cdi-refresh.env")
NODE_PATTERNS = ("/dev/nvidia*", "/dev/nvidia-caps/*")


def character_devices(paths: Iterable[str]) -> dict[str, tuple[int, int]]:
    """Major and minor number of those paths that are character devices."""
    found = {}
    for path in paths:
        with contextlib.suppress(OSError):
            status = os.stat(path)
            if stat.S_ISCHR(status.st_mode):
                found[path] = (os.major(status.st_rdev), os.minor(status.st_rdev))
    return found


def read_spec(path: Path = SPEC) -> dict[str, Any]:
    """The specification; SpecError where there is none that can be read."""
    try:
        spec: dict[str, Any] = parse(path.read_text())
    except FileNotFoundError as error:
        raise SpecError("there is none") from error
    except (OSError, UnicodeDecodeError, SpecError) as error:
        raise SpecError(f"it cannot be read: {error}") from error
    return spec


def spec_problems(path: Path = SPEC, gpu_list: str = "", mig_modes: str = "", *, every_gpu: bool = True) -> list[str]:
    """How the specification differs from this host, in words; empty where it fits.

    `gpu_list` is the output of `nvidia-smi -L`, and an empty one is not compared; `mig_modes` as for parse_gpus.
    """
    try:
        spec = read_spec(path)
    except SpecError as error:
        return [str(error)]
    live = character_devices([*(node for pattern in NODE_PATTERNS for node in glob.glob(pattern)), *device_nodes(spec)])
    missing = [file for file in host_files(spec) if not os.path.exists(file)]
    gpus = parse_gpus(gpu_list, mig_modes)
    bare = sum(gpu.split and not gpu.mig for gpu in gpus)
    problems: list[str] = compare(
        spec, live, missing, devices=spellings(gpus), every_gpu=every_gpu, without_device=bare
    )
    return problems


def limited(path: Path = REFRESH_SETTINGS) -> bool:
    """Whether the operator chose the GPUs that the specification describes."""
    try:
        text = path.read_text()
    except OSError:
        return False
    return bool(re.search(r"(?m)^\s*NVIDIA_CTK_CDI_GENERATE_(DEVICE_IDS|NO_ALL_DEVICE)=", text))


def driver_problem(path: Path = SPEC, version: Path = DRIVER_VERSION) -> str:
    """Why the loaded driver and the libraries that containers get do not fit; empty where they do, or nobody knows."""
    try:
        loaded = re.search(r"\b\d{3}\.\d+(?:\.\d+)?\b", version.read_text())
        files = host_files(read_spec(path))
    except (OSError, SpecError):
        return ""
    libraries = sorted({found[1] for file in files if (found := re.search(r"/libcuda\.so\.(\d{3}[\d.]*\d)$", file))})
    if loaded is None or not libraries or loaded[0] in libraries:
        return ""
    return (
        f"The driver {loaded[0]} is loaded and its libraries are {', '.join(libraries)}: CUDA fails with such a pair. "
        "Reboot this host."
    )


def fingerprint(path: Path = SPEC) -> str:
    """Names what a container gets by the specification; another name, and one made before holds what is gone."""
    try:
        return hashlib.sha256(json.dumps(read_spec(path), sort_keys=True).encode()).hexdigest()[:12]
    except SpecError:
        return ""
