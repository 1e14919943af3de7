"""Samples of GPU and memory: what nvidia-smi says, and what it leaves out."""

from __future__ import annotations

import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest

import host_load

MEMINFO = "MemTotal:       1024000 kB\nMemFree:   1 kB\nMemAvailable:    512000 kB\n"


@pytest.mark.parametrize(
    ("text", "gpus", "busiest"),
    [
        ("96, 8120\n", [(96, 8120)], (96, 8120)),
        ("0, 512\n77, 9000\n", [(0, 512), (77, 9000)], (77, 9000)),
        ("97, [N/A]\n", [(97, None)], (97, None)),
        ("[Not Supported], [Not Supported]\n", [(None, None)], (None, None)),
        ("[Unknown Error], 5\n", [(None, 5)], (None, 5)),
        ("", [], (None, None)),
        ("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.\n\n", [], (None, None)),
    ],
)
def test_what_nvidia_smi_says_is_read(text: str, gpus: list[Any], busiest: tuple[Any, Any]) -> None:
    assert host_load.parse_gpus(text) == gpus
    assert host_load.busiest(host_load.parse_gpus(text)) == busiest


def test_memory_in_use_is_total_less_available() -> None:
    assert host_load.memory_used_mib(MEMINFO) == 500


@pytest.mark.parametrize(
    "error", [FileNotFoundError(), subprocess.CalledProcessError(9, "x"), subprocess.TimeoutExpired("x", 5)]
)
def test_a_missing_failing_or_hanging_nvidia_smi_is_no_error(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(subprocess, "run", run)
    assert host_load.ask_gpus() == ""


@pytest.mark.parametrize(
    ("gpus", "percents"),
    [([], [99, 7]), (["1"], [7]), (["0", "1"], [99, 7]), (["1:0", "1:1"], [7])],
)
def test_only_the_gpus_that_were_asked_for_are_sampled(
    gpus: list[str], percents: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(
        "#!/bin/sh\nids=0,1\nfor word; do case $word in --id=*) ids=${word#--id=} ;; esac; done\n"
        "case $ids in *0*) echo '99, 70000' ;; esac\ncase $ids in *1*) echo '7, 500' ;; esac\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert [percent for percent, _ in host_load.parse_gpus(host_load.ask_gpus(gpus))] == percents


def test_a_sampler_begins_before_the_block_and_ends_with_it() -> None:
    asked = threading.Event()
    answers = iter(["0, 100\n", "90, 700\n"])

    def ask() -> str:
        answer = next(answers, None)
        if answer is None:
            asked.set()
        return answer or "50, 600\n"

    sampler = host_load.Sampler(ask, interval_s=0.001)
    with sampler:
        assert sampler.result()[0]["gpu_memory_mib"] == 100
        assert asked.wait(5)
    taken = len(sampler.samples)
    assert [sample["gpu_percent"] for sample in sampler.result()[:3]] == [0, 90, 50]
    assert all(sample["at_s"] >= 0 for sample in sampler.result())
    assert len(sampler.samples) == taken
    assert not sampler._thread.is_alive()
