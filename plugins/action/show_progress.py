"""Run a module on the host in the background, and say how far it is. Documented in modules/show_progress.py."""

from __future__ import annotations

import importlib
import re
import secrets
import shlex
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

# The control node imports no module_utils by itself; hosts and control node are to judge by the same functions.
sys.path.append(str(Path(__file__).resolve().parent.parent / "module_utils"))
progress = importlib.import_module("progress")

# Ansible loads this file before it forks, and the forks have no terminal of their own.
TERMINAL = sys.stderr.isatty()

POLL_LEAST_S = 0.2
POLL_MOST_S = 2.0
# Each file with its name before its one line. The claim of the run (host_claim) shows by this that somebody waits.
LOOK = f"touch -c {progress.FOLDER}/claim.json; grep -H . {progress.FOLDER}/progress-*.json"
# How long the host may be out of reach before the task fails.
GRACE_S = 60.0
# What a job may take beyond its limit until its end is noticed.
LIMIT_MARGIN_S = 60.0

MITOGEN_WARNING = re.compile(r"result key '(?:failed|finished|started)' of type int was converted")

display = Display()


def poll_pause_s(elapsed_s: float) -> float:
    """Pause before the next look: what waiting adds to a task is a tenth of it, and never much."""
    return min(POLL_MOST_S, max(POLL_LEAST_S, elapsed_s / 10))


def as_called_directly(status: dict[str, Any]) -> dict[str, Any]:
    """The module's own result, out of that of its background job."""
    result = {
        key: value
        for key, value in status.items()
        if key not in ("ansible_job_id", "started", "finished", "results_file")
    }
    return tidied(result) if "data" in result else result


def together(results: list[dict[str, Any]]) -> dict[str, Any]:
    """One result out of those of several jobs, with the words of each that failed."""
    failed = [result for result in results if result.get("failed")]
    aside = ("exception", "invocation", "warnings")
    joined: dict[str, Any] = {
        "changed": any(result.get("changed") for result in results),
        "failed": bool(failed),
        # Without what each was called with: it is long, and whoever wrote the task knows it.
        "jobs": [{key: value for key, value in result.items() if key not in aside} for result in results],
        "warnings": [warning for result in results for warning in result.get("warnings", [])],
    }
    if failed:
        joined["msg"] = "\n".join(str(result.get("msg", "")) for result in failed)
    return joined


def tidied(result: dict[str, Any]) -> dict[str, Any]:
    """A result without what Mitogen adds to those of background jobs."""
    if str(result.get("msg", "")).startswith("Traceback"):
        # Its account of a module that crashed. A direct call says it like this.
        return {
            "failed": True,
            "changed": False,
            "msg": "The module crashed, see module_stderr.",
            "module_stdout": result["data"],
            "module_stderr": result.get("stderr", ""),
            "rc": 1,
        }
    if "warnings" in result:
        result["warnings"] = [one for one in result["warnings"] if not MITOGEN_WARNING.search(str(one))]
    # Where the module has an output, its empty error output may be its own.
    for key in ("data", "warnings", *(() if "stdout" in result else ("stderr", "stderr_lines"))):
        if not result.get(key, True):
            del result[key]
    return result


