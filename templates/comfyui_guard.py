#!/usr/bin/python3
"""Keeps ComfyUI's container as the current release says, and never leaves a host with a release that does not work.

comfyui.service calls start and stop, comfyui-guard.timer calls check, provisioning calls drift and activate, and
whoever wants to know calls report. Words for people go to the error output, and so to the journal; results are JSON.
Standard library and the modules beside it only: it runs on the host's own Python.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import cdi_host
from cdi_spec import REQUIRED_NODES
from comfyui_api import Client, ComfyuiError
from comfyui_releases import ReleaseError, Releases

CONTAINER = "comfyui"
WRITABLE = ("cache", "input", "output", "user")
CONTAINER_PORT = 8188
UNIT = "comfyui.service"
RELEASE_LABEL = "dgx-comfyui.release"
GPU_LABEL = "dgx-comfyui.gpu"

RENDER_CHECK = Path(__file__).with_name("render_check.json")
RUN_FOLDER = Path("/run/comfyui")

API_TIMEOUT_S = 10
COMMAND_TIMEOUT_S = 120
POLL_S = 0.5
LOCK_WAIT_S = 600
BACKUPS_KEPT = 3
OTHER_BACKUP = 'Make room there, set comfyui_service_backup_dir to another folder, or to "" for none.'
# Less than this, and an image or a database page may not fit any more.
ROOM_LEAST_B = 256 * 1024**2
# A busy server may miss one answer; three in a row, a minute apart, it does not.
SILENT_LIMIT = 3
# A repair that did not help so often will not help the next time.
REPAIR_LIMIT = 3
# Looks in a row at which jobs wait and none runs.
STUCK_LIMIT = 2
# Docker has by then tried again with growing pauses: it does not come up.
CRASH_LIMIT = 2
LONG_PROMPT_S = 3600
LOG_LINES = 30

# Says so where the container lost its devices or holds a driver's old library. Asks for no GPU memory.
NO_CUDA = "no CUDA: "
CUDA_ANSWERS = f"""
import ctypes
try:
    cuda = ctypes.CDLL("libcuda.so.1")
    found = ctypes.c_int()
    statuses = {{"cuInit": cuda.cuInit(0), "cuDeviceGetCount": cuda.cuDeviceGetCount(ctypes.byref(found))}}
except (AttributeError, OSError) as error:
    raise SystemExit(f"{NO_CUDA}{{error}}")
for name, status in statuses.items():
    if status:
        raise SystemExit(f"{NO_CUDA}{{name}} answered {{status}}")
if not found.value:
    raise SystemExit("{NO_CUDA}it finds no GPU")
"""
# What proves a release: computing, with the torch that ComfyUI uses.
CUDA_COMPUTES = """
import torch
x = torch.ones(1024, 1024, device="cuda")
assert (x @ x).sum().item() == 1024.0**3, "a matrix product came out wrong"
"""


class GuardError(Exception):
    """What is wrong on this host, in one sentence that names the command to type."""


class BusyError(GuardError):
    """Another run holds the lock of this host."""


def say(text: str) -> None:
    """A line for the journal, or for whoever waits."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def command(*arguments: str, timeout_s: float = COMMAND_TIMEOUT_S) -> subprocess.CompletedProcess[str]:
    """Run a program; the caller looks at the status."""
    try:
        return subprocess.run(
            arguments, capture_output=True, text=True, errors="replace", check=False, timeout=timeout_s
        )
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(arguments, 124, "", f"no answer within {timeout_s:g} s")
    except OSError as error:
        return subprocess.CompletedProcess(arguments, 127, "", str(error))


