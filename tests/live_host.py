"""A sandbox host under test, for scenarios that hurt it: shell, playbooks, and how long its API was away."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from playbook_runs import ROOT, environment

GUARD = "python3 /usr/local/lib/comfyui/comfyui_guard.py"
GATE_S = 12
# Asks ten times a second, and prints the longest time without an answer when its input ends.
WATCH = """
import sys, threading, time, urllib.request
ended = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
last, longest = time.monotonic(), 0.0
print("watching", flush=True)
while not ended.wait(0.1):
    try:
        with urllib.request.urlopen("http://127.0.0.1:8188/system_stats", timeout=1) as answer:
            answer.read()
    except OSError:
        continue
    now = time.monotonic()
    longest, last = max(longest, now - last), now
print(max(longest, time.monotonic() - last))
"""


class LiveHost:
    """The host of one scenario."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.inventory = ROOT / ".cache" / "sandbox" / name
        self.variables: dict[str, Any] = yaml.safe_load((self.inventory / "hosts.yml").read_text())["dgx"]["hosts"][
            name
        ]
        self.container: str = self.variables["ansible_host"]

    def run(self, script: str, timeout_s: float = 180) -> subprocess.CompletedProcess[str]:
        """Run a script on the host, however it ends."""
        command = ["docker", "exec", self.container, "bash", "-uo", "pipefail", "-c", script]
        return subprocess.run(command, capture_output=True, text=True, errors="replace", check=False, timeout=timeout_s)

    def shell(self, script: str, timeout_s: float = 180) -> str:
        """Run a script on the host; it must succeed."""
        done = self.run(f"set -e; {script}", timeout_s)
        assert done.returncode == 0, f"{script}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def begin(self, script: str) -> subprocess.Popen[str]:
        """Begin a script on the host; it ends when its input does."""
        return subprocess.Popen(
            ["docker", "exec", "--interactive", self.container, "bash", "-c", script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def write(self, path: str, text: str) -> None:
        """Put a text on the host."""
        command = ["docker", "exec", "--interactive", self.container, "tee", path]
        done = subprocess.run(command, input=text, text=True, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr

    def playbook(self, path: str, *words: str, **variables: Any) -> subprocess.CompletedProcess[str]:
        """Run a playbook against the host, however it ends."""
        command = ["ansible-playbook", "--inventory", str(self.inventory), str(ROOT / path), *words]
        command += ["--extra-vars", json.dumps(variables)] if variables else []
        return subprocess.run(
            command, cwd=ROOT, env=environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )

    def inspect(self) -> dict[str, Any]:
        """ComfyUI's container."""
        (document,) = json.loads(self.shell("docker container inspect comfyui"))
        return dict(document)

    def state(self) -> dict[str, Any]:
        """What became of the releases, and which is current."""
        found: dict[str, Any] = json.loads(self.shell("cat /etc/comfyui/state.json"))
        return found | {"current": Path(self.shell("readlink /etc/comfyui/current")).stem}

    def shorten_gate(self) -> None:
        """Run a release whose API may be silent for GATE_S only, so that failures are seen soon."""
        if json.loads(self.shell("cat /etc/comfyui/current"))["start_timeout_s"] == GATE_S:
            return
        done = self.playbook("site.yml", "--tags", "comfyui_service", comfyui_service_start_timeout_s=GATE_S)
        assert done.returncode == 0, done.stdout

    def answers(self) -> bool:
        """Whether the API answers now."""
        url = "http://127.0.0.1:8188/system_stats"
        return self.run(f"curl --silent --fail --max-time 5 --output /dev/null {url}").returncode == 0

    def wait(self, limit_s: float = 60) -> None:
        """Wait until the API answers."""
        deadline = time.monotonic() + limit_s
        while not self.answers():
            assert time.monotonic() < deadline, self.run("docker ps --all; docker logs --tail 20 comfyui").stdout
            time.sleep(0.3)

    @contextmanager
    def watched(self) -> Iterator[dict[str, float]]:
        """Measure the longest time without the API, as `away_s`."""
        result: dict[str, float] = {}
        watch = self.begin(f"exec python3 -c '{WATCH}'")
        assert watch.stdout is not None
        assert watch.stdout.readline() == "watching\n"
        yield result
        output, errors = watch.communicate("", timeout=30)
        assert watch.returncode == 0, errors
        result["away_s"] = round(float(output), 2)
