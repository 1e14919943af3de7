"""Figures of a benchmark and what follows from them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

import benchmark_measures as measures

ROOT = Path(__file__).resolve().parents[2]
CANDIDATES = yaml.safe_load((ROOT / "roles/comfyui_benchmark/vars/main.yml").read_text())[
    "__comfyui_benchmark_candidates"
]
TOLERANCE = {"mean": 2.0, "share": 0.02}
LIMIT_B = 30 * 10**9
SAME = {"mean": 0.0, "share": 0.0}
finite = st.floats(min_value=0.01, max_value=1e4)


def graph(name: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((ROOT / "workflows" / f"{name}.json").read_text())
    return document


def sample(at_s: float, **figures: Any) -> measures.Sample:
    busy = measures.Sample(at_s, 0, 90.0, 10, 100.0, 50)
    return busy._replace(**figures)


def result(name: str, *medians: float, **more: Any) -> dict[str, Any]:
    return {
        "name": name,
        "latency_s": measures.summary(medians),
        "round_medians_s": list(medians),
        "images": SAME,
        "memory_b": 20 * 10**9,
        **more,
    }


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("0, 97, 20480, 512.30", (0, 97.0, 20480 << 20, 512.3)),
        ("0, 95, [N/A], 41.20", (0, 95.0, None, 41.2)),  # GB10 reports no memory
        ("1, [N/A], 12, [Not Supported]", (1, None, 12 << 20, None)),
    ],
)
def test_a_line_of_the_driver_is_read(line: str, wanted: tuple[Any, ...]) -> None:
    found = measures.parse_sample(line, 1.0, 2)
    assert found == (1.0, *wanted, 2)


@pytest.mark.parametrize("line", ["", "No devices were found", "index, utilization.gpu [%]", "0, 1, 2"])
def test_what_is_no_line_of_figures_is_left_out(line: str) -> None:
    assert measures.parse_sample(line, 1.0, 2) is None


@given(st.lists(finite, min_size=1))
def test_a_summary_holds_its_median_between_its_extremes(values: list[float]) -> None:
    found = measures.summary(values)
    assert found["min"] <= found["median"] <= found["max"]
    assert found["count"] == len(values)
    assert found["spread"] >= 0


def test_nothing_measured_is_no_summary() -> None:
    with pytest.raises(ValueError, match="no measurement succeeded"):
        measures.summary([])


@given(st.lists(st.tuples(finite, finite), min_size=2, max_size=20))
def test_constant_power_is_power_times_time(points: list[tuple[float, float]]) -> None:
    line = sorted((at_s, 7.0) for at_s, _ in points)
    assert math.isclose(measures.integral(line), 7.0 * (line[-1][0] - line[0][0]), abs_tol=1e-6)


def test_load_is_that_of_the_window_and_of_the_gpu_that_worked() -> None:
    samples = [
        sample(0, utilisation=0.0, memory_b=999),
        sample(1, utilisation=80.0, memory_b=10),
        sample(2, utilisation=100.0, memory_b=30),
        *(sample(at_s, gpu=1, utilisation=1.0, memory_b=500) for at_s in (1, 2)),
        sample(9, memory_b=999),
    ]
    found = measures.load(samples, 1, 2, 0)
    assert found == {"samples": 2, "utilisation": 90.0, "memory_b": 30, "memory_source": "driver", "energy_j": 100.0}


def test_unified_memory_is_what_the_host_lacks() -> None:
    samples = [sample(1, memory_b=None, host_available_b=70), sample(2, memory_b=None, host_available_b=60)]
    found = measures.load(samples, 0, 3, 100)
    assert (found["memory_b"], found["memory_source"]) == (40, "host")


def test_without_a_driver_nothing_is_made_up() -> None:
    found = measures.load([], 0, 1, 100)
    assert (found["utilisation"], found["memory_b"], found["energy_j"]) == (None, None, None)
    assert measures.load([sample(1, power_w=None), sample(2, power_w=None)], 0, 3, 0)["energy_j"] is None


def test_others_are_those_that_are_not_ours() -> None:
    assert measures.busy_with([(1, 5), (2, None)], [1]) == [(2, None)]


def test_the_rate_of_a_queue_counts_from_first_begin_to_last_end() -> None:
    assert measures.images_per_minute([(10.0, 12.0), (12.0, 14.0), (14.0, 16.0)]) == 30.0


def test_the_graph_of_the_operator_stays_as_it_is() -> None:
    original = graph("txt2img_sdxl")
    changed = measures.set_in_graph(original, "KSampler", seed=5)
    assert original == graph("txt2img_sdxl")
    assert changed["5"]["inputs"]["seed"] == 5
    with pytest.raises(ValueError, match="no Nothing node"):
        measures.set_in_graph(original, "Nothing", seed=5)


@pytest.mark.parametrize("name", ["txt2img_sdxl", "img2img_sdxl", "batch_generation"])
def test_a_compiled_graph_samples_through_the_compiled_model(name: str) -> None:
    changed = measures.compiled(graph(name), "inductor")
    (sampler,) = [node for node in changed.values() if node["class_type"] == "KSampler"]
    node = changed[sampler["inputs"]["model"][0]]
    assert node["class_type"] == "TorchCompileModel"
    assert changed[node["inputs"]["model"][0]]["class_type"] == "CheckpointLoaderSimple"


def test_candidates_are_those_of_version_and_machine() -> None:
    def names(version: str, machine: str) -> list[str]:
        return [one["name"] for one in measures.chosen(CANDIDATES, version, machine)]

    assert names("0.28.1", "discrete")[0] == names("0.3.68", "unified")[0] == "defaults"
    assert "no-dynamic-vram" not in names("0.3.68", "unified")
    assert "no-dynamic-vram" in names("0.28.1", "unified")
    assert "dynamic-vram" in names("0.28.1", "discrete")
    assert "async-offload" in names("0.3.68", "discrete")
    assert "async-offload" not in names("0.28.1", "discrete")
    assert "bf16" in names("0.28.1", "unified")
    assert "bf16" not in names("0.28.1", "discrete")


def test_every_candidate_has_its_own_name_and_the_first_is_the_reference() -> None:
    names = [one["name"] for one in CANDIDATES]
    assert len(names) == len(set(names))
    assert CANDIDATES[0] == {"name": "defaults", "flags": []}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, ""),
        ({"images": {"mean": 2.1, "share": 0.0}}, "images differ: 2.10 of 255"),
        ({"images": {"mean": 0.1, "share": 0.03}}, "3.0% of the pixels"),
        ({"memory_b": 31 * 10**9}, "peak memory 28.9 GiB, at most 27.9 GiB"),
        ({"memory_b": None}, ""),
        ({"error": "node 5 (KSampler): OutOfMemoryError"}, "OutOfMemoryError"),
    ],
)
def test_a_verdict_says_what_is_wrong(changes: dict[str, Any], words: str) -> None:
    found = measures.verdict(result("x", 1.0) | changes, TOLERANCE, LIMIT_B)
    assert words in found
    assert bool(found) == bool(words)


def test_the_ranking_puts_the_fastest_first_and_the_rejected_last() -> None:
    results = [
        result("defaults", 1.5, 1.52),
        result("slow", 1.8),
        result("fast", 1.1, 1.12),
        result("wrong", 0.5, images={"mean": 40.0, "share": 0.9}),
        {"name": "broken", "error": "it did not start"},
    ]
    found = measures.ranking(results, TOLERANCE, LIMIT_B)
    assert [row["name"] for row in found["rows"]] == ["fast", "defaults", "slow", "wrong", "broken"]
    assert found["winner"] == "fast"


@pytest.mark.parametrize(
    ("medians", "why"),
    [((1.49, 1.49), "a gain below LEAST_GAIN"), ((1.3, 1.51), "one round was not faster")],
)
def test_the_defaults_stay_unless_another_is_surely_faster(medians: tuple[float, ...], why: str) -> None:
    found = measures.ranking([result("defaults", 1.5, 1.5), result("other", *medians)], TOLERANCE, LIMIT_B)
    assert found["winner"] == "defaults", why


def test_nothing_wins_over_a_reference_that_breaks_the_limits() -> None:
    results = [result("defaults", 1.5, memory_b=99 * 10**9), result("fast", 1.0)]
    assert measures.ranking(results, TOLERANCE, LIMIT_B)["winner"] == "defaults"


def test_limits_hold_only_for_what_was_measured() -> None:
    limits = {"start_s": {"most": 30.0}, "utilisation": {"least": 50.0}, "memory_gb": {"most": 30.0}}
    rows = measures.held({"start_s": 30.0, "utilisation": 49.9, "memory_gb": None}, limits)
    assert [row["holds"] for row in rows] == [True, False, False]
