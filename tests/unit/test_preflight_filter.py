"""The filters of preflight: one description of the machine, space that adds up on one filesystem."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from programs import load_program

PATH = Path(__file__).parents[2] / "plugins" / "filter" / "preflight.py"


@pytest.fixture(scope="module", name="preflight")
def load_preflight() -> ModuleType:
    return load_program(PATH)


def need(directory: str, df: str, needed_b: int) -> dict[str, Any]:
    return {"dir": directory, "df": df, "needed_b": needed_b, "use": f"what {directory} holds", "advice": directory}


def test_what_lies_on_one_filesystem_adds_up(preflight: ModuleType) -> None:
    df = "Filesystem     Avail\n/dev/nvme0n1p2   100\n"
    (disk,) = preflight.disks([need("/srv", df, 60), need("/var", df, 50)])
    assert (disk["free_b"], disk["needed_b"], disk["dirs"]) == (100, 110, ["/srv", "/var"])


def test_two_filesystems_are_two(preflight: ModuleType) -> None:
    first, second = preflight.disks([need("/srv", "Filesystem Avail\n/dev/a 7\n", 6), need("/var", "x\n/dev/b 9\n", 8)])
    assert (first["free_b"], second["free_b"], second["needed_b"]) == (7, 9, 8)


def test_what_needs_nothing_is_not_asked_for_more(preflight: ModuleType) -> None:
    assert preflight.disks([need("/srv", "nonsense", 0)]) == []


def test_a_machine_is_described_from_what_the_probe_read(preflight: ModuleType) -> None:
    silent = {"rc": 127, "stdout": "", "stderr": ""}
    names = ("driver_loaded", "driver_on_disk", "driver_packages", "kernels", "gpu_list", "held")
    commands = dict.fromkeys(names, silent) | {
        "architecture": {"rc": 0, "stdout": "aarch64\n"},
        "dgx_release": {"rc": 0, "stdout": 'DGX_NAME="DGX Spark"\nDGX_SWBUILD_VERSION="7.2.3"\n'},
    }
    kinds = {"spark": {"gpu": "GB10", "title": "Spark", "unified_memory": True}}
    found = preflight.describe_machine(commands, kinds, "auto", ["NVIDIA GB10"])
    assert found == {
        "kind": "spark",
        "title": "Spark",
        "architecture": "aarch64",
        "dgx_os": "7.2.3",
        "gpus": ["NVIDIA GB10"],
        "unified_memory": True,
        "faults": [],
    }
    assert preflight.describe_machine(commands, kinds, "spark", [])["kind"] == "spark"
    assert preflight.describe_machine(commands, kinds, "auto", [])["title"] == "unknown machine"


GPU_LINES = [
    "NVIDIA GB300, 590.1, 10.3",
    "NVIDIA T400, 590.1, 7.5",
    "NVIDIA H100, 590.1, 9.0",
    "NVIDIA H100, 590.1, 9.0",
]
GPU_LIST = """GPU 0: NVIDIA GB300 (UUID: GPU-00aa)
GPU 1: NVIDIA T400 (UUID: GPU-11bb)
GPU 2: NVIDIA H100 (UUID: GPU-22cc)
  MIG 1g.10gb     Device  0: (UUID: MIG-22dd)
GPU 3: NVIDIA H100 (UUID: GPU-33ee)
"""


@pytest.mark.parametrize(
    ("request_text", "expected"),
    [
        ("all", ["10.3", "7.5", "9.0"]),
        ("none", []),
        ("0", ["10.3"]),
        ("GPU-11bb,3", ["7.5", "9.0"]),
        ("2:0", ["9.0"]),
        ("MIG-22dd", ["9.0"]),
    ],
)
def test_only_the_gpus_of_the_request_count(preflight: ModuleType, request_text: str, expected: list[str]) -> None:
    assert preflight.capabilities(request_text, GPU_LINES, GPU_LIST) == expected


def test_a_gpu_that_says_no_capability_or_is_not_listed_is_passed_over(preflight: ModuleType) -> None:
    assert preflight.capabilities("all", ["NVIDIA GB10, 580.95.05, 12.1", "NVIDIA X, 580, [N/A]"], "") == ["12.1"]
    assert preflight.capabilities("0", GPU_LINES[:1], "") == ["10.3"]
