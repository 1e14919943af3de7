"""What a host shows of its driver, against the CDI specification that it has."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import yaml

import cdi_host
from cdi_host import character_devices, driver_problem, fingerprint, limited, read_spec, spec_problems


def write(path: Path, driver: str = "580.159.04") -> Path:
    mount = {"hostPath": f"/usr/lib/libcuda.so.{driver}", "containerPath": "/usr/lib/libcuda.so"}
    nodes = [{"path": "/dev/nvidiactl"}, {"path": "/dev/nvidia-uvm"}]
    edits = {"deviceNodes": nodes, "mounts": [mount]}
    spec = {
        "cdiVersion": "0.5.0",
        "kind": "nvidia.com/gpu",
        "devices": [{"name": "all", "containerEdits": edits}],
    }
    path.write_text(json.dumps(spec))
    return path


@pytest.mark.parametrize(("loaded", "fits"), [("580.159.04", True), ("580.178.04", False), ("", True)])
def test_driver_and_libraries_are_of_one_version(tmp_path: Path, loaded: str, fits: bool) -> None:
    version = tmp_path / "version"
    version.write_text(f"NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  {loaded}  Release Build\n")
    words = driver_problem(write(tmp_path / "spec"), version)
    assert (words == "") == fits
    if not fits:
        assert words.startswith(f"The driver {loaded} is loaded and its libraries are 580.159.04")
        assert words.endswith("Reboot this host.")


def test_what_is_not_known_is_no_problem_of_the_driver(tmp_path: Path) -> None:
    assert driver_problem(write(tmp_path / "spec"), tmp_path / "absent") == ""
    assert driver_problem(tmp_path / "absent", tmp_path / "absent") == ""


def test_the_fingerprint_names_the_content_and_not_the_text(tmp_path: Path) -> None:
    one, other = write(tmp_path / "one"), write(tmp_path / "other", driver="580.178.04")
    spelled = tmp_path / "spelled"
    spelled.write_text(json.dumps(json.loads(one.read_text()), indent=4))
    assert fingerprint(one) == fingerprint(spelled) != fingerprint(other)
    assert fingerprint(tmp_path / "absent") == ""


def test_an_absent_and_a_torn_specification_are_problems(tmp_path: Path) -> None:
    assert spec_problems(tmp_path / "absent") == ["there is none"]
    (tmp_path / "torn").write_text("{")
    (problem,) = spec_problems(tmp_path / "torn")
    assert problem.startswith("it cannot be read: ")
    with pytest.raises(ValueError, match="cannot be read"):
        read_spec(tmp_path / "torn")


def test_files_and_nodes_that_are_not_there_are_problems(tmp_path: Path) -> None:
    problems = spec_problems(write(tmp_path / "spec"))
    assert any("it mounts /usr/lib/libcuda.so.580.159.04, which is not there" in one for one in problems)
    assert any("/dev/nvidiactl" in one for one in problems)


def test_only_character_devices_are_nodes(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_text("")
    found = character_devices(["/dev/null", str(plain), str(tmp_path / "absent")])
    assert found == {"/dev/null": (1, 3)}


def test_gpus_are_compared_where_they_are_known(tmp_path: Path) -> None:
    gpu_list = "GPU 0: NVIDIA GB10 (UUID: GPU-0aaaaaaa-0000-0000-0000-000000000000)\n"
    spec = write(tmp_path / "spec")
    assert any("it has no device '0'" in one for one in spec_problems(spec, gpu_list))
    assert not any("it has no device '0'" in one for one in spec_problems(spec))


@pytest.mark.parametrize(
    ("text", "chosen"),
    [
        ("NVIDIA_CTK_CDI_GENERATE_DEVICE_IDS=0\n", True),
        ("# NVIDIA_CTK_CDI_GENERATE_DEVICE_IDS=0\n", False),
        (None, False),
    ],
)
def test_a_choice_of_the_operator_is_seen(tmp_path: Path, text: str | None, chosen: bool) -> None:
    if text is not None:
        (tmp_path / "env").write_text(text)
    assert limited(tmp_path / "env") == chosen


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"cdiVersion: [\n"])
def test_an_unreadable_specification_is_a_problem(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "nvidia.yaml"
    path.write_bytes(content)
    (problem,) = spec_problems(path, every_gpu=True)
    assert problem.startswith("it cannot be read: ")


def test_nodes_and_files_are_looked_up_on_the_host(tmp_path: Path) -> None:
    spec = {
        "cdiVersion": "0.7.0",
        "kind": "nvidia.com/gpu",
        "devices": [
            {"name": "all", "containerEdits": {"deviceNodes": [{"path": "/dev/null", "major": 1, "minor": 5}]}}
        ],
        "containerEdits": {
            "mounts": [
                {"hostPath": os.fspath(tmp_path), "containerPath": "/a"},
                {"hostPath": f"{tmp_path}/gone", "containerPath": "/b"},
            ]
        },
    }
    path = tmp_path / "nvidia.yaml"
    path.write_text(yaml.safe_dump(spec))
    problems = spec_problems(path, every_gpu=False)
    assert "it gives /dev/null as 1:5, the host has 1:3" in problems
    assert f"it mounts {tmp_path}/gone, which is not there" in problems
    assert not any(f"{tmp_path}," in problem for problem in problems)


def test_a_gpu_in_mig_mode_without_an_instance_is_no_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = {"/dev/nvidiactl": (195, 255), "/dev/nvidia-uvm": (510, 0), "/dev/nvidia0": (195, 0)}
    monkeypatch.setattr(cdi_host, "character_devices", lambda _paths: nodes)
    spec = tmp_path / "spec"
    edits = {"deviceNodes": [{"path": "/dev/nvidiactl"}, {"path": "/dev/nvidia-uvm"}]}
    devices = [{"name": "all", "containerEdits": edits}]
    spec.write_text(json.dumps({"cdiVersion": "0.5.0", "kind": "nvidia.com/gpu", "devices": devices}))
    listing = "GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-1)\n"
    assert spec_problems(spec, listing, "0, Enabled\n") == []
    assert spec_problems(spec, listing, "0, Disabled\n") == ["it has no device '0'", "/dev/nvidia0 is not in it"]
