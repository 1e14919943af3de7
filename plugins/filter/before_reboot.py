"""Filter of playbooks/reprovision.yml: what stands in the way of a host's update, or of the reboot after it."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

# The control node imports no module_utils by itself; hosts and control node are to judge by the same functions.
sys.path.append(str(Path(__file__).resolve().parent.parent / "module_utils"))

from apt_source import complaint
from dpkg_state import problem
from machine import parse_versions, upstream, version_of

UPGRADE = "sudo apt-get update; sudo apt-get full-upgrade (on DGX OS by its Dashboard)"
REBOOT = "sudo reboot, when nothing here says stop"
# The release of a kernel that can be booted; version and licence of its module nvidia, empty where it has none.
Kernel = tuple[str, str, str]
OF_THE_DRIVER = re.compile(r"driver$|(libnvidia|nvidia-driver|nvidia-firmware|linux-modules-nvidia)-")


class Finding(NamedTuple):
    """One thing that is not as it should be; `stop` says that neither update nor reboot is safe before it is mended."""

    stop: bool
    found: str
    expected: str
    command: str


def kernels_of(text: str, boots: str) -> list[Kernel]:
    """The kernels in lines of these three with tabs between: what `boots` by GRUB, where known, then the newest."""

    def order(kernel: Kernel) -> tuple[bool, list[int]]:
        return f"vmlinuz-{kernel[0]}" == boots, [int(digits) for digits in re.findall(r"\d+", kernel[0])]

    found = (line.split("\t") for line in text.splitlines())
    return sorted(((release, version, terms) for release, version, terms in found), key=order, reverse=True)


def driver(said: Mapping[str, str], kernels: list[Kernel]) -> Iterator[Finding]:
    """Whether the next boot finds module, libraries and GSP firmware of one driver; nothing where there is none."""
    packages = parse_versions(said["driver_packages"])
    libraries = {upstream(v) for name, v in packages.items() if re.match(r"libnvidia-compute|libcuda1$", name)}
    folders = {path.split("/")[-2] for path in said["firmware"].splitlines()}
    firmware = {name for name in folders if version_of(name) == name}
    loaded = version_of(said["loaded"])
    if not (loaded or libraries or any(version for _, version, _ in kernels)):
        return
    installed = ", ".join(sorted(libraries))
    for release, version, terms in kernels:
        boots = release == kernels[0][0]
        name = f"kernel {release}, which the next boot takes," if boots else f"kernel {release}, another one,"
        if not version:
            command = module_command(release, packages, kernels, said["dkms"])
            yield Finding(boots, f"{name} without a module nvidia", "one; a boot into it has no GPU", command)
        elif libraries and version not in libraries:
            found = f"{name} with the module {version} beside libraries of {installed}"
            yield Finding(boots, found, "one version; a boot ends in `Driver/library version mismatch`", UPGRADE)
        # The open module does not start without its firmware; the closed one may.
        elif version not in firmware and (firmware or "GPL" in terms):
            there = ", ".join(sorted(firmware)) or "no version"
            found = f"{name} with the module {version} and GSP firmware of {there}"
            expected = f"/lib/firmware/nvidia/{version}; a boot ends in `No devices were found`"
            yield Finding(boots, found, expected, UPGRADE)
    if loaded and libraries and loaded not in libraries and (not kernels or kernels[0][1] in libraries):
        found = f"the driver {loaded} in memory and {installed} installed"
        yield Finding(False, found, "a reboot soon: until then no new container gets the GPU", REBOOT)


def module_command(release: str, packages: Mapping[str, str], kernels: list[Kernel], dkms: str) -> str:
    """What gives this kernel its module, the way that others have theirs."""
    for package in packages:
        for other, _, _ in kernels:
            if package.startswith("linux-modules-nvidia-") and package.endswith(f"-{other}"):
                return f"sudo apt-get update; sudo apt-get install --reinstall {package.removesuffix(other)}{release}"
    if "nvidia" in dkms:
        why = "/var/lib/dkms/nvidia*/*/build/make.log says why it failed"
        return f"sudo apt-get install linux-headers-{release}; sudo dkms autoinstall -k {release} ({why})"
    return f"sudo apt-get remove linux-image-{release}, or install the driver for it the way that it was installed"


def ota(answer: Mapping[str, Any], *, pending: bool) -> Iterator[Finding]:
    """Whether the last update of a DGX Spark is there as a whole; NVIDIA's own program says so, where it is."""
    if answer["rc"] == 127:
        return
    try:
        said = json.loads(answer["stdout"])
        name, torn = said["detected_ota"], said["torn"]
        failed = [part for score in said["scores"] if score["ota"] == name for part in score["failed"]]
    except (ValueError, KeyError, TypeError):
        words = " ".join((answer["stdout"] + answer["stderr"]).split())[:200]
        yield Finding(False, f"no answer about the last OTA: {words}", "one", "sudo nvidia-spark-ota-check summary")
        return
    if torn:
        # What it says of the running driver is old until the reboot.
        stop = not pending and any(map(OF_THE_DRIVER.match, failed))
        yield Finding(stop, f"{torn} % of {name} missing ({', '.join(failed)})", "all of it", UPGRADE)


