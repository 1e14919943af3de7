"""What machine this is, and what of its driver would break: read from texts that the host shows. Pure functions."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

# /etc/dgx-release holds the machine's serial number, which belongs in no log.
SECRET_KEY = re.compile(r"SERIAL")
ASSIGNMENT = re.compile(r"""\s*(DGX_[A-Z0-9_]+)=(?:"([^"]*)"|'([^']*)'|(.*?))\s*""")
# Older ones fail with DKMS under DGX OS 7.5. Source: DGX OS 7 User Guide, known issues.
DOCA_WORKS = (3, 2, 1, 44418)


def parse_release(text: str) -> dict[str, str]:
    """Keys and values of /etc/dgx-release, without the serial number.

    The last of a repeated key counts: each update appends its own. Values may lack their quotes, and are not run as
    shell. Other lines are passed over.
    """
    found: dict[str, str] = {}
    for line in text.splitlines():
        pair = ASSIGNMENT.fullmatch(line)
        if pair and not SECRET_KEY.search(pair[1]):
            found[pair[1]] = next((value for value in pair.groups()[1:] if value is not None), "")
    return found


def dgx_os_version(release: Mapping[str, str]) -> str:
    """The version that DGX OS is at: that of its last update, or of the factory image where there was none."""
    return release.get("DGX_OTA_VERSION") or release.get("DGX_SWBUILD_VERSION", "")


def detect(
    kinds: Mapping[str, Mapping[str, Any]], gpu_names: list[str], release: Mapping[str, str], architecture: str
) -> str:
    """The first of `kinds` that this machine is; an empty text where it is none.

    A kind may ask for `gpu` (a pattern that one GPU's name has; an empty one means no GPU), `architectures`, `dgx_os`
    (whether there is an /etc/dgx-release) and `release` (a pattern that its name or platform has).
    """
    names = " ".join(release.get(key, "") for key in ("DGX_NAME", "DGX_PRETTY_NAME", "DGX_PLATFORM"))
    for name, kind in kinds.items():
        gpu = kind.get("gpu")
        if gpu == "" and gpu_names:
            continue
        if gpu and not any(re.search(gpu, found) for found in gpu_names):
            continue
        if architecture not in kind.get("architectures", [architecture]):
            continue
        if "dgx_os" in kind and kind["dgx_os"] != bool(release):
            continue
        if "release" in kind and not re.search(kind["release"], names):
            continue
        return name
    return ""


def version_of(text: str) -> str:
    """The driver's version in a line of its own: 580.159.03; empty without one."""
    found = re.search(r"\b\d{3}\.\d+(?:\.\d+)?\b", text)
    return found.group(0) if found else ""


def parse_versions(dpkg_output: str) -> dict[str, str]:
    r"""Versions of installed packages, from lines `${Package}\t${Version}\t${db:Status-Abbrev}`."""
    found = {}
    for line in dpkg_output.splitlines():
        parts = line.split("\t")
        if len(parts) == 3 and parts[2][1:2] == "i":
            found[parts[0]] = parts[1]
    return found


def upstream(version: str) -> str:
    """A package's version without epoch and revision: 580.159.03 of 1:580.159.03-0ubuntu1."""
    return version.rpartition(":")[2].partition("-")[0]


def driver_faults(
    loaded: str,
    on_disk: str,
    packages: Mapping[str, str],
    kernels: str,
    *,
    held: Iterable[str] = (),
    dgx_os: str = "",
    branches: Iterable[str] = (),
) -> list[str]:
    """What is wrong with a driver, or will be after the next boot: a sentence with its fix for each.

    `loaded` is /proc/driver/nvidia/version, `on_disk` what modinfo says of the running kernel's module. `kernels` has a
    line for each kernel that can be booted: its release, a space, and the version of its NVIDIA module. `held` is what
    `apt-mark showhold` names, `dgx_os` the version of DGX OS; `branches` are the driver branches that the machine's
    maker supports, none for any.
    """
    faults = []
    running = version_of(loaded)
    libraries = {upstream(version) for name, version in packages.items() if name.startswith("libnvidia-compute-")}
    moved = sorted({version_of(on_disk), *map(version_of, libraries)} - {running, ""})
    if running and moved:
        faults.append(
            f"The driver {running} is loaded and {', '.join(moved)} is installed, which ends in `Driver/library "
            "version mismatch`: reboot, then run this again."
        )
    modules = [line.split() for line in kernels.splitlines()]
    bare = [words[0] for words in modules if len(words) == 1]
    # Where no kernel has a module, there is no driver, or one that this cannot see.
    if bare and len(bare) < len(modules):
        faults.append(
            f"Without a module nvidia, after a boot into it there is no GPU: kernel {', '.join(bare)}. Before the next "
            "reboot: sudo apt-get update && sudo apt-get full-upgrade, or install that kernel's linux-modules-nvidia."
        )
    driver = {upstream(v) for name, v in packages.items() if re.fullmatch(r"nvidia-driver-\d+(-open)?", name)}
    firmware = {upstream(v) for name, v in packages.items() if name.startswith("nvidia-firmware-")}
    if driver and firmware and not driver & firmware:
        faults.append(
            f"The driver's package is {', '.join(sorted(driver))} and its firmware {', '.join(sorted(firmware))}: the "
            "GPU does not start with such a pair. Bring both to one version, on DGX OS by its Dashboard."
        )
    if branches and running and running.partition(".")[0] not in branches:
        faults.append(
            f"The driver {running} is not supported on this machine, expected branch {' or '.join(branches)}. Go back "
            "to what DGX OS brings, by its Dashboard."
        )
    doca = [tuple(map(int, re.findall(r"\d+", v))) for name, v in packages.items() if name.startswith("doca-")]
    if dgx_os.startswith("7.5") and doca and min(doca) < DOCA_WORKS:
        faults.append(
            f"DGX OS {dgx_os} with this DOCA fails to build its modules at the next kernel: update DOCA to "
            "3.2.1-044418 or newer before that."
        )
    kept_back = sorted(held)
    if dgx_os and kept_back:
        faults.append(
            f"Held packages, for which DGX OS offers the same update again and again: {', '.join(kept_back)}. sudo "
            f"apt-mark unhold {' '.join(kept_back)}, then update."
        )
    return faults
