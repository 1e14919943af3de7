"""Figures of a benchmark, and what follows from them: medians and spread, load and energy, limits, ranking.

Pure functions, standard library only. Times are seconds, memory is bytes, energy joules, unless a name says otherwise.
"""

from __future__ import annotations

import copy
import itertools
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

GIB = 1 << 30
# A gain smaller than this is not worth another setting, however steady the figures are.
LEAST_GAIN = 0.02


class Sample(NamedTuple):
    """One look at one GPU. What the driver does not report is None: memory on unified machines, power on some."""

    at_s: float
    gpu: int
    utilisation: float | None
    memory_b: int | None
    power_w: float | None
    host_available_b: int


def parse_sample(line: str, at_s: float, host_available_b: int) -> Sample | None:
    """A line of `nvidia-smi --query-gpu=index,utilization.gpu,memory.used,power.draw --format=csv,noheader,nounits`.

    None where it is no such line; `[N/A]` and its kin become None.
    """

    def figure(text: str) -> float | None:
        try:
            return float(text)
        except ValueError:
            return None

    fields = [field.strip() for field in line.split(",")]
    if len(fields) != 4 or not fields[0].isdigit():
        return None
    memory_mib = figure(fields[2])
    return Sample(
        at_s,
        int(fields[0]),
        figure(fields[1]),
        None if memory_mib is None else int(memory_mib * (1 << 20)),
        figure(fields[3]),
        host_available_b,
    )


def summary(values: Sequence[float]) -> dict[str, Any]:
    """Median, extremes and spread of repeated measurements. `spread` is (max - min) / median."""
    if not values:
        raise ValueError("there is nothing to sum up: no measurement succeeded")
    median = statistics.median(values)
    return {
        "count": len(values),
        "median": round(median, 4),
        "min": round(min(values), 4),
        "max": round(max(values), 4),
        "spread": round((max(values) - min(values)) / median, 4) if median else 0.0,
    }


def load(samples: Iterable[Sample], start_s: float, end_s: float, idle_available_b: int) -> dict[str, Any]:
    """GPU utilisation (mean, %), peak memory and energy between two times, for the GPU that worked most.

    Where the driver reports no memory (unified memory), the peak is what the host had less than when it was idle.
    Energy is the power integrated over time; None where the driver reports no power.
    """
    by_gpu: dict[int, list[Sample]] = {}
    for sample in samples:
        if start_s <= sample.at_s <= end_s:
            by_gpu.setdefault(sample.gpu, []).append(sample)
    empty = {"samples": 0, "utilisation": None, "memory_b": None, "memory_source": None, "energy_j": None}
    if not by_gpu:
        return empty

    def utilisation(rows: list[Sample]) -> float:
        known = [row.utilisation for row in rows if row.utilisation is not None]
        return statistics.fmean(known) if known else -1.0

    rows = max(by_gpu.values(), key=utilisation)
    memory = [row.memory_b for row in rows if row.memory_b is not None]
    lowest_b = min(row.host_available_b for row in rows)
    power = [(row.at_s, row.power_w) for row in rows if row.power_w is not None]
    return {
        "samples": len(rows),
        "utilisation": round(utilisation(rows), 1) if utilisation(rows) >= 0 else None,
        "memory_b": max(memory) if memory else max(0, idle_available_b - lowest_b),
        "memory_source": "driver" if memory else "host",
        "energy_j": round(integral(power), 1) if len(power) > 1 else None,
    }


def integral(points: Sequence[tuple[float, float]]) -> float:
    """The area under straight lines between points."""
    return sum((later[0] - earlier[0]) * (later[1] + earlier[1]) / 2 for earlier, later in itertools.pairwise(points))


def busy_with(apps: Iterable[tuple[int, int | None]], ours: Iterable[int]) -> list[tuple[int, int | None]]:
    """The processes on the GPU, as (pid, memory in bytes), that are not ours."""
    own = set(ours)
    return [(pid, memory_b) for pid, memory_b in apps if pid not in own]


def images_per_minute(spans: Sequence[tuple[float, float]]) -> float:
    """Rate of a full queue, from the begin of its first prompt to the end of its last."""
    start_s, end_s = min(start for start, _ in spans), max(end for _, end in spans)
    return round(len(spans) * 60 / (end_s - start_s), 2)


def set_in_graph(graph: Mapping[str, Any], class_type: str, **inputs: Any) -> dict[str, Any]:
    """A copy of the graph with inputs set on every node of a class; ValueError where there is no such node."""
    changed = copy.deepcopy(dict(graph))
    nodes = [node for node in changed.values() if node["class_type"] == class_type]
    if not nodes:
        raise ValueError(f"the graph has no {class_type} node, and the benchmark sets {', '.join(inputs)} on it")
    for node in nodes:
        node["inputs"].update(inputs)
    return changed


