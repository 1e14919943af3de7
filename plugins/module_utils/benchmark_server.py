"""Servers to measure: the release's own container with other settings, or the same files without a container.

The service's container is never touched: what runs here has another name, another port and a scratch folder in the
place of the service's data, and only the models are shared, read-only. So whatever ends a benchmark early, the service
goes on with the settings that it had.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

from ansible.module_utils.benchmark_measures import Sample, parse_sample
from ansible.module_utils.comfyui_api import Client, ComfyuiError, describe_execution, image_references

CONTAINER = "comfyui-benchmark"
LABEL = "dgx-comfyui.benchmark=1"
POLL_S = 0.05
STOP_LIMIT_S = 20
SAMPLE_INTERVAL_MS = 100
LOG_LINES = 15
GPU_QUERY = "--query-gpu=index,utilization.gpu,memory.used,power.draw"

# In the container, which has numpy and Pillow: mean difference in levels of 0 to 255, share of the pixels that differ
# by more than 16 levels in a channel, and the standard deviation of the new image (0: blank).
COMPARE = """
import json, sys
import numpy
from PIL import Image
old, new = (numpy.asarray(Image.open(path).convert("RGB"), dtype=numpy.int16) for path in sys.argv[1:3])
gap = numpy.abs(old - new)
print(json.dumps({"mean": float(gap.mean()), "share": float((gap.max(axis=2) > 16).mean()), "std": float(new.std())}))
"""


class ServerError(Exception):
    """Why a server did not start, ended early or failed to render, in one line."""


def one_line(text: str, limit: int = 300) -> str:
    """The last words of a program, as one line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return " / ".join(lines[-2:])[-limit:] or "it said nothing"


def call(*argv: str) -> subprocess.CompletedProcess[str]:
    """Run a program; the caller looks at the status, which is 127 where there is no such program."""
    try:
        return subprocess.run(argv, capture_output=True, text=True, errors="replace", check=False)
    except FileNotFoundError as error:
        return subprocess.CompletedProcess(argv, 127, "", str(error))


def load_guard(path: str) -> Any:
    """The service's own guard as a module: it knows how a release becomes a container."""
    spec = importlib.util.spec_from_file_location("comfyui_guard", path)
    if spec is None or spec.loader is None or not os.path.exists(path):
        raise ServerError(f"{path} is not there, expected the service's guard. Run ansible-playbook site.yml first.")
    module = importlib.util.module_from_spec(spec)
    sys.path.append(os.path.dirname(path))  # what it imports lies beside it
    spec.loader.exec_module(module)
    return module


def free_port() -> int:
    """A port of the loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def container_arguments(arguments: Sequence[str], work_dir: str, models_dir: str) -> list[str]:
    """The guard's arguments of `docker run` for a container that is not the service's.

    `arguments` were made for a release whose data folder is `work_dir`; the models come from where they really are.
    """
    changed: list[str] = []
    rest = iter(arguments)
    for word in rest:
        if word == "--name":
            changed += [word, CONTAINER, "--label", LABEL]
            next(rest)
        elif word in ("--label", "--restart"):
            next(rest)  # the service's labels are not ours, and a candidate that crashes is to stay down
        else:
            changed.append(word.replace(f"src={work_dir}/models,", f"src={models_dir},"))
    return changed


def replace_flag(flags: Sequence[str], name: str, value: str) -> list[str]:
    """The flags with another value for one of them."""
    changed = list(flags)
    changed[changed.index(name) + 1] = value
    return changed


class Server:
    """A ComfyUI that was started for the benchmark."""

    def __init__(self, port: int) -> None:
        self.client = Client(f"http://127.0.0.1:{port}", request_timeout_s=60)

    def ended(self) -> str:
        """Why it no longer runs; empty while it does."""
        raise NotImplementedError

    def wait(self, began_s: float, limit_s: float) -> float:
        """Seconds from `began_s` to the first answer of the API."""
        checked_s = began_s
        while True:
            with contextlib.suppress(ComfyuiError):
                self.client.json("/system_stats")
                return time.monotonic() - began_s
            now_s = time.monotonic()
            if now_s - checked_s > 1:
                checked_s = now_s
                if words := self.ended():
                    raise ServerError(f"it did not start: {words}")
            if now_s - began_s > limit_s:
                raise ServerError(f"it did not answer within {limit_s:g} s")
            time.sleep(POLL_S)

    def run(self, graph: Mapping[str, Any], limit_s: float) -> tuple[float, float, list[str]]:
        """Render a graph alone: begin and end by the server's own clock, and the files that it wrote."""
        (done,) = self.run_queue([graph], limit_s)
        return done

    def run_queue(self, graphs: Sequence[Mapping[str, Any]], limit_s: float) -> list[tuple[float, float, list[str]]]:
        """Submit all graphs at once and wait for the last one."""
        deadline_s = time.monotonic() + limit_s
        try:
            prompts = [self.client.submit(graph) for graph in graphs]
            done = []
            for prompt in prompts:
                while (entry := self.client.history(prompt)) is None:
                    if time.monotonic() > deadline_s:
                        raise ServerError(f"no image within {limit_s:g} s")
                    time.sleep(POLL_S)
                done.append(self._read(entry))
        except ComfyuiError as error:
            raise ServerError(self.ended() or str(error)) from error
        return done

    def _read(self, entry: Mapping[str, Any]) -> tuple[float, float, list[str]]:
        status = entry.get("status") or {}
        if failure := describe_execution(status):
            raise ServerError(failure)
        at_s = {name: details["timestamp"] / 1000 for name, details in status["messages"] if "timestamp" in details}
        files = [os.path.join(one.get("subfolder", ""), one["filename"]) for _, one in image_references(entry)]
        return at_s["execution_start"], at_s["execution_success"], files

    def free(self) -> None:
        """Let it give its models' memory back."""
        with contextlib.suppress(ComfyuiError):
            self.client.request("/free", {"unload_models": True, "free_memory": True})


