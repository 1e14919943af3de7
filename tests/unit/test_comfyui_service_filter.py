"""What root runs is compared with all that matters about it; addresses and flags that cannot work are refused."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
filters = importlib.import_module("filter.comfyui_service")
address_problem, differs, flag_problems = filters.address_problem, filters.differs, filters.flag_problems
FILE: dict[str, Any] = {"kind": "file", "mode": "0644", "uid": 0, "gid": 0, "content": "text"}


def test_what_is_right_does_not_differ() -> None:
    assert not differs(FILE, "file", "text")
    assert not differs({**FILE, "kind": "dir", "mode": "0755"}, "dir")


@pytest.mark.parametrize(
    "change",
    [{"kind": "absent"}, {"mode": "0666"}, {"uid": 990}, {"gid": 990}, {"content": "other"}, {"content": None}],
)
def test_everything_that_moved_is_noticed(change: dict[str, Any]) -> None:
    assert differs({**FILE, **change}, "file", "text")


@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.0.2", "::1"])
def test_loopback_needs_no_guard(address: str) -> None:
    assert address_problem(address, 8188, "", "dgx") == ""


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "10.0.0.7"])  # noqa: S104
def test_another_address_needs_one(address: str) -> None:
    words = address_problem(address, 8189, "", "dgx")
    assert f"is {address}, expected 127.0.0.1: ComfyUI has no login" in words
    assert "ssh -L 8189:127.0.0.1:8189 dgx; or say who guards it, comfyui_service_guard: network or proxy" in words
    for guard in ("network", "proxy"):
        assert address_problem(address, 8189, guard, "dgx") == ""


@pytest.mark.parametrize("address", ["", "localhost", "dgx.example.com", "10.0.0.0/8", None])
def test_what_is_no_address_is_refused_with_any_guard(address: Any) -> None:
    for guard in ("", "network", "proxy"):
        assert "expected an IP address of this host" in address_problem(address, 8188, guard, "dgx")


def test_other_flags_are_welcome() -> None:
    assert flag_problems(["--preview-size", "256", "--gpu-only", "--lowvram"], "cuda") == []


@pytest.mark.parametrize("flag", ["--listen", "--port=80", "--base-directory", "--temp-directory", "--database-url"])
def test_flags_that_the_service_gives_are_refused(flag: str) -> None:
    (problem,) = flag_problems([flag, "x"], "cuda")
    assert f"has {flag.partition('=')[0]}, expected none that the service gives itself. Take it out" in problem


def test_pairs_that_fail_and_gpu_flags_without_one_are_refused() -> None:
    (pair,) = flag_problems(["--gpu-only", "--enable-dynamic-vram"], "cuda")
    assert "--gpu-only switches dynamic VRAM off" in pair
    (alone,) = flag_problems(["--gpu-only"], "cpu")
    assert "comfyui_device is cpu" in alone


@pytest.mark.parametrize(
    ("kind", "version", "flags"),
    [
        ("dgx-spark", "0.28.1", ["--disable-pinned-memory"]),
        ("dgx-spark", "0.3.68", []),
        ("dgx-spark", "0.33.0", ["--disable-pinned-memory"]),
        ("dgx-h200", "0.28.1", ["--disable-dynamic-vram"]),
        ("gpu", "0.3.68", []),
        ("dgx-station", "0.28.1", []),
        ("", "0.28.1", []),
    ],
)
def test_flags_come_by_machine_and_version_as_delivered(kind: str, version: str, flags: list[str]) -> None:
    site = yaml.safe_load((ROOT / "inventory/group_vars/all/comfyui.yml").read_text())
    assert filters.flags_of_machine(site["comfyui_machine_flags"], kind, version) == flags


def test_environment_variables_of_libraries_are_welcome() -> None:
    assert filters.environment_problems({"TORCHINDUCTOR_CUDAGRAPHS": "1", "_x2": ""}) == []


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("HOME", "/root", ["HOME", "image", "Take it out"]),
        ("NVIDIA_VISIBLE_DEVICES", "all", ["NVIDIA_VISIBLE_DEVICES", "NVIDIA runtime", "Take it out"]),
        ("A=B", "c", ["'A=B'", "letters, digits and _", "Correct it"]),
        (1, "c", ["1", "letters, digits and _"]),
        ("SIZE", 1, ["SIZE: 1", "expected a text", "in quotes"]),
        ("TEXT", "a\nb", ["TEXT", "line break"]),
    ],
)
def test_environment_variables_that_cannot_be_meant_are_refused(name: Any, value: Any, words: list[str]) -> None:
    (problem,) = filters.environment_problems({name: value})
    assert all(word in problem for word in words), problem


def test_every_variable_that_the_image_sets_is_refused() -> None:
    dockerfile = (ROOT / "templates/Dockerfile.j2").read_text()
    _, _, rest = dockerfile.partition("\nENV ")
    lines = rest.partition("\nUSER ")[0].replace("\\\n", " ").split()
    names = [word.partition("=")[0] for word in lines]
    assert len(names) >= 7
    assert [name for name in names if not filters.environment_problems({name: "x"})] == []
