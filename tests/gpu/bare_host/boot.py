#!/usr/bin/python3
"""Boot a host to provision on a bare GPU machine: systemd in namespaces of its own, with the machine's GPU.

For a Linux machine with a driver and root, and neither systemd nor Docker nor a network. ROOT is an unpacked Debian
with systemd and Docker (see Dockerfile); it gets its own processes, mounts, network and control groups, the GPU's
device nodes, and the driver's files from DRIVER, laid out as an installed driver would have them.

    boot.py ROOT DRIVER      prints the process to enter: nsenter --target PID --all
"""

from __future__ import annotations

import ctypes
import os
import shutil
import stat
import subprocess
import sys
import time
from pathlib import Path

MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_BIND, MS_REC, MS_PRIVATE = 2, 4, 8, 4096, 16384, 1 << 18
# Of linux/sched.h: mounts, control groups, host name, IPC, processes, network.
NEW_NAMESPACES = 0x00020000 | 0x02000000 | 0x04000000 | 0x08000000 | 0x20000000 | 0x40000000
PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
CGROUP = Path("/sys/fs/cgroup")
NODES = "null zero full random urandom tty kmsg fuse nvidia0 nvidiactl nvidia-uvm nvidia-uvm-tools"
LIBRARY_HOME = "usr/lib/nvidia-standin/lib"  # where the stand-in for nvidia-ctk looks for the driver's libraries
BOOT_LIMIT_S = 60

libc = ctypes.CDLL(None, use_errno=True)


def mount(source: str, target: Path, kind: str | None, flags: int = 0, data: str | None = None) -> None:
    """Mount a file system; an OSError names the target."""
    words = [None if word is None else word.encode() for word in (source, str(target), kind, data)]
    if libc.mount(words[0], words[1], words[2], ctypes.c_ulong(flags), words[3]) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"mounting {target}: {os.strerror(number)}")


def lay_out_driver(root: Path, driver: Path) -> None:
    """Put the driver's program and libraries where an installed driver has them, and say that its module is there."""
    (root / "usr/local/nvidia").mkdir(parents=True, exist_ok=True)
    mount(str(driver), root / "usr/local/nvidia", None, MS_BIND | MS_REC)
    home = root / LIBRARY_HOME
    home.mkdir(parents=True, exist_ok=True)
    for library in sorted((driver / "lib64").glob("*.so.*.*")):
        link = home / library.name
        if not link.is_symlink():
            link.symlink_to(f"/usr/local/nvidia/lib64/{library.name}")
    program = root / "usr/bin/nvidia-smi"
    if not program.is_symlink():
        program.symlink_to("/usr/local/nvidia/bin/nvidia-smi")
    (root / "etc/ld.so.conf.d/nvidia.conf").write_text("/usr/local/nvidia/lib64\n")
    subprocess.run(["chroot", str(root), "ldconfig"], check=True)
    modules = root / "lib/modules" / os.uname().release
    modules.mkdir(parents=True, exist_ok=True)
    (modules / "modules.dep").write_text("kernel/drivers/nvidia.ko:\n")


def make_devices(root: Path) -> None:
    """A /dev with what systemd, Docker and CUDA need, and none of the machine's disks."""
    devices = root / "dev"
    mount("tmpfs", devices, "tmpfs", MS_NOSUID, "mode=755")
    for name in NODES.split():
        found = Path("/dev") / name
        if found.exists():
            status = found.stat()
            os.mknod(devices / name, stat.S_IFCHR | 0o666, status.st_rdev)
            (devices / name).chmod(0o666)
    (devices / "pts").mkdir()
    (devices / "shm").mkdir()
    mount("devpts", devices / "pts", "devpts", MS_NOSUID | MS_NOEXEC, "newinstance,ptmxmode=0666,mode=620")
    mount("tmpfs", devices / "shm", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777")
    for name, target in {
        "ptmx": "pts/ptmx",
        "fd": "/proc/self/fd",
        "stdin": "fd/0",
        "stdout": "fd/1",
        "stderr": "fd/2",
    }.items():
        (devices / name).symlink_to(f"/proc/self/{target}" if target.startswith("fd/") else target)


def become_init(root: Path) -> None:
    """In the new namespaces: mount what a booting system expects, make ROOT the root, and become systemd."""
    os.setsid()
    mount(str(root), root, None, MS_BIND | MS_REC)
    mount("proc", root / "proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    mount("sysfs", root / "sys", "sysfs", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    mount("cgroup2", root / "sys/fs/cgroup", "cgroup2", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    for name in ("run", "tmp"):
        mount("tmpfs", root / name, "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777" if name == "tmp" else "mode=755")
    make_devices(root)
    old = root / "old_root"
    old.mkdir(exist_ok=True)
    if libc.syscall(PIVOT_ROOT[os.uname().machine], str(root).encode(), str(old).encode()) != 0:
        raise OSError(ctypes.get_errno(), "pivot_root failed")
    os.chdir("/")
    if libc.umount2(b"/old_root", 2) != 0:  # MNT_DETACH
        raise OSError(ctypes.get_errno(), "umount of the old root failed")
    log = os.open("/var/log/boot.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    null = os.open("/dev/null", os.O_RDONLY)
    for number, source in enumerate((null, log, log)):
        os.dup2(source, number)
    environment = {"container": "bare-host", "PATH": "/usr/sbin:/usr/bin"}
    os.execve("/lib/systemd/systemd", ["systemd"], environment)  # noqa: S606 - it becomes the first process


def main(arguments: list[str]) -> int:
    """Entry point."""
    if len(arguments) != 2 or not Path(arguments[0], "lib/systemd/systemd").exists():
        sys.stderr.write(
            "usage: boot.py ROOT DRIVER\nROOT is an unpacked Debian with systemd, DRIVER has bin/ and lib64/.\n"
        )
        return 2
    root, driver = (Path(argument).resolve() for argument in arguments)
    if driver.is_dir():
        lay_out_driver(root, driver)
    # A process that left its namespaces can no longer start programs that look at them, so a child leaves them.
    answer, ask = os.pipe()
    if os.fork() == 0:
        if (CGROUP / "cgroup.controllers").exists():
            # Nothing but systemd may stay in the group that becomes its root.
            (CGROUP / "bare-host").mkdir(exist_ok=True)
            (CGROUP / "bare-host/cgroup.procs").write_text(str(os.getpid()))
        if libc.unshare(NEW_NAMESPACES) != 0:
            sys.stderr.write(f"unshare failed: {os.strerror(ctypes.get_errno())}\n")
            os._exit(1)
        mount("none", Path("/"), None, MS_REC | MS_PRIVATE)
        child = os.fork()
        if child == 0:
            try:
                become_init(root)
            except OSError as error:
                sys.stderr.write(f"{error}\n")
            os._exit(1)
        os.write(ask, str(child).encode())
        os._exit(0)
    child = int(os.read(answer, 20) or b"0")
    os.wait()
    deadline = time.monotonic() + BOOT_LIMIT_S
    enter = [shutil.which("nsenter") or "nsenter", "--target", str(child), "--all", "--"]
    while child and time.monotonic() < deadline:
        done = subprocess.run([*enter, "systemctl", "is-system-running"], capture_output=True, text=True, check=False)
        if done.stdout.strip() in ("running", "degraded"):
            sys.stdout.write(f"{child}\n")
            return 0
        time.sleep(0.3)
    sys.stderr.write(f"It did not boot within {BOOT_LIMIT_S} s: see {root}/var/log/boot.log\n")
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
