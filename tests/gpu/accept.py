#!/usr/bin/env python3
"""Accept a GPU host: provision it, prove it with a real generation, measure it, and say what could not be shown.

    tests/gpu/accept.py --inventory inventory --host HOST [--steps provision,again,verify,benchmark] [--tune]

Runs on the control node, from anywhere, with Ansible and pytest on the path (make setup). Each step is one of the
project's own playbooks; nothing here knows better than they do. Exit status 0 only if every step that was asked for
succeeded and nothing of the GPU's tests was skipped.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
STEPS = {
    "provision": ["site.yml"],
    "again": ["site.yml"],
    "verify": ["playbooks/verify.yml"],
    "benchmark": ["playbooks/benchmark.yml"],
}


@dataclass
class Outcome:
    """What came of a step: `problem` is empty where it went well."""

    step: str
    seconds: float
    problem: str
    said: str = ""


def changed_tasks(output: str) -> int:
    """Changes in the recap of ansible-playbook."""
    return sum(int(count) for count in re.findall(r"\bchanged=(\d+)", output))


def skipped_tests(report: Path) -> list[str]:
    """Tests of verify.yml that were skipped, with their reason."""
    if not report.exists():
        return [f"{report} is missing, so nothing is known of single tests"]
    cases = ET.parse(report).getroot().iter("testcase")  # noqa: S314 - our own pytest wrote it a moment ago
    return [f"{case.get('name')}: {skip.get('message')}" for case in cases for skip in case.iter("skipped")]


def not_shown(site: dict[str, object], skipped: list[str]) -> list[str]:
    """What this run cannot show of a machine as the project delivers it."""
    lines = [f"skipped: {line}" for line in skipped]
    if not str(site.get("comfyui_base_image", "")).startswith("nvcr.io/"):
        lines.append(f"the NGC base image: {site.get('comfyui_base_image')} stood in for it")
    if "sd_xl_base_1.0" not in list(site.get("comfyui_models") or []):  # type: ignore[call-overload]
        lines.append("SDXL's own weights, and so what its images look like: comfyui_models does not name them")
    if "nvidia.github.io" not in str(site.get("comfyui_toolkit_repository", "")):
        lines.append(f"NVIDIA's apt repository: {site.get('comfyui_toolkit_repository')} stood in for it")
    return lines


def run_step(step: str, inventory: str, host: str, extra: list[str], log: Path) -> Outcome:
    """Run a playbook, show its output as it comes, and judge it."""
    command = ["ansible-playbook", "--inventory", inventory, "--limit", host, *STEPS[step], *extra]
    began_s = time.monotonic()
    with (
        log.open("w") as kept,
        subprocess.Popen(
            command,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "PYTHONUNBUFFERED": "1"},
        ) as process,
    ):
        for line in process.stdout or ():
            print(line, end="", flush=True)
            kept.write(line)
    seconds = time.monotonic() - began_s
    output = log.read_text()
    if process.returncode != 0:
        return Outcome(step, seconds, f"`{' '.join(command)}` ended with {process.returncode}, see {log}")
    changes = changed_tasks(output)
    if step == "again" and changes:
        return Outcome(step, seconds, f"the second run changed {changes} tasks, expected none")
    return Outcome(step, seconds, "", f"{changes} changed" if step in ("provision", "again") else "")


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description="Accept a GPU host.")
    parser.add_argument("--inventory", required=True)
    parser.add_argument("--host", required=True, help="its name in the inventory")
    parser.add_argument("--steps", default=",".join(STEPS), help="a part of them, in this order")
    parser.add_argument("--tune", action="store_true", help="let the benchmark try other settings as well")
    parser.add_argument("--extra-vars", action="append", default=[], metavar="NAME=VALUE")
    arguments = parser.parse_args()
    steps = arguments.steps.split(",")
    if unknown := [step for step in steps if step not in STEPS]:
        parser.error(f"there is no step {unknown[0]}; choose from {', '.join(STEPS)}")
    folder = ROOT / "artifacts" / arguments.host
    folder.mkdir(parents=True, exist_ok=True)
    extra = [word for pair in arguments.extra_vars for word in ("--extra-vars", pair)]
    outcomes = []
    for step in steps:
        tune = ["--extra-vars", "comfyui_benchmark_tune=true"] if step == "benchmark" and arguments.tune else []
        outcome = run_step(step, arguments.inventory, arguments.host, [*extra, *tune], folder / f"accept-{step}.log")
        outcomes.append(outcome)
        if outcome.problem:
            break
    print("\nAcceptance of", arguments.host)
    for outcome in outcomes:
        state = outcome.problem or "done"
        print(f"  {outcome.step:10} {outcome.seconds:6.0f} s  {state}{f', {outcome.said}' if outcome.said else ''}")
    skipped = skipped_tests(folder / "verify.xml") if "verify" in steps and not outcomes[-1].problem else []
    site = json.loads((folder / "site.json").read_text()) if (folder / "site.json").exists() else {}
    if site:
        print("Not shown by this run:")
        for line in not_shown(site, skipped) or ["nothing"]:
            print(f"  - {line}")
    gpu_skips = [line for line in skipped if "no GPU" in line]
    return 1 if any(outcome.problem for outcome in outcomes) or gpu_skips else 0


if __name__ == "__main__":
    sys.exit(main())