class ContainerServer(Server):
    """A container as the guard would make it for the release, with more flags and a data folder of its own."""

    def __init__(
        self,
        guard: Any,
        release: Mapping[str, Any],
        work_dir: str,
        extra_flags: Sequence[str],
        extra_environment: Mapping[str, str] | None = None,
    ) -> None:
        port = free_port()
        super().__init__(port)
        self.flags = [*release["flags"], *extra_flags]
        ours = {**release, "data_dir": work_dir, "port": port, "bind_address": "127.0.0.1", "flags": self.flags}
        ours["environment"] = {**release.get("environment", {}), **(extra_environment or {})}
        self._arguments = container_arguments(guard.run_arguments(ours, ""), work_dir, f"{release['data_dir']}/models")

    def start(self, limit_s: float) -> float:
        """Seconds from `docker run` to the first answer."""
        remove_container()
        began_s = time.monotonic()
        done = call("docker", "run", *self._arguments)
        if done.returncode != 0:
            raise ServerError(f"it did not start: {one_line(done.stderr)}")
        return self.wait(began_s, limit_s)

    def ended(self) -> str:
        state = self.inspect().get("State", {})
        if state.get("Running"):
            return ""
        logs = call("docker", "logs", "--tail", str(LOG_LINES), CONTAINER)
        reason = "out of memory" if state.get("OOMKilled") else f"ended with status {state.get('ExitCode')}"
        return f"{reason}: {one_line(logs.stdout + logs.stderr)}"

    def inspect(self) -> dict[str, Any]:
        """What the engine says of the container; empty where it is gone."""
        done = call("docker", "container", "inspect", CONTAINER)
        found: list[dict[str, Any]] = json.loads(done.stdout) if done.returncode == 0 else []
        return found[0] if found else {}

    def compare(self, old: str, new: str) -> dict[str, float]:
        """How two images in the output folder differ."""
        paths = [f"/data/output/{name}" for name in (old, new)]
        done = call("docker", "exec", CONTAINER, "python", "-c", COMPARE, *paths)
        if done.returncode != 0:
            raise ServerError(f"its images could not be compared: {one_line(done.stderr)}")
        gap: dict[str, float] = json.loads(done.stdout)
        return gap

    def stop(self) -> None:
        """Remove it."""
        remove_container()


