"""How long a run takes that has nothing to do: alone, on four hosts, as a reprovision, and one task as the floor.

Prints seconds and ratios of one and the same machine; only ratios are comparable between machines. Budgets, with
Mitogen: 15 s on 2 cores, a reprovision without its verdict 1.2 of site.yml, four hosts 1.8 of one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
HOSTS = ("bench", "bench-2", "bench-3", "bench-4")
ROUNDS = 3
MITOGEN = "ANSIBLE_STRATEGY"
SLOWEST = 10
REPROVISION, FOUR = "reprovision.yml", "four hosts"
BUDGETS = {REPROVISION: 1.2, FOUR: 1.8}


def on(hosts: tuple[str, ...], *words: str) -> list[str]:
    """A command against these sandboxes."""
    return [*words, *(word for name in hosts for word in ("--inventory", f".cache/sandbox/{name}"))]


PING = on(HOSTS[:1], "ansible", "dgx", "--module-name", "ansible.builtin.ping")
SITE = on(HOSTS[:1], "ansible-playbook", "site.yml")
CASES = {
    "one task": (PING, False),
    "without Mitogen": (SITE, False),
    "site.yml": (SITE, True),
    REPROVISION: (on(HOSTS[:1], "ansible-playbook", "playbooks/reprovision.yml", "--skip-tags", "verify"), True),
    FOUR: (on(HOSTS, "ansible-playbook", "site.yml"), True),
}


def seconds(command: list[str], *, mitogen: bool, **more: str) -> float:
    """Run a command and take its time; its words are shown only if it fails."""
    environment = {key: value for key, value in os.environ.items() if mitogen or key != MITOGEN}
    started_s = time.monotonic()
    done = subprocess.run(command, cwd=ROOT, env=environment | more, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"`{' '.join(command)}` failed:\n{done.stdout}{done.stderr}")
    return time.monotonic() - started_s


def slowest() -> list[str]:
    """The tasks of a run of site.yml that take longest, as lines."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tasks.json"
        seconds(SITE, mitogen=True, TASK_BUDGET_FILE=str(path))
        tasks = json.loads(path.read_text())["hosts"][HOSTS[0]]["tasks"]
    tasks.sort(key=lambda task: -task["seconds"])
    return [f"  {task['seconds']:5.2f} s  {task['name']}" for task in tasks[:SLOWEST]]


def main() -> int:
    """Make provisioned sandboxes, measure in turns, and remove them."""
    if MITOGEN not in os.environ:
        sys.exit("Mitogen is off. Run this through make: make bench")
    try:
        for name in HOSTS:
            subprocess.run([sys.executable, "-m", "sandbox", "up", "--from", "snapshot", name], check=True, cwd=ROOT)
        seconds(CASES[FOUR][0], mitogen=True)
        taken_s: dict[str, list[float]] = {title: [] for title in CASES}
        for _ in range(ROUNDS):
            for title, (command, mitogen) in CASES.items():
                taken_s[title].append(seconds(command, mitogen=mitogen))
        longest = slowest()
    finally:
        for name in HOSTS:
            subprocess.run([sys.executable, "-m", "sandbox", "down", name], check=True, cwd=ROOT)
    # The fastest of a kind counts: others may work on this machine.
    least_s = {title: min(values) for title, values in taken_s.items()}
    for title, values in taken_s.items():
        ratio = least_s[title] / least_s["site.yml"]
        print(f"{title:16} {min(values):6.1f} s (to {max(values):.1f}), {ratio:5.2f} of site.yml")
    print("\n".join(["Slowest tasks of site.yml:", *longest]))
    return int(any(least_s[title] > budget * least_s["site.yml"] for title, budget in BUDGETS.items()))


if __name__ == "__main__":
    sys.exit(main())
