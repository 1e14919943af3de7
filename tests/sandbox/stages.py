"""What people see while the sandbox is made: a line before each long stage, its time after it, refusals."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager


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
