"""Queue, execution and history."""

from __future__ import annotations

import bisect
import copy
import hashlib
import itertools
import json
import logging
import threading
import time
import traceback
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from . import render
from .folders import Folders
from .graph import Json, exception_name
from .options import Options

log = logging.getLogger(__name__)

HISTORY_LIMIT = 10_000
# The real server keeps results until memory runs short; here a number does.
CACHE_LIMIT = 100


class InterruptedPromptError(Exception):
    """The running prompt was asked to stop."""


class Sink(Protocol):
    """Where websocket messages go."""

    def send(self, kind: str, data: Json, client_id: str | None = None) -> None:
        """Send to one client, or to all."""


def now_ms() -> int:
    """Milliseconds since 1970."""
    return time.time_ns() // 1_000_000


@dataclass(frozen=True)
class Job:
    """One prompt in the queue."""

    number: float
    prompt_id: str
    prompt: Json
    extra: Json
    outputs: list[str]

    def listed(self) -> list[Any]:
        """Return the form that /queue and /history show."""
        return [self.number, self.prompt_id, self.prompt, self.extra, self.outputs]


class PromptQueue:
    """Jobs that wait, the one that runs, and what became of the others."""

    def __init__(self, changed: Callable[[int], None]) -> None:
        self._changed = changed
        self._lock = threading.Condition(threading.RLock())
        self._waiting: list[Job] = []
        self._running: Job | None = None
        self._history: OrderedDict[str, Json] = OrderedDict()
        self._wake = False

    def _notify(self) -> None:
        self._changed(self.remaining())
        self._lock.notify_all()

    def remaining(self) -> int:
        """Jobs not finished."""
        with self._lock:
            return len(self._waiting) + (self._running is not None)

    def put(self, job: Job) -> None:
        """Queue a job by its number."""
        with self._lock:
            bisect.insort(self._waiting, job, key=lambda waiting: waiting.number)
            self._notify()

    def take(self) -> Job | None:
        """Wait for a job; None when woken for something else."""
        with self._lock:
            self._lock.wait_for(lambda: self._waiting or self._wake)
            self._wake = False
            if not self._waiting:
                return None
            self._running = self._waiting.pop(0)
            self._notify()
            return self._running

    def wake(self) -> None:
        """Let the worker look at its flags."""
        with self._lock:
            self._wake = True
            self._lock.notify_all()

    def done(self, job: Job, result: Json) -> None:
        """Move the running job to the history."""
        with self._lock:
            self._running = None
            self._history[job.prompt_id] = {"prompt": job.listed(), **result}
            while len(self._history) > HISTORY_LIMIT:
                self._history.popitem(last=False)
            self._notify()

    def listed(self) -> tuple[list[list[Any]], list[list[Any]]]:
        """Running and waiting jobs."""
        with self._lock:
            return [job.listed() for job in (self._running,) if job], [job.listed() for job in self._waiting]

    def running_id(self) -> str | None:
        """Id of the running prompt."""
        with self._lock:
            return self._running.prompt_id if self._running else None

    def remove(self, prompt_ids: list[str] | None) -> None:
        """Drop waiting jobs; all of them for None."""
        with self._lock:
            self._waiting = [job for job in self._waiting if prompt_ids is not None and job.prompt_id not in prompt_ids]
            self._notify()

    def history(self, prompt_id: str | None = None, max_items: int | None = None, offset: int = -1) -> Json:
        """Finished prompts, oldest first; the newest `max_items` where no offset is given."""
        with self._lock:
            if prompt_id is not None:
                return {prompt_id: self._history[prompt_id]} if prompt_id in self._history else {}
            if max_items is None:
                return dict(itertools.islice(self._history.items(), max(offset, 0), None))
            first = offset if offset >= 0 else max(0, len(self._history) - max_items)
            return dict(itertools.islice(self._history.items(), first, first + max_items))

    def forget(self, prompt_ids: list[str] | None) -> None:
        """Drop finished prompts; all of them for None."""
        with self._lock:
            for prompt_id in list(self._history) if prompt_ids is None else prompt_ids:
                self._history.pop(prompt_id, None)