def packages_whole(commands: Mapping[str, Any], said: Mapping[str, str]) -> Iterator[Finding]:
    """Whether apt and dpkg can work. What they show while somebody uses them is no fault of theirs."""
    if commands["locks"]["rc"] != 0:
        words = commands["locks"]["stderr"].strip().rpartition("\n")[2]
        yield Finding(True, f"apt's locks cannot be read: {words}", "that root looks", "-e ansible_become=true")
    if said["locks"]:
        pid, path, name = said["locks"].splitlines()[0].split("\t")
        command = f"ps -fp {pid}; let it end, then run this again"
        yield Finding(True, f"apt in use: {name} (process {pid}) holds {path}", "that nobody changes packages", command)
        return
    found, command = problem(said["unfinished"], said["interrupted"])
    if found:
        yield Finding(True, f"packages that are not done: {found}", "all installed and configured", command)
    if commands["apt_check"]["rc"] != 0:
        words = complaint(commands["apt_check"]["stderr"])
        command = "sudo apt-get --fix-broken install" if "fix-broken" in words else "sudo apt-get check"
        yield Finding(True, f"apt-get check fails: {words}", "that it finds nothing", command)


def holds(probe: Mapping[str, Any], held: list[str]) -> Iterator[Finding]:
    """Whether the toolkit is held where site.yml held it, and what else is."""
    toolkit = {name: state["held"] for name, state in probe["packages"].items() if state["version"]}
    # The source or the key of site.yml. Where others brought the packages, as on DGX OS, it holds none.
    ours = any(file["kind"] != "absent" for path, file in probe["files"].items() if path.startswith("/etc/apt/"))
    loose = " ".join(name for name, is_held in toolkit.items() if not is_held)
    if loose and (ours or any(toolkit.values())):
        expected = "the toolkit's packages held, all of them: an update moves the others"
        yield Finding(ours, f"not held: {loose}", expected, f"sudo apt-mark hold {loose}")
    if others := " ".join(name for name in held if name not in toolkit):
        expected = "that this is meant: an update leaves them out, and DGX OS offers it again and again"
        yield Finding(False, f"held: {others}", expected, f"sudo apt-mark unhold {others}, where it is not meant")


def reboot(files: Mapping[str, Any], running: str, kernels: list[Kernel]) -> Iterator[Finding]:
    """Whether an earlier update waits for its reboot."""
    reasons = []
    if files["/run/reboot-required"]["kind"] != "absent":
        names = ", ".join(dict.fromkeys((files["/run/reboot-required.pkgs"]["content"] or "").split()))
        reasons.append(f"a reboot asked for by {names or 'a package that gave no name'}")
    if kernels and running != kernels[0][0]:
        reasons.append(f"kernel {running} running and {kernels[0][0]} installed")
    if reasons:
        yield Finding(False, "; ".join(reasons), "none before an update; after one, its last step", REBOOT)


def disks(df: str, needed_b: Mapping[str, int]) -> Iterator[Finding]:
    """Whether each filesystem has room for what an update puts into the folders on it."""
    found: dict[str, tuple[int, list[str]]] = {}
    for line in df.splitlines()[1:]:
        source, free_b, folder = line.rsplit(maxsplit=2)
        found.setdefault(source, (int(free_b), []))[1].append(folder)
    for available_b, folders in found.values():
        wanted_b = sum(int(needed_b[folder]) for folder in folders)
        if available_b < wanted_b:
            kernels = "dpkg --list 'linux-image-*', and remove one that neither runs nor is the newest"
            command = kernels if folders == ["/boot"] else "sudo apt-get clean; sudo du -xhd 3 / | sort -h | tail"
            there = f"{available_b / 1e9:.1f} GB free for {', '.join(folders)}"
            yield Finding(True, there, f"{wanted_b / 1e9:.1f} GB for an update", command)


def findings(probe: Mapping[str, Any], needed_b: Mapping[str, int]) -> list[dict[str, Any]]:
    """What the probe of tasks/before_reboot.yml comes to, what stops first; `shown` in parts, `text` in a line.

    `needed_b` has the folders that df was asked for, and what an update puts into each.
    """
    said = {name: answer["stdout"] for name, answer in probe["commands"].items()}
    kernels = kernels_of(said["kernels"], said["grub"].strip())
    waits = list(reboot(probe["files"], said["running"].strip(), kernels))
    mute = ", ".join(name for name, answer in probe["commands"].items() if answer["rc"] == 124)
    found = [
        *([Finding(True, f"no answer within 60 s about {mute}", "one", "top, and sudo dmesg | tail")] if mute else []),
        *packages_whole(probe["commands"], said),
        *driver(said, kernels),
        *ota(probe["commands"]["ota"], pending=bool(waits)),
        *disks(said["disks"], needed_b),
        *holds(probe, said["held"].split()),
        *waits,
    ]
    answer = []
    for one in sorted(found, key=lambda one: not one.stop):
        shown = {"Stop" if one.stop else "Remark": one.found, "expected": one.expected, "type": one.command}
        answer.append({"stop": one.stop, "shown": shown, "text": "; ".join(map(": ".join, shown.items()))})
    return answer


class FilterModule:
    """The filters, by name."""

    def filters(self) -> dict[str, Callable[..., list[dict[str, Any]]]]:
        return {"before_reboot_findings": findings}
