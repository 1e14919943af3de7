"""Who holds the locks of apt and dpkg, and the wait for the end of that."""

from __future__ import annotations

import fcntl
import os
import struct
import time

LOCKS = ("/var/lib/dpkg/lock-frontend", "/var/lib/dpkg/lock", "/var/lib/apt/lists/lock")
# struct flock of Linux on 64 bits: type, whence, start, length, pid.
FLOCK = "hhqqi4x"


def holder(path: str) -> int:
    """The process that holds the lock of this file; 0 where none does."""
    try:
        with open(path, "rb") as stream:
            asked = struct.pack(FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
            kind, _, _, _, pid = struct.unpack(FLOCK, fcntl.fcntl(stream, fcntl.F_GETLK, asked))
    except FileNotFoundError:
        return 0
    return int(pid) if kind != fcntl.F_UNLCK else 0


def name_of(pid: int) -> str:
    """The name of a process."""
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8") as stream:
            return stream.read().strip()
    except OSError:
        return "a program that has ended"


def wait_until_free(wait_s: int) -> str:
    """Wait until nobody holds a lock; why that is in vain, with the holder's name, when the time is up."""
    deadline = time.monotonic() + wait_s
    while held := {pid: path for path in LOCKS if (pid := holder(path))}:
        if time.monotonic() > deadline:
            pid, path = next(iter(held.items()))
            return (
                f"apt is in use: {name_of(pid)} (process {pid}) has held {path} for {wait_s} s, expected "
                f"that it ends. Nothing was changed. See what it does: ps -fp {pid}; let it end, then run this again."
            )
        time.sleep(1)
    return ""


if __name__ == "__main__":  # as one of the commands of a probe: a line for each lock that is held
    for lock in LOCKS:
        if holding := holder(lock):
            print(holding, lock, name_of(holding), sep="\t")
