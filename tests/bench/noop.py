"""How long a run takes that has nothing to do: with Mitogen, without it, and one task alone as the floor.

Prints seconds and ratios of one and the same machine; only ratios are comparable between machines.
Budget on 2 cores: 15 s with Mitogen.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
NAME = "bench"
ROUNDS = 3
MITOGEN = "ANSIBLE_STRATEGY"
PING = ["ansible", "dgx", "--inventory", f".cache/sandbox/{NAME}", "--module-name", "ansible.builtin.ping"]
SITE = ["ansible-playbook", "--inventory", f".cache/sandbox/{NAME}", "site.yml"]


def seconds(command: list[str], *, mitogen: bool) -> float:
    """Run a command and take its time; its words are shown only if it fails."""
    environment = {key: value for key, value in os.environ.items() if mitogen or key != MITOGEN}
    started_s = time.monotonic()
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"`{' '.join(command)}` failed:\n{done.stdout}{done.stderr}")
    return time.monotonic() - started_s


def main() -> None:
    """Make a provisioned sandbox, measure in turns, and remove it."""
    if MITOGEN not in os.environ:
        sys.exit("Mitogen is off. Run this through make: make bench")
    subprocess.run([sys.executable, "-m", "sandbox", "up", "--from", "snapshot", NAME], check=True, cwd=ROOT)
    try:
        seconds(SITE, mitogen=True)
        cases = {"one task": (PING, False), "site.yml": (SITE, False), "site.yml with Mitogen": (SITE, True)}
        taken_s: dict[str, list[float]] = {title: [] for title in cases}
        for _ in range(ROUNDS):
            for title, (command, mitogen) in cases.items():
                taken_s[title].append(seconds(command, mitogen=mitogen))
    finally:
        subprocess.run([sys.executable, "-m", "sandbox", "down", NAME], check=True, cwd=ROOT)
    medians = {title: statistics.median(values) for title, values in taken_s.items()}
    for title, median_s in medians.items():
        spread = f"{min(taken_s[title]):.1f} to {max(taken_s[title]):.1f}"
        print(f"{title:24} {median_s:6.1f} s ({spread}), {median_s / medians['one task']:5.1f} times one task")


if __name__ == "__main__":
    main()
