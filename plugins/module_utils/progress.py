"""What a long task does at the moment: noted on the host by the module, made into lines on the control node.

A module calls a Reporter, which keeps one small file; whoever waits for the module reads that file now and then.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

# The variable in a module's environment that names its file. Without it a Reporter does nothing.
ENVIRONMENT = "DGX_COMFYUI_PROGRESS"
# What people call its task: whoever waits for another one may tell of it.
ENVIRONMENT_TITLE = "DGX_COMFYUI_PROGRESS_TITLE"
# Only root writes in /run, and it is empty after a boot.
FOLDER = "/run/dgx-comfyui"
WRITE_INTERVAL_S = 0.5

# A line of a log without a terminal is at most 10 s older than the next; the rest is for printing it.
LOG_INTERVAL_S = 9.5
TERMINAL_INTERVAL_S = 2.0
# The rate is that of the last seconds: long enough to be calm, short enough to show a stall.
RATE_WINDOW_S = 15.0
RATE_LEAST_S = 1.0
TEXT_CHARS = 100
UNITS = ("B", "kB", "MB", "GB", "TB", "PB")


@dataclass(frozen=True)
class State:
    """What a module says of itself; every part may be missing."""

    text: str = ""
    done_b: int | None = None
    total_b: int | None = None
    step: int | None = None
    steps: int | None = None
    title: str = ""


class Reporter:
    """Keeps the file that tells how far a module is. Never a reason to fail: without the file there is no progress."""

    def __init__(self, path: str, clock: Callable[[], float] = time.monotonic, title: str = "") -> None:
        self._path = path
        self._title = title
        self._clock = clock
        self._last: State | None = None
        self._written_s = 0.0

    @classmethod
    def from_environment(cls) -> Reporter:
        """The reporter for this run of a module; silent where nobody waits."""
        return cls(os.environ.get(ENVIRONMENT, ""), title=os.environ.get(ENVIRONMENT_TITLE, ""))

    def __enter__(self) -> Reporter:
        return self

    def __exit__(self, *_: object) -> None:
        if self._path:
            for path in (self._path, f"{self._path}.new"):
                with contextlib.suppress(OSError):
                    os.unlink(path)

    def __call__(
        self,
        text: str = "",
        *,
        done_b: int | None = None,
        total_b: int | None = None,
        step: int | None = None,
        steps: int | None = None,
    ) -> None:
        """Say where the module is. As cheap as it must be to be called for each block of a download."""
        if not self._path:
            return
        state = State(text, done_b, total_b, step, steps, self._title)
        now_s = self._clock()
        if (
            self._last is not None
            and now_s - self._written_s < WRITE_INTERVAL_S
            and only_bytes_moved(self._last, state)
        ):
            return
        self._last, self._written_s = state, now_s
        try:
            self._write(json.dumps(asdict(state)) + "\n")
        except OSError:
            self._path = ""

    def _write(self, text: str) -> None:
        os.makedirs(os.path.dirname(self._path), mode=0o700, exist_ok=True)
        handle = os.open(f"{self._path}.new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(f"{self._path}.new", self._path)


def only_bytes_moved(before: State, after: State) -> bool:
    """Whether two states are the same stage of the work."""
    return (before.text, before.total_b, before.step, before.steps) == (
        after.text,
        after.total_b,
        after.step,
        after.steps,
    )


def printable(text: str) -> str:
    """One short line without control characters: it goes to a terminal, and it came from a host."""
    words = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    return words if len(words) <= TEXT_CHARS else f"{words[: TEXT_CHARS - 3]}..."


def parse(content: str) -> State | None:
    """The state in a file's content; None where it is not one."""
    try:
        found = json.loads(content)
    except ValueError:
        return None
    if not isinstance(found, dict) or not isinstance(found.get("text"), str):
        return None
    numbers: dict[str, int | None] = {}
    for key in ("done_b", "total_b", "step", "steps"):
        value = found.get(key)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
            return None
        numbers[key] = value
    title = found.get("title")
    return State(printable(found["text"]), **numbers, title=printable(title) if isinstance(title, str) else "")


