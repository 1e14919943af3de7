"""The course of a benchmark: refuse, measure cold and warm, compare with a plain run, try the candidates."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ansible.module_utils.benchmark_measures import (
    GIB,
    busy_with,
    chosen,
    compiled,
    held,
    images_per_minute,
    load,
    ranking,
    set_in_graph,
    summary,
)
from ansible.module_utils.benchmark_server import (
    CONTAINER,
    ContainerServer,
    PlainServer,
    Sampler,
    Server,
    ServerError,
    call,
    container_pids,
    gpu_processes,
    load_guard,
    remove_container,
)
from ansible.module_utils.comfyui_api import Client, ComfyuiError

SERVICE = "comfyui"
QUIET_LOOK_S = 2
QUIET_MOST_UTILISATION = 5
GRAPHS = {"txt2img": "txt2img_sdxl", "img2img": "img2img_sdxl", "batch": "batch_generation"}
METADATA_LIMIT_B = 1 << 26
BLANK_STD = 1.0  # levels of 0 to 255
COLOUR = re.compile(r"\x1b\[[0-9;]*m")


class RefusalError(Exception):
    """Why nothing was measured: what was found, what was expected, what to type."""


def check_idle(
    devices: Sequence[Mapping[str, Any]],
    waiting: int,
    url: str,
    others: Sequence[tuple[int, int | None]],
    utilisation: float | None,
    *,
    gpu_required: bool,
    shared: bool,
) -> None:
    """Refuse a host whose figures would mean nothing."""
    kinds = sorted({str(device["type"]) for device in devices})
    if gpu_required and "cuda" not in kinds:
        raise RefusalError(
            f"ComfyUI on this host computes on {' and '.join(kinds) or 'nothing'}, expected an NVIDIA GPU, "
            "since that is what the benchmark measures. Run it for a host that has one: --limit HOST"
        )
    if waiting:
        raise RefusalError(
            f"ComfyUI has {waiting} prompts to work on, expected an empty queue. Wait until it is: curl -s {url}/queue"
        )
    if shared:
        return
    if others:
        words = ", ".join(
            f"process {pid}" + (f" with {memory_b / GIB:.1f} GiB" if memory_b is not None else "")
            for pid, memory_b in others
        )
        raise RefusalError(
            f"The GPU is in use by others ({words}), expected it for the benchmark alone. Wait until they are done "
            "(nvidia-smi names them), or measure beside them: -e comfyui_benchmark_shared_gpu=true"
        )
    if utilisation is not None and utilisation > QUIET_MOST_UTILISATION:
        raise RefusalError(
            f"The GPU is {utilisation:.0f} % busy and ComfyUI is idle, expected at most {QUIET_MOST_UTILISATION} %: "
            "somebody else uses it. Wait until they are done, or measure beside them: "
            "-e comfyui_benchmark_shared_gpu=true"
        )


def read_metadata(path: str) -> dict[str, str]:
    """The free text in a safetensors file's header; empty where there is none."""
    try:
        with open(path, "rb") as handle:
            size_b = int.from_bytes(handle.read(8), "little")
            header = json.loads(handle.read(size_b)) if size_b < METADATA_LIMIT_B else {}
    except (OSError, ValueError):
        return {}
    return dict(header.get("__metadata__") or {})


