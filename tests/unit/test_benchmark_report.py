"""What a benchmark found, for people: tables, a plot, the winner's variables."""

from __future__ import annotations

import copy
import xml.etree.ElementTree as ET
from typing import Any

import pytest

import benchmark_measures as measures
import benchmark_report as report

SERIES = {
    "latency_s": measures.summary([1.4, 1.5, 1.6]),
    "utilisation": 93.4,
    "memory_b": 20 * 10**9,
    "energy_j": 3000.0,
}
BEGIN = {"start_s": 9.0, "first_image_s": 5.5, "model_load_s": 4.0, "latency_s": SERIES["latency_s"]}


def candidate(name: str, flags: list[str], backend: str, *latencies_s: float) -> dict[str, Any]:
    return {
        "name": name,
        "flags": flags,
        "compile": backend,
        "latency_s": measures.summary(latencies_s),
        "round_medians_s": list(latencies_s),
        "images": {"mean": 0.5, "share": 0.001},
        "memory_b": 21 * 10**9,
    }


@pytest.fixture
def result() -> dict[str, Any]:
    tried = [
        candidate("defaults", [], "", 1.5, 1.5),
        candidate("compiled", ["--gpu-only"], "inductor", 1.0, 1.01),
        {
            "name": "sage",
            "flags": ["--use-sage-attention"],
            "compile": "",
            "rounds": [],
            "error": "no | module\n\nmore",
        },
    ]
    tolerance = {"mean": 2.0, "share": 0.02}
    limits = {"latency_s": {"most": 10.0}, "utilisation": {"least": 50.0}, "memory_gb": {"most": 30.0}}
    return {
        "date": "2026-11-23T20:00:00Z",
        "machine": {
            "gpu": "NVIDIA H200", "driver": "580.159.04", "gpu_memory_mib": 143771, "cores": 16,
            "architecture": "x86_64", "kernel": "6.18", "engine": "26.1.5", "kind": "discrete",
        },
        "comfyui": {"version": "0.28.1", "torch": "2.11.0+cu130", "python": "3.12.3", "flags": []},
        "checkpoint": {"name": "synthetic-not-sdxl.safetensors", "synthetic": True},
        "measured": {
            **dict.fromkeys(("cold", "warm", "plain"), BEGIN),
            **dict.fromkeys(("txt2img", "img2img", "batch"), SERIES),
            "queue": {"length": 10, "images_per_minute": 40.0, **SERIES},
        },
        "limits": measures.held({"latency_s": 1.5, "utilisation": 40.0, "memory_gb": None}, limits),
        "tuning": {"candidates": tried, "ranking": measures.ranking(tried, tolerance, 30 * 10**9)},
    }  # fmt: skip


def test_the_report_names_machine_figures_and_verdicts(result: dict[str, Any]) -> None:
    text = report.report(result)
    assert "NVIDIA H200 (143771 MiB), driver 580.159.04" in text
    assert "(synthetic)" in text
    assert "| txt2img, 1 image | 1.50 s (1.40 to 1.60, 3 runs) | 93 % | 20.0 GB | 1000 J |" in text
    assert "| batch of 4 | 1.50 s (1.40 to 1.60, 3 runs) | 93 % | 20.0 GB | 250 J |" in text
    assert "| GPU utilisation during txt2img | at least 50 % | 40.00 % | **no** |" in text
    assert "| peak GPU memory | at most 30 GB | not reported | **no** |" in text
    assert "**winner**" in text
    assert r"rejected: no \| module" in text


def test_every_row_has_the_cells_of_its_head(result: dict[str, Any]) -> None:
    for table in report.report(result).split("\n\n")[1:]:
        widths = {line.replace(r"\|", "").count("|") for line in table.strip().splitlines()}
        assert len(widths) == 1, table


def test_a_driver_that_says_nothing_leaves_no_figure(result: dict[str, Any]) -> None:
    silent = copy.deepcopy(result)
    silent["measured"]["txt2img"] = {**SERIES, "utilisation": None, "memory_b": None, "energy_j": None}
    assert "| not reported | not reported | not reported |" in report.report(silent)


def test_the_plot_is_an_image_with_a_bar_for_each_figure(result: dict[str, Any]) -> None:
    result["machine"]["gpu"] = "A & B"
    root = ET.fromstring(report.plot(result))  # noqa: S314 - written by the line itself
    bars = root.findall("{http://www.w3.org/2000/svg}rect")
    assert len(bars) == 6
    assert all(0 < float(bar.attrib["width"]) <= 480 for bar in bars)


def test_the_winner_becomes_variables(result: dict[str, Any]) -> None:
    winner = next(one for one in result["tuning"]["candidates"] if one["compile"])
    winner["environment"] = {"TORCHINDUCTOR_CUDAGRAPHS": "1"}
    assert report.winner_variables(result, ["--mine"], {"MINE": "1"}, "/graphs") == {
        "comfyui_extra_flags": ["--mine", "--gpu-only"],
        "comfyui_environment": {"MINE": "1", "TORCHINDUCTOR_CUDAGRAPHS": "1"},
        "comfyui_workflows_source_dir": "/graphs",
    }
    assert report.winner_backend(result) == "inductor"
    assert "`TORCHINDUCTOR_CUDAGRAPHS=1`" in report.setting(winner)


def test_where_the_defaults_win_there_is_nothing_to_set(result: dict[str, Any]) -> None:
    result["tuning"]["ranking"]["winner"] = "defaults"
    assert report.winner_variables(result, ["--mine"], {}, "/graphs") == {}
    assert report.winner_backend(result) == ""
    del result["tuning"]
    assert report.winner_backend(result) == ""
    assert "candidate" not in report.report(result)
