"""CDI specifications: what is read from the file, and what counts as wrong."""

from __future__ import annotations

import contextlib
import copy
import json
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from cdi_spec import SpecError, compare, device_nodes, host_files, parse

LIVE = {
    "/dev/nvidia0": (195, 0),
    "/dev/nvidiactl": (195, 255),
    "/dev/nvidia-uvm": (510, 0),
    "/dev/nvidia-uvm-tools": (510, 1),
}
LIBRARY = "/usr/lib/x86_64-linux-gnu/libcuda.so.580.159.04"


def node(path: str) -> dict[str, Any]:
    major, minor = LIVE[path]
    return {"path": path, "major": major, "minor": minor, "fileMode": 438, "permissions": "rwm"}


def device(name: str) -> dict[str, Any]:
    return {"name": name, "containerEdits": {"deviceNodes": [node("/dev/nvidia0")]}}


def right() -> dict[str, Any]:
    return {
        "cdiVersion": "0.7.0",
        "kind": "nvidia.com/gpu",
        "devices": [device("0"), device("GPU-00000000-0000-4000-8000-000000000000"), device("all")],
        "containerEdits": {
            "env": ["NVIDIA_VISIBLE_DEVICES=void"],
            "deviceNodes": [node(path) for path in LIVE if path != "/dev/nvidia0"],
            "hooks": [{"hookName": "createContainer", "path": "/usr/bin/nvidia-cdi-hook", "args": ["a", "b::/c/d"]}],
            "mounts": [{"hostPath": LIBRARY, "containerPath": LIBRARY, "options": ["ro", "rbind"]}],
        },
    }


WORDS = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=30)
NAMES = st.from_regex(r"[a-zA-Z][a-zA-Z0-9_.-]{0,15}", fullmatch=True)
SCALARS = WORDS | st.integers() | st.booleans() | st.none()
TREES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=20,
)


@given(st.dictionaries(NAMES, TREES, max_size=4), st.booleans())
def test_yaml_is_read_as_pyyaml_reads_it(tree: dict[str, Any], indented: bool) -> None:
    class Dumper(yaml.SafeDumper):
        def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
            super().increase_indent(flow, indentless and not indented)

    tree["cdiVersion"] = "0.7.0"
    text = yaml.dump(tree, Dumper=Dumper, default_flow_style=False, width=1 << 30, indent=4, explicit_start=True)
    assert yaml.safe_load(text) == tree
    assert parse(text) == tree


@given(st.text(max_size=200))
def test_any_other_text_is_refused_in_one_way(text: str) -> None:
    with contextlib.suppress(SpecError):
        assert "cdiVersion" in parse(text)


def test_yaml_in_the_form_that_the_tool_writes() -> None:
    text = """---
cdiVersion: 0.7.0
kind: nvidia.com/gpu
devices:
    - name: "0"
      containerEdits:
        deviceNodes:
            - path: /dev/nvidia0
              major: 195
              fileMode: 438
              permissions: rwm
containerEdits:
    hooks:
        - hookName: createContainer
          args:
            - create-symlinks
            - libcuda.so.1::/usr/lib/x86_64-linux-gnu/libcuda.so
            - --folder
"""
    found = parse(text)
    assert found == yaml.safe_load(text)
    assert found["devices"][0]["name"] == "0"
    # nvidia-ctk leaves a minor of 0 out.
    assert device_nodes(found) == {"/dev/nvidia0": (195, 0)}


def test_json_is_read_as_well() -> None:
    assert parse(json.dumps(right())) == right()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: it is empty"),
        ("{", "not JSON"),
        ("[]", "line 1"),
        ("kind: nvidia.com/gpu\n", "no cdiVersion"),
        ("cdiVersion: 0.7.0\ngarbage\n", "line 2: neither"),
        ("cdiVersion: 0.7.0\nkind: [a]\n", "'[' is beyond"),
        ("cdiVersion: 0.7.0\ncdiVersion: 0.7.0\n", "given twice"),
        ("cdiVersion: 0.7.0\n    kind: x\n", "line 2: indentation"),
    ],
)
def test_what_is_no_specification_is_refused(text: str, message: str) -> None:
    with pytest.raises(SpecError) as refusal:
        parse(text)
    assert message in str(refusal.value)


def test_a_true_specification_has_no_problem() -> None:
    assert compare(right(), LIVE, []) == []


def test_numbers_that_are_left_open_are_the_runtimes_to_find() -> None:
    spec = right()
    for entry in spec["containerEdits"]["deviceNodes"]:
        del entry["major"]
    assert compare(spec, LIVE, []) == []


def without_uvm(spec: dict[str, Any], _live: dict[str, tuple[int, int]]) -> None:
    nodes = spec["containerEdits"]["deviceNodes"]
    spec["containerEdits"]["deviceNodes"] = [entry for entry in nodes if entry["path"] != "/dev/nvidia-uvm"]


def another_major(_spec: dict[str, Any], live: dict[str, tuple[int, int]]) -> None:
    live["/dev/nvidia-uvm"] = (509, 0)


def node_is_gone(_spec: dict[str, Any], live: dict[str, tuple[int, int]]) -> None:
    del live["/dev/nvidia-uvm-tools"]


