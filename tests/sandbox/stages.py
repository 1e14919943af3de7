"""What people see while the sandbox is made: a line before each long stage, its time after it, refusals, waiting."""

from __future__ import annotations

import fcntl
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class RefusalError(Exception):
    """Something that the user can mend: the message says what was found, what was expected and what to type."""


@contextmanager
def stage(title: str) -> Iterator[None]:
    """Say what begins, and how long it took once it is done."""
    started_s = time.monotonic()
    sys.stdout.write(f"==> {title} ...\n")
    sys.stdout.flush()
    yield
    sys.stdout.write(f"    done in {time.monotonic() - started_s:.0f} s\n")
    sys.stdout.flush()


@contextmanager
def one_at_a_time(what: str) -> Iterator[None]:
    """Let runs on this machine that share `what` go one after the other; one that waits says so."""
    path = Path(tempfile.gettempdir(), f"{what}.lock")
    try:
        file = path.open("w")
    except PermissionError as error:
        raise RefusalError(
            f"{path} is another user's, expected your own or none. When nobody's run goes on: sudo rm {path}"
        ) from error
    with file as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with stage(f"Waiting for another run that uses {what}"):
                fcntl.flock(lock, fcntl.LOCK_EX)
        yield
