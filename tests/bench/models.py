"""What bringing a model costs, against what it cannot be cheaper than: curl and sha256sum on the same file.

Prints seconds and ratios of one and the same machine; only ratios are comparable between machines. Ends with 1 where
a budget is not kept: 1.15 times the slower of curl and sha256sum, faster than `hf download` followed by sha256sum, at
most 11 % fetched again after a kill at 90 %, 200 MB of memory.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

from upstreams.hub import SAMPLE_COMMIT, SAMPLE_PATH, SAMPLE_REPO, sample_header

ROOT = Path(__file__).parents[2]
SIZE_B = int(os.environ.get("BENCH_MODEL_B", str(2 << 30)))
ROUNDS = int(os.environ.get("BENCH_ROUNDS", "3"))
BUDGET_RATIO = 1.15
# Of what `hf download` and `sha256sum` take one after the other: clearly less.
BUDGET_HF_RATIO = 0.9
BUDGET_AGAIN = 0.11
BUDGET_MEMORY_MB = 200
# As Ansible runs it on a host, but for the connection.
MODULE = """
import sys, ansible.module_utils as m; m.__path__.append(sys.argv[1]); sys.path.insert(0, sys.argv[2])
import json, model_store_file
from ansible.module_utils.testing import patch_module_args
with patch_module_args(json.loads(sys.argv[3])): model_store_file.main()
"""


def make_file(path: Path) -> str:
    """A model of this size; its digest."""
    path.parent.mkdir(parents=True)
    digest = hashlib.sha256()
    with path.open("wb") as file:
        block = sample_header(SIZE_B)
        while block:
            digest.update(block)
            file.write(block)
            block = os.urandom(min(8 << 20, SIZE_B - file.tell()))
    return digest.hexdigest()


class Bench:
    """A hub, a file on it, and the ways to fetch it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.out = folder / "out"
        self.served = folder / "hub" / SAMPLE_REPO / SAMPLE_COMMIT / SAMPLE_PATH
        self.sha256 = make_file(self.served)
        hub = [sys.executable, str(ROOT / "tests/upstreams/hub.py"), "--port", "0", "--root", str(folder / "hub")]
        self.hub = subprocess.Popen(hub, stdout=subprocess.PIPE, text=True)
        assert self.hub.stdout
        self.url = self.hub.stdout.readline().strip()
        self.answer = folder / "answer"
        self.memory_mb = 0.0

    def clean(self) -> None:
        """The same start for each: nothing there, nothing still to be written to the disk."""
        shutil.rmtree(self.out, ignore_errors=True)
        self.out.mkdir()
        os.sync()

    def timed(self, *command: str, **environment: str) -> float:
        """Seconds that a command takes; it must succeed."""
        began_s = time.monotonic()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env={**os.environ, **environment})
        return time.monotonic() - began_s

    def curl(self) -> float:
        path = f"/{SAMPLE_REPO}/resolve/{SAMPLE_COMMIT}/{SAMPLE_PATH}"
        return self.timed("curl", "--silent", "--fail", "--location", "--output", f"{self.out}/x", self.url + path)

    def sha256sum(self) -> float:
        return self.timed("sha256sum", str(self.served))

    def hf(self) -> float:
        """The hub's own client, and then the proof that it does not give."""
        quiet = {"HF_ENDPOINT": self.url, "HF_HOME": f"{self.out}/home", "HF_HUB_DISABLE_TELEMETRY": "1"}
        quiet |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_UPDATE_CHECK": "1"}
        words = ["download", SAMPLE_REPO, SAMPLE_PATH, "--revision", SAMPLE_COMMIT, "--local-dir", f"{self.out}/hf"]
        client = str(Path(sys.executable).with_name("hf"))
        return self.timed(client, *words, **quiet) + self.timed("sha256sum", f"{self.out}/hf/{SAMPLE_PATH}")

    def start_module(self) -> subprocess.Popen[str]:
        """Begin the product's own way."""
        files = ROOT / "roles" / "model_store" / "files"
        arguments: dict[str, Any] = {
            "repo": SAMPLE_REPO,
            "commit": SAMPLE_COMMIT,
            "path": SAMPLE_PATH,
            "size_b": SIZE_B,
            "sha256": self.sha256,
            "dest": f"{self.out}/{SAMPLE_PATH}",
            "endpoint": self.url,
            "hub_dir": str(self.folder / "huggingface_hub"),
            "hub_requirements": (files / "huggingface_hub.txt").read_text(),
            "hub_program": (files / "hub_answer.py").read_text(),
        }
        plugins = ROOT / "plugins"
        command = [sys.executable, "-c", MODULE, str(plugins / "module_utils"), str(plugins / "modules")]
        with self.answer.open("w") as file:
            return subprocess.Popen([*command, json.dumps(arguments)], stdout=file, text=True)

    def module(self) -> float:
        began_s = time.monotonic()
        process = self.start_module()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.monotonic() - began_s
        if process.returncode != 0:
            raise SystemExit(f"the module failed: {self.answer.read_text()}")
        self.memory_mb = max(self.memory_mb, usage.ru_maxrss / 1000)
        return seconds

    def fetched_again(self) -> float:
        """The part of the file that is fetched a second time after a kill at nine tenths."""
        self.clean()
        part = self.out / f"{SAMPLE_PATH}.part"
        process = self.start_module()
        while not part.exists() or part.stat().st_size < SIZE_B * 9 // 10:
            if process.poll() is not None:
                raise SystemExit(f"the module ended before it could be killed: {self.answer.read_text()}")
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.wait()
        urllib.request.urlopen(urllib.request.Request(f"{self.url}/control/log", method="DELETE"))  # noqa: S310  loopback
        self.module()
        with urllib.request.urlopen(f"{self.url}/control/log") as answer:  # noqa: S310  loopback
            lines = [json.loads(line) for line in answer.read().decode().splitlines()]
        return float(sum(line["sent_b"] for line in lines) / SIZE_B)


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="bench-models-", dir=os.environ.get("BENCH_DIR")) as folder:
        bench = Bench(Path(folder))
        try:
            bench.clean()
            bench.module()  # makes the environment of the hub's client, which a host has from then on
            ways = {
                "curl": bench.curl,
                "sha256sum": bench.sha256sum,
                "the module": bench.module,
                "hf + sha256sum": bench.hf,
            }
            taken_s: dict[str, list[float]] = {name: [] for name in ways}
            for _ in range(ROUNDS):
                for name, way in ways.items():
                    bench.clean()
                    taken_s[name].append(way())
            again = bench.fetched_again()
        finally:
            bench.hub.terminate()
            bench.hub.wait(10)
    medians_s = {name: statistics.median(values) for name, values in taken_s.items()}
    floor_s = max(medians_s["curl"], medians_s["sha256sum"])
    print(f"{SIZE_B / 1e9:.2f} GB over loopback, median of {ROUNDS}, ratios to the slower of curl and sha256sum:")
    for name, median_s in medians_s.items():
        spread = f"{min(taken_s[name]):.1f} to {max(taken_s[name]):.1f}"
        print(f"  {name:16} {median_s:6.2f} s ({spread}), {median_s / floor_s:5.2f}")
    print(f"  fetched again after a kill at 90 %: {again:.1%}")
    print(f"  memory: {bench.memory_mb:.0f} MB")
    kept = [
        medians_s["the module"] <= BUDGET_RATIO * floor_s,
        medians_s["the module"] <= BUDGET_HF_RATIO * medians_s["hf + sha256sum"],
        again <= BUDGET_AGAIN,
        bench.memory_mb <= BUDGET_MEMORY_MB,
    ]
    return int(not all(kept))


if __name__ == "__main__":
    sys.exit(main())