def second_gpu(_spec: dict[str, Any], live: dict[str, tuple[int, int]]) -> None:
    live["/dev/nvidia1"] = (195, 1)


def modeset_came_later(_spec: dict[str, Any], live: dict[str, tuple[int, int]]) -> None:
    live["/dev/nvidia-modeset"] = (195, 254)


def without_tools(spec: dict[str, Any], _live: dict[str, tuple[int, int]]) -> None:
    nodes = spec["containerEdits"]["deviceNodes"]
    spec["containerEdits"]["deviceNodes"] = [entry for entry in nodes if entry["path"] != "/dev/nvidia-uvm-tools"]


def no_device(spec: dict[str, Any], _live: dict[str, tuple[int, int]]) -> None:
    spec["devices"] = []


def no_all(spec: dict[str, Any], _live: dict[str, tuple[int, int]]) -> None:
    spec["devices"].pop()


def another_kind(spec: dict[str, Any], _live: dict[str, tuple[int, int]]) -> None:
    spec["kind"] = "amd.com/gpu"


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (without_uvm, "/dev/nvidia-uvm is not in it"),
        (another_major, "it gives /dev/nvidia-uvm as 510:0, the host has 509:0"),
        (node_is_gone, "it names /dev/nvidia-uvm-tools, which this host does not have"),
        (modeset_came_later, "/dev/nvidia-modeset is not in it"),
        (without_tools, "/dev/nvidia-uvm-tools is not in it"),
        (second_gpu, "/dev/nvidia1 is not in it"),
        (no_all, "it has no device 'all', only 0, GPU-00000000-0000-4000-8000-000000000000"),
        (another_kind, "its kind is 'amd.com/gpu', expected 'nvidia.com/gpu'"),
    ],
)
def test_each_fault_is_named(damage: Any, problem: str) -> None:
    spec, live = right(), copy.copy(LIVE)
    damage(spec, live)
    assert compare(spec, live, []) == [problem]


def test_a_specification_without_devices_is_wrong() -> None:
    spec, live = right(), copy.copy(LIVE)
    no_device(spec, live)
    assert compare(spec, live, []) == ["it describes no device", "/dev/nvidia0 is not in it"]


def test_a_library_of_the_previous_driver_is_named() -> None:
    assert host_files(right()) == [LIBRARY]
    assert compare(right(), LIVE, [LIBRARY]) == [f"it mounts {LIBRARY}, which is not there"]


def test_an_operator_may_leave_gpus_out() -> None:
    spec, live = right(), copy.copy(LIVE)
    second_gpu(spec, live)
    modeset_came_later(spec, live)
    no_all(spec, live)
    assert compare(spec, live, [], every_gpu=False) == []


OWN = ["0", "GPU-00000000-0000-4000-8000-000000000000"]


@pytest.mark.parametrize(
    ("devices", "every_gpu", "problems"),
    [
        ([OWN], True, []),
        # One of its names is enough: an operator may have chosen how devices are named.
        (
            [["0", "GPU-other"]],
            True,
            ["it has the device 'GPU-00000000-0000-4000-8000-000000000000', which this host has not"],
        ),
        ([OWN, ["1:0", "MIG-1"]], True, ["it has no device '1:0'"]),
        ([OWN, ["1:0", "MIG-1"]], False, []),
        (
            [["0:0", "MIG-0"]],
            True,
            [
                "it has no device '0:0'",
                "it has the device '0', which this host has not",
                "it has the device 'GPU-00000000-0000-4000-8000-000000000000', which this host has not",
            ],
        ),
    ],
    ids=["right", "renamed", "came", "left out", "was split"],
)
def test_gpus_and_mig_devices_that_came_or_went_are_named(
    devices: list[list[str]], every_gpu: bool, problems: list[str]
) -> None:
    assert compare(right(), LIVE, [], devices=devices, every_gpu=every_gpu) == problems


def test_a_gpu_without_a_device_is_not_asked_for() -> None:
    live = {**LIVE, "/dev/nvidia1": (195, 1)}
    assert compare(right(), live, [], devices=[OWN]) == ["/dev/nvidia1 is not in it"]
    assert compare(right(), live, [], devices=[OWN], without_device=1) == []
    more = {**live, "/dev/nvidia2": (195, 2)}
    problems = ["/dev/nvidia1 is not in it", "/dev/nvidia2 is not in it"]
    assert compare(right(), more, [], devices=[OWN], without_device=1) == problems


def test_a_container_gets_the_nodes_of_its_devices_and_what_all_share() -> None:
    spec = right()
    spec["devices"].insert(1, {"name": "1:0", "containerEdits": {"deviceNodes": [{"path": "/dev/nvidia1"}]}})
    assert "/dev/nvidia1" in device_nodes(spec)
    assert "/dev/nvidia1" not in device_nodes(spec, ["0"])
    assert set(device_nodes(spec, ["1:0"])) == {"/dev/nvidia1", *LIVE} - {"/dev/nvidia0"}


def test_a_path_on_the_host_counts_before_the_one_in_the_container() -> None:
    spec = right()
    spec["containerEdits"]["deviceNodes"].append({"path": "/dev/x", "hostPath": "/dev/nvidiactl"})
    assert compare(spec, LIVE, []) == []