class _Run:
    """Execution of one job."""

    def __init__(self, runner: Runner, job: Job) -> None:
        self.runner = runner
        self.job = job
        self.client_id: str | None = job.extra.get("client_id")
        self.messages: list[tuple[str, Json]] = []
        self.results: dict[str, tuple[Any, ...]] = {}
        self.ui: dict[str, Json] = {}
        self.executed: list[str] = []
        self.progress: dict[str, Json] = {}
        self.signatures: dict[str, str] = {}

    def send(self, kind: str, **data: Any) -> None:
        """Tell the client that queued the prompt, if it said who it is."""
        if self.client_id is not None:
            self.runner.sink.send(kind, {**data, "prompt_id": self.job.prompt_id}, self.client_id)

    def note(self, kind: str, *, to_all: bool = False, **data: Any) -> None:
        """Send, and keep for the history."""
        content = {"prompt_id": self.job.prompt_id, **data, "timestamp": now_ms()}
        self.messages.append((kind, content))
        if self.client_id is not None or to_all:
            self.runner.sink.send(kind, content, self.client_id)

    def set_progress(self, node_id: str, state: str, value: float, total: float) -> None:
        """Report the state of all nodes that have begun."""
        self.progress[node_id] = {
            "value": value,
            "max": total,
            "state": state,
            "node_id": node_id,
            "prompt_id": self.job.prompt_id,
            "display_node_id": node_id,
            "parent_node_id": None,
            "real_node_id": node_id,
        }
        self.send("progress_state", nodes=copy.deepcopy(self.progress))

    def signature(self, node_id: str) -> str:
        """Digest of a node and all that it depends on; equal ones need no second execution."""
        if node_id not in self.signatures:
            node = self.job.prompt[node_id]
            parts: list[Any] = [node["class_type"]]
            for name, value in sorted(node["inputs"].items()):
                linked = isinstance(value, list)
                parts.append([name, [self.signature(value[0]), value[1]] if linked else value])
            if node["class_type"] == "LoadImage":
                with open(self.runner.folders.image_path(node["inputs"]["image"]), "rb") as handle:
                    parts.append(hashlib.sha256(handle.read()).hexdigest())
            self.signatures[node_id] = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
        return self.signatures[node_id]

    def cached(self, node_id: str) -> tuple[tuple[Any, ...], Json | None] | None:
        """Result of an equal node of an earlier prompt."""
        try:
            return self.runner.cache.get(self.signature(node_id))
        except (OSError, KeyError, TypeError, ValueError, RecursionError):
            # Not comparable: an unreadable image, which fails when it is executed, or a part of the graph that
            # leads to no valid output and so was never checked.
            return None

    def execute(self, node_id: str) -> None:
        """Make a node's results, after those that it depends on."""
        if node_id in self.results:
            return
        node = self.job.prompt[node_id]
        known = self.cached(node_id)
        if known is not None:
            self.results[node_id], ui = known
            if ui is not None:
                self.ui[node_id] = ui
            if node_id in self.job.outputs:
                self.send("executed", node=node_id, display_node=node_id, output=ui["output"] if ui else None)
                self.set_progress(node_id, "finished", 1, 1)
            return
        wanted = self.runner.input_names[node["class_type"]]
        for name in wanted:
            if isinstance(node["inputs"].get(name), list):
                self.execute(node["inputs"][name][0])
        self.runner.stop_if_interrupted(node_id)
        self.set_progress(node_id, "running", 0.0, 1.0)
        self.send("executing", node=node_id, display_node=node_id)
        inputs = {
            name: self.results[value[0]][value[1]] if isinstance(value, list) else value
            for name, value in node["inputs"].items()
            if name in wanted
        }

        def progress(step: int, steps: int) -> None:
            self.runner.stop_if_interrupted(node_id)
            self.set_progress(node_id, "running", step, steps)
            self.send("progress", value=step, max=steps, node=node_id)

        context = render.Context(
            self.runner.folders,
            metadata_enabled=not self.runner.args.disable_metadata,
            prompt=self.job.prompt,
            extra_pnginfo=self.job.extra.get("extra_pnginfo"),
            progress=progress,
        )
        try:
            results, output = render.CLASSES[node["class_type"]](context, inputs)
        except InterruptedPromptError:
            raise
        except Exception as error:
            raise NodeError(node_id, inputs) from error
        self.results[node_id] = results
        if output is not None:
            meta = {"node_id": node_id, "display_node": node_id, "parent_node": None, "real_node_id": node_id}
            self.ui[node_id] = {"output": output, "meta": meta}
            self.send("executed", node=node_id, display_node=node_id, output=output)
        self.runner.remember(self.signature(node_id), results, self.ui.get(node_id))
        last = self.progress[node_id]["max"]
        self.set_progress(node_id, "finished", last, last)
        self.executed.append(node_id)

    def fail(self, failure: NodeError) -> None:
        """Report an exception of a node."""
        error = failure.__cause__ or failure
        log.error("!!! Exception during processing !!! %s", error)
        self.note(
            "execution_error",
            node_id=failure.node_id,
            node_type=self.job.prompt[failure.node_id]["class_type"],
            executed=self.executed,
            exception_message=f"{error}\n",
            exception_type=exception_name(error),
            traceback=traceback.format_tb(error.__traceback__),
            current_inputs={
                name: [value if isinstance(value, (int, float, str)) else str(value)]
                for name, value in failure.inputs.items()
            },
            current_outputs=list(self.results),
        )

    def run(self) -> Json:
        """Execute all outputs and return the history's entry, without the prompt."""
        self.note("execution_start")
        self.note("execution_cached", nodes=[node for node in self.job.prompt if self.cached(node) is not None])
        success = False
        try:
            for node_id in self.job.outputs:
                self.execute(node_id)
            self.note("execution_success")
            success = True
        except InterruptedPromptError as stopped:
            log.info("Processing interrupted")
            node_id = str(stopped)
            kind = self.job.prompt[node_id]["class_type"]
            self.note("execution_interrupted", to_all=True, node_id=node_id, node_type=kind, executed=self.executed)
        except NodeError as failure:
            self.fail(failure)
        return {
            "outputs": {node_id: ui["output"] for node_id, ui in self.ui.items()},
            "status": {
                "status_str": "success" if success else "error",
                "completed": success,
                "messages": self.messages,
            },
            "meta": {node_id: ui["meta"] for node_id, ui in self.ui.items()},
        }


