"""Sample what a host's GPUs and memory do while something runs. Standard library and nvidia-smi only."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

QUERY = ["nvidia-smi", "--query-gpu=utilization.gpu,memory.used", "--format=csv,noheader,nounits"]
QUERY_LIMIT_S = 5
INTERVAL_S = 0.25
MEMINFO = Path("/proc/meminfo")


class Sample(NamedTuple):
    """One moment. The GPU that works most stands for all; None is what the driver does not report.

    GB10 reports no memory: its GPU uses the host's, whose use is total less available.
    """

    at_s: float
    gpu_percent: float | None
    gpu_memory_mib: float | None
    memory_used_mib: float


def parse_gpus(text: str) -> list[tuple[float | None, float | None]]:
    """Utilisation in percent and memory in MiB of each GPU, from nvidia-smi's CSV.

    What a driver does not report is a word in brackets: [N/A], [Not Supported], [Unknown Error].
    """

    def number(word: str) -> float | None:
        try:
            return float(word)
        except ValueError:
            return None

    rows = [line.split(",") for line in text.splitlines() if line.count(",") == 1]
    return [(number(percent), number(memory)) for percent, memory in rows]


def busiest(gpus: list[tuple[float | None, float | None]]) -> tuple[float | None, float | None]:
    """The highest utilisation, and the most memory that a GPU holds; None where no GPU says."""
    percents = [percent for percent, _ in gpus if percent is not None]
    memories = [memory for _, memory in gpus if memory is not None]
    return max(percents, default=None), max(memories, default=None)


def memory_used_mib(meminfo: str) -> float:
    """Total less available, from /proc/meminfo, which counts in KiB."""
    fields = {line.split(":")[0]: int(line.split()[1]) for line in meminfo.splitlines() if ":" in line}
    return (fields["MemTotal"] - fields["MemAvailable"]) / 1024


def ask_gpus(gpus: Iterable[str] = ()) -> str:
    """What nvidia-smi says of these GPUs (index, UUID, or 0:1 for a part of GPU 0), or of all where none is named.

    Nothing where it is missing, fails or hangs.
    """
    names = ",".join(dict.fromkeys(gpu.split(":")[0] for gpu in gpus))
    query = [*QUERY, f"--id={names}"] if names else QUERY
    try:
        return subprocess.run(query, capture_output=True, text=True, check=True, timeout=QUERY_LIMIT_S).stdout
    except (OSError, subprocess.SubprocessError):
        return ""


class Sampler:
    """Takes samples in a thread of its own, from before a block begins until it ends."""

    def __init__(self, ask: Callable[[], str] = ask_gpus, interval_s: float = INTERVAL_S) -> None:
        self.samples: list[Sample] = []
        self._ask = ask
        self._interval_s = interval_s
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._start = time.monotonic()

    def _take(self) -> None:
        percent, memory = busiest(parse_gpus(self._ask()))
        used_mib = memory_used_mib(MEMINFO.read_text(encoding="ascii"))
        self.samples.append(Sample(round(time.monotonic() - self._start, 2), percent, memory, round(used_mib)))

    def _run(self) -> None:
        while not self._ended.wait(self._interval_s):
            self._take()

    def __enter__(self) -> Sampler:
        self._take()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def result(self) -> list[dict[str, Any]]:
        """The samples as a module returns them."""
        return [sample._asdict() for sample in self.samples]