class Watch:
    """What is known of a task that runs, and the line that says it."""

    def __init__(self, title: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.title = title
        self.ended = False
        # Replaced as one: another thread reads it.
        self.known: tuple[Any, float | None] = (None, None)
        self._meter = progress.Meter()
        self._clock = clock
        self._said: Any = None

    def see(self, state: Any) -> None:
        """Take what the module says of itself."""
        self._meter.add(self._clock(), state)
        self.known = (state, self._meter.rate_b_s())

    def line(self, elapsed_s: float) -> str:
        """What is to be printed."""
        return str(progress.line(self.title, elapsed_s, *self.known))

    def news(self) -> str:
        """The same of somebody else's task: nothing where nothing moved since, it may be dead."""
        if self.known[0] == self._said:
            return ""
        self._said = self.known[0]
        return self.line(0)


class Watches:
    """The tasks that are waited for, by the file of each, and what else runs on the host."""

    def __init__(self) -> None:
        self.own: dict[str, Watch] = {}
        self.others: dict[str, Watch] = {}

    def see(self, output: str) -> None:
        """Take what `LOOK` printed."""
        for line in output.splitlines():
            path, _, content = line.partition(":")
            if state := progress.parse(content):
                watch = self.own.get(path) or self.others.setdefault(path, Watch(state.title or "another task"))
                watch.see(state)

    def lines(self, elapsed_s: float) -> list[str]:
        """What is to be printed."""
        others = [news for watch in list(self.others.values()) if (news := watch.news())]
        return others + [watch.line(elapsed_s) for watch in list(self.own.values()) if not watch.ended]


class ActionModule(ActionBase):  # type: ignore[misc]  # Ansible has no types
    """The action."""

    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Begin a module, wait for it, or both."""
        super().run(tmp, task_vars)
        _, args = self.validate_argument_spec(
            argument_spec={
                "title": {"type": "str"},
                "run": {"type": "dict"},
                "wait": {"type": "bool", "default": True},
                "timeout_s": {"type": "int", "default": 86400},
                "jobs": {"type": "list", "elements": "dict"},
            },
            mutually_exclusive=[("run", "jobs")],
            required_one_of=[("run", "jobs")],
            required_by={"run": ["title"]},
        )
        task_vars = task_vars or {}
        if args["jobs"] is not None:
            if not all(job.get("ansible_job_id") for job in args["jobs"]):
                raise AnsibleActionFail("A job has no ansible_job_id. Expected: results of a task with wait: false.")
            return self._wait_for(args["jobs"], task_vars)
        if len(args["run"]) != 1:
            raise AnsibleActionFail(f"run names {len(args['run'])} modules. Expected: one, with its arguments.")
        ((module, module_args),) = args["run"].items()
        if module in self._shared_loader_obj.action_loader:
            raise AnsibleActionFail(f"{module} does its work on the control node, so it cannot run in the background.")
        if self._task.check_mode:
            checked: dict[str, Any] = self._execute_module(
                module_name=module, module_args=dict(module_args or {}), task_vars=task_vars
            )
            return checked
        path = f"{progress.FOLDER}/progress-{secrets.token_hex(8)}.json"
        with self._narrated(task_vars) as watches:
            watches.own[path] = Watch(args["title"])
            job = self._begin(module, dict(module_args or {}), path, args, task_vars)
            if "ansible_job_id" not in job or not args["wait"]:
                return job
            return self._follow(job, watches, task_vars)

    def _begin(
        self, module: str, module_args: dict[str, Any], path: str, args: dict[str, Any], task_vars: dict[str, Any]
    ) -> dict[str, Any]:
        """Start the module as a background job of the host."""
        limit_s = args["timeout_s"]
        environment = {
            progress.ENVIRONMENT: path,
            progress.ENVIRONMENT_TITLE: args["title"],
            # Mitogen asks the host's environment for the folder of the jobs.
            "ANSIBLE_ASYNC_DIR": self._async_dir(),
        }
        self._task.environment.append(environment)
        self._task.async_val = limit_s
        try:
            begun = self._execute_module(
                module_name=module, module_args=module_args, task_vars=task_vars, wrap_async=True
            )
        finally:
            # Otherwise Ansible would wait for the job itself.
            self._task.async_val = 0
            self._task.environment.remove(environment)
        if not begun.get("ansible_job_id") or begun.get("failed"):
            return dict(begun)
        return {
            "changed": False,
            "ansible_job_id": begun["ansible_job_id"],
            "title": args["title"],
            "progress_file": path,
            "timeout_s": limit_s,
        }

    def _wait_for(self, jobs: list[dict[str, Any]], task_vars: dict[str, Any]) -> dict[str, Any]:
        """Wait for all of them, also when one has failed: what the others bring is not to be lost from sight."""
        with self._narrated(task_vars) as watches:
            watches.own.update({job["progress_file"]: Watch(job["title"]) for job in jobs})
            return together([self._follow(job, watches, task_vars) for job in jobs])

    @contextmanager
    def _narrated(self, task_vars: dict[str, Any]) -> Iterator[Watches]:
        """Lines appear from a thread of their own: a host that is slow to answer must not silence them."""
        host = task_vars.get("inventory_hostname", "")
        ended = threading.Event()
        watches = Watches()

        def say(elapsed_s: float) -> None:
            # The error output is written line by line even into a file; the standard one waits for the task's end.
            for line in watches.lines(elapsed_s):
                display.display(f"{host}: {line}", stderr=True)

        narrator = threading.Thread(
            target=progress.narrate, args=(say, ended.wait, time.monotonic), kwargs={"terminal": TERMINAL}, daemon=True
        )
        narrator.start()
        try:
            yield watches
        finally:
            ended.set()
            narrator.join()

    def _follow(self, job: dict[str, Any], watches: Watches, task_vars: dict[str, Any]) -> dict[str, Any]:
        """Wait for the job's end; the module's result."""
        watch = watches.own[job["progress_file"]]
        began_s = answered_s = time.monotonic()
        limit_s = int(job.get("timeout_s") or 86400) + LIMIT_MARGIN_S
        while True:
            try:
                status = self._job(job, "status", task_vars)
                parsed = status.get("_ansible_parsed", True)
                problem: Exception = AnsibleActionFail(f"{status.get('msg') or 'the host gave no readable answer'}")
                if time.monotonic() - began_s > progress.interval_s(0, terminal=TERMINAL) / 2 and not self._task.no_log:
                    self._look(watches)
            except Exception as error:  # each connection has its own; a host may be away for a moment
                parsed, problem = False, error
                self._reconnect()
            now_s = time.monotonic()
            if parsed:
                if status.get("finished") or status.get("failed"):
                    break
                answered_s = now_s
            elif now_s - answered_s > GRACE_S:
                raise problem
            if now_s - began_s > limit_s:
                raise AnsibleActionFail(
                    f"{watch.title}: no end within {limit_s:g} s. The job may still run on the host."
                )
            time.sleep(poll_pause_s(now_s - began_s))
        if "could not find job" in str(status.get("msg", "")):
            raise AnsibleActionFail(
                f"{watch.title}: the host no longer knows job {job['ansible_job_id']}: it was restarted, or its folder "
                f"{self._async_dir()} was emptied. Run again."
            )
        watch.ended = True
        self._job(job, "cleanup", task_vars)
        if watch.known[0]:  # a module that was killed could not remove its file
            self._low_level_execute_command(f"rm -f {shlex.quote(job['progress_file'])}")
        return as_called_directly(status)

    def _look(self, watches: Watches) -> None:
        """Read how far modules say they are, ours and others' that run side by side; many say nothing."""
        watches.see(str(self._low_level_execute_command(LOOK)["stdout"]))

    def _job(self, job: dict[str, Any], mode: str, task_vars: dict[str, Any]) -> dict[str, Any]:
        args = {"jid": job["ansible_job_id"], "mode": mode, "_async_dir": self._async_dir()}
        return dict(
            self._execute_module(module_name="ansible.legacy.async_status", module_args=args, task_vars=task_vars)
        )

    def _async_dir(self) -> str:
        return str(self.get_shell_option("async_dir", default="~/.ansible_async"))

    def _reconnect(self) -> None:
        if reset := getattr(self._connection, "reset", None):
            reset()