class PlainServer(Server):
    """`python main.py` without a container: no namespaces but that of the files, no cgroup, no seccomp, no network hop.

    The files, the driver's libraries and the models are those that a running container sees.
    """

    def __init__(self, beside: ContainerServer) -> None:
        self._port = free_port()
        super().__init__(self._port)
        self._beside = beside
        self._process: subprocess.Popen[str] | None = None

    def argv(
        self, pid: int, environment: Sequence[str], working_dir: str, user: str, command: Sequence[str]
    ) -> list[str]:
        """What to run: into the container's mounts, a fresh /proc (its own shows other processes), then the user."""
        uid, _, gid = user.partition(":")
        script = (
            'mount -t proc proc /proc && cd "$1" && uid=$2 gid=$3 && shift 3 && '
            'exec setpriv --reuid "$uid" --regid "$gid" --clear-groups -- "$@"'
        )
        enter = ["nsenter", "--target", str(pid), "--mount", "--", "env", "-i", *environment]
        return [*enter, "unshare", "--mount", "sh", "-c", script, "sh", working_dir, uid, gid or uid, *command]

    def start(self, limit_s: float) -> float:
        """Seconds from the call to the first answer."""
        found = self._beside.inspect()
        flags = replace_flag(self._beside.flags, "--listen", "127.0.0.1")
        flags = replace_flag(flags, "--port", str(self._port))
        flags = replace_flag(flags, "--temp-directory", "/tmp/plain")  # noqa: S108 - in the container's mounts
        flags = replace_flag(flags, "--database-url", "sqlite:////data/user/plain.db")
        config = found["Config"]
        command = ["python", "main.py", *flags]
        argv = self.argv(found["State"]["Pid"], config["Env"], config["WorkingDir"], config["User"], command)
        began_s = time.monotonic()
        self._process = subprocess.Popen(
            argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", start_new_session=True
        )
        self._words: list[str] = []
        threading.Thread(target=self._listen, args=(self._process,), daemon=True).start()
        return self.wait(began_s, limit_s)

    def _listen(self, process: subprocess.Popen[str]) -> None:
        # Somebody has to read: a full pipe would stop it.
        for line in process.stdout or ():
            self._words = [*self._words[-LOG_LINES:], line]

    def ended(self) -> str:
        if self._process is None or self._process.poll() is None:
            return ""
        return f"ended with status {self._process.returncode}: {one_line(''.join(self._words))}"

    def stop(self) -> None:
        """End it, and what it started."""
        if self._process is None:
            return
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=STOP_LIMIT_S)
                break


def remove_container() -> None:
    """Remove the benchmark's container, of this run or of one that was interrupted; none is no error."""
    call("docker", "container", "rm", "--force", "--volumes", CONTAINER)


def host_available_b() -> int:
    """Memory that the host could give to a new program."""
    with open("/proc/meminfo", encoding="ascii") as lines:
        for line in lines:
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) << 10
    return 0


class Sampler:
    """Looks at the GPUs ten times a second, from beginning to end of the benchmark."""

    def __init__(self) -> None:
        self.samples: list[Sample] = []
        self.idle_available_b = host_available_b()
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Sampler:
        argv = ["nvidia-smi", GPU_QUERY, "--format=csv,noheader,nounits", f"--loop-ms={SAMPLE_INTERVAL_MS}"]
        try:
            self._process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        except OSError:  # without a GPU there is nothing to sample
            return self
        threading.Thread(target=self._listen, args=(self._process,), daemon=True).start()
        return self

    def _listen(self, process: subprocess.Popen[str]) -> None:
        for line in process.stdout or ():
            if sample := parse_sample(line, time.time(), host_available_b()):
                self.samples.append(sample)

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait()


def holds_gpu(pid: int, proc: str = "/proc") -> bool:
    """Whether a process has a device of the driver open.

    The driver counts processes as the machine does. Where this host is itself a namespace of that machine, the number
    may be that of somebody else here, or of nobody.
    """
    with contextlib.suppress(OSError):
        for name in os.listdir(f"{proc}/{pid}/fd"):
            with contextlib.suppress(OSError):
                if os.readlink(f"{proc}/{pid}/fd/{name}").startswith("/dev/nvidia"):
                    return True
    return False


def gpu_processes() -> list[tuple[int, int | None]]:
    """Processes of this host that compute on a GPU, as (pid, memory in bytes)."""
    done = call("nvidia-smi", "--query-compute-apps=pid,used_gpu_memory", "--format=csv,noheader,nounits")
    found = []
    for line in done.stdout.splitlines() if done.returncode == 0 else ():
        pid, _, memory_mib = (part.strip() for part in line.partition(","))
        if pid.isdigit() and holds_gpu(int(pid)):
            found.append((int(pid), int(memory_mib) << 20 if memory_mib.isdigit() else None))
    return found


def container_pids(name: str) -> list[int]:
    """Processes of a container, by the host's numbers."""
    done = call("docker", "top", name, "-eo", "pid")
    return [int(line) for line in done.stdout.split()[1:] if line.isdigit()] if done.returncode == 0 else []
