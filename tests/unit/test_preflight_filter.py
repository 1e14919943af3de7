"""The filters of preflight: one description of the machine, space that adds up on one filesystem."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from programs import load_program
from role_rules import Rules

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


@pytest.mark.parametrize(
    ("unfinished", "interrupted", "locks", "found"),
    [
        ("", "", (0, ""), ""),
        ("libx\tiF \n", "", (0, ""), "libx (iF); expected all installed and configured"),
        ("", "0001\n", (0, ""), "dpkg interrupted; expected all installed and configured"),
        ("libx\tiF \n", "0001\n", (0, "12\t/var/lib/dpkg/lock\tapt\n"), ""),
        ("libx\tiF \n", "0001\n", (1, ""), ""),
    ],
    ids=["whole", "half configured", "interrupted", "under way", "not to be seen"],
)
def test_packages_that_are_not_done_are_refused_with_the_command(
    preflight: ModuleType, unfinished: str, interrupted: str, locks: tuple[int, str], found: str
) -> None:
    said = {"unfinished": (0, unfinished), "interrupted": (0, interrupted), "locks": locks}
    words = preflight.packages_problem(
        {name: dict(zip(("rc", "stdout"), pair, strict=True)) for name, pair in said.items()}
    )
    assert found in words
    assert ("sudo dpkg --configure -a" in words) == bool(words) == bool(found)


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


LOGIN = "comfyui:x:1001:1001:Somebody:/home/comfyui:/bin/bash"
NOTHING, FOLDER = {"kind": "absent"}, {"kind": "dir"}


def test_an_account_that_is_somebodys_login_is_refused(preflight: ModuleType) -> None:
    problem = preflight.account_problem(f"{LOGIN}\n", [NOTHING, NOTHING])
    assert "is somebody's login, with the shell /bin/bash; expected none of that name" in problem
    assert "usermod --shell /usr/sbin/nologin comfyui" in problem
    assert "/bin/sh" in preflight.account_problem("comfyui:x:1:1::/:", [NOTHING])


@pytest.mark.parametrize(
    ("account", "remains"),
    [
        ("", [NOTHING]),
        ("comfyui:x:990:990::/srv/comfyui:/usr/sbin/nologin", [NOTHING]),
        ("comfyui:x:990:990::/srv/comfyui:/bin/false", [NOTHING]),
        (LOGIN, [NOTHING, FOLDER]),  # ours, and its shell is drift
    ],
)
def test_an_account_that_is_to_be_the_services_is_welcome(
    preflight: ModuleType, account: str, remains: list[dict[str, str]]
) -> None:
    assert preflight.account_problem(account, remains) == ""


def test_the_number_of_a_strangers_group_is_not_changed(preflight: ModuleType) -> None:
    problem = preflight.group_problem("comfyui:x:1005:alice\n", 990, [NOTHING, NOTHING])
    assert "The group comfyui has the number 1005 on this host, expected 990" in problem
    assert "comfyui_user_id: 1005, or give that group another name: groupmod --new-name NAME comfyui" in problem


@pytest.mark.parametrize(
    ("group", "remains"),
    [
        ("", [NOTHING]),
        ("comfyui:x:990:", [NOTHING]),
        ("comfyui:x:1005:", [NOTHING, FOLDER]),  # ours, and its number is drift
    ],
)
def test_a_group_that_is_to_be_the_services_is_welcome(
    preflight: ModuleType, group: str, remains: list[dict[str, str]]
) -> None:
    assert preflight.group_problem(group, 990, remains) == ""


def test_a_disk_that_does_not_answer_is_named() -> None:
    needs = [{"dir": "/srv/comfyui", "df": ""}, {"dir": "/etc/comfyui", "df": "Filesystem Avail\n/dev/sda1 5\n"}]
    rules = Rules("preflight", __preflight_needs=needs)
    rule, *_ = rules.read("tasks/room.yml")
    templar = rules.templar(**rule["vars"])
    assert not templar.evaluate_conditional(rule["ansible.builtin.assert"]["that"])
    said = templar.template(rule["ansible.builtin.assert"]["fail_msg"])
    assert (
        "df says nothing of /srv/comfyui on this host, expected the free space there. findmnt -T /srv/comfyui" in said
    )
    needs[0]["df"] = needs[1]["df"]
    whole = Rules("preflight", __preflight_needs=needs).templar(**rule["vars"])
    assert whole.evaluate_conditional(rule["ansible.builtin.assert"]["that"])
