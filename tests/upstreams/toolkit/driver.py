#!/usr/bin/python3
"""Stand-in for NVIDIA's driver in a sandbox: device nodes, nvidia-smi, library files. It computes nothing.

`driver.py install --profile h100|gb10` places it and a unit that makes the nodes at each boot; it also works
where systemd does not run, as in an image build. `driver.py start` makes the nodes and is what the unit runs.
The sandbox must be allowed the majors: `--device-cgroup-rule 'c 195:* rwm' --device-cgroup-rule 'c 510:* rwm'`.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import stat
import subprocess
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
HOME = Path("/usr/lib/nvidia-standin")
UNIT = "nvidia-driver-standin.service"
NVIDIA_MAJOR = 195
CONTROL_MINOR = 255
MODESET_MINOR = 254
LIBRARIES = ["libcuda.so", "libnvidia-ml.so", "libnvidia-ptxjitcompiler.so"]

UNIT_TEXT = f"""\
[Unit]
Description=Device nodes of the stand-in NVIDIA driver
DefaultDependencies=no
Before=sysinit.target nvidia-cdi-refresh.service nvidia-cdi-refresh.path docker.service

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/bin/python3 {HOME}/driver.py start

[Install]
WantedBy=sysinit.target
"""


def device_nodes(profile: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """Path to major and minor number of every node that the driver has."""
    nodes = {f"/dev/nvidia{index}": (NVIDIA_MAJOR, index) for index in range(len(profile["gpus"]))}
    nodes["/dev/nvidiactl"] = (NVIDIA_MAJOR, CONTROL_MINOR)
    nodes["/dev/nvidia-modeset"] = (NVIDIA_MAJOR, MODESET_MINOR)
    nodes["/dev/nvidia-uvm"] = (profile["uvm_major"], 0)
    nodes["/dev/nvidia-uvm-tools"] = (profile["uvm_major"], 1)
    # A real kernel gives these a major of their own; the sandbox is allowed two.
    for index, gpu in enumerate(profile["gpus"]):
        for part in range(len(gpu.get("mig", []))):
            minor = 100 * index + part
            nodes[f"/dev/nvidia-caps/nvidia-cap{minor}"] = (profile["uvm_major"], minor)
    return nodes


def make_node(path: str, major: int, minor: int) -> None:
    """A character device for everyone, in place of one with other numbers."""
    wanted = os.makedev(major, minor)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    if os.path.lexists(path):
        found = os.lstat(path)
        if stat.S_ISCHR(found.st_mode) and found.st_rdev == wanted:
            return
        os.unlink(path)
    os.mknod(path, stat.S_IFCHR | 0o666, wanted)
    os.chmod(path, 0o666)  # noqa: S103 - as the real driver makes them; mknod obeyed the umask


def list_module(kernel: str) -> None:
    """Name nvidia.ko in the kernel's module list, where nvidia-cdi-refresh.service looks for a driver."""
    listing = Path("/lib/modules") / kernel / "modules.dep"
    text = listing.read_text() if listing.exists() else ""
    if "/nvidia.ko" not in text:
        listing.parent.mkdir(parents=True, exist_ok=True)
        listing.write_text(text + "updates/dkms/nvidia.ko:\n")


def start() -> None:
    """Make what a loaded driver shows."""
    profile = json.loads((HOME / "profile.json").read_text())
    for path, (major, minor) in device_nodes(profile).items():
        make_node(path, major, minor)
    list_module(os.uname().release)


def install(profile_name: str) -> None:
    """Place the driver, enable its unit, and start it where systemd runs."""
    (HOME / "lib").mkdir(parents=True, exist_ok=True)
    shutil.copyfile(HERE / "driver.py", HOME / "driver.py")
    shutil.copyfile(HERE / "profiles" / f"{profile_name}.json", HOME / "profile.json")
    profile = json.loads((HOME / "profile.json").read_text())
    for library in LIBRARIES:
        # Not a program on purpose: what tries to load it must fail as on a host without a GPU.
        (HOME / "lib" / f"{library}.{profile['driver_version']}").write_text("stand-in, not a library\n")
    shutil.copyfile(HERE / "nvidia_smi.py", "/usr/bin/nvidia-smi")
    os.chmod("/usr/bin/nvidia-smi", 0o755)  # noqa: S103 - a program
    (Path("/etc/systemd/system") / UNIT).write_text(UNIT_TEXT)
    running = Path("/run/systemd/system").is_dir()
    subprocess.run(["systemctl", "enable", *(["--now"] if running else []), UNIT], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Stand-in for NVIDIA's driver.")
    commands = parser.add_subparsers(dest="command", required=True)
    profiles = sorted(path.stem for path in (HERE / "profiles").glob("*.json"))
    commands.add_parser("install").add_argument("--profile", choices=profiles, required=True)
    commands.add_parser("start")
    arguments = parser.parse_args()
    if arguments.command == "install":
        install(arguments.profile)
    else:
        start()


if __name__ == "__main__":
    main()