class NodeError(Exception):
    """An exception of a node, with what it had been given; the exception itself is the cause."""

    def __init__(self, node_id: str, inputs: Json) -> None:
        super().__init__(node_id)
        self.node_id = node_id
        self.inputs = inputs


class Runner:
    """The thread that executes jobs one after the other."""

    def __init__(self, queue: PromptQueue, sink: Sink, folders: Folders, args: Options) -> None:
        self.queue = queue
        self.sink = sink
        self.folders = folders
        self.args = args
        self.cache: OrderedDict[str, tuple[tuple[Any, ...], Json | None]] = OrderedDict()
        self.input_names: dict[str, list[str]] = {}
        self._interrupted = threading.Event()
        self._stopping = threading.Event()
        self._forget_asked = threading.Event()
        self._thread = threading.Thread(target=self._loop, daemon=True)

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    def stop(self) -> None:
        """Stop the running prompt and the thread."""
        self._stopping.set()
        self._interrupted.set()
        self.queue.wake()
        self._thread.join(timeout=5)

    def interrupt(self) -> None:
        """Stop the running prompt at its next step."""
        self._interrupted.set()

    def stop_if_interrupted(self, node_id: str) -> None:
        """Raise where an interrupt waits, which is then spent."""
        if self._interrupted.is_set():
            self._interrupted.clear()
            raise InterruptedPromptError(node_id)

    def remember(self, signature: str, results: tuple[Any, ...], ui: Json | None) -> None:
        """Keep a node's results for later prompts."""
        if self.args.cache_none:
            return
        self.cache[signature] = results, ui
        while len(self.cache) > CACHE_LIMIT:
            self.cache.popitem(last=False)

    def forget(self) -> None:
        """Drop all results before the next prompt."""
        self._forget_asked.set()
        self.queue.wake()

    def _loop(self) -> None:
        while not self._stopping.is_set():
            job = self.queue.take()
            if job is not None and not self._stopping.is_set():
                self._execute(job)
            if self._forget_asked.is_set():
                self._forget_asked.clear()
                self.cache.clear()

    def _execute(self, job: Job) -> None:
        started_s = time.perf_counter()
        self._interrupted.clear()
        run = _Run(self, job)
        self.queue.done(job, run.run())
        run.send("executing", node=None)
        log.info("Prompt executed in %.2f seconds", time.perf_counter() - started_s)