def require(done: subprocess.CompletedProcess[str], what: str) -> str:
    """The output of a command that must have worked."""
    if done.returncode != 0:
        raise GuardError(f"{what} failed: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout.strip()


@contextlib.contextmanager
def alone(wait_s: float) -> Iterator[None]:
    """Hold the one lock of this host; BusyError where another holds it for longer than `wait_s`.

    The kernel lets go of it with the process, so an interrupted run leaves nothing behind.
    """
    RUN_FOLDER.mkdir(mode=0o755, parents=True, exist_ok=True)
    deadline = time.monotonic() + wait_s
    with (RUN_FOLDER / "lock").open("w") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() >= deadline:
                    raise BusyError(
                        f"Another run has been changing ComfyUI on this host for {wait_s:g} s, expected that it ends. "
                        "See what it does (ps -ef | grep comfyui_guard), then run this again."
                    ) from error
                if wait_s:
                    say("waiting for another run that changes ComfyUI on this host")
                time.sleep(min(5.0, max(0.0, deadline - time.monotonic())))
        yield


class Engine:
    """ComfyUI's container, by Docker's command line."""

    def inspect(self) -> dict[str, Any] | None:
        """The container, or None where there is none. An engine that does not answer is an error, not an absence."""
        done = command("docker", "container", "inspect", CONTAINER)
        if done.returncode == 0:
            (document,) = json.loads(done.stdout)
            return dict(document)
        if "no such" in done.stderr.lower():
            return None
        raise GuardError(
            f"Docker does not answer: {done.stderr.strip()}. See systemctl status docker; this ends when it runs."
        )

    def has_image(self, image: str) -> bool:
        """Whether an image is on this host."""
        return command("docker", "image", "inspect", image).returncode == 0

    def docker(self, what: str, *arguments: str) -> str:
        """A call that must work."""
        return require(command("docker", *arguments), what)

    def python(self, program: str) -> subprocess.CompletedProcess[str]:
        """Run a program in the container."""
        return command("docker", "exec", CONTAINER, "python", "-c", program)

    def last_words(self) -> str:
        """What the container said last."""
        done = command("docker", "logs", "--tail", str(LOG_LINES), CONTAINER)
        return (done.stdout + done.stderr).strip()[-3000:]


def label(container: dict[str, Any] | None, name: str) -> str:
    """A label of the container; empty without."""
    return str(((container or {}).get("Config", {}).get("Labels") or {}).get(name, ""))


def run_arguments(release: dict[str, Any], gpu: str) -> list[str]:
    """The arguments of `docker run` for a release: no capabilities, read-only but for what ComfyUI writes.

    `gpu` names the state of the driver that the container is made with. Docker's own seccomp and AppArmor profiles and
    namespaces stay: nothing here takes them away, and those whose default an engine's settings choose are asked for.
    """
    data_dir, user = release["data_dir"], release["user_id"]
    mounts = [f"type=bind,src={data_dir}/models,dst=/data/models,readonly"]
    mounts += [f"type=bind,src={data_dir}/{name},dst=/data/{name}" for name in WRITABLE]
    memory = ["--memory", release["memory_limit"]] if release.get("memory_limit") else []
    options = {
        "--name": CONTAINER,
        "--log-driver": "journald",
        "--restart": f"on-failure:{release['restart_limit']}",
        "--user": f"{user}:{user}",
        "--cap-drop": "ALL",
        "--security-opt": "no-new-privileges",
        # An engine's default-cgroupns-mode may be host, and with cgroup v1 it is.
        "--cgroupns": "private",
        "--ipc": "private",
        "--pids-limit": str(release.get("pids_limit", 4096)),
        "--shm-size": release["shm_size"],
        "--tmpfs": f"/tmp:rw,nosuid,nodev,mode=1777,size={release['tmp_size']}",  # noqa: S108 - in the container
        "--publish": f"{host_part(release['bind_address'])}:{release['port']}:{CONTAINER_PORT}",
    }
    labels = {RELEASE_LABEL: release["id"], GPU_LABEL: gpu}
    environment = release.get("environment", {})
    return [
        "--detach",
        "--init",
        "--read-only",
        *[word for pair in options.items() for word in pair],
        *memory,
        *[word for name, value in labels.items() for word in ("--label", f"{name}={value}")],
        *[word for name, value in environment.items() for word in ("--env", f"{name}={value}")],
        *[word for mount in mounts for word in ("--mount", mount)],
        *release["gpus"],
        release["image"],
        "python",
        "main.py",
        *release["flags"],
    ]


def host_part(address: str) -> str:
    """An address as it stands before a port."""
    return f"[{address}]" if ":" in address else address


@contextlib.contextmanager
def understood() -> Iterator[None]:
    """Take an answer of another shape than ComfyUI's for what it is, the server's fault."""
    try:
        yield
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise ComfyuiError("not_comfyui", f"its answer is not what ComfyUI answers ({error!r:.200})") from error


def client_of(release: dict[str, Any]) -> Client:
    """The API as this host reaches it."""
    address = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(release["bind_address"], release["bind_address"])  # noqa: S104
    return Client(f"http://{host_part(address)}:{release['port']}", request_timeout_s=API_TIMEOUT_S)


def computes_on_gpu(release: dict[str, Any]) -> bool:
    """Whether ComfyUI is to compute on a GPU."""
    return bool(release["gpus"]) and "--cpu" not in release["flags"]


def uses_cdi(release: dict[str, Any]) -> bool:
    """Whether the GPUs come by a CDI specification, which can be out of date."""
    return any("nvidia.com/gpu=" in word for word in release["gpus"])


def gpu_state(release: dict[str, Any]) -> str:
    """Names what a container of this release gets of the driver; empty where it gets none by CDI."""
    return cdi_host.fingerprint() if uses_cdi(release) else ""


def spec_problems(release: dict[str, Any], *, mend: bool) -> list[str]:
    """How the CDI specification differs from this host; with `mend` it is made anew first."""
    if not uses_cdi(release):
        return []
    gpus = command("nvidia-smi", "-L")
    gpu_list = gpus.stdout if gpus.returncode == 0 else ""
    mig_modes = command("nvidia-smi", "--query-gpu=index,mig.mode.current", "--format=csv,noheader").stdout
    every_gpu = any(word.endswith("nvidia.com/gpu=all") for word in release["gpus"]) and not cdi_host.limited()
    problems = cdi_host.spec_problems(gpu_list=gpu_list, mig_modes=mig_modes, every_gpu=every_gpu)
    if problems and mend:
        say(f"Making the CDI specification anew: {'; '.join(problems)}")
        if any(not os.path.exists(path) for path in REQUIRED_NODES):
            command("nvidia-ctk", "system", "create-device-nodes", "--control-devices", "--load-kernel-modules")
        # With toolkit 1.19.0 its turn at a boot comes after multi-user.target, which waits for this guard.
        command("systemctl", "--job-mode=ignore-dependencies", "restart", "nvidia-cdi-refresh.service")
        problems = cdi_host.spec_problems(gpu_list=gpu_list, mig_modes=mig_modes, every_gpu=every_gpu)
    return problems


def lost_folders(release: dict[str, Any], found: dict[str, Any] | None) -> list[str]:
    """Folders that a running container still has and the host no longer does: removed, or another by now."""
    if not (found and found["State"]["Running"]):
        return []
    inside = f"/proc/{found['State'].get('Pid', 0)}/root/data"
    pairs = [(f"{release['data_dir']}/{name}", f"{inside}/{name}") for name in ("models", *WRITABLE)]
    return [folder for folder, mounted in pairs if command("test", folder, "-ef", mounted).returncode != 0]


def host_problems(release: dict[str, Any], *, mend: bool) -> list[str]:
    """Why this host cannot hand over its GPUs, as sentences; with `mend` the CDI specification is made anew first."""
    problems = spec_problems(release, mend=mend)
    sentences = [words] if uses_cdi(release) and (words := cdi_host.driver_problem()) else []
    if problems:
        sentences.append(
            f"The CDI specification {cdi_host.SPEC} does not fit this host: {'; '.join(problems)}. Type systemctl "
            "restart nvidia-cdi-refresh.service; where nvidia-smi fails as well, reboot."
        )
    return sentences


class Guard:
    """What each verb does."""

    def __init__(self, releases: Releases | None = None, engine: Engine | None = None) -> None:
        self.releases = releases or Releases()
        self.engine = engine or Engine()

    def serve(self) -> None:
        """Start for systemd: a release that a change left before it proved itself and that does not start is left."""
        try:
            self.start()
        except (GuardError, ReleaseError) as error:
            current = self.releases.current
            before = self.releases.before(current)
            if not before or current in self.releases.state()["proved"]:
                raise
            try:
                with alone(0):
                    say(f"Going back to release {before}: {current} never proved itself, and {error}")
                    self.releases.point_at(before)
                    self.start()
            except BusyError:  # whoever changes it goes back itself
                raise error from None

    def start(self) -> None:
        """Make sure that the current release's container runs, with the driver as it is now."""
        release = self.releases.load(self.releases.current)
        found = self.engine.inspect()
        made_for = label(found, RELEASE_LABEL)
        if found is not None and not made_for:
            raise GuardError(
                f"A container named {CONTAINER} is here that this service did not make. "
                f"Rename it (docker rename {CONTAINER} my-{CONTAINER}), then: systemctl restart comfyui"
            )
        problems = host_problems(release, mend=True)
        same = made_for == release["id"]
        if problems and not (same and found and found["State"]["Running"]):
            raise GuardError(" ".join(problems))
        gpu = gpu_state(release)
        if same and (problems or label(found, GPU_LABEL) == gpu):
            self.engine.docker(f"starting the container of release {made_for}", "start", CONTAINER)
            return
        if not self.engine.has_image(release["image"]):
            raise GuardError(f"The image {release['image']} is not on this host. Run ansible-playbook site.yml for it.")
        if found is not None:
            self.replace(release, made_for)
        try:
            self.hand_over(release)
        except GuardError as error:  # what it finds there it may still read
            say(str(error))
        self.engine.docker(f"creating the container of release {release['id']}", "run", *run_arguments(release, gpu))

    def replace(self, release: dict[str, Any], made_for: str) -> None:
        """Remove the container of another release, or of another driver; before another release, keep the settings.

        What a release left that never proved itself would push out what was there before it.
        """
        self.engine.docker(f"stopping the container of release {made_for}", "stop", CONTAINER)
        if release.get("backup_dir") and made_for != release["id"] and made_for in self.releases.state()["proved"]:
            keep_settings(release, made_for)
        self.engine.docker(f"removing the container of release {made_for}", "rm", "--force", CONTAINER)

    def stop(self) -> None:
        """Stop the container and keep it: the next start adopts it."""
        if label(self.engine.inspect(), RELEASE_LABEL):
            self.engine.docker("stopping the container", "stop", CONTAINER)

    def look(self, memory: dict[str, Any], *, mend: bool) -> tuple[list[str], str]:
        """What is wrong, in sentences, and why the container is to be made anew, if it is.

        `memory` is what the look before this one left; `mend` allows to make the CDI specification anew.
        """
        release = self.releases.load(self.releases.current)
        found = self.engine.inspect()
        if found is None or label(found, RELEASE_LABEL) != release["id"]:
            return [], f"there is no container of release {release['id']}"
        state = found["State"]
        if not state["Running"]:
            return [], f"it ended with status {state['ExitCode']} and Docker does not start it again"
        findings = host_problems(release, mend=mend)
        # Where the host itself has lost the GPU, a container that still runs may be the last to have it.
        may_replace = not findings
        if may_replace and computes_on_gpu(release):
            done = self.engine.python(CUDA_ANSWERS)
            words = (done.stderr or done.stdout).strip()[-300:]
            if NO_CUDA in words:
                return findings, f"it lost the GPU: {words}"
            # Docker, a limit or a slow host may be the reason, and a render may be under way.
            if done.returncode != 0:
                findings.append(
                    f"CUDA could not be asked in ComfyUI's container: {words}. See systemctl status docker."
                )
        said, reason = self.look_at_api(release, found, memory, may_replace=may_replace)
        return findings + room_problems(release) + said, reason

    def look_at_api(
        self, release: dict[str, Any], found: dict[str, Any], memory: dict[str, Any], *, may_replace: bool
    ) -> tuple[list[str], str]:
        """The same for the API and its queue."""
        client = client_of(release)
        memory["answered"] = False
        try:
            with understood():
                client.wait(0)
                running, pending = client.queue()
        except ComfyuiError as error:
            if time.time() - started_at(found["State"]) <= release["start_timeout_s"]:
                return [], ""
            memory["silent"] = memory.get("silent", 0) + 1
            said = f"its API was silent {memory['silent']} times in a row: {error}"
            return [f"ComfyUI: {said}"], said if memory["silent"] >= SILENT_LIMIT else ""
        memory.update(answered=True, silent=0)
        # Between two jobs nothing runs for a moment.
        memory["idle"] = memory.get("idle", 0) + 1 if pending and not running else 0
        if memory["idle"] >= STUCK_LIMIT:
            return [], f"its queue is stuck: {len(pending)} jobs wait and none runs"
        if may_replace and not running and not pending and label(found, GPU_LABEL) != gpu_state(release):
            return [], "the driver or its devices changed since it was made"
        words = long_prompt(running[0] if running else "", memory, client.url)
        return [words] if words else [], ""

    def check(self) -> list[str]:
        """Look, and repair what can be repaired. What cannot, as sentences."""
        with alone(0):
            memory = recall()
            findings, reason = self.look(memory, mend=True)
            if not reason:
                # One that still starts has not shown that the repair helped.
                memory["repairs"] = 0 if memory.get("answered") else memory.get("repairs", 0)
            elif memory.get("repairs", 0) >= REPAIR_LIMIT:
                findings.append(
                    f"ComfyUI's container was made anew {REPAIR_LIMIT} times and it did not help: {reason}. It last "
                    f"said: {self.engine.last_words()}"
                )
            else:
                memory = {"repairs": memory.get("repairs", 0) + 1}
                self.repair(reason)
            remember(memory)
            return findings

    def repair(self, reason: str) -> None:
        """Make the container anew; where a change of release was left halfway, undo it.

        That release is not marked bad: whoever changes it again finds out.
        """
        current, made_for = self.releases.current, label(self.engine.inspect(), RELEASE_LABEL)
        before = self.releases.before(current)
        halfway = bool(before) and current not in self.releases.state()["proved"]
        if halfway:
            say(f"Going back to release {before}: {current} never proved itself, and {reason}")
            self.releases.point_at(before)
        else:
            say(f"Making ComfyUI's container anew: {reason}")
        if made_for and not (halfway and made_for == before):
            self.engine.docker("removing the container", "rm", "--force", CONTAINER)
        self.start()

    def report(self) -> dict[str, Any]:
        """What a check would find, without repairing anything."""
        release = self.releases.load(self.releases.current)
        findings, reason = self.look(recall(), mend=False)
        skipped = [] if computes_on_gpu(release) else ["no GPU: ComfyUI computes on the CPU here"]
        return {"release": release["id"], "findings": findings + ([reason] if reason else []), "skipped": skipped}

    def activate(self, identity: str, *, drain_s: float, again: bool, kept: int, given_up: str = "") -> dict[str, Any]:
        """Run a release and prove it, or go back to the one before and fail with what it said.

        Once it has, the release `given_up` is marked bad.
        """
        with alone(LOCK_WAIT_S):
            release = self.releases.load(identity)
            state, current = self.releases.state(), self.releases.current
            # An interrupted run may have left a link to what was never proved.
            before = current if current != identity and current in state["proved"] else self.releases.before(identity)
            if identity in state["bad"] and before and not again:
                if not (current == before and self.runs(before)):
                    self.releases.point_at(before)
                    restart_unit()
                bad = state["bad"][identity]
                raise GuardError(
                    f"Release {identity} was tried at {bad['when']} and is marked bad: {bad['why'].rstrip('.')}. "
                    f"Expected another one; {before} runs. Change what was wrong, or try it once more: "
                    "ansible-playbook site.yml -e comfyui_service_retry_bad_release=true"
                )
            changed = current != identity or not self.runs(identity) or self.outlived_its_driver(release)
            changed = changed or bool(lost_folders(release, self.engine.inspect()))
            jobs_lost = self.prepare(release, drain_s) if changed else 0
            handed = current == identity and self.hand_over(release)
            since = time.monotonic()
            try:
                if changed:
                    self.releases.point_at(identity)
                    restart_unit()
                answered = self.prove(release, busy=not changed and identity in state["proved"])
            except (GuardError, ReleaseError, ComfyuiError, OSError) as error:
                # One that runs and has proved itself before is not the reason.
                to_blame = current != identity or identity not in state["proved"]
                self.fail(identity, before if to_blame else "", str(error), tried=self.made(identity))
            self.releases.mark_proved(identity)
            self.releases.forget(kept)
            if given_up:
                self.releases.mark_bad(given_up, "an operator went back from it")
            away_s = round(answered - since, 1) if changed else 0.0
            return {
                "changed": changed or handed,
                "release": identity,
                "before": before,
                "jobs_lost": jobs_lost,
                "away_s": away_s,
            }

    def runs(self, identity: str) -> bool:
        """Whether the container is this release's and runs."""
        found = self.engine.inspect()
        return label(found, RELEASE_LABEL) == identity and bool(found and found["State"]["Running"])

    def outlived_its_driver(self, release: dict[str, Any]) -> bool:
        """Whether the release's container was made with another driver, or with devices that are not there any more.

        Where the host cannot hand over its GPUs, one that runs may be the last to have them, and stays.
        """
        if host_problems(release, mend=True):
            return False
        return label(self.engine.inspect(), GPU_LABEL) != gpu_state(release)

    def drift(self, user_id: int | None) -> list[dict[str, str]]:
        """What provisioning, which gives the user the number `user_id`, is about to repair, as rows of its table."""
        release = self.releases.load(self.releases.current)
        rows = []
        if found := self.container_drift(release, self.engine.inspect()):
            expected = f"running, of release {release['id']}, with the driver as it is"
            rows.append({"resource": f"container {CONTAINER}", "expected": expected, "found": found})
        user = release["user_id"] if user_id is None else user_id
        # The folders themselves are rows of the role's own.
        find = self.earlier_files(release["data_dir"], user, mindepth=1)
        if first := command(*find, "-printf", "%U:%G", "-quit").stdout if find else "":
            resource = f"files below {release['data_dir']}"
            rows.append({"resource": resource, "expected": f"owner {user}:{user}", "found": f"owner {first}"})
        return rows

    def earlier_files(self, data_dir: str, user: int, mindepth: int = 0) -> list[str]:
        """The `find` for what ComfyUI left in its folders, and these, while its user had another number.

        Empty where no release on this host has another one. What anybody else put there stays theirs, of whatever
        group: a number without an account may be one of a directory that does not answer now.
        """
        if not (numbers := [str(number) for number in sorted(self.releases.user_ids() - {user})]):
            return []
        folders = [f"{data_dir}/{name}" for name in WRITABLE]
        left = (("-o", "-uid", number, "-o", "-uid", str(user), "-gid", number) for number in numbers)
        earlier = [word for words in left for word in words][1:]
        other = ["(", "!", "-uid", str(user), "-o", "!", "-gid", str(user), ")"]
        # The server goes on writing: what is gone by the time that it is looked at is no error.
        options = ["-ignore_readdir_race", "-mindepth", str(mindepth)]
        # A folder may be a link to another disk; what lies below is ComfyUI's, which can make links as well.
        return ["find", "-H", *folders, *options, *other, "(", *earlier, ")"]

    def hand_over(self, release: dict[str, Any]) -> bool:
        """Give the release's user what ComfyUI left under another number; whether there was any."""
        user = release["user_id"]
        if not (find := self.earlier_files(release["data_dir"], user)):
            return False
        # From the file's own folder: who may write there could make a link of a folder on the way.
        give = ("-printf", ".", "-execdir", "chown", "--no-dereference", f"{user}:{user}", "{}", "+")
        done = command(*find, *give, timeout_s=COMMAND_TIMEOUT_S * 2)
        return bool(require(done, f"giving user {user} the files that ComfyUI left under another number"))

    def container_drift(self, release: dict[str, Any], found: dict[str, Any] | None) -> str:
        """How the container differs from the one that the release is to have; empty where it does not."""
        if found is None:
            return "absent"
        made_for = label(found, RELEASE_LABEL)
        if made_for != release["id"]:
            return f"of release {made_for}" if made_for else "not of this service"
        if not found["State"]["Running"]:
            return f"ended with status {found['State']['ExitCode']}"
        if lost := lost_folders(release, found):
            return f"with another {lost[0]} than the host's"
        if not uses_cdi(release) or cdi_host.driver_problem():
            return ""
        # A specification that does not fit is made anew and then is another one: whoever was made with it has to go as
        # well, and who was not was made before it went wrong.
        made_with_it = label(found, GPU_LABEL) == gpu_state(release)
        return "made with another driver" if made_with_it == bool(spec_problems(release, mend=False)) else ""

    def made(self, identity: str) -> bool:
        """Whether a container of this release was made, as far as Docker says."""
        try:
            return label(self.engine.inspect(), RELEASE_LABEL) == identity
        except GuardError:
            return False

    def prepare(self, release: dict[str, Any], drain_s: float) -> int | None:
        """All that can be seen and awaited before the server that runs is stopped. Returns as drain does."""
        if not self.engine.has_image(release["image"]):
            raise GuardError(f"The image {release['image']} is not on this host. Run ansible-playbook site.yml for it.")
        if problems := [*room_problems(release), *backup_problems(release), *host_problems(release, mend=True)]:
            raise GuardError(" ".join(problems))
        return self.drain(release, drain_s)

    def drain(self, release: dict[str, Any], drain_s: float) -> int | None:
        """Wait until the server that runs has nothing to do. Returns how many jobs a stop loses, None if unknown."""
        running = label(self.engine.inspect(), RELEASE_LABEL)
        client = client_of(self.releases.load(running) if running and self.releases.path(running).exists() else release)
        deadline = time.monotonic() + drain_s
        while True:
            jobs: int | None
            try:
                with understood():
                    jobs = sum(map(len, client.queue()))
                words = f"{jobs} jobs"
            except ComfyuiError:
                # A server that is not there, or that never worked, has no orders.
                if not self.runs(running) or running not in self.releases.state()["proved"]:
                    return 0
                jobs, words = None, "an unknown number of jobs (the queue does not answer)"
            if jobs == 0:
                return 0
            if drain_s == 0:
                say(f"{words} are lost by the stop")
                return jobs
            if time.monotonic() >= deadline:
                raise GuardError(
                    f"{words} run or wait after {drain_s:g} s, expected an empty queue: a stop now would lose "
                    "them. Run this again when they are done, allow more with comfyui_service_drain_timeout_s, or lose "
                    "them with comfyui_service_drain_timeout_s: 0."
                )
            say(f"waiting for {words}")
            time.sleep(min(POLL_S * 4, max(0.0, deadline - time.monotonic())))

    def prove(self, release: dict[str, Any], *, busy: bool = False) -> float:
        """Levels 1 and 2, and 3 on a GPU. Returns the moment of the API's first answer.

        `busy`: where the server renders, that proves it, and no more is asked: ours would wait for its turn, and for
        memory of the GPU.
        """
        say("its API does not answer yet")
        client = client_of(release)
        deadline = time.monotonic() + release["start_timeout_s"]
        while True:
            try:
                with understood():
                    client.wait(0)
                break
            except ComfyuiError as error:
                found = self.engine.inspect() or {"State": {"Running": False, "ExitCode": "unknown"}}
                state = found["State"]
                # Of one that was started once more, Docker tells no status until it ends again.
                restarting = state.get("Restarting") and found["RestartCount"] >= CRASH_LIMIT
                if restarting or not state["Running"]:
                    raise GuardError(f"its container ends, with status {state['ExitCode']}.") from error
                if time.monotonic() >= deadline:
                    raise GuardError(f"after {release['start_timeout_s']} s: {error}.") from error
            time.sleep(POLL_S)
        answered = time.monotonic()
        graph = json.loads(RENDER_CHECK.read_text())
        with understood():
            check_answers(client, graph)
            if busy and client.queue()[0]:
                say("neither an image nor the GPU is asked for: it renders another one")
                return answered
            say("rendering")
            result = client.run(graph, release["start_timeout_s"], front=True)
            if len(result["images"]) != 1:
                raise GuardError(f"{len(result['images'])} images came back, 1 expected.")
        if computes_on_gpu(release):
            say("computing on the GPU")
            require(self.engine.python(CUDA_COMPUTES), "a matrix product on the GPU")
        return answered

    def fail(self, identity: str, before: str, why: str, *, tried: bool) -> NoReturn:
        """Start the release before this one, where there is one, note that this one is bad, and say what it said.

        One whose container was not even made, not `tried`, is not bad: the host did not let it.
        """
        words = f"ComfyUI did not prove itself: {why}\n{{back}}\ncontainer: {self.engine.last_words()}"
        if not before:
            raise GuardError(
                words.replace("{back}", f"Release {identity} stays: there is none before it to go back to.")
            )
        self.releases.point_at(before)
        if tried:
            self.releases.mark_bad(identity, why)
        verdict = "marked bad" if tried else "not marked bad, since it never started"
        try:
            restart_unit()
            self.prove(self.releases.load(before))
        except (GuardError, ReleaseError, ComfyuiError) as error:
            back = f"The release before ({before}) was started again and does not work either: {error}"
        else:
            back = f"The release before ({before}) was started again and renders; {identity} is {verdict}."
        raise GuardError(words.replace("{back}", back))

    def rollback(self, identity: str, *, drain_s: float) -> dict[str, Any]:
        """Go to the release before the current one, or to a named one, and mark the one that is left."""
        current = self.releases.current
        target = identity or self.releases.before(current)
        if not target:
            raise GuardError(
                "There is no release before the current one that proved itself and is still here, expected one. "
                f"The releases of this host are in {self.releases.folder}/releases: to go to another one of them, type "
                "-e comfyui_service_rollback_to=ID. Where there is no other, there is nothing to go back to."
            )
        if target == current:
            raise GuardError(
                f"Release {target} is the current one, expected another. Name one of /etc/comfyui/releases."
            )
        return self.activate(target, drain_s=drain_s, again=True, kept=sys.maxsize, given_up=current)


def check_answers(client: Client, graph: dict[str, Any]) -> None:
    """That the server knows the nodes of a graph, and refuses one that makes nothing."""
    classes = {node["class_type"] for node in graph.values()}
    if missing := sorted(classes - client.node_classes(sorted(classes)).keys()):
        raise GuardError(f"it knows no node {', '.join(missing)}.")
    no_output = {"1": {"class_type": "EmptyImage", "inputs": {}}}
    status, _ = client.json("/prompt", {"prompt": no_output}, accept=(200, 400))
    if status != 400:
        raise GuardError(f"it answers {status} to a graph that makes nothing, 400 expected.")


def long_prompt(prompt: str, memory: dict[str, Any], url: str) -> str:
    """That a prompt runs for very long; empty where none does. Only its owner knows whether it may."""
    if memory.get("prompt") != prompt:
        memory.update(prompt=prompt, since=time.time())
    for_s = time.time() - memory["since"]
    if not prompt or for_s <= LONG_PROMPT_S:
        return ""
    return f"The prompt {prompt} runs for {for_s / 60:.0f} minutes. If that is too long: curl --data '' {url}/interrupt"


def room_problems(release: dict[str, Any]) -> list[str]:
    """Folders that ComfyUI writes to and that are full."""
    sentences = []
    for name in ("output", "user"):
        folder = f"{release['data_dir']}/{name}"
        try:
            free_b = shutil.disk_usage(folder).free
        except OSError as error:
            sentences.append(f"{folder} cannot be read: {error}. Run ansible-playbook site.yml for this host.")
            continue
        if free_b < ROOM_LEAST_B:
            sentences.append(
                f"The disk of {folder} has {free_b / 1024**2:.0f} MiB free, expected {ROOM_LEAST_B / 1024**2:.0f}: new "
                f"images will be lost, and the rest goes on. Make room there (du -xh -d 2 {release['data_dir']})."
            )
    return sentences


def started_at(state: dict[str, Any]) -> float:
    """When a container started, in seconds since 1970. Docker writes nanoseconds, of which Python reads six digits."""
    text = re.sub(r"(\.\d{1,6})\d*Z$", r"\1Z", state["StartedAt"]).replace("Z", "+00:00")
    return datetime.fromisoformat(text).timestamp()


def backup_problems(release: dict[str, Any]) -> list[str]:
    """Why the user folder cannot be packed, as far as that can be seen before the server stops."""
    if not release.get("backup_dir"):
        return []
    folder, user = Path(release["backup_dir"]), f"{release['data_dir']}/user"
    size_b = 0
    for top, _, names in os.walk(user):
        for name in names:
            with contextlib.suppress(FileNotFoundError):  # the server still writes
                size_b += os.lstat(os.path.join(top, name)).st_size
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        free_b = shutil.disk_usage(folder).free
    except OSError as error:
        return [f"The backup folder {folder} cannot be used: {error}. {OTHER_BACKUP}"]
    if not os.access(folder, os.W_OK):
        return [f"The backup folder {folder} cannot be written to. {OTHER_BACKUP}"]
    if free_b < size_b:
        return [
            f"The backup folder {folder} has {free_b / 1024**2:.1f} MiB free, expected {size_b / 1024**2:.1f}, the "
            f"size of {user}. {OTHER_BACKUP}"
        ]
    return []


def keep_settings(release: dict[str, Any], made_for: str) -> None:
    """Pack the user folder (settings, database, workflows) while nothing writes to it; the newest few are kept."""
    folder = Path(release["backup_dir"])
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    # Other hosts may keep theirs in the same folder.
    ours = f"user-{platform.node()}-"
    name = f"{ours}{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{made_for}.tar.gz"
    fresh = folder / f".{ours}new"
    try:
        with tarfile.open(fresh, "w:gz") as archive:
            archive.add(f"{release['data_dir']}/user", arcname="user")
        os.replace(fresh, folder / name)
    except OSError as error:
        fresh.unlink(missing_ok=True)
        raise GuardError(
            f"The backup of {release['data_dir']}/user to {folder} failed: {error}. {OTHER_BACKUP}"
        ) from error
    pattern = re.compile(re.escape(ours) + r"\d{8}T\d{6}Z-.+\.tar\.gz")
    for old in sorted(path for path in folder.iterdir() if pattern.fullmatch(path.name))[:-BACKUPS_KEPT]:
        old.unlink()


def restart_unit() -> None:
    """Restart the service anew; what it said is the error."""
    command("systemctl", "reset-failed", UNIT)
    done = command("systemctl", "restart", UNIT, timeout_s=COMMAND_TIMEOUT_S * 5)
    if done.returncode != 0:
        journal = command("journalctl", "--unit", UNIT, "--lines", "8", "--no-pager", "--output", "cat").stdout
        raise GuardError(f"{UNIT} did not start: {journal.strip()}")


def recall() -> dict[str, Any]:
    """What the check before this one left; nothing after a boot."""
    try:
        memory: dict[str, Any] = json.loads((RUN_FOLDER / "check.json").read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return memory


def remember(memory: dict[str, Any]) -> None:
    """Leave something for the next check."""
    RUN_FOLDER.mkdir(mode=0o755, parents=True, exist_ok=True)
    (RUN_FOLDER / "check.json").write_text(json.dumps(memory))


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    """The verb and its options; a wrong call explains itself and ends with 2."""
    parser = argparse.ArgumentParser(prog="comfyui_guard.py", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb in ("start", "stop", "check", "report"):
        verbs.add_parser(verb)
    verbs.add_parser("drift").add_argument("--user-id", type=int, help="the number that ComfyUI's user is to have")
    for verb, nargs in (("activate", None), ("rollback", "?")):
        changing = verbs.add_parser(verb)
        changing.add_argument("release", nargs=nargs, default="", help="its id, a name in /etc/comfyui/releases")
        changing.add_argument("--drain-s", type=float, default=300, help="how long to wait for the queue to empty")
    verbs.choices["activate"].add_argument("--again", action="store_true", help="even if it is marked bad")
    verbs.choices["activate"].add_argument("--kept", type=int, default=2, help="releases to keep beside this one")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    """Entry point; what is wrong is one line in the journal and status 1."""
    asked = parse_arguments(arguments)
    guard = Guard()
    try:
        if asked.verb == "check":
            try:
                findings = guard.check()
            except BusyError:
                return 0  # whoever changes it looks at it as well
            for finding in findings:
                say(finding)
            return int(bool(findings))
        if asked.verb == "report":
            print(json.dumps(guard.report()))
        elif asked.verb == "drift":
            print(json.dumps(guard.drift(asked.user_id)))
        elif asked.verb == "activate":
            print(json.dumps(guard.activate(asked.release, drain_s=asked.drain_s, again=asked.again, kept=asked.kept)))
        elif asked.verb == "rollback":
            print(json.dumps(guard.rollback(asked.release, drain_s=asked.drain_s)))
        else:
            {"start": guard.serve, "stop": guard.stop}[asked.verb]()
    except (GuardError, ReleaseError, ComfyuiError, OSError) as error:
        say(str(error))
        if asked.verb in {"activate", "rollback"}:
            print(json.dumps({"error": str(error)}))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