class Benchmark:
    """One run on one host. `keep` is called with all results so far after each step."""

    def __init__(
        self, params: Mapping[str, Any], report: Callable[[str], None], keep: Callable[[dict[str, Any]], None]
    ) -> None:
        self.params = params
        self.report = report
        self.keep = keep
        self.guard = load_guard(params["guard"])
        releases = self.guard.Releases()
        self.release: dict[str, Any] = releases.load(releases.current)
        self.service = Client(self.guard.client_of(self.release).url)
        self.work_dir: str = params["work_dir"]
        self.result: dict[str, Any] = {}
        self.sampler = Sampler()
        self.graphs: dict[str, dict[str, Any]] = {}
        self._seed = 1000

    def run(self) -> dict[str, Any]:
        """Everything that was asked for; RefusalError before anything is started."""
        stats = self._refuse()
        self._prepare(stats)
        try:
            with self.sampler:
                time.sleep(0.5)  # the first looks
                self.service.request("/free", {"unload_models": True, "free_memory": True})
                self._measure()
                if self.params["tune"]:
                    self._tune()
        finally:
            remove_container()
            shutil.rmtree(self.work_dir, ignore_errors=True)
        ours = {*container_pids(SERVICE), os.getpid()}
        self.result["others_at_end"] = [pid for pid, _ in busy_with(gpu_processes(), ours)]
        return self.result

    def _refuse(self) -> dict[str, Any]:
        try:
            _, stats = self.service.json("/system_stats")
            running, pending = self.service.queue()
        except ComfyuiError as error:
            raise RefusalError(f"{error}, expected the service to run. Type: ansible-playbook site.yml") from error
        remove_container()
        others = busy_with(gpu_processes(), container_pids(SERVICE))
        with Sampler() as look:
            time.sleep(QUIET_LOOK_S)
        known = [sample.utilisation for sample in look.samples if sample.utilisation is not None]
        check_idle(
            stats["devices"],
            len(running) + len(pending),
            self.service.url,
            others,
            sum(known) / len(known) if known else None,
            gpu_required=self.params["gpu_required"],
            shared=self.params["shared_gpu"],
        )
        return dict(stats)

    def _prepare(self, stats: Mapping[str, Any]) -> None:
        data_dir, user = self.release["data_dir"], int(self.release["user_id"])
        shutil.rmtree(self.work_dir, ignore_errors=True)
        for name in ("cache", "input", "output", "user"):
            os.makedirs(f"{self.work_dir}/{name}")
            os.chown(f"{self.work_dir}/{name}", user, user)
        for kind, name in GRAPHS.items():
            path = f"{data_dir}/workflows/{name}.json"
            try:
                with open(path, encoding="utf-8") as handle:
                    graph = json.load(handle)
            except (OSError, ValueError) as error:
                raise RefusalError(
                    f"{path} cannot be read ({error}), expected a graph. Type: ansible-playbook site.yml"
                ) from error
            self.graphs[kind] = set_in_graph(graph, "SaveImage", filename_prefix=kind)
        checkpoint = self._checkpoint(data_dir)
        with contextlib.suppress(FileNotFoundError):
            shutil.copytree(f"{data_dir}/input", f"{self.work_dir}/input", dirs_exist_ok=True)
        system = stats["system"]
        gpus = call(
            "nvidia-smi", "--query-gpu=name,driver_version,memory.total,compute_cap", "--format=csv,noheader,nounits"
        )
        name, driver, memory_mib, capability = (
            [*(part.strip() for part in (gpus.stdout.splitlines() or [""])[0].split(",")), "", "", "", ""][:4]
            if gpus.returncode == 0
            else ("", "", "", "")
        )
        self.result = {
            "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "machine": {
                "gpu": name,
                "driver": driver,
                "compute_capability": capability,
                "kind": "discrete" if memory_mib.isdigit() else "unified",
                "gpu_memory_mib": int(memory_mib) if memory_mib.isdigit() else None,
                "architecture": os.uname().machine,
                "kernel": os.uname().release,
                "cores": os.cpu_count(),
                "engine": call("docker", "version", "--format", "{{.Server.Version}}").stdout.strip(),
            },
            "comfyui": {
                "version": system["comfyui_version"],
                "torch": system["pytorch_version"],
                "python": str(system["python_version"]).split()[0],
                "device": stats["devices"][0]["name"],
                "image": self.release["image"],
                "flags": self.release["flags"],
            },
            "checkpoint": checkpoint,
            "settings": {key: self.params[key] for key in ("repeats", "rounds", "queue_length", "tune")},
            "measured": {},
        }

    def _checkpoint(self, data_dir: str) -> dict[str, Any]:
        loaders = [node for node in self.graphs["txt2img"].values() if node["class_type"] == "CheckpointLoaderSimple"]
        name = str(loaders[0]["inputs"]["ckpt_name"]) if loaders else ""
        path = f"{data_dir}/models/checkpoints/{name}"
        if not os.path.isfile(path):
            raise RefusalError(f"{path} is not there, expected the graphs' checkpoint. Type: ansible-playbook site.yml")
        synthetic = "synthetic" in read_metadata(path)
        return {"name": name, "size_b": os.path.getsize(path), "synthetic": synthetic}

    def _graph(self, kind: str, seed: int | None = None, **save: str) -> dict[str, Any]:
        """A graph with a seed that no earlier one had, so that nothing of it comes from the server's cache."""
        if seed is None:
            self._seed += 1
            seed = self._seed
        graph: dict[str, Any] = set_in_graph(self.graphs[kind], "KSampler", seed=seed)
        if save:
            graph = set_in_graph(graph, "SaveImage", **save)
        return graph

    def _keep(self, step: str, **figures: Any) -> None:
        self.result["measured"].setdefault(step, {}).update(figures)
        self.keep(self.result)

    def _latencies(self, server: Server, kind: str, count: int) -> tuple[list[float], float, float]:
        """Latencies of single images, and the begin and the end of the series."""
        runs = [server.run(self._graph(kind), self.params["image_limit_s"]) for _ in range(count)]
        return [end - start for start, end, _ in runs], runs[0][0], runs[-1][1]

    def _load(self, start_s: float, end_s: float) -> dict[str, Any]:
        found: dict[str, Any] = load(self.sampler.samples, start_s, end_s, self.sampler.idle_available_b)
        return found

    def _begin(self, step: str, server: ContainerServer | PlainServer, count: int) -> list[float]:
        """Start-up, first image and warm images of one server."""
        self.report(f"{step}: starting")
        start_s = server.start(self.params["start_limit_s"])
        self.report(f"{step}: first image")
        first = server.run(self._graph("txt2img"), self.params["image_limit_s"])
        self.report(f"{step}: warm images")
        values, _, _ = self._latencies(server, "txt2img", count)
        first_s = first[1] - first[0]
        self._keep(
            step,
            start_s=round(start_s, 3),
            first_image_s=round(first_s, 3),
            model_load_s=round(max(0.0, first_s - summary(values)["median"]), 3),
            latency_s=summary(values),
            latencies_s=[round(value, 4) for value in values],
        )
        return values

    def _measure(self) -> None:
        repeats = self.params["repeats"]
        if self.params["drop_caches"]:
            os.sync()
            with open("/proc/sys/vm/drop_caches", "w", encoding="ascii") as handle:
                handle.write("3")
        server = ContainerServer(self.guard, self.release, self.work_dir, [])
        try:
            self._begin("cold", server, repeats)
            for kind, count in (("txt2img", repeats), ("img2img", repeats), ("batch", max(2, repeats // 2))):
                self.report(f"{kind}: {count} times")
                if kind != "txt2img":
                    server.run(self._graph(kind), self.params["image_limit_s"])  # its own first kernels
                values, start_s, end_s = self._latencies(server, kind, count)
                rounded = [round(value, 4) for value in values]
                self._keep(kind, latency_s=summary(values), latencies_s=rounded, **self._load(start_s, end_s))
            self.report("a full queue")
            graphs = [self._graph("txt2img") for _ in range(self.params["queue_length"])]
            spans = [run[:2] for run in server.run_queue(graphs, self.params["image_limit_s"] * len(graphs))]
            loaded = self._load(spans[0][0], spans[-1][1])
            self._keep("queue", length=len(spans), images_per_minute=images_per_minute(spans), **loaded)
            server.stop()
            self._compare_with_plain(repeats)
        finally:
            server.stop()
        self.result["limits"] = held(self._figures(), self.params["limits"])
        self.keep(self.result)

    def _compare_with_plain(self, repeats: int) -> None:
        """In turns on the same machine: the container, the same files without one, the container again."""
        server = ContainerServer(self.guard, self.release, self.work_dir, [])
        plain = PlainServer(server)
        try:
            contained = self._begin("warm", server, repeats)
            server.free()
            try:
                alone = self._begin("plain", plain, repeats)
            finally:
                plain.stop()
            self._latencies(server, "txt2img", 1)  # its model comes back
            again, _, _ = self._latencies(server, "txt2img", repeats)
        finally:
            server.stop()
        ratio = summary([*contained, *again])["median"] / summary(alone)["median"]
        rounded = [round(value, 4) for value in again]
        self._keep("container", latency_s=summary([*contained, *again]), again_s=rounded, cost_ratio=round(ratio, 4))

    def _figures(self) -> dict[str, float | None]:
        measured = self.result["measured"]
        peaks = [measured[step]["memory_b"] for step in (*GRAPHS, "queue") if measured[step]["memory_b"] is not None]
        return {
            "start_s": max(measured["cold"]["start_s"], measured["warm"]["start_s"]),
            "model_load_s": measured["cold"]["model_load_s"],
            "latency_s": measured["txt2img"]["latency_s"]["median"],
            "utilisation": measured["txt2img"]["utilisation"],
            "memory_gb": round(max(peaks) / 1e9, 2) if peaks else None,
            "container_cost_ratio": measured["container"]["cost_ratio"],
        }

    def _tune(self) -> None:
        """Every candidate once, then in further rounds those that were no slower than the reference.

        Round follows round, so that a drift of the machine meets all alike.
        """
        version, machine = self.result["comfyui"]["version"], self.result["machine"]["kind"]
        candidates = chosen(self.params["candidates"], version, machine)
        tried: dict[str, dict[str, Any]] = {
            one["name"]: {
                "name": one["name"],
                "flags": one["flags"],
                "compile": one.get("compile", ""),
                "environment": one.get("environment") or {},
                "rounds": [],
            }
            for one in candidates
        }
        reference = candidates[0]["name"]
        rounds = self.params["rounds"]
        for number in range(rounds):
            for candidate in candidates:
                entry = tried[candidate["name"]]
                if entry.get("error") or (number and slower(entry, tried[reference])):
                    continue
                self.report(f"tuning, round {number + 1} of {rounds}: {candidate['name']}")
                try:
                    entry["rounds"].append(self._try(candidate, reference))
                except ServerError as error:
                    if candidate["name"] == reference:
                        message = f"the default settings failed, so there is nothing to compare with: {error}"
                        raise ServerError(message) from error
                    entry["error"] = str(error)
                self._sum_up(tried.values())

    def _sum_up(self, tried: Iterable[dict[str, Any]]) -> None:
        results = []
        for entry in tried:
            if entry["rounds"]:
                values = [value for one in entry["rounds"] for value in one["latencies_s"]]
                peaks = [one["memory_b"] for one in entry["rounds"] if one["memory_b"] is not None]
                entry["latency_s"] = summary(values)
                entry["round_medians_s"] = [summary(one["latencies_s"])["median"] for one in entry["rounds"]]
                entry["memory_b"] = max(peaks) if peaks else None
                entry["images"] = {key: max(one["images"][key] for one in entry["rounds"]) for key in ("mean", "share")}
            if entry["rounds"] or entry.get("error"):
                results.append(entry)
        tolerance, memory_limit_b = self.params["tolerance"], int(self.params["memory_limit_gb"] * 1e9)
        self.result["tuning"] = {
            "tolerance": tolerance,
            "memory_limit_b": memory_limit_b,
            "candidates": results,
            "ranking": ranking(results, tolerance, memory_limit_b),
        }
        self.keep(self.result)

    def _try(self, candidate: Mapping[str, Any], reference: str) -> dict[str, Any]:
        """One round of one candidate, with the same seeds as every other."""
        server = ContainerServer(
            self.guard, self.release, self.work_dir, candidate["flags"], candidate.get("environment")
        )
        name = str(candidate["name"])
        seeds = range(1, self.params["repeats"] + 1)
        try:
            start_s = server.start(self.params["start_limit_s"])
            first = self._try_one(server, candidate, 0)
            runs = [self._try_one(server, candidate, seed) for seed in seeds]
            if name == reference and not os.path.exists(f"{self.work_dir}/output/reference_1.png"):
                for seed, run in zip(seeds, runs, strict=True):
                    shutil.copy(f"{self.work_dir}/output/{run[2][0]}", f"{self.work_dir}/output/reference_{seed}.png")
            pairs = list(zip(seeds, runs, strict=True))[: self.params["compared_seeds"]]
            gaps = [server.compare(f"reference_{seed}.png", run[2][0]) for seed, run in pairs]
            words = call("docker", "logs", CONTAINER)
        finally:
            server.stop()
        if min(gap["std"] for gap in gaps) < BLANK_STD:
            raise ServerError("its images are blank")
        return {
            "start_s": round(start_s, 3),
            "first_image_s": round(first[1] - first[0], 3),
            "latencies_s": [round(end - start, 4) for start, end, _ in runs],
            "images": {key: max(gap[key] for gap in gaps) for key in ("mean", "share")}
            | {"std": min(gap["std"] for gap in gaps)},
            "remarks": remarks(words.stdout + words.stderr),
            **self._load(runs[0][0], runs[-1][1]),
        }

    def _try_one(self, server: Server, candidate: Mapping[str, Any], seed: int) -> tuple[float, float, list[str]]:
        graph = self._graph("txt2img", seed, filename_prefix=str(candidate["name"]))
        if candidate.get("compile"):
            graph = compiled(graph, str(candidate["compile"]))
        done: tuple[float, float, list[str]] = server.run(graph, self.params["image_limit_s"])
        return done


def slower(entry: Mapping[str, Any], reference: Mapping[str, Any]) -> bool:
    """Whether a candidate was slower than the reference in the first round, so that no further one can make it win."""
    medians = [summary(one["rounds"][0]["latencies_s"])["median"] for one in (entry, reference)]
    return bool(medians[0] > medians[1])


def remarks(log: str) -> list[str]:
    """What a server said about its settings: lines that name attention, memory mode, allocator and warnings."""
    telling = ("attention", "vram state", "async", "pinned", "aimdo", "dynamic", "warning", "fallback", "not available")
    lines = [line.strip()[:200] for line in COLOUR.sub("", log).splitlines()]
    return list(dict.fromkeys(line for line in lines if any(word in line.lower() for word in telling)))[:20]