def compiled(graph: Mapping[str, Any], backend: str) -> dict[str, Any]:
    """A copy of the graph in which every sampler takes its model through TorchCompileModel."""
    changed = copy.deepcopy(dict(graph))
    samplers = [node for node in changed.values() if node["class_type"] == "KSampler"]
    if not samplers:
        raise ValueError("the graph has no KSampler whose model could be compiled")
    for sampler in samplers:
        name = f"compiled_{sampler['inputs']['model'][0]}"
        changed[name] = {
            "class_type": "TorchCompileModel",
            "inputs": {"model": sampler["inputs"]["model"], "backend": backend},
        }
        sampler["inputs"]["model"] = [name, 0]
    return changed


def version_tuple(version: str) -> tuple[int, ...]:
    """`0.28.1` as figures that compare."""
    return tuple(int(part) for part in version.split("."))


def chosen(candidates: Iterable[Mapping[str, Any]], version: str, machine: str) -> list[dict[str, Any]]:
    """The candidates for this ComfyUI version and machine kind (V(discrete) or V(unified)), in their order."""
    at = version_tuple(version)
    return [
        dict(candidate)
        for candidate in candidates
        if machine in candidate.get("machines", ["discrete", "unified"])
        and version_tuple(candidate.get("since", "0")) <= at
        and ("until" not in candidate or at < version_tuple(candidate["until"]))
    ]


def verdict(result: Mapping[str, Any], tolerance: Mapping[str, float], memory_limit_b: int) -> str:
    """Why a candidate is rejected; empty where it stays in the race.

    `result` holds either `error` or `images` (difference from the reference's, worst of the seeds) and `memory_b`.
    """
    if result.get("error"):
        return str(result["error"])
    images = result["images"]
    if images["mean"] > tolerance["mean"] or images["share"] > tolerance["share"]:
        return (
            f"images differ: {images['mean']:.2f} of 255 levels on average (at most {tolerance['mean']:g}), "
            f"{images['share']:.1%} of the pixels visibly (at most {tolerance['share']:.1%})"
        )
    if result["memory_b"] is not None and result["memory_b"] > memory_limit_b:
        return f"peak memory {result['memory_b'] / GIB:.1f} GiB, at most {memory_limit_b / GIB:.1f} GiB"
    return ""


def ranking(
    results: Sequence[Mapping[str, Any]], tolerance: Mapping[str, float], memory_limit_b: int
) -> dict[str, Any]:
    """Candidates from fast to slow, rejected ones last with the reason, and the winner.

    The first result is the reference, the default settings. A candidate wins only if its slowest median of a round is
    faster than the fastest of the reference's and it gains LEAST_GAIN: otherwise the defaults stay.
    """
    rows = []
    for result in results:
        reason = verdict(result, tolerance, memory_limit_b)
        row = {"name": result["name"], "rejected": reason}
        if not result.get("error"):
            latency = result["latency_s"]
            row |= {
                "latency_s": latency,
                "ratio": round(latency["median"] / results[0]["latency_s"]["median"], 4),
                "memory_b": result["memory_b"],
                "images": result["images"],
            }
        rows.append(row)
    rows.sort(key=lambda row: (bool(row["rejected"]), row.get("ratio", float("inf"))))
    reference = next((row for row in rows if row["name"] == results[0]["name"]), None)
    if reference is None or reference["rejected"]:
        return {"rows": rows, "winner": results[0]["name"]}
    fastest_s = min(results[0]["round_medians_s"])
    by_name = {result["name"]: result for result in results}
    best = next(
        (
            row["name"]
            for row in rows
            if not row["rejected"]
            and row["ratio"] <= 1 - LEAST_GAIN
            and max(by_name[row["name"]]["round_medians_s"]) < fastest_s
        ),
        results[0]["name"],
    )
    return {"rows": rows, "winner": best}


def held(figures: Mapping[str, float | None], limits: Mapping[str, Mapping[str, float]]) -> list[dict[str, Any]]:
    """Each limit with what was measured and whether it holds; one that was not measured does not hold."""
    rows = []
    for name, limit in limits.items():
        found = figures.get(name)
        if found is None:
            holds = False
        elif "most" in limit:
            holds = found <= limit["most"]
        else:
            holds = found >= limit["least"]
        rows.append({"name": name, **limit, "found": found, "holds": holds})
    return rows