class Meter:
    """The rate of the last seconds, from what was seen at what time."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, State]] = deque()

    def add(self, now_s: float, state: State) -> None:
        """Note a state; another stage, or fewer bytes than before, begins anew."""
        if self._seen:
            _, last = self._seen[-1]
            if not only_bytes_moved(last, state) or (state.done_b or 0) < (last.done_b or 0):
                self._seen.clear()
        self._seen.append((now_s, state))
        while len(self._seen) > 2 and now_s - self._seen[1][0] >= RATE_WINDOW_S:
            self._seen.popleft()

    def rate_b_s(self) -> float | None:
        """Bytes per second; None as long as nothing can be said."""
        if len(self._seen) < 2:
            return None
        (first_s, first), (last_s, last) = self._seen[0], self._seen[-1]
        if last_s - first_s < RATE_LEAST_S or first.done_b is None or last.done_b is None:
            return None
        return (last.done_b - first.done_b) / (last_s - first_s)


def scale(size_b: float) -> tuple[float, str]:
    """The divisor and the unit in which a number of bytes is written: decimal, as disks and networks are."""
    divisor = 1.0
    for unit in UNITS[:-1]:
        # 999.6 would be written as 1000.
        if size_b < 999.5 * divisor:
            return divisor, unit
        divisor *= 1000
    return divisor, UNITS[-1]


def figure(size_b: float, divisor: float) -> str:
    """At most three digits where that is enough: 2.9, 13, 310."""
    value = size_b / divisor
    return f"{value:.1f}" if divisor > 1 and 0 < value < 9.95 else f"{value:.0f}"


def amount(size_b: float) -> str:
    """A number of bytes with its unit."""
    divisor, unit = scale(size_b)
    return f"{figure(size_b, divisor)} {unit}"


def duration(seconds: float) -> str:
    """Seconds as long as they are easily read, then minutes, then hours."""
    whole_s = round(seconds)
    if whole_s < 120:
        return f"{whole_s} s"
    minutes, rest_s = divmod(whole_s, 60)
    if minutes < 120:
        return f"{minutes} min {rest_s} s" if rest_s else f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min"


def transferred(done_b: int, total_b: int | None, rate_b_s: float | None) -> str:
    """Percent, bytes, rate and time left, as far as they are known."""
    if not total_b:
        parts = [amount(done_b)]
    else:
        done_b = min(done_b, total_b)
        divisor, unit = scale(total_b)
        # Rounded down: 100 % is not said before it is.
        parts = [f"{done_b * 100 // total_b} %", f"{figure(done_b, divisor)} of {figure(total_b, divisor)} {unit}"]
    if rate_b_s is not None and done_b != total_b:
        parts.append(f"{amount(rate_b_s)}/s")
        if total_b and rate_b_s >= 1:  # less has no end worth telling
            parts.append(f"{duration((total_b - done_b) / rate_b_s)} left")
    return "  ".join(parts)


def line(title: str, elapsed_s: float, state: State | None, rate_b_s: float | None) -> str:
    """One line of progress, without the host's name."""
    state = state or State()
    head = title
    parts = []
    if state.step is not None:
        head += f": step {state.step}/{state.steps or '?'}, {duration(elapsed_s)}"
    elif state.done_b is None:
        head += f": {duration(elapsed_s)}"
    if state.text:
        parts.append(state.text)
    if state.done_b is not None:
        parts.append(transferred(state.done_b, state.total_b, rate_b_s))
    return ": ".join([head, *parts])


def interval_s(elapsed_s: float, *, terminal: bool) -> float:
    """Pause before the next line. On a terminal the first comes soon, and they thin out: they scroll."""
    if not terminal:
        return LOG_INTERVAL_S
    return min(LOG_INTERVAL_S, max(TERMINAL_INTERVAL_S, elapsed_s / 10))


def narrate(
    say: Callable[[float], Any], wait: Callable[[float], bool], clock: Callable[[], float], *, terminal: bool
) -> None:
    """Call `say` with the elapsed seconds, over and over, until `wait`, given seconds to wait, returns true."""
    began_s = clock()
    while not wait(interval_s(clock() - began_s, terminal=terminal)):
        say(clock() - began_s)
